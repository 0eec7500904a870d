"""The items of public benchmarks, read from the files that they are published as (`evaluate.py --items DIR`).

Three kinds: a Choice between continuations, a Pair of sentences to translate, a Program to complete. Readers are generators, so that
`--limit` reads no more than it needs; each raises BadInput with the file and line that it can't read.
"""
import bz2
import csv
import glob
import gzip
import json
import os
import zlib
from dataclasses import dataclass
from itertools import islice

from terminal import BadInput


@dataclass
class Choice:
    """Which of `choices` goes on after `query`? Each begins with what separates it from the query."""
    query: str
    choices: list
    gold: int


@dataclass
class Pair:
    """A sentence and its translation into English."""
    source: str
    target: str


@dataclass
class Program:
    """Code to complete. Right if prompt + completion + tests runs to its end; `context`, worked examples, only stands in front."""
    name: str
    prompt: str
    solution: str
    tests: str
    stops: tuple          # a completion ends before the first of these
    context: str = ""


def as_bytes(text):
    """Text as the bytes it was made from, those that are no UTF-8 too."""
    return text.encode("utf-8", "surrogateescape")


# What ends the body of a function: the next line that is not indented.
TOP_LEVEL = ("\ndef ", "\nclass ", "\nif ", "\nprint", "\nassert ", "\nimport ", "\nfrom ", "\n#", "\n@", "\nfor ", "\n\"\"\"")


def as_example(item, language=None):
    """A Pair or Program as text of a prompt or of training, solution included."""
    if isinstance(item, Program):
        return item.prompt + item.solution + "\n"
    return as_question(item, language) + f" {item.target}\n\n"


def as_question(pair, language):
    """A Pair up to where its translation begins."""
    return f"{language}: {pair.source}\nEnglish:"


# ---- files

def lines_of(path, opener=open):
    """Lines of a text file without their ends. Only \\n ends one: other separators occur inside of items."""
    try:
        with opener(path, "rt", encoding="utf-8", newline="\n") as file:
            for line in file:
                yield line.rstrip("\r\n")
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as problem:
        raise BadInput(f"can't read the items in {path}: {problem}; --items names the folder that holds them") from None


def objects_of(path, opener=open):
    """Objects of a JSON-lines file."""
    for number, line in enumerate(lines_of(path, opener), 1):
        try:
            yield json.loads(line)
        except ValueError:
            raise BadInput(f"line {number} of {path} is no JSON object") from None


def checked(read):
    """A reader that turns missing fields, fields of another kind and cut-off items into one clear line."""
    def reader(folder):
        try:
            for item in read(folder):
                if isinstance(item, Choice):
                    texts = item.query, *item.choices
                    if not 0 <= item.gold < len(item.choices):
                        raise ValueError(f"answer {item.gold} of {len(item.choices)} choices")
                else:
                    texts = item.prompt, item.solution, item.tests
                as_bytes("".join(texts))
                yield item
        except (KeyError, IndexError, ValueError, TypeError, csv.Error) as problem:
            raise BadInput(f"the items of {read.__name__.removeprefix('read_')} in {folder} have another form than expected "
                           f"({type(problem).__name__}: {problem})") from None
    return reader


# ---- multiple choice

def answered(path):
    """Choices of answers to a question, without the doubles that pad some items; the first of equal ones stays."""
    for item in objects_of(path):
        known, kept = dict(enumerate(item["choices"])), list(dict.fromkeys(item["choices"]))
        yield Choice(item["query"] + "\nAnswer:", [" " + c for c in kept], kept.index(known[item["gold"]]))


@checked
def read_arc_easy(folder):
    yield from answered(os.path.join(folder, "arc_easy.jsonl"))


@checked
def read_arc_challenge(folder):
    yield from answered(os.path.join(folder, "arc_challenge.jsonl"))


@checked
def read_piqa(folder):
    labels = lines_of(os.path.join(folder, "piqa_valid-labels.lst"))
    for item, label in zip(objects_of(os.path.join(folder, "piqa_valid.jsonl")), labels, strict=True):
        yield Choice(f"Question: {item['goal']}\nAnswer:", [" " + item["sol1"], " " + item["sol2"]], int(label))


