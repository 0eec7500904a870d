"""Speed: two fast paths beside their slow twins in one run, and single passes at a preset's shapes.

    python -m scripts.benchmark stream                   # a cached Stream, and the prefix anew
    python -m scripts.benchmark stream --official        # the same of transformers' BLT and ours
    python -m scripts.benchmark train                    # a training step with blocks, and without
    python -m scripts.benchmark passes --preset blt-1b   # passes, and the paper's tables in seconds

No test is timed; this is what is.
"""

import functools
import json
import os
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from bandwidth import pass_rows, passes_of
from data import BOS, OFFSET, VOCAB, Crops, default_corpus, encode
from diffusion import Recipe
from evaluation.plots import METHODS
from generate import generate_uncached
from model import BLT, PRESETS, load_model
from patcher import Patcher, PatcherConfig, calibrate
from scripts import convert
from speculate import MODES
from stream import Counters, Stream
from support import checkpoint, machine
from support.optim import make_optimizer
from support.paper import read_paper, row_name
from support.passes import pass_seconds
from support.terminal import BadInput, Parser, number, package, print_rows, run, table_of
from train import Task, model_loss, train_step

PAPER_NAMES = {"blt-1b": "1B", "blt-3b": "3B"}  # what the paper's tables call these presets
PAPER_MODES = {name: mode for mode, name in METHODS.items()}

# Decoder passes to time, of the tables' K and k: plain bytes, blocks, blocks behind one byte or
# behind another block.
DECODER_ROWS = sorted({1} | {rows for K in (4, 8, 16) for rows in (K, K + 1, 2 * K)})
# Patches to time a pass for: 17 bytes of the paper's shortest mean patch (1.15 bytes) are 14.7.
PATCHES = (1, 2, 4, 8, 16)


STREAM_COLUMNS = """
context d context, bytes | cached .2f cached, ms/byte | anew .1f anew, ms/byte |
faster .0f times faster | against .2f against the first
"""


def text_ids(n):
    """BOS and the first n - 1 bytes of the default corpus."""
    return [BOS, *encode(b"".join(data for _, data in default_corpus().documents)[: n - 1])]


@torch.inference_mode()
def stream_against_prefix(model, patcher, anew, contexts, bytes_each=128):
    """Milliseconds a byte of teacher-forced text, from caches and of anew(ids) -> dicts."""
    ids, rows = text_ids(max(contexts) + bytes_each), []
    for context in (contexts[0], *contexts):  # the first time warms up
        stream = Stream(model, patcher)
        stream.prefill(ids[:context])
        began = time.perf_counter()
        for i in range(context, context + bytes_each):
            stream.extend(ids[i : i + 1])
        cached = 1000 * (time.perf_counter() - began) / bytes_each
        whole = 1000 * machine.median_seconds(lambda: anew(ids[:context]), 5)
        row = {"context": context, "cached": cached, "anew": whole, "faster": whole / cached}
        rows.append(row)
    return [{**row, "against": row["cached"] / rows[1]["cached"]} for row in rows[1:]]


def official(text):
    """-> a random BLT of transformers with patches of 4.5 bytes in text (ids), and ours of it."""
    transformers = package("transformers", "scripts.benchmark stream --official")
    sizes = json.loads(Path(__file__).with_name("official.json").read_text())
    theirs = transformers.BltForCausalLM(transformers.BltConfig(**sizes)).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        convert.main([folder, f"{folder}/ours.pt"])
        model, patcher = load_model(f"{folder}/ours.pt")
    calibrate(patcher, [torch.tensor(text)], 4.5)
    theirs.config.patching_threshold = patcher.config.threshold
    return theirs, model, patcher


def benchmark_stream(options):
    """Print what caches save at growing contexts, over the same model without or transformers'."""
    contexts, theirs = (512, 2048, 8192), None
    if options.official:
        contexts = (64, 256, 512, 1024, 2048)
        theirs, model, patcher = official(text_ids(2500))
    else:
        model, patcher = load_model(checkpoint.find(options.checkpoint))

    def anew(ids):
        if theirs:
            theirs(torch.tensor([ids]), use_cache=False)
        else:
            generate_uncached(model, patcher, ids[1:], 1)

    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print(table_of(stream_against_prefix(model, patcher, anew, contexts), STREAM_COLUMNS))


