"""Pictures: what quality costs, for a model of ours and in the paper's tables.

    python -m scripts.figures tradeoff --out tradeoff.png   # every mode of a checkpoint, measured
    python -m scripts.figures paper --out-dir docs          # the paper's Figures 6-10 in kind

Colour tells the method, shape how a block is filled, size and text the bytes drafted at once.
Filled markers are measured or published; hollow ones are the paper's rows with one encoder/global
call a round instead of two. Colours are those of Okabe and Ito, which colour-blind people tell
apart.
"""

import argparse
import csv
import functools
import os
from typing import NamedTuple

from bandwidth import compare, measure, read_prompts, settings_of
from evaluation.plots import plot_path, write_name
from generate import Sampling
from model import load_model
from support import checkpoint
from support.paper import FOLDER, read_paper, recompute
from support.terminal import BadInput, Parser, number, run

BLACK, BLUE, ORANGE, GREEN, PINK = "#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7"
COLOURS = {"BLT": BLACK, "BLT-S": BLUE, "BLT-D": ORANGE, "BLT-DV": GREEN, "lookup": PINK}
# Triangles unmask by confidence, shapes with more corners by entropy.
MARKERS = {"": "o", "α = 0.3": "v", "α = 0.5": "^", "α = 0.7": ">", "γ = 0.8": "s"}
MARKERS |= {"γ = 1.0": "D", "γ = 1.5": "p", "γ = 2.0": "h", "one-step": "X"}
# Colour and marker of the likelihood benchmarks
BENCHMARKS = {"PIQA": (BLUE, "o"), "HellaSwag": (GREEN, "s"), "ARC-Easy": (ORANGE, "^")}
BENCHMARKS |= {"ARC-Challenge": (PINK, "v"), "MMLU": (BLACK, "D")}
TASKS = {"humaneval": "HumanEval", "mbpp": "MBPP"}
MODES = {"blt": "BLT", "blts": "BLT-S", "bltd": "BLT-D", "bltdv": "BLT-DV", "lookup": "lookup"}
TICKS = [digit * 10.0**power for power in range(-3, 5) for digit in (1, 2, 3, 5, 7)]
GB = "parameters read for a generation, GB (Eq. 8), log scale"


class Mark(NamedTuple):
    """One way to generate in a picture."""

    x: float
    y: float
    method: str  # one of COLOURS
    name: str  # the method with its block or draft size; marks that share it get one label
    rule: str = ""  # how a block is filled, one of MARKERS
    hollow: bool = False


def pyplot():
    """matplotlib's pyplot, drawing to files. Raises BadInput where it is not installed."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        raise BadInput("figures need matplotlib: pip install -r requirements-dev.txt") from None
    plt.rcParams.update({"font.size": 10, "svg.fonttype": "none"})
    return plt


# ---- trade-offs: pictures of marks


def draw_tradeoff(path, title, ylabel, panels):
    """Scatter plots of marks below each other. panels: x label -> Marks."""
    plt, count = pyplot(), len(panels)
    size = (8, 1 + 4.2 * count)
    figure, axes = plt.subplots(count, figsize=size, squeeze=False, layout="constrained")
    for axis, (xlabel, marks) in zip(axes[:, 0], panels.items()):
        for mark in marks:
            draw_mark(axis, mark)
        axis.set_xscale("log", subs=())  # equal distances are equal savings
        axis.margins(0.1, 0.15)
        ticks = [t for t in TICKS if axis.get_xlim()[0] < t < axis.get_xlim()[1]]
        axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axis.set_xlabel(xlabel)
        axis.set_ylabel(ylabel)
        axis.grid(alpha=0.25)
    figure.suptitle(title, fontsize=11)
    shown = legend_of([mark for marks in panels.values() for mark in marks])
    figure.legend(handles=shown, loc="outside lower center", ncols=7, fontsize=9, frameon=False)
    # Only now is it known where each mark lies in the picture.
    figure.canvas.draw()
    for axis, marks in zip(axes[:, 0], panels.values()):
        name_groups(axis, marks)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def draw_mark(axis, mark):
    """Draw one Mark, the larger the more bytes are drafted at once."""
    colour, size = COLOURS[mark.method], {"4": 6.5, "8": 8.5, "16": 10.5}
    style = {"markerfacecolor": colour, "markeredgecolor": "white", "markeredgewidth": 0.5}
    if mark.hollow:
        style = {"markerfacecolor": "white", "markeredgecolor": colour, "markeredgewidth": 1.2}
    style["markersize"] = size.get(mark.name.split("-")[-1], 8)
    axis.plot(mark.x, mark.y, MARKERS.get(mark.rule, "P"), **style)


def legend_of(marks):
    """Handles that explain the colours, the shapes and the hollow marks that occur."""
    from matplotlib.lines import Line2D

    methods, rules = {mark.method for mark in marks}, {mark.rule for mark in marks}
    styles = [{"color": COLOURS[name], "label": name} for name in COLOURS if name in methods]
    for rule in MARKERS:
        if rule and rule in rules:
            styles.append({"color": "gray", "label": rule, "marker": MARKERS[rule]})
    if any(mark.hollow for mark in marks):
        styles.append({"color": "gray", "label": "one call a round", "markerfacecolor": "white"})
    return [Line2D([], [], linestyle="", **({"marker": "o"} | style)) for style in styles]


def name_groups(axis, marks):
    """Join the marks that share a name by a thin line, and write it where there is room."""
    from matplotlib.transforms import Bbox

    names, groups = [], {}
    # From right to left: a name goes to the right of its mark where it can.
    for mark in sorted(marks, reverse=True):
        groups.setdefault((mark.name, mark.hollow), []).append(mark)
    for key, group in groups.items():
        colour, places = COLOURS[group[0].method], [mark[:2] for mark in group]
        line, slant = (":", "italic") if group[0].hollow else ("-", "normal")
        axis.plot(*zip(*places), line, color=colour, linewidth=0.7, alpha=0.6, zorder=1)
        taken = list(names)
        for other, others in groups.items():
            # No name stands right beside another's mark: it would be taken for its own.
            far, near = (6, 6) if other == key else (30, 6)
            for x, y in axis.transData.transform([mark[:2] for mark in others]):
                taken.append(Bbox.from_extents(x - near, y - far, x + near, y + far))
                taken.append(Bbox.from_extents(x - far, y - near, x + far, y + near))
        style = {"color": colour, "fontsize": 8.5, "fontstyle": slant}
        write_name(axis, key[0], places[len(places) // 2], taken, **style)
        names.append(taken[-1])


# ---- a model of ours, measured


def measured_marks(rows, key):
    """Rows of bandwidth.compare -> Marks: the output's bits per byte against `key`."""
    marks = []
    for row in rows:
        method = MODES[row["mode"]]
        size, _, rule = row["setting"].partition(" ")
        rule = rule.replace("confidence", "α =").replace("entropy", "γ =")
        name = "-".join([method, *size.split("=")[1:]])
        marks.append(Mark(row[key], row["output_bits_per_byte"], method, name, rule))
    return marks


