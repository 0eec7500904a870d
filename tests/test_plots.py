"""support/plots.py: every picture is drawn, and says what it must."""

import sys

import pytest

import bandwidth
import diffusion
from support.plots import draw_tradeoff, frontier
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


def test_the_frontier_is_what_nothing_beats_in_both():
    places = [(1, 5), (1, 4), (2, 4), (3, 4.5), (2.5, 1), (4, 0.5), (4, 2)]
    assert frontier(places) == [(1, 4), (2.5, 1), (4, 0.5)]


def test_the_mask_of_training_is_drawn(trained_file, tmp_path, capsys):
    out = tmp_path / "x.svg"
    known = ["--checkpoint", str(trained_file), "--text", "def main():"]
    diffusion.main([*known, "--plot", str(out)])
    text = out.read_text()
    assert "start 1, t" in capsys.readouterr().out
    assert "reads its own block" in text and ">␣<" in text


@pytest.mark.parametrize(
    "module, arguments",
    [
        (bandwidth, ["--plot", "x.png"]),
        (diffusion, ["--plot", "x.svg"]),
    ],
)
def test_without_matplotlib_one_line_says_where_it_comes_from(module, arguments, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BadInput, match="requirements-dev.txt"):
        module.main(arguments)
