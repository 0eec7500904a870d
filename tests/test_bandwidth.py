"""bandwidth.py: the paper's tables row by row, prices by hand, and our own counters."""

import copy
import csv
import json
import math
from collections import Counter
from dataclasses import field, fields, make_dataclass

import pytest
import torch
from conftest import FAST, ROOT, fast_of, make_models, plain_of, random_ids

import bandwidth
from bandwidth import (
    acceptance,
    compare,
    cost_of,
    gigabytes,
    gigabytes_of,
    gigabytes_with_patcher,
    mean_patch,
    measure,
    passes_of,
    read_paper,
    recompute,
    settings_of,
    total,
)
from fast.official import ByteStateStream
from generate import Sampling
from measure import passes
from measure.modes import check_drafting
from measure.passes import PassSeconds, pass_seconds, settle_threads
from measure.quality import distinct_4grams, near_tie, output_bits, written
from speculate import MODES, Drafting
from support.generation import Counters, Generation
from support.terminal import BadInput

ROWS = recompute(read_paper())

# ---- what a generation costs

SIZES = {"encoder": 3, "global": 40, "decoder": 500, "chain": 6000, "ngram_tables": 10**9}
SIZES |= {"patcher": 70000}


def made_up(first):
    """A Generation all of whose counters are different numbers."""
    counters = Counters()
    for n, known in enumerate(fields(Counters), first):
        setattr(counters, known.name, Counter({n: n, "0": 0}) if known.type is Counter else n)
    return Generation([first, first + 1], counters, 0.5 * first, SIZES)


def test_gigabytes_by_hand():
    """Each part as often as it ran, two bytes a parameter; the tables are not read."""
    assert gigabytes(10, 3, 500, 43) == pytest.approx(2 * (10 * 500 + 3 * 43) / 1e9)
    assert gigabytes(10, 3, 500, 43, bits=8) == pytest.approx((10 * 500 + 3 * 43) / 1e9)
    made = Generation([5], Counters(decoder=10, encoder_global=3, entropy=4, chain=2), 1.0, SIZES)
    read = 10 * 500 + 3 * 43 + 2 * 6000
    assert gigabytes_of(made) == pytest.approx(2 * read / 1e9)
    assert gigabytes_with_patcher(made, bits=32) == pytest.approx(4 * (read + 4 * 70000) / 1e9)
    cost = cost_of(made)
    assert cost == {
        "new_bytes": 1,
        "seconds": 1.0,
        "bytes_per_second": 1.0,
        "decoder_nfes": 10,
        "encoder_global_nfes": 3,
        "entropy_nfes": 4,
        "bandwidth_gb": gigabytes_of(made),
    }


def test_averages_over_nothing_are_none():
    nothing = Generation([], Counters(), 0.0, SIZES)
    assert acceptance(nothing) is None and mean_patch(nothing) is None
    assert distinct_4grams([[1, 2, 3], []]) is None
    assert output_bits(fast_of(*make_models(0)), [100], []) is None
    some = Counters(drafted=8, accepted=2, bytes_advanced=9, patches_closed=2)
    assert acceptance(Generation([], some, 0.0, SIZES)) == 0.25
    assert mean_patch(Generation([], some, 0.0, SIZES)) == 4.5


def test_a_total_forgets_no_counter():
    """Every field there is, a new one too, is the sum of those of the parts."""
    parts = [made_up(10), made_up(200), made_up(3000)]
    whole = total(parts)
    for known in fields(Counters):
        found = getattr(whole.counters, known.name)
        several = [getattr(part.counters, known.name) for part in parts]
        if known.type is Counter:
            assert found == {key: n for counted in several for key, n in counted.items()}
            assert "0" in found  # what is counted and never ran is said too
        else:
            assert found == sum(several) > 0
    assert whole.ids == [10, 11, 200, 201, 3000, 3001]
    assert whole.seconds == 1605 and whole.sizes == SIZES
    # What else a Generation may have one day needs a line in `total`.
    assert [known.name for known in fields(Generation)] == ["ids", "counters", "seconds", "sizes"]
    parts[0].counters.lengths[7] = 7
    assert 7 not in whole.counters.lengths
    assert gigabytes_of(whole) == pytest.approx(sum(map(gigabytes_of, parts)))


