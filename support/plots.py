"""Pictures by matplotlib: what quality costs, and the mask of blocks.

Colours are Okabe and Ito's, which colour-blind people tell apart.
"""

import argparse
import statistics
from itertools import accumulate

from support.terminal import check_writable, package

BLUE, ORANGE, GREEN, RED, BLANK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#ECECEC"
METHODS = {"blt": "BLT", "blts": "BLT-S", "bltd": "BLT-D", "bltdv": "BLT-DV", "lookup": "lookup"}
COLOURS = {"blt": "black", "blts": BLUE, "bltd": RED, "bltdv": GREEN, "lookup": "#CC79A7"}
TICKS = [n * 10.0**power for power in range(-3, 5) for n in (1, 1.5, 2, 3, 4, 6, 8)]
GB, MS = "parameters read, GB a generation (Eq. 8)", "time, ms a byte"
MONO = {"family": "DejaVu Sans Mono", "ha": "center", "va": "center"}


def to_write(*endings):
    """An argparse type: a file that ends so and can be written, by what draws it if drawn."""

    def parse(path):
        if not path.endswith(endings):
            words = f"this is written as {' or '.join(endings)}, not {path}"
            raise argparse.ArgumentTypeError(words)
        check_writable(path)
        if ".png" in endings:
            pyplot()  # says what is missing before anything is measured
        return path

    return parse


def pyplot():
    """matplotlib's pyplot, drawing to files. Raises BadInput where the package is missing."""
    package("matplotlib", "a picture").use("Agg")
    plt = package("matplotlib.pyplot", "a picture")
    plt.rcParams.update({"font.size": 10, "svg.fonttype": "none"})
    return plt


def save_figure(figure, path):
    """Write a picture."""
    figure.savefig(path, dpi=160)
    pyplot().close(figure)


# ---- what quality costs


def draw_tradeoff(path, rows, how):
    """Cost of every mode and setting against the quality of what it writes.

    rows: of bandwidth.compare. What verifies has plain BLT's distribution, and its output differs
    in bits by chance alone: its filled marks lie at the mean of them all.
    """
    same = statistics.mean(r["output_bits_per_byte"] for r in rows if r["lossless"])
    bits = [same if row["lossless"] else row["output_bits_per_byte"] for row in rows]
    costs = {
        GB: [r["bandwidth_gb"] for r in rows],
        MS: [1000 / r["bytes_per_second"] for r in rows],
    }
    plt = pyplot()
    figure, axes = plt.subplots(2, figsize=(8.3, 10), layout="constrained")
    for axis, (label, cost) in zip(axes, costs.items()):
        for row, *place in zip(rows, bits, cost):
            colour = COLOURS[row["mode"]]
            filled = colour if row["lossless"] else "white"
            axis.plot(*place, "o", color=colour, markerfacecolor=filled, markersize=8)
        style = {"where": "post", "color": "gray", "linestyle": "--", "zorder": 1}
        axis.step(*zip(*frontier(zip(bits, cost))), **style)
        axis.set(yscale="log", ylabel=f"{label}, log scale", xlabel="bits per byte of the output")
        axis.yaxis.set_major_locator(plt.FixedLocator(TICKS))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.grid(alpha=0.25)
        low, high = min(bits), max(bits)
        room = (0.1 + high - low) * 0.42  # for the names on both sides
        axis.set(xlim=(low - room, high + room), ylim=(min(cost) / 1.2, max(cost) * 1.2))
        for lossless in (True, False):
            these = [x for x in zip(rows, bits, cost) if x[0]["lossless"] == lossless]
            name_marks(axis, these, lossless)
    words = "filled: lossless, as good as plain BLT's; hollow: other text than plain BLT's"
    figure.suptitle(f"{how}: lower left is better\n{words}\ndashed: the frontier", fontsize=11)
    save_figure(figure, path)


def frontier(places):
    """Places (bits, cost), those that no other beats in both -> list, the best quality first."""
    best = []
    for place in sorted(places):
        if not best or place[1] < best[-1][1]:
            best.append(place)
    return best


def name_marks(axis, marks, left):
    """Name marks (row, bits, cost) in a column at one side, from the cheapest up, with a line."""
    for i, (row, *place) in enumerate(sorted(marks, key=lambda mark: mark[2])):
        size, _, rule = row["setting"].partition(" ")
        name = f"{'-'.join([METHODS[row['mode']], *size.split('=')[1:]])} {rule}".strip()
        name = name.replace("confidence", "α =").replace("entropy", "γ =")
        end, colour = (0.2 if left else 0.8, (i + 0.5) / len(marks)), COLOURS[row["mode"]]
        line = {"arrowstyle": "-", "lw": 0.5, "color": colour, "relpos": (left, 0.5)}
        style = {"color": colour, "fontsize": 8.5, "ha": "right" if left else "left"}
        axis.annotate(name, place, end, "data", "axes fraction", line, va="center", **style)


# ---- what blocks are


def draw_mask(path, seen, names, groups):
    """Who (row) sees whom (column): clean rows, then those of blocks.

    seen (R, R) bools; names: of the rows; groups: how many are clean, and how many each block has.
    """
    plt, R, N = pyplot(), range(len(names)), groups[0]
    names = [name.replace(" ", "␣") for name in names]
    figure, axis = plt.subplots(figsize=(6.5, 6.8), layout="constrained")
    kinds = {"hidden": BLANK, "reads a clean row": BLUE, "reads its own block": ORANGE}
    colours = plt.matplotlib.colors.ListedColormap(list(kinds.values()))
    axis.imshow([[seen[r][c] * (1 + (c >= N)) for c in R] for r in R], colours, vmin=0, vmax=2)
    for edge in R:
        gap = {"color": "white", "lw": 8 if edge in accumulate(groups) else 2}
        axis.axhline(edge - 0.5, **gap)
        axis.axvline(edge - 0.5, **gap)
    axis.set_xticks(R, names, family=MONO["family"])
    axis.set_yticks(R, names, family=MONO["family"])
    axis.tick_params(length=0, labeltop=True, labelbottom=False)
    axis.spines[:].set_visible(False)
    handles = [plt.Rectangle((0, 0), 1, 1, fc=kinds[name], label=name) for name in kinds]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    title = f"{N} clean bytes, then blocks of {groups[1]}: a block reads itself,\n"
    figure.suptitle(title + "and the clean bytes before its start, not those it hides")
    save_figure(figure, path)
