"""train.py: what is resumed ends where the uninterrupted run does, and nothing good is lost."""

import contextlib
import copy
import functools
import heapq
import os
import pathlib
import signal
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from conftest import ROOT, make_models, random_ids

import data
import train
from data import BOS, EOS, Corpus, Crops, document_ids
from layers import Layer
from model import BLT
from support import checkpoint, hardware
from support.presets import RECIPES, Recipe, TrainingSettings
from support.terminal import BadInput
from training import distributed, steps, validation
from training.boundaries import Packed
from training.optim import Muon, learning_rate, make_optimizer
from training.presets import PRESETS
from training.runs import PARSER, defaults


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    """Less text than other tests train on: these train often."""
    path = tmp_path_factory.mktemp("text") / "heapq.py"
    path.write_bytes(pathlib.Path(heapq.__file__).read_bytes())
    return path


def options(data, out, *more):
    kept = ["--preset", "nano", "--data", str(data), "--steps", "8", "--dtype", "float32"]
    return [*kept, "--out", str(out), *more]


@pytest.fixture
def interrupt_at(monkeypatch):
    """Ctrl-C, or another signal, during the n-th optimiser step of both models together."""

    def arm(n, number=signal.SIGINT):
        steps, real = [0], torch.optim.AdamW.step

        def step(self, *args, **kwargs):
            steps[0] += 1
            if steps[0] == n:
                signal.raise_signal(number)
            return real(self, *args, **kwargs)

        monkeypatch.setattr(torch.optim.AdamW, "step", step)

    return arm


def moments(saved):
    """All that an optimiser, or both halves of one, remembers, as tensors."""
    parts = [saved["optimizer"]] if "state" in saved["optimizer"] else saved["optimizer"].values()
    return [v for part in parts for state in part["state"].values() for v in state.values()]


@pytest.fixture(scope="module")
def whole_runs(text_file, tmp_path_factory):
    """Uninterrupted runs by their block size and optimiser, as loaded checkpoints."""
    folder, runs = tmp_path_factory.mktemp("whole"), {}
    for kind in KINDS_OF_RUN:
        path = folder / f"{kind[0]}-{kind[1]}.pt"
        train.main(options(text_file, path, "--block-size", kind[0], "--optimizer", kind[1]))
        runs[kind] = checkpoint.load(path)
    return runs


KINDS_OF_RUN = [("0", "adamw"), ("0", "muon"), ("4", "muon")]


@pytest.mark.parametrize("kind", KINDS_OF_RUN, ids="-".join)
@pytest.mark.parametrize("at", [2, 5, 9])
def test_an_interrupted_run_resumes_bit_for_bit(
    text_file, tmp_path, whole_runs, interrupt_at, monkeypatch, kind, at
):
    """4 steps of the patcher, then 8 of the model: the interrupts fall into the first, right
    behind it, and into the second.
    """
    cut = tmp_path / "cut.pt"
    interrupt_at(at)
    with pytest.raises(KeyboardInterrupt):
        train.main(options(text_file, cut, "--block-size", kind[0], "--optimizer", kind[1]))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.undo()
    train.main(["--resume", str(cut)])
    a, b = whole_runs[kind], checkpoint.load(cut)
    for part in ("model", "patcher"):
        assert all(torch.equal(a[part][k], b[part][k]) for k in a[part]), part
    progress = [{**x["progress"], "seconds": None} for x in (a, b)]
    assert a["patcher_config"] == b["patcher_config"] and progress[0] == progress[1]
    assert torch.equal(a["rng"], b["rng"])
    assert a["results"]["validation_bits_per_byte"] == b["results"]["validation_bits_per_byte"]
    assert moments(a) and all(torch.equal(x, y) for x, y in zip(moments(a), moments(b)))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_other_signals_save_as_ctrl_c_does(text_file, tmp_path, interrupt_at, name):
    """Schedulers send SIGTERM, a terminal that closes SIGHUP: neither loses the run."""
    before, out = signal.getsignal(getattr(signal, name)), tmp_path / "x.pt"
    interrupt_at(6, getattr(signal, name))
    with pytest.raises(KeyboardInterrupt):
        train.main(options(text_file, out, "--block-size", "0"))
    progress = checkpoint.load(out)["progress"]
    assert progress.pop("seconds") > 0 and progress == {"stage": "model", "step": 2, "steps": 8}
    assert signal.getsignal(getattr(signal, name)) is before


