"""The items of public benchmarks, read from the files that they are published as (`--items DIR`).

A reader takes the folder and makes items one by one, so that `--limit` reads no more than it needs.
CHOICES, TRANSLATIONS and PROGRAMS name the readers; `read_items` is what others call.
"""

import bz2
import csv
import functools
import gzip
import json
import zlib
from itertools import islice, zip_longest
from pathlib import Path

from evaluation.tasks import Choice, Question, as_bytes, as_example, behind, translation
from support.terminal import BadInput, check_regular

# ---- files


def lines_of(path, opener=open):
    """Lines of a text file. Only \\n ends one: others that Unicode knows occur inside of items."""
    if Path(path).exists():
        check_regular(path, "the items in")
    try:
        with opener(path, "rt", encoding="utf-8", newline="\n") as file:
            for line in file:
                yield line.rstrip("\r\n")
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as problem:
        advice = "--items names the folder that holds them"
        raise BadInput(f"can't read the items in {path}: {problem}; {advice}") from None


def objects_of(path, opener=open):
    """Objects of a JSON-lines file."""
    return map(json.loads, lines_of(path, opener))


# ---- multiple choice


def read_arc(name, folder):
    """School questions. Some are padded with doubles: of equal choices only the first stays."""
    for item in objects_of(folder / name):
        kept = list(dict.fromkeys(item["choices"]))
        right = dict(enumerate(item["choices"]))[item["gold"]]  # a place from behind is no gold
        gold = kept.index(right)
        yield Choice(item["query"] + "\nAnswer:", [" " + choice for choice in kept], gold)


def read_piqa(folder):
    """Which of two ways reaches a goal; the answers stand in a file of their own."""
    items = objects_of(folder / "piqa_valid.jsonl")
    labels = lines_of(folder / "piqa_valid-labels.lst")
    for item, label in zip(items, labels, strict=True):
        choices = [" " + item["sol1"], " " + item["sol2"]]
        yield Choice(f"Question: {item['goal']}\nAnswer:", choices, (0, 1).index(int(label)))


def read_hellaswag(folder):
    """How a scene goes on. Six lines an item: the scene, the answer, four endings."""
    lines = lines_of(folder / "hellaswag_val_full.txt.bz2", bz2.open)
    while True:
        item = list(islice(lines, 6))
        if not item:
            return
        scene, label, *endings = item
        gold = range(len(endings)).index(int(label))
        yield Choice(scene, [" " + ending for ending in endings], gold)


def read_mmlu(folder):
    """A question of each of the 57 subjects, then the next of each: limits take from all alike."""
    paths = sorted((folder / "mmlu/test").glob("*_test.csv"))
    if not paths:
        raise BadInput(f"no items in {folder}/mmlu/test: --items names the folder that holds mmlu/")
    for turn in zip_longest(*map(mmlu_subject, paths)):
        yield from filter(None, turn)


def mmlu_subject(path, shots=5):
    """Questions of one subject behind its customary line and worked questions of its dev part."""
    subject = path.name.removesuffix("_test.csv")
    about = f"multiple choice questions (with answers) about {subject.replace('_', ' ')}"
    context = f"The following are {about}.\n\n"
    for asked, answer in islice(mmlu_rows(path.parents[1] / f"dev/{subject}_dev.csv"), shots):
        context += f"{asked} {answer}\n\n"
    for asked, answer in mmlu_rows(path):
        yield Choice(context + asked, [" A", " B", " C", " D"], "ABCD".index(answer))


def mmlu_rows(path):
    """Text up to the answer, and the answer, of each row, which may go over several lines."""
    for question, *choices, answer in csv.reader(line + "\n" for line in lines_of(path)):
        lines = (f"{letter}. {text}" for letter, text in zip("ABCD", choices, strict=True))
        yield "\n".join([question, *lines, "Answer:"]), answer


# ---- translation, each sentence behind four worked ones


