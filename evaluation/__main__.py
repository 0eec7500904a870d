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

import sys
from collections.abc import Callable
from typing import NamedTuple

from diffusion import UNMASK
from evaluation.benchmarks import CHOICES, PROGRAMS, TRANSLATIONS
from evaluation.diversity import evaluate_diversity
from evaluation.figure7 import evaluate_miniature
from evaluation.miniature import TASKS
from evaluation.plots import plot_path
from evaluation.tasks import (
    evaluate_bpb,
    evaluate_code,
    evaluate_likelihood,
    evaluate_translation,
)
from sample import load
from speculate import MODES
from support.flags import add_checkpoint, add_drafting, add_mode, add_sampling
from support.terminal import BadInput, Parser, number, run

NAME = "evaluation"


class Only:
    """Stands for a parser where flags are added in bulk: takes the ones named, drops the others.

    So a task has the same flags as sample.py, with the same help, but none that it does not read.
    """

    def __init__(self, parser, *flags):
        self.parser, self.flags = parser, flags

    def add_argument(self, flag, **options):
        if flag in self.flags:
            self.parser.add_argument(flag, **options)


# ---- flags that several tasks share


def add_limit(task, default, unit, note=""):
    """--limit and --json."""
    text = f"evaluate on the first so many {unit}{note}"
    task.add_argument("--limit", type=number(int, 1), default=default, help=text)
    task.add_argument(
        "--json", action="store_true", help="print JSON objects, one a line, and nothing else"
    )


def add_set(task, own, public):
    """--set and --items: our own sets, the first of them the default, and public benchmarks."""
    task.add_argument("--set", default=own[0], choices=[*own, *public], help="which items")
    task.add_argument(
        "--items", metavar="DIR", help=f"folder with the files of {', '.join(public)}"
    )


def add_data(task):
    """--data, for tasks on held-out text."""
    task.add_argument(
        "--data",
        nargs="+",
        metavar="PATH",
        help="files and folders to take whole "
        "(default: the validation split of the checkpoint's corpus)",
    )


def add_code_execution(task):
    """The flag without which nothing that a model wrote is run."""
    task.add_argument(
        "--allow-code-execution",
        action="store_true",
        help="run programs that the model wrote; limits end accidents, "
        "but this is NO SECURITY SANDBOX",
    )


def add_plot(task):
    """--plot, refused at once where it could not be written in the end."""
    task.add_argument("--plot", metavar="FILE", type=plot_path, help="draw it, PNG or SVG")


# ---- the flags of each task: those that it reads, so that any other is refused


def add_bpb(task):
    """Nothing is generated, so there are no flags of sampling or mode."""
    add_limit(task, None, "documents")
    add_checkpoint(task)
    add_data(task)


def add_likelihood(task):
    """Nothing is generated here either."""
    add_limit(task, 1000, "items", "; those of mmlu are taken from its subjects in turn")
    add_checkpoint(task)
    add_set(task, ("cloze",), CHOICES)
    add_data(task)


def add_translate(task):
    """Everything that sample.py knows of sampling and modes."""
    add_limit(task, 200, "items")
    add_checkpoint(task)
    add_sampling(task, bytes=512)
    add_mode(task, MODES, UNMASK)
    add_set(task, TASKS[:2], TRANSLATIONS)


def add_code(task):
    """As for translations, and the word of consent."""
    add_limit(task, 200, "items")
    add_checkpoint(task)
    add_sampling(task, bytes=1024)
    add_mode(task, MODES, UNMASK)
    add_set(task, TASKS[2:], PROGRAMS)
    add_code_execution(task)


def add_diversity(task):
    """No --top-p, --unmask and --gamma, which are what the task varies.

    Greedy samples would all be one, so the temperature is 1 unless told otherwise.
    """
    add_limit(task, 4, "samples a setting")
    add_checkpoint(task)
    sampling = Only(task, "--bytes", "--temperature", "--seed", "--ignore-eos")
    add_sampling(sampling, bytes=1000, temperature=1.0)
    add_drafting(Only(task, "--block-size"), UNMASK)
    add_plot(task)


def add_miniature(task):
    """No --mode, as all run, and --checkpoints for --checkpoint."""
    what = task.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--write",
        metavar="DIR",
        help="write the text to train on into a new folder, for train.py --data DIR; "
        "takes no other flag",
    )
    what.add_argument(
        "--checkpoints",
        nargs="+",
        metavar="FILE",
        help="models trained on that text, the plain BLT among them",
    )
    add_checkpoint(Only(task, "--device"))
    add_limit(task, 100, "items a task")
    add_sampling(task)
    add_drafting(task, UNMASK)
    add_code_execution(task)
    add_plot(task)


class Task(NamedTuple):
    """One evaluation as the command line knows it."""

    add_flags: Callable  # takes a parser
    run: Callable  # takes model, patcher and options
    text: str


COMMANDS = {
    "bpb": Task(
        add_bpb,
        evaluate_bpb,
        "Bits per byte under the causal mask, beside xz; of a BLT-D also the loss of masked "
        "blocks by position.",
    ),
    "likelihood": Task(
        add_likelihood,
        evaluate_likelihood,
        "Multiple choice by the log-likelihood of each choice, as a sum and per byte.",
    ),
    "translate": Task(
        add_translate,
        evaluate_translation,
        "Translation into English, four worked examples, greedy unless told otherwise.",
    ),
    "code": Task(
        add_code,
        evaluate_code,
        "pass@1 of programs that the model completes. They run in a process of their own, with "
        "limits on time, memory, files and processes. That ends accidents; it is NO SECURITY "
        "SANDBOX. Run models that you do not trust in a container or virtual machine.",
    ),
    "diversity": Task(
        add_diversity,
        evaluate_diversity,
        "Word type-token ratio of unconditional BLT-D samples against decoder passes, γ and top-p "
        "swept.",
    ),
    "miniature": Task(
        add_miniature,
        evaluate_miniature,  # takes options alone, which name several models
        "The paper's Figure 7 in small: score and cost of plain BLT, BLT-S, BLT-D-K and BLT-DV-K "
        "on generated tasks.",
    ),
}


def options_from(argv):
    """The command line as a Namespace. Raises BadInput for what does not go together."""
    parser = Parser(prog=f"python -m {NAME}", description="Evaluate a checkpoint.")
    tasks = parser.add_subparsers(
        dest="task", required=True, metavar="TASK", help=", ".join(COMMANDS)
    )
    for name, task in COMMANDS.items():
        task.add_flags(tasks.add_parser(name, help=task.text, description=task.text))
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        words = f"{options.task} takes no {' '.join(unknown)}"
        raise BadInput(f"{words} (see {parser.prog} {options.task} --help)")
    check_flags(options, sys.argv[1:] if argv is None else argv)
    return options


def check_flags(options, given):
    """Raises BadInput for flags that would not be read beside the others. given: the arguments."""
    # Whether a flag was given can't be seen from its value, which may be the default.
    if getattr(options, "write", None) and sum(argument.startswith("-") for argument in given) > 1:
        raise BadInput("--write takes no other flag: it writes all that there is to train on")
    if "set" in options:
        from_folder = options.set in {**CHOICES, **TRANSLATIONS, **PROGRAMS}
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
