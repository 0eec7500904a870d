"""train.py: what is resumed ends where the uninterrupted run does, and nothing good is lost."""

import signal
from dataclasses import asdict

import pytest
import torch

import train
from data import Crops, document_ids
from diffusion import RECIPES, Recipe
from model import BLT, PRESETS, load_model
from patcher import PatcherConfig
from support import checkpoint
from support.optim import learning_rate, make_optimizer
from support.presets import TrainingSettings
from support.terminal import BadInput


def options(corpus_file, out, *more):
    kept = ["--preset", "nano", "--data", str(corpus_file), "--steps", "8", "--dtype", "float32"]
    return [*kept, "--out", str(out), *more]


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


def moments(saved):
    """All that an optimiser remembers, as tensors."""
    return [v for state in saved["optimizer"]["state"].values() for v in state.values()]


@pytest.mark.parametrize("block_size", ["0", "4"])
@pytest.mark.parametrize("at", [2, 5, 9])
def test_an_interrupted_run_resumes_bit_for_bit(
    corpus_file, tmp_path, interrupt_at, monkeypatch, block_size, at
):
    """4 steps of the patcher, then 8 of the model: the interrupts fall into the first, right
    behind it, and into the second.
    """
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
    assert a["patcher_config"] == b["patcher_config"] and a["progress"] == b["progress"]
    assert torch.equal(a["rng"], b["rng"])
    assert a["results"]["validation_bits_per_byte"] == b["results"]["validation_bits_per_byte"]
    assert moments(a) and all(torch.equal(x, y) for x, y in zip(moments(a), moments(b)))


def test_a_bad_loss_stops_with_its_step_and_keeps_the_checkpoint(
    corpus_file, tmp_path, monkeypatch
):
    out, calls, real = tmp_path / "x.pt", [0], train.next_byte_loss

    def poisoned(logits, ids):
        calls[0] += 1
        return real(logits, ids) * (float("nan") if calls[0] == 4 + 6 else 1.0)

    monkeypatch.setattr(train, "next_byte_loss", poisoned)
    with pytest.raises(BadInput, match="not finite at step 5 of the model"):
        train.main(options(corpus_file, out, "--block-size", "0"))
    assert checkpoint.load(out)["progress"] == {"stage": "model", "step": 0, "steps": None}


def test_block_training_starts_from_a_plain_model(corpus_file, tmp_path):
    """--init-from takes preset and patcher from the checkpoint and refuses contradictions: once
    it trained silently with another preset's settings.
    """
    plain, fine = tmp_path / "plain.pt", tmp_path / "fine.pt"
    train.main(options(corpus_file, plain, "--block-size", "0"))
    begin = ["--data", str(corpus_file), "--steps", "8", "--init-from", str(plain)]
    train.main([*begin, "--block-size", "8", "--out", str(fine)])
    a, b = checkpoint.load(plain), checkpoint.load(fine)
    assert b["config"]["block_size"] == 8 and a["patcher_config"] == b["patcher_config"]
    assert b["asked"]["preset"] == "nano" and b["asked"]["length"] == 128
    assert all(torch.equal(a["patcher"][k], b["patcher"][k]) for k in a["patcher"])
    assert len(b["results"]["masked_accuracy"]) == 8
    for flag, value in (("--preset", "tiny"), ("--patcher", "space"), ("--decoder-layers", "5")):
        with pytest.raises(BadInput, match=f"{flag} {value} contradicts"):
            train.main([*begin, flag, value])


def test_resume_refuses_what_the_run_did_not_begin_with(corpus_file, tmp_path):
    """Also a flag that happens to equal its default, which once was ignored."""
    out = tmp_path / "x.pt"
    train.main(options(corpus_file, out, "--seed", "3", "--block-size", "4"))
    for flag, value in (("--seed", "0"), ("--block-size", "8"), ("--recipe", "paper")):
        with pytest.raises(BadInput, match=f"{flag} {value} can't change on --resume"):
            train.main(["--resume", str(out), flag, value])


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


def test_checkpoints_of_version_1_load_under_the_names_of_today(trained_file, tmp_path):
    saved = torch.load(trained_file, weights_only=True)
    old = {"threshold": "theta", "rope_base": "rope_theta", "ngram_table_size": "hash_rows"}
    later = ("chain_width", "reset_at_newline")
    for name in ("config", "patcher_config"):
        config = {old.get(k, k): v for k, v in saved[name].items() if k not in later}
        saved[name] = config
    torch.save({**saved, "version": 1}, tmp_path / "old.pt")
    (model, patcher), (old_model, old_patcher) = map(
        load_model, (trained_file, tmp_path / "old.pt")
    )
    assert model.config == old_model.config and patcher.config == old_patcher.config


