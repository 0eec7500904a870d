"""scripts/results.py: what a page shows is measured and written between its marks."""

import pytest

from data import OFFSET
from scripts import results
from support import checkpoint
from support.generation import Counters, Generation
from support.terminal import BadInput


def page_of(*names):
    """A page with places for some parts."""
    places = ["\n".join(results.marks_of(name)) for name in names]
    return "\n".join(["# Results", *places, "end", ""])


def test_a_part_is_put_between_its_marks():
    page = page_of("speed", "eq8")
    once = results.put_between(page, "speed", "fast")
    assert once == results.put_between(once.replace("fast", "old"), "speed", "fast")
    first, last = results.marks_of("speed")
    assert f"{first}\nfast\n{last}\n" in once and once.startswith("# Results\n")
    assert results.put_between(once, "speed", "") != once and once.endswith("\nend\n")
    with pytest.raises(BadInput, match="no place for passes"):
        results.put_between(page, "passes", "x")


def test_the_page_of_the_project_has_a_place_for_every_part():
    with open(results.PAGE, encoding="utf-8") as file:
        page = file.read()
    for name in results.PARTS:
        results.put_between(page, name, "")


@pytest.fixture
def told_file(trained_file, corpus_file, tmp_path):
    """The trained checkpoint with two short openings of its text."""
    saved = checkpoint.load(trained_file)
    text = corpus_file.read_bytes()
    saved["openings"] = [text[:60], text[500:560]]
    checkpoint.save(tmp_path / "told.pt", saved)
    return tmp_path / "told.pt"


def test_all_parts_are_written(told_file, corpus_file, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(page_of(*results.PARTS))
    known = ["--checkpoint", str(told_file), "--held-out", str(corpus_file), "--page", str(page)]
    results.main([*known, "--quick"])
    text = page.read_text()
    assert text.count("`python -m scripts.results --only") == len(results.PARTS)
    assert str(tmp_path) not in text  # paths are nobody else's business
    assert "told.pt (sha256 " in text and "torch" in text and "`xz -6`" in text
    for mode in ("blt", "bltd", "bltdv", "blts", "lookup"):
        assert text.count(f"| `{mode}`") >= 2
    assert (tmp_path / "tradeoff.png").stat().st_size > 1000
    said = capsys.readouterr().err
    assert all(f"{name}: " in said for name in results.PARTS)
    # One part alone leaves all others as they are.
    before = text.partition(results.marks_of("passes")[0])[0]
    results.main([*known, "--quick", "--only", "passes"])
    assert page.read_text().startswith(before)


def made(seconds):
    """A Generation of ten bytes."""
    return Generation([OFFSET] * 10, Counters(decoder=10), seconds, {})


def test_the_speed_of_several_seeds_is_that_of_all_together():
    plains = [[made(1.0)], [made(1.0)]]
    ours = [[made(0.5)], [made(1.0)]]
    assert results.ratio_in_words(ours, plains) == "**1.33** (1.00-2.00)"
    assert results.ratio_in_words(ours[:1], plains[:1]) == "**2.00** (2.00-2.00)"


def test_a_page_without_a_place_is_refused_before_anything_runs(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(page_of("speed"))
    with pytest.raises(BadInput, match="no place for eq8"):
        results.main(["--page", str(page), "--only", "speed", "eq8"])
