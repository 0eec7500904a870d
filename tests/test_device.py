"""On a device of its own (tests/device.py) all runs, and nothing there is mixed with the host.

So what a GPU would refuse, it refuses here; and what makes a GPU wait is counted.
"""

import functools
from dataclasses import replace

import pytest
import torch
from conftest import make_models, random_ids
from device import Device, Held, Mixed

import bandwidth
import train
from fast.fixed import FixedStream
from fast.load import Machine, load, prepared
from fast.patching import closes_of, entropies_of
from generate import Prefix, Sampling
from generate import generate as plain_blt
from measure.passes import PassSeconds, pass_seconds
from measure.quality import bits_per_byte, identical, masked_accuracy, near_tie, output_bits
from measure.rounds import PaperPrefix
from model import BLT
from speculate import Drafting, run_mode
from support import checkpoint
from support.generation import Watch
from support.presets import RECIPES, Recipe
from training.optim import make_optimizer
from training.presets import PRESETS
from training.steps import Task, count_steps

pytestmark = pytest.mark.more

KINDS = ["cuda", "mps"]
PROMPT = list(b"a cab fed a cab fed a c")
BYTES = 8


@pytest.fixture(params=KINDS)
def device(request):
    with Device(request.param) as device:
        yield device


@pytest.fixture
def cuda():
    with Device("cuda") as device:
        yield device


# ---- the device itself


def test_it_refuses_what_a_gpu_refuses(device):
    here = torch.ones(3, device=device.place.type)
    assert isinstance(here, Held) and here.device == device.place
    there = torch.ones(3)
    refused = [
        lambda: here + there,
        lambda: torch.cat([there, here]),
        lambda: there[here.long()],
        lambda: here @ there,
        lambda: here.numpy(),
        lambda: torch.nn.functional.embedding(there.long(), here[None]),
        lambda: torch.rand(2, device=here.device, generator=torch.Generator()),
    ]
    for work in refused:
        with pytest.raises(Mixed):
            work()
    taken = [
        lambda: here + torch.tensor(1.0),
        lambda: here[torch.tensor([0])],
        lambda: here.copy_(there),
        lambda: here + there.to(here.device),
        lambda: torch.arange(3, device=here.device) + here.long(),
    ]
    for work in taken:
        assert isinstance(work(), Held)


def test_mps_has_no_float64():
    with Device("mps") as device:
        x = torch.ones(2, device="mps")
        for work in (x.double, lambda: torch.zeros(2, device="mps", dtype=torch.float64)):
            with pytest.raises(Mixed, match="MPS has no float64"):
                work()
        assert x.cpu().double().dtype == torch.float64 and device.waits == 1


def test_it_counts_kernels_and_waits(cuda):
    x = torch.arange(6, device="cuda").view(2, 3).t()
    assert (cuda.kernels, cuda.waits) == (1, 0)
    y = (x + 1) * 2
    assert (cuda.kernels, cuda.waits) == (3, 0)
    y.tolist(), y.sum().item(), y[y > 2], y.to("cpu"), torch.tensor([1], device="cuda")
    assert cuda.waits == 5
    torch.ones(3).pin_memory().to("cuda", non_blocking=True)
    assert cuda.waits == 5
    torch.ones(3).to("cuda", non_blocking=True)  # what is not pinned has to be
    assert cuda.waits == 6


def test_a_captured_function_must_do_the_same_again(cuda):
    x = torch.zeros(4, device="cuda")
    numbers = iter(range(9))
    _, again = cuda.captured(lambda: x + 1)
    launches = cuda.launches
    x += 1
    assert again().tolist() == [2.0] * 4 and cuda.launches == launches + 2
    _, again = cuda.captured(lambda: x + next(numbers))
    with pytest.raises(Mixed, match="a graph would repeat"):
        again()
    with pytest.raises(Mixed, match="waits .* in a graph"):
        cuda.captured(lambda: x.sum().item())


# ---- training


