"""What a generation costs: in bytes of parameters read (Fast BLT §4.2, Eq. 8), and in seconds.

    python bandwidth.py --paper                     # the paper's Tables 3-10 recomputed
    python bandwidth.py --checkpoint checkpoint.pt  # every mode and setting of a model, measured
    python bandwidth.py --plot tradeoff.png         # the same, and a picture of it

Eq. 8 itself is generate.gigabytes; single passes are timed in support/passes.py. Letters in
comments: K block size, k draft size.
"""

import functools
from collections import Counter

from tqdm import tqdm

from data import default_corpus, encode
from diffusion import SIZES
from generate import Generation, Sampling
from model import load_model
from speculate import MODES, Drafting, run_mode, size_of_blocks
from support import checkpoint
from support.flags import Only, add_sampling
from support.paper import print_paper, read_paper, recompute
from support.passes import pass_seconds, settle_threads
from support.plots import draw_tradeoff, to_write
from support.quality import distinct_4grams, output_bits
from support.show import print_measured
from support.terminal import BadInput, Parser, print_rows, read_file, run

# ---- the passes of a generation


def passes_of(mode, counters, count):
    """The passes behind a generation's counters -> Counter by (part, width).

    part: decoder, encoder_global, patcher, or chain, which draws the cells of a draft. width: rows
    of a pass, patches that a call closes, or cells, on average. count: bytes drafted a round (k or
    K).
    """
    c, passes = counters, Counter()
    # Rows of a round's first draft pass and of its later ones. With the first pass over a block
    # rides the block before, or the decided byte; all other drafts are made byte by byte.
    first, later = {"bltd": (2 * count, count), "bltdv": (count + 1, count)}.get(mode, (1, 1))
    taken = count if mode == "bltd" else 1  # rows of the pass that the patcher makes
    # The counters know decoder passes alone: every round has one that verifies, if the mode does,
    # over the byte decided before and those drafted, which may be fewer than `count`.
    if MODES[mode].verified and c.rounds:
        taken = 1 + c.drafted / c.rounds
        passes["decoder", taken] += c.rounds
    drafts = c.decoder - passes["decoder", taken]
    firsts = min(drafts, c.rounds)
    passes["decoder", first] += firsts
    passes["decoder", later] += drafts - firsts
    passes["chain", c.chain / max(1, firsts)] += firsts * bool(c.chain)
    width = max(1.0, c.patches_closed / max(1, c.encoder_global))
    passes["encoder_global", width] += c.encoder_global
    passes["patcher", taken] += c.entropy
    return +passes  # those that ran


# ---- every mode of a model of ours

# Rules and thresholds of the paper's appendix
APPENDIX = {
    "bltd": (("confidence", 0.5), ("confidence", 0.7), ("entropy", 0.8), ("entropy", 1.0)),
    "bltdv": (("confidence", 0.3), ("entropy", 1.5), ("entropy", 2.0)),
}


def settings_of(model):
    """Every mode and setting of the paper's appendix that a model can run, plain BLT first.

    -> list of (mode, its setting in words, Drafting)
    """
    settings = [("blt", "", Drafting())]
    settings += [("blts", f"k={k}", Drafting(draft_size=k)) for k in (4, 8, 16)]
    settings.append(("lookup", "k=8", Drafting()))
    for K in (K for K in SIZES if K <= model.config.block_size):
        for mode, rules in APPENDIX.items():
            chained = [("chained", None)] if model.config.chain_width else []
            for rule, bound in (*rules, ("one-step", None), *chained):
                name = f"K={K} {rule} {bound or ''}".strip()
                drafting = Drafting(block_size=K, unmask=rule, alpha=bound, gamma=bound, copy=0)
                settings.append((mode, name, drafting))
    if model.config.chain_width:
        settings.append(("bltdv", "chained, copy 16", Drafting(unmask="chained")))
    return settings


# Sums of Generation.cost that a row of `compare` gives for one generation
COSTS = ("decoder_nfes", "encoder_global_nfes", "entropy_nfes", "bandwidth_gb")


def measure(model, patcher, prompts, length, settings, sampling_of):
    """Every setting on the same prompts (lists of ids) -> a list of Generations for each.

    Settings take turns at every prompt, so that what else the machine does hits all alike; the
    first prompt is run once more in front, to warm up. sampling_of() -> a new Sampling for each.
    """
    made = [[] for _ in settings]
    for turn, prompt in enumerate(tqdm([prompts[0], *prompts], desc="prompts", leave=False)):
        for (mode, _, drafting), outputs in zip(settings, made):
            how = {"sampling": sampling_of()}
            output = run_mode(mode, model, patcher, prompt, length, drafting, **how)
            if turn:
                outputs.append(output)
    return made


