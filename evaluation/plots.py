"""Pictures of score against cost: scatter plots whose points carry their names."""

import argparse
import math
import os
from itertools import product
from typing import NamedTuple

from evaluation.report import package


class Point(NamedTuple):
    """One measurement in a plot."""

    x: float
    y: float
    error: float | None  # of y
    name: str  # what is written beside it


def plot_path(path):
    """An argparse type: a file that matplotlib can be asked to write."""
    folder = os.path.dirname(path)
    if not os.path.isdir(folder or "."):
        raise argparse.ArgumentTypeError(f"there is no folder {folder} to write {path} in")
    if not path.endswith((".png", ".svg")):
        raise argparse.ArgumentTypeError(f"plots are written as .png or .svg, not {path}")
    return path


def draw_points(path, ylabel, panels):
    """Scatter plots beside each other, sharing their y axis, each point with its name beside it.

    panels: x label -> {series: list of Points}. Needs matplotlib.
    """
    package("matplotlib", "--plot").use("Agg")
    plt = package("matplotlib.pyplot", "--plot")
    size = (5.5 * len(panels), 4.5)
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    labels = [draw_panel(axis, *panel) for axis, panel in zip(axes[0], panels.items())]
    axes[0][0].set_ylabel(ylabel)
    # A legend says nothing new where a series is a single point with its name.
    top = 1
    if any(len(points) > 1 for series in panels.values() for points in series.values()):
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=6)
        top = 0.92
    figure.tight_layout(rect=(0, 0, 1, top))
    # Only now is it known where each point lies in the picture.
    for axis, named in zip(axes[0], labels):
        name_points(axis, named)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_panel(axis, xlabel, series):
    """Draw the points of one panel -> list of (Point, colour)."""
    coloured = []
    for name, points in series.items():
        x, y, errors, _ = zip(*points)
        errors = [error or 0.0 for error in errors] if any(errors) else None
        drawn = axis.errorbar(x, y, errors, fmt="o", label=name, alpha=0.8)
        coloured += [(point, drawn.lines[0].get_color()) for point in points]
    axis.set_xlabel(xlabel)
    axis.margins(0.12)
    axis.grid(alpha=0.3)
    return coloured


def name_points(axis, coloured):
    """Write each name as near to its point as other names and points leave room."""
    from matplotlib.transforms import Bbox

    places = [axis.transData.transform((point.x, point.y)) for point, _ in coloured]
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in places]
    for point, colour in coloured:
        write_name(axis, point.name, (point.x, point.y), taken, color=colour, fontsize=7)


def write_name(axis, name, at, taken, **style):
    """Write a name where there is room, with a thin line from it to its point `at` (x, y).

    taken: boxes in pixels that it keeps clear of, a list to which its own is added. style:
    colour and font of the text.
    """
    figure, place = axis.figure, axis.transData.transform(at)
    style = {"ha": "center", "va": "center", **style}
    measured = axis.text(*at, name, **style)
    box = measured.get_window_extent(figure.canvas.get_renderer()).padded(1)
    box = free_box(box, axis.bbox, taken)
    measured.remove()
    taken.append(box)
    # From pixels to points
    offset = ((box.min + box.max) / 2 - place) * 72 / figure.dpi
    line = {"arrowstyle": "-", "lw": 0.4, "color": style["color"], "shrinkA": 0}
    axis.annotate(name, at, offset, textcoords="offset points", arrowprops=line, **style)


def free_box(box, inside, taken):
    """Move a box off its centre, as little as it takes to lie `inside` and on none of `taken`.

    All of them are matplotlib's Bbox, in pixels. If there is no room anywhere near, on something.
    """
    for distance, degrees in product(range(8, 100, 8), range(0, 360, 30)):
        angle = math.radians(degrees)
        across = math.cos(angle) * (distance + box.width / 2)
        moved = box.translated(across, math.sin(angle) * (distance + box.height / 2))
        # A box is inside if all four of its corners are.
        if inside.count_contains(moved.corners()) == 4 and not moved.count_overlaps(taken):
            break
    return moved
