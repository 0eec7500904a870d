"""Pictures of score against cost: scatter plots whose marks carry their names.

Colour tells the method, shape how a block is filled, size and text the bytes drafted at once.
"""

import argparse
import os
from typing import NamedTuple

from support.terminal import package

# Okabe and Ito's colours, which colour-blind people tell apart
COLOURS = {"BLT": "#000000", "BLT-S": "#0072B2", "BLT-D": "#D55E00", "BLT-DV": "#009E73"}
COLOURS |= {"lookup": "#CC79A7"}
METHODS = {"blt": "BLT", "blts": "BLT-S", "bltd": "BLT-D", "bltdv": "BLT-DV", "lookup": "lookup"}
# Triangles unmask by confidence, shapes with more corners by entropy.
MARKERS = {"": "o", "α = 0.3": "v", "α = 0.5": "^", "α = 0.7": ">", "γ = 0.5": "d", "γ = 0.8": "s"}
MARKERS |= {"γ = 1.0": "D", "γ = 1.2": "P", "γ = 1.5": "p", "γ = 2.0": "h", "one-step": "X"}
MARKERS |= {"chained": "*", "copy 16": "<"}
SIZES = {"4": 6.5, "8": 8.5, "16": 10.5}
TICKS = [n * 10.0**power for power in range(-3, 5) for n in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)]


class Mark(NamedTuple):
    """One measurement in a picture."""

    x: float
    y: float
    method: str  # one of COLOURS
    name: str  # marks that share it are joined and get one label; NAME-4 drafts 4 bytes at once
    rule: str = ""  # how a block is filled, one of MARKERS
    error: float | None = None  # of y


def plot_path(path):
    """An argparse type: a file that matplotlib can be asked to write."""
    if not path.endswith((".png", ".svg")):
        raise argparse.ArgumentTypeError(f"plots are written as .png or .svg, not {path}")
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise argparse.ArgumentTypeError(f"there is no folder {folder} to draw in")
    pyplot()  # says what is missing before anything is measured
    return path


def pyplot():
    """matplotlib's pyplot, drawing to files. Raises BadInput where a package is missing."""
    package("matplotlib", "a picture").use("Agg")
    package("adjustText", "a picture")
    plt = package("matplotlib.pyplot", "a picture")
    plt.rcParams.update({"font.size": 10, "svg.fonttype": "none"})
    return plt


def draw(path, title, ylabel, panels):
    """Scatter plots below each other. panels: x label -> Marks."""
    plt, n = pyplot(), len(panels)
    figure, axes = plt.subplots(n, figsize=(8, 1 + 4.2 * n), squeeze=False, layout="constrained")
    for axis, (xlabel, marks) in zip(axes[:, 0], panels.items()):
        for mark in marks:
            draw_mark(axis, mark)
        # On a log scale equal distances are equal savings.
        axis.set(xscale="log", xlabel=f"{xlabel}, log scale", ylabel=ylabel)
        axis.xaxis.set_major_locator(plt.FixedLocator(TICKS))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.margins(0.1, 0.15)
        axis.grid(alpha=0.25)
    figure.suptitle(title, fontsize=11)
    shown = legend_of([mark for marks in panels.values() for mark in marks])
    figure.legend(handles=shown, loc="outside lower center", ncols=7, fontsize=9, frameon=False)
    # Only now is it known where each mark lies in the picture.
    for axis, marks in zip(axes[:, 0], panels.values()):
        name_groups(axis, marks)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def draw_mark(axis, mark):
    """Draw one Mark, the larger the more bytes are drafted at once."""
    colour, size = COLOURS[mark.method], SIZES.get(mark.name.split("-")[-1], 8)
    style = {"markerfacecolor": colour, "markeredgecolor": "white", "markeredgewidth": 0.5}
    style |= {"marker": MARKERS.get(mark.rule, "*"), "markersize": size, "ecolor": colour}
    axis.errorbar(mark.x, mark.y, mark.error, **style)


def legend_of(marks):
    """Handles that explain the colours and the shapes that occur."""
    methods, rules = {mark.method for mark in marks}, {mark.rule for mark in marks} - {""}
    styles = [{"color": COLOURS[name], "label": name} for name in COLOURS if name in methods]
    gray = {"color": "gray"}
    styles += [gray | {"label": r, "marker": MARKERS[r]} for r in MARKERS if r in rules]
    line = pyplot().Line2D
    return [line([], [], linestyle="", **({"marker": "o"} | style)) for style in styles]


def name_groups(axis, marks):
    """Join the marks that share a name by a thin line, and write it where there is room."""
    texts, groups = [], {}
    for mark in sorted(marks):
        groups.setdefault(mark.name, []).append(mark)
    for name, group in groups.items():
        colour, places = COLOURS[group[0].method], [mark[:2] for mark in group]
        axis.plot(*zip(*places), color=colour, linewidth=0.7, alpha=0.6, zorder=1)
        style = {"color": colour, "fontsize": 8.5}
        texts.append(axis.text(*places[len(places) // 2], name, ha="center", va="center", **style))
    # Names keep clear of disks a bit larger than the marks, which are not to be seen themselves.
    disks = axis.scatter(*zip(*(mark[:2] for mark in marks)), s=130)
    # They are wide and low: up and down is the shorter way out.
    forces = {"force_text": (0.05, 0.4), "force_static": (0.05, 0.3), "expand": (1.1, 1.4)}
    # A limit in seconds, the default, would draw another picture on another machine.
    forces |= {"iter_lim": 500, "arrowprops": {"arrowstyle": "-", "lw": 0.4}}
    package("adjustText", "a picture").adjust_text(texts, objects=disks, ax=axis, **forces)
    disks.remove()


def draw_tradeoff(path, rows, title):
    """What quality costs: rows of bandwidth.compare, against gigabytes and bytes a second."""
    panels = {"parameters read for a generation, GB (Eq. 8)": [], "speed, bytes/s": []}
    for row in rows:
        method = METHODS[row["mode"]]
        size, _, rule = row["setting"].partition(" ")
        rule = rule.replace("confidence", "α =").replace("entropy", "γ =")
        name = "-".join([method, *size.split("=")[1:]])
        for marks, key in zip(panels.values(), ("bandwidth_gb", "bytes_per_second")):
            marks.append(Mark(row[key], row["output_bits_per_byte"], method, name, rule))
    draw(path, title, "bits per byte of the output under plain BLT", panels)
