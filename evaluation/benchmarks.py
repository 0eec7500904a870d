"""The items of public benchmarks, read from the files that they are published as (`--items DIR`).

Readers are generators, so that `--limit` reads no more than it needs; each raises BadInput with the
file and line that it can't read. CHOICES, TRANSLATIONS and PROGRAMS name them.
"""

import bz2
import csv
import functools
import glob
import gzip
import json
import os
import zlib
from itertools import islice, zip_longest

from evaluation.items import Choice, Pair, Program, as_bytes
from support.terminal import BadInput

# What ends the body of a function: the next line that is not indented.
TOP_LEVEL = (
    *("\ndef ", "\nclass ", "\nif ", "\nfor ", "\nprint", "\nassert "),
    *("\nimport ", "\nfrom ", "\n#", "\n@", '\n"""'),
)


# ---- files


def lines_of(path, opener=open):
    """Lines of a text file without their ends.

    Only \\n ends a line: the other separators that Unicode knows occur inside of items.
    """
    try:
        with opener(path, "rt", encoding="utf-8", newline="\n") as file:
            for line in file:
                yield line.rstrip("\r\n")
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as problem:
        raise BadInput(
            f"can't read the items in {path}: {problem}; --items names the folder that holds them"
        ) from None


def objects_of(path, opener=open):
    """Objects of a JSON-lines file."""
    for number, line in enumerate(lines_of(path, opener), 1):
        try:
            yield json.loads(line)
        except ValueError:
            raise BadInput(f"line {number} of {path} is no JSON object") from None


def rows_of(path):
    """Rows of a CSV file, lists of text; a row may go over several lines."""
    return csv.reader(line + "\n" for line in lines_of(path))


def check_item(item):
    """Raises ValueError for an item that can't be asked."""
    if isinstance(item, Choice):
        texts = (item.query, *item.choices)
        if not 0 <= item.gold < len(item.choices):
            raise ValueError(f"answer {item.gold} of {len(item.choices)} choices")
    else:
        texts = (item.prompt, item.solution, item.tests)
    as_bytes("".join(texts))


def checked(read):
    """A reader that turns missing fields, fields of another kind and cut-off items into one line.

    read(folder) yields items; so does what is returned, which raises nothing but BadInput.
    """

    @functools.wraps(read)
    def reader(folder):
        try:
            for item in read(folder):
                check_item(item)
                yield item
        except (KeyError, IndexError, ValueError, TypeError, csv.Error) as problem:
            name = read.__name__.removeprefix("read_")
            raise BadInput(
                f"the items of {name} in {folder} have another form than expected "
                f"({type(problem).__name__}: {problem})"
            ) from None

    return reader


# ---- multiple choice


def answered(path):
    """Choices of answers to a question.

    Some items are padded with doubles: of equal choices only the first stays.
    """
    for item in objects_of(path):
        known, kept = dict(enumerate(item["choices"])), list(dict.fromkeys(item["choices"]))
        gold = kept.index(known[item["gold"]])
        yield Choice(item["query"] + "\nAnswer:", [" " + choice for choice in kept], gold)


@checked
def read_arc_easy(folder):
    yield from answered(os.path.join(folder, "arc_easy.jsonl"))


@checked
def read_arc_challenge(folder):
    yield from answered(os.path.join(folder, "arc_challenge.jsonl"))


@checked
def read_piqa(folder):
    """Which of two ways reaches a goal; the answers stand in a file of their own."""
    labels = lines_of(os.path.join(folder, "piqa_valid-labels.lst"))
    items = objects_of(os.path.join(folder, "piqa_valid.jsonl"))
    for item, label in zip(items, labels, strict=True):
        choices = [" " + item["sol1"], " " + item["sol2"]]
        yield Choice(f"Question: {item['goal']}\nAnswer:", choices, int(label))


@checked
def read_hellaswag(folder):
    """How a scene goes on. Six lines an item: the scene, the answer, four endings."""
    lines = lines_of(os.path.join(folder, "hellaswag_val_full.txt.bz2"), bz2.open)
    while six := list(islice(lines, 6)):
        scene, label, *endings = six
        gold = range(len(endings))[int(label)]
        yield Choice(scene, [" " + ending for ending in endings], gold)


