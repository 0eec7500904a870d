"""The paper's generation tasks in small: number phrases into English, and one-line functions.

    python -m evaluation miniature --write DIR && python train.py --data DIR

A model trained on them for minutes scores far from zero, so the trade-off of Figure 7 can be seen
on a laptop. Everything is generated, and the same on every machine. What is tested never occurs in
training: numbers from 100 on, and descriptions of functions, are held out by a hash. Needs
num2words, which spells the numbers.
"""

import functools
import hashlib
import os
from typing import NamedTuple

import torch

from evaluation.items import Pair, Program, as_example
from support.terminal import BadInput

HELD_OUT_SHARE = 0.1
EXAMPLES_A_DOCUMENT = 24
DOCUMENTS = {"fr-en": 600, "de-en": 600, "code": 700}
TASKS = tuple(DOCUMENTS)
LANGUAGES = {"fr": "French", "de": "German"}


class Noun(NamedTuple):
    """A noun in the plural."""

    english: str
    french: str
    feminine: bool  # in French
    german: str


class Adjective(NamedTuple):
    """An adjective in the plural."""

    english: str
    masculine: str  # in French
    feminine: str
    german: str


class Frame(NamedTuple):
    """A sentence around a phrase."""

    en: str
    fr: str
    de: str


class Function(NamedTuple):
    """What a function does, its body, and what it is tried on; {a} and {b} are numbers."""

    what: str
    body: str
    inputs: tuple


# Every noun and adjective is in the plural, as no number drawn is one.
NOUNS = [
    Noun("cats", "chats", False, "Katzen"),
    Noun("dogs", "chiens", False, "Hunde"),
    Noun("houses", "maisons", True, "Häuser"),
    Noun("books", "livres", False, "Bücher"),
    Noun("flowers", "fleurs", True, "Blumen"),
    Noun("birds", "oiseaux", False, "Vögel"),
    Noun("keys", "clés", True, "Schlüssel"),
    Noun("horses", "chevaux", False, "Pferde"),
    Noun("apples", "pommes", True, "Äpfel"),
    Noun("cars", "voitures", True, "Autos"),
    Noun("stones", "pierres", True, "Steine"),
    Noun("doors", "portes", True, "Türen"),
    Noun("trees", "arbres", False, "Bäume"),
    Noun("letters", "lettres", True, "Briefe"),
    Noun("ships", "bateaux", False, "Schiffe"),
]
ADJECTIVES = [
    Adjective("black", "noirs", "noires", "schwarze"),
    Adjective("white", "blancs", "blanches", "weiße"),
    Adjective("red", "rouges", "rouges", "rote"),
    Adjective("green", "verts", "vertes", "grüne"),
    Adjective("heavy", "lourds", "lourdes", "schwere"),
    Adjective("expensive", "chers", "chères", "teure"),
    Adjective("broken", "cassés", "cassées", "kaputte"),
    *[Adjective("", "", "", "")] * 3,  # three nouns in ten stand alone
]
FRAMES = [
    Frame("{}", "{}", "{}"),
    Frame("I see {}", "je vois {}", "ich sehe {}"),
    Frame("we have {}", "nous avons {}", "wir haben {}"),
    Frame("there are {}", "il y a {}", "es gibt {}"),
    Frame("she buys {}", "elle achète {}", "sie kauft {}"),
    Frame("he sells {}", "il vend {}", "er verkauft {}"),
]

# What functions are tried on: enough to tell the constants 2 to 99 from each other, but where no x
# lies between a and b < a.
NUMBERS = ("range(-3, 4)", "range(4, 101)")
LISTS = ("[[], [3], [60, 2, 31]]", "[list(range(101)), list(range(99, 0, -4))]")
# Bodies are Python, and give the answers that the asserts ask for.
FUNCTIONS = [
    Function("x plus {a}", "x + {a}", NUMBERS),
    Function("x minus {a}", "x - {a}", NUMBERS),
    Function("x times {a}", "x * {a}", NUMBERS),
    Function("x divided by {a}", "x // {a}", NUMBERS),
    Function("the remainder of x by {a}", "x % {a}", NUMBERS),
    Function("is x greater than {a}", "x > {a}", NUMBERS),
    Function("is x equal to {a}", "x == {a}", NUMBERS),
    Function("x plus {a}, all times {b}", "(x + {a}) * {b}", NUMBERS),
    Function("x times {a}, then plus {b}", "x * {a} + {b}", NUMBERS),
    Function("x times {a}, then minus {b}", "x * {a} - {b}", NUMBERS),
    Function("is x between {a} and {b}", "{a} <= x <= {b}", NUMBERS),
    Function("the smaller of x and {a}", "min(x, {a})", NUMBERS),
    Function("the larger of x and {a}", "max(x, {a})", NUMBERS),
    Function("the items of x up to number {a}", "x[:{a}]", LISTS),
    Function("the items of x after number {a}", "x[{a}:]", LISTS),
    Function("the items of x greater than {a}", "[y for y in x if y > {a}]", LISTS),
    Function("each item of x plus {a}", "[y + {a} for y in x]", LISTS),
    Function("each item of x times {a}", "[y * {a} for y in x]", LISTS),
    Function("the sum of x plus {a}", "sum(x) + {a}", LISTS),
    Function("the sum of x times {a}", "sum(x) * {a}", LISTS),
    Function("the length of x plus {a}", "len(x) + {a}", LISTS),
    Function("how many items of x are less than {a}", "sum(y < {a} for y in x)", LISTS),
]


