"""measure/plots.py: every picture is drawn, and says what it must."""

import sys

import pytest

import bandwidth
from measure import ideas
from measure.plots import draw_task, draw_tradeoff, frontier
from support.terminal import BadInput


@pytest.fixture(autouse=True)
def drawing():
    pytest.importorskip("matplotlib")


def test_a_checkpoint_is_measured_and_drawn(trained_file, tmp_path, capsys):
    (tmp_path / "prompts").write_bytes(b"def f\n")
    known = ["--checkpoint", str(trained_file), "--prompts", str(tmp_path / "prompts")]
    out = tmp_path / "x.png"
    bandwidth.main([*known, "--bytes", "8", "--plot", str(out)])
    assert out.read_bytes().startswith(b"\x89PNG") and "bytes/s" in capsys.readouterr().out


def measured(mode, setting, bits, gigabytes, lossless=True):
    known = {"mode": mode, "setting": setting, "output_bits_per_byte": bits, "lossless": lossless}
    return {**known, "bandwidth_gb": gigabytes, "bytes_per_second": 1000 / gigabytes}


def test_every_point_of_a_trade_off_is_named(tmp_path):
    rows = [
        measured("blt", "", 0.8, 4.0),
        measured("blts", "k=8", 1.0, 3.0),
        measured("lookup", "k=8", 0.9, 5.0),
        measured("bltd", "K=8 one-step", 4.0, 1.0, lossless=False),
        measured("bltd", "K=8 confidence 0.7", 2.0, 3.5, lossless=False),
        measured("bltd", "K=4 chained", 1.5, 2.0, lossless=False),
    ]
    names = ["BLT", "BLT-S-8", "lookup-8", "BLT-D-8 one-step", "BLT-D-8 α = 0.7", "BLT-D-4 chained"]
    # A model without blocks has none but lossless modes.
    for n in (6, 1):
        draw_tradeoff(tmp_path / "x.svg", rows[:n], "one prompt")
        text = (tmp_path / "x.svg").read_text()
        # in both panels
        assert [text.count(f">{name}<") for name in names] == [2] * n + [0] * (6 - n)


def test_the_paper_is_drawn_in_a_panel_a_model_and_task(tmp_path, capsys):
    """Once --paper and --plot excluded each other."""
    out = tmp_path / "x.svg"
    bandwidth.main(["--paper", "--plot", str(out)])
    text = out.read_text()
    assert "223 rows" in text and "223 rows" in capsys.readouterr().out
    for task in ("fr-en", "de-en", "humaneval", "mbpp"):
        assert f">{task}, 1B<" in text and f">{task}, 3B<" in text
    for method in ("BLT", "BLT-S", "BLT-D", "BLT-DV"):
        assert text.count(f">{method}<") == 1
    assert text.count(">BLEU<") == text.count(">pass@1<") == 4


def test_every_row_of_the_paper_is_a_mark(monkeypatch):
    """One mark a row, at its gigabytes and its score, by its method and size."""

    class Axis:
        def __init__(self):
            self.marks = []

        def plot(self, x, y, *mark, **look):
            if mark:
                self.marks.append((x, y, mark[0], look["color"]))

        def __getattr__(self, name):
            return lambda *_, **__: None

    rows = bandwidth.recompute(bandwidth.read_paper())
    axis = Axis()
    draw_task(axis, rows)
    assert [(x, y) for x, y, _, _ in axis.marks] == [(row["gb"], row["score"]) for row in rows]
    kinds = {(row["method"], mark) for row, (_, _, mark, _) in zip(rows, axis.marks)}
    assert kinds == {("BLT", "*"), *((m, k) for m in ("BLT-S", "BLT-D", "BLT-DV") for k in "os^")}


def test_the_frontier_is_what_nothing_beats_in_both():
    places = [(1, 5), (1, 4), (2, 4), (3, 4.5), (2.5, 1), (4, 0.5), (4, 2)]
    assert frontier(places) == [(1, 4), (2.5, 1), (4, 0.5)]


def test_the_mask_of_training_is_drawn(trained_file, tmp_path, capsys):
    out = tmp_path / "x.svg"
    known = ["--checkpoint", str(trained_file), "--text", "def main():"]
    ideas.diffusion([*known, "--plot", str(out)])
    text = out.read_text()
    assert "start 1, t" in capsys.readouterr().out
    assert "reads its own block" in text and ">␣<" in text


@pytest.mark.parametrize(
    "main, arguments",
    [
        (bandwidth.main, ["--plot", "x.png"]),
        (ideas.diffusion, ["--plot", "x.svg"]),
    ],
)
def test_without_matplotlib_one_line_says_where_it_comes_from(main, arguments, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BadInput, match="requirements-dev.txt"):
        main(arguments)
