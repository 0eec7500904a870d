"""What the tasks have in common: taking items, standard errors, and the line they end with."""

import json
import math
import statistics
from itertools import islice

from generate import Generation
from support.terminal import BadInput

PRICE = "{seconds:.1f} s, NFEs: decoder {decoder_nfes:,}, encoder/global {encoder_global_nfes:,}, "
PRICE += "patcher {entropy_nfes:,}; {bandwidth_gb:.3g} GB by Eq. 8"


def taken(items, limit):
    """The first `limit` items, as a list; at least one."""
    items = list(islice(items, limit))
    if not items:
        raise BadInput("there are no items to evaluate on")
    return items


def mean(name, values):
    """-> {NAME: mean of independent values, NAME_se: its standard error, None for a single one}."""
    n = len(values)
    error = statistics.stdev(values) / math.sqrt(n) if n > 1 else None
    return {name: statistics.mean(values), f"{name}_se": error}


def with_errors(row, form=".4g", error_form=".2g"):
    """The same row, every number that has a standard error as text with ± that, if it is known."""
    shown = dict(row)
    for name, error in row.items():
        if (known := name.removesuffix("_se")) != name:
            shown[known] = f"{row[known]:{form}}"
            shown[known] += "" if error is None else f" ± {error:{error_form}}"
    return shown


def print_rows(rows):
    """One JSON object a line."""
    for row in rows:
        print(json.dumps(row), flush=True)


def report(score, made, options, **known):
    """Print score and cost in one line, or with --json as one object.

    score: what `mean` makes, of one or several names. made: Generations. known: what else there
    is to say of the run, the number of items last.
    """
    cost = Generation.total(made).cost()
    if options.json:
        return print_rows([{"task": options.task, **known, **score, **cost}])
    shown = with_errors(score)
    scores = ", ".join(f"{name} {shown[name]}" for name in score if not name.endswith("_se"))
    new = "no bytes made"
    if cost["new_bytes"]:
        new = f"{cost['new_bytes']:,} bytes at {cost['bytes_per_second']:.0f} bytes/s"
    run = ", ".join(map(str, known.values()))
    return print(f"{run} items: {scores}; {new}, {PRICE.format_map(cost)}")