def nano_task(device, recipe, optimizer, dtype=torch.float32, shape=None, **fields):
    """A nano model on a device and what it is trained on. fields: of the recipe; shape: others."""
    torch.manual_seed(0)
    recipe = Recipe(**{**RECIPES[recipe], "after": 0.0, **fields})
    known = {"block_size": recipe.block_size, "chain_width": recipe.chain_width}
    shape = {**known, **(shape or {})}
    model = BLT(replace(PRESETS["nano"].model, **shape)).init_weights().to(device)
    if recipe.chain_only:
        model.requires_grad_(False).decoder.chain.requires_grad_(True)
    s = replace(PRESETS["nano"].training, batch=2, length=64, optimizer=optimizer)
    text = random_ids(4000)
    closes = torch.rand(len(text), generator=torch.Generator().manual_seed(0)) < 0.3
    closes[::6] = True
    crops = train.Crops(text, closes, s.length, 0)
    # As checkpoints are loaded: training has to ask for training mode
    model.eval()
    loss = functools.partial(train.model_loss, recipe=recipe)
    return Task("model", model, train.distributed.spread(model, loss), crops, s, dtype)


def trained(task, steps=2):
    """The task's parameters behind some steps of train.fit, on the CPU."""

    class run:
        step = 0
        optimizer = None
        is_due = False

    run.steps = steps + 1

    class Enough(Exception):
        pass

    def stop(*_, **__):
        raise Enough

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Enough):
        patch.setattr(train, "save", stop)
        run.steps = steps
        train.fit(run, task)
    return [p.detach().cpu() for p in task.model.parameters()]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_training_ends_there_as_on_the_cpu(recipe, optimizer, device):
    there = trained(nano_task(device.place, recipe, optimizer))
    with_cpu = nano_task("cpu", recipe, optimizer)
    for one, other in zip(there, trained(with_cpu), strict=True):
        assert torch.isfinite(one).all()
        # Muon's products are of bfloat16 on the GPU that is emulated.
        assert (one - other).norm() <= 0.02 * (1 + other.norm())


def test_training_in_bfloat16_keeps_the_gru_in_float32(cuda):
    """cuDNN's GRU would run in float16 there, whose gradients vanish."""
    assert trained(nano_task("cuda", "chain", "muon", dtype=torch.bfloat16))


def test_steps_of_a_chained_head_are_counted_there(cuda):
    """A loaded model is in eval mode, and they are timed before the loop has changed that."""
    assert count_steps(nano_task("cuda", "chain", "adamw"), 0.0, after=0.0) == 1


def test_training_from_the_command_line(cuda, corpus_file, tmp_path, capsys):
    """Patcher, boundaries, looks, validation and a chained head that is added; then resumed."""
    path = tmp_path / "nano.pt"
    known = ["--device", "cuda", "--data", str(corpus_file), "--steps", "2"]
    short = ["--length", "64", "--batch", "2"]
    train.main([*known, *short, "--preset", "nano", "--save-every", "0", "--out", str(path)])
    assert "validation" in capsys.readouterr().out
    assert all(not isinstance(x, Held) for x in checkpoint.load(path)["model"].values())
    more = ["--init-from", str(path), "--recipe", "chain", "--out", str(tmp_path / "chain.pt")]
    train.main([*known, *short, *more])
    train.main(["--resume", str(tmp_path / "chain.pt"), "--device", "cuda"])


DRAFTS = {"draft_weight": 0.5}
ANY_LENGTH = {"shape": {"max_patch": 0, "byte_states": True}}


@pytest.mark.parametrize(
    "recipe, fields, waits",
    [
        ("ours", {"block_size": 0}, 2),
        ("ours", {}, 2),
        ("ours", {**DRAFTS, "chain_width": 16}, 2),
        ("paper", {}, 3),
        ("chain", {}, 2),
        ("chain", DRAFTS, 2),
        ("ours", ANY_LENGTH, 3),
    ],
)
def test_a_training_step_waits_seldom(recipe, fields, waits, cuda):
    """Once for loss and norm, once for the number of patches, which shapes follow from.

    "paper" has as many blocks as patches; patches of any length have a longest one. Guards: a wait
    whenever cells were cut out of blocks, for whether these begin with a draft row.
    """
    task = nano_task("cuda", recipe, "adamw", **fields)
    trained(task, 1)
    cuda.reset()
    trained(task, 1)
    of_project = {line: n for line, n in cuda.lines.items() if line[0][0] != "n"}
    assert sum(of_project.values()) == waits, of_project


