"""The paper's generation tasks in small: French and German number phrases into English, and one-line functions.

A model trained for minutes on `python train.py --data miniature` scores far from zero on them, so the trade-off of Figure 7 can
be seen on a laptop. Everything is generated, and the same on every machine. What is tested never occurs in training: numbers from
100 on, and descriptions of functions, are held out by a hash. Needs num2words, which spells the numbers.
"""
import functools
import hashlib

import torch

from data import Corpus
from items import Pair, Program, as_example
from terminal import BadInput

HELD_OUT_SHARE = 0.1
EXAMPLES_A_DOCUMENT = 24
DOCUMENTS = {"fr-en": 600, "de-en": 600, "code": 700}
TASKS = tuple(DOCUMENTS)
LANGUAGES = {"fr": "French", "de": "German"}

# English, French, French feminine?, German; all plural
NOUNS = [("cats", "chats", 0, "Katzen"), ("dogs", "chiens", 0, "Hunde"), ("houses", "maisons", 1, "Häuser"),
         ("books", "livres", 0, "Bücher"), ("flowers", "fleurs", 1, "Blumen"), ("birds", "oiseaux", 0, "Vögel"),
         ("keys", "clés", 1, "Schlüssel"), ("horses", "chevaux", 0, "Pferde"), ("apples", "pommes", 1, "Äpfel"),
         ("cars", "voitures", 1, "Autos"), ("stones", "pierres", 1, "Steine"), ("doors", "portes", 1, "Türen"),
         ("trees", "arbres", 0, "Bäume"), ("letters", "lettres", 1, "Briefe"), ("ships", "bateaux", 0, "Schiffe")]
# English, French masculine and feminine, German
ADJECTIVES = [("black", "noirs", "noires", "schwarze"), ("white", "blancs", "blanches", "weiße"),
              ("red", "rouges", "rouges", "rote"), ("green", "verts", "vertes", "grüne"),
              ("heavy", "lourds", "lourdes", "schwere"), ("expensive", "chers", "chères", "teure"),
              ("broken", "cassés", "cassées", "kaputte")]
FRAMES = [("{}", "{}", "{}"), ("I see {}", "je vois {}", "ich sehe {}"), ("we have {}", "nous avons {}", "wir haben {}"),
          ("there are {}", "il y a {}", "es gibt {}"), ("she buys {}", "elle achète {}", "sie kauft {}"),
          ("he sells {}", "il vend {}", "er verkauft {}")]

# What functions are tried on: enough to tell the constants 2 to 99 from each other, but where no x lies between a and b < a.
NUMBERS, LISTS = ("range(-3, 4)", "range(4, 101)"), ("[[], [3], [60, 2, 31]]", "[list(range(101)), list(range(99, 0, -4))]")
# what the function does, its body, what to try it on; a and b are numbers
FUNCTIONS = [("x plus {a}", "x + {a}", NUMBERS), ("x minus {a}", "x - {a}", NUMBERS), ("x times {a}", "x * {a}", NUMBERS),
             ("x divided by {a}", "x // {a}", NUMBERS), ("the remainder of x by {a}", "x % {a}", NUMBERS),
             ("is x greater than {a}", "x > {a}", NUMBERS), ("is x equal to {a}", "x == {a}", NUMBERS),
             ("x plus {a}, all times {b}", "(x + {a}) * {b}", NUMBERS), ("x times {a}, then plus {b}", "x * {a} + {b}", NUMBERS),
             ("x times {a}, then minus {b}", "x * {a} - {b}", NUMBERS), ("is x between {a} and {b}", "{a} <= x <= {b}", NUMBERS),
             ("the smaller of x and {a}", "min(x, {a})", NUMBERS), ("the larger of x and {a}", "max(x, {a})", NUMBERS),
             ("the items of x up to number {a}", "x[:{a}]", LISTS), ("the items of x after number {a}", "x[{a}:]", LISTS),
             ("the items of x greater than {a}", "[y for y in x if y > {a}]", LISTS),
             ("each item of x plus {a}", "[y + {a} for y in x]", LISTS),
             ("each item of x times {a}", "[y * {a} for y in x]", LISTS), ("the sum of x plus {a}", "sum(x) + {a}", LISTS),
             ("the sum of x times {a}", "sum(x) * {a}", LISTS), ("the length of x plus {a}", "len(x) + {a}", LISTS),
             ("how many items of x are less than {a}", "sum(y < {a} for y in x)", LISTS)]


