"""The paper's Figure 7 in small: what each mode scores on generated tasks, and what it costs.

The tasks are those of miniature.py. A row is one checkpoint in one mode, a dict of the JSON keys
that the task prints: scores, cost, and both against plain BLT, which is the first row.
"""

import math
import statistics

from data import read_corpus
from evaluation import miniature
from evaluation.answers import Runner, answer_all, code_score, translation_score
from evaluation.plots import Point, draw_points
from evaluation.report import print_rows, with_error
from generate import Generation
from model import load_model
from speculate import check_mode
from support.machine import choose_device
from support.terminal import BadInput, table

# JSON key of a score, and its head in the table
SCORES = {
    "fr-en_exact": "fr-en exact",
    "fr-en_bleu": "BLEU",
    "de-en_exact": "de-en exact",
    "de-en_bleu": "BLEU",
    "code_pass@1": "code pass@1",
}
# what passes are counted of, and their head in the table
PASSES = {"decoder": "dec/B", "encoder_global": "enc+glob/B", "entropy": "patcher/B"}


def evaluate_miniature(options):
    """Write the training text, or score and price every checkpoint and mode on the three tasks."""
    if options.write:
        miniature.write(options.write)
        print(read_corpus([options.write]).describe())
        print(f"train on it: python train.py --data {options.write}")
        return
    runners = runners_of(options)
    # The first generation of a process is slow and would count against plain BLT.
    for runner in runners:
        runner.answer("warm-up", ("\n",))
    rows = [
        {"task": "miniature", "name": r.name, "mode": r.mode, "block_size": trained_size(r)}
        for r in runners
    ]
    made = [[] for _ in runners]
    for task in miniature.TASKS:
        answer_task(task, runners, rows, made, options)
    for row, generations in zip(rows, made):
        row |= Generation.total(generations).cost()
        add_summary(row, baseline=rows[0])
    if options.json:
        print_rows(rows)
    else:
        print_miniature(rows, options)
    if options.plot:
        panels = {
            "MB a byte by Eq. 8": plot_series(rows, "gb_per_kilobyte"),
            "bytes/s": plot_series(rows, "bytes_per_second"),
        }
        draw_points(options.plot, "right answers, %", panels)


def trained_size(runner):
    """K of the blocks that a Runner's model was trained for, 0 for a plain BLT."""
    return runner.model.config.block_size


def runners_of(options):
    """Every checkpoint in its modes -> list of Runners, the plain BLT first.

    Plain checkpoints run as BLT and BLT-S, those trained for blocks as BLT-D-K and BLT-DV-K.
    """
    device = choose_device(options.device)
    runners = []
    for path in options.checkpoints:
        model, patcher = load_model(path)
        K = model.config.block_size
        if K:
            K = options.block_size or K
            modes = {"bltd": f"BLT-D-{K}", "bltdv": f"BLT-DV-{K}"}
        else:
            modes = {"blt": "BLT", "blts": f"BLT-S k={options.draft_size}"}
        for mode, name in modes.items():
            runners.append(Runner(name, model.to(device), patcher.to(device), mode, options))
    names = [runner.name for runner in runners]
    if len(set(names)) < len(names) or "BLT" not in names:
        raise BadInput(
            f"--checkpoints makes {', '.join(names)}: "
            "give one plain BLT (K = 0) and one model for each block size"
        )
    for runner in filter(trained_size, runners):
        check_mode(runner.mode, runner.model, options)
    return sorted(runners, key=trained_size)


def answer_task(task, runners, rows, made, options):
    """Let every Runner answer the items of a task: its scores go to its row, its cost to `made`.

    made: a list of Generations for each Runner.
    """
    language, examples, items = miniature.test_items(task, options.limit)
    score = code_score if task == "code" else translation_score
    answered = answer_all(runners, language, examples, items)
    for row, generations, answers in zip(rows, made, answered):
        texts, new = zip(*answers)
        generations += new
        if task != "code" or options.allow_code_execution:
            row |= {f"{task}_{name}": value for name, value in score(texts, items).items()}


def add_summary(row, baseline):
    """Add the mean score over the tasks, and cost and speed against the first row, plain BLT.

    Only right answers count, BLEU does not. Tasks are independent: their errors add as squares.
    """
    row["gb_per_kilobyte"] = 1000 * row["bandwidth_gb"] / max(1, row["new_bytes"])
    right = [key for key in row if key.endswith(("_exact", "_pass@1"))]
    errors = [row[key + "_se"] for key in right]
    row["score"] = statistics.mean(row[key] for key in right)
    row["score_se"] = None
    if None not in errors:
        row["score_se"] = math.hypot(*errors) / len(errors)
    row["decrease"] = 1 - row["gb_per_kilobyte"] / baseline["gb_per_kilobyte"]
    row["ratio"] = row["bytes_per_second"] / baseline["bytes_per_second"]


def plot_series(rows, key):
    """-> {name of a row: its only Point}, at its cost `key` and its score."""
    return {row["name"]: [Point(row[key], row["score"], row["score_se"])] for row in rows}


def print_miniature(rows, options):
    """The rows as a table; gigabytes a kilobyte are megabytes a byte."""
    header = ["", *SCORES.values(), *PASSES.values(), "MB/B", "saved", "bytes/s"]
    cells = []
    for row in rows:
        scores = [
            with_error(row[key], row[key + "_se"], ".1f", ".1f") if key in row else "not run"
            for key in SCORES
        ]
        passes = [row[part + "_nfes"] / max(1, row["new_bytes"]) for part in PASSES]
        cells.append(
            [
                row["name"],
                *scores,
                *(f"{count:.3f}" for count in passes),
                f"{row['gb_per_kilobyte']:.2f}",
                f"{row['decrease']:.0%}",
                f"{row['bytes_per_second']:.0f}",
                f"{row['ratio']:.2f}",
            ]
        )
    print(table([*header, f"x {rows[0]['name']}"], cells))
    said = "scores in percent"
    # A single item has no standard error.
    if options.limit > 1:
        said += " with their standard error"
    if not options.allow_code_execution:
        said += "; programs run only with --allow-code-execution"
    print(f"\n{options.limit} held-out items a task; {said}")
