"""The plain twin of a BLT: a Transformer over bytes of as many parameters, by the same loop.

    python -m scripts.bytelm --data train.txt --held-out valid.txt --minutes 60 --out twin.pt
    python -m scripts.bytelm --measure twin.pt

What patches, latents and n-gram tables are worth shows beside a model that has none of them. This
one is patcher.EntropyModel, a byte LM of our own layers, as wide and deep as makes as many
parameters as the preset's BLT has with its tables and its patcher. Text, crops, optimiser and
schedule are those of train.py. It generates from a cache, with folded weights, as the BLT does.
"""

import time

import torch

import train
from bandwidth import read_prompts
from data import BOS, Crops, DocumentIds, decode, openings_of
from evaluation.likelihood import xz_size
from fast.cache import Cache
from fast.lean import lean_patcher
from fast.load import patcher_from
from generate import Sampling, distribution, draw
from measure.quality import bits_per_byte
from patcher import Patcher, PatcherConfig
from support import checkpoint
from support.flags import COUNT, POSITIVE, PROMPT, add_texts
from support.hardware import choose_device, choose_threads, keep_memory, synchronize
from support.openings import beginning, known_openings
from support.terminal import BadInput, Parser, number, progress, run, visible
from training import distributed
from training.boundaries import Packed
from training.optim import OPTIMIZERS
from training.runs import corpus_behind, defaults, fresh, resumed, save
from training.steps import Task, count_steps

SCRIPT = "-m scripts.bytelm"
# Of each preset what the byte LM is that has as many parameters as its BLT
TWINS = {
    "nano": PatcherConfig(width=128, layers=4, heads=2, hidden=304, window=128),
    "tiny": PatcherConfig(width=256, layers=8, heads=4, hidden=856, window=512),
    "reference": PatcherConfig(width=256, layers=8, heads=4, hidden=816, window=512),
}
ROWS = 512  # that a pass takes in
GENERATED = 256  # bytes behind each opening, to measure its speed


# ---- generation from a cache


class ByteState:
    """The bytes of one text and the keys and values of a byte LM: as a state, as far as it goes."""

    def __init__(self, model, config):
        weight = model.head.weight
        self.model = model
        self.length = 0
        head_width = config.width // config.heads
        shape = config.layers, config.heads, head_width, config.window
        self.cache = Cache(*shape, 0, ROWS, config.rope_base, weight)
        self.device = weight.device

    @torch.inference_mode()
    def extend(self, ids):
        """Take n bytes in -> logits of the byte after each of them (n, V)."""
        logits = []
        for start in range(0, len(ids), ROWS):
            piece = ids[start : start + ROWS]
            view = self.cache.view(self.length, len(piece))
            logits.append(self.model(torch.tensor([piece], device=self.device), view)[0])
            self.length += len(piece)
        return torch.cat(logits)


class Twin:
    """A byte LM ready to generate. Each generation takes a new state."""

    def __init__(self, lm):
        """lm: a Patcher, whose entropy model it is. On a CPU its weights are folded."""
        self.config = lm.config
        weight = lm.model.head.weight
        self.device = weight.device
        folds = weight.device.type == "cpu"
        self.model = lean_patcher(lm).model if folds else lm.model.eval()

    def state(self):
        """A new state, which holds no text yet."""
        return ByteState(self.model, self.config)


@torch.inference_mode()
def write(twin, prompt, count, sampling):
    """`count` bytes behind a prompt (ids without BOS) -> (ids, seconds after the prompt)."""
    state = twin.state()
    logits = state.extend([BOS, *prompt])[-1:]
    synchronize(twin.device)
    began = time.perf_counter()
    ids = []
    while len(ids) < count:
        ids += draw(distribution(logits, sampling), sampling)
        logits = state.extend(ids[-1:])
    synchronize(twin.device)
    return ids, time.perf_counter() - began


def speed_of(twin, prompts, count, temperature, top_p, seeds=(0,)):
    """Bytes a second over several prompts (ids) and seeds, the first run once more to warm up."""
    total = 0.0
    for turn, seed in enumerate([seeds[0], *seeds]):
        for prompt in prompts if turn else prompts[:1]:
            sampling = Sampling(temperature, top_p, ignore_eos=True, seed=seed)
            _, seconds = write(twin, prompt, count, sampling)
            total += seconds if turn else 0.0
    return len(seeds) * len(prompts) * count / total


def settle_threads(twin):
    """On a CPU, let torch use one thread or all, by the time of a byte."""
    if twin.device.type != "cpu":
        return
    state = twin.state()
    state.extend([BOS])
    choose_threads(lambda: state.extend([BOS]))


# ---- what it can do


def measure_twin(twin, held_out, openings):
    """Bits per byte of held-out Texts, beside xz, and bytes a second -> dict."""
    documents = [DocumentIds(text) for text in held_out]
    size = sum(map(len, held_out))
    with progress("validation", size + len(held_out)) as bar:
        bits = bits_per_byte(twin.state, documents, bar.update)
    settle_threads(twin)
    prompts = read_prompts(None, openings)
    return {
        "parameters": sum(p.numel() for p in twin.model.parameters()),
        "bytes": size,
        "validation_bits_per_byte": bits,
        "xz_bits_per_byte": 8 * xz_size(held_out) / size,
        "bytes_per_second": speed_of(twin, prompts, GENERATED, 0.0, 1.0),
        "bytes_per_second_sampled": speed_of(twin, prompts, GENERATED, 0.8, 0.95),
    }