def benchmark_train(options):
    """Print seconds of training steps, and how near their arithmetic comes to the machine's."""
    machine.keep_memory()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    preset, dtype = PRESETS[options.preset], machine.choose_dtype("auto", "cpu")
    s = replace(preset.training, accumulate=1)  # a step is one forward pass
    # Random bytes in patches of 4
    ids = torch.randint(OFFSET, VOCAB, (s.length * (s.batch + 3),))
    crops = Crops(ids, torch.rand(len(ids)) < 0.25, s.length, seed=0)
    flops, works = {}, {}
    for K in (0, 8):
        recipe = Recipe(block_size=K, after=0.0)
        model = BLT(replace(preset.model, block_size=K)).init_weights()
        task = Task("model", model, crops, model_loss(recipe), s, dtype)
        flops[K] = machine.flops_per_byte(model, 4.0, recipe.cells(4.0))
        works[K] = functools.partial(train_step, task, make_optimizer(model, s), 0, done=0.5)
    medians, _ = machine.median_seconds_in_turn(works, options.steps)
    for K, seconds in medians.items():
        speed, times = s.batch * s.length / seconds, f"{seconds / medians[0]:.2f} times K = 0"
        used = machine.arithmetic(flops[K] * speed, dtype, "cpu")
        print(f"K = {K}: {seconds:.3f} s a step, {times}, {speed:,.0f} bytes/s, {used}")


def paper_passes(row, mean_patch):
    """What one row of the paper's tables ran -> Counter of passes, as bandwidth.passes_of has it.

    The tables tell how many passes there were, the method how wide they are: n bytes close
    n / mean_patch patches. A round of BLT-S and BLT-DV calls encoder and global twice, once for the
    open patch before it drafts, once for the bytes to verify.
    """
    mode, calls = PAPER_MODES[row["method"]], row["encoder_global_nfes"]
    counters = Counters(decoder=row["decoder_nfes"])
    if mode == "blt":
        return passes_of(mode, counters, 1) + Counter({("encoder_global", 1): calls})
    count = int(row["block_size"] or row["setting"].removeprefix("k="))
    counters.rounds = calls / MODES[mode].paper_calls
    counters.drafted = count * counters.rounds
    passes = passes_of(mode, counters, count)
    passes["encoder_global", pass_rows(mode, count)[2] / mean_patch] += counters.rounds
    passes["encoder_global", 1] += calls - counters.rounds
    return +passes


def priced_paper(rows, times):
    """Wall-clock of each row of the paper's tables by single passes -> the rows, `seconds` added.

    `saved` is percent of plain BLT's seconds. The patcher's passes are not among the paper's.
    """
    plain, priced = {}, []
    for row in rows:
        blt = plain.setdefault(row["task"], row)  # the first row of its task
        # plain BLT runs its decoder once a byte and its encoder once a patch
        mean_patch = blt["decoder_nfes"] / blt["encoder_global_nfes"]
        both = (times.of(paper_passes(r, mean_patch)) for r in (row, blt))
        seconds, of_blt = (sum(parts.values()) for parts in both)
        saved = 100 * (1 - seconds / of_blt)
        priced.append({**row, "name": row_name(row), "seconds": seconds, "saved": saved})
    return priced


def random_model(name, device):
    """A preset's BLT of random weights, its n-gram tables shrunk. Raises BadInput if too large."""
    with torch.device("meta"):
        model = BLT(replace(PRESETS[name].model, ngram_table_size=1000)).to(torch.bfloat16)
    need = 1.3 * 2 * sum(p.numel() for p in model.parameters())
    if device.startswith("cuda"):
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # all that there is
    if need > free:
        memory = f"{need / 1e9:.1f} GB of memory, there are {free / 1e9:.1f}"
        raise BadInput(f"{name} needs {memory}: choose a smaller preset")
    model = model.to_empty(device=device).eval()
    with torch.no_grad():
        for p in tqdm(list(model.parameters()), desc="random weights", leave=False):
            p.normal_(mean=float(p.ndim == 1), std=0.02)
    return model


