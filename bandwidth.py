"""What a generation costs: in bytes of parameters read (Fast BLT §4.2, Eq. 8), and in seconds.

    python bandwidth.py --paper                     # the paper's Tables 3-10 recomputed
    python bandwidth.py --checkpoint checkpoint.pt  # every mode and setting of a model, measured
    python bandwidth.py --plot tradeoff.png         # the same, and a picture of it
    python bandwidth.py --paper --plot paper.png    # a picture of the paper's

In the order a reader needs it: Eq. 8, what one generation or several cost by it, the paper's
tables, the passes behind a generation and what they would take alone, every mode beside plain BLT.
Single passes are timed in measure/passes.py. Letters in comments: K block size, k draft size.
"""

import csv
import os
from collections import Counter
from dataclasses import fields
from typing import NamedTuple

from tqdm import tqdm

from data import default_corpus, encode
from fast.load import load
from generate import Sampling
from measure.modes import check_drafting, state_for
from measure.passes import pass_seconds, settle_threads
from measure.plots import draw_paper, draw_tradeoff
from measure.quality import distinct_4grams, output_bits
from measure.show import print_measured
from speculate import MODES, Drafting, run_mode, settled
from support import checkpoint
from support.flags import Only, add_checkpoint, add_sampling
from support.generation import Counters, Generation
from support.hardware import choose_device
from support.pictures import to_write
from support.presets import BLOCK_SIZES
from support.terminal import BadInput, Column, Parser, print_rows, read_file, run, table_of

# ---- Eq. 8


def gigabytes(decoder_nfes, encoder_global_nfes, decoder, encoder_global, bits=16):
    """Fast BLT §4.2, Eq. 8: every forward pass (NFE) reads each parameter of its part once -> GB.

    decoder, encoder_global: parameters of the parts. The n-gram tables are not among them: a pass
    reads a few of their entries, looked up one by one. GB are 1e9 bytes.
    """
    numbers_read = decoder_nfes * decoder + encoder_global_nfes * encoder_global
    return bits / 8 * numbers_read / 1e9


# ---- what a Generation cost


def share(part, whole):
    """A part over its whole, or None where the whole is nothing, or either is not known."""
    return part / whole if whole and part is not None else None


def gigabytes_of(made, bits=16):
    """Eq. 8 at `bits` a parameter, without the patcher's passes, as the paper has it."""
    size = made.sizes
    spent = made.counters
    together = size["encoder"] + size["global"]
    read = gigabytes(spent.decoder, spent.encoder_global, size["decoder"], together, bits)
    # The chained head, which the paper has not, is read once for each cell that it draws.
    return read + bits / 8 * spent.chain * size["chain"] / 1e9


def gigabytes_with_patcher(made, bits=16):
    """As `gigabytes_of`, and the patcher's passes."""
    return gigabytes_of(made, bits) + bits / 8 * made.counters.entropy * made.sizes["patcher"] / 1e9


def acceptance(made):
    """Share of drafted bytes that verification accepted, or None where nothing was drafted."""
    return share(made.counters.accepted, made.counters.drafted)


def mean_patch(made):
    """Bytes a patch, or None if no patch closed."""
    return share(made.counters.bytes_advanced, made.counters.patches_closed)


def cost_of(made):
    """The sums that every report gives, by their JSON keys."""
    spent = made.counters
    return {
        "new_bytes": made.new_bytes,
        "seconds": made.seconds,
        "bytes_per_second": made.bytes_per_second,
        "decoder_nfes": spent.decoder,
        "encoder_global_nfes": spent.encoder_global,
        "entropy_nfes": spent.entropy,
        "bandwidth_gb": gigabytes_of(made),
    }


