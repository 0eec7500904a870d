"""scripts/: the paper's rows priced by hand, passes timed, an export, pictures."""

import json
import re
import sys

import pytest
import torch
from conftest import make_models
from test_scripts import refused

import diffusion
import patcher
import sample
import train
from data import corpus_of, document_ids, encode
from evaluation.plots import best, draw
from generate import Sampling
from model import load_model
from patcher import mean_patch
from scripts import benchmark, export, figures
from scripts.benchmark import DECODER_ROWS, PATCHES, paper_passes, priced_paper
from speculate import Drafting, run_mode
from support import checkpoint
from support.paper import read_paper
from support.passes import PassSeconds
from support.terminal import BadInput

# ---- benchmark


def row(method, decoder, calls, block_size="", setting="", task="fr-en"):
    """A row of the paper's tables, as far as its price goes."""
    known = {"decoder_nfes": decoder, "encoder_global_nfes": calls, "model_size": "1B"}
    return known | {"method": method, "task": task, "block_size": block_size, "setting": setting}


def test_the_passes_behind_a_row_by_hand():
    """Mean patch 2. Nine-row passes and one patch a call, whatever the row, were the bug."""
    assert paper_passes(row("BLT", 512.0, 256.0), 2.0) == {
        ("decoder", 1): 512.0,
        ("encoder_global", 1): 256.0,
    }
    # 106 rounds: 420 drafted bytes, 106 verifications of the decided byte and 4 drafted ones
    assert paper_passes(row("BLT-S", 526.0, 212.0, setting="k=4"), 2.0) == {
        ("decoder", 1): 420.0,
        ("encoder_global", 1): 106.0,
        ("decoder", 5): 106.0,
        ("encoder_global", 2.5): 106.0,
    }
    # 64 blocks: their first passes take the block before along, 83 further steps do not
    assert paper_passes(row("BLT-D", 147.0, 64.0, "8", "alpha=0.5"), 2.0) == {
        ("decoder", 16): 64.0,
        ("decoder", 8): 83.0,
        ("encoder_global", 4.0): 64.0,
    }
    # 100 rounds of 150 drafting passes, the first of each with the decided byte in front, as in
    # the verifications
    assert paper_passes(row("BLT-DV", 250.0, 200.0, "16", "gamma=1.5"), 2.0) == {
        ("decoder", 17): 200.0,
        ("decoder", 16): 50.0,
        ("encoder_global", 1): 100.0,
        ("encoder_global", 8.5): 100.0,
    }


@pytest.mark.parametrize("size", ["1B", "3B"])
def test_every_row_of_the_paper_is_priced_by_passes_that_are_timed(size):
    rows = [r for r in read_paper() if r["model_size"] == size]
    plain = {r["task"]: r for r in rows if r["method"] == "BLT"}
    for r in rows:
        blt = plain[r["task"]]
        passes = paper_passes(r, blt["decoder_nfes"] / blt["encoder_global_nfes"])
        decoder = {width: n for (part, width), n in passes.items() if part == "decoder"}
        calls = {width: n for (part, width), n in passes.items() if part == "encoder_global"}
        assert len(passes) == len(decoder) + len(calls)
        assert all(n >= 0 for n in passes.values()), r
        assert sum(decoder.values()) == r["decoder_nfes"]
        assert sum(calls.values()) == r["encoder_global_nfes"]
        assert set(decoder) <= set(DECODER_ROWS)
        assert all(1 <= width <= max(PATCHES) for width in calls)


def known_times():
    """Easy numbers: a pass of n rows takes n seconds, one that closes m patches 10 + m."""
    decoder = {n: float(n) for n in DECODER_ROWS}
    closing = {m: 10.0 + m for m in PATCHES}
    return PassSeconds(decoder=decoder, patcher={}, encoder_global=closing, spread=0.0)


def test_seconds_follow_from_passes_and_lie_on_a_line_between_two_that_were_timed():
    passes = paper_passes(row("BLT-S", 526.0, 212.0, setting="k=4"), 2.0)
    by_hand = 420 * 1 + 106 * 11 + 106 * 5 + 106 * 12.5
    assert sum(known_times().of(passes).values()) == pytest.approx(by_hand)


def test_a_row_is_priced_with_the_mean_patch_of_its_own_task():
    rows = [
        row("BLT", 512.0, 256.0),
        row("BLT", 256.0, 256.0, task="mbpp"),
        row("BLT-D", 128.0, 128.0, "4", task="fr-en"),
        row("BLT-D", 64.0, 64.0, "4", task="mbpp"),
    ]
    translated, coded, *drafted = priced_paper(rows, known_times())
    assert translated["seconds"] == 512 + 256 * 11 and translated["saved"] == 0
    assert coded["seconds"] == 256 + 256 * 11
    # blocks of 4 bytes close 2 patches of 2 bytes, or 4 of one
    assert [r["seconds"] for r in drafted] == [128 * (8 + 12), 64 * (8 + 14)]
    assert drafted[1]["saved"] == pytest.approx(100 * (1 - 64 * 22 / (256 + 256 * 11)))


