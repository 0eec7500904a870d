"""What a GPU does with this project, in one table for docs/RESULTS.md: is it right, and how fast?

    python -m scripts.gpu                 # on a machine with a GPU, a few minutes
    python -m scripts.gpu --device cpu --presets nano --steps 2 --bytes 8     # the same in small
    python -m scripts.gpu --memory        # what training each preset needs: anywhere, in seconds

Letters in shape comments: B batch, N byte positions.
"""

import functools
import time
from dataclasses import replace
from typing import NamedTuple

import torch

from bandwidth import read_prompts, settings_of
from data import BOS, VOCAB, Crops, default_corpus, encode
from diffusion import losses_of, make_blocks
from fast.load import checked, load_model, prepared
from fast.patching import calibrate
from generate import Prefix, Sampling
from measure.quality import near_tie
from model import BLT
from patcher import Patcher, fill_patches
from speculate import MODES, run_mode
from support import checkpoint, hardware
from support.presets import RECIPES, Recipe
from support.terminal import BadInput, Parser, number, run, table
from train import model_loss
from training import distributed
from training.optim import make_optimizer
from training.presets import PRESETS
from training.steps import Task, trial_step

# How each preset is timed: crops a step, and the bytes of a crop
SHAPES = {"nano": (4, 128), "tiny": (64, 256), "reference": (64, 512), "small": (64, 512)}
# Largest difference of gradients, over their size, that is rounding
APART = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


def random_pair(name, block_size=8, chain_width=16):
    """A BLT of a preset's shape and its Patcher, of random weights, in float32 on the CPU."""
    torch.manual_seed(0)
    preset = PRESETS[name]
    shape = {"block_size": block_size, "chain_width": chain_width}
    model = BLT(replace(preset.model, **shape)).init_weights().eval()
    torch.nn.init.normal_(model.encoder.hashes.weight, std=0.1)
    patcher = Patcher(preset.patcher).eval()
    patcher.model.init_weights()
    calibrate(patcher, [text_ids(2000)])
    return model, patcher


def text_ids(n):
    """BOS and the first n - 1 bytes of the default corpus, (n,)."""
    text = b"".join(bytes(data) for _, data in default_corpus().documents[:20])
    return torch.tensor([BOS, *encode(text[: n - 1])])


# ---- is it right?


@torch.inference_mode()
def cached_as_plain(device):
    """-> the largest difference of logits, fast machine against plain one in float64."""
    model, patcher = random_pair("nano")
    model = model.double().to(device)
    patcher = patcher.double().to(device)
    ids = text_ids(120).tolist()
    expected = Prefix(model, patcher).extend(ids)
    state = prepared(model, patcher).state()
    rows = []
    while state.length < len(ids):  # in pieces of 1 to 11 bytes
        start = state.length
        rows.append(state.extend(ids[start : start + 1 + start % 11]))
    return (torch.cat(rows) - expected).abs().max().item()


def gradients(device, dtype, recipe):
    """Of one batch with blocks, all in one: on a GPU through FlexAttention, else densely."""
    model, _ = random_pair("nano", recipe.block_size, chain_width=0)
    model.to(device)
    generator = torch.Generator().manual_seed(0)
    # (B, N + 1)
    ids = torch.randint(4, VOCAB, (4, 301), generator=generator)
    asked = torch.rand(4, 300, generator=generator) < 0.25
    closes = torch.stack([fill_patches(row, 8) for row in asked]).to(device)
    ids = ids.to(device)
    generators = [torch.Generator().manual_seed(b) for b in range(4)]
    blocks = make_blocks(ids, closes, recipe, generators)
    with torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32):
        loss = losses_of(model, ids, closes, blocks, recipe).total(recipe, closes.numel())
    loss.backward()
    return torch.cat([p.grad.flatten().float().cpu() for p in model.parameters()])


