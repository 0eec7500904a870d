"""The house itself: who imports whom, how long it is, how much is said in words."""

import ast
import io
import re
import tokenize

import pytest
from conftest import ROOT

# What one reads in an evening, in this order
READING_PATH = ["data", "layers", "patcher", "model", "generate", "diffusion", "speculate"]
SIX = READING_PATH[1:]  # the method itself
IN_ROOT = [ROOT / f"{name}.py" for name in (*READING_PATH, "bandwidth", "train", "sample")]
ROOMS = ("support", "fast", "measure", "training", "evaluation", "scripts")
# Imports go one way: a file imports from its own room and from those above it here.
ORDER = [
    {"support"},
    *({name} for name in READING_PATH),
    {"fast"},
    {"measure"},
    {"training"},
    {"bandwidth"},
    {"train", "sample"},
    {"evaluation"},
    {"scripts"},
    {"tests"},
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
# What the script at the end of a file of the reading path may import: what shows its idea
SCRIPT = "measure.ideas"


def python_files(folder, *rooms):
    """The files in a folder itself, and those of its rooms."""
    found = [*folder.glob("*.py")]
    for room in rooms:
        found += (folder / room).rglob("*.py")
    return sorted(found)


OURS = python_files(ROOT, *ROOMS)


def lines_of(path):
    return path.read_text().splitlines()


# ---- who imports whom


def imported(node, room):
    """The full names of all that a tree imports, inside functions and by name too."""
    names = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Import):
            names |= {alias.name for alias in part.names}
        elif isinstance(part, ast.ImportFrom):
            origin = part.module or ""
            if part.level:  # from . import x
                origin = f"{room}.{origin}".rstrip(".")
            names |= {f"{origin}.{alias.name}" for alias in part.names}
        elif isinstance(part, ast.Call) and part.args:
            called = part.func.attr if isinstance(part.func, ast.Attribute) else part.func
            called = called.id if isinstance(called, ast.Name) else called
            first = part.args[0]
            if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
                names.add(first.value)
    return names


def is_guard(node):
    """Is this `if __name__ == "__main__":`?"""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def against_the_order(folder):
    """The imports of a project that go the wrong way -> sorted list of (file, what it imports)."""
    wrong = set()
    for path in python_files(folder, *ROOMS):
        place = path.relative_to(folder)
        room = place.with_suffix("").parts[0]
        tree = ast.parse(path.read_text())
        if room in READING_PATH and tree.body and is_guard(tree.body[-1]):
            script = tree.body.pop()
            ours = {name for name in imported(script, room) if name.split(".")[0] in LEVEL}
            wrong |= {(str(place), name) for name in ours - {SCRIPT}}
        for name in imported(tree, room):
            other = name.split(".")[0]
            if other in LEVEL and other != room and LEVEL[other] >= LEVEL[room]:
                wrong.add((str(place), name))
    return sorted(wrong)


def test_imports_go_one_way():
    """Nobody imports upwards, inside functions neither."""
    assert against_the_order(ROOT) == []
    assert {path.relative_to(ROOT).with_suffix("").parts[0] for path in OURS} <= set(LEVEL)


WRONG = {
    "data.py": {"import layers": "layers"},
    "layers.py": {
        "from fast import cache": "fast.cache",
        "from measure import ideas": "measure.ideas",  # not behind the guard
    },
    "model.py": {
        "def f():\n    from generate import Prefix": "generate.Prefix",
        "def f():\n    import importlib\n    importlib.import_module('fast.stream')": "fast.stream",
        "if __name__ == '__main__':\n    from fast import load": "fast.load",
        "if __name__ == '__main__':\n    from measure import show": "measure.show",
        "if __name__ == '__main__':\n    from measure import ideas\nx = 1": "measure.ideas",
    },
    "support/flags.py": {"from data import BOS": "data.BOS"},
    "fast/stream.py": {"import measure.show as s": "measure.show", "import train": "train"},
    "measure/quality.py": {"from training.runs import Run": "training.runs.Run"},
    "training/runs.py": {"import bandwidth": "bandwidth"},
    "bandwidth.py": {"from sample import main": "sample.main"},
    "train.py": {"import sample": "sample", "import evaluation": "evaluation"},
    "sample.py": {"from tests import miniature": "tests.miniature"},
    "evaluation/tasks.py": {"from scripts import race": "scripts.race"},
}
RIGHT = {
    "speculate.py": "import diffusion\nif __name__ == '__main__':\n    from measure import ideas",
    "diffusion.py": "from support import checkpoint\nimport torch, data, model",
    "support/show.py": "from support.terminal import table\nfrom . import flags",
    "fast/load.py": "from fast.stream import Stream\nfrom . import cache\nimport speculate",
    "training/steps.py": "from measure import quality\nimport fast.load",
    "sample.py": "import bandwidth\nfrom training import runs\nfrom measure import show",
    "scripts/race.py": "import train, sample, evaluation.tasks",
}


