"""scripts/: passes timed, an export, pictures."""

import json
import sys

import pytest
import torch
from conftest import make_models
from test_scripts import refused

import sample
import train
from data import corpus_of, document_ids
from evaluation.plots import MARKERS
from model import load_model
from patcher import mean_patch
from scripts import benchmark, export, figures
from support import checkpoint
from support.paper import read_paper, recompute
from support.terminal import BadInput

# ---- benchmark


def test_a_presets_passes_are_timed_with_random_weights(capsys):
    benchmark.main(["passes", "--preset", "nano", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(set(r) == {"preset", "pass", "seconds", "seconds_by_eq8", "ratio"} for r in rows)
    assert all(r["seconds"] > 0 and r["seconds_by_eq8"] > 0 for r in rows)
    names = [r["pass"] for r in rows]
    assert any("8 patches" in name for name in names) and "decoder, 17 rows" in names


def test_passes_are_printed_as_a_table(capsys):
    benchmark.main(["passes", "--preset", "nano"])
    out = capsys.readouterr().out
    assert "encoder+global, 8 patches" in out and "memory read at" in out


def test_a_preset_that_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(benchmark.os, "sysconf", lambda name: 1000)
    with pytest.raises(BadInput, match="choose a smaller preset"):
        benchmark.main(["passes", "--preset", "blt-1b"])


def test_a_stream_is_timed_beside_its_slow_twin():
    model, patcher = make_models(0)
    with torch.inference_mode():
        rows = benchmark.stream_against_prefix(model, patcher, list, (16, 32), bytes_each=2)
    assert [r["context"] for r in rows] == [16, 32] and rows[0]["against"] == 1
    assert all(r["cached"] > 0 and r["anew"] > 0 for r in rows)


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


def test_every_row_of_the_paper_is_one_mark_and_verified_ones_a_hollow_one_too():
    rows = [r for r in recompute(read_paper()) if (r["model_size"], r["task"]) == ("1B", "fr-en")]
    marks = figures.paper_marks(rows)
    filled, hollow = ([m for m in marks if m.hollow == wanted] for wanted in (False, True))
    assert len(filled) == len(rows)
    assert {m.method for m in hollow} == {"BLT-S", "BLT-DV"}
    assert len(hollow) == sum(r["method"] in ("BLT-S", "BLT-DV") for r in rows)
    assert {m.name for m in filled} == {"BLT"} | {
        f"{method}-{K}" for method in ("BLT-S", "BLT-D", "BLT-DV") for K in (4, 8, 16)
    }
    ours = {"γ = 0.5", "γ = 1.2", "chained", "copy 16"}  # in no table of the paper
    assert {m.rule for m in marks} == set(MARKERS) - ours
    assert filled[0][:2] == (pytest.approx(813.34, abs=0.01), 33.08)
    # 106 of 212 calls and one more: 2 x (526 x 0.160 + 107 x 1.299)
    assert hollow[0][:2] == (pytest.approx(446.306, abs=0.01), 33.08)


def test_the_papers_figures_are_drawn(tmp_path, capsys):
    pytest.importorskip("adjustText")
    figures.main(["paper", "--out-dir", str(tmp_path), "--format", "svg"])
    files = sorted(path.name for path in tmp_path.iterdir())
    assert len(files) == 8 == len(capsys.readouterr().out.splitlines())
    text = (tmp_path / "paper-3B-mbpp.svg").read_text()
    assert "BLT-DV-16" in text and "GB" in text and "one call a round" in text


def test_a_checkpoints_trade_off_is_drawn(trained_file, tmp_path, capsys):
    pytest.importorskip("adjustText")
    (tmp_path / "prompts").write_bytes(b"def f\n")
    arguments = ["--prompts", str(tmp_path / "prompts"), "--bytes", "8"]
    out = tmp_path / "x.png"
    figures.main(["tradeoff", "--checkpoint", str(trained_file), *arguments, "--out", str(out)])
    assert out.read_bytes().startswith(b"\x89PNG") and "x.png" in capsys.readouterr().out


def test_without_matplotlib_one_line_says_where_it_comes_from(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for arguments in (["paper", "--out-dir", str(tmp_path)], ["tradeoff", "--out", "x.png"]):
        with pytest.raises(BadInput, match="requirements-dev.txt"):
            figures.main(arguments)


# ---- all three


def test_bad_input_is_one_line(trained_file, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    expected = {
        ("benchmark", "passes", "--device", "warp", "--preset", "nano"): "no device 'warp'",
        ("benchmark", "race"): "race",
        ("export", "gone.pt", "small.pt"): "no checkpoint at gone.pt",
        ("export", trained_file, "no/such/folder.pt"): "can't write",
        ("figures", "paper", "--out-dir", "no/such"): "no folder no/such",
        ("figures", "paper", "--out-dir", "file"): "no folder file",
        ("figures", "tradeoff", "--out", "x.txt"): ".png or .svg",
        ("figures", "tradeoff", "--out", "no/such/x.png"): "no folder no/such",
        ("figures", "tradeoff"): "--out",
    }
    for (name, *arguments), words in expected.items():
        assert words in refused("-m", f"scripts.{name}", *arguments, cwd=tmp_path), arguments
