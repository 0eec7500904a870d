"""Pictures of score against cost: scatter plots whose marks carry their names.

Colour tells the method, shape how a block is filled, size and text the bytes drafted at once.
Filled marks are measured or published; what hollow ones are stands in the legend.
"""

import math
from typing import NamedTuple

from support.plots import pyplot, save
from support.terminal import package

# Okabe and Ito's colours, which colour-blind people tell apart, of methods and of benchmarks
COLOURS = {"BLT": "#000000", "BLT-S": "#0072B2", "BLT-D": "#D55E00", "BLT-DV": "#009E73"}
COLOURS |= {"lookup": "#CC79A7", "MMLU": "#000000", "PIQA": "#0072B2", "ARC-Easy": "#D55E00"}
COLOURS |= {"HellaSwag": "#009E73", "ARC-Challenge": "#CC79A7"}
METHODS = {"blt": "BLT", "blts": "BLT-S", "bltd": "BLT-D", "bltdv": "BLT-DV", "lookup": "lookup"}
# Triangles unmask by confidence, shapes with more corners by entropy.
MARKERS = {"": "o", "α = 0.3": "v", "α = 0.5": "^", "α = 0.7": ">", "γ = 0.5": "d", "γ = 0.8": "s"}
MARKERS |= {"γ = 1.0": "D", "γ = 1.2": "P", "γ = 1.5": "p", "γ = 2.0": "h", "one-step": "X"}
SIZES = {"4": 6.5, "8": 8.5, "16": 10.5}
WIDE = 0.021  # of an axis' width, between names that hang beside each other
TICKS = [n * 10.0**power for power in range(-3, 5) for n in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)]


class Mark(NamedTuple):
    """One measurement in a picture."""

    x: float
    y: float
    method: str  # one of COLOURS
    name: str  # marks that share it are joined and get one label; NAME-4 drafts 4 bytes at once
    rule: str = ""  # how a block is filled, one of MARKERS
    hollow: str = ""  # drawn hollow, as the legend explains in these words
    error: float | None = None  # of y