def is_held_out(key):
    """Whether a number or a description belongs to the test part, by its hash."""
    digest = hashlib.sha256(str(key).encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


@functools.cache
def spell(number, language):
    """A number in words."""
    try:
        from num2words import num2words
    except ImportError:
        raise BadInput(
            "the miniature tasks need num2words: pip install -r requirements-dev.txt"
        ) from None
    return num2words(number, lang=language)


# ---- drawing items; pick(n) draws a number from 0..n-1


def draw_pair(pick, code, held_out):
    """A phrase with a number in it, from the language "fr" or "de" to English."""
    while True:
        number = 2 + pick(10 ** (1 + pick(3)) - 2)
        if (number >= 100 and is_held_out(number)) == held_out:
            break
    frame = FRAMES[pick(len(FRAMES))]
    there, english = spell(number, code), spell(number, "en")
    # "vingt et un" would have to agree with its noun, so numbers that end in 1 stand alone.
    if pick(3) == 0 or number % 10 == 1:
        return Pair(there, english)
    noun, adjective = NOUNS[pick(len(NOUNS))], ADJECTIVES[pick(len(ADJECTIVES))]
    if code == "de":
        there = join(there, adjective.german, noun.german)
    elif noun.feminine:
        there = join(there, noun.french, adjective.feminine)
    else:
        there = join(there, noun.french, adjective.masculine)
    english = join(english, adjective.english, noun.english)
    return Pair(getattr(frame, code).format(there), frame.en.format(english))


def join(*words):
    """Words with a space between them; empty ones are left out."""
    return " ".join(filter(None, words))


def draw_program(pick, held_out):
    """A one-line function with its asserts, whose answers the reference body gives.

    Half of the numbers in it are small.
    """
    while True:
        function = FUNCTIONS[pick(len(FUNCTIONS))]
        a, b = (2 + pick(8 if pick(2) else 98) for _ in range(2))
        what, body = function.what.format(a=a, b=b), function.body.format(a=a, b=b)
        if is_held_out(what) == held_out:
            break
    tests = ""
    for inputs in function.inputs:
        answers = [eval(body, {"x": x}) for x in eval(inputs)]
        tests += f"\nassert [f(x) for x in {inputs}] == {answers}"
    return Program(what, f"# {what}\ndef f(x): return", f" {body}\n", tests + "\n", ("\n",))


def draw_items(task, count, held_out, seed):
    """`count` items of a task: "fr-en", "de-en" -> Pairs; "code" -> Programs.

    Test items differ from each other, training items may repeat.
    """
    generator = torch.Generator().manual_seed(len(TASKS) * seed + TASKS.index(task))

    def pick(n):
        return int(torch.randint(n, (), generator=generator))

    items, tries = {}, 0
    while len(items) < count:
        if task == "code":
            item = draw_program(pick, held_out)
        else:
            item = draw_pair(pick, task[:2], held_out)
        tries += 1
        if tries > 100 * count + 1000:
            raise BadInput(
                f"there are no {count} different test items of {task}: give a smaller --limit"
            )
        # A second copy of a test item is dropped, training items get a key of their own.
        items.setdefault(str(item) if held_out else len(items), item)
    return list(items.values())


def test_items(task, count, shots=4):
    """-> (language or None, examples from the training part, `count` items of the test part)."""
    examples = draw_items(task, shots, held_out=False, seed=1)
    return LANGUAGES.get(task[:2]), examples, draw_items(task, count, held_out=True, seed=2)


# ---- the training text


def training_documents():
    """-> list of (TASK/NUMBER, bytes), each of 24 examples of one task."""
    documents = []
    for task in TASKS:
        count = DOCUMENTS[task] * EXAMPLES_A_DOCUMENT
        items = draw_items(task, count, held_out=False, seed=0)
        texts = [as_example(item, LANGUAGES.get(task[:2])) for item in items]
        for i in range(0, count, EXAMPLES_A_DOCUMENT):
            text = "".join(texts[i : i + EXAMPLES_A_DOCUMENT])
            documents.append((f"{task}/{i:06}", text.encode()))
    return sorted(documents)


def write(folder):
    """Write the training documents into a new or empty folder, a file each.

    `read_corpus([folder])` names them TASK/NUMBER again, so hash and split stay what they are.
    """
    try:
        if os.path.exists(folder) and os.listdir(folder):
            raise BadInput(f"{folder} is not empty: name a new folder to write to")
        # All are made before the first is written: a missing package leaves no folder behind.
        for name, data in training_documents():
            path = os.path.join(folder, *name.split("/"))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(data)
    except OSError as problem:
        raise BadInput(f"can't write {problem.filename}: {problem.strerror}") from None
