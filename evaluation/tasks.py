"""What the tasks have in common: questions and choices, standard errors, and the line at the end.

Whatever items were read from or made by, they are Choices or Questions.
"""

import math
import statistics
from dataclasses import dataclass, replace
from itertools import islice

import torch

from data import name_bytes
from generate import Generation
from support.terminal import BadInput, print_rows

as_bytes = name_bytes  # text is made of bytes as file names are: those that are no UTF-8 too
PRICE = "{seconds:.1f} s, NFEs: decoder {decoder_nfes:,}, encoder/global {encoder_global_nfes:,}, "
PRICE += "patcher {entropy_nfes:,}; {bandwidth_gb:.3g} GB by Eq. 8"


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


def picker(seed):
    """-> a function pick(n) that draws a number from 0..n-1, the same ones for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return lambda n: int(torch.randint(n, (), generator=generator))


def taken(items, limit):
    """The first `limit` items, as a list; at least one."""
    items = list(islice(items, limit))
    if not items:
        raise BadInput("there are no items to evaluate on")
    return items


def mean(name, values):
    """-> {NAME: mean of independent values, NAME_se: its standard error, None for a single one}."""
    n = len(values)
    error = statistics.stdev(values) / math.sqrt(n) if n > 1 else None
    return {name: statistics.mean(values), f"{name}_se": error}


def with_errors(row, form=".4g", error_form=".2g"):
    """The same row, every number that has a standard error as text with ± that, if it is known."""
    shown = dict(row)
    for name, error in row.items():
        if (known := name.removesuffix("_se")) != name:
            shown[known] = f"{row[known]:{form}}"
            shown[known] += "" if error is None else f" ± {error:{error_form}}"
    return shown


def report(score, made, options, **known):
    """Print score and cost in one line, or with --json as one object.

    score: what `mean` makes, of one or several names. made: Generations. known: what else there
    is to say of the run, the number of items last.
    """
    cost = Generation.total(made).cost()
    if options.json:
        return print_rows([{"task": options.task, **known, **score, **cost}])
    shown = with_errors(score)
    scores = ", ".join(f"{name} {shown[name]}" for name in score if not name.endswith("_se"))
    new = "no bytes made"
    if cost["new_bytes"]:
        new = f"{cost['new_bytes']:,} bytes at {cost['bytes_per_second']:.0f} bytes/s"
    run = ", ".join(map(str, known.values()))
    return print(f"{run} items: {scores}; {new}, {PRICE.format_map(cost)}")
