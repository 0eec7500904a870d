"""What the tasks have in common: questions and choices, standard errors, and what is printed.

Whatever items were read from or made by, they are Choices or Questions.
"""

import math
import statistics
from dataclasses import dataclass, replace

import torch

from data import name_bytes
from generate import Generation
from support.terminal import print_rows, table_of

as_bytes = name_bytes  # text is made of bytes as file names are: those that are no UTF-8 too
COST = """
items d items | new_bytes d bytes | bytes_per_second .0f bytes/s | seconds .1f seconds |
decoder_nfes d decoder NFEs | encoder_global_nfes d encoder/global | entropy_nfes d patcher |
bandwidth_gb .3g GB by Eq. 8
"""


def picker(seed):
    """-> a function pick(n) that draws a number from 0..n-1, the same ones for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return lambda n: int(torch.randint(n, (), generator=generator))


# ---- what is asked


@dataclass
class Choice:
    """Which of `choices` goes on after `query`? Each begins with what separates it from that."""

    query: str
    choices: list
    gold: int  # the place of the right one


@dataclass
class Question:
    """What the model goes on from, and what it should write."""

    prompt: str
    solution: str
    stops: tuple  # an answer ends before the first of these
    tests: str = ""  # code is right if prompt + answer + tests runs to its end
    context: str = ""  # worked examples that only stand in front


def translation(language, source, target):
    """A sentence to translate from a language into English, on one line, as a Question."""
    return Question(f"{language}: {source}\nEnglish:", f" {target}\n", ("\n",))


def as_example(question):
    """A Question with its solution, as text of a prompt or of training."""
    return question.prompt + question.solution + "\n"


def behind(examples, questions):
    """The same Questions, one by one, with worked examples in front of each."""
    context = "".join(map(as_example, examples))
    return (replace(question, context=context) for question in questions)


# ---- what is said of the answers


def mean(name, values):
    """-> {NAME: mean of independent values, NAME_se: its standard error, None for a single one}."""
    n = len(values)
    error = statistics.stdev(values) / math.sqrt(n) if n > 1 else None
    return {name: statistics.mean(values), f"{name}_se": error}


def show(row, columns, options, note=""):
    """Print a row of JSON keys: with --json as an object, else as a table with a note below.

    There a number that has a standard error is text with ± that, if it is known.
    """
    if options.json:
        return print_rows([{"task": options.task, **row}])
    shown = dict(row)
    for name, error in row.items():
        if (known := name.removesuffix("_se")) != name:
            shown[known] = f"{row[known]:.4g}" + ("" if error is None else f" ± {error:.2g}")
    return print(table_of([shown], columns) + note)


def report(score, made, options, **known):
    """Show score and cost of one run, its passes also for each byte.

    score: what `mean` makes, of one or several names. made: a Generation for each item. known:
    what else there is to say of the run, in words.
    """
    row = {**known, **score, "items": len(made), **(cost := Generation.total(made).cost())}
    passes = [key for key in cost if key.endswith("_nfes")]
    row |= {f"{key}_per_byte": cost[key] / max(1, cost["new_bytes"]) for key in passes}
    names = [name for name in (*known, *score) if not name.endswith("_se")]
    show(row, "".join(f"{name} s {name} | " for name in names) + COST, options)