def name_groups(axis, marks):
    """Join the marks that share a name by a thin line, and write it where there is room."""
    texts, groups = [], {}
    for mark in sorted(marks):
        groups.setdefault((mark.name, mark.hollow), []).append(mark)
    for (name, hollow), group in groups.items():
        colour, places = COLOURS[group[0].method], [mark[:2] for mark in group]
        line, slant = (":", "italic") if hollow else ("-", "normal")
        axis.plot(*zip(*places), line, color=colour, linewidth=0.7, alpha=0.6, zorder=1)
        style = {"color": colour, "fontsize": 8.5, "fontstyle": slant}
        texts.append(axis.text(*places[len(places) // 2], name, ha="center", va="center", **style))
    keep_clear(axis, texts, marks)


def keep_clear(axis, texts, marks):
    """Move texts to where there is room, away from marks and from each other."""
    # Names keep clear of disks a bit larger than the marks, which are not to be seen themselves.
    disks = axis.scatter(*zip(*(mark[:2] for mark in marks)), s=130)
    # They are wide and low: up and down is the shorter way out.
    forces = {"force_text": (0.05, 0.4), "force_static": (0.05, 0.3), "expand": (1.1, 1.4)}
    # A limit in seconds, the default, would draw another picture on another machine.
    forces |= {"iter_lim": 500, "arrowprops": {"arrowstyle": "-", "lw": 0.4}}
    package("adjustText", "a picture").adjust_text(texts, objects=disks, ax=axis, **forces)
    disks.remove()


def frontier(marks):
    """Those that no other mark beats in both: from the cheapest on, each lower than all before."""
    best = []
    for mark in sorted(marks):
        if not best or mark.y < best[-1].y:
            best.append(mark)
    return best


def apart(shares, gap):
    """Where names hang that want to hang at `shares` of the width: in order, `gap` between them."""
    shares = list(shares)
    for i in range(1, len(shares)):
        shares[i] = max(shares[i], shares[i - 1] + gap)
    for i in reversed(range(len(shares))):  # back from the edge
        shares[i] = min(shares[i], 1 - gap * (len(shares) - i))
    return shares


def name_points(axis, marks):
    """Name every mark, and join those of the frontier by steps.

    Filled marks lie on one line (see scripts/figures.py): their names hang below it in a row.
    """
    steps = {"color": "#888888", "linewidth": 1.2, "linestyle": "--", "zorder": 1}
    axis.step(*zip(*(mark[:2] for mark in frontier(marks))), where="post", **steps)
    low, high = axis.get_ylim()
    axis.set_yticks([tick for tick in axis.get_yticks() if low <= tick <= high])
    axis.set_ylim(low - 0.75 * (high - low), high)
    left, right = map(math.log, axis.get_xlim())
    hanging = sorted(mark for mark in marks if not mark.hollow)
    shares = apart([(math.log(mark.x) - left) / (right - left) for mark in hanging], WIDE)
    arrow = {"arrowstyle": "-", "lw": 0.5, "color": "#999999", "relpos": (0.5, 1), "shrinkB": 4}
    style = {"fontsize": 8.5, "ha": "center"}
    down = style | {"rotation": 90, "va": "top", "textcoords": "axes fraction", "arrowprops": arrow}
    for mark, share in zip(hanging, shares):
        axis.annotate(mark.name, mark[:2], (share, 0.33), color=COLOURS[mark.method], **down)
    texts = [
        axis.text(*mark[:2], mark.name, color=COLOURS[mark.method], va="center", **style)
        for mark in marks
        if mark.hollow
    ]
    if texts:
        keep_clear(axis, texts, marks)


def draw(path, title, ylabel, panels, ticks=TICKS, name=name_groups):
    """Scatter plots below each other. panels: x label -> Marks. ticks: of x, where in sight.

    name: writes the names of the marks into an axis, or more of what is to be said of them.
    """
    plt, n = pyplot(), len(panels)
    figure, axes = plt.subplots(n, figsize=(8, 1 + 4.2 * n), squeeze=False, layout="constrained")
    for axis, (xlabel, marks) in zip(axes[:, 0], panels.items()):
        for mark in marks:
            draw_mark(axis, mark)
        # On a log scale equal distances are equal savings.
        axis.set(xscale="log", xlabel=f"{xlabel}, log scale", ylabel=ylabel)
        axis.xaxis.set_major_locator(plt.FixedLocator(ticks))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.margins(0.1, 0.15)
        axis.grid(alpha=0.25)
    figure.suptitle(title, fontsize=11)
    shown = legend_of([mark for marks in panels.values() for mark in marks])
    figure.legend(handles=shown, loc="outside lower center", ncols=7, fontsize=9, frameon=False)
    # Only now is it known where each mark lies in the picture.
    for axis, marks in zip(axes[:, 0], panels.values()):
        name(axis, marks)
    save(figure, path)


def draw_mark(axis, mark):
    """Draw one Mark, the larger the more bytes are drafted at once."""
    colour, size = COLOURS[mark.method], SIZES.get(mark.name.split("-")[-1], 8)
    style = {"markerfacecolor": colour, "markeredgecolor": "white", "markeredgewidth": 0.5}
    if mark.hollow:
        style = {"markerfacecolor": "white", "markeredgecolor": colour, "markeredgewidth": 1.2}
    style |= {"marker": MARKERS.get(mark.rule, "*"), "markersize": size, "ecolor": colour}
    axis.errorbar(mark.x, mark.y, mark.error, **style)


def legend_of(marks):
    """Handles that explain the colours, the shapes and the hollow marks that occur."""
    methods, rules = {mark.method for mark in marks}, {mark.rule for mark in marks} - {""}
    styles = [{"color": COLOURS[name], "label": name} for name in COLOURS if name in methods]
    gray = {"color": "gray"}
    styles += [gray | {"label": r, "marker": MARKERS[r]} for r in MARKERS if r in rules]
    for words in sorted({mark.hollow for mark in marks} - {""}):
        styles.append(gray | {"label": words, "markerfacecolor": "white"})
    line = pyplot().Line2D
    return [line([], [], linestyle="", **({"marker": "o"} | style)) for style in styles]