def test_a_total_is_not_fooled_by_a_new_counter(monkeypatch):
    """Guards: a field that was added and that nobody summed."""
    More = make_dataclass(
        "More",
        [("drops", int, 0), ("kinds", Counter, field(default_factory=Counter))],
        bases=(Counters,),
    )
    monkeypatch.setattr(bandwidth, "Counters", More)
    several = [
        Generation([], More(drops=2, kinds=Counter(a=1)), 1.0, SIZES),
        Generation([], More(drops=3, kinds=Counter(a=1, b=4), rounds=5), 1.0, SIZES),
    ]
    whole = total(several).counters
    assert whole.drops == 5 and whole.kinds == {"a": 2, "b": 4} and whole.rounds == 5


def test_a_folded_patcher_costs_what_it_did():
    """Eq. 8 is about the model that was trained, whatever is made of its norms for speed."""
    model, patcher = make_models(0)
    size = sum(p.numel() for p in patcher.parameters())
    for make in (plain_of, *FAST.values()):
        machine = make(model, patcher)
        (made,) = measure(machine, [[100]], 3, [("blt", "", Drafting())], Sampling)
        assert made[0].sizes == {**model.sizes(), "patcher": size}


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


@pytest.mark.parametrize("make", FAST.values(), ids=FAST)
def test_pass_times_leave_the_arithmetic_consistent(make):
    machine = make(*make_models(0))
    times = pass_seconds(machine, rows=(1, 5, 9, 8), context=100, repeats=4)
    assert set(times.decoder) == set(times.patcher) == {1, 5, 8, 9}
    assert set(times.encoder_global) == {1, 2, 4, 8}
    counters = Counters(decoder=4, entropy=4, encoder_global=1, patches_closed=1)
    plain = sum(times.of(passes_of("blt", counters, 4)).values())
    by_passes = 4 * times.decoder[1] + 4 * times.patcher[1] + times.encoder_global[1]
    assert plain == pytest.approx(by_passes)


def test_every_pass_that_is_timed_runs(monkeypatch):
    """As often as it is repeated: a Stream keeps rows that were asked for before.

    Of encoder and global model nothing changes by it.
    """
    ran = Counter()
    model, patcher = make_models(0, block_size=8, chain_width=6)
    machine = fast_of(model, patcher)

    def in_turn(works, repeats, device):
        assert str(device) == "cpu"
        (stream,) = {work.args[0] for (part, _), work in works.items() if part == "decoder"}
        known = [*stream.known]
        size = known[-1].patches_closed * stream.model.decoder.latent_shape[1]
        latents = stream.latent_cache.rows[..., :size, :].clone()
        for name, work in works.items():
            for _ in range(2):
                before = stream.counters.decoder, stream.counters.entropy
                calls = stream.counters.encoder_global
                work()
                ran[name] += stream.counters.decoder - before[0]
                ran[name] += stream.counters.entropy - before[1]
                ran[name] += stream.counters.encoder_global - calls
        assert stream.known == known and stream.decoded == stream.length
        again = stream.latent_cache.rows[..., :size, :]
        assert latents.isfinite().all() and torch.allclose(again, latents, rtol=1e-9)
        return dict.fromkeys(works, 1.0), 0.0

    monkeypatch.setattr(passes, "median_seconds_in_turn", in_turn)
    times = pass_seconds(machine, rows=[1, 9, 128], context=200)
    assert set(times.decoder) == {1, 9, 128} and set(times.chain) == {1, 8}
    assert {n for (part, _), n in ran.items() if part != "chain"} == {2}


def test_single_passes_of_any_kind_of_machine(monkeypatch):
    """Official weights' streams too; the plain machine has no passes of a single row."""
    original = dict(byte_states=True, double_residual=True, global_norm=False)
    machine = fast_of(*make_models(0, **original))
    assert machine.kind is ByteStateStream
    assert set(pass_seconds(machine, rows=[1, 3], repeats=2).decoder) == {1, 3}
    assert pass_seconds(plain_of(*make_models(0)), rows=[1]) is None
    # A text whose bytes hardly close a patch has fewer that can be timed.
    machine = fast_of(*make_models(0))
    machine.patcher.config.threshold = 99.0
    times = pass_seconds(machine, rows=[1], context=20, repeats=2)
    assert set(times.encoder_global) == {1, 2}


