"""Speed: two fast paths beside their slow twins in one run, and single passes at a preset's shapes.

    python -m scripts.benchmark stream                   # a cached Stream, and the prefix anew
    python -m scripts.benchmark train                    # a training step with blocks, and without
    python -m scripts.benchmark passes --preset blt-1b   # passes, and the paper's tables in seconds

No test is timed; this is what is.
"""

import json
import os
import statistics
import time
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from bandwidth import pass_seconds
from data import BOS, OFFSET, VOCAB, Crops, default_corpus, encode
from diffusion import Recipe
from model import BLT, PRESETS, load_model
from patcher import Patcher, PatcherConfig
from stream import Stream
from support import checkpoint, machine
from support.optim import make_optimizer
from support.paper import read_paper, row_name
from support.terminal import BadInput, Parser, number, run, table
from train import Task, model_loss, train_step

PAPER_NAMES = {"blt-1b": "1B", "blt-3b": "3B"}  # what the paper's tables call these presets
BLOCK_SIZES = (4, 8, 16)  # K and k of these tables

# Decoder passes to time: plain bytes, blocks, blocks behind one byte or behind another block.
DECODER_ROWS = sorted({1} | {rows for K in BLOCK_SIZES for rows in (K, K + 1, 2 * K)})
# Patches to time a pass for: 17 bytes of the paper's shortest mean patch (1.15 bytes) are 14.7.
PATCHES = (1, 2, 4, 8, 16)


# ---- stream: from caches, and anew


