"""The paper's Figure 7 in small: what each mode scores on generated tasks, and what it costs.

The tasks are those of miniature.py. A row is one checkpoint in one mode, a dict of the JSON keys
that the task prints: scores, cost, and both against plain BLT, which is the first row.
"""

import math
import statistics

from data import read_corpus
from evaluation import miniature
from evaluation.answers import Runner, answer_all, code_score, translation_score
from evaluation.items import Question
from evaluation.plots import METHODS, Mark, draw
from evaluation.report import print_rows, with_error
from generate import Generation
from model import load_model
from speculate import check_mode, size_of_blocks
from support.machine import choose_device
from support.terminal import BadInput, table

# JSON keys, those of passes counted a byte in the table, and what stands above its columns
SCORES = ("fr-en_exact", "fr-en_bleu", "de-en_exact", "de-en_bleu", "code_pass@1")
PASSES = ("decoder_nfes", "encoder_global_nfes", "entropy_nfes")
HEADER = ["", "fr-en exact", "BLEU", "de-en exact", "BLEU", "code pass@1"]
HEADER += ["dec/B", "enc+glob/B", "patcher/B", "MB/B", "saved", "bytes/s"]


def evaluate_miniature(options):
    """The paper's Figure 7 in small.

    Score and cost of plain BLT, BLT-S, BLT-D-K and BLT-DV-K on generated tasks.
    """
    if options.write:
        miniature.write(options.write)
        print(read_corpus([options.write]).describe())
        return print(f"train on it: python train.py --data {options.write}")
    runners = runners_of(options)
    # The first generation of a process is slow and would count against plain BLT.
    for runner in runners:
        runner.answer(Question("warm-up", "", ("\n",)))
    rows = measure(runners, options)
    if options.json:
        print_rows(rows)
    else:
        print_miniature(rows, options)
    if options.plot:
        panels = {"MB a byte by Eq. 8": "gb_per_kilobyte", "bytes/s": "bytes_per_second"}
        panels = {label: marks_of(rows, key) for label, key in panels.items()}
        draw(options.plot, "The paper's Figure 7 in small", "right answers, %", panels)
    return None


def runners_of(options):
    """Every checkpoint in its modes -> list of Runners, the plain BLT first.

    Plain checkpoints run as BLT and BLT-S, those trained for blocks as BLT-D-K and BLT-DV-K.
    """
    device, runners = choose_device(options.device), []
    loaded = [load_model(path) for path in options.checkpoints]
    for model, patcher in sorted(loaded, key=lambda pair: pair[0].config.block_size):
        modes = {"blt": "BLT", "blts": f"BLT-S k={options.draft_size}"}
        if model.config.block_size:
            check_mode("bltd", model, options)
            K = size_of_blocks(model, options)
            modes = {"bltd": f"BLT-D-{K}", "bltdv": f"BLT-DV-{K}"}
        model, patcher = model.to(device), patcher.to(device)
        runners += [Runner(modes[mode], model, patcher, mode, options) for mode in modes]
    names = [runner.name for runner in runners]
    if len(set(names)) < len(names) or "BLT" not in names:
        advice = "give one plain BLT (K = 0) and one model for each block size"
        raise BadInput(f"--checkpoints makes {', '.join(names)}: {advice}")
    return runners


def measure(runners, options):
    """Let every Runner answer the items of all tasks -> a row for each."""
    rows, made = [{"task": "miniature"} for _ in runners], [[] for _ in runners]
    for row, runner in zip(rows, runners):
        K = runner.model.config.block_size
        row |= {"name": runner.name, "mode": runner.mode, "block_size": K}
    for task in miniature.TASKS:
        questions = miniature.test_items(task, options.limit)
        score = code_score if task == "code" else translation_score
        for row, generations, answers in zip(rows, made, answer_all(runners, questions)):
            texts, new = zip(*answers)
            generations += new
            if task != "code" or options.allow_code_execution:
                row |= {f"{task}_{name}": value for name, value in score(texts, questions).items()}
    for row, generations in zip(rows, made):
        row |= Generation.total(generations).cost()
        add_summary(row, baseline=rows[0])
    return rows


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


def marks_of(rows, key):
    """The rows as Marks, at their cost `key` and their score."""
    marks = []
    for row in rows:
        method, name = METHODS[row["mode"]], row["name"].replace(" k=", "-")
        marks.append(Mark(row[key], row["score"], method, name, error=row["score_se"]))
    return marks


def print_miniature(rows, options):
    """The rows as a table; gigabytes a kilobyte are megabytes a byte."""
    cells = []
    for row in rows:
        run = [key for key in SCORES if key in row]
        scores = [with_error(row, key, ".1f", ".1f") for key in run]
        # Only the last of the tasks may have been left out.
        scores += ["not run"] * (len(SCORES) - len(run))
        passes = [f"{row[key] / max(1, row['new_bytes']):.3f}" for key in PASSES]
        cost = [f"{row['gb_per_kilobyte']:.2f}", f"{row['decrease']:.0%}"]
        speed = [f"{row['bytes_per_second']:.0f}", f"{row['ratio']:.2f}"]
        cells.append([row["name"], *scores, *passes, *cost, *speed])
    print(table([*HEADER, f"x {rows[0]['name']}"], cells))
    said = "scores in percent"
    # A single item has no standard error.
    if options.limit > 1:
        said += " with their standard error"
    if not options.allow_code_execution:
        said += "; programs run only with --allow-code-execution"
    print(f"\n{options.limit} held-out items a task; {said}")
