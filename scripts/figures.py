"""Pictures: what quality costs, for a model of ours and in the paper's tables.

    python -m scripts.figures tradeoff --out tradeoff.png   # every mode of a checkpoint, measured
    python -m scripts.figures paper --out-dir docs          # the paper's Figures 6-10 in kind

What colours, shapes and sizes of the marks tell stands in evaluation/plots.py.
"""

import functools
import os

from bandwidth import compare, measure, read_prompts, settings_of
from evaluation.plots import METHODS, Mark, draw, folder, plot_path
from generate import Sampling
from model import load_model
from support import checkpoint
from support.paper import read_paper, recompute
from support.terminal import Parser, number, run

TASKS = {"humaneval": "HumanEval", "mbpp": "MBPP"}
GB = "parameters read for a generation, GB (Eq. 8)"


def measured_marks(rows, key):
    """Rows of bandwidth.compare -> Marks: the output's bits per byte against `key`."""
    marks = []
    for row in rows:
        method = METHODS[row["mode"]]
        size, _, rule = row["setting"].partition(" ")
        rule = rule.replace("confidence", "α =").replace("entropy", "γ =")
        name = "-".join([method, *size.split("=")[1:]])
        marks.append(Mark(row[key], row["output_bits_per_byte"], method, name, rule))
    return marks


def draw_measured(options):
    """Measure every mode of a checkpoint and draw its quality against GB and bytes a second."""
    model, patcher = load_model(checkpoint.find(options.checkpoint))
    prompts, settings = read_prompts(options.prompts), settings_of(model)
    greedy = functools.partial(Sampling, ignore_eos=True)
    made = measure(model, patcher, prompts, options.bytes, settings, greedy)
    rows, _ = compare(model, patcher, prompts, settings, made)
    panels = {
        GB: measured_marks(rows, "bandwidth_gb"),
        "speed, bytes/s": measured_marks(rows, "bytes_per_second"),
    }
    title = f"Every mode of one model, {options.bytes} bytes for each prompt, greedy"
    draw(options.out, title, "bits per byte of the output under plain BLT", panels)
    print(f"{len(rows)} modes and settings in {options.out}")


def paper_marks(rows):
    """Rows of support.paper.recompute for one task -> Marks: the score against GB."""
    marks = []
    for row in rows:
        method, rule = row["method"], row["setting"]
        name = f"{method}-{row['block_size']}"
        if method == "BLT":
            name, rule = method, ""
        elif method == "BLT-S":
            name, rule = f"{method}-{rule.removeprefix('k=')}", ""
        rule = rule.replace("alpha=", "α = ").replace("gamma=", "γ = ")
        marks.append(Mark(row["gb"], row["score"], method, name, rule))
        if row["one_call_gb"] is not None:
            marks.append(Mark(row["one_call_gb"], row["score"], method, name, rule, hollow=True))
    return marks


def draw_paper(options):
    """Draw each task of the paper's Tables 3-10 at each model size."""
    tables = {}
    for row in recompute(read_paper()):
        tables.setdefault((row["model_size"], row["task"]), []).append(row)
    for (size, task), rows in tables.items():
        path = os.path.join(options.out_dir, f"paper-{size}-{task}.{options.format}")
        ylabel = rows[0]["metric"].replace("pass@1", "pass@1, %")
        # plain BLT runs its decoder once a byte
        length = next(row["decoder_nfes"] for row in rows if row["method"] == "BLT")
        title = f"{TASKS.get(task, task)} at {size}, {length:.0f} bytes a generation"
        draw(path, f"{title}: the paper's tables", ylabel, {GB: paper_marks(rows)})
        print(path)


def options_from(argv):
    parser = Parser(prog="scripts.figures", description="Pictures of what quality costs.")
    what = parser.add_subparsers(dest="what", required=True, metavar="tradeoff|paper")
    add = what.add_parser("tradeoff", help="measure every mode of a checkpoint").add_argument
    add("--checkpoint", help="whose modes (default: the newest model there is)")
    add("--prompts", metavar="FILE", help="one a line (default: four held-out places)")
    add("--bytes", type=number(int, 2), default=256, help="to generate for each prompt")
    add("--out", metavar="FILE", type=plot_path, required=True, help="PNG or SVG to write")
    add = what.add_parser("paper", help="draw the tables in paper/").add_argument
    add("--out-dir", metavar="DIR", type=folder, required=True, help="folder to draw in")
    add("--format", choices=("png", "svg"), default="png", help="of the pictures")
    return parser.parse_args(argv)


def main(argv=None):
    options = options_from(argv)
    {"tradeoff": draw_measured, "paper": draw_paper}[options.what](options)


if __name__ == "__main__":
    run(main, "scripts.figures")