def test_nohup_means_what_it_says(text_file, tmp_path, interrupt_at):
    """It ignores SIGHUP, so a terminal that closes must not end the run."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        interrupt_at(6, signal.SIGHUP)
        train.main(options(text_file, tmp_path / "x.pt", "--block-size", "0"))
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert checkpoint.load(tmp_path / "x.pt")["progress"]["step"] == 8


def test_a_bad_loss_stops_with_its_step_and_keeps_the_checkpoint(text_file, tmp_path, monkeypatch):
    out, calls, real = tmp_path / "x.pt", [0], train.next_byte_nats

    def poisoned(logits, ids):
        calls[0] += 1
        return real(logits, ids) * (float("nan") if calls[0] == 4 + 6 else 1.0)

    monkeypatch.setattr(train, "next_byte_nats", poisoned)
    with pytest.raises(BadInput, match="not finite at step 5 of the model"):
        train.main(options(text_file, out, "--block-size", "0"))
    progress = checkpoint.load(out)["progress"]
    assert progress.pop("seconds") > 0 and progress == {"stage": "model", "step": 0, "steps": None}


def test_block_training_starts_from_a_plain_model(text_file, tmp_path):
    """--init-from takes preset and patcher from the checkpoint and refuses contradictions: once
    it trained silently with another preset's settings.
    """
    plain, fine = tmp_path / "plain.pt", tmp_path / "fine.pt"
    train.main(options(text_file, plain, "--block-size", "0"))
    begin = ["--data", str(text_file), "--steps", "8", "--init-from", str(plain)]
    train.main([*begin, "--block-size", "8", "--out", str(fine)])
    a, b = checkpoint.load(plain), checkpoint.load(fine)
    assert b["config"]["block_size"] == 8 and a["patcher_config"] == b["patcher_config"]
    assert b["asked"]["preset"] == "nano" and b["asked"]["length"] == 128
    assert all(torch.equal(a["patcher"][k], b["patcher"][k]) for k in a["patcher"])
    assert len(b["results"]["masked_accuracy"]) == 8
    for flag, value in (("--preset", "tiny"), ("--patcher", "space"), ("--decoder-layers", "5")):
        with pytest.raises(BadInput, match=f"{flag} {value} contradicts"):
            train.main([*begin, flag, value])


def test_the_chain_recipe_trains_the_head_alone(text_file, tmp_path):
    """Onto a finished BLT-D; all that it had stays bit for bit, patches too."""
    plain, blocks, chained = (tmp_path / f"{name}.pt" for name in ("plain", "blocks", "chained"))
    train.main(options(text_file, plain, "--block-size", "0"))
    begin = ["--data", str(text_file), "--steps", "4", "--recipe", "chain", "--out", str(chained)]
    with pytest.raises(BadInput, match="name it with --init-from"):
        train.main(begin)
    begin += ["--init-from"]
    with pytest.raises(BadInput, match="plain BLT"):
        train.main([*begin, str(plain)])
    train.main(options(text_file, blocks, "--block-size", "4"))
    with pytest.raises(BadInput, match="--block-size 8 contradicts"):
        train.main([*begin, str(blocks), "--block-size", "8"])
    for optimizer in ("muon", "adamw"):
        train.main([*begin, str(blocks), "--chain-width", "12", "--optimizer", optimizer])
        a, b = checkpoint.load(blocks), checkpoint.load(chained)
        assert b["config"] == {**a["config"], "chain_width": 12}
        assert all(torch.equal(a["model"][k], b["model"][k]) for k in a["model"])
        new = {k: x for k, x in b["model"].items() if k not in a["model"]}
        assert new and all("decoder.chain" in k for k in new)
        assert new["decoder.chain.out.weight"].abs().sum() > 0, "it begins at zero and has learned"
    # Whoever goes on from there keeps the head, and can't ask for another.
    with pytest.raises(BadInput, match="--chain-width 96 contradicts"):
        train.main([*begin, str(chained), "--chain-width", "96", "--out", str(plain)])


def test_resume_refuses_what_the_run_did_not_begin_with(text_file, tmp_path):
    """Also a flag that happens to equal its default, which once was ignored."""
    out = tmp_path / "x.pt"
    train.main(options(text_file, out, "--seed", "3", "--block-size", "4"))
    for flag, value in (("--seed", "0"), ("--block-size", "8"), ("--recipe", "paper")):
        with pytest.raises(BadInput, match=f"{flag} {value} can't change on --resume"):
            train.main(["--resume", str(out), flag, value])
    same = ["--seed", "3", "--block-size", "4", "--recipe", "ours", "--data", str(text_file)]
    train.main(["--resume", str(out), *same])  # what it began with may be said again


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    checkpoint.save(path, {"value": 1})
    kept = path.read_bytes()

    def broken(contents, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, {"value": 2})
    monkeypatch.undo()
    assert path.read_bytes() == kept and os.listdir(tmp_path) == ["c.pt"]


# ---- one step, and how many


def task_of(batch=2, accumulate=1, recipe=None):
    """Random weights in float64 and random text, as a Task."""
    model, patcher = make_models(0)
    documents = [random_ids(900, seed) for seed in range(3)]
    closes = torch.cat([patcher.closes(ids) for ids in documents])
    crops = Crops(torch.cat(documents), closes, 64, seed=1)
    settings = TrainingSettings(length=64, batch=batch, accumulate=accumulate, lr=1e-3, warmup=1)
    loss_of = functools.partial(train.model_loss, recipe=recipe or Recipe(4))
    loss = distributed.spread(model, loss_of)
    return steps.Task("model", model, loss, crops, settings, torch.float32)


class KeptNowhere:
    """A run for the loop: it counts steps, and nothing of it is saved."""

    def __init__(self, steps):
        self.step = 0
        self.steps = steps
        self.optimizer = None
        self.is_due = False


@pytest.fixture
def loop(monkeypatch):
    """A function that lets the loop take steps -> the bits a byte that it logs, their running mean.

    What it saves in the end, the optimiser, is then in loop.saved.
    """

    class Bar(contextlib.nullcontext):
        logged = []

        def set_postfix_str(self, text, refresh):
            self.logged.append(float(text.removesuffix(" bits/byte")))

        def update(self, n):
            pass

    def take(task, count):
        Bar.logged = []
        train.fit(KeptNowhere(count), task)
        return Bar.logged

    def save(run, optimizer, wait):
        take.saved = optimizer

    monkeypatch.setattr(train, "progress", lambda *given: Bar())
    monkeypatch.setattr(train, "save", save)
    return take


def contents(state):
    """A state dict as plain lists, to compare."""
    return {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in state.items()}


@pytest.mark.parametrize("seconds, after", [(0.0, 1.0), (0.5, 0.6), (0.5, 0.0)])
def test_counting_steps_leaves_no_trace(seconds, after):
    """Not in weights, the optimiser, random numbers or the data."""
    task, untouched = task_of(), task_of()
    optimizer = make_optimizer(task.model, task.settings)
    steps.trial_step(task, optimizer, 0, 0.0)
    before = copy.deepcopy((contents(task.model.state_dict()), optimizer.state_dict()))
    random_state = torch.get_rng_state()
    count = steps.count_steps(task, seconds, after)
    assert isinstance(count, int) and 1 <= count < 1000 and (seconds or count == 1)
    assert contents(task.model.state_dict()) == before[0]
    for name, kept in before[1].items():
        known = optimizer.state_dict()[name]
        assert known["param_groups"] == kept["param_groups"] and kept["state"]
        for index, state in kept["state"].items():
            assert contents(known["state"][index]) == contents(state)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(p.grad is None for p in task.model.parameters())
    for mine, fresh in zip(task.batch(9, 0)[:2], untouched.batch(9, 0)[:2]):
        assert torch.equal(mine, fresh)


def test_steps_that_are_timed_are_those_of_the_loop(loop):
    """The weights and all that the optimiser remembers, of a step in two parts."""
    timed, looped = (task_of(2, 2, Recipe(4, after=0.0)) for _ in range(2))
    optimizer = make_optimizer(timed.model, timed.settings)
    steps.trial_step(timed, optimizer, 0, 0.0)
    loop(looped, 1)
    for ours, theirs in zip(timed.model.parameters(), looped.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    a, b = ({"optimizer": of.state_dict()} for of in (optimizer, loop.saved))
    assert moments(a) and all(torch.equal(x, y) for x, y in zip(moments(a), moments(b)))


def test_a_share_of_slower_steps_counts_in_proportion(monkeypatch):
    """A clock made by hand: steps with blocks take 3 s, those before them 1 s."""
    clock = [0.0]
    monkeypatch.setattr(steps.time, "perf_counter", lambda: clock[0])

    def step(task, optimizer, number, done):
        clock[0] += 3.0 if done else 1.0

    monkeypatch.setattr(steps, "trial_step", step)

    def counted(seconds, after):
        began = clock[0]
        return steps.count_steps(task_of(), seconds, after), clock[0] - began

    for after, mean in ((1.0, 1.0), (0.0, 3.0), (0.6, 0.6 * 1 + 0.4 * 3)):
        count, spent = counted(1000.0, after)
        assert count == int((1000 - spent) / mean + 1e-9) and spent < 60


@pytest.mark.parametrize("recipe", [Recipe(0), Recipe(4, after=0.0), Recipe(4, **RECIPES["paper"])])
def test_a_batch_in_two_parts_is_the_same_step(recipe, loop):
    """Two forward passes of a crop each, or one of both: corruption belongs to a crop.

    Guards: blocks drawn from the global generator, in the order of the batches.
    """
    results = []
    for batch, accumulate in ((2, 1), (1, 2)):
        task = task_of(batch, accumulate, recipe)
        torch.manual_seed(accumulate)  # which must not matter
        bits = loop(task, 2)
        results.append((bits, task.model.state_dict()))
    (bits, whole), (same, parts) = results
    assert len(bits) == 2 and bits == pytest.approx(same, abs=1.1e-3)  # three digits are logged
    assert all(torch.allclose(whole[k], parts[k], atol=1e-5) for k in whole)


def test_blocks_join_when_the_recipe_says(monkeypatch, loop):
    seen, real = [], train.make_blocks

    def watched(*given):
        seen.append(given)
        return real(*given)

    monkeypatch.setattr(train, "make_blocks", watched)
    for recipe, joined in ((Recipe(4, after=0.6), 4), (Recipe(4, after=0.0), 10), (Recipe(0), 0)):
        seen.clear()
        loop(task_of(recipe=recipe), 10)
        assert len(seen) == joined
    task = task_of(recipe=Recipe(4, after=0.6))
    for done, joined in ((0.0, 0), (0.59, 0), (0.6, 1), (0.99, 1)):
        seen.clear()
        task.loss(*task.batch(0, 0), done)
        assert len(seen) == joined


def test_a_step_waits_for_the_device_once(monkeypatch, loop):
    """Guards: a loss that was read after each part of a step, and the norm of the gradient."""
    task = task_of(accumulate=3, recipe=Recipe(4, after=0.0))
    read = []

    def watch(name):
        real = getattr(torch.Tensor, name)

        def watched(self):
            read.append(name)
            return real(self)

        monkeypatch.setattr(torch.Tensor, name, watched)

    for name in ("item", "tolist", "__float__"):
        watch(name)
    loop(task, 5)
    assert read == 5 * ["tolist"]


# ---- a whole run


def test_a_run_keeps_its_corpus_small_and_hashes_it_once(text_file, tmp_path, monkeypatch):
    """Guards: the corpus hashed again at every save, and eight bytes kept for each of its own."""
    hashed, packed, real = [], [], train.Crops

    def digest(self):
        hashed.append(self)
        return "0" * 64

    def crops(ids, *rest):
        packed.append(ids)
        return real(ids, *rest)

    once = type(Corpus.__dict__["sha256"])(digest)
    once.__set_name__(Corpus, "sha256")
    monkeypatch.setattr(Corpus, "sha256", once)
    monkeypatch.setattr(train, "Crops", crops)
    every_step = ["--save-every", "0"]
    train.main(options(text_file, tmp_path / "x.pt", "--block-size", "0", *every_step))
    assert len(hashed) == 1
    # of both models; no ids are kept
    assert len(packed) == 2 and all(isinstance(text, Packed) for text in packed)


def test_minutes_become_a_number_of_steps_that_is_kept(text_file, tmp_path):
    """Counted before the first step, so that the learning rate knows where it ends."""
    out = tmp_path / "x.pt"
    short = ["--data", str(text_file), "--preset", "nano", "--batch", "1", "--minutes", "0.02"]
    train.main([*short, "--dtype", "float32", "--out", str(out)])
    progress = checkpoint.load(out)["progress"]
    assert progress["stage"] == "model" and progress["step"] == progress["steps"] >= 1


def test_no_patch_of_the_training_text_spans_two_documents(tmp_path, monkeypatch):
    """Guards: EOS that did not close its patch in packed text. Folders of many small files."""
    text = tmp_path / "text"
    text.mkdir()
    for i in range(40):
        (text / f"{i}.txt").write_bytes(bytes(random_ids(150 + i, i)[1:] - 4))
    packed, real = [], train.Crops

    def crops(*given):
        packed.append(given)
        return real(*given)

    monkeypatch.setattr(train, "Crops", crops)
    train.main(options(text, tmp_path / "x.pt", "--block-size", "0"))
    ids, closes = (part[0 : len(packed[-1][0])] for part in packed[-1][:2])
    assert (ids == EOS).sum() > 30 and closes[ids == EOS].all() and closes[ids == BOS].all()


def test_bad_recipes_are_refused_before_anything_is_read(text_file, trained_file, tmp_path):
    """Guards: found out only when the patcher had been trained."""
    for begin in (["--data", "gone"], ["--init-from", str(trained_file), "--data", "gone"]):
        with pytest.raises(BadInput, match="--cells-per-byte 0"):
            train.main([*begin, "--cells-per-byte", "0"])


@pytest.mark.slow
def test_the_default_run_ends_within_ten_minutes(tmp_path):
    """All of it, on two cores, as the README promises; in a process that takes all threads."""
    out = tmp_path / "x.pt"
    command = [sys.executable, str(ROOT / "train.py"), "--out", str(out)]
    subprocess.run(command, timeout=600, check=True)
    assert checkpoint.load(out)["results"]["validation_bits_per_byte"] < 1.75


# ---- the optimiser


def test_learning_rate_warms_up_and_falls_to_zero():
    settings = TrainingSettings(lr=1.0, warmup=10)
    rates = [learning_rate(s, 100, settings) for s in range(100)]
    assert rates[0] == pytest.approx(0.1, rel=0.01)
    assert max(rates) == pytest.approx(0.98, abs=0.02) and rates[-1] < 0.001


def test_only_matrices_of_linear_maps_decay():
    model = BLT(PRESETS["nano"].model)
    settings = TrainingSettings(optimizer="adamw")
    decayed, others = make_optimizer(model, settings).param_groups
    names = {id(p): n for n, p in model.named_parameters()}
    assert decayed["weight_decay"] == 0.1 and others["weight_decay"] == 0
    assert len(decayed["params"]) + len(others["params"]) == len(names)
    free = {n for n in names.values() if "norm" in n or "embed" in n or "hashes" in n}
    assert free == {names[id(p)] for p in others["params"]}


def test_muon_has_every_hidden_matrix_once_and_nothing_else():
    model = BLT(PRESETS["nano"].model)
    optimizer = make_optimizer(model, TrainingSettings(optimizer="muon"))
    hidden, rest = (optimizer.parts[name].param_groups for name in ("muon", "adamw"))
    names = {p.data_ptr(): n for n, p in model.named_parameters()}
    mine = [names[weight.data_ptr()] for weight, _ in optimizer.pieces]
    others = [names[p.data_ptr()] for group in rest for p in group["params"]]
    assert sorted(mine + others) == sorted(names.values())
    assert {n for n in others if ".norm" not in n and "_norm" not in n} == {
        "encoder.embed.weight",
        "encoder.hashes.weight",
        "decoder.embed.weight",
        "decoder.head.weight",
    }
    # The matrices are the weights themselves, each number once.
    pieces = [p for group in hidden for p in group["params"]]
    assert sum(p.numel() for p in pieces) == sum(w.numel() for w, _ in optimizer.pieces)
    q, k, v = optimizer.pieces[mine.index("globe.layers.0.qkv.weight")][1]
    weight = model.globe.layers[0].qkv.weight
    assert q.shape == k.shape == v.shape == (128, 128)
    assert v.data_ptr() == weight[256:].data_ptr() and len(pieces) > len(optimizer.pieces)


def muon_by_hand(weight, gradients, lr, decay):
    """Muon's update in float64: momentum 0.95 with a look ahead, then five steps of the iteration
    that sends singular values to about one.
    """
    momentum = torch.zeros_like(weight)
    for gradient in gradients:
        momentum = 0.95 * momentum + 0.05 * gradient
        x = 0.95 * momentum + 0.05 * gradient
        x = x / x.norm()
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
        weight = weight * (1 - lr * decay) - lr * 0.2 * max(weight.shape) ** 0.5 * x
    return weight


def test_muon_steps_against_its_update_by_hand():
    """Each matrix of a fused one alone; what is not hidden takes AdamW's step."""
    torch.manual_seed(0)
    layer = Layer(16, 2, 24)
    optimizer = make_optimizer(layer, TrainingSettings(optimizer="muon", lr=0.02))
    names = {"qkv": 3, "out": 1, "gate_up": 2, "down": 1}
    before = {name: getattr(layer, name).weight.detach().double() for name in names}
    gradients = {name: [] for name in names}
    for _ in range(3):
        for p in layer.parameters():
            p.grad = torch.randn_like(p)
        for name in names:
            gradients[name].append(getattr(layer, name).weight.grad.double())
        optimizer.step()
        optimizer.zero_grad()
        assert all(p.grad is None for p in layer.parameters())
    for name, count in names.items():
        chunks = zip(before[name].chunk(count), zip(*(g.chunk(count) for g in gradients[name])))
        expected = torch.cat([muon_by_hand(w, g, 0.02, 0.1) for w, g in chunks])
        moved = (expected - before[name]).norm()
        got = getattr(layer, name).weight.detach().double()
        assert (got - expected).norm() < 0.03 * moved, name  # its products are bfloat16
    assert layer.ffn_norm.weight.detach().sub(1).abs().max() == pytest.approx(0.03, abs=0.035)