@pytest.mark.parametrize("place", WRONG)
def test_an_import_that_goes_the_wrong_way_is_seen(place, tmp_path):
    for room in ROOMS:
        (tmp_path / room).mkdir()
    for path, text in RIGHT.items():
        (tmp_path / path).write_text(text)
    assert against_the_order(tmp_path) == []
    for text, name in WRONG[place].items():
        (tmp_path / place).write_text(text)
        assert against_the_order(tmp_path) == [(place, name)], text


def test_the_root_is_the_reading_list():
    assert sorted(ROOT.glob("*.py")) == sorted(IN_ROOT)


# ---- how long


def test_the_six_files_are_read_in_an_evening():
    length = {name: len(lines_of(ROOT / f"{name}.py")) for name in SIX}
    assert sum(length.values()) <= 1700, length


def test_no_line_is_wider_than_a_hundred_columns():
    for path in OURS + python_files(ROOT / "tests"):
        wide = [i for i, line in enumerate(lines_of(path), 1) if len(line) > 100]
        assert not wide, (path.name, wide)


def test_the_readme_can_be_finished():
    lines = lines_of(ROOT / "README.md")
    assert len(lines) <= 220
    # A row of a table is one line, whatever it holds.
    assert max(len(line) for line in lines if not line.startswith("|")) <= 115
    # The first block takes a fresh machine all the way.
    begin = lines.index("```sh")
    assert begin < 15
    assert lines[begin + 1].startswith("pip install -r requirements.txt && python sample.py --mode")
    assert lines[begin + 2].startswith("pip install -r requirements-dev.txt && python -m pytest")


def test_the_readme_shows_code_that_is_there():
    """Every block of Python stands in a file of the reading path, line for line."""
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 2
    files = [(ROOT / f"{name}.py").read_text() for name in SIX]
    for block in blocks:
        assert any(block in file for file in files), block


# ---- words


def density(text):
    """Lines of comments and docstrings for each line of code."""
    docs = set()
    for node in ast.walk(ast.parse(text)):
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, kinds) and ast.get_docstring(node):
            docs |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    comments = set()
    code = set()
    blank = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in blank:
            code |= set(range(token.start[0], token.end[0] + 1))
    code -= docs
    return (len(docs) + len(comments - code)) / max(1, len(code))


@pytest.mark.parametrize("path", IN_ROOT, ids=lambda path: path.name)
def test_root_files_say_in_words_what_they_do(path):
    assert density(path.read_text()) >= 0.30


def test_density_counts_what_it_says():
    """Four lines of words (a trailing comment is none), four of code."""
    docs = '"""One\ntwo."""\n\n# three\n'
    assert density(docs + 'x = 1  # no\n\ndef f():\n    "four"\n    x = (\n1)\n') == 1.0


def packed(text):
    """Lines that assign more than two names from a tuple that is written out there."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            names = [target for target in node.targets if isinstance(target, ast.Tuple)]
            if any(len(target.elts) > 2 for target in names):
                found.append(node.lineno)
    return found


@pytest.mark.parametrize("name", READING_PATH)
def test_an_assignment_is_one_statement_in_the_reading_path(name):
    assert not packed((ROOT / f"{name}.py").read_text())


def test_packed_counts_what_it_says():
    """Two names may be a pair, and what a call or a tensor gives may be taken apart."""
    assert packed("a, b = 1, 2\nB, N, D = x.shape\na = b, c, d\nf(x=(1, 2, 3))\n") == []
    assert packed("x = 1\na, b, c = 1, 2, 3\ndef f():\n    (a, b, c) = (x, y, z)\n") == [2, 4]


def test_words_of_old_are_gone():
    """One meaning a word: a threshold is no theta, rows are of a matrix, a window is attended."""
    gone = {"theta", "rope_theta", "hash_rows", "paper_rounds", "block_rows", "reach", "room"}
    gone |= {"last_rows", "encode_open", "provisional", "emit", "PackedView", "attend_window"}
    for path in OURS:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {node.arg for node in nodes if isinstance(node, (ast.arg, ast.keyword))}
        names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        assert not names & gone, (path.name, names & gone)
