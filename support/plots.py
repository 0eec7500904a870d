"""Pictures with matplotlib, legible at the width of a page: text in its patches, the block mask.

Colours are Okabe and Ito's, which colour-blind people tell apart.
"""

import argparse
import os

from support.terminal import package, to_write, visible

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
INK, BLANK = "#222222", "#ECECEC"
MONO = {"family": "DejaVu Sans Mono", "ha": "center", "va": "center"}
ROW = 64  # bytes of text in a row of a picture


def folder(path):
    """An argparse type: a folder to draw in. Raises BadInput where nothing can be drawn at all."""
    if not os.path.isdir(path):
        raise argparse.ArgumentTypeError(f"there is no folder {path} to draw in")
    pyplot()  # says what is missing before anything is measured
    return path


def plot_path(path):
    """An argparse type: a file that matplotlib can be asked to write."""
    pyplot()  # says what is missing before anything is measured
    return to_write(".png", ".svg")(path)


def pyplot():
    """matplotlib's pyplot, drawing to files. Raises BadInput where a package is missing."""
    package("matplotlib", "a picture").use("Agg")
    package("adjustText", "a picture")
    plt = package("matplotlib.pyplot", "a picture")
    plt.rcParams.update({"font.size": 10, "svg.fonttype": "none"})
    return plt


def save(figure, path):
    figure.savefig(path, dpi=160)
    pyplot().close(figure)


# ---- patcher.py: a text in its patches


def draw_patching(path, data, closes, entropies, threshold):
    """Draw a text in its patches below the entropy before each byte and the threshold.

    closes, entropies: of BOS and every byte, as patcher.report has them; entropies None if there
    are none; threshold: in nats, None where entropies are not what it is compared with.
    """
    data = data[: 4 * ROW]
    plt, starts = pyplot(), range(0, len(data), ROW)
    size = {"figsize": (8.3, 2.4 * len(starts) + 0.3), "sharey": True, "layout": "constrained"}
    figure, axes = plt.subplots(len(starts), squeeze=False, **size)
    opened = [sum(closes[: i + 1]) for i in range(len(data))]  # the patch of each byte
    for axis, start in zip(axes[:, 0], starts):
        places = range(start, min(len(data), start + ROW))
        for i in places:
            colour = (BLUE, ORANGE)[opened[i] % 2]
            axis.axvspan(i - 0.5, i + 0.5, color=colour, alpha=0.3, lw=0)
            axis.text(i, -0.35, visible(data[i : i + 1]), **MONO, fontsize=9)
            if closes[i]:
                axis.axvline(i - 0.5, color=INK, lw=1)
        if entropies:
            axis.plot(places, [entropies[i] for i in places], "o-", color=INK, ms=3, lw=1)
        if threshold is not None:
            axis.axhline(threshold, color=RED, ls="--", lw=1.2)
            words = {"color": RED, "ha": "left", "va": "center"}
            axis.text(start + len(places) - 0.4, threshold, f"θ = {threshold:.2f}", **words)
        axis.set(xlim=(start - 0.5, start + min(ROW, len(data)) - 0.5), ylabel="nats")
        axis.set_ylim(bottom=-0.75)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("position, bytes")
    figure.suptitle(
        "Entropy before each byte: above θ a patch opens, as behind a full one", fontsize=11
    )
    save(figure, path)


# ---- diffusion.py: who sees whom


def draw_mask(path, seen, letters, groups, starts, reads):
    """Draw who (row) sees whom (column): the clean rows, then those of blocks.

    seen (R, R) bools; letters: of the rows, BOS first; groups: how many rows are clean, and how
    many each block has; starts: position of each block; reads: the latent that each row reads.
    """
    plt, R, N, letters = pyplot(), len(letters), groups[0], ["BOS", *letters[1:]]
    # Where a row is drawn: a gap stands between groups.
    block = [0] * N + [b for b, size in enumerate(groups[1:], 1) for _ in range(size)]
    place = [r + 0.6 * b for r, b in enumerate(block)]
    end = place[-1] + 0.6
    width, height = end + 5.5, end + 5.2  # in rows
    figure = plt.figure(figsize=(8.3, 8.3 * height / width))
    axis = figure.add_axes((0, 0, 1, 1), xlim=(-3.2, end + 2.3), ylim=(end + 2.4, -2.8))
    for r in range(R):
        for c in range(R):
            colour = (BLUE if c < N else ORANGE) if seen[r][c] else BLANK
            axis.add_patch(plt.Rectangle((place[c] - 0.46, place[r] - 0.46), 0.92, 0.92, fc=colour))
            first = starts[block[r] - 1] if block[r] else N
            if first <= c < min(N, first + groups[block[r]]):  # the clean twins of its own cells
                axis.text(place[c], place[r], "×", **MONO, color=INK)
        for x, y in ((place[r], -1), (-1, place[r])):
            axis.text(x, y, letters[r].replace(" ", "␣"), **MONO)
        axis.text(end + 1.1, place[r], reads[r], **MONO)
    centred = {"ha": "center", "va": "center"}
    for b, name in enumerate(["clean bytes"] + [f"block\nat {start}" for start in starts]):
        rows = [p for p, own in zip(place, block) if own == b]
        middle = sum(rows) / len(rows)
        axis.text(middle, -2.1, name, **centred, weight="bold")
        axis.text(-2.2, middle, name.replace(" b", "\nb"), **centred, weight="bold")
    axis.text(end + 1.1, -1.5, "reads\nlatent", **centred)
    for colour, words in ((BLUE, "reads a clean row"), (ORANGE, "reads its own block, both ways")):
        axis.plot([], [], "s", color=colour, ms=10, label=words)
    axis.plot([], [], "s", color=BLANK, ms=10, label="hidden")
    axis.plot([], [], "x", color=INK, ms=7, label="hidden: has the answer")
    axis.plot([], [], "o", color=INK, ms=2, label="past the end of the text")
    axis.legend(loc="lower center", ncols=3, frameon=False)
    axis.axis("off")
    save(figure, path)
