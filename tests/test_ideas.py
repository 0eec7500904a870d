"""measure/ideas.py, fast/__main__.py: all demos show the same text in the same way."""

import re

import pytest
import torch
from conftest import make_models

from data import BOS, encode
from fast import __main__ as way
from fast.load import patcher_from
from measure import ideas
from support import checkpoint, flags
from support.show import patches_of, rule_in_words, show_patching
from support.terminal import BadInput, show_patches, visible

# Demos that show a text, and those that write behind one
SHOWING = {"patcher": ideas.patcher, "diffusion": ideas.diffusion, "fast": way.main}
WRITING = {"generate": ideas.generate, "speculate": ideas.speculate}


def shown_by(demo, capsys, *arguments):
    demo([str(argument) for argument in arguments])
    return capsys.readouterr().out


# ---- a byte that stands alone


def test_a_space_is_seen_where_a_byte_stands_alone():
    """Guards: an empty cell of a table for the byte that closes most patches."""
    assert visible(b"a b\n") == "a b⏎"  # running text keeps its spaces
    assert visible(b" ", space="␣") == "␣" and visible(b"a b", space="␣") == "a␣b"
    assert visible(b"\t\x00\xff", space="␣") == "⇥\\x00�"
    assert show_patches([b"def ", b"main"]) == "def␣|main"


def test_patches_of_a_text():
    """The last may be open; together they are the text."""
    assert patches_of(b"abcde", [0, 1, 0, 1, 0]) == [b"ab", b"cd", b"e"]
    assert patches_of(b"abcd", [0, 1, 0, 1]) == [b"ab", b"cd"]
    assert patches_of(b"abc", [0, 0, 0]) == [b"abc"]


def test_a_rule_in_words():
    said = rule_in_words("entropy", 2.3341, 8)
    assert said == "entropy patcher, threshold 2.334 nats, at most 8 bytes a patch"
    assert rule_in_words("stride", None, 6) == "stride patcher, at most 6 bytes a patch"
    assert rule_in_words("space", None, 0) == "space patcher, at most any number of bytes a patch"


# ---- the demos


def test_the_text_is_of_the_kind_that_the_model_knows(trained_file, tmp_path):
    """Python for a checkpoint that keeps no openings, and where there is none to read."""
    saved = checkpoint.load(trained_file)
    saved["openings"] = [b"Once upon a time, there was a little girl"]
    checkpoint.save(tmp_path / "stories.pt", saved)
    assert flags.text_for(tmp_path / "stories.pt", "def ") == "Once upon a time, there"
    del saved["openings"]
    checkpoint.save(tmp_path / "old.pt", saved)
    assert flags.text_for(tmp_path / "old.pt", "def ") == "def "
    assert flags.text_for(tmp_path / "gone.pt", "def ") == "def "


@pytest.mark.parametrize("name", SHOWING)
def test_without_a_text_all_show_the_same_one(name, trained_file, capsys):
    known = ["--checkpoint", trained_file]
    default = shown_by(SHOWING[name], capsys, *known)
    text = flags.text_for(trained_file, flags.TEXT)
    assert default == shown_by(SHOWING[name], capsys, *known, "--text", text)
    assert default != shown_by(SHOWING[name], capsys, *known, "--text", "def f(self):")


@pytest.mark.parametrize("name", WRITING)
def test_without_a_prompt_all_go_on_with_the_same_one(name, trained_file, capsys):
    known = ["--checkpoint", trained_file, "--bytes", 8]
    default = shown_by(WRITING[name], capsys, *known)
    text = flags.text_for(trained_file, flags.PROMPT)
    assert default == shown_by(WRITING[name], capsys, *known, "--prompt", text)
    assert flags.TEXT.startswith(flags.PROMPT)


