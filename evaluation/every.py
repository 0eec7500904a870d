"""All evaluations of a checkpoint, one after the other, and a table of them that can be pasted."""

import argparse

from evaluation.benchmarks import READERS
from evaluation.tasks import with_error
from measure.modes import check_drafting
from sample import drafting_of
from support.terminal import BadInput, escaped, note

# Scores as rows name them -> what is scored without reading the question: by bytes drawn evenly,
# and by answers that are never right. None: it depends on the choices that there are.
CHANCE = {
    "bits_per_byte": 8.0,
    "accuracy": None,
    "accuracy_per_byte": None,
    "exact": 0.0,
    "bleu": 0.0,
    "chrf": 0.0,
    "pass@1": 0.0,
}
HEADER = ["task", "set", "mode", "score", "value", "by chance", "items"]


def options_of(options, task, name, known):
    """The options of one task on one of its sets, of those of all. known: its Task."""
    chosen = {**vars(options), "task": task, "set": name}
    if chosen["limit"] is None:
        chosen["limit"] = known.limit
    return argparse.Namespace(**chosen)


def evaluate_all(machine, options, commands, budget_of):
    """Every task on each of its sets, those of benchmarks with --items DIR, and a table of scores.

    What can't be evaluated is left out, which is said.

    commands: Tasks by their names. budget_of(set) -> bytes of an answer.
    """
    check_drafting(options.mode, machine.model, drafting_of(options), options.rounds)
    lines = []
    without_items = []
    for task, known in commands.items():
        for name in known.sets or [None]:
            if name in READERS and not options.items:
                without_items.append(name)
                continue
            chosen = options_of(options, task, name, known)
            if chosen.bytes is None:
                chosen.bytes = budget_of(name)
            try:
                row = known.run(machine, chosen)
            except BadInput as problem:
                note(f"{task} {name or ''} is left out: {problem}")
                continue
            lines += lines_of(task, row)
            if not options.json:
                print(flush=True)
    if without_items:
        note(f"left out without --items DIR: {', '.join(without_items)}")
    if not lines:
        raise BadInput("there is nothing that could be evaluated: give --data or --items")
    if not options.json:
        print(pasted(HEADER, lines))


def lines_of(task, row):
    """The scores in a row that an evaluation has said -> lines of the table, lists of cells."""
    lines = []
    for score, chance in CHANCE.items():
        if score not in row:
            continue
        if chance is None:
            chance = row["chance"]
        value = with_error(row[score], row.get(f"{score}_se"))
        place = row.get("set", row.get("text"))
        items = row.get("items", f"{row['bytes']:,} bytes" if "bytes" in row else "")
        mode = row.get("mode", "")
        lines.append([task, place, mode, score, value or "", f"{chance:.4g}", items])
    return lines


def pasted(header, lines):
    """Cells as a table in Markdown."""
    rows = [[escaped(str(cell)).replace("|", "\\|") for cell in line] for line in (header, *lines)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows)
