"""More passes, more diverse samples of BLT-D without a prompt? (Fast BLT §6)"""

import statistics
from itertools import product

from tqdm import tqdm

from data import decode
from evaluation.tasks import cost_of, mean, show
from generate import Sampling
from speculate import Drafting, check_mode, run_mode

GAMMAS, TOP_PS = (0.5, 0.8, 1.0, 1.2), (0.8, 0.9, 0.95, 1.0)
COLUMNS = """
gamma .1f γ | top_p .2f top-p | type_token_ratio s type-token ratio |
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
    both = ([row[key] for row in rows] for key in ("decoder_nfes_per_byte", "type_token_ratio"))
    try:
        correlation = statistics.correlation(*both)
    except statistics.StatisticsError:  # one of them is constant
        correlation = None
    said = "none, one of them is constant" if correlation is None else f"{correlation:.2f}"
    if options.json:
        rows.append({"correlation": correlation})
    over = "type-token ratio and decoder NFEs a byte over the settings"
    show(rows, COLUMNS, options, f"\n\ncorrelation of {over}: {said}")


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
    row = {"gamma": gamma, "top_p": top_p, **mean("type_token_ratio", ratios)}
    return row | cost_of(made)
