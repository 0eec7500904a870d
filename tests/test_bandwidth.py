"""bandwidth.py: the paper's tables row by row, prices by hand, and our own counters."""

import copy
import csv
import json

import pytest
from conftest import ROOT, make_models

import bandwidth
from bandwidth import (
    passes_of,
    read_paper,
    recompute,
    settings_of,
)
from speculate import MODES
from stream import Counters
from support.passes import PassSeconds, pass_seconds
from support.terminal import BadInput

ROWS = recompute(read_paper())

# ---- the paper's tables

# Billions of parameters that a pass reads: of the decoder, of encoder and global model together
BILLIONS = {"1B": (0.160, 0.019 + 1.28), "3B": (0.160, 0.026 + 2.82)}


def name_of(row):
    keys = ("model_size", "task", "method", "block_size", "setting")
    return "-".join(str(row[key]) for key in keys)


def by_hand(size, decoder, calls):
    """Eq. 8 in plain arithmetic: two bytes a parameter, every part once a pass."""
    of_decoder, of_rest = BILLIONS[size]
    return 2 * (decoder * of_decoder + calls * of_rest)


def test_the_table_is_whole():
    assert len(ROWS) == 223
    assert {r["method"] for r in ROWS} == {"BLT", "BLT-S", "BLT-D", "BLT-DV"}


def test_rows_worked_out_by_hand():
    """Guards: gigabytes copied from the table passed every test, as they are right there too.

    None of these numbers is published: they follow from the NFEs alone.
    """
    found = {name_of(r): r for r in ROWS}

    def check(name, gb, decrease):
        row = found[name]
        assert row["gb"] == pytest.approx(gb, abs=0.001) != row["bandwidth_gb"]
        assert row["decrease"] == pytest.approx(decrease, abs=0.001)

    # 2 x (512 x 0.160 + 250 x 1.299)
    check("1B-fr-en-BLT--autoregressive", 813.34, 0.0)
    # 2 x (526 x 0.160 + 212 x 1.299)
    check("1B-fr-en-BLT-S--k=4", 719.096, 11.5873)
    # 2 x (184 x 0.160 + 128 x 1.299)
    check("1B-fr-en-BLT-D-4-alpha=0.5", 391.424, 51.8745)
    # 2 x (80 x 0.160 + 80 x 1.299)
    check("1B-fr-en-BLT-DV-16-one-step", 233.44, 71.2986)
    # 2 x (512 x 0.160 + 308 x 2.846), 2 x (580 x 0.160 + 130 x 2.846)
    check("3B-fr-en-BLT--autoregressive", 1916.976, 0.0)
    check("3B-fr-en-BLT-S--k=8", 925.56, 51.7177)


