"""docs/tour.ipynb: it runs from top to bottom, and what it shows is what today's code gives.

    python -m tests.test_tour     # run it and store what it gives now

The stored outputs are those of the checkpoint that comes with the project.
"""

import ast
import copy
import json
import os
import pathlib
import re
import sys
import tempfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "docs" / "tour.ipynb"
REFRESH = "python -m tests.test_tour"
SECONDS = 300  # that a cell may take on a busy machine
LARGEST = 1 << 20  # bytes of the file
# Of the notebook itself: which kernel runs it, and nothing of the one that did
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# What cells may import besides the files of the root and the standard library
ROOMS = {"fast", "support"}
PACKAGES = {"matplotlib", "numpy", "torch"}
# A path from the root of a file system, from a home or from a drive
ABSOLUTE = re.compile(r"""(?:^|[\s"'(=])(?:/|~/|[A-Za-z]:[\\/])\w""", re.MULTILINE)


def stored():
    """The notebook as it is stored, a dict."""
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def cells_of(notebook, kind):
    """Its cells of a kind, "code" or "markdown" -> list."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def source_of(cell):
    """What was written into a cell -> str."""
    return "".join(cell["source"])


# ---- running it


def run(path, folder):
    """Run a notebook in the repository -> the same with new outputs, as text.

    folder: for what the kernel writes about itself.
    """
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    for name in ("ipykernel", "matplotlib"):
        pytest.importorskip(name)
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(ROOT)}},
    )
    own = dict.fromkeys(["IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"], str(folder))
    client.execute(env={**os.environ, **own})
    notebook.metadata = METADATA
    for cell in notebook.cells:
        cell.metadata = {}
    return nbformat.writes(notebook) + "\n"


def refresh():
    """Run the notebook and store what it gives, but nothing of when and where it ran."""
    with tempfile.TemporaryDirectory() as folder:
        text = run(NOTEBOOK, folder)
    NOTEBOOK.write_text(text, encoding="utf-8")


def shown_by(cell):
    """What a cell shows, as far as it can be compared -> list of (kind, text).

    Of a picture only that there is one: its bytes depend on fonts and on versions.
    """
    shown = []
    for output in cell["outputs"]:
        kind = output["output_type"]
        if kind == "stream":
            kind = output["name"]
            text = "".join(output["text"])
        elif kind == "error":
            text = f"{output['ename']}: {output['evalue']}"
        elif "image/png" in output["data"]:
            kind = "picture"
            text = ""
        else:
            text = "".join(output["data"]["text/plain"])
        if shown and shown[-1][0] == kind != "picture":  # one stream, in several pieces
            text = shown.pop()[1] + text
        shown.append((kind, text))
    return shown


def difference(old, new):
    """The first cell that shows something else in two runs of a notebook, in words, or None."""
    for before, now in zip(cells_of(old, "code"), cells_of(new, "code")):
        if shown_by(before) == shown_by(now):
            continue
        words = f"the cell '{before['id']}' shows something else than what is stored"
        if before["id"] == "model":
            words = "the default checkpoint is another than the one that the stored outputs are of"
        parts = [f"{words}: refresh it with `{REFRESH}`, and look at it"]
        for title, cell in (("stored:", before), ("now:", now)):
            parts += [title, *(f"[{kind}] {text}" for kind, text in shown_by(cell))]
        return "\n".join(parts)
    return None


@pytest.mark.more
def test_the_stored_outputs_are_those_of_the_code(tmp_path):
    """It runs without an error and shows what is stored, to the letter and the printed digit."""
    if (ROOT / "checkpoint.pt").exists():
        pytest.skip("checkpoint.pt would be shown, and what is stored is of the project's own")
    path = tmp_path / "tour.ipynb"
    path.write_bytes(NOTEBOOK.read_bytes())
    made = json.loads(run(path, tmp_path))  # raises where a cell does
    problem = difference(stored(), made)
    assert problem is None, problem


def test_a_difference_names_the_cell_and_the_command():
    """Text that differs is told, a picture that is another is none."""
    old = stored()
    new = copy.deepcopy(old)
    for cell in cells_of(new, "code"):
        for output in cell["outputs"]:
            if "image/png" in output.get("data", {}):
                output["data"]["image/png"] = "other"
    assert difference(old, new) is None
    told = {}
    for cell in cells_of(new, "code"):
        if cell["outputs"]:
            changed = copy.deepcopy(old)
            other = next(x for x in changed["cells"] if x["id"] == cell["id"])
            other["outputs"].pop()
            told[cell["id"]] = difference(old, changed)
    assert len(told) >= 10
    assert all(REFRESH in problem for problem in told.values())
    assert "the default checkpoint is another" in told.pop("model")
    assert all(f"'{name}'" in problem for name, problem in told.items())


# ---- how it is stored


def test_it_is_a_valid_notebook_without_traces_of_a_machine():
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.read(NOTEBOOK, as_version=4))
    notebook = stored()
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"] == METADATA
    assert all(cell["metadata"] == {} for cell in notebook["cells"])
    assert NOTEBOOK.stat().st_size <= LARGEST


def test_its_outputs_are_stored():
    """Of one run from top to bottom: every picture that is drawn, no warning, no error."""
    cells = cells_of(stored(), "code")
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        kinds = [kind for kind, _ in shown_by(cell)]
        assert kinds.count("picture") == source_of(cell).count("plt.show()"), cell["id"]
        assert set(kinds) <= {"picture", "stdout"}, (cell["id"], kinds)


def test_every_section_has_words_code_and_something_to_see():
    sections = {}
    number = None
    for cell in stored()["cells"]:
        title = re.match(r"## (\d+)\. ", source_of(cell))
        if title:
            number = int(title[1])
        sections.setdefault(number, []).append(cell)
    assert [*sections] == [None, *range(1, 10)]
    for number in range(1, 10):
        shown = sum((shown_by(cell) for cell in sections[number] if "outputs" in cell), [])
        assert "picture" in dict(shown), number


def test_cells_import_the_method_and_little_else():
    root = {path.stem for path in ROOT.glob("*.py")}
    allowed = root | ROOMS | PACKAGES | set(sys.stdlib_module_names)
    for cell in cells_of(stored(), "code"):
        names = set()
        for node in ast.walk(ast.parse(source_of(cell))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module)
        others = {name for name in names if name.split(".")[0] not in allowed}
        assert not others, (cell["id"], others)


def test_nothing_names_a_place_of_one_machine():
    for cell in stored()["cells"]:
        found = ABSOLUTE.findall(source_of(cell))
        for _, text in shown_by(cell) if "outputs" in cell else ():
            found += re.findall(r"(?:/home|/root|/tmp|/Users|site-packages)\b", text)
        assert not found, (cell["id"], found)
    # The pattern sees paths, and neither fractions nor links
    for text in ('open("/data/x")', "cd ~/blt", "in C:\\blt", "/etc"):
        assert ABSOLUTE.search(text), text
    for text in ("p / q", "min(1, p/q)", "[a](../model.py)", "docs/", "https://example.org/x"):
        assert not ABSOLUTE.search(text), text


def test_its_links_lead_to_files():
    for cell in cells_of(stored(), "markdown"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", source_of(cell)):
            assert (NOTEBOOK.parent / target).exists(), target


if __name__ == "__main__":
    refresh()