def total(several):
    """Several generations of one model as one: all their ids, the sums of what they cost."""
    sums = Counters()
    # Every counter there is, so that none is forgotten. A new one is added as these are: what is
    # counted by a key is added key by key, and all else is a number.
    for counter in fields(Counters):
        of_each = [getattr(made.counters, counter.name) for made in several]
        if counter.type is Counter:
            merged = Counter()
            for counted in of_each:
                merged.update(counted)
            setattr(sums, counter.name, merged)
        else:
            setattr(sums, counter.name, sum(of_each))
    ids = [id_ for made in several for id_ in made.ids]
    seconds = sum(made.seconds for made in several)
    return Generation(ids, sums, seconds, several[0].sizes)


# ---- the paper's tables: 223 rows, each with its NFEs and the gigabytes that they are said to cost

# Of those numbers only the NFEs are taken as given. The sizes of the parts stand in the paper's
# text; the gigabytes follow by Eq. 8, and from them what is saved. `read_paper` reads the rows,
# `recompute` sets what follows beside each, and `print_paper` shows where the two differ.

TABLES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "paper", "tables.csv")
# Columns of words; all others are numbers.
WORDS = ("model_size", "task", "metric", "method", "block_size", "setting")


class Parameters(NamedTuple):
    """Of the two parts that Eq. 8 knows."""

    decoder: float
    encoder_global: float  # of the encoder and of the global model, which run together


PAPER_MODELS = {"1B": Parameters(160e6, 19e6 + 1.28e9), "3B": Parameters(160e6, 26e6 + 2.82e9)}


def read_paper():
    """The rows of the paper's Tables 3-10 as they are published -> list of dicts."""
    with open(TABLES, newline="") as file:
        rows = list(csv.DictReader(file))
    # What a row does not give, as plain BLT gives no acceptance, is None.
    for row in rows:
        for key in row.keys() - set(WORDS):
            row[key] = float(row[key]) if row[key] else None
    return rows


def recompute(rows):
    """Rows of the paper, each with what follows from its two NFEs alone -> list of dicts.

    Its gb by Eq. 8; the decrease (%) against plain BLT's on the same task; the error of the
    published GB; explained: whether the rounding of what is published makes up for the error.
    """
    computed = []
    plain = {}  # gb of plain BLT, by model and task: its row is the first of each
    for row in rows:
        size = PAPER_MODELS[row["model_size"]]
        gb = gigabytes(row["decoder_nfes"], row["encoder_global_nfes"], *size)
        # Every other row is set against the plain BLT of its own model on its own task.
        task = row["model_size"], row["task"]
        if row["method"] == "BLT":
            plain[task] = gb
        published = row["bandwidth_gb"]
        # NFEs are published as whole numbers, gigabytes with two digits.
        rounding = gigabytes(0.5, 0.5, *size) + 0.005
        follows = {
            "gb": gb,
            "decrease": 100 * (1 - gb / plain[task]),
            "error": gb / published - 1,
            "explained": abs(gb - published) <= rounding,
        }
        computed.append({**row, **follows})
    return computed


PAPER_COLUMNS = [
    Column("name", "s", "size task method K setting"),
    Column("decoder_nfes", ".0f", "dec"),
    Column("encoder_global_nfes", ".0f", "enc+glob"),
    Column("bandwidth_gb", ".2f", "GB published"),
    Column("gb", ".2f", "Eq. 8"),
    Column("error", ".1f", "error %"),
    Column("decrease_percent", ".1f", "saved % published"),
    Column("decrease", ".1f", "Eq. 8 %"),
]


def print_paper(rows):
    """The tables recomputed, and what does not follow from their NFEs."""
    shown = []
    for row in rows:
        name = " ".join(row[key] for key in WORDS if key != "metric")
        shown.append({**row, "name": name, "error": 100 * row["error"]})
    print(table_of(shown, PAPER_COLUMNS))
    worst = max(shown, key=lambda row: abs(row["error"]))
    print(f"\n{len(shown)} rows, the largest error {abs(worst['error']):.2f} % ({worst['name']})")
    unexplained = [row for row in shown if not row["explained"]]
    print(f"{len(unexplained)} rows differ by more than half an NFE of each part explains:")
    for row in unexplained:
        print(f"  {row['name']}: {row['bandwidth_gb']:.2f} GB published, {row['gb']:.2f} by Eq. 8")


