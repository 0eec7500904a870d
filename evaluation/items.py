"""What is asked of a model, whatever it was read from or made by."""

from dataclasses import dataclass, replace

import torch

from data import name_bytes

as_bytes = name_bytes  # text is made of bytes as file names are: those that are no UTF-8 too


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