def test_threads_are_settled_on_a_cpu_by_either_machine(monkeypatch):
    works = []
    monkeypatch.setattr(passes, "choose_threads", works.append)
    for make in (fast_of, plain_of):
        settle_threads(make(*make_models(0)))
    for work in works:
        state = work.args[0]
        before = state.counters.decoder
        with torch.inference_mode():  # as it is called
            work()
            work()
        assert state.counters.decoder == before + 2


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


@pytest.mark.more
def test_measuring_a_checkpoint_gives_the_documented_keys(trained_file, tmp_path, capsys):
    (tmp_path / "prompts").write_bytes(b"def f\nclass A\n")
    arguments = ["--checkpoint", str(trained_file), "--prompts", str(tmp_path / "prompts")]
    bandwidth.main([*arguments, "--bytes", "12", "--json", "--device", "cpu"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(set(row) == MEASURED for row in rows)
    assert rows[0]["mode"] == "blt" and rows[0]["decrease"] == 0
    assert rows[0]["decoder_nfes"] == 11
    lossless = [r for r in rows if r["mode"] == "blt" or MODES[r["mode"]].verified]
    assert all(r["agreement"] == 1 for r in lossless) and len(rows) == 28
    assert all(len(r["ratio_spread"]) == 2 and r["ratio"] > 0 for r in rows)
    for row in rows:
        parts = sum(
            row[f"seconds_{part}"] for part in ("decoder", "encoder_global", "patcher", "chain")
        )
        seconds = 12 / row["bytes_per_second"]
        assert parts == pytest.approx(row["of_ceiling"] * seconds, rel=1e-6)


def test_a_model_is_measured_where_one_asks_for(monkeypatch):
    """Guards: --device that was taken and not followed."""

    class Enough(Exception):
        pass

    def load(path, device):
        raise Enough(device)

    monkeypatch.setattr(bandwidth, "load", load)
    monkeypatch.setattr(bandwidth, "choose_device", lambda name: f"the {name} here")
    with pytest.raises(Enough, match="the mps here"):
        bandwidth.main(["--device", "mps"])


def test_measured_rows_are_printed_as_a_table(capsys):
    row = dict.fromkeys(MEASURED, 0.5) | {"mode": "blt", "setting": "", "acceptance": None}
    row["ratio_spread"] = [0.5, 1.25]
    bandwidth.print_measured([row, row | {"mode": "blts", "setting": "k=4"}], known_times())
    lines = capsys.readouterr().out.splitlines()
    assert "0.5-1.2" in lines[2] and lines[2].startswith("blt ") and lines[3].startswith("blts k=4")
    assert "One pass, ms: decoder of 1 1000.00" in lines[-1]
    row |= {"ratio_spread": None, "ratio": None, "mean_patch": None, "of_ceiling": None}
    bandwidth.print_measured([row], None)
    out = capsys.readouterr().out
    assert "0.5-1.2" not in out and "One pass" not in out and "plain machine" in out


def test_a_file_without_prompts_is_refused(tmp_path):
    (tmp_path / "empty").write_bytes(b"\n\n")
    with pytest.raises(BadInput, match="no prompts in"):
        bandwidth.read_prompts(tmp_path / "empty")
    (tmp_path / "two").write_bytes(b"a\n\nbc\n")
    assert bandwidth.read_prompts(tmp_path / "two") == [[101], [102, 103]]
    held_out = bandwidth.read_prompts(None)
    assert [len(prompt) for prompt in held_out] == [200] * 8


def test_every_setting_that_is_measured_is_read():
    """None names what its mode does not read, so none stands in the table under a wrong name."""
    for shape in ({}, {"block_size": 8}, {"block_size": 32, "chain_width": 6}):
        model, _ = make_models(0, **shape)
        for mode, _, drafting in settings_of(model):
            check_drafting(mode, model, drafting)
    machine = fast_of(*make_models(0))
    with pytest.raises(BadInput, match="--mode blt reads no --draft-size"):
        measure(machine, [[100]], 2, [("blt", "", Drafting(draft_size=2))], Sampling)


def test_settings_are_compared_by_either_machine():
    """All but what is measured in seconds is the same of both."""
    models = make_models(0, block_size=8, chain_width=6)
    prompts = [random_ids(n)[1:].tolist() for n in (9, 14)]
    settings = [
        ("blt", "", Drafting()),
        ("blts", "k=2", Drafting(draft_size=2)),
        ("bltd", "K=4", Drafting(block_size=4)),
        ("bltdv", "", Drafting()),
    ]
    counted = []
    for make in (plain_of, fast_of):
        machine = make(*models)
        made = measure(machine, prompts, 10, settings, lambda: Sampling(ignore_eos=True))
        assert [[len(one.ids) for one in several] for several in made] == [[10, 10]] * 4
        rows, times = compare(machine, prompts, settings, made)
        assert (times is None) == (make is plain_of)
        for row in rows:
            assert set(row) == MEASURED
            timed = {key: row.pop(key) for key in MEASURED if "second" in key or "ratio" in key}
            assert (timed["seconds_decoder"] is None) == (row.pop("of_ceiling") is None)
            assert (timed["seconds_chain"] is None) == (make is plain_of)
            row["output_bits_per_byte"] = pytest.approx(row["output_bits_per_byte"])
        counted.append(rows)
    assert counted[0] == counted[1]
    blt, _, bltd, bltdv = counted[1]
    assert blt["decrease"] == 0 and blt["acceptance"] is None and bltd["acceptance"] is None
    assert bltdv["agreement"] == 1 and bltdv["lossless"] and not bltd["lossless"]


def test_a_comparison_of_nothing_says_nothing():
    """Where plain BLT ends at once there is no average to give."""
    machine = fast_of(*make_models(0))
    nothing = [[Generation([], Counters(), 0.0, SIZES)]]
    ((row,), _) = compare(machine, [[100]], [("blt", "", Drafting())], nothing)
    assert {key for key, value in row.items() if value is None} == {
        *("agreement", "output_bits_per_byte", "distinct_4grams", "mean_patch", "acceptance"),
        *("decrease", "ratio", "ratio_spread", "of_ceiling", "bytes_per_second"),
    }


# ---- what a machine writes


def test_what_is_written_begins_with_the_prompt():
    machines = [make(*make_models(0)) for make in (plain_of, fast_of)]
    first, second = (written(machine, 12, b"ab") for machine in machines)
    assert first == second and first.startswith(b"ab") and len(first) > 2


def test_bits_of_an_output_are_those_of_one_pass():
    model, patcher = make_models(0)
    text = random_ids(30)
    with torch.no_grad():
        logits = model(text[None], patcher.closes(text)[None])[0]
    nats = torch.nn.functional.cross_entropy(logits[9:-1], text[10:], reduction="sum").item()
    ids = text.tolist()
    for make in (plain_of, fast_of):
        bits = output_bits(make(model, patcher), ids[1:10], ids[10:])
        assert bits == pytest.approx(nats / math.log(2) / 20)
        one = output_bits(make(model, patcher), ids[1:10], ids[10:11])
        assert one == pytest.approx(-logits[9].log_softmax(-1)[ids[10]].item() / math.log(2))


def test_where_rounding_decides_is_found_by_either_machine():
    model, patcher = make_models(0)
    text = random_ids(20)
    prompt, ids = text[1:8].tolist(), text[8:].tolist()
    others = [*ids[:5], ids[5] + 1, *ids[6:]]
    H = patcher.entropies(text)
    patcher.config.threshold = -9.0  # which no entropy is near
    with torch.no_grad():
        logits = model(text[None], patcher.closes(text)[None])[0, 12]
    logits[[0, 1, 3]] = -torch.inf
    best, second = logits.topk(2).values
    gap = (best - second).item()
    for make in (plain_of, fast_of):
        machine = make(model, patcher)
        patcher.config.threshold = -9.0
        assert near_tie(machine, prompt, ids, others, Sampling(), tolerance=1.001 * gap)
        assert not near_tie(machine, prompt, ids, others, Sampling(), tolerance=0.999 * gap)
        # A byte that both have written before they part; one of the prompt says nothing.
        patcher.config.threshold = H[10].item() + 1e-8
        assert near_tie(machine, prompt, ids, others, Sampling(), 1e-7)
        patcher.config.threshold = H[4].item() + 1e-8
        assert not near_tie(machine, prompt, ids, others, Sampling(), 1e-7)