# ---- the passes of a generation


def passes_of(mode, counters, count):
    """The passes behind a generation's counters -> Counter by (part, width).

    part: decoder, encoder_global, patcher, or chain, which draws the cells of a draft. width: rows
    of a pass, patches that a call closes, or cells, on average. count: bytes drafted a round (k or
    K).
    """
    spent = counters
    passes = Counter()
    # Rows of a round's first draft pass, and of its later ones: drafts are made byte by byte
    first = 1
    later = 1
    if mode == "bltd":  # the block before rides along
        first = 2 * count
        later = count
    elif mode == "bltdv":  # the decided byte does
        first = count + 1
        later = count
    # The counters know decoder passes alone. Every round has one that verifies, if the mode does:
    # over the byte decided before and those drafted, which may be fewer than `count`.
    taken = count if mode == "bltd" else 1  # rows of the pass that the patcher makes
    drafts = spent.decoder
    if MODES[mode].verified and spent.rounds:
        taken = 1 + spent.drafted / spent.rounds
        passes["decoder", taken] += spent.rounds
        drafts -= spent.rounds
    firsts = min(drafts, spent.rounds)
    passes["decoder", first] += firsts
    passes["decoder", later] += drafts - firsts
    if spent.chain:
        passes["chain", spent.chain / firsts] += firsts
    if spent.encoder_global:
        patches = max(1.0, spent.patches_closed / spent.encoder_global)
        passes["encoder_global", patches] += spent.encoder_global
    passes["patcher", taken] += spent.entropy
    return +passes  # those that ran


# ---- every mode of a model of ours


class Setting(NamedTuple):
    """A mode as it is measured."""

    mode: str
    name: str  # what is set, in words
    drafting: Drafting


# Rules of the paper's appendix and their thresholds: α of confidence, γ of entropy
APPENDIX = {
    "bltd": [
        Drafting(unmask="confidence", alpha=0.5),
        Drafting(unmask="confidence", alpha=0.7),
        Drafting(unmask="entropy", gamma=0.8),
        Drafting(unmask="entropy", gamma=1.0),
        Drafting(unmask="one-step"),
    ],
    "bltdv": [
        Drafting(unmask="confidence", alpha=0.3, copy=0),
        Drafting(unmask="entropy", gamma=1.5, copy=0),
        Drafting(unmask="entropy", gamma=2.0, copy=0),
        Drafting(unmask="one-step", copy=0),
    ],
}
# The same of the chained head, which the paper has not
CHAINED = {
    "bltd": Drafting(unmask="chained"),
    "bltdv": Drafting(unmask="chained", copy=0),
}


def settings_of(model):
    """Every mode and setting of the paper's appendix that a model can run, plain BLT first.

    -> list of Settings
    """
    settings = [Setting("blt", "", Drafting())]
    for k in (4, 8, 16):
        settings.append(Setting("blts", f"k={k}", Drafting(draft_size=k)))
    settings.append(Setting("lookup", "k=8", Drafting(draft_size=8)))
    # A model fills blocks up to the size that it was trained for, and a plain BLT none.
    for K in BLOCK_SIZES:
        if K > model.config.block_size:
            break
        for mode, draftings in APPENDIX.items():
            if model.config.chain_width:
                draftings = [*draftings, CHAINED[mode]]
            for known in draftings:
                threshold = known.alpha or known.gamma or ""
                name = f"K={K} {known.unmask} {threshold}".strip()
                drafting = Drafting(
                    block_size=K,
                    unmask=known.unmask,
                    alpha=known.alpha,
                    gamma=known.gamma,
                    copy=known.copy,
                )
                settings.append(Setting(mode, name, drafting))
    if model.config.chain_width:
        # What sample.py does by default
        settings.append(Setting("bltdv", "chained, copy 16", Drafting(unmask="chained", copy=16)))
    return settings