PASS_COLUMNS = "pass s pass | ms .1f ms | eq8 .1f Eq. 8 over memory speed, ms | ratio .2f ratio"
PRICE_COLUMNS = """
name s task, method | seconds .1f seconds | saved .1f saved % |
decrease_percent .1f saved % of GB, published
"""


def timed_rows(times, sizes, speed):
    """Single passes beside what Eq. 8's bytes take at the memory's speed -> list of dicts."""
    decoder = 2 * sizes["decoder"] / speed
    closing = 2 * (sizes["encoder"] + sizes["global"]) / speed
    found = [(f"decoder, {n} rows", s, decoder) for n, s in times.decoder.items()]
    found += [(f"encoder+global, {m} patches", s, closing) for m, s in times.encoder_global.items()]
    for k in (8, 16):
        seconds = times.decoder[k + 1] + times.encoder_global[2]
        found.append((f"verification of {k} bytes (2 patches)", seconds, decoder + closing))
    return [dict(zip(("pass", "seconds", "seconds_by_eq8"), row)) for row in found]


def benchmark_passes(options):
    """Print (or give as JSON) single passes at a preset's shapes and the paper's tables by them."""
    device = machine.choose_device(options.device)
    model = random_model(options.preset, device)
    patcher = Patcher(PatcherConfig(kind="stride", max_patch=4)).to(device).eval()
    times = pass_seconds(model, patcher, DECODER_ROWS, PATCHES, repeats=10)
    speed = machine.memory_bandwidth(device)
    rows = timed_rows(times, model.sizes(), speed)
    paper = [r for r in read_paper() if r["model_size"] == PAPER_NAMES.get(options.preset)]
    paper = priced_paper(paper, times)
    if options.json:
        keys = {"row": "name", "paper_decrease_percent": "decrease_percent", "seconds": "seconds"}
        rows += [{key: row[name] for key, name in keys.items()} for row in paper]
        return print_rows({"preset": options.preset, **row} for row in rows)
    print(
        f"{options.preset}, random bfloat16 weights on {device}, {torch.get_num_threads()} "
        f"threads, memory read at {speed / 1e9:.1f} GB/s, spread at most {times.spread:.0%}\n"
    )
    for row in rows:
        row["ms"], row["eq8"] = 1000 * row["seconds"], 1000 * row["seconds_by_eq8"]
        row["ratio"] = row["ms"] / row["eq8"]
    print(table_of(rows, PASS_COLUMNS))
    if paper:
        left_out = "(weights are random; its patcher is not counted)"
        print(f"\nWall-clock that follows from these passes for the paper's own NFEs {left_out}:")
        print(table_of(paper, PRICE_COLUMNS))


WORKS = {"stream": benchmark_stream, "train": benchmark_train, "passes": benchmark_passes}


def options_from(argv):
    parser = Parser(prog="scripts.benchmark", description="Speed, measured on this machine.")
    what = parser.add_subparsers(dest="what", required=True, metavar="|".join(WORKS))
    parsers = [what.add_parser(name, help=work.__doc__) for name, work in WORKS.items()]
    stream, train, passes = (parser.add_argument for parser in parsers)
    stream("--checkpoint", help="whose Stream (default: the newest model there is)")
    stream("--official", action="store_true", help="small random official weights instead")
    train("--preset", default="tiny", choices=PRESETS, help="size of the model")
    train("--steps", type=number(int, 4), default=20, help="steps of each kind")
    passes("--preset", default="blt-1b", choices=PRESETS, help="whose shapes")
    passes("--device", default="cpu", help="cpu, cuda, ... or auto")
    passes("--json", action="store_true", help="one JSON object a row and nothing else")
    return parser.parse_args(argv)


def main(argv=None):
    options = options_from(argv)
    WORKS[options.what](options)


if __name__ == "__main__":
    run(main, "scripts.benchmark")