def text_ids(n):
    """n ids of real text: BOS and the start of the default corpus."""
    data = b"".join(text for _, text in default_corpus().documents)
    return [BOS] + encode((data * (n // len(data) + 1))[: n - 1])


@torch.inference_mode()
def stream_against_prefix(model, patcher, contexts=(512, 2048, 8192), bytes_each=128):
    """Seconds a byte of teacher-forced text -> rows of (context, from caches, all of it anew)."""
    ids, rows = text_ids(max(contexts) + bytes_each), []
    for context in (contexts[0], *contexts):  # the first time warms up
        stream, cached, anew = Stream(model, patcher), [], []
        stream.prefill(ids[:context])
        for i in range(context, context + bytes_each):
            began = time.perf_counter()
            stream.extend(ids[i : i + 1])
            cached.append(time.perf_counter() - began)
        for i in range(context, context + 5):
            prefix = torch.tensor(ids[: i + 1])
            began = time.perf_counter()
            model(prefix[None], patcher.closes(prefix)[None])
            anew.append(time.perf_counter() - began)
        rows.append((context, statistics.mean(cached), statistics.median(anew)))
    return rows[1:]


def resident_bytes():
    """Memory of this process now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@torch.inference_mode()
def memory_over(model, patcher, total):
    """Resident memory while a Stream takes in `total` bytes one by one -> rows of (bytes, MB)."""
    ids, stream, seen = text_ids(total), Stream(model, patcher), []
    for i in tqdm(range(total), desc="memory", unit="B", leave=False):
        stream.extend(ids[i : i + 1])
        if i + 1 in (total // 10, total // 2, total):
            seen.append((i + 1, resident_bytes() / 1e6))
    return seen


def benchmark_stream(options):
    """Print what caches save at growing contexts, and that a Stream's memory does not grow."""
    model, patcher = load_model(checkpoint.find(options.checkpoint))
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    rows = stream_against_prefix(model, patcher)
    shortest = rows[0][1]
    header = ["context, bytes", "cached, ms/byte", "anew, ms/byte", "times faster", "against 512"]
    cells = []
    for context, cached, anew in rows:
        speeds = [f"{1000 * cached:.2f}", f"{1000 * anew:.1f}", f"{anew / cached:.0f}"]
        cells.append([context, *speeds, f"{cached / shortest:.2f}"])
    print(table(header, cells))
    if options.bytes and os.path.exists("/proc/self/statm"):
        seen = memory_over(model, patcher, options.bytes)
        print("\nresident memory: " + ", ".join(f"{mb:.1f} MB after {n:,} bytes" for n, mb in seen))


# ---- train: steps with blocks, and without


def random_task(preset, block_size, dtype):
    """What train.py would train a preset on, with random bytes in patches of 4 -> (Task, Recipe).

    A step is one forward pass over a batch, whatever the preset accumulates.
    """
    settings = replace(preset.training, accumulate=1)
    count = settings.length * (settings.batch + 3)
    closes = torch.rand(count) < 0.25
    crops = Crops(torch.randint(OFFSET, VOCAB, (count,)), closes, settings.length, seed=0)
    model = BLT(replace(preset.model, block_size=block_size)).init_weights()
    recipe = Recipe(block_size=block_size, after=0.0)
    return Task("model", model, crops, model_loss(recipe), settings, dtype), recipe


def benchmark_train(options):
    """Print seconds of training steps, and how near their arithmetic comes to the machine's."""
    machine.keep_memory()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    preset, dtype = PRESETS[options.preset], machine.choose_dtype("auto", "cpu")
    kinds = [random_task(preset, block_size, dtype) for block_size in (0, 8)]
    optimizers = [make_optimizer(task.model, task.settings) for task, _ in kinds]
    times = [[], []]
    for step in tqdm(range(options.steps), desc="steps", leave=False):
        for (task, _), optimizer, seconds in zip(kinds, optimizers, times):
            began = time.perf_counter()
            train_step(task, optimizer, step, done=0.5)
            seconds.append(time.perf_counter() - began)
    plain, *_ = medians = [statistics.median(seconds[2:]) for seconds in times]  # two warm up
    peak = machine.product_speed(dtype, "cpu")
    for (task, recipe), seconds in zip(kinds, medians):
        speed = task.settings.batch * task.settings.length / seconds
        work = task.model.flops_per_byte(4.0, recipe.cells(4.0)) * speed
        print(
            f"K = {recipe.block_size}: {seconds:.3f} s a step, {seconds / plain:.2f} times K = 0, "
            f"{speed:,.0f} bytes/s, {work / 1e9:.0f} GFLOP/s, {work / peak:.0%} of the "
            f"{peak / 1e9:.0f} measured for {dtype} matrix products"
        )


# ---- passes: a preset's shapes, and the paper's tables in seconds


class Passes(NamedTuple):
    """Forward passes of one shape that a generation runs."""

    part: str  # "decoder" or "encoder+global"
    width: float  # decoder rows of a pass, or patches that it closes on average
    count: float


def passes_of(row, mean_patch):
    """What one row of the paper's tables ran -> list of Passes.

    The tables tell how many passes a generation took, not how wide they were; the method does.
    A stretch of n bytes closes n / mean_patch patches.

        BLT     decoder: 1 row.  encoder and global: 1 patch.
        BLT-S   drafting: 1 row.  verification: k + 1 rows, the drafted bytes and the one before.
        BLT-D   a block's first pass: 2 K rows, as the K bytes of the block before it ride along
                to be cached; its other passes: K rows.  encoder and global: a block's bytes.
        BLT-DV  drafting: K + 1 rows first, the decided byte riding along, K in further steps.
                verification: K + 1 rows.

    A round of BLT-S and BLT-DV calls encoder and global twice: once for the open patch before it
    drafts, once for the bytes to verify. So it took half as many rounds as such calls.
    """
    method, decoder, calls = row["method"], row["decoder_nfes"], row["encoder_global_nfes"]
    if method == "BLT":
        return [Passes("decoder", 1, decoder), Passes("encoder+global", 1, calls)]
    if method == "BLT-D":
        K = int(row["block_size"])
        first, further = Passes("decoder", 2 * K, calls), Passes("decoder", K, decoder - calls)
        return [first, further, Passes("encoder+global", K / mean_patch, calls)]
    rounds = calls / 2
    drafting = decoder - rounds
    if method == "BLT-S":
        verified = int(row["setting"].removeprefix("k=")) + 1
        drafts = [Passes("decoder", 1, drafting)]
    else:
        K = int(row["block_size"])
        verified = K + 1
        drafts = [Passes("decoder", K + 1, rounds), Passes("decoder", K, drafting - rounds)]
    before = Passes("encoder+global", 1, rounds)
    closing = Passes("encoder+global", verified / mean_patch, rounds)
    return [*drafts, before, Passes("decoder", verified, rounds), closing]


def seconds_of(passes, times):
    """Seconds that Passes take by the PassSeconds of single ones, between two widths on a line."""
    measured = {"decoder": times.decoder, "encoder+global": times.encoder_global}
    total = 0.0
    for part, width, count in passes:
        widths, seconds = zip(*sorted(measured[part].items()))
        total += count * float(np.interp(width, widths, seconds))
    return total


def priced_paper(rows, times):
    """Wall-clock of each row of the paper's tables by single passes -> the rows, `seconds` added.

    `saved` is the share of plain BLT's seconds. The patcher's passes are not among the paper's.
    """
    plain = {row["task"]: row for row in rows if row["method"] == "BLT"}
    priced = []
    for row in rows:
        blt = plain[row["task"]]
        # plain BLT runs its decoder once a byte and its encoder once a patch
        mean_patch = blt["decoder_nfes"] / blt["encoder_global_nfes"]
        seconds = seconds_of(passes_of(row, mean_patch), times)
        saved = 1 - seconds / seconds_of(passes_of(blt, mean_patch), times)
        priced.append({**row, "seconds": seconds, "saved": saved})
    return priced


def random_model(name, device):
    """A preset's BLT with random bfloat16 weights, its n-gram tables shrunk to 1000 rows each.

    Raises BadInput where its weights don't fit into the memory that is free.
    """
    with torch.device("meta"):
        model = BLT(replace(PRESETS[name].model, ngram_table_size=1000)).to(torch.bfloat16)
    need = 1.3 * 2 * sum(p.numel() for p in model.parameters())
    on_gpu = device.startswith("cuda")
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else machine.free_memory()
    if free is not None and need > free:
        memory = f"{need / 1e9:.1f} GB of memory, {free / 1e9:.1f} are free"
        raise BadInput(f"{name} needs {memory}: choose a smaller preset")
    model = model.to_empty(device=device).eval()
    with torch.no_grad():
        for p in tqdm(list(model.parameters()), desc="random weights", leave=False):
            if p.ndim > 1:
                p.normal_(std=0.02)
            else:
                p.fill_(1.0)
    return model


def timed_rows(name, times, sizes, speed):
    """Single passes beside what Eq. 8's bytes take at the memory's speed -> list of dicts."""
    decoder = 2 * sizes["decoder"] / speed
    closing = 2 * (sizes["encoder"] + sizes["global"]) / speed
    found = [(f"decoder, {n} rows", s, decoder) for n, s in times.decoder.items()]
    found += [(f"encoder+global, {m} patches", s, closing) for m, s in times.encoder_global.items()]
    for k in (8, 16):
        seconds = times.decoder[k + 1] + times.encoder_global[2]
        found.append((f"verification of {k} bytes (2 patches)", seconds, decoder + closing))
    keys = ("preset", "pass", "seconds", "seconds_by_eq8")
    return [dict(zip(keys, (name, *values))) for values in found]


def print_passes(rows):
    cells = []
    for row in rows:
        ms, ideal = 1000 * row["seconds"], 1000 * row["seconds_by_eq8"]
        cells.append([row["pass"], f"{ms:.1f}", f"{ideal:.1f}", f"{ms / ideal:.2f}"])
    print(table(["pass", "ms", "Eq. 8 over memory speed, ms", "ratio"], cells))


def print_paper(rows):
    print(
        "\nWall-clock that follows from these passes for the paper's own NFEs "
        "(weights are random; its patcher is not counted):"
    )
    cells = []
    for row in rows:
        published = "" if row["decrease_percent"] is None else f"{row['decrease_percent']:.1f}"
        saved = f"{100 * row['saved']:.1f}"
        cells.append([row_name(row), f"{row['seconds']:.1f}", saved, published])
    print(table(["task, method", "seconds", "saved %", "saved % of GB, published"], cells))


def benchmark_passes(options):
    """Print (or give as JSON) single passes at a preset's shapes and the paper's tables by them."""
    device = machine.choose_device(options.device)
    model = random_model(options.preset, device)
    patcher = Patcher(PatcherConfig(kind="stride", max_patch=4)).to(device).eval()
    times = pass_seconds(model, patcher, DECODER_ROWS, PATCHES, repeats=10)
    speed = machine.memory_bandwidth(device)
    rows = timed_rows(options.preset, times, model.sizes(), speed)
    paper = [r for r in read_paper() if r["model_size"] == PAPER_NAMES.get(options.preset)]
    paper = priced_paper(paper, times)
    if options.json:
        for row in rows:
            print(json.dumps(row))
        for row in paper:
            values = {"row": row_name(row), "paper_decrease_percent": row["decrease_percent"]}
            print(json.dumps({"preset": options.preset, **values, "seconds": row["seconds"]}))
        return
    print(
        f"{options.preset}, random bfloat16 weights on {device}, {torch.get_num_threads()} "
        f"threads, memory read at {speed / 1e9:.1f} GB/s, spread at most {times.spread:.0%}\n"
    )
    print_passes(rows)
    if paper:
        print_paper(paper)


# ---- command line


def options_from(argv):
    parser = Parser(prog="scripts.benchmark", description="Speed, measured on this machine.")
    what = parser.add_subparsers(dest="what", required=True, metavar="stream|train|passes")
    help_ = "the cached Stream against recomputing the prefix"
    add = what.add_parser("stream", help=help_).add_argument
    add("--checkpoint", help="whose Stream (default: the newest model there is)")
    help_ = "length over which memory is watched; 0 leaves that out"
    add("--bytes", type=number(int, 0), default=100_000, help=help_)
    help_ = "a training step with blocks against one without"
    add = what.add_parser("train", help=help_).add_argument
    add("--preset", default="tiny", choices=PRESETS, help="size of the model")
    add("--steps", type=number(int, 4), default=20, help="steps of each kind")
    help_ = "single passes of random weights, and the paper's tables in seconds"
    add = what.add_parser("passes", help=help_).add_argument
    add("--preset", default="blt-1b", choices=PRESETS, help="whose shapes")
    add("--device", default="cpu", help="cpu, cuda, ... or auto")
    add("--json", action="store_true", help="one JSON object a row and nothing else")
    return parser.parse_args(argv)


def main(argv=None):
    options = options_from(argv)
    works = {"stream": benchmark_stream, "train": benchmark_train, "passes": benchmark_passes}
    works[options.what](options)


if __name__ == "__main__":
    run(main, "scripts.benchmark")