def measure(machine, prompts, length, settings, sampling_of):
    """Every setting on the same prompts (lists of ids) -> a list of Generations for each.

    Settings take turns at every prompt, so that what else the computer does hits all alike; the
    first prompt is run once more in front, to warm up. sampling_of() -> a new Sampling for each.
    Raises BadInput for a setting that names what its mode does not read.
    """
    for mode, _, drafting in settings:
        check_drafting(mode, machine.model, drafting)
    made = [[] for _ in settings]
    for turn, prompt in enumerate(tqdm([prompts[0], *prompts], desc="prompts", leave=False)):
        for (mode, _, drafting), outputs in zip(settings, made):
            state = state_for(mode, machine)
            output = run_mode(mode, state, prompt, length, drafting, sampling=sampling_of())
            if turn > 0:
                outputs.append(output)
    return made


def compare(machine, prompts, settings, made):
    """What `measure` made of each setting beside the first, which is plain BLT -> (rows, times).

    rows: dicts. times: PassSeconds, or None for a plain machine, which runs no single passes.
    """
    # Passes are timed at the widths that these settings run them with: see passes_of.
    counts = [drafted_at_once(mode, machine.model, drafting) for mode, _, drafting in settings]
    widths = {1, 9}
    for count in counts:
        widths |= {count, count + 1, 2 * count}
    times = pass_seconds(machine, widths)
    # On CUDA a round's passes are a few graphs, so that passes timed one by one are no ceiling.
    ceiling = None if machine.model.device.type == "cuda" else times
    rows = []
    for (mode, name, _), count, outputs in zip(settings, counts, made):
        row = {"mode": mode, "setting": name}
        row |= quality_beside(machine, prompts, outputs, made[0])
        row["lossless"] = mode == "blt" or MODES[mode].verified
        row |= cost_beside(outputs, made[0])
        row |= against_ceiling(mode, count, outputs, ceiling)
        rows.append(row)
    return rows, times


def drafted_at_once(mode, model, drafting):
    """K of a mode that fills blocks, k of one that drafts byte by byte, 1 for plain BLT."""
    chosen = settled(mode, model, drafting)
    return chosen.get("block_size", chosen.get("draft_size", 1))


def quality_beside(machine, prompts, outputs, plain):
    """What a setting wrote -> part of its row.

    agreement: bytes that plain BLT's output has at the same place. output_bits_per_byte: what the
    output costs under the model's own causal reading, a mean over the prompts.
    """
    same = 0
    for output, other in zip(outputs, plain):
        same += sum(x == y for x, y in zip(output.ids, other.ids))
    bits = [output_bits(machine, prompt, made.ids) for prompt, made in zip(prompts, outputs)]
    # An output that ended at once has no byte to say anything of.
    bits = [known for known in bits if known is not None]
    together = total(outputs)
    return {
        "agreement": share(same, together.new_bytes),
        "output_bits_per_byte": share(sum(bits), len(bits)),
        "distinct_4grams": distinct_4grams([output.ids for output in outputs]),
        "mean_patch": mean_patch(together),
        "acceptance": acceptance(together),
    }


# Sums of cost_of that a row gives for one generation
COSTS = ("decoder_nfes", "encoder_global_nfes", "entropy_nfes", "bandwidth_gb")