def test_a_presets_passes_are_timed_with_random_weights(capsys):
    benchmark.main(["passes", "--preset", "nano", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(set(r) == {"preset", "pass", "seconds", "seconds_by_eq8"} for r in rows)
    assert all(r["seconds"] > 0 and r["seconds_by_eq8"] > 0 for r in rows)
    names = [r["pass"] for r in rows]
    assert any("8 patches" in name for name in names) and "decoder, 17 rows" in names


def test_the_papers_rows_stand_below_the_passes(capsys, monkeypatch):
    """With a nano model in place of the 1B one: it is the same code."""
    monkeypatch.setitem(benchmark.PAPER_NAMES, "nano", "1B")
    benchmark.main(["passes", "--preset", "nano"])
    out = capsys.readouterr().out
    assert "mbpp BLT-DV 16 one-step" in out and "memory read at" in out


def test_a_preset_that_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(benchmark.os, "sysconf", lambda name: 1000)
    with pytest.raises(BadInput, match="choose a smaller preset"):
        benchmark.main(["passes", "--preset", "blt-1b"])


def test_stream_and_train_print_their_tables(capsys):
    model, patcher = make_models(0)
    with torch.inference_mode():
        rows = benchmark.stream_against_prefix(model, patcher, list, (16, 32), bytes_each=2)
    assert [r["context"] for r in rows] == [16, 32] and rows[0]["against"] == 1
    assert all(r["cached"] > 0 and r["anew"] > 0 for r in rows)
    benchmark.main(["train", "--preset", "nano", "--steps", "4"])
    out = capsys.readouterr().out
    assert "K = 0" in out and "K = 8" in out and "GFLOP/s" in out


# ---- export


def test_export_is_small_calibrated_and_generates(trained_file, tmp_path):
    """Half the bytes and nothing else; the threshold fits the rounded patcher; no resuming."""
    small = tmp_path / "small.pt"
    export.main([str(trained_file), str(small)])
    whole, saved = checkpoint.load(trained_file), checkpoint.load(small)
    weights = [t for part in ("model", "patcher") for t in saved[part].values()]
    assert {t.dtype for t in weights} == {torch.float16}
    assert small.stat().st_size < 2.2 * sum(t.numel() for t in weights) + 40_000
    assert set(saved) - set(whole) == {"data"}
    model, patcher = load_model(small)
    held_out = [document_ids(d) for d in corpus_of(whole["asked"]["data"]).split()[1]]
    mean = mean_patch([patcher.closes(ids) for ids in held_out])
    assert mean == pytest.approx(4.0, abs=0.2) == saved["results"]["mean_patch_held_out"]
    before, after = (s["results"]["validation_bits_per_byte"] for s in (whole, saved))
    assert after == pytest.approx(before, abs=0.05)
    sample.main(["--mode", "bltdv", "--checkpoint", str(small), "--bytes", "8"])
    with pytest.raises(BadInput, match="was exported"):
        train.main(["--resume", str(small)])
    with pytest.raises(BadInput, match="no finished training run"):
        export.main([str(small), str(tmp_path / "again.pt")])
    assert not (tmp_path / "again.pt").exists()


def test_export_checks_before_it_writes(trained_file, tmp_path):
    kept = trained_file.read_bytes()
    with pytest.raises(BadInput, match="would replace what it is made of"):
        export.main([str(trained_file), str(trained_file)])
    assert trained_file.read_bytes() == kept
    saved = checkpoint.load(trained_file)
    saved["corpus"]["sha256"] = "0" * 64
    checkpoint.save(tmp_path / "other.pt", saved)
    with pytest.raises(BadInput, match="other hash"):
        export.main([str(tmp_path / "other.pt"), str(tmp_path / "small.pt")])
    assert not (tmp_path / "small.pt").exists()


# ---- figures


def test_a_checkpoints_trade_off_is_drawn(trained_file, tmp_path, capsys):
    pytest.importorskip("adjustText")
    (tmp_path / "prompts").write_bytes(b"def f\n")
    arguments = ["--prompts", str(tmp_path / "prompts"), "--bytes", "8"]
    out = tmp_path / "x.png"
    figures.main(["tradeoff", "--checkpoint", str(trained_file), *arguments, "--out", str(out)])
    assert out.read_bytes().startswith(b"\x89PNG") and "x.png" in capsys.readouterr().out


def measured(mode, setting, bits, ms):
    known = {"mode": mode, "setting": setting, "output_bits_per_byte": bits}
    return {**known, "ms": ms}


def test_every_point_of_a_trade_off_is_named_and_the_best_are_joined(tmp_path):
    """Verified modes share one distribution, so their marks lie at one number of bits."""
    pytest.importorskip("adjustText")
    rows = [
        measured("blt", "", 0.8, 4.0),
        measured("blts", "k=8", 1.0, 3.0),
        measured("lookup", "k=8", 0.9, 5.0),
        measured("bltd", "K=8 one-step", 4.0, 1.0),
        measured("bltd", "K=8 confidence 0.7", 2.0, 3.5),
        measured("bltd", "K=4 chained", 1.5, 2.0),
    ]
    marks = figures.measured_marks(rows, "ms")
    bits = {mark.name: round(mark.x, 9) for mark in marks}
    other = {"BLT-D-8 one-step": 4.0, "BLT-D-8 α = 0.7": 2.0, "BLT-D-4 chained": 1.5}
    assert bits == {**dict.fromkeys(("BLT", "BLT-S-8", "lookup-8"), 0.9), **other}
    assert {mark.name for mark in marks if mark.hollow} == set(other)
    assert [mark.name for mark in best(marks)] == ["BLT-S-8", "BLT-D-4 chained", "BLT-D-8 one-step"]
    # A model without blocks has none but lossless modes.
    for some in (marks, marks[:1]):
        draw(tmp_path / "x.svg", "", "", {"ms": some}, tradeoff=True)
        text = (tmp_path / "x.svg").read_text()
        assert all(f">{mark.name}<" in text for mark in some)


def test_acceptance_is_drawn_for_every_rule(trained_file, tmp_path, capsys):
    """Shares fall along the block and add up to the bytes accepted a round."""
    pytest.importorskip("adjustText")
    (tmp_path / "prompts").write_bytes(b"def f\n")
    arguments = ["--prompts", str(tmp_path / "prompts"), "--bytes", "24", "--temperature", "0"]
    out = tmp_path / "x.svg"
    figures.main(["acceptance", "--checkpoint", str(trained_file), *arguments, "--out", str(out)])
    said, text = capsys.readouterr().out.splitlines(), out.read_text()
    model, patcher = load_model(trained_file)
    for rule, line in zip(("one-step", "confidence", "chained"), said, strict=True):
        how = {"sampling": Sampling(ignore_eos=True)}
        drafting = Drafting(unmask=rule, copy=0)
        c = run_mode("bltdv", model, patcher, encode(b"def f"), 24, drafting, **how).counters
        mean = c.accepted / c.rounds
        assert line == f"{rule}: {c.rounds} rounds, {mean:.2f} bytes accepted a round"
        shares = [mark.y for mark in figures.acceptance_marks(rule, c, 8)]
        assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(100 * mean)
        assert f">{rule}<" in text


def test_the_patcher_draws_a_text_in_its_patches(trained_file, tmp_path, capsys):
    """Without a threshold where entropies are not what it is compared with."""
    pytest.importorskip("adjustText")
    out, known = tmp_path / "x.svg", ["--checkpoint", str(trained_file)]
    patcher.main([*known, "--text", "def f(<é>):" + "#" * 80, "--plot", str(out)])
    text = out.read_text()
    assert f">θ = {load_model(trained_file)[1].config.threshold:.2f}<" in text and "nats" in text
    assert ">&lt;<" in text and ">d<" in text and text.count(">#<") == 64 - 12
    patcher.main([*known, "--kind", "stride", "--text", "def f", "--plot", str(out)])
    assert "θ =" not in out.read_text() and capsys.readouterr().out


def test_the_mask_of_training_is_drawn(trained_file, tmp_path, capsys):
    """A cross for each clean row that a cell of a block must not see as it stands for a cell."""
    pytest.importorskip("adjustText")
    out = tmp_path / "x.svg"
    known = ["--checkpoint", str(trained_file), "--text", "def main():"]
    diffusion.main([*known, "--plot", str(out)])
    text, printed = out.read_text(), capsys.readouterr().out
    starts = [int(start) for start in re.findall(r"start (\d+), t", printed)][:4]
    assert text.count(">×<") == sum(4 * (min(11, start + 4) - start) for start in starts) > 0
    assert "reads its own block" in text and ">␣<" in text


def test_without_matplotlib_one_line_says_where_it_comes_from(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for module, *arguments in (
        (figures, "tradeoff", "--out", "x.png"),
        (patcher, "--text", "x", "--plot", "x.png"),
        (diffusion, "--plot", "x.svg"),
    ):
        with pytest.raises(BadInput, match="requirements-dev.txt"):
            module.main(arguments)


# ---- all three


def test_bad_input_is_one_line(trained_file, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    expected = {
        ("benchmark", "passes", "--device", "warp", "--preset", "nano"): "no device 'warp'",
        ("benchmark", "race"): "race",
        ("benchmark", "train", "--steps", "3"): "3",
        ("export", "gone.pt", "small.pt"): "no checkpoint at gone.pt",
        ("export", trained_file, "no/such/folder.pt"): "can't write",
        ("figures", "paper"): "paper",
        ("figures", "acceptance", "--out", "file/x.png"): "no folder file",
        ("figures", "tradeoff", "--out", "x.txt"): ".png or .svg",
        ("figures", "tradeoff", "--out", "no/such/x.png"): "no folder no/such",
        ("figures", "tradeoff"): "--out",
    }
    for (name, *arguments), words in expected.items():
        assert words in refused("-m", f"scripts.{name}", *arguments, cwd=tmp_path), arguments