def correctness(device):
    """-> rows of the table: what was compared, how far it is apart, and a verdict."""
    if torch.device(device).type != "mps":  # it has no float64
        apart = cached_as_plain(device)
        yield "cached = plain, float64", f"{apart:.1e} apart", apart < 1e-8
    for name, dtype in (
        ("ours", torch.float32),
        ("paper", torch.float32),
        ("ours", torch.bfloat16),
    ):
        recipe = Recipe(**{**RECIPES[name], "block_size": 8, "after": 0.0})
        expected = gradients("cpu", torch.float32, recipe)
        got = gradients(device, dtype, recipe)
        apart = ((got - expected).norm() / expected.norm()).item()
        what = f"gradients = the CPU's, recipe {name}, {str(dtype).removeprefix('torch.')}"
        yield what, f"{apart:.1e} apart", apart < APART[dtype]


# ---- how fast does it train?


class Held(NamedTuple):
    """Bytes that training a model holds, whatever the batch is."""

    weights: int
    gradients: int
    optimizer: int

    def __str__(self):
        said = f"{sum(self) / 1e9:.2f} GB held: weights {self.weights / 1e9:.2f}"
        return f"{said}, gradients {self.gradients / 1e9:.2f}, optimizer {self.optimizer / 1e9:.2f}"


def held(model, settings):
    """What training a model by TrainingSettings holds; it may be one of the meta device.

    All is of the weights' format. AdamW remembers two numbers of each weight, Muon one.
    """
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    remembered = 2 * weights
    if settings.optimizer == "muon":
        muon = make_optimizer(model, settings).parts["muon"]
        matrices = [p for group in muon.param_groups for p in group["params"]]
        remembered -= sum(p.numel() * p.element_size() for p in matrices)
    return Held(weights, weights, remembered)


def held_by_presets():
    """-> rows of the table: a preset, what it holds by itself and by AdamW, and its activations."""
    for name, preset in PRESETS.items():
        with torch.device("meta"):
            model = BLT(replace(preset.model, block_size=8))
        said = "not counted"  # too large for what this is run on
        if name in SHAPES:
            batch, length = SHAPES[name]
            each = kept_by_a_crop(name)
            said = f"{each / 1e6:.0f} MB a crop of {length} bytes, "
            said += f"{batch * each / 1e9:.2f} GB for {batch}"
        for optimizer in dict.fromkeys([preset.training.optimizer, "adamw"]):
            settings = preset.training.trained_by(optimizer)
            yield f"train {name}, {optimizer}", str(held(model, settings)), said


def kept_by_a_crop(name, K=8):
    """Bytes that a forward pass keeps for the backward one, for each crop more, blocks included.

    Counted on the CPU in float32: bfloat16 takes less, and GPUs keep tiles of masks alone.
    """

    def kept(batch):
        task = task_of("cpu", name, K, batch)
        sizes = {}

        def count(x):
            storage = x.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            loss, _ = task.loss(*task.batch(0, 0), 1.0)
        assert loss.requires_grad  # so all that it keeps is still there
        return sum(sizes.values())

    # What does not depend on the batch, as weights, falls out.
    return (kept(4) - kept(2)) // 2


def training(device, presets, steps, batch=None):
    """-> rows of the table: a preset and its batch, and what a step takes.

    batch: crops a step, if not those of SHAPES.
    """
    for name in presets:
        usual, length = SHAPES[name]
        crops = batch or usual
        for K in (0, 8):
            yield (
                f"train {name}, {crops} x {length} bytes, K = {K}",
                step_time(device, name, K, steps, crops),
            )


def task_of(device, name, K, batch):
    """A preset's model and random patches of the default corpus, as training has them -> Task."""
    length = SHAPES[name][1]
    model, _ = random_pair(name, K, chain_width=0)
    model.to(device)
    ids = text_ids(400_000)
    closes = fill_patches(torch.rand(len(ids), generator=torch.Generator().manual_seed(0)) < 0.2, 8)
    recipe = Recipe(**{**RECIPES["ours"], "block_size": K, "after": 0.0})
    loss = distributed.spread(model, functools.partial(model_loss, recipe=recipe))
    s = replace(PRESETS[name].training, batch=batch, length=length, accumulate=1)
    dtype = hardware.choose_dtype("auto", str(device))
    return Task("model", model.train(), loss, Crops(ids, closes, length, 0), s, dtype)


