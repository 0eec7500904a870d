"""What is asked of a model, whatever it was read from or made by, and how it is put as text.

Three kinds: a Choice between continuations, a Pair of sentences to translate, a Program to
complete.
"""

from dataclasses import dataclass


@dataclass
class Choice:
    """Which of `choices` goes on after `query`? Each begins with what separates it from that."""

    query: str
    choices: list
    gold: int  # the place of the right one


@dataclass
class Pair:
    """A sentence and its translation into English."""

    source: str
    target: str


@dataclass
class Program:
    """Code to complete: right if prompt + completion + tests runs to its end."""

    name: str
    prompt: str
    solution: str
    tests: str
    stops: tuple  # a completion ends before the first of these
    context: str = ""  # worked examples that only stand in front


def as_bytes(text):
    """Text as the bytes it was made from, those that are no UTF-8 too."""
    return text.encode("utf-8", "surrogateescape")


def as_text(data):
    """Any bytes as text that `as_bytes` makes the same bytes of."""
    return data.decode("utf-8", "surrogateescape")


def as_example(item, language=None):
    """A Pair or Program as text of a prompt or of training, solution included."""
    if isinstance(item, Program):
        return item.prompt + item.solution + "\n"
    return as_question(item, language) + f" {item.target}\n\n"


def as_question(pair, language):
    """A Pair up to where its translation begins."""
    return f"{language}: {pair.source}\nEnglish:"