def test_muon_takes_all_matrices_of_a_shape_at_once(cuda):
    """Matrix by matrix its products were more than half of a step's kernels."""
    task = nano_task("cuda", "ours", "muon")
    optimizer = make_optimizer(task.model, task.settings)
    assert optimizer.parts["muon"].dtype == torch.bfloat16  # the hardware's, not what was timed
    matrices = optimizer.parts["muon"].param_groups[0]["params"]
    cuda.reset()
    trained(task, 1)
    # Five iterations of two such products
    assert cuda.operations["baddbmm"] == 10 * len({matrix.shape for matrix in matrices})


def test_batches_are_made_ahead_and_in_order(cuda):
    """Each is what it would be alone, whichever was asked for before."""
    ahead = nano_task("cuda", "paper", "adamw")
    alone = nano_task("cpu", "paper", "adamw")
    for step in (0, 1, 2, 7, 3):
        ids, closes, generators = ahead.batch(step, 0)
        expected = alone.batch(step, 0)
        assert torch.equal(ids.cpu(), expected[0]) and torch.equal(closes.cpu(), expected[1])
        for one, other in zip(generators, expected[2]):
            assert torch.equal(one.get_state(), other.get_state())


# ---- generation and what is measured of it


def machines(device, **changes):
    """On the device, small models with a chained head: the fast machine and the plain ones."""
    model, patcher = make_models(0, block_size=8, chain_width=16, **changes)
    model = model.float().to(device)
    patcher = patcher.float().to(device)
    fast = prepared(model, patcher)
    plain = [Machine(model, patcher, kind) for kind in (Prefix, PaperPrefix)]
    return fast, *plain


RUNS = [("blt", {}), ("blts", {}), ("blts", {"draft_size": 13, "alpha": 0.1}), ("lookup", {})]
RUNS += [("bltd", {"unmask": rule}) for rule in ("one-step", "confidence", "entropy", "chained")]
RUNS += [("bltdv", {"unmask": rule, "copy": 0}) for rule in ("one-step", "confidence", "chained")]
RUNS += [("bltdv", {})]


@pytest.mark.parametrize("mode, fields", RUNS)
def test_every_mode_writes_there_what_it_writes_on_the_cpu(mode, fields, device):
    written = []
    for place in ("cpu", device.place):
        fast, plain, paper = machines(place)
        # The one device also runs the plain state, the other the paper's rounds.
        other = paper if device.place.type == "mps" and mode not in ("blt", "bltd") else plain
        for machine in (fast, other):
            sampling = Sampling(0.8, 0.95, ignore_eos=True)
            run = mode, machine.state(), PROMPT, BYTES, Drafting(**fields)
            written.append(run_mode(*run, sampling=sampling).ids)
    on_cpu, there = written[:2], written[2:]
    assert there == on_cpu and len(there[0]) == BYTES


def test_what_is_measured_of_a_model_runs_there(device):
    fast, plain, _ = machines(device.place)
    # Folded weights are more kernels on a GPU, which has RMSNorm as one.
    assert fast.model.encoder is plain.model.encoder and fast.patcher is plain.patcher
    assert isinstance(fast.state(), FixedStream) == (device.place.type == "cuda")
    text = random_ids(150)
    bits = [bits_per_byte(machine.state, [text]) for machine in (fast, plain)]
    assert bits[0] == pytest.approx(bits[1], rel=1e-4)
    right, _ = masked_accuracy(fast, [text], 8)
    assert len(right) == 8
    made = run_mode("blt", plain.state(), PROMPT, BYTES)
    options = Sampling(ignore_eos=True)
    assert near_tie(plain, PROMPT, made.ids, made.ids[:3] + [200], Sampling()) in (True, False)
    assert output_bits(fast, PROMPT, made.ids) > 0
    other = replace(made, ids=made.ids[:3] + [200])
    assert identical("blts", fast, PROMPT, made, other, options) in ("tie", False)
    closes = closes_of(plain.patcher, [text, text[:20]])
    assert [
        x.cpu().equal(plain.patcher.closes(text.to(device.place)).cpu()[: len(x)]) for x in closes
    ]


def test_single_passes_are_timed_there(device, monkeypatch):
    """Each until it has ended: 5 times in all for 2 that count."""
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    fast, _, _ = machines(device.place)
    times = pass_seconds(fast, {1, 9}, patches=(1, 2), context=60, repeats=2)
    assert set(times.decoder) == {1, 9} and times.chain
    parts = (times.decoder, times.patcher, times.encoder_global, times.chain)
    assert waited == [device.place] * 5 * sum(map(len, parts))