def step_time(device, name, K, steps, batch):
    """The median of some steps, and the memory that they take, in words."""
    task = task_of(device, name, K, batch)
    optimizer = make_optimizer(task.model, task.settings)
    on_cuda = torch.device(device).type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    times = []
    for step in range(steps + 2):  # the first ones warm up
        began = time.perf_counter()
        trial_step(task, optimizer, step, 1.0)
        hardware.synchronize(device)
        times.append(time.perf_counter() - began)
    median = sorted(times[2:])[steps // 2]
    speed = batch * task.settings.length / median
    said = f"{1e3 * median:.1f} ms a step, {speed / 1e3:.0f} kB/s"
    known = held(task.model, task.settings)
    if not on_cuda:
        return f"{said}; {known}; activations are not measured here"
    most = torch.cuda.max_memory_allocated()
    return f"{said}; at most {most / 1e9:.2f} GB, {known}, the rest activations"


# ---- how fast does it write?


def writing(device, path, length):
    """-> rows of the table: every mode of a model, and whether verified ones write plain bytes."""
    model, patcher = load_model(path)
    machine = checked(model.to(device), patcher.to(device))
    prompt = read_prompts(None)[0]
    plain = None
    for mode, name, drafting in settings_of(machine.model):
        sampling = Sampling(ignore_eos=True)
        for _ in range(2):  # the first warms up
            state = machine.state()
            made = run_mode(mode, state, prompt, length, drafting, sampling=sampling)
        plain = plain or made
        right = True
        if MODES[mode].verified and made.ids != plain.ids:
            right = near_tie(machine, prompt, plain.ids, made.ids, sampling)
        yield name, f"{made.bytes_per_second:.0f} bytes/s", right


def options_from(argv):
    """The command line."""
    parser = Parser(prog="scripts.gpu", description="Correctness and speed on a GPU, in one table.")
    add = parser.add_argument
    add("--device", default="cuda", help="cpu runs the same without a GPU (default: cuda)")
    add("--checkpoint", metavar="FILE", help="a model that writes (default: the one that is there)")
    add("--presets", nargs="+", choices=SHAPES, default=list(SHAPES), help="those that train")
    add("--steps", type=number(int, 1, 10**6), default=30, help="timed of each training")
    add("--batch", type=number(int, 1, 1 << 16), help="crops a step (default: by the preset)")
    add("--memory", action="store_true", help="say what all presets hold in training, and end")
    add("--bytes", type=number(int, 1, 10**6), default=256, help="that each mode writes")
    return parser.parse_args(argv)


def main(argv=None):
    """Raises BadInput where there is no GPU, or the CPU is not asked for."""
    options = options_from(argv)
    if options.memory:
        rows = list(held_by_presets())
        print(table(["what", "held", "activations, float32"], rows))
        return
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise BadInput("there is no GPU here: --device cpu runs the same in small")
    device = hardware.choose_device(options.device)
    path = checkpoint.find(options.checkpoint)
    rows = []
    wrong = []

    def tell(what, said, right=None):
        verdict = {True: "right", False: "WRONG", None: ""}[right]
        rows.append([what, said, verdict])
        if right is False:
            wrong.append(what)

    for row in correctness(device):
        tell(*row)
    for row in training(device, options.presets, options.steps, options.batch):
        tell(*row)
    for row in writing(device, path, options.bytes):
        tell(*row)
    name = torch.cuda.get_device_name() if device.startswith("cuda") else device
    print(f"{name}, torch {torch.__version__}\n")
    print(table(["what", "measured", ""], rows))
    if wrong:
        raise BadInput(f"not as it should be: {'; '.join(wrong)}")


if __name__ == "__main__":
    run(main, "scripts.gpu")