def test_every_row_is_computed_from_its_nfes_read_here():
    """The file read once more, plain arithmetic on every line of it."""
    with open(ROOT / "paper" / "tables.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(ROWS)
    for line, row in zip(lines, ROWS):
        size, decoder = line["model_size"], float(line["decoder_nfes"])
        calls = float(line["encoder_global_nfes"])
        assert name_of(line) == name_of(row)
        assert row["gb"] == pytest.approx(by_hand(size, decoder, calls), rel=1e-9)


def test_falsified_gigabytes_change_no_result_but_the_error():
    """Guards: published gigabytes copied instead of computed."""
    lies = copy.deepcopy(read_paper())
    for row in lies:
        row["bandwidth_gb"] *= 3
        row["decrease_percent"] = 1.0
    own = ("gb", "decrease")
    for lie, row in zip(recompute(lies), ROWS):
        assert [lie[key] for key in own] == [row[key] for key in own]
        assert lie["error"] == pytest.approx(row["gb"] / (3 * row["bandwidth_gb"]) - 1)
        assert not lie["explained"]


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_every_row_of_the_paper_follows_from_its_nfes(row):
    assert abs(row["error"]) < 0.025


def test_rows_that_rounding_explains_are_told_from_the_others():
    """Half an NFE of each part, and half of the last digit."""
    for row in ROWS:
        half = by_hand(row["model_size"], 0.5, 0.5) + 0.005
        assert row["explained"] == (abs(row["gb"] - row["bandwidth_gb"]) <= half)
    assert 0 < sum(not row["explained"] for row in ROWS) < len(ROWS)


def test_the_papers_tables_are_printed(capsys):
    bandwidth.main(["--paper"])
    out = capsys.readouterr().out
    assert "1B fr-en BLT-S  k=4" in out and "719.45" in out and "719.10" in out
    bandwidth.main(["--paper", "--json"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 223 and json.loads(lines[1])["gb"] == pytest.approx(719.096)


# ---- seconds


def known_times(**decoder):
    """Easy numbers: n rows take n s in the decoder, n / 100 in the patcher; m patches 10 + m."""
    rows = range(1, 70)
    return PassSeconds(
        decoder={n: float(n) for n in rows},
        patcher={n: n / 100 for n in rows},
        encoder_global={1: 11.0, 2: 12.0, 8: 18.0},
        spread=0.0,
        chain={n: n / 100 for n in rows},
    )


def test_seconds_of_passes_by_hand():
    """Each pass at its own number of rows, each call at its own number of patches.

    Guards: nine rows taken for K = 16, and one row for the verification of BLT-S.
    """
    times = known_times()

    def check(mode, count, decoding, closing, patching, chaining=0, **counted):
        seconds = times.of(passes_of(mode, Counters(**counted), count))
        by_hand = {"decoder": decoding, "encoder_global": closing, "patcher": patching}
        assert seconds == pytest.approx({**by_hand, "chain": chaining})

    taken = {"encoder_global": 3, "patches_closed": 12}  # four patches a call: 14 s each
    plain = {"encoder_global": 2, "patches_closed": 2}
    check("blt", 8, 9, 22, 0.09, decoder=9, entropy=9, **plain)
    # 3 blocks of 16: their first passes take 32 rows, 4 further steps 16
    check("bltd", 16, 3 * 32 + 4 * 16, 42, 0.32, decoder=7, rounds=3, entropy=2, **taken)
    # 5 rounds: 5 first passes of 17 rows, 2 further steps of 16, 5 verifications of 17
    decoding = 5 * 17 + 2 * 16 + 5 * 17
    check("bltdv", 16, decoding, 42, 0.85, decoder=12, rounds=5, drafted=80, entropy=5, **taken)
    # drafts that stopped early: 3 bytes on average
    decoding = 5 * 17 + 2 * 16 + 5 * 4
    check("bltdv", 16, decoding, 42, 0.2, decoder=12, rounds=5, drafted=15, entropy=5, **taken)
    # two of the rounds copied and three drafted, 4 cells each
    decoding = 3 * 17 + 5 * 4
    counted = {"decoder": 8, "rounds": 5, "drafted": 15, "entropy": 5, "chain": 12}
    check("bltdv", 16, decoding, 42, 0.2, 3 * 0.04, **counted, **taken)
    # 5 rounds of 4 drafted bytes, a row each, and 5 verifications of 5 rows
    check("blts", 4, 20 + 5 * 5, 42, 0.25, decoder=25, rounds=5, drafted=20, entropy=5, **taken)
    check("lookup", 8, 5 * 9, 42, 0.45, decoder=5, rounds=5, drafted=40, entropy=5, **taken)
    check("bltd", 4, 2 * 8, 0, 0.04, decoder=2, rounds=2, entropy=1)  # no patch closed


def test_pass_times_leave_the_arithmetic_consistent():
    times = pass_seconds(*make_models(0), rows=(1, 5, 9, 8), context=100, repeats=4)
    assert set(times.decoder) == set(times.patcher) == {1, 5, 8, 9}
    assert set(times.encoder_global) == {1, 2, 4, 8}
    counters = Counters(decoder=4, entropy=4, encoder_global=1, patches_closed=1)
    plain = sum(times.of(passes_of("blt", counters, 4)).values())
    by_passes = 4 * times.decoder[1] + 4 * times.patcher[1] + times.encoder_global[1]
    assert plain == pytest.approx(by_passes)


# ---- a checkpoint measured


def test_every_setting_of_the_appendix_that_a_model_can_run():
    plain, trained = settings_of(make_models(0)[0]), settings_of(make_models(0, block_size=8)[0])
    modes = [mode for mode, _, _ in plain]
    assert modes == ["blt", "blts", "blts", "blts", "lookup"] and trained[:5] == plain
    names = [f"{mode} {name}" for mode, name, _ in trained[5:]]
    assert "bltd K=4 confidence 0.7" in names and "bltdv K=8 one-step" in names
    assert len(names) == 2 * (5 + 4) and not any("K=16" in name for name in names)
    chained = settings_of(make_models(0, block_size=8, chain_width=6)[0])
    assert len(chained) == len(trained) + 5
    assert "bltdv chained, copy 16" in [f"{mode} {name}" for mode, name, _ in chained]


MEASURED = {
    *("mode", "setting", "agreement", "output_bits_per_byte", "distinct_4grams", "mean_patch"),
    *("acceptance", "decoder_nfes", "encoder_global_nfes", "entropy_nfes", "bandwidth_gb"),
    *("decrease", "bytes_per_second", "ratio", "of_ceiling", "seconds_decoder"),
    *("seconds_encoder_global", "seconds_patcher", "seconds_chain"),
    *("lossless", "ratio_spread"),
}


def test_measuring_a_checkpoint_gives_the_documented_keys(trained_file, tmp_path, capsys):
    (tmp_path / "prompts").write_bytes(b"def f\nclass A\n")
    arguments = ["--checkpoint", str(trained_file), "--prompts", str(tmp_path / "prompts")]
    bandwidth.main([*arguments, "--bytes", "12", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(set(row) == MEASURED for row in rows)
    assert rows[0]["mode"] == "blt" and rows[0]["decrease"] == 0
    assert rows[0]["decoder_nfes"] == 11
    lossless = [r for r in rows if r["mode"] == "blt" or MODES[r["mode"]].verified]
    assert all(r["agreement"] == 1 for r in lossless) and len(rows) == 28
    for row in rows:
        parts = sum(
            row[f"seconds_{part}"] for part in ("decoder", "encoder_global", "patcher", "chain")
        )
        seconds = 12 / row["bytes_per_second"]
        assert parts == pytest.approx(row["of_ceiling"] * seconds, rel=1e-6)


def test_measured_rows_are_printed_as_a_table(capsys):
    row = dict.fromkeys(MEASURED, 0.5) | {"mode": "blt", "setting": "", "acceptance": None}
    row["ratio_spread"] = [0.5, 1.25]
    bandwidth.print_measured([row, row | {"mode": "blts", "setting": "k=4"}], known_times())
    lines = capsys.readouterr().out.splitlines()
    assert "0.5-1.2" in lines[2] and lines[2].startswith("blt ") and lines[3].startswith("blts k=4")


def test_a_file_without_prompts_is_refused(tmp_path):
    (tmp_path / "empty").write_bytes(b"\n\n")
    with pytest.raises(BadInput, match="no prompts in"):
        bandwidth.read_prompts(tmp_path / "empty")
    (tmp_path / "two").write_bytes(b"a\n\nbc\n")
    assert bandwidth.read_prompts(tmp_path / "two") == [[101], [102, 103]]
    held_out = bandwidth.read_prompts(None)
    assert [len(prompt) for prompt in held_out] == [200] * 8