def print_measured(results):
    """What `measure_twin` found, in words."""
    bits = results["validation_bits_per_byte"]
    beside = f"xz -6: {results['xz_bits_per_byte']:.3f}"
    print(f"validation: {bits:.3f} bits per byte on {results['bytes']:,} held-out bytes ({beside})")
    greedy = f"{results['bytes_per_second']:.0f} bytes/s greedy"
    sampled = f"{results['bytes_per_second_sampled']:.0f} at temperature 0.8, top-p 0.95"
    print(f"generation from its cache: {greedy}, {sampled}")


# ---- training


def begin(options):
    """The run that the flags ask for: one of train.py's that trains its patcher alone, a large one.

    A file of it is that of such a run, so everything that is kept and resumed there is here.
    """
    out = options.out or options.resume or "twin.pt"
    texts = [*(options.data or ()), *(options.held_out or ())]
    checkpoint.check_target(out, texts)
    device = distributed.join(choose_device(options.device), False)
    if options.resume:
        saved = checkpoint.load(options.resume)
        if saved.get("asked", {}).get("script") != SCRIPT:
            raise BadInput(f"{options.resume} is no run of this script: give a file that it wrote")
        given = [name for name in ASKED if getattr(options, name) is not None]
        if given:
            flag = "--" + given[0].replace("_", "-")
            raise BadInput(f"{flag} can't change on --resume: leave it out")
        return resumed(out, device, saved)
    preset = options.preset or "reference"
    asked = {**defaults(preset, "ours", options.optimizer), "script": SCRIPT}
    # There are no blocks.
    asked |= {"block_size": 0, "chain_width": 0}
    for name in ASKED:
        if getattr(options, name) is not None:
            asked[name] = getattr(options, name)
    made = fresh(asked, out, device)
    torch.manual_seed(asked["seed"])
    made.patcher = Patcher(TWINS[preset]).to(device)
    made.patcher.model.init_weights()
    return made


def fit(made):
    """Train the byte LM of a run, by the loop and the settings of a model."""
    held_out = made.held_out_texts
    text = Packed(made.training_texts)
    model = made.patcher.model
    s = made.settings
    loss = distributed.spread(model, train.patcher_loss)
    crops = Crops(text, None, s.length, made.asked["seed"])
    task = Task("byte LM", model, loss, crops, s, made.dtype)
    made.steps = made.steps or made.asked["steps"] or count_steps(task, made.seconds_left())
    speed = train.fit(made, task)
    trained = made.step * s.length * s.batch * s.accumulate
    made.results["trained_bytes"] = trained
    said = f"trained {made.step} steps on {trained:,} bytes"
    print(said if speed is None else f"{said} at {speed:,.0f} bytes/s")
    if distributed.rank():
        return
    twin = Twin(made.patcher)
    made.results |= measure_twin(twin, held_out, made.openings)
    save(made, wait=True)
    print_measured(made.results)
    prompt = beginning(made.openings, PROMPT)
    ids, _ = write(twin, [*DocumentIds(prompt)[1:-1].tolist()], 120, Sampling(0.8, 0.95))
    print(f"\n{visible(prompt + decode(ids))}\n\nwrote {made.out}")


# ---- the command

ASKED = "preset data separator held_out minutes steps length batch lr optimizer seed dtype".split()


def options_from(argv):
    parser = Parser(prog="scripts.bytelm", description="Train or measure a BLT's plain twin.")
    add = parser.add_argument
    add("--data", nargs="+", metavar="PATH", help="files, folders (default: Python's library)")
    add_texts(parser)
    add("--preset", choices=TWINS, help="whose twin (default: reference)")
    add("--minutes", type=POSITIVE, help="for everything (default: 8.5)")
    add("--steps", type=COUNT, help="instead")
    add("--length", type=number(int, 8, 1 << 20), help="bytes in a crop (default: the preset's)")
    add("--batch", type=number(int, 1, 1 << 16), help="crops a step (default: the preset's)")
    add("--lr", type=number(float, 0, 10, above=True), help="its peak (default: the preset's)")
    add("--optimizer", choices=OPTIMIZERS, help="default: the preset's")
    add("--seed", type=number(int, 0, 2**31), help="of weights and of the order of the text")
    add("--dtype", choices=("auto", "float32", "bfloat16"), help="of the arithmetic")
    add("--device", default="auto", help="cpu, cuda or mps (default: the best there is)")
    add("--out", help="to write (default: twin.pt, or the one resumed)")
    either = parser.add_mutually_exclusive_group().add_argument
    either("--resume", metavar="FILE", help="go on with this interrupted run")
    either("--measure", metavar="FILE", help="measure a trained one on its held-out text instead")
    return parser.parse_args(argv)


def load_twin(path, device="cpu"):
    """The Twin of a file that this script wrote, and what is in the file."""
    saved = checkpoint.load(path)
    if saved.get("asked", {}).get("script") != SCRIPT:
        raise BadInput(f"{path} holds no byte LM: give a file that `python {SCRIPT}` wrote")
    return Twin(patcher_from(saved).to(device)), saved


def main(argv=None):
    options = options_from(argv)
    if options.measure:
        twin, saved = load_twin(options.measure, choose_device(options.device))
        _, held_out = corpus_behind(saved["asked"]).split()
        print_measured(measure_twin(twin, held_out, known_openings(saved)))
        return
    keep_memory()
    made = begin(options)
    made.training_texts, made.held_out_texts = made.corpus.split()
    made.openings = openings_of(made.held_out_texts)
    count = made.patcher.size()
    print(made.corpus.describe())
    print(f"byte LM of {count / 1e6:.2f} M parameters; {made.dtype} on {made.device}")
    fit(made)


if __name__ == "__main__":
    run(main, "scripts.bytelm")
