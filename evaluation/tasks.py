"""What the tasks have in common: questions and choices, standard errors, and what is printed.

Whatever items were read from or made by, they are Choices or Questions.
"""

import math
import re
import statistics
from dataclasses import dataclass, replace

import torch

from bandwidth import cost_of, share, total
from data import name_bytes
from support.terminal import Column, print_rows, table_of

as_bytes = name_bytes  # text is made of bytes as file names are: those that are no UTF-8 too
COST = [
    Column("items", "d", "items"),
    Column("new_bytes", "d", "bytes"),
    Column("bytes_per_second", ".0f", "bytes/s"),
    Column("seconds", ".1f", "seconds"),
    Column("decoder_nfes", "d", "decoder NFEs"),
    Column("encoder_global_nfes", "d", "encoder/global"),
    Column("entropy_nfes", "d", "patcher"),
    Column("bandwidth_gb", ".3g", "GB by Eq. 8"),
]


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
    separator: str = " "  # what they begin with, which counts for no part of a choice's length

    def sizes(self):
        """The length of each choice in bytes, without what separates it from the query."""
        return [len(as_bytes(choice.removeprefix(self.separator))) for choice in self.choices]


# A line that is not indented: a blank one, which may stand inside of a body, is none.
AT_MARGIN = re.compile(r"\n(?=[^ \t\n\r\f])")


@dataclass
class Question:
    """What the model goes on from, and what it should write."""

    prompt: str
    solution: str
    stops: tuple  # an answer ends before the first of these
    tests: str = ""  # code is right if prompt + answer + tests runs to its end
    context: str = ""  # worked examples that only stand in front
    indented: bool = False  # an answer also ends before the next line that is not indented

    def answer_in(self, text):
        """What a model wrote, up to where the answer ends."""
        ends = [text.find(stop) for stop in self.stops if stop in text]
        if self.indented:
            ends += [found.start() for found in AT_MARGIN.finditer(text)]
        return text[: min(ends, default=len(text))]


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
    """-> {NAME: mean of independent values, NAME_se: its standard error}.

    A single value has no standard error, and no value no mean: these are None.
    """
    n = len(values)
    error = statistics.stdev(values) / math.sqrt(n) if n > 1 else None
    return {name: statistics.mean(values) if values else None, f"{name}_se": error}


def with_error(value, error):
    """A number and its standard error as text, ± only where that is known."""
    if value is None:
        return None
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"


def show(row, columns, options, note=""):
    """Print a row of JSON keys, with --json as an object, else as a table with a note below -> it.

    There a number that has a standard error is shown with it.
    """
    if options.json:
        print_rows([{"task": options.task, **row}])
        return row
    shown = dict(row)
    for name, value in row.items():
        if f"{name}_se" in row:
            shown[name] = with_error(value, row[f"{name}_se"])
    print(table_of([shown], columns) + note)
    return row


def report(known, score, made, options, chance=None):
    """Show score and cost of one run, its passes also for each byte -> the row that says all that.

    known: what there is to say of the run, words by name. score: what `mean` makes, of one or
    several names. made: a Generation for each item. chance: what guessing scores, if it is known.
    """
    cost = cost_of(total(made))
    # Likelihoods write nothing: there is no byte to count the passes for.
    written = cost["new_bytes"]
    if not written:
        cost["bytes_per_second"] = None
    row = {**known, **score, "items": len(made), **cost}
    for key, spent in cost.items():
        if key.endswith("_nfes"):
            row[f"{key}_per_byte"] = share(spent, written)
    names = [name for name in (*known, *score) if not name.endswith("_se")]
    columns = [Column(name, "s", name) for name in names] + COST
    if chance is not None:
        row["chance"] = chance
        columns.insert(len(names), Column("chance", ".4g", "by chance"))
    return show(row, columns, options)