def cost_beside(outputs, plain):
    """What a setting cost, and how fast it was -> part of its row.

    ratio: its speed over plain BLT's; ratio_spread: the least and the most of it over the prompts.
    """
    together = total(outputs)
    baseline = total(plain)
    cost = cost_of(together)
    row = {key: cost[key] / len(outputs) for key in COSTS}
    # The share of plain BLT's gigabytes that is left
    left = share(gigabytes_of(together), gigabytes_of(baseline))
    row["decrease"] = None if left is None else 1 - left
    row["bytes_per_second"] = together.bytes_per_second
    row["ratio"] = share(together.bytes_per_second, baseline.bytes_per_second)
    # Prompt by prompt, both wrote within moments of each other.
    alone = [share(a.bytes_per_second, b.bytes_per_second) for a, b in zip(outputs, plain)]
    alone = [ratio for ratio in alone if ratio is not None]
    row["ratio_spread"] = [min(alone), max(alone)] if alone else None
    return row


PARTS = ("decoder", "encoder_global", "patcher", "chain")


def against_ceiling(mode, count, outputs, times):
    """What the passes of a setting would take alone -> part of its row.

    of_ceiling: the speed reached over what they allow. Without times nothing is said of it.
    """
    if times is None:
        return dict.fromkeys(["of_ceiling", *(f"seconds_{part}" for part in PARTS)])
    passes = Counter()
    for output in outputs:
        passes.update(passes_of(mode, output.counters, count))
    alone = times.of(passes)
    row = {"of_ceiling": share(sum(alone.values()), total(outputs).seconds)}
    for part in PARTS:
        row[f"seconds_{part}"] = alone[part] / len(outputs)
    return row


# ---- the command


def read_prompts(path, openings=()):
    """-> lists of ids: the lines of a file, or the openings that a checkpoint keeps.

    For one that keeps none, eight places in held-out text of the default corpus.
    """
    if not path and openings:
        return [encode(text) for text in openings]
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
    add("--paper", action="store_true", help="recompute the paper's tables, measure nothing")
    add_checkpoint(Only(parser, ["checkpoint", "device"]))
    add("--prompts", metavar="FILE", help="one a line (default: eight held-out openings)")
    add_sampling(Only(parser, ["bytes", "temperature", "top-p", "seed"]))
    add("--json", action="store_true", help="one JSON object a row and nothing else")
    add("--plot", metavar="FILE", type=to_write(".png", ".svg"), help="draw quality and cost")
    options = parser.parse_args(argv)
    if options.paper:
        for name, value in vars(options).items():
            if name not in ("paper", "json", "plot") and value != parser.get_default(name):
                flag = "--" + name.replace("_", "-")
                problem = f"--paper measures nothing and reads no {flag}"
                raise BadInput(f"{problem}: leave one of them out")
    if options.plot and options.bytes < 2:
        raise BadInput("--plot draws speeds, which a first byte has not: give --bytes 2, or more")
    return options


def measure_model(options):
    """Measure a model as the flags say -> (rows, times) of `compare`. Draws it, if asked to."""
    machine = load(checkpoint.find(options.checkpoint), choose_device(options.device))
    settle_threads(machine)
    prompts = read_prompts(options.prompts, machine.openings)
    settings = settings_of(machine.model)

    def sampling_of():
        return Sampling(options.temperature, options.top_p, ignore_eos=True, seed=options.seed)

    made = measure(machine, prompts, options.bytes, settings, sampling_of)
    rows, times = compare(machine, prompts, settings, made)
    if options.plot:
        drawn = "greedy"
        if options.temperature:
            drawn = f"temperature {options.temperature:g}, top-p {options.top_p:g}"
        how = f"{len(prompts)} prompts, {options.bytes} bytes each, {drawn}"
        draw_tradeoff(options.plot, rows, how)
    return rows, times


def main(argv=None):
    """Recompute the paper's tables, or measure a model, and print a table or JSON."""
    options = options_from(argv)
    if options.paper:
        rows = recompute(read_paper())
        if options.plot:
            draw_paper(options.plot, rows)
        if options.json:
            print_rows(rows)
        else:
            print_paper(rows)
        return
    rows, times = measure_model(options)
    if options.json:
        print_rows(rows)
    else:
        print_measured(rows, times)


if __name__ == "__main__":
    run(main)
