"""The paper's evaluations (Fast BLT §4.2, §5.4, §6), on the real items and in miniature.

    python -m evaluation bpb                                   # bits per byte beside xz
    python -m evaluation likelihood                            # a cloze on held-out text
    python -m evaluation likelihood --set arc-easy --items DIR # multiple choice
    python -m evaluation translate --mode bltdv                # number phrases, FLORES, NTREX
    python -m evaluation code --allow-code-execution           # one-line functions, HumanEval, MBPP
    python -m evaluation diversity                             # more passes, more diverse samples?
    python -m evaluation miniature --write DIR                 # text for `train.py --data DIR`
    python -m evaluation miniature --checkpoints A.pt B.pt     # the paper's Figure 7 in small

Each takes the flags that it reads and no others: `python -m evaluation TASK --help`.
"""

import inspect
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import NamedTuple

from diffusion import RULES
from evaluation.answers import evaluate_code, evaluate_translation
from evaluation.benchmarks import CHOICES, PROGRAMS, READERS, TRANSLATIONS
from evaluation.diversity import evaluate_diversity
from evaluation.figure7 import evaluate_miniature
from evaluation.likelihood import evaluate_bpb, evaluate_likelihood
from evaluation.miniature import TASKS
from sample import load
from speculate import MODES, Drafting
from support.flags import Only, add_checkpoint, add_mode, add_sampling
from support.plots import to_write
from support.terminal import BadInput, Parser, number, run

# The most new bytes of an answer, as in the paper: translations and HumanEval have long ones
LONG, SHORT = 512, 256


def add_own(parser):
    """The flags that sample.py has not."""
    add = parser.add_argument
    add("--json", action="store_true", help="print JSON objects, one a line, and nothing else")
    add("--data", nargs="+", metavar="PATH", help="instead of the checkpoint's validation split")
    help_ = "generate the whole budget as the paper does, past stops, which end only what is scored"
    add("--no-stop", action="store_true", help=help_)
    help_ = "run programs that the model wrote; this is NO SECURITY SANDBOX"
    add("--allow-code-execution", action="store_true", help=help_)
    add("--plot", metavar="FILE", type=to_write(".png", ".svg"), help="draw it, PNG or SVG")


class Task(NamedTuple):
    """One evaluation as the command line knows it."""

    run: Callable  # takes model, patcher and options; its docstring is the help
    limit: int | None  # the default
    unit: str  # what --limit counts
    flags: str  # besides --limit and --json
    bytes: int | None = None  # the default; None: it depends on --set
    temperature: float = 0.0


MODEL = "checkpoint device threshold"
DRAFTING = " ".join(field.name.replace("_", "-") for field in fields(Drafting))
DRAWN = f"bytes temperature top-p seed ignore-eos {DRAFTING}"
ANSWERS = f"no-stop {MODEL} mode {DRAWN}"
SUBJECTS = "items; those of mmlu are taken from its subjects in turn"
# What diversity sets itself is no flag; its temperature is 1, as greedy samples would all be one.
SAMPLES = f"{MODEL} bytes temperature seed block-size plot"
ALL_MODES = f"device {DRAWN} no-stop allow-code-execution plot"
COMMANDS = {
    "bpb": Task(evaluate_bpb, None, "documents", f"data {MODEL}"),
    "likelihood": Task(evaluate_likelihood, 1000, SUBJECTS, f"data {MODEL}"),
    "translate": Task(evaluate_translation, 200, "items", ANSWERS),
    "code": Task(evaluate_code, 200, "items", f"{ANSWERS} allow-code-execution"),
    "diversity": Task(evaluate_diversity, 16, "samples a setting", SAMPLES, 1000, 1.0),
    # This one takes options alone, which name several models.
    "miniature": Task(evaluate_miniature, 100, "items a task", ALL_MODES, SHORT),
}
# Names for --set, the first of them the default
SETS = {
    "likelihood": ("cloze", *CHOICES),
    "translate": (*TASKS[:2], *TRANSLATIONS),
    "code": (*TASKS[2:], *PROGRAMS),
}


def add_task(tasks, name, task):
    """The parser of a task."""
    text = inspect.getdoc(task.run)
    parser = tasks.add_parser(name, help=text, description=text)
    help_ = f"evaluate on the first so many {task.unit}"
    parser.add_argument("--limit", type=number(int, 1), default=task.limit, help=help_)
    if name == "miniature":
        one_of = parser.add_mutually_exclusive_group(required=True)
        one_of.add_argument("--write", metavar="DIR", help="write text to train on, nothing else")
        one_of.add_argument("--checkpoints", nargs="+", metavar="FILE", help="trained on that")
    some = Only(parser, f"json {task.flags}")
    add_own(some)
    add_checkpoint(some)
    add_sampling(some, task.bytes, task.temperature)
    add_mode(some, MODES, RULES)
    if sets := SETS.get(name):
        public = ", ".join(known for known in sets if known in READERS)
        parser.add_argument("--set", default=sets[0], choices=sets, help="which items")
        parser.add_argument("--items", metavar="DIR", help=f"folder with the files of {public}")


def options_from(argv):
    """The command line as a Namespace. Raises BadInput for what does not go together."""
    parser = Parser(prog="python -m evaluation", description="Evaluate a checkpoint.")
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    for name, task in COMMANDS.items():
        add_task(tasks, name, task)
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        words = f"{options.task} takes no {' '.join(unknown)}"
        raise BadInput(f"{words} (see {parser.prog} {options.task} --help)")
    if getattr(options, "write", None):
        # Whether a flag was given can't be seen from its value, which may be the default.
        given = sys.argv[1:] if argv is None else argv
        if sum(argument.startswith("-") for argument in given) > 1:
            raise BadInput("--write takes no other flag: it writes all that there is to train on")
    if "set" in options:
        if options.items and options.set not in READERS:
            raise BadInput(f"--set {options.set} reads no --items: name a benchmark with --set")
        if options.set in READERS and getattr(options, "data", None):
            raise BadInput(f"--set {options.set} reads no --data but --items DIR")
    if "bytes" in options and options.bytes is None:
        options.bytes = LONG if options.set in (*TRANSLATIONS, "humaneval") else SHORT
    return options


def main(argv=None):
    options = options_from(argv)
    model_and_patcher = () if options.task == "miniature" else load(options)
    COMMANDS[options.task].run(*model_and_patcher, options)


if __name__ == "__main__":
    run(main, "evaluation")
