"""The paper's evaluations (Fast BLT §4.2, §5.4, §6), on the real items and in miniature.

    python -m evaluation bpb                                   # bits per byte beside xz
    python -m evaluation likelihood                            # a cloze on held-out text
    python -m evaluation likelihood --set arc-easy --items DIR # multiple choice
    python -m evaluation translate --mode bltdv                # number phrases, FLORES, NTREX
    python -m evaluation code --allow-code-execution           # one-line functions, HumanEval, MBPP
    python -m evaluation diversity                             # more passes, more diverse samples?
    python -m evaluation miniature --write DIR                 # text for `train.py --data DIR`
    python -m evaluation miniature --checkpoints A.pt B.pt     # the paper's Figure 7 in small

Every task ends with its score, with a standard error, and its cost. Each takes the flags that it
reads and no others: `python -m evaluation TASK --help`.
"""

import inspect
import sys
from collections.abc import Callable
from typing import NamedTuple

from diffusion import UNMASK
from evaluation.answers import evaluate_code, evaluate_translation
from evaluation.benchmarks import BUDGETS, CHOICES, PROGRAMS, READERS, TRANSLATIONS
from evaluation.diversity import evaluate_diversity
from evaluation.figure7 import evaluate_miniature
from evaluation.likelihood import evaluate_bpb, evaluate_likelihood
from evaluation.miniature import TASKS
from evaluation.plots import plot_path
from sample import load
from speculate import MODES
from support.flags import add_checkpoint, add_drafting, add_mode, add_sampling
from support.terminal import BadInput, Parser, number, run

NAME = "evaluation"
NO_STOP, CONSENT = "--no-stop", "--allow-code-execution"
BUDGET = 256  # new bytes of an answer to items that are made here

# Flags that sample.py has not: their help, and how they are read if they are no switches
FLAGS = {
    "--json": "print JSON objects, one a line, and nothing else",
    "--data": "paths to take whole (default: the validation split of the checkpoint's corpus)",
    NO_STOP: "generate the whole budget as the paper does, past stops and the end of text; "
    "what stands before a stop is scored, the cost counts all",
    CONSENT: "run programs that the model wrote; this is NO SECURITY SANDBOX",
    "--plot": "draw it, PNG or SVG",
    "--write": "write text for train.py --data DIR into a new folder; takes no other flag",
    "--checkpoints": "models trained on that text, the plain BLT among them",
}
VALUES = {
    "--data": {"nargs": "+", "metavar": "PATH"},
    "--plot": {"metavar": "FILE", "type": plot_path},
    "--write": {"metavar": "DIR"},
    "--checkpoints": {"nargs": "+", "metavar": "FILE"},
}


class Only:
    """Stands for a parser where flags are added in bulk: takes the ones named, drops the others.

    So a task has the same flags as sample.py, with the same help, but none that it does not read.
    """

    def __init__(self, parser, *flags):
        self.parser, self.flags = parser, flags

    def add_argument(self, flag, **options):
        if flag in self.flags:
            self.parser.add_argument(flag, **options)


def add(parser, *flags):
    """Add some of FLAGS."""
    for flag in flags:
        how = VALUES.get(flag, {"action": "store_true"})
        parser.add_argument(flag, help=FLAGS[flag], **how)


# ---- what tasks share with sample.py, and miniature's own


def add_answers(parser):
    """Everything that sample.py knows of sampling and modes."""
    add_checkpoint(parser)
    add_sampling(parser, bytes=None)
    add_mode(parser, MODES, UNMASK)


def add_diversity(parser):
    """No --top-p, --unmask, --gamma and --ignore-eos, which the task itself sets.

    Greedy samples would all be one, so the temperature is 1 unless told otherwise.
    """
    add_checkpoint(parser)
    sampling = Only(parser, "--bytes", "--temperature", "--seed")
    add_sampling(sampling, bytes=1000, temperature=1.0)
    add_drafting(Only(parser, "--block-size"), UNMASK)
    add(parser, "--plot")


def add_miniature(parser):
    """No --mode, as all run, and --checkpoints for --checkpoint."""
    add(parser.add_mutually_exclusive_group(required=True), "--write", "--checkpoints")
    add_checkpoint(Only(parser, "--device"))
    add_sampling(parser, bytes=BUDGET)
    add_drafting(parser, UNMASK)
    add(parser, NO_STOP, CONSENT, "--plot")


class Task(NamedTuple):
    """One evaluation as the command line knows it."""

    run: Callable  # takes model, patcher and options; its docstring is the help
    limit: int | None  # the default
    unit: str  # what --limit counts
    add_flags: Callable  # takes a parser
    flags: tuple = ()  # which of FLAGS besides


SUBJECTS = "items; those of mmlu are taken from its subjects in turn"
COMMANDS = {
    "bpb": Task(evaluate_bpb, None, "documents", add_checkpoint, ("--data",)),
    "likelihood": Task(evaluate_likelihood, 1000, SUBJECTS, add_checkpoint, ("--data",)),
    "translate": Task(evaluate_translation, 200, "items", add_answers, (NO_STOP,)),
    "code": Task(evaluate_code, 200, "items", add_answers, (NO_STOP, CONSENT)),
    "diversity": Task(evaluate_diversity, 16, "samples a setting", add_diversity),
    # This one takes options alone, which name several models.
    "miniature": Task(evaluate_miniature, 100, "items a task", add_miniature),
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
    add(parser, "--json", *task.flags)
    task.add_flags(parser)
    if name in SETS:
        sets = SETS[name]
        public = ", ".join(known for known in sets if known in READERS)
        parser.add_argument("--set", default=sets[0], choices=sets, help="which items")
        parser.add_argument("--items", metavar="DIR", help=f"folder with the files of {public}")


def options_from(argv):
    """The command line as a Namespace. Raises BadInput for what does not go together."""
    parser = Parser(prog=f"python -m {NAME}", description="Evaluate a checkpoint.")
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    for name, task in COMMANDS.items():
        add_task(tasks, name, task)
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        words = f"{options.task} takes no {' '.join(unknown)}"
        raise BadInput(f"{words} (see {parser.prog} {options.task} --help)")
    check_flags(options, sys.argv[1:] if argv is None else argv)
    if "bytes" in options and options.bytes is None:
        options.bytes = BUDGETS.get(options.set, BUDGET)
    return options


def check_flags(options, given):
    """Raises BadInput for flags that would not be read beside the others. given: the arguments."""
    # Whether a flag was given can't be seen from its value, which may be the default.
    if getattr(options, "write", None) and sum(argument.startswith("-") for argument in given) > 1:
        raise BadInput("--write takes no other flag: it writes all that there is to train on")
    if "set" in options:
        from_folder = options.set in READERS
        if options.items and not from_folder:
            raise BadInput(f"--set {options.set} reads no --items: name a benchmark with --set")
        if from_folder and getattr(options, "data", None):
            raise BadInput(f"--set {options.set} reads no --data but --items DIR")


def main(argv=None):
    options = options_from(argv)
    run_task = COMMANDS[options.task].run
    if options.task == "miniature":
        run_task(options)
    else:
        run_task(*load(options), options)


if __name__ == "__main__":
    run(main, NAME)
