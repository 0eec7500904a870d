"""What the tasks have in common: taking items, standard errors, and the line they end with."""

import json
import math
import statistics
from itertools import islice

from support.terminal import BadInput


def taken(items, limit):
    """The first `limit` items, as a list; at least one."""
    items = list(islice(items, limit))
    if not items:
        raise BadInput("there are no items to evaluate on")
    return items


def standard_error(values):
    """Of the mean of independent values; None for a single one, which says nothing about it."""
    if len(values) < 2:
        return None
    return statistics.stdev(values) / math.sqrt(len(values))


def with_error(value, error, form=".4g", error_form=".2g"):
    """A number as text, with ± its standard error where there is one."""
    if error is None:
        return f"{value:{form}}"
    return f"{value:{form}} ± {error:{error_form}}"


def print_rows(rows):
    """One JSON object a line."""
    for row in rows:
        print(json.dumps(row), flush=True)


def report(score, cost, options, **known):
    """Print score and cost in one line, or with --json as one object.

    score: a dict of `NAME` and `NAME_se`. cost: Generation.cost(). known: what else there is to
    say of the run, the number of items last.
    """
    if options.json:
        print_rows([{"task": options.task, **known, **score, **cost}])
        return
    names = [name for name in score if not name.endswith("_se")]
    scores = [f"{name} {with_error(score[name], score.get(f'{name}_se'))}" for name in names]
    made = "no bytes made"
    if cost["new_bytes"]:
        made = f"{cost['new_bytes']:,} bytes at {cost['bytes_per_second']:.0f} bytes/s"
    print(
        f"{', '.join(map(str, known.values()))} items: {', '.join(scores)}; "
        f"{made}, {cost['seconds']:.1f} s, NFEs: decoder {cost['decoder_nfes']:,}, "
        f"encoder/global {cost['encoder_global_nfes']:,}, patcher {cost['entropy_nfes']:,}; "
        f"{cost['bandwidth_gb']:.3g} GB by Eq. 8"
    )
