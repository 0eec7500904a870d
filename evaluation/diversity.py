"""More passes, more diverse samples of BLT-D without a prompt? (Fast BLT §6)"""

import contextlib
import statistics
from itertools import product

from tqdm import tqdm

from data import decode
from evaluation.plots import Mark, draw
from evaluation.tasks import mean, with_errors
from generate import Generation, Sampling
from speculate import Drafting, check_mode, run_mode
from support.terminal import print_rows, table_of

GAMMAS, TOP_PS = (0.5, 0.8, 1.0, 1.2), (0.8, 0.9, 0.95, 1.0)
COLUMNS = """
setting s γ, top-p | type_token_ratio s type-token ratio |
decoder_nfes_per_byte .3f decoder NFEs/B | new_bytes d bytes | bytes_per_second .0f bytes/s
"""


def evaluate_diversity(model, patcher, options):
    """Word type-token ratio of unconditional BLT-D samples against decoder passes.

    γ and top-p are swept. All samples have the length --bytes, so that their passes compare.
    """
    # Refuse a plain BLT before anything is generated.
    check_mode("bltd", model, Drafting(block_size=options.block_size))
    grid = tqdm(list(product(GAMMAS, TOP_PS)), desc="settings", leave=False)
    rows = [measure(model, patcher, gamma, top_p, options) for gamma, top_p in grid]
    places = [(row["decoder_nfes_per_byte"], row["type_token_ratio"]) for row in rows]
    correlation, said = None, "none, one of them is constant"
    with contextlib.suppress(statistics.StatisticsError):
        correlation = statistics.correlation(*zip(*places))
        said = f"{correlation:.2f}"
    if options.json:
        print_rows([*rows, {"task": "diversity", "correlation": correlation}])
    else:
        shown = [with_errors(row, ".3f", ".3f") for row in rows]
        for row in shown:
            row["setting"] = f"{row['gamma']} {row['top_p']}"
        print(table_of(shown, COLUMNS))
        over = "type-token ratio and decoder NFEs a byte over the settings"
        print(f"\ncorrelation of {over}: {said}")
    if options.plot:
        title, marks = f"Samples of {options.bytes} bytes without a prompt", []
        # γ is a mark's shape, a line joins those of one top-p.
        for place, row in zip(places, rows):
            names = "BLT-D", f"top-p {row['top_p']}", f"γ = {row['gamma']}"
            marks.append(Mark(*place, *names, error=row["type_token_ratio_se"]))
        draw(options.plot, title, "word type-token ratio", {"decoder NFEs a byte": marks})


def measure(model, patcher, gamma, top_p, options):
    """--limit samples under one setting, each with a seed of its own -> a row of JSON keys."""
    # γ is nats of entropy that one step may unmask: a smaller γ takes more passes.
    drafting = Drafting(block_size=options.block_size, unmask="entropy", gamma=gamma)
    made, length = [], options.bytes
    for seed in range(options.seed, options.seed + options.limit):
        sampling = Sampling(options.temperature, top_p, ignore_eos=True, seed=seed)
        made.append(run_mode("bltd", model, patcher, [], length, drafting, sampling=sampling))
    # Different words over all words; 0 where there are none
    words = [decode(generation.ids).split() for generation in made]
    ratios = [len(set(said)) / max(1, len(said)) for said in words]
    cost = Generation.total(made).cost()
    row = {"task": "diversity", "gamma": gamma, "top_p": top_p, **mean("type_token_ratio", ratios)}
    row["decoder_nfes_per_byte"] = cost["decoder_nfes"] / max(1, cost["new_bytes"])
    return row | cost