def test_all_show_the_same_patches(trained_file, capsys):
    """The bar of patches, and the words in tables, are those of the checkpoint's patcher."""
    known = ["--checkpoint", trained_file]
    patcher = patcher_from(checkpoint.load(trained_file))
    data = flags.text_for(trained_file, flags.TEXT).encode()
    ids = torch.tensor([BOS, *encode(data)])
    closes = patcher.closes(ids).tolist()
    H = patcher.entropies(ids).tolist()
    bar = show_patches(patches_of(data, closes[1:]))
    assert shown_by(ideas.diffusion, capsys, *known).splitlines()[0] == f"patches   {bar}"
    by_patcher = shown_by(ideas.patcher, capsys, *known)
    assert by_patcher.splitlines()[0] == bar
    by_fast = shown_by(way.main, capsys, *known)
    letters = ["BOS", *(visible([byte], "␣") for byte in data)]
    for out in (by_patcher, by_fast):
        (header,) = [line for line in out.splitlines() if "entropy after it" in line]
        assert re.search(r"byte +entropy after it +its patch", header)
        for i, letter in enumerate(letters):
            after = rf"{re.escape(letter)} +{H[i]:.2f} {'+closes' if closes[i] else ' '}"
            lines = [line for line in out.splitlines() if re.search(after, line)]
            assert lines, (letter, after)
    rule = rule_in_words("entropy", patcher.config.threshold, 8)
    assert rule in by_patcher and rule in by_fast


def test_what_has_no_entropies_shows_none(capsys):
    """Guards: a threshold in nats, and entropies of zero, of patches that end at words."""
    show_patching(b"a b", [1, 0, 1, 0], None, "space patcher", 8)
    out = capsys.readouterr().out
    assert "0.00" not in out and re.search(r"^2 +␣ +closes$", out, re.M)
    assert re.search(r"^1 +BOS +closes$", out, re.M) and re.search(r"^3 +b *$", out, re.M)


def test_the_fast_machine_shows_no_entropies_where_none_decide(monkeypatch, capsys):
    model, patcher = make_models(0, kind="stride", max_patch=4)
    monkeypatch.setattr(way, "load_model", lambda path: (model, patcher))
    out = shown_by(way.main, capsys)
    assert "stride patcher, at most 4 bytes a patch" in out
    assert "0.00" not in out and "nats" not in out


def test_lines_that_are_too_long_are_refused(trained_file):
    known = ["--checkpoint", str(trained_file), "--text"]
    for demo, text in ((way.main, "x" * 201), (ideas.diffusion, "x" * 61), (ideas.diffusion, "x")):
        with pytest.raises(BadInput, match="bytes"):
            demo([*known, text])
    with pytest.raises(BadInput, match="it is empty"):
        ideas.patcher([*known, ""])


def test_layers_draws_the_rule(capsys):
    """Twelve clean rows that see six each; at position 8 two drafted bytes and four cells."""
    lines = shown_by(ideas.layers, capsys).splitlines()
    rows = {kind: [] for kind in ("clean", "draft", "cell")}
    for line in lines[2:]:
        if line:
            kind, _, *groups = line.split()
            rows[kind].append(groups)
    assert len(rows["clean"]) == 12
    assert rows["clean"][0] == ["■···········", "······"]
    assert rows["clean"][7] == ["··■■■■■■····", "······"]
    # Drafted bytes go on as the text would, but no clean row of their own bytes is there.
    assert rows["draft"] == [["···■■■■■····", "■·····"], ["····■■■■····", "■■····"]]
    assert rows["cell"] == [["··■■■■■■····", "■■■■■■"]] * 4


def test_model_prints_the_sizes_of_every_preset(capsys):
    out = shown_by(ideas.model, capsys)
    assert all(name in out for name in ("nano", "reference", "blt-1b", "blt-3b"))
    assert "1,284.61" in out


def test_a_picture_of_the_mask(trained_file, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    for name in ("mask.png", "mask.svg"):
        known = ["--checkpoint", trained_file, "--plot", tmp_path / name]
        assert "blocks of K = 4" in shown_by(ideas.diffusion, capsys, *known)
        assert (tmp_path / name).stat().st_size > 1000
    assert "␣" in (tmp_path / "mask.svg").read_text()
