"""Pictures of score against cost: scatter plots whose marks carry their names.

Colour tells the method, shape γ of entropy, text the bytes drafted at once. Hollow marks are of
methods whose output is not plain BLT's, where a picture tells them apart.
"""

from typing import NamedTuple

from support.plots import pyplot
from support.terminal import package

# Okabe and Ito's colours, which colour-blind people tell apart
COLOURS = {"BLT": "#000000", "BLT-S": "#0072B2", "BLT-D": "#D55E00", "BLT-DV": "#009E73"}
COLOURS |= {"lookup": "#CC79A7", "one-step": "#0072B2", "confidence": "#009E73"}
COLOURS |= {"chained": "#D55E00"}
METHODS = {"blt": "BLT", "blts": "BLT-S", "bltd": "BLT-D", "bltdv": "BLT-DV", "lookup": "lookup"}
MARKERS = {"": "o", "γ = 0.5": "d", "γ = 0.8": "s", "γ = 1.0": "D", "γ = 1.2": "P"}
MARKERS |= {"γ = 1.5": "p", "γ = 2.0": "h"}
TICKS = [n * 10.0**power for power in range(-3, 5) for n in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)]


class Mark(NamedTuple):
    """One measurement in a picture."""

    x: float
    y: float
    method: str  # one of COLOURS
    name: str  # marks that share it are joined and get one label; NAME-4 drafts 4 bytes at once
    rule: str = ""  # how a block is filled, one of MARKERS
    hollow: bool = False
    error: float | None = None  # of y


def draw(path, title, ylabel, panels, scale="log", tradeoff=False):
    """Scatter plots below each other. panels: x label -> Marks. scale: of x.

    tradeoff: cost, the panels' label, goes up and `ylabel` to the right; the best are joined.
    """
    plt, n = pyplot(), len(panels)
    figure, axes = plt.subplots(n, figsize=(8, 1 + 4.2 * n), squeeze=False, layout="constrained")
    for axis, (xlabel, marks) in zip(axes[:, 0], panels.items()):
        for mark in marks:
            draw_mark(axis, mark)
        cost, labels = "x", [xlabel, ylabel]
        if tradeoff:
            cost, labels = "y", [ylabel, xlabel]
            places = zip(*(mark[:2] for mark in best(marks)))
            axis.step(*places, where="post", color="gray", linestyle="--", zorder=1)
        axis.set(xlabel=labels[0], ylabel=labels[1])
        if scale == "log":  # equal distances are equal savings
            axis.set(**{f"{cost}scale": "log", f"{cost}label": f"{xlabel}, log scale"})
            ruler = getattr(axis, f"{cost}axis")
            ruler.set_major_locator(plt.FixedLocator(TICKS))
            ruler.set_major_formatter("{x:g}")
            axis.minorticks_off()
        axis.margins(0.1, 0.15)
        axis.grid(alpha=0.25)
    figure.suptitle(title, fontsize=11)
    shown = legend_of([mark for marks in panels.values() for mark in marks])
    figure.legend(handles=shown, loc="outside lower center", ncols=7, fontsize=9, frameon=False)
    # Only now is it known where each mark lies in the picture.
    for axis, marks in zip(axes[:, 0], panels.values()):
        name_groups(axis, [mark for mark in marks if mark.hollow or not tradeoff])
        if tradeoff:
            name_column(axis, [mark for mark in marks if not mark.hollow])
    figure.savefig(path, dpi=160)
    plt.close(figure)


def best(marks):
    """Marks that no other beats in both ways, from the left: each is lower than all before."""
    found = []
    for mark in sorted(marks):
        if not found or mark.y < found[-1].y:
            found.append(mark)
    return found


def draw_mark(axis, mark):
    """Draw one Mark."""
    colour, fill = COLOURS[mark.method], "white" if mark.hollow else COLOURS[mark.method]
    style = {"color": colour, "markerfacecolor": fill, "markersize": 8}
    axis.errorbar(mark.x, mark.y, mark.error, marker=MARKERS.get(mark.rule, "*"), **style)


def legend_of(marks):
    """Handles that explain the colours, the shapes and the hollow marks that occur."""
    methods, rules = {mark.method for mark in marks}, {mark.rule for mark in marks} - {""}
    styles = [{"color": COLOURS[name], "label": name} for name in COLOURS if name in methods]
    gray = {"color": "gray"}
    styles += [gray | {"label": r, "marker": MARKERS[r]} for r in MARKERS if r in rules]
    line = pyplot().Line2D
    return [line([], [], linestyle="", **({"marker": "o"} | style)) for style in styles]


def name_column(axis, marks):
    """Write the names of marks that lie above each other beside them, from the lowest on."""
    left, right = axis.get_xlim()
    axis.set_xlim(left - 0.2 * (right - left), right + 0.05 * (right - left))
    for i, mark in enumerate(sorted(marks, key=lambda mark: mark.y)):
        place, colour = (0.16, (i + 0.5) / len(marks)), COLOURS[mark.method]
        line = {"arrowstyle": "-", "lw": 0.5, "color": colour, "relpos": (1, 0.5)}
        style = {"color": colour, "fontsize": 8.5, "ha": "right", "va": "center"}
        axis.annotate(mark.name, mark[:2], place, "data", "axes fraction", line, **style)


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
    if not texts:
        return
    # Names keep clear of disks a bit larger than the marks, which are not to be seen themselves.
    disks = axis.scatter(*zip(*(mark[:2] for mark in marks)), s=130)
    # They are wide and low: up and down is the shorter way out.
    forces = {"force_text": (0.05, 0.4), "force_static": (0.05, 0.3), "expand": (1.1, 1.4)}
    # A limit in seconds, the default, would draw another picture on another machine.
    forces |= {"iter_lim": 500, "arrowprops": {"arrowstyle": "-", "lw": 0.4}}
    package("adjustText", "a picture").adjust_text(texts, objects=disks, ax=axis, **forces)
    disks.remove()