def compare(model, patcher, prompts, settings, made):
    """What `measure` made of each setting beside the first, which is plain BLT -> (rows, times).

    rows: dicts, in which sums are given a generation; times: PassSeconds. agreement: bytes that
    plain BLT's output has at the same place; lossless: plain BLT's distribution; ratio_spread:
    least and most over the prompts; of_ceiling: the speed reached over what single passes allow.
    """
    counts = [
        size_of_blocks(model, drafting) if MODES[mode].fills_blocks else drafting.draft_size
        for mode, _, drafting in settings
    ]
    sizes = {n for count in counts for n in (count, count + 1, 2 * count)}
    times = pass_seconds(model, patcher, {1, 9} | sizes)
    baseline, n, rows = Generation.total(made[0]), len(prompts), []
    for (mode, name, _), count, outputs in zip(settings, counts, made):
        total = Generation.total(outputs)
        c, seconds = total.counters, max(1e-9, total.seconds)
        # What the same passes would take alone, by part; bytes that plain BLT has at the same
        # place; what the output costs under the model's own causal reading
        passes = sum((passes_of(mode, o.counters, count) for o in outputs), Counter())
        ideal = times.of(passes)
        pairs = list(zip(outputs, made[0]))
        same = [x == y for a, b in pairs for x, y in zip(a.ids, b.ids)]
        bits = [output_bits(model, patcher, p, o.ids) for p, o in zip(prompts, outputs) if o.ids]
        alone = [a.bytes_per_second / max(1e-9, b.bytes_per_second) for a, b in pairs]
        row = {
            "mode": mode,
            "setting": name,
            "agreement": sum(same) / max(1, total.new_bytes),
            "output_bits_per_byte": sum(bits) / max(1, len(bits)),
            "distinct_4grams": distinct_4grams([output.ids for output in outputs]),
            "mean_patch": c.bytes_advanced / max(1, c.patches_closed),
            "acceptance": total.acceptance,
            "lossless": mode == "blt" or MODES[mode].verified,
            **{key: total.cost()[key] / n for key in COSTS},
            "decrease": 1 - total.gigabytes() / max(1e-12, baseline.gigabytes()),
            "bytes_per_second": total.bytes_per_second,
            "ratio": total.bytes_per_second / max(1e-9, baseline.bytes_per_second),
            "ratio_spread": [min(alone), max(alone)],
            "of_ceiling": sum(ideal.values()) / seconds,
            **{f"seconds_{part}": spent / n for part, spent in ideal.items()},
        }
        rows.append(row)
    return rows, times


def read_prompts(path):
    """-> lists of ids: the lines of a file, or eight places in held-out text of the corpus."""
    if not path:
        held_out = [data for data in default_corpus().split()[1] if len(data) > 3000]
        return [encode(data[1000:1200]) for data in held_out[:8]]
    prompts = [encode(line) for line in read_file(path, "the prompts in").splitlines() if line]
    if not prompts:
        raise BadInput(f"there are no prompts in {path}: give one a line")
    return prompts


def options_from(argv):
    """The command line: the paper's tables or a model of ours."""
    parser = Parser(prog="bandwidth.py", description="What a generation costs, in GB and seconds.")
    add = parser.add_argument
    either = parser.add_mutually_exclusive_group().add_argument
    either("--paper", action="store_true", help="recompute the paper's tables")
    add("--checkpoint", help="measure this model (default: the newest there is)")
    add("--prompts", metavar="FILE", help="one a line (default: eight held-out places)")
    add_sampling(Only(parser, "bytes temperature top-p seed"))
    add("--json", action="store_true", help="one JSON object a row and nothing else")
    either("--plot", metavar="FILE", type=to_write(".png", ".svg"), help="draw quality and cost")
    return parser.parse_args(argv)


def main(argv=None):
    """Recompute the paper's tables, or measure a model, and print a table or JSON."""
    options = options_from(argv)
    if options.paper:
        rows = recompute(read_paper())
    else:
        model, patcher = load_model(checkpoint.find(options.checkpoint))
        settle_threads(model, patcher)
        o, prompts, settings = options, read_prompts(options.prompts), settings_of(model)
        sampling_of = functools.partial(Sampling, o.temperature, o.top_p, True, o.seed)
        made = measure(model, patcher, prompts, options.bytes, settings, sampling_of)
        rows, times = compare(model, patcher, prompts, settings, made)
        drawn = f"temperature {o.temperature:g}, top-p {o.top_p:g}" if o.temperature else "greedy"
        how = f"{len(prompts)} prompts, {o.bytes} bytes each, {drawn}"
        if options.plot:
            draw_tradeoff(options.plot, rows, how)
    if options.json:
        print_rows(rows)
    elif options.paper:
        print_paper(rows)
    else:
        print_measured(rows, times)


if __name__ == "__main__":
    run(main)
