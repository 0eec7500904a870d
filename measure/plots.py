"""Pictures of what quality costs: in a model that was measured, and in the paper."""

import statistics

from support.pictures import BLUE, GREEN, INK, RED, pyplot, save_figure

METHODS = {"blt": "BLT", "blts": "BLT-S", "bltd": "BLT-D", "bltdv": "BLT-DV", "lookup": "lookup"}
COLOURS = {"blt": INK, "blts": BLUE, "bltd": RED, "bltdv": GREEN, "lookup": "#CC79A7"}
TICKS = [n * 10.0**power for power in range(-3, 5) for n in (1, 1.5, 2, 3, 4, 6, 8)]
GB = "parameters read, GB a generation (Eq. 8)"
MS = "time, ms a byte"


def draw_tradeoff(path, rows, how):
    """Cost of every mode and setting against the quality of what it writes.

    rows: of bandwidth.compare. What verifies has plain BLT's distribution, and its output differs
    in bits by chance alone: its filled marks lie at the mean of them all.
    """
    of_lossless = [row["output_bits_per_byte"] for row in rows if row["lossless"]]
    same = statistics.mean(of_lossless)
    bits = [same if row["lossless"] else row["output_bits_per_byte"] for row in rows]
    costs = {
        GB: [row["bandwidth_gb"] for row in rows],
        MS: [1000 / row["bytes_per_second"] for row in rows],
    }
    plt = pyplot()
    figure, axes = plt.subplots(2, figsize=(8.3, 10), layout="constrained")
    for axis, (label, cost) in zip(axes, costs.items()):
        for row, x, y in zip(rows, bits, cost):
            colour = COLOURS[row["mode"]]
            filled = colour if row["lossless"] else "white"
            axis.plot(x, y, "o", color=colour, markerfacecolor=filled, markersize=8)
        best = frontier(zip(bits, cost))
        best_bits = [place[0] for place in best]
        best_cost = [place[1] for place in best]
        axis.step(best_bits, best_cost, where="post", color="gray", linestyle="--", zorder=1)
        axis.set(yscale="log", ylabel=f"{label}, log scale", xlabel="bits per byte of the output")
        axis.yaxis.set_major_locator(plt.FixedLocator(TICKS))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.grid(alpha=0.25)
        low = min(bits)
        high = max(bits)
        room = (0.1 + high - low) * 0.42  # for the names on both sides
        axis.set(xlim=(low - room, high + room), ylim=(min(cost) / 1.2, max(cost) * 1.2))
        for lossless in (True, False):
            marks = [mark for mark in zip(rows, bits, cost) if mark[0]["lossless"] == lossless]
            name_marks(axis, marks, lossless)
    words = "filled: lossless, as good as plain BLT's; hollow: other text than plain BLT's"
    figure.suptitle(f"{how}: lower left is better\n{words}\ndashed: the frontier", fontsize=11)
    save_figure(figure, path)


# Marks of drafts and blocks of so many bytes; plain BLT has none
MARKS = {"": "*", "4": "o", "8": "s", "16": "^"}


def draw_paper(path, rows):
    """The trade-off that the paper reports: scores against gigabytes, a panel a model and task.

    rows: of bandwidth.recompute; the gigabytes are those that follow by Eq. 8 from its passes.
    """
    sizes = list(dict.fromkeys(row["model_size"] for row in rows))
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    plt = pyplot()
    figure, axes = plt.subplots(
        len(sizes),
        len(tasks),
        figsize=(3.6 * len(tasks), 3.6 * len(sizes)),
        layout="constrained",
        squeeze=False,
    )
    for size, in_line in zip(sizes, axes):
        for task, axis in zip(tasks, in_line):
            of_task = [row for row in rows if (row["model_size"], row["task"]) == (size, task)]
            draw_task(axis, of_task)
            axis.set(title=f"{task}, {size}", ylabel=of_task[0]["metric"], xlabel="GB by Eq. 8")
    coloured = {METHODS[mode]: colour for mode, colour in COLOURS.items()}
    handles = [
        plt.Line2D([], [], color=coloured[method], marker="o", linestyle="", label=method)
        for method in dict.fromkeys(row["method"] for row in rows)
    ]
    for count, mark in MARKS.items():
        label = f"{count} bytes at once" if count else "plain"
        handles.append(plt.Line2D([], [], color="gray", marker=mark, linestyle="", label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    words = "what the paper reports: upper left is better; dashed: the frontier"
    figure.suptitle(f"{len(rows)} rows, {words}", fontsize=11)
    save_figure(figure, path)


def draw_task(axis, rows):
    """The rows of one model on one task: filled where drafts are verified, hollow for BLT-D."""
    coloured = {METHODS[mode]: colour for mode, colour in COLOURS.items()}
    for row in rows:
        # k of BLT-S stands in its setting
        count = row["block_size"] or row["setting"].removeprefix("k=")
        colour = coloured[row["method"]]
        filled = "white" if row["method"] == "BLT-D" else colour
        axis.plot(
            row["gb"],
            row["score"],
            MARKS.get(count, MARKS[""]),
            color=colour,
            markerfacecolor=filled,
            markersize=6,
        )
    # Of high scores the cheapest; scores that fall do not count.
    best = frontier((-row["score"], row["gb"]) for row in rows)
    cheapest_first = best[::-1]
    axis.plot(
        [gb for _, gb in cheapest_first],
        [-score for score, _ in cheapest_first],
        color="gray",
        linestyle="--",
        linewidth=1,
        zorder=1,
    )
    axis.set_ylim(0, 1.1 * max(row["score"] for row in rows))
    axis.grid(alpha=0.25)


def frontier(places):
    """Places (bits, cost), those that no other beats in both -> list, the best quality first."""
    best = []
    for place in sorted(places):
        if not best or place[1] < best[-1][1]:
            best.append(place)
    return best


def name_marks(axis, marks, left):
    """Name marks (row, bits, cost) in a column at one side, from the cheapest up, with a line."""
    cheapest_first = sorted(marks, key=lambda mark: mark[2])
    for i, (row, bits, cost) in enumerate(cheapest_first):
        colour = COLOURS[row["mode"]]
        axis.annotate(
            name_of(row),
            xy=(bits, cost),
            xycoords="data",
            xytext=(0.2 if left else 0.8, (i + 0.5) / len(marks)),
            textcoords="axes fraction",
            # from the edge of the name that faces the mark
            arrowprops={
                "arrowstyle": "-",
                "lw": 0.5,
                "color": colour,
                "relpos": (1 if left else 0, 0.5),
            },
            ha="right" if left else "left",
            va="center",
            color=colour,
            fontsize=8.5,
        )


def name_of(row):
    """A row in short: "BLT-D-8 α = 0.7" of mode bltd and setting "K=8 confidence 0.7"."""
    size, _, rule = row["setting"].partition(" ")
    # "K=8" -> "-8"
    method = "-".join([METHODS[row["mode"]], *size.split("=")[1:]])
    rule = rule.replace("confidence", "α =").replace("entropy", "γ =")
    return f"{method} {rule}".strip()
