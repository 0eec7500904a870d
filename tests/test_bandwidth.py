"""bandwidth.py: Eq. 8 by hand, the paper's tables row by row, and our own counters."""
import json

import pytest

import bandwidth
from bandwidth import fit_sizes, generation_gigabytes, gigabytes, read_paper, recompute
from conftest import make_models
from stream import Counters
from terminal import BadInput
from timing import break_even, pass_seconds, predicted_seconds

ROWS = recompute(read_paper())


def test_eq8_on_hand_worked_numbers():
    assert gigabytes(512, 250, 160e6, 1.299e9) == pytest.approx(2 * (512 * 0.16 + 250 * 1.299))  # 813.3: the paper says 814.95
    assert gigabytes(1, 0, 1e9, 5e9) == 2.0 and gigabytes(1, 0, 1e9, 5e9, bits=4) == 0.5
    assert gigabytes(3, 2, 10, 100, bits=8) == pytest.approx(230e-9)


def test_the_table_is_whole():
    assert len(ROWS) == 223 and {r["method"] for r in ROWS} == {"BLT", "BLT-S", "BLT-D", "BLT-DV"}


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r['model_size']}-{r['task']}-{r['method']}-{r['block_size']}-{r['setting']}")
def test_every_row_of_the_paper_follows_from_its_nfes(row):
    assert abs(row["error"]) < 0.025
    if row["one_call_gb"] is not None:
        assert row["one_call_gb"] < row["gb"]


@pytest.mark.parametrize("size", ["1B", "3B"])
def test_part_sizes_come_out_of_the_table_alone(size):
    decoder, rest = fit_sizes(ROWS, size)
    assert decoder == pytest.approx(bandwidth.PAPER_SIZES[size][0], rel=0.05) and rest == pytest.approx(bandwidth.PAPER_SIZES[size][1], rel=0.03)


def test_generation_gigabytes_count_no_hash_table_and_the_patcher_apart():
    model, patcher = make_models(0)
    sizes, mine = model.sizes(), sum(p.numel() for p in patcher.parameters())
    paper, with_patcher = generation_gigabytes(Counters(decoder=10, encoder_global=3, entropy=7), model, patcher)
    assert paper == pytest.approx(2 * (10 * sizes["decoder"] + 3 * (sizes["encoder"] + sizes["global"])) / 1e9)
    assert with_patcher - paper == pytest.approx(2 * 7 * mine / 1e9)


def test_pass_times_leave_the_arithmetic_consistent():
    times = pass_seconds(*make_models(0), rows=(1, 5, 9, 8), context=100, repeats=4)
    assert set(times.decoder) == set(times.patcher) == {1, 5, 8, 9} and set(times.encoder_global) == {1, 2}
    plain, *_ = predicted_seconds("blt", Counters(decoder=4, entropy=4, encoder_global=1, patches=1), times, 4)
    assert plain == pytest.approx(4 * times.decoder[1] + 4 * times.patcher[1] + times.encoder_global[1])
    assert [row[0] for row in break_even(times, 4.0, 4, 8)] == ["blts", "lookup", "bltdv"]


def test_measuring_a_checkpoint_gives_the_documented_keys(trained_file, tmp_path, capsys):
    (tmp_path / "prompts").write_bytes(b"def f\nclass A\n")
    bandwidth.main(["--checkpoint", str(trained_file), "--prompts", str(tmp_path / "prompts"), "--bytes", "12", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert set(rows[0]) == {"mode", "setting", "agreement", "output_bits_per_byte", "distinct_4grams", "mean_patch", "acceptance", "decoder_nfes",
                            "encoder_global_nfes", "entropy_nfes", "bandwidth_gb", "decrease", "bytes_per_second", "ratio", "of_ceiling",
                            "seconds_decoder", "seconds_encoder_global", "seconds_patcher", "memory_bandwidth_share"}
    assert rows[0]["mode"] == "blt" and rows[0]["decrease"] == 0 and rows[0]["decoder_nfes"] == 11
    assert all(r["agreement"] == 1 for r in rows if r["mode"] in ("blt", "blts", "bltdv", "lookup"))


def test_a_plot_is_drawn_or_its_extra_named(trained_file, tmp_path, capsys):
    (tmp_path / "prompts").write_bytes(b"def f\n")
    arguments = ["--checkpoint", str(trained_file), "--prompts", str(tmp_path / "prompts"), "--bytes", "8"]
    with pytest.raises(BadInput, match=".png or .svg"):
        bandwidth.main([*arguments, "--plot", "x.txt"])
    pytest.importorskip("matplotlib")
    bandwidth.main([*arguments, "--plot", str(tmp_path / "x.png")])
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG") and "bltdv K=8 one-step" in capsys.readouterr().out


def test_a_preset_is_measured_with_random_weights(capsys):
    bandwidth.main(["--preset", "nano", "--measure", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(r["seconds"] > 0 and r["seconds_by_eq8"] > 0 for r in rows) and any("8 patches" in r["pass"] for r in rows)
