"""Pictures: what quality costs every mode of a model, and which bytes of its drafts are kept.

    python -m scripts.figures tradeoff --out tradeoff.png
    python -m scripts.figures acceptance --out acceptance.png

What colours and shapes of the marks tell stands in evaluation/plots.py.
"""

import functools
import statistics

from bandwidth import compare, measure, read_prompts, settings_of
from diffusion import check_block_size
from evaluation.plots import METHODS, Mark, draw
from generate import Generation, Sampling
from model import load_model
from speculate import MODES, Drafting
from support import checkpoint
from support.flags import Only, add_sampling
from support.plots import to_write
from support.terminal import Parser, run

GB, MS = "parameters read for a generation, GB (Eq. 8)", "time, ms a byte"


def measured_marks(rows, key):
    """Rows of bandwidth.compare -> Marks: the output's bits per byte against `key`.

    What is verified has plain BLT's distribution, and differs in bits by chance alone: its marks
    lie at the mean of them all. Hollow marks are the others.
    """
    lossless = [row for row in rows if row["mode"] == "blt" or MODES[row["mode"]].verified]
    same = statistics.mean(row["output_bits_per_byte"] for row in lossless)
    marks = []
    for row in rows:
        method, (size, _, rule) = METHODS[row["mode"]], row["setting"].partition(" ")
        rule = rule.replace("confidence", "α =").replace("entropy", "γ =")
        name = f"{'-'.join([method, *size.split('=')[1:]])} {rule}".strip()
        hollow = row not in lossless
        bits = row["output_bits_per_byte"] if hollow else same
        marks.append(Mark(bits, row[key], method, name, hollow=hollow))
    return marks


def draw_tradeoff(model, patcher, prompts, options, sampling_of, how):
    """Measure every mode and draw the quality of its output against GB and time."""
    settings = settings_of(model)
    made = measure(model, patcher, prompts, options.bytes, settings, sampling_of)
    rows, _ = compare(model, patcher, prompts, settings, made)
    for row in rows:
        row["ms"] = 1000 / row["bytes_per_second"]
    panels = {GB: measured_marks(rows, "bandwidth_gb"), MS: measured_marks(rows, "ms")}
    title = f"Every mode of one model, {how}: lower left is better\nfilled: lossless; "
    title += "hollow: another text than plain BLT's; dashed: no setting is better in both"
    draw(options.out, title, "bits per byte of the output under plain BLT", panels, tradeoff=True)
    print(f"{len(rows)} modes and settings in {options.out}")


def acceptance_marks(rule, counters, K):
    """Of all rounds, those that accepted bytes 1 to j of a draft, for j = 1 to K, % -> Marks."""
    marks = []
    for j in range(1, K + 1):
        kept = sum(rounds for accepted, rounds in counters.lengths.items() if accepted >= j)
        marks.append(Mark(j, 100 * kept / counters.rounds, rule, rule))
    return marks


def draw_acceptance(model, patcher, prompts, options, sampling_of, how):
    """Draft with each rule and draw how much verification keeps, by position in the block."""
    K, marks, rules = model.config.block_size, [], ("one-step", "confidence", "chained")
    check_block_size(model, K, "chained")
    settings = [("bltdv", rule, Drafting(unmask=rule, copy=0)) for rule in rules]
    made = measure(model, patcher, prompts, options.bytes, settings, sampling_of)
    for rule, outputs in zip(rules, made):
        c = Generation.total(outputs).counters
        marks += acceptance_marks(rule, c, K)
        print(f"{rule}: {c.rounds} rounds, {c.accepted / c.rounds:.2f} bytes accepted a round")
    panels = {"j, position in the block, bytes": marks}
    title = f"What verification keeps of blocks of {K}, {how}"
    draw(options.out, title, "rounds that accept bytes 1 to j, %", panels, scale="linear")


WORK = {"tradeoff": draw_tradeoff, "acceptance": draw_acceptance}


def options_from(argv):
    parser = Parser(prog="scripts.figures", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("what", choices=WORK, help="the picture")
    add("--checkpoint", help="whose modes (default: the newest model there is)")
    add("--prompts", metavar="FILE", help="one a line (default: four held-out places)")
    add_sampling(Only(parser, "bytes temperature top-p seed"), temperature=0.8)
    add("--out", metavar="FILE", type=to_write(".png", ".svg"), required=True, help="to write")
    return parser.parse_args(argv)


def main(argv=None):
    o = options_from(argv)
    model, patcher = load_model(checkpoint.find(o.checkpoint))
    sampling_of = functools.partial(Sampling, o.temperature, o.top_p, True, o.seed)
    drawn = f"temperature {o.temperature:g}, top-p {o.top_p:g}" if o.temperature else "greedy"
    how = f"{o.bytes} bytes a prompt, {drawn}"
    WORK[o.what](model, patcher, read_prompts(o.prompts), o, sampling_of, how)


if __name__ == "__main__":
    run(main, "scripts.figures")
