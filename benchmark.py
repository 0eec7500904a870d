"""Speed of the two things everything stands on, each beside its slow twin in one run; no test is timed, this is.

    python benchmark.py stream    # the cached Stream against recomputing the prefix, and its memory over 100 kB
    python benchmark.py train     # a training step with blocks against one without
"""
import os
import statistics
import sys
import time
from dataclasses import replace

import torch
from tqdm import tqdm

import checkpoint
from data import BOS, default_corpus
from diffusion import Recipe
from machine import choose_dtype, keep_memory, product_speed
from model import BLT, PRESETS, load_model
from stream import Stream
from terminal import Parser, number, run, table
from train import SETTINGS, make_optimizer, model_loss


def text_ids(n):
    """n ids of real text: BOS and the start of the default corpus."""
    data = b"".join(text for _, text in default_corpus().documents)
    return [BOS] + [b + 4 for b in (data * (n // len(data) + 1))[:n - 1]]


@torch.inference_mode()
def stream_against_prefix(model, patcher, contexts=(512, 2048, 8192), bytes_each=128):
    """Seconds a byte of teacher-forced text at each context: from caches, and through the whole model anew."""
    ids, rows = text_ids(max(contexts) + bytes_each), []
    for context in (contexts[0], *contexts):  # the first time warms up
        stream, cached, anew = Stream(model, patcher), [], []
        stream.prefill(ids[:context])
        for i in range(context, context + bytes_each):
            began = time.perf_counter()
            stream.extend(ids[i:i + 1])
            cached.append(time.perf_counter() - began)
        for i in range(context, context + 5):
            prefix = torch.tensor(ids[:i + 1])
            began = time.perf_counter()
            model(prefix[None], patcher.closes(prefix)[None])
            anew.append(time.perf_counter() - began)
        rows.append((context, statistics.mean(cached), statistics.median(anew)))
    rows, first = rows[1:], rows[1][1]
    print(
        table(["context, bytes", "cached, ms/byte", "anew, ms/byte", "times faster", "against 512"],
              [[c, f"{1000 * a:.2f}", f"{1000 * b:.1f}", f"{b / a:.0f}", f"{a / first:.2f}"] for c, a, b in rows]))


def resident_bytes():
    """Memory of this process now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@torch.inference_mode()
def memory_over(model, patcher, total):
    """Resident memory while a Stream takes in `total` bytes one by one."""
    ids, stream, seen = text_ids(total), Stream(model, patcher), []
    for i in tqdm(range(total), desc="memory", unit="B", leave=False):
        stream.extend(ids[i:i + 1])
        if i + 1 in (total // 10, total // 2, total):
            seen.append((i + 1, resident_bytes() / 1e6))
    print("\nresident memory: " + ", ".join(f"{mb:.1f} MB after {n:,} bytes" for n, mb in seen))


def training_steps(name, steps):
    """Seconds of a training step for K = 0 and K = 8 on random text with patches of 4, in turn."""
    keep_memory()
    settings, dtype = SETTINGS[name], choose_dtype("auto", "cpu")
    ids = torch.randint(4, 260, (settings.batch, settings.length + 1))
    closes = torch.rand(settings.batch, settings.length) < 0.25
    closes[:, 0] = True
    made = []
    for K in (0, 8):
        model = BLT(replace(PRESETS[name], block_size=K)).init_weights()
        made.append((K, model, make_optimizer(model,
                                              settings), model_loss(model, Recipe(K, after=0.0),
                                                                    {"step": 0, "steps": 1}), []))
    for i in tqdm(range(steps), leave=False):
        for K, model, optimizer, loss_of, times in made:
            began = time.perf_counter()
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                loss = loss_of(ids, closes)[0]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            optimizer.step()
            optimizer.zero_grad()
            times.append(time.perf_counter() - began)
    peak, plain = product_speed(dtype, "cpu"), statistics.median(made[0][4][2:])
    for K, model, _, _, times in made:
        seconds, rows = statistics.median(times[2:]), Recipe().rows if K else 0.0
        speed = settings.batch * settings.length / seconds
        work = model.flops_per_byte(block_rows=rows) * speed
        print(
            f"K = {K}: {seconds:.3f} s a step, {seconds / plain:.2f} times K = 0, {speed:,.0f} bytes/s, {work / 1e9:.0f} GFLOP/s, "
            f"{work / peak:.0%} of the {peak / 1e9:.0f} measured for {dtype} matrix products")


def options_from(argv):
    parser = Parser(prog="benchmark.py", description="Speed of Stream and of training beside their slow twins.")
    parser.add_argument("what", choices=("stream", "train"), help="what to time")
    parser.add_argument("--checkpoint", help="whose Stream to time (default: the newest model there is)")
    parser.add_argument("--preset", default="tiny", choices=PRESETS,
                        help="size of the model whose training steps are timed")
    parser.add_argument("--bytes", type=number(int, 0), default=100_000,
                        help="length over which memory is watched; 0 leaves that out")
    parser.add_argument("--steps", type=number(int, 4), default=20, help="training steps of each kind")
    return parser.parse_args(argv)


def main(argv=None):
    options = options_from(argv)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    if options.what == "train":
        return training_steps(options.preset, options.steps)
    model, patcher = load_model(checkpoint.find(options.checkpoint))
    stream_against_prefix(model, patcher)
    if options.bytes and os.path.exists("/proc/self/statm"):
        memory_over(model, patcher, options.bytes)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")
    run(main)