def is_held_out(key):
    """Whether a number or a description belongs to the test part, by its hash."""
    return int.from_bytes(hashlib.sha256(str(key).encode()).digest()[:8], "big") < HELD_OUT_SHARE * 2 ** 64


@functools.lru_cache(maxsize=None)
def spell(number, language):
    """A number in words."""
    try:
        from num2words import num2words
    except ImportError:
        raise BadInput("the miniature tasks need num2words: pip install -r requirements-dev.txt") from None
    return num2words(number, lang=language)


def draw_pair(pick, language, held_out):
    """A phrase with a number in it, `language` to English; pick(n) draws from 0..n-1."""
    while True:
        number = 2 + pick(10 ** (1 + pick(3)) - 2)
        if (number >= 100 and is_held_out(number)) == held_out:
            break
    frame, second = FRAMES[pick(len(FRAMES))], {"fr": 1, "de": 2}[language]
    if pick(3) == 0 or number % 10 == 1:                                   # "vingt et un" would have to agree with its noun
        return Pair(spell(number, language), spell(number, "en"))
    noun, adjective = NOUNS[pick(len(NOUNS))], (ADJECTIVES + [("", "", "", "")] * 3)[pick(len(ADJECTIVES) + 3)]
    join = lambda *words: " ".join(word for word in words if word)
    there = {"fr": join(spell(number, "fr"), noun[1], adjective[1 + noun[2]]),
             "de": join(spell(number, "de"), adjective[3], noun[3])}[language]
    return Pair(frame[second].format(there), frame[0].format(join(spell(number, "en"), adjective[0], noun[0])))


def draw_program(pick, held_out):
    """A one-line function with its asserts, whose answers the reference body gives."""
    while True:
        what, body, inputs = FUNCTIONS[pick(len(FUNCTIONS))]
        a, b = (2 + pick(8 if pick(2) else 98) for _ in range(2))
        what, body = what.format(a=a, b=b), body.format(a=a, b=b)
        if is_held_out(what) == held_out:
            break
    answers = [[eval(body, {"x": x}) for x in eval(xs)] for xs in inputs]
    tests = "".join(f"\nassert [f(x) for x in {xs}] == {answer}" for xs, answer in zip(inputs, answers))
    return Program(what, f"# {what}\ndef f(x): return", f" {body}\n", tests + "\n", ("\n",))


def draw_items(task, count, held_out, seed):
    """`count` items of a task: "fr-en", "de-en" -> Pairs; "code" -> Programs. Test items differ from each other."""
    generator = torch.Generator().manual_seed(len(TASKS) * seed + TASKS.index(task))
    pick = lambda n: int(torch.randint(n, (), generator=generator))
    draw = lambda: draw_program(pick, held_out) if task == "code" else draw_pair(pick, task[:2], held_out)
    items, tries = {}, 0
    while len(items) < count:
        item, tries = draw(), tries + 1
        if tries > 100 * count + 1000:
            raise BadInput(f"there are no {count} different test items of {task}: give a smaller --limit")
        items.setdefault(str(item) if held_out else len(items), item)
    return list(items.values())


def test_items(task, count, shots=4):
    """-> (language or None, worked examples from the training part, `count` items of the test part)."""
    return LANGUAGES.get(task[:2]), draw_items(task, shots, held_out=False, seed=1), draw_items(task, count, held_out=True, seed=2)


def corpus():
    """What `--data miniature` trains on: documents of 24 examples of one task each."""
    documents = []
    for task in TASKS:
        count = DOCUMENTS[task] * EXAMPLES_A_DOCUMENT
        texts = [as_example(item, LANGUAGES.get(task[:2])) for item in draw_items(task, count, held_out=False, seed=0)]
        documents += [(f"{task}/{i:06}", "".join(texts[i:i + EXAMPLES_A_DOCUMENT]).encode())
                      for i in range(0, count, EXAMPLES_A_DOCUMENT)]
    return Corpus(sorted(documents), "generated miniature tasks")
