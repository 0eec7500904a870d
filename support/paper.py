"""The paper's Tables 3-10 beside what Eq. 8 makes of their NFEs (Fast BLT §4.2, appendix)."""

import csv
import os

from generate import gigabytes
from support.terminal import table_of

FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "paper")
# Parameters of the decoder, and of encoder and global model, which run together
PAPER_SIZES = {"1B": (160e6, 19e6 + 1.28e9), "3B": (160e6, 26e6 + 2.82e9)}


def read_paper():
    """The rows of the paper's Tables 3-10 -> list of dicts, numbers as floats."""
    with open(os.path.join(FOLDER, "tables.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for key in list(row)[6:]:  # six columns of words, then numbers
            row[key] = float(row[key]) if row[key] else None
    return rows


def recompute(rows):
    """Add to each row what follows from its NFEs alone.

    gb and decrease (%) by Eq. 8; error against the published GB; explained: whether rounding of
    half an NFE of each part makes up for it.
    """
    plain = {}
    for r in rows:
        sizes = PAPER_SIZES[r["model_size"]]
        r["gb"] = gigabytes(r["decoder_nfes"], r["encoder_global_nfes"], *sizes)
        # Plain BLT is the first row of its task.
        baseline = plain.setdefault((r["model_size"], r["task"]), r["gb"])
        r["decrease"] = 100 * (1 - r["gb"] / baseline)
        r["error"] = r["gb"] / r["bandwidth_gb"] - 1
        r["explained"] = abs(r["gb"] - r["bandwidth_gb"]) <= gigabytes(0.5, 0.5, *sizes) + 0.005
    return rows


COLUMNS = """
name s size task method K setting | decoder_nfes .0f dec | encoder_global_nfes .0f enc+glob |
bandwidth_gb .2f GB published | gb .2f Eq. 8 | error .1f error % |
decrease_percent .1f saved % published | decrease .1f Eq. 8 %
"""


def print_paper(rows):
    """The tables recomputed, and what does not follow from their NFEs."""
    words = ("model_size", "task", "method", "block_size", "setting")
    rows = [{**r, "name": " ".join(map(r.get, words)), "error": 100 * r["error"]} for r in rows]
    print(table_of(rows, COLUMNS))
    worst = max(rows, key=lambda r: abs(r["error"]))
    print(f"\n{len(rows)} rows, the largest error {abs(worst['error']):.2f} % ({worst['name']})")
    unexplained = [r for r in rows if not r["explained"]]
    print(f"{len(unexplained)} rows differ by more than half an NFE of each part explains:")
    for r in unexplained:
        print(f"  {r['name']}: {r['bandwidth_gb']:.2f} GB published, {r['gb']:.2f} by Eq. 8")