def draw_measured(options):
    """Measure every mode of a checkpoint and draw its quality against GB and bytes a second."""
    pyplot()  # says what is missing before anything is measured
    model, patcher = load_model(checkpoint.find(options.checkpoint))
    prompts, settings = read_prompts(options.prompts), settings_of(model)
    greedy = functools.partial(Sampling, ignore_eos=True)
    made = measure(model, patcher, prompts, options.bytes, settings, greedy)
    rows, _ = compare(model, patcher, prompts, settings, made)
    panels = {
        GB: measured_marks(rows, "bandwidth_gb"),
        "speed, bytes/s, log scale": measured_marks(rows, "bytes_per_second"),
    }
    title = f"Every mode of one model, {options.bytes} bytes for each prompt, greedy"
    draw_tradeoff(options.out, title, "bits per byte of the output under plain BLT", panels)
    print(f"{len(rows)} modes and settings in {options.out}")


# ---- the paper's tables


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
            marks.append(Mark(row["one_call_gb"], row["score"], method, name, rule, hollow=True))
    return marks


def read_likelihood():
    """The rows of the paper's Tables 1 and 2 -> dicts; scores in percent, as text."""
    with open(os.path.join(FOLDER, "likelihood.csv"), newline="") as file:
        return list(csv.DictReader(file))


def draw_likelihood(path, rows):
    """Scores on the likelihood benchmarks against block size, a panel for each model size."""
    plt, sizes = pyplot(), sorted({row["model_size"] for row in rows})
    columns = [name for name in rows[0] if name.startswith("BLT")]
    grid = {"figsize": (8, 5.2), "sharey": True, "squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(1, len(sizes), **grid)
    for axis, size in zip(axes[0], sizes):
        for row in [row for row in rows if row["model_size"] == size]:
            colour, marker = BENCHMARKS[row["benchmark"]]
            scores = [float(row[name]) for name in columns]
            axis.plot(scores, marker=marker, color=colour, label=row["benchmark"])
        axis.set_xticks(range(len(columns)), [name.split("-")[-1] for name in columns])
        axis.set_xlabel("block size K of BLT-D training, bytes")
        axis.set_title(f"{size} parameters", fontsize=11)
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("score with the causal mask, %")
    lines = axes[0][0].get_lines()
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), frameon=False)
    figure.savefig(path, dpi=160)
    plt.close(figure)


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
        draw_tradeoff(path, f"{title}: the paper's tables", ylabel, {GB: paper_marks(rows)})
        print(path)
    path = os.path.join(options.out_dir, f"paper-likelihood.{options.format}")
    draw_likelihood(path, read_likelihood())
    print(path)


# ---- command line


def folder(path):
    """An argparse type: a folder that is there."""
    if not os.path.isdir(path):
        raise argparse.ArgumentTypeError(f"there is no folder {path} to draw in")
    return path


def options_from(argv):
    parser = Parser(prog="scripts.figures", description="Pictures of what quality costs.")
    what = parser.add_subparsers(dest="what", required=True, metavar="tradeoff|paper")
    add = what.add_parser("tradeoff", help="measure every mode of a checkpoint").add_argument
    add("--checkpoint", help="whose modes (default: the newest model there is)")
    add("--prompts", metavar="FILE", help="one a line (default: four held-out places)")
    add("--bytes", type=number(int, 2), default=256, help="to generate for each prompt")
    add("--out", metavar="FILE", type=plot_path, required=True, help="PNG or SVG to write")
    add = what.add_parser("paper", help="draw the tables in paper/").add_argument
    add("--out-dir", metavar="DIR", type=folder, required=True, help="folder to draw in")
    add("--format", choices=("png", "svg"), default="png", help="of the pictures")
    return parser.parse_args(argv)


def main(argv=None):
    options = options_from(argv)
    {"tradeoff": draw_measured, "paper": draw_paper}[options.what](options)


if __name__ == "__main__":
    run(main, "scripts.figures")
