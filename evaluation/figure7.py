"""The paper's Figure 7 in small: what each mode scores on miniature.py's tasks, and what it costs.

A row is one checkpoint in one mode, a dict of the JSON keys that the task prints: scores, cost, and
both against plain BLT, which is the first row.
"""

import math
import statistics

from data import corpus_of
from evaluation import miniature
from evaluation.answers import Runner, answer_all, code_score, translation_score
from evaluation.plots import METHODS, Mark, draw
from evaluation.tasks import Question, with_errors
from generate import Generation
from model import load_model
from speculate import check_mode, size_of_blocks
from support.machine import choose_device
from support.terminal import BadInput, print_rows, table_of

COLUMNS = """
name s | fr-en_exact s fr-en exact | fr-en_bleu s BLEU | de-en_exact s de-en exact |
de-en_bleu s BLEU | code_pass@1 s code pass@1 | decoder_nfes .3f dec/B |
encoder_global_nfes .3f enc+glob/B | entropy_nfes .3f patcher/B | gb_per_kilobyte .2f MB/B |
decrease .0% saved | bytes_per_second .0f bytes/s | ratio .2f x BLT
"""


def evaluate_miniature(options):
    """The paper's Figure 7 in small.

    Score and cost of plain BLT, BLT-S, BLT-D-K and BLT-DV-K on generated tasks.
    """
    if options.write:
        miniature.write(options.write)
        described = corpus_of([options.write]).describe()
        return print(f"{described}\ntrain on it: python train.py --data {options.write}")
    runners = runners_of(options)
    # The first generation of a process is slow and would count against plain BLT.
    for runner in runners:
        runner.answer(Question("warm-up", "", ("\n",)))
    rows = measure(runners, options)
    if options.json:
        print_rows(rows)
    else:
        # Passes a byte; gigabytes a kilobyte are megabytes a byte.
        shown = [{"code_pass@1": "not run", **with_errors(row, ".1f", ".1f")} for row in rows]
        for row in shown:
            row |= {k: row[k] / max(1, row["new_bytes"]) for k in row if k.endswith("nfes")}
        print(table_of(shown, COLUMNS))
        # A single item has no standard error.
        said = "scores in percent" + " with their standard error" * (options.limit > 1)
        if not options.allow_code_execution:
            said += "; programs run only with --allow-code-execution"
        print(f"\n{options.limit} held-out items a task; {said}")
    if options.plot:
        panels = {"MB a byte by Eq. 8": [], "bytes/s": []}
        for row in rows:
            mark = row["score"], METHODS[row["mode"]], row["name"].replace(" k=", "-")
            for marks, key in zip(panels.values(), ("gb_per_kilobyte", "bytes_per_second")):
                marks.append(Mark(row[key], *mark, error=row["score_se"]))
        draw(options.plot, "The paper's Figure 7 in small", "right answers, %", panels)


def runners_of(options):
    """Every plain checkpoint as BLT and BLT-S, others as BLT-D-K and BLT-DV-K; plain BLT first."""
    device, runners = choose_device(options.device), []
    loaded = [load_model(path) for path in options.checkpoints]
    for model, patcher in sorted(loaded, key=lambda pair: pair[0].config.block_size):
        modes = {"blt": "BLT", "blts": f"BLT-S k={options.draft_size}"}
        if model.config.block_size:
            check_mode("bltd", model, options)
            K = size_of_blocks(model, options)
            modes = {"bltd": f"BLT-D-{K}", "bltdv": f"BLT-DV-{K}"}
        for mode, name in modes.items():
            runners.append(Runner(name, model.to(device), patcher.to(device), mode, options))
    names = [runner.name for runner in runners]
    if len(set(names)) < len(names) or "BLT" not in names:
        advice = "give one plain BLT (K = 0) and one model for each block size"
        raise BadInput(f"--checkpoints makes {', '.join(names)}: {advice}")
    return runners


def measure(runners, options):
    """Let every Runner answer the items of all tasks -> a row for each.

    The score is the mean over the tasks of right answers; BLEU does not count.
    """
    rows, made = [], [[] for _ in runners]
    for runner in runners:
        known = {"name": runner.name, "mode": runner.mode}
        rows.append({"task": "miniature", **known, "block_size": runner.model.config.block_size})
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
        row["gb_per_kilobyte"] = 1000 * row["bandwidth_gb"] / max(1, row["new_bytes"])
        right = [key for key in row if key.endswith(("_exact", "_pass@1"))]
        errors = [row[key + "_se"] for key in right]
        row["score"] = statistics.mean(row[key] for key in right)
        # Tasks are independent: their errors add as squares.
        row["score_se"] = None if None in errors else math.hypot(*errors) / len(errors)
        row["decrease"] = 1 - row["gb_per_kilobyte"] / rows[0]["gb_per_kilobyte"]
        row["ratio"] = row["bytes_per_second"] / rows[0]["bytes_per_second"]
    return rows
