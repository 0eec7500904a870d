"""Pictures with matplotlib, legible at the width of a page: text in its patches, the block mask.

Colours are Okabe and Ito's, which colour-blind people tell apart.
"""

import argparse
import os
from itertools import accumulate

from support.terminal import package, visible

BLUE, ORANGE, RED, INK, BLANK = "#0072B2", "#E69F00", "#D55E00", "#222222", "#ECECEC"
MONO = {"family": "DejaVu Sans Mono", "ha": "center", "va": "center"}


def to_write(*endings):
    """An argparse type: a file that ends so, in a folder there is; if drawn, by what is there."""

    def parse(path):
        folder = os.path.dirname(path) or "."
        if not path.endswith(endings):
            words = f"what is written ends in {' or '.join(endings)}, not so {path}"
            raise argparse.ArgumentTypeError(words)
        if not os.path.isdir(folder):
            raise argparse.ArgumentTypeError(f"there is no folder {folder} to write in")
        if ".html" not in endings:
            pyplot()  # says what is missing before anything is measured
        return path

    return parse


def pyplot():
    """matplotlib's pyplot, drawing to files. Raises BadInput where a package is missing."""
    package("matplotlib", "a picture").use("Agg")
    package("adjustText", "a picture")
    plt = package("matplotlib.pyplot", "a picture")
    plt.rcParams.update({"font.size": 10, "svg.fonttype": "none"})
    return plt


def draw_patching(path, data, closes, entropies, threshold):
    """Draw the first 64 bytes of a text in their patches, and the entropy before each.

    closes, entropies: as support.show.show_patching has them; threshold: nats, None without one.
    """
    plt, places = pyplot(), range(min(64, len(data)))
    figure, axis = plt.subplots(figsize=(8.3, 2.8), layout="constrained")
    for i, patch in zip(places, accumulate(map(int, closes))):
        axis.axvspan(i - 0.5, i + 0.5, color=(BLUE, ORANGE)[patch % 2], alpha=0.3, lw=0)
        axis.text(i, -0.4, visible(data[i : i + 1]), **MONO)
    if entropies:
        axis.plot(places, [entropies[i] for i in places], "o-", color=INK, ms=3, lw=1)
    if threshold is not None:
        axis.axhline(threshold, color=RED, ls="--")
        axis.text(len(places) - 0.3, threshold, f"θ = {threshold:.2f}", color=RED, va="center")
    axis.set(xlim=(-0.5, len(places) - 0.5), xlabel="position, bytes", ylabel="entropy, nats")
    axis.set_ylim(bottom=-0.8)
    axis.set_title("Entropy before each byte: above θ a patch opens, as behind a full one")
    figure.savefig(path, dpi=160)
    plt.close(figure)


def draw_mask(path, seen, names, groups, positions, reads):
    """Draw who (row) sees whom (column): clean rows, then those of blocks.

    seen (R, R) bools; names, positions: of the rows; groups: how many rows are clean, and how many
    each block has; reads: the latent that each row reads.
    """
    plt, R, N = pyplot(), range(len(names)), groups[0]
    names = [name.replace(" ", "␣") for name in names]
    figure, axis = plt.subplots(figsize=(8.3, 8.6), layout="constrained")
    kinds = ("hidden", BLANK), ("reads a clean row", BLUE), ("reads its own block", ORANGE)
    colours = plt.matplotlib.colors.ListedColormap([colour for _, colour in kinds])
    axis.imshow([[seen[r][c] * (1 + (c >= N)) for c in R] for r in R], colours, vmin=0, vmax=2)
    for edge in R:
        gap = {"color": "white", "lw": 8 if edge in accumulate(groups) else 2}
        axis.axhline(edge - 0.5, **gap)
        axis.axvline(edge - 0.5, **gap)
    block = [b for b, size in enumerate(groups) for _ in range(size)]
    for r, c in ((r, c) for r in R for c in range(N) if block[r]):
        if positions[c] in [positions[q] for q in R if block[q] == block[r]]:
            axis.text(c, r, "×", **MONO)  # the clean twins of its cells
    axis.set_xticks(R, names, family="DejaVu Sans Mono")
    axis.set_yticks(R, names, family="DejaVu Sans Mono")
    axis.tick_params(length=0, labeltop=True, labelbottom=False)
    axis.spines[:].set_visible(False)
    for r in R:
        axis.text(R[-1] + 1.2, r, reads[r], **MONO)
    handles = [plt.Rectangle((0, 0), 1, 1, fc=colour, label=name) for name, colour in kinds]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    title = f"{N} clean bytes, then blocks of {groups[1]}: a row reads columns, and the latent\n"
    figure.suptitle(title + "named at its right. ×: hidden, as it has the answer", fontsize=11)
    figure.savefig(path, dpi=160)
    plt.close(figure)
