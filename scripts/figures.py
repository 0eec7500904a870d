"""Pictures: what quality costs, for a model of ours and in the paper's tables.

    python -m scripts.figures tradeoff --out x.png     # every mode of a checkpoint, measured
    python -m scripts.figures acceptance --out x.png   # which bytes of a draft are kept
    python -m scripts.figures paper --out-dir docs     # the paper's Figures 6-10 in kind

What colours, shapes and sizes of the marks tell stands in evaluation/plots.py.
"""

import csv
import functools
import math
import os
import statistics

from bandwidth import compare, measure, read_prompts, settings_of
from diffusion import check_block_size
from evaluation.plots import METHODS, Mark, draw, name_points
from generate import Sampling
from model import load_model
from speculate import MODES, Drafting, run_mode
from support import checkpoint
from support.flags import Only, add_sampling
from support.paper import FOLDER, read_paper, recompute
from support.plots import BLUE, GREEN, RED, folder, plot_path, pyplot, save
from support.show import Recorder, how_drawn
from support.terminal import Parser, run

TASKS = {"humaneval": "HumanEval", "mbpp": "MBPP"}
GB, MS = "parameters read for a generation, GB (Eq. 8)", "time, ms a byte"
DRAFTS = {"one-step": "o-", "confidence": "s--", "chained": "*-"}


def measured_marks(rows, key):
    """Rows of bandwidth.compare -> Marks: the output's bits per byte against `key`.

    What is verified has plain BLT's distribution, and differs in bits by chance alone: its marks
    lie at the mean of them all. Hollow marks are the others.
    """
    lossless = [row for row in rows if row["mode"] == "blt" or MODES[row["mode"]].verified]
    same = statistics.mean(row["output_bits_per_byte"] for row in lossless)
    marks = []
    for row in rows:
        method = METHODS[row["mode"]]
        size, _, rule = row["setting"].partition(" ")
        rule = rule.replace("confidence", "α =").replace("entropy", "γ =")
        name = f"{'-'.join([method, *size.split('=')[1:]])} {rule}".strip()
        bits, hollow = same, ""
        if row not in lossless:
            bits, hollow = row["output_bits_per_byte"], "hollow: other text than plain BLT's"
        marks.append(Mark(row[key], bits, method, name, hollow=hollow))
    return marks


def draw_measured(options):
    """Measure every mode of a checkpoint and draw its quality against GB and time."""
    model, patcher = load_model(checkpoint.find(options.checkpoint))
    prompts, settings, o = read_prompts(options.prompts), settings_of(model), options
    sampling_of = functools.partial(Sampling, o.temperature, o.top_p, True, o.seed)
    made = measure(model, patcher, prompts, options.bytes, settings, sampling_of)
    rows, _ = compare(model, patcher, prompts, settings, made)
    for row in rows:
        row["ms"] = 1000 / row["bytes_per_second"]
    panels = {GB: measured_marks(rows, "bandwidth_gb"), MS: measured_marks(rows, "ms")}
    title = f"Every mode of one model, {options.bytes} bytes for each prompt, {how_drawn(options)}"
    title += "\nfilled marks are lossless; lower left is better: no setting beats the dashed line"
    ylabel = "bits per byte of the output under plain BLT"
    draw(options.out, title, ylabel, panels, name=name_points)
    print(f"{len(rows)} modes and settings in {options.out}")


# ---- drafts: what is kept of them


def acceptance_by_position(lengths, K):
    """(drafted, accepted) of rounds -> two lists of shares, None where there is no such round.

    The first: of all rounds, those that accepted bytes 1..j. The second: of those that drafted a
    byte j and accepted all before it, those that accepted it too.
    """
    rounds, kept, given = [n for n in lengths if n[0]], [], []
    for j in range(1, K + 1):
        asked = [accepted for drafted, accepted in rounds if drafted >= j and accepted >= j - 1]
        accepted = sum(n >= j for n in asked)
        kept.append(accepted / len(rounds) if rounds else None)
        given.append(accepted / len(asked) if asked else None)
    return kept, given