def test_passes_timed_alone_are_no_ceiling_of_captured_graphs(device, monkeypatch):
    """A round there is a few graphs; elsewhere it is its passes, one behind the other."""
    seconds = PassSeconds({1: 0.1}, {1: 0.1}, {1: 0.1}, 0.0, {1: 0.1})
    monkeypatch.setattr(bandwidth, "pass_seconds", lambda *_: seconds)
    fast, _, _ = machines(device.place)
    settings = [bandwidth.Setting("blt", "", Drafting())]
    made = bandwidth.measure(fast, [PROMPT], 4, settings, Sampling)
    [row], times = bandwidth.compare(fast, [PROMPT], settings, made)
    assert times is seconds
    assert (row["of_ceiling"] is None) == (device.place.type == "cuda")


def test_the_clock_starts_behind_the_prefill(device, monkeypatch):
    """Its passes are queued, and a GPU would still work on them."""
    happened = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda _: happened.append("waited"))

    class Begins(Watch):
        def begin(self, state):
            happened.append("began")

    _, plain, _ = machines(device.place)
    plain_blt(plain.state(), PROMPT, 1, watch=Begins())
    assert happened == ["waited", "began"]


def test_patches_of_many_documents_are_found_in_few_passes(cuda):
    """Guards: 0.3 MB of short stories a second on an H100, a document at a time."""
    _, patcher = make_models(0)
    patcher.float().to("cuda")
    passes = []
    patcher.model.register_forward_hook(lambda *_: passes.append(1))
    assert len(entropies_of(patcher, [random_ids(60, seed) for seed in range(200)])) == 200
    assert len(passes) == 1


def test_a_checkpoint_is_checked_there(trained_file, device, capsys):
    """fast.load.checked compares both machines on the device."""
    machine = load(trained_file, device.place)
    assert machine.kind is not Prefix, capsys.readouterr().err
    # Its passes looked through other windows: nobody could use them again.
    assert not machine.model.idle


def test_passes_of_another_configuration_are_not_taken(cuda):
    """fast.load.checked looks through other windows for a while; and buffers are used again."""
    fast, _, _ = machines("cuda")
    first = fast.state()
    expected = first.extend(random_ids(30).tolist()).cpu()
    passes = first.passes
    second = fast.state()
    assert second.passes is not passes
    del first
    assert fast.state().passes is passes
    fast.model.config.window -= 1
    assert fast.state().passes is not passes
    fast.model.config.window += 1
    fast.patcher.config.threshold += 1
    assert fast.state().passes is not passes
    fast.patcher.config.threshold -= 1
    again = fast.state()
    assert again.passes is passes
    assert torch.equal(again.extend(random_ids(30).tolist()).cpu(), expected)


class Begin(Watch):
    """Counts from the end of the prefill."""

    def __init__(self, device):
        self.device = device

    def begin(self, state):
        self.device.reset()


@pytest.mark.parametrize(
    "mode, fields, waits, launches, kernels",
    [
        ("blt", {}, 2, 7, 135),
        ("blts", {}, 1, 8, 760),
        ("lookup", {}, 2, 7, 145),
        ("bltdv", {"unmask": "one-step", "copy": 0}, 2, 7, 380),
        ("bltdv", {"unmask": "chained", "copy": 0}, 1, 12, 590),
    ],
)
@pytest.mark.parametrize("temperature, top_p", [(0.0, 1.0), (0.8, 0.95)])
def test_a_round_waits_and_launches_seldom(
    mode, fields, waits, launches, kernels, temperature, top_p, cuda
):
    """Once for a draft and the logits that verify it; what is known to the host, or is drawn there,
    once more. Passes are captured graphs. (A round of lookup mostly drafts nothing here.)
    """
    fast, _, _ = machines("cuda")
    for _ in range(2):
        sampling = Sampling(temperature, top_p, ignore_eos=True)
        how = {"sampling": sampling, "watch": Begin(cuda)}
        made = run_mode(mode, fast.state(), PROMPT, 24, Drafting(**fields), **how)
    rounds = made.counters.rounds or made.new_bytes
    each = [round(n / rounds, 1) for n in (cuda.waits, cuda.launches, cuda.kernels)]
    print(f"\n{mode} {fields}: {each} waits, launches, kernels a round")  # seen with -s
    assert cuda.waits <= waits * rounds + 1
    assert cuda.launches <= launches * rounds
    assert cuda.kernels <= kernels * rounds
