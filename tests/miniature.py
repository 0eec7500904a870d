"""What evaluation/miniature.zip and .jsonl were made by: number phrases, and one-line functions.

    python tests/miniature.py

Everything is generated. What is tested never occurs in training: numbers from 100 on, and
descriptions of functions, are held out by a hash. Needs num2words, which spells the numbers; the
other words and the functions stand in miniature.json.
"""

import functools
import json
import zipfile
from dataclasses import asdict
from pathlib import Path

import num2words

from data import name_chance
from evaluation.tasks import Question, as_example, picker, translation

HELD_OUT_SHARE = 0.1
EXAMPLES_A_DOCUMENT = 24
SHOTS = 4  # worked examples of each task
ITEMS = 300  # of each task, to test with
TARGET = Path(__file__).parent.parent / "evaluation" / "miniature"
DOCUMENTS = {"fr-en": 600, "de-en": 600, "code": 700}
TASKS = tuple(DOCUMENTS)
LANGUAGES = {"fr": "French", "de": "German"}
# Every noun and adjective is in the plural, as no number drawn is one.
TABLES = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
NOUNS = TABLES["nouns"]
SENTENCES = TABLES["sentences"]
ADJECTIVES = TABLES["adjectives"] + 3 * [{}]  # three nouns in ten stand alone
# What each function does, its body, which gives the answers that the asserts ask for, and what it
# is tried on: enough to tell the constants {a} and {b}, 2 to 99, from each other, but where no x
# lies between a and b < a.
FUNCTIONS = [
    (what, body, kind["inputs"])
    for kind in TABLES["functions"]
    for what, body in kind["bodies"].items()
]


def is_held_out(key):
    """Whether a number or a description belongs to the test part, by its hash."""
    return name_chance(str(key)) < HELD_OUT_SHARE


@functools.cache
def spell(number, language):
    """A number in words."""
    return num2words.num2words(number, lang=language)


def draw_pair(pick, task, held_out):
    """A phrase with a number in it, from French ("fr-en") or German to English."""
    while True:
        number = 2 + pick(10 ** (1 + pick(3)) - 2)
        if (number >= 100 and is_held_out(number)) == held_out:
            break
    code = task[:2]  # of the language
    sentence = SENTENCES[pick(len(SENTENCES))]
    there = spell(number, code)
    english = spell(number, "en")
    # "vingt et un" would have to agree with its noun, so numbers that end in 1 stand alone.
    if pick(3) == 0 or number % 10 == 1:
        return translation(LANGUAGES[code], there, english)
    noun = NOUNS[pick(len(NOUNS))]
    adjective = ADJECTIVES[pick(len(ADJECTIVES))]
    words = {name: (adjective.get(name), noun[name]) for name in ("de", "en")}
    words["fr"] = (noun["fr"], adjective.get(noun["gender"]))
    # A noun may stand without an adjective.
    there = sentence[code].format(" ".join(filter(None, (there, *words[code]))))
    english = sentence["en"].format(" ".join(filter(None, (english, *words["en"]))))
    return translation(LANGUAGES[code], there, english)


def draw_program(pick, held_out):
    """A one-line function with its asserts, whose answers the reference body gives."""
    while True:
        what, body, tried_on = FUNCTIONS[pick(len(FUNCTIONS))]
        a, b = (2 + pick(8 if pick(2) else 98) for _ in range(2))
        # Spelled, as numbers of phrases are. To copy digits is learned too late to be seen here.
        what = what.format(a=spell(a, "en"), b=spell(b, "en"))
        body = body.format(a=a, b=b)
        if is_held_out(what) == held_out:
            break
    tests = ""
    for inputs in tried_on:
        answers = [eval(body, {"x": x}) for x in eval(inputs)]
        tests += f"\nassert [f(x) for x in {inputs}] == {answers}"
    return Question(f"# {what}\ndef f(x): return", f" {body}\n", ("\n",), tests + "\n")


def draw_items(task, count, held_out, seed):
    """`count` Questions of a task. Those of tests differ from each other, others may repeat."""
    pick = picker(len(TASKS) * seed + TASKS.index(task))
    items = {}
    for _ in range(100 * count + 1000):
        item = draw_program(pick, held_out) if task == "code" else draw_pair(pick, task, held_out)
        # A second copy of a test item is dropped, training items get a key of their own.
        items.setdefault(str(item) if held_out else len(items), item)
        if len(items) == count:
            return list(items.values())
    raise ValueError(f"there are no {count} different test items of {task}")


def training_documents():
    """-> list of (TASK/NUMBER, bytes), each of 24 examples of one task."""
    documents = []
    size = EXAMPLES_A_DOCUMENT
    for task, n in DOCUMENTS.items():
        texts = [as_example(item) for item in draw_items(task, n * size, held_out=False, seed=0)]
        for i in range(0, n * size, size):
            documents.append((f"{task}/{i:06}", "".join(texts[i : i + size]).encode()))
    return sorted(documents)


def write():
    """Write the text to train on as an archive, and the items: of each task the examples first."""
    with zipfile.ZipFile(TARGET.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in training_documents():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED, 9)
    with TARGET.with_suffix(".jsonl").open("w", encoding="utf-8") as file:
        for task, item in all_items():
            print(as_line(task, item), file=file)


def as_line(task, item):
    """A Question as it stands in the file: what all of them have alike is left out."""
    known = asdict(item)
    del known["indented"]
    return json.dumps({"task": task, **known}, ensure_ascii=False)


def all_items():
    """-> (task, Question): four worked examples of each task and ITEMS to test with."""
    for task in TASKS:
        asked = draw_items(task, SHOTS, held_out=False, seed=1)
        for item in asked + draw_items(task, ITEMS, held_out=True, seed=2):
            yield task, item


if __name__ == "__main__":
    write()