def aligned(language, source, target):
    """Translations of two files with a sentence a line."""
    pairs = zip(lines_of(source), lines_of(target), strict=True)
    return (translation(language, *pair) for pair in pairs)


def read_flores(folder, shots=4):
    """FLORES-101 German to English: examples from dev, items from devtest."""
    files = folder / "flores101"
    known = aligned("German", files / "dev.deu", files / "dev.eng")
    asked = aligned("German", files / "devtest.deu", files / "devtest.eng")
    return behind(islice(known, shots), asked)


def read_ntrex(folder, shots=4):
    """NTREX French to English: one part, whose first sentences are the examples and no items."""
    sentences = aligned("French", folder / "ntrex/fra.txt", folder / "ntrex/eng.txt")
    return behind(list(islice(sentences, shots)), sentences)


# ---- programs


def read_humaneval(folder):
    """164 functions from their signature and docstring, no example."""
    for item in objects_of(folder / "HumanEval.jsonl.gz", gzip.open):
        tests = f"\n{item['test']}\ncheck({item['entry_point']})\n"
        # What ends the body of a function: the next line that is not indented.
        yield Question(item["prompt"], item["canonical_solution"], (), tests, indented=True)


def read_mbpp(folder):
    """500 tasks, a sentence and asserts to pass, behind three worked ones: tasks 2, 3 and 4."""

    def question(i):
        item = items[i]
        asserts = "\n".join(item["test_list"])
        tests = f"\n{item['test_setup_code']}\n{asserts}\n"
        code = item["code"].replace("\r", "") + "\n"
        return Question(f'"""\n{item["text"]}\n{asserts}\n"""\n', code, ('\n"""',), tests)

    items = {item["task_id"]: item for item in objects_of(folder / "mbpp.jsonl")}
    return behind(map(question, (2, 3, 4)), map(question, range(11, 511)))


# ---- in miniature: what a model of minutes learns, made by tests/miniature.py


def read_miniature(task, folder, shots=4):
    """Number phrases to translate, or one-line functions, behind worked ones."""
    known = objects_of(folder / "miniature.jsonl")
    items = (Question(**item) for item in known if item.pop("task") == task)
    return behind(list(islice(items, shots)), items)


CHOICES = {
    "arc-easy": functools.partial(read_arc, "arc_easy.jsonl"),
    "arc-challenge": functools.partial(read_arc, "arc_challenge.jsonl"),
    "piqa": read_piqa,
    "hellaswag": read_hellaswag,
    "mmlu": read_mmlu,
}
TRANSLATIONS = {"flores-de-en": read_flores, "ntrex-fr-en": read_ntrex}
PROGRAMS = {"humaneval": read_humaneval, "mbpp": read_mbpp}
READERS = {**CHOICES, **TRANSLATIONS, **PROGRAMS}
MINIATURE = {t: functools.partial(read_miniature, t) for t in ("fr-en", "de-en", "code")}


def read_items(name, folder, limit=None):
    """-> the first `limit` items of a benchmark, all by default: Choices or Questions.

    Raises BadInput for files that are not there, what is no item, and where there are none.
    """
    if name in MINIATURE:
        folder = Path(__file__).parent  # they come with the project
    elif not folder:
        raise BadInput(f"--set {name} needs --items DIR, the folder that holds its files")
    try:
        items = list(islice({**READERS, **MINIATURE}[name](Path(folder)), limit))
        for item in items:
            texts = (item.query, *item.choices) if isinstance(item, Choice) else [as_example(item)]
            as_bytes("".join(texts))  # raises ValueError or TypeError for what is no text
    except (KeyError, IndexError, ValueError, TypeError, csv.Error, RecursionError) as problem:
        form = f"have another form than expected ({type(problem).__name__}: {problem})"
        raise BadInput(f"the items of {name} in {folder} {form}") from None
    if not items:
        raise BadInput(f"there are no items of {name} in {folder}")
    return items
