"""The house itself: how many files, how long, who imports whom, how much is said in words."""

import ast
import io
import tokenize

import pytest
from conftest import ROOT

# The reading list: each file imports only those before it.
ORDER = ["data", "layers", "patcher", "model", "stream", "generate", "diffusion", "speculate"]
ORDER += ["bandwidth", "train", "sample"]
IN_ROOT = [ROOT / f"{name}.py" for name in ORDER]
FOLDERS = ("support", "evaluation", "scripts")


def python_files(*folders):
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def lines_of(path):
    return path.read_text().splitlines()


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported(path):
    """Names of all modules that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # `from support import checkpoint` names a module too
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def density(path):
    """Lines of comments and docstrings for each line of code."""
    text = path.read_text()
    docs, comments, code = set(), set(), set()
    for node in ast.walk(ast.parse(text)):
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, kinds) and ast.get_docstring(node):
            docs |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    blank = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in blank:
            code |= set(range(token.start[0], token.end[0] + 1))
    code -= docs
    return (len(docs) + len(comments - code)) / max(1, len(code))


# ---- sizes


def test_the_root_is_the_reading_list():
    assert sorted(ROOT.glob("*.py")) == sorted(IN_ROOT)


@pytest.mark.parametrize("path", IN_ROOT, ids=lambda path: path.name)
def test_root_files_say_in_words_what_they_do(path):
    assert density(path) >= 0.30


def test_density_counts_what_it_says():
    """Four lines of words (a trailing comment is none), four of code."""

    class Text:
        @staticmethod
        def read_text():
            docs = '"""One\ntwo."""\n\n# three\n'
            return docs + 'x = 1  # no\n\ndef f():\n    "four"\n    x = (\n1)\n'

    assert density(Text) == 1.0


def test_no_line_is_wider_than_a_hundred_columns():
    for path in IN_ROOT + python_files(*FOLDERS, "tests"):
        wide = [i for i, line in enumerate(lines_of(path), 1) if len(line) > 100]
        assert not wide, (path.name, wide)


def test_the_readme_can_be_finished():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 160 and len(text.encode()) <= 12_000
    assert max(map(len, text.splitlines())) <= 110
    # The first block takes a fresh machine all the way.
    block = text.split("```sh\n")[1].split("```")[0].splitlines()
    assert block[0].startswith("pip install -r requirements.txt && python sample.py --mode bltdv")
    assert block[1].startswith("pip install -r requirements-dev.txt && python -m pytest")
    assert text.splitlines().index(block[0]) < 15


# ---- who imports whom


@pytest.mark.parametrize("name", ORDER)
def test_root_files_import_only_from_those_above_them(name):
    """Also by way of support/, which all may import."""
    seen, queue = set(), [name]
    while queue:
        module = queue.pop()
        for other in imported(ROOT / (module.replace(".", "/") + ".py")):
            if other in ORDER:
                assert ORDER.index(other) < ORDER.index(name), (module, other)
            is_ours = other.startswith("support.") and other not in seen
            if is_ours and (ROOT / (other.replace(".", "/") + ".py")).exists():
                seen.add(other)
                queue.append(other)


def test_nobody_imports_evaluation_and_scripts_but_they_themselves():
    """evaluation/ may be imported by scripts/, scripts/ by nobody."""
    for path in IN_ROOT + python_files(*FOLDERS):
        folder = path.relative_to(ROOT).parts[0]
        of = {other.split(".")[0] for other in imported(path)}
        if folder not in ("evaluation", "scripts"):
            assert "evaluation" not in of, path
        assert folder == "scripts" or "scripts" not in of, path


def test_training_knows_nothing_of_evaluations():
    used = imported(ROOT / "train.py") | imported(ROOT / "support" / "runs.py")
    assert not {name for name in used if "miniature" in name or name.startswith("evaluation")}


# ---- words


def test_words_of_old_are_gone():
    """One meaning a word: a threshold is no theta, rows are of a matrix, a window is attended."""
    gone = {"theta", "rope_theta", "hash_rows", "paper_rounds", "block_rows", "reach", "room"}
    for path in IN_ROOT + python_files(*FOLDERS):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {node.arg for node in nodes if isinstance(node, (ast.arg, ast.keyword))}
        names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        assert not names & gone, (path.name, names & gone)
