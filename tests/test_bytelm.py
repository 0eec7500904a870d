"""scripts/bytelm.py: the plain twin over bytes."""

import pytest
import torch

from data import BOS, encode
from generate import Sampling
from model import BLT
from patcher import Patcher, PatcherConfig
from scripts import bytelm
from support import checkpoint
from support.terminal import BadInput
from training.presets import PRESETS


@pytest.mark.parametrize("preset", bytelm.TWINS)
def test_a_twin_has_as_many_parameters(preset):
    with torch.device("meta"):
        blt = sum(BLT(PRESETS[preset].model).sizes().values())
        blt += Patcher(PRESETS[preset].patcher).size()
        twin = Patcher(bytelm.TWINS[preset]).size()
    assert abs(twin / blt - 1) < 0.005


def test_what_it_writes_from_its_cache_is_what_it_would_write_without(monkeypatch):
    """Texts longer than its window, and taken in by several passes."""
    torch.manual_seed(0)
    lm = Patcher(PatcherConfig(width=32, layers=2, heads=2, hidden=48, window=9))
    lm.model.init_weights()
    monkeypatch.setattr(bytelm, "ROWS", 16)
    twin = bytelm.Twin(lm)
    text = [BOS, *encode(b"some text that is longer than what the window of the layers sees")]
    whole = lm.model(torch.tensor([text]))[0]
    state = twin.state()
    logits = torch.cat([state.extend(text[:40]), *(state.extend([id_]) for id_ in text[40:])])
    assert torch.allclose(logits, whole, atol=1e-4)
    ids, seconds = bytelm.write(twin, text[1:20], 12, Sampling(ignore_eos=True))
    assert len(ids) == 12 and seconds > 0
    again = text[:20]
    for id_ in ids:
        logits = lm.model(torch.tensor([again]))[0, -1]
        logits[[0, 1, 2, 3]] = -torch.inf  # what is no output
        assert logits.argmax() == id_
        again = [*again, id_]


def test_it_is_trained_measured_and_resumed(corpus_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bytelm, "GENERATED", 4)
    ask = ["--data", str(corpus_file), "--preset", "nano", "--steps", "3", "--dtype", "float32"]
    bytelm.main([*ask, "--out", "twin.pt"])
    out = capsys.readouterr().out
    assert "0.80 M parameters" in out and "bits per byte" in out and "bytes/s greedy" in out
    saved = checkpoint.load("twin.pt")
    assert saved["results"]["validation_bits_per_byte"] < 8.2 and len(saved["openings"]) == 8
    bytelm.main(["--measure", "twin.pt"])
    bits = f"{saved['results']['validation_bits_per_byte']:.3f} bits per byte"
    assert bits in capsys.readouterr().out
    bytelm.main(["--resume", "twin.pt", "--out", "again.pt"])
    assert bits in capsys.readouterr().out
    with pytest.raises(BadInput, match="--steps can't change on --resume"):
        bytelm.main(["--resume", "twin.pt", "--steps", "4"])
    import train

    with pytest.raises(BadInput, match="no run of train.py: go on with `python -m scripts.bytelm`"):
        train.main(["--resume", "twin.pt"])


def test_other_checkpoints_are_refused(trained_file):
    for flag in ("--measure", "--resume"):
        with pytest.raises(BadInput, match="holds no byte LM|no run of this script"):
            bytelm.main([flag, str(trained_file)])