def test_learning_rate_warms_up_and_falls_to_zero():
    settings = TrainingSettings(lr=1.0, warmup=10)
    rates = [learning_rate(s, 100, settings) for s in range(100)]
    assert rates[0] == pytest.approx(0.1, rel=0.01)
    assert max(rates) == pytest.approx(0.98, abs=0.02) and rates[-1] < 0.001


def test_only_matrices_of_linear_maps_decay():
    model = BLT(PRESETS["nano"].model)
    decayed, others = make_optimizer(model, TrainingSettings()).param_groups
    names = {id(p): n for n, p in model.named_parameters()}
    assert decayed["weight_decay"] == 0.1 and others["weight_decay"] == 0
    assert len(decayed["params"]) + len(others["params"]) == len(names)
    free = {n for n in names.values() if "norm" in n or "embed" in n or "hashes" in n}
    assert free == {names[id(p)] for p in others["params"]}


def test_steps_are_counted_on_a_copy():
    """Timing must leave no trace: neither weights nor the position in the data move."""
    torch.manual_seed(0)
    preset = PRESETS["nano"]
    model, ids = BLT(preset.model).init_weights(), torch.randint(4, 260, (4000,))
    crops = Crops(ids, torch.rand(4000) < 0.25, 64, seed=0)
    settings = TrainingSettings(length=64, batch=2)
    loss_of = train.model_loss(Recipe(4))
    task = train.Task("model", model, crops, loss_of, settings, torch.float32)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert train.count_steps(task, 1.0, after=0.6) >= 1
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_every_preset_trains_its_patcher_on_more_than_its_window():
    """The 1B patcher, of window 512, once trained on crops of 256 bytes."""
    for name, preset in PRESETS.items():
        assert preset.patcher_training.length >= preset.patcher.window, name


@pytest.mark.parametrize("name, crops, warmup", [("blt-1b", 512, 2000), ("blt-3b", 1024, 4000)])
def test_batches_are_the_papers(name, crops, warmup):
    """2^19 and 2^20 tokens of about 4 bytes: 2 and 4 MB of text a step."""
    s = PRESETS[name].training
    assert (s.batch * s.accumulate, s.length, s.warmup) == (crops, 4096, warmup)


def test_the_papers_recipe_counts_its_block_rows():
    """They were missing from the GFLOP/s once."""
    paper = Recipe(8, **RECIPES["paper"])
    assert paper.cells(mean_patch=4.0) == 2.0 and Recipe(0).cells(4.0) == 0
    assert Recipe(8, cells_per_byte=0.5, after=0.6).cells(4.0) == pytest.approx(0.2)
    with pytest.raises(BadInput, match="cells-per-byte 0"):
        Recipe(8, starts="any", cells_per_byte=0.0)


def test_shapes_and_patches_follow_their_flags(corpus_file, tmp_path):
    out = tmp_path / "x.pt"
    shape = ["--decoder-layers", "1", "--global-layers", "3", "--ngram-table-size", "99"]
    patches = ["--patch-size", "3", "--max-patch", "6", "--reset-at-newline"]
    train.main(options(corpus_file, out, *shape, *patches))
    saved = checkpoint.load(out)
    config = saved["config"]
    assert (config["decoder_layers"], config["global_layers"]) == (1, 3)
    assert config["ngram_table_size"] == 99 and config["max_patch"] == 6
    assert saved["patcher_config"]["max_patch"] == 6 and saved["patcher_config"]["reset_at_newline"]
    assert saved["results"]["mean_patch_held_out"] == pytest.approx(3, abs=0.3)
    with pytest.raises(BadInput, match="--patch-size 9 can't be the mean"):
        train.main(["--patch-size", "9"])


def test_recipes_reach_the_run(corpus_file, tmp_path):
    out = tmp_path / "x.pt"
    train.main(options(corpus_file, out, "--recipe", "paper", "--mask-weight", "0.5"))
    asked = checkpoint.load(out)["asked"]
    expected = {**asdict(Recipe(8, **RECIPES["paper"])), "mask_weight": 0.5}
    assert {name: asked[name] for name in expected} == expected


def test_training_learns(trained_file):
    assert checkpoint.load(trained_file)["results"]["validation_bits_per_byte"] < 4.5


def test_documents_close_their_last_patch(trained):
    """Packed training once had patches that span documents, as EOS almost never closed one."""
    _, patcher = trained
    for data in (b"x", b"def f():\n    return 1\n", bytes(range(256))):
        assert patcher.closes(document_ids(data))[-1]
    assert PatcherConfig().reset_at_newline is False
