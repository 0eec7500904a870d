"""train.py: what is resumed ends where the uninterrupted run does, and nothing good is lost."""
import signal

import pytest
import torch

import checkpoint
import train
from model import BLT, PRESETS, load_model
from patcher import mean_patch
from terminal import BadInput
from train import Settings, learning_rate, make_optimizer


def options(corpus_file, out, *more):
    return ["--preset", "nano", "--data", str(corpus_file), "--steps", "8", "--dtype", "float32", "--out", str(out), *more]


@pytest.fixture
def interrupt_at(monkeypatch):
    """Ctrl-C during the n-th optimiser step of both models together."""
    def arm(n):
        steps, real = [0], torch.optim.AdamW.step

        def step(self, *args, **kwargs):
            steps[0] += 1
            if steps[0] == n:
                signal.raise_signal(signal.SIGINT)
            return real(self, *args, **kwargs)
        monkeypatch.setattr(torch.optim.AdamW, "step", step)
    return arm


@pytest.mark.parametrize("block_size", ["0", "4"])
@pytest.mark.parametrize("at", [2, 5, 9])
def test_an_interrupted_run_resumes_bit_for_bit(corpus_file, tmp_path, interrupt_at, monkeypatch, block_size, at):
    """4 steps of the patcher, then 8 of the model: the interrupts fall into the first, right behind it, and into the second."""
    whole, cut = tmp_path / "whole.pt", tmp_path / "cut.pt"
    train.main(options(corpus_file, whole, "--block-size", block_size))
    interrupt_at(at)
    with pytest.raises(KeyboardInterrupt):
        train.main(options(corpus_file, cut, "--block-size", block_size))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.undo()
    train.main(["--resume", str(cut)])
    a, b = checkpoint.load(whole), checkpoint.load(cut)
    for part in ("model", "patcher"):
        assert all(torch.equal(a[part][k], b[part][k]) for k in a[part]), part
    assert a["patcher_config"] == b["patcher_config"] and a["progress"] == b["progress"] and torch.equal(a["rng"], b["rng"])
    assert a["results"]["validation_bits_per_byte"] == b["results"]["validation_bits_per_byte"]
    moments = lambda saved: [v for state in saved["optimizer"]["state"].values() for v in state.values()]
    assert all(torch.equal(x, y) for x, y in zip(moments(a), moments(b)))


def test_a_loss_that_is_not_finite_stops_with_its_step_and_keeps_the_checkpoint(corpus_file, tmp_path, monkeypatch):
    out, calls, real = tmp_path / "x.pt", [0], train.next_byte_loss

    def poisoned(logits, ids):
        calls[0] += 1
        return real(logits, ids) * (float("nan") if calls[0] == 4 + 6 else 1.0)
    monkeypatch.setattr(train, "next_byte_loss", poisoned)
    with pytest.raises(BadInput, match="not finite at step 5 of the model"):
        train.main(options(corpus_file, out, "--block-size", "0"))
    assert checkpoint.load(out)["progress"] == {"stage": "model", "step": 0, "steps": None}


def test_block_training_starts_from_a_plain_model(corpus_file, tmp_path):
    plain, fine = tmp_path / "plain.pt", tmp_path / "fine.pt"
    train.main(options(corpus_file, plain, "--block-size", "0"))
    train.main(options(corpus_file, fine, "--block-size", "8", "--init-from", str(plain)))
    a, b = checkpoint.load(plain), checkpoint.load(fine)
    assert b["config"]["block_size"] == 8 and a["patcher_config"] == b["patcher_config"]
    assert all(torch.equal(a["patcher"][k], b["patcher"][k]) for k in a["patcher"])
    assert len(b["results"]["masked_accuracy"]) == 8


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    checkpoint.save(path, {"value": 1})

    def broken(contents, file):
        file.write(b"half")
        raise KeyboardInterrupt
    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, {"value": 2})
    monkeypatch.undo()
    assert checkpoint.load(path)["value"] == 1


def test_learning_rate_warms_up_and_falls_to_zero():
    settings = Settings(lr=1.0, warmup=10)
    rates = [learning_rate(s, 100, settings) for s in range(100)]
    assert rates[0] == pytest.approx(0.1, rel=0.01) and max(rates) == pytest.approx(0.98, abs=0.02) and rates[-1] < 0.001
    assert [learning_rate(s, None, settings) for s in (0, 9, 50)] == pytest.approx([0.1, 1.0, 1.0])


def test_only_matrices_of_linear_maps_decay():
    model = BLT(PRESETS["nano"])
    decayed, others = make_optimizer(model, Settings()).param_groups
    names = {id(p): n for n, p in model.named_parameters()}
    assert decayed["weight_decay"] == 0.1 and others["weight_decay"] == 0
    assert len(decayed["params"]) + len(others["params"]) == len(names)
    assert {n for n in names.values() if "norm" in n or "embed" in n or "hashes" in n} == {names[id(p)] for p in others["params"]}


def test_training_learns(trained_file):
    assert checkpoint.load(trained_file)["results"]["validation_bits_per_byte"] < 4.5


def test_export_is_small_calibrated_and_generates(trained_file, tmp_path):
    """Half the bytes of the weights and nothing else; θ fits the rounded entropy model; it generates but can't be resumed."""
    import export
    import sample
    from data import document_ids
    small = tmp_path / "small.pt"
    export.main([str(trained_file), str(small)])
    whole, saved = checkpoint.load(trained_file), checkpoint.load(small)
    assert {t.dtype for part in ("model", "patcher") for t in saved[part].values()} == {torch.float16}
    assert small.stat().st_size < 0.55 * sum(4 * t.numel() for part in ("model", "patcher") for t in whole[part].values()) + 40_000
    model, patcher = load_model(small)
    held_out = [document_ids(d) for d in train.corpus_of(whole["asked"]["data"]).split()[1]]
    assert mean_patch([patcher.closes(ids) for ids in held_out]) == pytest.approx(4.0, abs=0.2) == saved["results"]["mean_patch_held_out"]
    assert saved["results"]["validation_bits_per_byte"] == pytest.approx(whole["results"]["validation_bits_per_byte"], abs=0.05)
    sample.main(["--mode", "bltdv", "--checkpoint", str(small), "--bytes", "8"])
    with pytest.raises(BadInput, match="no optimiser"):
        train.main(["--resume", str(small)])
    with pytest.raises(BadInput, match="no finished training run"):
        export.main([str(small), str(tmp_path / "again.pt")])