def test_muon_in_one_product_is_that_of_torch_matrix_by_matrix(monkeypatch):
    """Bit for bit where the CPU multiplies bfloat16; some matrices have no gradient at first.

    It goes on from torch's state, as older checkpoints hold it, and from its own.
    """
    exact = hardware.has_bfloat16("cpu")
    monkeypatch.setattr("training.optim.has_bfloat16", lambda device: True)
    torch.manual_seed(0)
    # Two shapes that are each other's transpose; views of larger weights, as fused maps are
    shapes = 3 * [(24, 16)] + 2 * [(16, 24)] + 4 * [(32, 32)] + [(1, 40)]
    wholes = [[torch.randn(2 * rows, columns) for rows, columns in shapes] for _ in range(2)]
    for ours, theirs in zip(*wholes):
        theirs.copy_(ours)
    ours, theirs = (
        [torch.nn.Parameter(view) for whole in part for view in whole.chunk(2)] for part in wholes
    )
    one = Muon(ours, 0.01, 0.1)
    each = torch.optim.Muon(theirs, 0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(8):
        if step == 3:
            one.load_state_dict(copy.deepcopy(each.state_dict()))
        if step == 5:
            saved = copy.deepcopy(one.state_dict())
            one = Muon(ours, 0.01, 0.1)
            one.load_state_dict(saved)
        for optimizer in (one, each):
            optimizer.param_groups[0]["lr"] = 0.01 * (8 - step)
        for number, (mine, its) in enumerate(zip(ours, theirs)):
            gradient = torch.randn_like(mine)
            has_one = number % 3 or step > 1
            mine.grad = gradient if has_one else None
            its.grad = gradient.clone() if has_one else None
        one.step()
        each.step()
        for mine, its in zip(ours, theirs):
            assert torch.equal(mine, its) if exact else torch.allclose(mine, its, atol=0.01)
    states = one.state_dict()["state"], each.state_dict()["state"]
    assert len(states[0]) == 2 * len(shapes) and states[0].keys() == states[1].keys()
    for number, state in states[1].items():
        assert torch.equal(states[0][number]["momentum_buffer"], state["momentum_buffer"])


def test_the_paper_trains_with_adamw_and_small_models_with_muon(text_file, tmp_path, monkeypatch):
    for name, preset in PRESETS.items():
        assert preset.training.optimizer == ("adamw" if name.startswith("blt") else "muon")
        assert defaults(name, "ours", "adamw")["optimizer"] == "adamw"
    assert defaults("tiny", "ours", None)["lr"] == PRESETS["tiny"].training.lr
    assert defaults("tiny", "ours", "adamw")["lr"] == 2e-3
    # What a run trains with depends on its command alone, not on the machine.
    monkeypatch.setattr(hardware, "processor_flags", set)
    for given, used in (([], "muon"), (["--optimizer", "adamw"], "adamw")):
        out = tmp_path / "x.pt"
        train.main(options(text_file, out, "--block-size", "0", *given))
        assert checkpoint.load(out)["asked"]["optimizer"] == used


def test_shapes_and_patches_follow_their_flags(text_file, tmp_path):
    out = tmp_path / "x.pt"
    shape = ["--decoder-layers", "1", "--global-layers", "3", "--ngram-table-size", "99"]
    patches = ["--patch-size", "3", "--max-patch", "6"]
    train.main(options(text_file, out, *shape, *patches))
    saved = checkpoint.load(out)
    config = saved["config"]
    assert (config["decoder_layers"], config["global_layers"]) == (1, 3)
    assert config["ngram_table_size"] == 99 and config["max_patch"] == 6
    assert saved["patcher_config"]["max_patch"] == 6
    assert saved["results"]["mean_patch_held_out"] == pytest.approx(3, abs=0.3)
    with pytest.raises(BadInput, match="--patch-size 9 can't be the mean"):
        train.main(["--patch-size", "9"])


def test_recipes_reach_the_run(text_file, tmp_path):
    out = tmp_path / "x.pt"
    train.main(options(text_file, out, "--recipe", "paper", "--mask-weight", "0.5"))
    asked = checkpoint.load(out)["asked"]
    expected = {**asdict(Recipe(8, **RECIPES["paper"])), "mask_weight": 0.5}
    assert {name: asked[name] for name in expected} == expected


def test_training_learns(trained_file):
    assert checkpoint.load(trained_file)["results"]["validation_bits_per_byte"] < 4.5


def test_documents_close_their_last_patch(trained):
    """Packed training once had patches that span documents, as EOS almost never closed one."""
    _, patcher = trained
    for text in (b"x", b"def f():\n    return 1\n", bytes(range(256))):
        assert patcher.closes(document_ids(text))[-1]


@pytest.mark.parametrize("length", [["--steps", "8"], ["--minutes", "0.02"]])
def test_models_train_in_training_mode(length, text_file, tmp_path, monkeypatch):
    """cuDNN refuses to go back through a GRU in eval mode, which is how checkpoints are loaded.

    Steps that are timed go back, too.
    """
    out, seen = tmp_path / "x.pt", []
    train.main(options(text_file, out))
    real = steps.Task.autocast

    def autocast(task):
        seen.append(task.model.training and task.model.decoder.chain.training)
        return real(task)

    monkeypatch.setattr(steps.Task, "autocast", autocast)
    known = ["--data", str(text_file), "--out", str(tmp_path / "y.pt"), *length]
    train.main([*known, "--init-from", str(out), "--recipe", "chain"])
    assert len(seen) >= 6 and all(seen)


# ---- what it says


def test_no_help_says_a_default_twice(monkeypatch):
    """Guards: "(default: None)" behind flags whose default depends on others."""
    monkeypatch.setenv("COLUMNS", "1000")  # a line for each
    lines = PARSER.format_help().splitlines()
    assert sum("default" in line for line in lines) > 8
    for line in lines:
        assert line.count("default") <= 1 and "default: None" not in line, line
    said = {flag: action.help for action in PARSER._actions for flag in action.option_strings}
    for flag in ("--lr", "--batch", "--length", "--accumulate"):
        assert "the patcher keeps its preset's" in said[flag]


def test_what_is_held_out_and_not_looked_at_is_said(text_file, tmp_path, monkeypatch, capsys):
    """Behind the first million bytes held-out text was in neither part, without a word."""
    data.main([str(text_file)])
    train.main(options(text_file, tmp_path / "x.pt", "--block-size", "0"))
    assert "not looked at" not in capsys.readouterr().out
    monkeypatch.setattr(data, "VALIDATION_BYTES", 1000)
    held_out = int(text_file.stat().st_size * data.VALIDATION_SHARE)
    line = f"held out beyond 1,000 bytes, and not looked at: {held_out - 1000} bytes"
    data.main([str(text_file)])
    assert capsys.readouterr().out.splitlines().count(line) == 1
    train.main(options(text_file, tmp_path / "x.pt", "--block-size", "0"))
    said = capsys.readouterr().out
    assert said.splitlines().count(line) == 1 and "on 1,002 held-out bytes" in said


def test_a_machine_that_does_not_follow_is_said_once(text_file, tmp_path, monkeypatch, capsys):
    """Whoever changes the method trains on, and reads one line about it, not one a validation."""

    def broken(*given):
        raise TypeError("no such layer")

    monkeypatch.setattr("fast.load.prepared", broken)
    monkeypatch.setattr(validation, "BEGINNING", 200)
    train.main(options(text_file, tmp_path / "x.pt", "--block-size", "4", "--save-every", "0"))
    said = capsys.readouterr()
    assert said.err.count("fast/ does not follow the changed model (TypeError") == 1
    assert said.err.count("held-out bytes, sample: ") == 7
    assert said.out.count("the plain machine reads the first 200 bytes of each document alone") == 1
    results = checkpoint.load(tmp_path / "x.pt")["results"]
    assert 0 < results["validation_bits_per_byte"] < 9 and len(results["masked_accuracy"]) == 4
