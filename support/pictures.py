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
BLANK = "#80808033"  # a little darker or lighter than the page
INK = "#767676"  # can be read on a white page and on a dark one, as pictures have no ground
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
    inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    plt.rcParams.update({"font.size": 10, "svg.fonttype": "none", "savefig.transparent": True})
    plt.rcParams.update(dict.fromkeys(inks, INK))
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
    starts = [0, *accumulate(groups)]
    # Where each row is drawn: groups stand apart
    place = [r + 0.5 * sum(r >= start for start in starts[1:]) for r in R]
    for r in R:
        for c in R:
            colour = BLANK if not seen[r][c] else BLUE if c < N else ORANGE
            axis.add_patch(plt.Rectangle((place[c] - 0.44, place[r] - 0.44), 0.88, 0.88, fc=colour))
    axis.set(xlim=(-1, place[-1] + 1), ylim=(place[-1] + 1, -1), aspect="equal")
    axis.set_xticks(place, names, family=MONO["family"])
    axis.set_yticks(place, names, family=MONO["family"])
    axis.tick_params(length=0, labeltop=True, labelbottom=False)
    axis.spines[:].set_visible(False)
    handles = [plt.Rectangle((0, 0), 1, 1, fc=kinds[name], label=name) for name in kinds]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    title = f"{N} clean bytes (▸ begins the text), then blocks of {groups[1]}, one at each patch,\n"
    title += "over later bytes too (· is past the end). A block reads itself\n"
    figure.suptitle(title + "and the clean bytes before its start, not those it hides.", size=11)
    save_figure(figure, path)
