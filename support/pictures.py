"""Pictures by matplotlib: files they can be written to, and who sees whom.

Colours are Okabe and Ito's, which colour-blind people tell apart.
"""

import argparse
from itertools import accumulate

from support.terminal import check_writable, package

BLUE = "#0072B2"
ORANGE = "#E69F00"
GREEN = "#009E73"
RED = "#D55E00"
BLANK = "#ECECEC"
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


def draw_mask(path, seen, names, groups):
    """Who (row) sees whom (column): clean rows, then those of blocks.

    seen (R, R) bools; names: of the rows; groups: how many are clean, and how many each block has.
    """
    plt = pyplot()
    N = groups[0]
    R = range(len(names))
    figure, axis = plt.subplots(figsize=(6.5, 6.8), layout="constrained")
    kinds = {"hidden": BLANK, "reads a clean row": BLUE, "reads its own block": ORANGE}
    colours = plt.matplotlib.colors.ListedColormap(list(kinds.values()))

    def kind(r, c):
        # The number of one of `kinds`
        if not seen[r][c]:
            return 0
        return 1 if c < N else 2

    axis.imshow([[kind(r, c) for c in R] for r in R], colours, vmin=0, vmax=2)
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
