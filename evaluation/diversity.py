"""More passes, more diverse samples? (Fast BLT §6)

BLT-D writes without a prompt, under entropy-bounded unmasking with many a γ and top-p. For each
setting stand the decoder passes that a byte took and the type-token ratio of what was written.
"""

from itertools import product

import numpy as np
from tqdm import tqdm

from data import decode
from evaluation.plots import Mark, draw
from evaluation.report import mean, print_rows, with_error
from generate import Generation, Sampling
from speculate import Drafting, check_mode, run_mode
from support.terminal import table

GAMMAS, TOP_PS = (0.5, 0.8, 1.0, 1.2), (0.8, 0.9, 0.95, 1.0)


def type_token_ratio(data):
    """Different words over all words of a text; 0 where there are none."""
    words = data.split()
    return len(set(words)) / max(1, len(words))


def evaluate_diversity(model, patcher, options):
    """Word type-token ratio of unconditional BLT-D samples against decoder passes.

    γ and top-p are swept. All samples have the length --bytes, so that their passes compare.
    """
    # Refuse a plain BLT before anything is generated.
    check_mode("bltd", model, Drafting(block_size=options.block_size))
    grid = tqdm(list(product(GAMMAS, TOP_PS)), desc="settings", leave=False)
    rows = [measure(model, patcher, gamma, top_p, options) for gamma, top_p in grid]
    passes = [row["decoder_nfes_per_byte"] for row in rows]
    ratios = [row["type_token_ratio"] for row in rows]
    # There is no correlation where nothing varies.
    correlation = None
    if len(set(passes)) > 1 and len(set(ratios)) > 1:
        correlation = float(np.corrcoef(passes, ratios)[0, 1])
    if options.json:
        print_rows([*rows, {"task": "diversity", "correlation": correlation}])
    else:
        print_diversity(rows, correlation)
    if options.plot:
        panels = {"decoder NFEs a byte": [mark_of(row) for row in rows]}
        title = f"Samples of {options.bytes} bytes without a prompt"
        draw(options.plot, title, "word type-token ratio", panels)


def measure(model, patcher, gamma, top_p, options):
    """--limit samples under one setting, each with a seed of its own -> a row.

    A row is a dict of the JSON keys that the task prints.
    """
    # γ is nats of entropy that one step may unmask: a smaller γ takes more passes.
    drafting = Drafting(block_size=options.block_size, unmask="entropy", gamma=gamma)
    made, length = [], options.bytes
    for seed in range(options.seed, options.seed + options.limit):
        sampling = Sampling(options.temperature, top_p, ignore_eos=True, seed=seed)
        made.append(run_mode("bltd", model, patcher, [], length, drafting, sampling=sampling))
    ratios = [type_token_ratio(decode(generation.ids)) for generation in made]
    cost = Generation.total(made).cost()
    row = {"task": "diversity", "gamma": gamma, "top_p": top_p, **mean("type_token_ratio", ratios)}
    row["decoder_nfes_per_byte"] = cost["decoder_nfes"] / max(1, cost["new_bytes"])
    return row | cost


def mark_of(row):
    """A row as a Mark: γ is its shape, a line joins those of one top-p."""
    x, y, error = row["decoder_nfes_per_byte"], row["type_token_ratio"], row["type_token_ratio_se"]
    return Mark(x, y, "BLT-D", f"top-p {row['top_p']}", f"γ = {row['gamma']}", error=error)


def print_diversity(rows, correlation):
    """The rows as a table, and the correlation below."""
    header, cells = ["γ, top-p", "type-token ratio", "decoder NFEs/B", "bytes", "bytes/s"], []
    for row in rows:
        setting = f"{row['gamma']} {row['top_p']}"
        passes, speed = f"{row['decoder_nfes_per_byte']:.3f}", f"{row['bytes_per_second']:.0f}"
        ratio = with_error(row, "type_token_ratio", ".3f", ".3f")
        cells.append([setting, ratio, passes, row["new_bytes"], speed])
    print(table(header, cells))
    said = "none, one of them is constant" if correlation is None else f"{correlation:.2f}"
    print(f"\ncorrelation of type-token ratio and decoder NFEs a byte over the settings: {said}")
