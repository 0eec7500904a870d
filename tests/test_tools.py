"""scripts/: streams timed, an export."""

import pytest
import torch
from conftest import fast_of, make_models
from test_scripts import refused

import sample
import train
from data import BOS, corpus_of, default_corpus, document_ids, encode
from fast.load import load_model
from fast.patching import mean_patch
from scripts import benchmark, export
from support import checkpoint
from support.terminal import BadInput

# ---- benchmark


def test_a_stream_is_timed_beside_its_slow_twin():
    machine = fast_of(*make_models(0))
    rows = benchmark.stream_against_prefix(machine, list, (16, 32), bytes_each=2)
    assert [r["context"] for r in rows] == [16, 32] and rows[0]["against"] == 1
    assert all(r["cached"] > 0 and r["anew"] > 0 for r in rows)


def test_the_text_of_the_benchmark_is_the_beginning_of_the_corpus():
    whole = b"".join(bytes(text) for _, text in default_corpus().documents[:40])
    for n in (1, 2, 100, 20_000):
        assert benchmark.text_ids(n) == [BOS, *encode(whole[: n - 1])]


def test_the_benchmark_prints_a_table(monkeypatch, capsys):
    """Beside a model of transformers, which is converted; here at one short context."""
    pytest.importorskip("transformers")
    pytest.importorskip("safetensors")
    real = benchmark.stream_against_prefix
    few = lambda machine, anew, _: real(machine, anew, (8, 16), bytes_each=2)  # noqa: E731
    monkeypatch.setattr(benchmark, "stream_against_prefix", few)
    benchmark.main([])
    out = capsys.readouterr().out
    assert "times faster" in out and "cached, ms/byte" in out


# ---- export


def test_export_is_small_calibrated_and_generates(trained_file, tmp_path):
    """Half the bytes and nothing else; the threshold fits the rounded patcher; no resuming."""
    small = tmp_path / "small.pt"
    export.main([str(trained_file), str(small)])
    whole, saved = checkpoint.load(trained_file), checkpoint.load(small)
    weights = [t for part in ("model", "patcher") for t in saved[part].values()]
    assert {t.dtype for t in weights} == {torch.float16}
    assert small.stat().st_size < 2.2 * sum(t.numel() for t in weights) + 40_000
    assert set(saved) - set(whole) <= {"data", "separator", "held_out", "openings"}
    assert len(saved["openings"]) == 8
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
    with pytest.raises(BadInput, match="it is among what is read"):
        export.main([str(trained_file), str(trained_file)])
    assert trained_file.read_bytes() == kept
    saved = checkpoint.load(trained_file)
    saved["corpus"]["sha256"] = "0" * 64
    checkpoint.save(tmp_path / "other.pt", saved)
    with pytest.raises(BadInput, match="other hash"):
        export.main([str(tmp_path / "other.pt"), str(tmp_path / "small.pt")])
    assert not (tmp_path / "small.pt").exists()


# ---- all three


def test_bad_input_is_one_line(trained_file, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    expected = {
        ("benchmark", "race"): "race",
        ("export", "gone.pt", "small.pt"): "no checkpoint at gone.pt",
        ("export", trained_file, "no/such/folder.pt"): "can't write",
    }
    for (name, *arguments), words in expected.items():
        assert words in refused("-m", f"scripts.{name}", *arguments, cwd=tmp_path), arguments