@checked
def read_mmlu(folder, shots=5):
    """The 57 subjects in turn, a question of each and then the next of each, as long as they last.

    So a `--limit` takes from all of them, spread evenly.
    """
    paths = sorted(glob.glob(os.path.join(folder, "mmlu", "test", "*_test.csv")))
    if not paths:
        missing = os.path.join(folder, "mmlu", "test")
        raise BadInput(f"no items in {missing}: --items names the folder that holds mmlu/")
    for turn in zip_longest(*(mmlu_subject(folder, path, shots) for path in paths)):
        yield from (item for item in turn if item is not None)


def mmlu_subject(folder, path, shots):
    """Questions of one subject; the choices are the letters.

    Worked questions of the subject's dev part stand in front, as is usual.
    """
    subject = os.path.basename(path).removesuffix("_test.csv")
    examples = islice(rows_of(os.path.join(folder, "mmlu", "dev", f"{subject}_dev.csv")), shots)
    context = "".join(f"{mmlu_question(row)} {row[5]}\n\n" for row in examples)
    for row in rows_of(path):
        gold = "ABCD".index(row[5])
        yield Choice(context + mmlu_question(row), [" A", " B", " C", " D"], gold)


def mmlu_question(row):
    """A row of question, four choices and answer, as text up to the answer."""
    choices = (f"{letter}. {text}" for letter, text in zip("ABCD", row[1:5], strict=True))
    return "\n".join([row[0], *choices, "Answer:"])


CHOICES = {
    "arc-easy": read_arc_easy,
    "arc-challenge": read_arc_challenge,
    "piqa": read_piqa,
    "hellaswag": read_hellaswag,
    "mmlu": read_mmlu,
}


# ---- translation: -> (language, worked examples, items)


def read_flores(folder, shots=4):
    """FLORES-101 German to English: examples from dev, items from devtest."""

    def pairs(part):
        paths = (os.path.join(folder, "flores101", f"{part}.{code}") for code in ("deu", "eng"))
        return aligned(*paths)

    return "German", list(islice(pairs("dev"), shots)), pairs("devtest")


def read_ntrex(folder, shots=4):
    """NTREX French to English: one part, whose first sentences are the examples and no items."""
    pairs = aligned(*(os.path.join(folder, "ntrex", f"{code}.txt") for code in ("fra", "eng")))
    return "French", list(islice(pairs, shots)), pairs


def aligned(source, target):
    """Pairs of two files with a sentence a line."""
    try:
        yield from (Pair(*pair) for pair in zip(lines_of(source), lines_of(target), strict=True))
    except ValueError:
        raise BadInput(
            f"{source} and {target} differ in length: they are no translations of each other"
        ) from None


TRANSLATIONS = {"flores-de-en": read_flores, "ntrex-fr-en": read_ntrex}


# ---- code


@checked
def read_humaneval(folder):
    """164 functions from their signature and docstring, no example."""
    for item in objects_of(os.path.join(folder, "HumanEval.jsonl.gz"), gzip.open):
        tests = f"\n{item['test']}\ncheck({item['entry_point']})\n"
        solution = item["canonical_solution"]
        yield Program(item["task_id"], item["prompt"], solution, tests, TOP_LEVEL)


@checked
def read_mbpp(folder):
    """500 tasks (11 to 510) from a sentence and the asserts that they must pass.

    Three worked examples (tasks 2, 3 and 4) stand in front.
    """

    def question(item):
        return f'"""\n{item["text"]}\n' + "\n".join(item["test_list"]) + '\n"""\n'

    items = {item["task_id"]: item for item in objects_of(os.path.join(folder, "mbpp.jsonl"))}
    examples = [question(items[i]) + items[i]["code"] + "\n\n" for i in (2, 3, 4)]
    context = "".join(examples).replace("\r", "")
    for item in (items[i] for i in range(11, 511)):
        tests = "\n" + "\n".join([item["test_setup_code"], *item["test_list"]]) + "\n"
        name = f"MBPP/{item['task_id']}"
        yield Program(name, question(item), item["code"], tests, ('\n"""',), context)


PROGRAMS = {"humaneval": read_humaneval, "mbpp": read_mbpp}