def draw_acceptance(options):
    """Draft with each rule and draw how much verification keeps, by position in the block."""
    model, patcher = load_model(checkpoint.find(options.checkpoint))
    prompts, o, K, plt = read_prompts(options.prompts), options, model.config.block_size, pyplot()
    check_block_size(model, K, "chained")
    figure, axes = plt.subplots(1, 2, figsize=(8.3, 3.4), sharey=True, layout="constrained")
    for (rule, style), colour in zip(DRAFTS.items(), (BLUE, GREEN, RED)):
        lengths, drafting = [], Drafting(unmask=rule, copy=0)
        for prompt in prompts:
            sampling, trace = Sampling(o.temperature, o.top_p, True, o.seed), Recorder()
            how = {"sampling": sampling, "trace": trace}
            run_mode("bltdv", model, patcher, prompt, o.bytes, drafting, **how)
            rounds = [event for event in trace.events if "accepted" in event]
            lengths += [(event["drafted"], event["accepted"]) for event in rounds]
        for axis, shares in zip(axes, acceptance_by_position(lengths, K)):
            percent = [math.nan if share is None else 100 * share for share in shares]
            axis.plot(range(1, K + 1), percent, style, color=colour, label=rule, ms=6)
        mean = statistics.mean(accepted for _, accepted in lengths)
        print(f"{rule}: {len(lengths)} rounds, {mean:.2f} bytes accepted a round")
    axes[0].set_ylabel("accepted, %")
    axes[0].set_title("bytes 1 to j, of all rounds", fontsize=10)
    axes[1].set_title("byte j, where all before it were", fontsize=10)
    for axis in axes:
        axis.set(xlabel="j, position in the block, bytes", ylim=(0, 102), xticks=range(1, K + 1))
        axis.grid(alpha=0.25)
    axes[0].legend(frameon=False)
    figure.suptitle(f"What verification keeps of blocks of {K}, {how_drawn(o)}", fontsize=11)
    save(figure, options.out)


def paper_marks(rows):
    """Rows of support.paper.recompute for one task -> Marks: the score against GB."""
    marks = []
    for row in rows:
        method, rule = row["method"], row["setting"]
        name = f"{method}-{row['block_size']}"
        if method == "BLT":
            name, rule = method, ""
        elif method == "BLT-S":
            name, rule = f"{method}-{rule.removeprefix('k=')}", ""
        rule = rule.replace("alpha=", "α = ").replace("gamma=", "γ = ")
        marks.append(Mark(row["gb"], row["score"], method, name, rule))
        if row["one_call_gb"] is not None:
            one_call = Mark(
                row["one_call_gb"], row["score"], method, name, rule, "one call a round"
            )
            marks.append(one_call)
    return marks


def draw_likelihood(path):
    """Tables 1-2: scores in percent against block size, a panel for each model size."""
    panels = {}
    with open(os.path.join(FOLDER, "likelihood.csv"), newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["model_size"])
    for row in rows:
        label = f"{row['model_size']} parameters: block size K of training, bytes, 1 for plain BLT"
        for name, K in {"BLT": 1, "BLT-D-4": 4, "BLT-D-8": 8, "BLT-D-16": 16}.items():
            mark = Mark(K, float(row[name]), row["benchmark"], row["benchmark"])
            panels.setdefault(label, []).append(mark)
    title = "Likelihood benchmarks: the paper's tables"
    draw(path, title, "score with the causal mask, %", panels, ticks=(1, 4, 8, 16))


def draw_paper(options):
    """Draw each task of the paper's Tables 3-10 at each model size, and Tables 1-2."""
    tables = {}
    for row in recompute(read_paper()):
        tables.setdefault((row["model_size"], row["task"]), []).append(row)
    for (size, task), rows in tables.items():
        path = os.path.join(options.out_dir, f"paper-{size}-{task}.{options.format}")
        ylabel = rows[0]["metric"].replace("pass@1", "pass@1, %")
        # plain BLT runs its decoder once a byte
        length = next(row["decoder_nfes"] for row in rows if row["method"] == "BLT")
        title = f"{TASKS.get(task, task)} at {size}, {length:.0f} bytes a generation"
        draw(path, f"{title}: the paper's tables", ylabel, {GB: paper_marks(rows)})
        print(path)
    path = os.path.join(options.out_dir, f"paper-likelihood.{options.format}")
    draw_likelihood(path)
    print(path)


def options_from(argv):
    parser = Parser(prog="scripts.figures", description="Pictures of what quality costs.")
    what = parser.add_subparsers(dest="what", required=True, metavar="tradeoff|acceptance|paper")
    helps = {"tradeoff": "measure every mode of a checkpoint"}
    helps["acceptance"] = "which bytes of a draft are kept, by position and rule"
    for name, help_ in helps.items():
        one = what.add_parser(name, help=help_)
        add = one.add_argument
        add("--checkpoint", help="whose modes (default: the newest model there is)")
        add("--prompts", metavar="FILE", help="one a line (default: four held-out places)")
        add_sampling(Only(one, "bytes temperature top-p seed"), temperature=0.8)
        add("--out", metavar="FILE", type=plot_path, required=True, help="PNG or SVG to write")
    add = what.add_parser("paper", help="draw the tables in paper/").add_argument
    add("--out-dir", metavar="DIR", type=folder, required=True, help="folder to draw in")
    add("--format", choices=("png", "svg"), default="png", help="of the pictures")
    return parser.parse_args(argv)


def main(argv=None):
    options = options_from(argv)
    works = {"tradeoff": draw_measured, "acceptance": draw_acceptance, "paper": draw_paper}
    works[options.what](options)


if __name__ == "__main__":
    run(main, "scripts.figures")
