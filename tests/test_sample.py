"""sample.py: what a user sees of a generation, in numbers worked out by hand."""

import json

import pytest
import torch
from conftest import make_models, random_ids

import sample
from data import BOS, encode
from generate import Generation, Sampling
from sample import as_json, identical, options_from, paper_calls, sampling_of
from stream import Counters
from support.show import printer, summary

SIZES = {"encoder": 30, "global": 400, "decoder": 50, "chain": 2}
SIZES |= {"ngram_tables": 10**9, "patcher": 7}


def made_up(ids=(101, 103), **counted):
    """A Generation of numbers that are easy to check."""
    given = {"decoder": 40, "encoder_global": 5, "entropy": 9, "rounds": 7, "drafted": 20}
    given |= {"accepted": 6, "lengths": {3: 1, 0: 4}, "prefill": {"decoder": 1}}
    given |= {"bytes_advanced": 12, "patches_closed": 5}
    return Generation(list(ids), Counters(**given | counted), 0.5, SIZES)


# Calls that the paper counts for seven rounds (blocks of bltd) with five of our own
PAPER_CALLS = {"blt": 5, "blts": 14, "bltd": 7, "bltdv": 14, "lookup": 14}


@pytest.mark.parametrize("mode", PAPER_CALLS)
def test_calls_are_counted_as_the_paper_does(mode):
    """Two a round where drafts are verified, one a block of BLT-D, and those made by plain BLT."""
    assert paper_calls(mode, made_up()) == PAPER_CALLS[mode]
    row = as_json(mode, b"x", made_up())
    assert row["paper_encoder_global_nfes"] == PAPER_CALLS[mode]
    assert row["encoder_global_nfes"] == 5


def test_json_of_a_generation_by_hand():
    row = as_json("blts", b"a\xff", made_up(encode(b"\xffb")))
    gigabytes = 2 * (40 * 50 + 5 * 430) / 1e9
    with_patcher = gigabytes + 2 * 9 * 7 / 1e9
    assert row == {
        "mode": "blts",
        "prompt": "a\ufffd",
        "output": "\ufffdb",
        "output_hex": "ff62",
        "new_bytes": 2,
        "seconds": 0.5,
        "bytes_per_second": 4.0,
        "decoder_nfes": 40,
        "encoder_global_nfes": 5,
        "entropy_nfes": 9,
        "bandwidth_gb": pytest.approx(gigabytes),
        "prefill_nfes": {"decoder": 1},
        "paper_encoder_global_nfes": 14,
        "rounds": 7,
        "drafted": 20,
        "accepted": 6,
        "acceptance": 0.3,
        "accepted_lengths": {"0": 4, "3": 1},
        "mean_patch": 2.4,
        "bandwidth_gb_with_patcher": pytest.approx(with_patcher),
    }
    assert json.loads(json.dumps(row)) == row


def test_summary_says_what_was_counted():
    text = summary("blts", made_up(), 14, made_up([101]))
    assert text.splitlines()[-1].startswith("[blts: 2 bytes, 4 bytes/s, 2.00 times plain BLT")
    assert "2 bytes" in text and "4 bytes/s" in text and "mean patch 2.40" in text
    assert "7 rounds" in text and "30% of 20" in text and "the paper's count: 14" in text
    made = made_up(rounds=0, drafted=0, lengths={})
    plain = summary("blt", made, 5, made)
    assert (
        "times" not in plain
        and "rounds" not in plain
        and "paper" not in plain
        and "decoder 40" in plain
    )


@pytest.mark.parametrize("mode", PAPER_CALLS)
@pytest.mark.parametrize("rounds", ["ours", "paper"])
def test_every_mode_from_a_checkpoint(mode, rounds, trained_file, capsys):
    """In the paper's rounds the calls made are those that the paper counts."""
    known = ["--checkpoint", str(trained_file), "--json", "--ignore-eos", "--bytes", "20"]
    sample.main(["--mode", mode, "--rounds", rounds, "--prompt", "def ", *known])
    (line,) = capsys.readouterr().out.splitlines()
    row = json.loads(line)
    assert set(row) == set(as_json("blt", b"", made_up())) and row["mode"] == mode
    assert row["new_bytes"] == 20 == len(bytes.fromhex(row["output_hex"]))
    if rounds == "paper" or mode == "blt":
        assert row["encoder_global_nfes"] == row["paper_encoder_global_nfes"]


def test_bytes_of_one_character_wait_for_each_other(capsys):
    emit = printer()
    for byte in "é".encode():
        emit([byte + 4])
    assert capsys.readouterr().out == "é"
    emit([0xE2 + 4])
    emit([], final=True)
    assert capsys.readouterr().out == "\ufffd"


def test_flags_become_a_sampling():
    given = ["--temperature", "0.5", "--top-p", "0.9", "--seed", "3", "--ignore-eos"]
    expected = Sampling(0.5, 0.9, ignore_eos=True, seed=3, stop=(14,))
    made = sampling_of(options_from(given), stop=(14,))
    names = ("temperature", "top_p", "ignore_eos", "seed", "stop")
    assert [getattr(made, n) for n in names] == [getattr(expected, n) for n in names]


def test_what_is_called_identical():
    """Only greedy output of a lossless mode can be a tie; anything else is true or false."""
    model, patcher = make_models(0)
    plain = made_up(random_ids(31)[1:].tolist())
    other = made_up(plain.ids[:10] + [(plain.ids[10] - 4 + 1) % 256 + 4] + plain.ids[11:])
    greedy, sampled = options_from([]), options_from(["--temperature", "1"])

    def verdict(mode, made, options=greedy):
        return identical(mode, model, patcher, [], plain, made, options)

    patcher.config.threshold = -9.0  # which no entropy is near
    assert verdict("blts", plain) is True and verdict("bltd", other) is False
    assert verdict("blts", other) is False and verdict("blts", plain, sampled) is None
    text = torch.tensor([BOS, *plain.ids])
    H = patcher.entropies(text)
    patcher.config.threshold = H[4].item() + 1e-6
    assert verdict("blts", other) == "tie" and verdict("bltd", other) is False