@checked
def read_hellaswag(folder):
    lines = lines_of(os.path.join(folder, "hellaswag_val_full.txt.bz2"), bz2.open)
    while six := list(islice(lines, 6)):
        context, label, *endings = six
        yield Choice(context, [" " + ending for ending in endings], range(len(endings))[int(label)])


@checked
def read_mmlu(folder, shots=5):
    """Five worked questions of the subject's dev part in front, as is usual; the choices are the letters."""
    def question(row):
        return "\n".join([row[0], *(f"{letter}. {text}" for letter, text in zip("ABCD", row[1:5], strict=True)), "Answer:"])

    rows_of = lambda path: csv.reader(line + "\n" for line in lines_of(path))
    paths = sorted(glob.glob(os.path.join(folder, "mmlu", "test", "*_test.csv")))
    if not paths:
        raise BadInput(f"no items in {os.path.join(folder, 'mmlu', 'test')}: --items names the folder that holds mmlu/")
    for path in paths:
        subject = os.path.basename(path).removesuffix("_test.csv")
        examples = islice(rows_of(os.path.join(folder, "mmlu", "dev", f"{subject}_dev.csv")), shots)
        context = "".join(f"{question(row)} {row[5]}\n\n" for row in examples)
        for row in rows_of(path):
            yield Choice(context + question(row), [" A", " B", " C", " D"], "ABCD".index(row[5]))


CHOICES = {"arc-easy": read_arc_easy, "arc-challenge": read_arc_challenge, "piqa": read_piqa, "hellaswag": read_hellaswag,
           "mmlu": read_mmlu}


# ---- translation: -> (language, worked examples, items)

def read_flores(folder, shots=4):
    """FLORES-101 German to English: examples from dev, items from devtest."""
    pairs = lambda part: aligned(*(os.path.join(folder, "flores101", f"{part}.{code}") for code in ("deu", "eng")))
    return "German", list(islice(pairs("dev"), shots)), pairs("devtest")


def read_ntrex(folder, shots=4):
    """NTREX French to English has one part only: its first sentences are the examples and no items."""
    pairs = aligned(*(os.path.join(folder, "ntrex", f"{code}.txt") for code in ("fra", "eng")))
    return "French", list(islice(pairs, shots)), pairs


def aligned(source, target):
    """Pairs of two files with a sentence a line."""
    try:
        yield from (Pair(*pair) for pair in zip(lines_of(source), lines_of(target), strict=True))
    except ValueError:
        raise BadInput(f"{source} and {target} differ in length: they are no translations of each other") from None


TRANSLATIONS = {"flores-de-en": read_flores, "ntrex-fr-en": read_ntrex}


# ---- code

@checked
def read_humaneval(folder):
    """164 functions from their signature and docstring, no example."""
    for item in objects_of(os.path.join(folder, "HumanEval.jsonl.gz"), gzip.open):
        tests = f"\n{item['test']}\ncheck({item['entry_point']})\n"
        yield Program(item["task_id"], item["prompt"], item["canonical_solution"], tests, TOP_LEVEL)


@checked
def read_mbpp(folder):
    """500 tasks (11 to 510) from a sentence and the asserts they must pass, behind three examples (2, 3 and 4)."""
    def question(item):
        return f'"""\n{item["text"]}\n' + "\n".join(item["test_list"]) + '\n"""\n'

    items = {item["task_id"]: item for item in objects_of(os.path.join(folder, "mbpp.jsonl"))}
    shots = "".join(question(items[i]) + items[i]["code"].replace("\r", "") + "\n\n" for i in (2, 3, 4))
    for item in (items[i] for i in range(11, 511)):
        tests = "\n" + "\n".join([item["test_setup_code"], *item["test_list"]]) + "\n"
        yield Program(f"MBPP/{item['task_id']}", question(item), item["code"], tests, ('\n"""',), shots)


PROGRAMS = {"humaneval": read_humaneval, "mbpp": read_mbpp}
