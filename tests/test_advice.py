"""What a refusal advises works: the command that it names, or the change that it asks for."""

import random
import shlex

import pytest
import torch
from conftest import fast_of, make_models

import bandwidth
import train
from fast.patching import closes_of, mean_patch
from generate import Sampling, generate
from sample import summary
from scripts import export
from support import checkpoint
from support.checkpoint import check_target
from support.terminal import BadInput
from training import runs, steps
from training.runs import PARSER

SMALL = ["--preset", "nano", "--steps", "2", "--dtype", "float32"]


def refused(main, *arguments):
    """What a command says that refuses its arguments."""
    with pytest.raises(BadInput) as caught:
        main([str(word) for word in arguments])
    line = str(caught.value)
    assert "\n" not in line
    return line


def words(count, seed=0):
    """So many words."""
    chance = random.Random(seed)
    return " ".join(f"word{chance.randint(0, 99)}" for _ in range(count)).encode()


@pytest.fixture
def run_file(tmp_path, monkeypatch):
    """A finished run that was asked for much, and the folder that it is in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my text").write_bytes(words(900))
    asked = ["--block-size", "4", "--seed", "3", "--recipe", "paper", "--optimizer", "adamw"]
    asked += ["--global-layers", "1", "--block-after", "0.5", "--data", "my text"]
    train.main([*SMALL, *asked, "--out", "a run.pt"])
    return "a run.pt"


# ---- longer than planned


def command_in(line):
    """The arguments of the command of train.py that a line ends with."""
    _, _, command = line.partition("further: ")
    python, script, *arguments = shlex.split(command)
    assert (python, script) == ("python", "train.py")
    return arguments


@pytest.mark.parametrize("flag, value", [("--steps", "3"), ("--minutes", "0.01")])
def test_a_run_that_is_to_be_longer_is_told_how(flag, value, run_file):
    """It said only that this can't change; the weights can be trained further, all else alike."""
    line = refused(train.main, "--resume", run_file, flag, value)
    assert f"{flag} {float(value):g} can't change" in line or f"{flag} {value} can't" in line
    train.main(command_in(line))
    before = checkpoint.load(run_file)
    after = checkpoint.load("a run-further.pt")
    expected = dict(before["asked"])
    expected[flag.removeprefix("--")] = float(value)
    if flag == "--minutes":
        expected["steps"] = None
    # A separator is none, said or not.
    assert {**after["asked"], "separator": ""} == {**expected, "separator": ""}
    assert after["patcher_config"] == before["patcher_config"]
    assert not torch.equal(
        after["model"]["decoder.head.weight"], before["model"]["decoder.head.weight"]
    )


def test_other_settings_are_to_be_left_out(run_file):
    for flags in (["--seed", "9"], ["--steps", "3", "--seed", "9"]):
        line = refused(train.main, "--resume", run_file, *flags)
        assert "leave it out" in line or "further: " in line
    assert "this run began with 3; leave it out" in refused(
        train.main, "--resume", run_file, "--seed", "9"
    )
    train.main(["--resume", run_file])


def test_a_text_that_has_changed_is_brought_back_or_trained_on_anew(run_file, tmp_path):
    with open("my text", "ab") as file:
        file.write(b" more")
    line = refused(train.main, "--resume", run_file)
    assert "its hash has changed; bring that text back, or" in line
    train.main(command_in(line))
    assert checkpoint.load("a run-further.pt")["corpus"]["bytes"] == len(words(900)) + 5


def test_a_finished_run_that_is_resumed_keeps_its_speed(run_file, capsys):
    """Of no steps the speed was zero, and replaced that of the training."""
    before = checkpoint.load(run_file)["results"]["bytes_per_second"]
    capsys.readouterr()
    train.main(["--resume", run_file])
    assert "bytes/s" not in capsys.readouterr().out
    assert checkpoint.load(run_file)["results"]["bytes_per_second"] == before > 0


# ---- too little text


def test_too_little_text_is_said_with_what_works(tmp_path, monkeypatch):
    """A smaller preset was advised to nano, and for windows that no --length changes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_bytes(words(60))
    known = [*SMALL, "--data", "text", "--out", "x.pt"]
    patchers = refused(train.main, *known)
    assert "windows of 256: give more text, or --patcher space" in patchers
    lengths = refused(train.main, *known, "--patcher", "space", "--length", "300")
    assert "windows of 300: give more text, or --length " in lengths
    length = lengths.rsplit(" ", 1)[1]
    assert refused(train.main, *known, "--patcher", "space", "--length", str(int(length) + 1))
    train.main([*known, "--patcher", "space", "--length", length])
    (tmp_path / "text").write_bytes(b"two words")
    assert refused(train.main, *known, "--patcher", "space").endswith("give more text")


# ---- values of another text


def test_a_mean_patch_is_that_of_the_text_at_hand(tmp_path, monkeypatch, capsys):
    """--init-from printed and stored the mean patch of the text that its patcher is from."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").write_bytes(words(900))
    (tmp_path / "new").write_bytes("Ünï çödé, völlig anders; ".encode() * 300)
    train.main([*SMALL, "--data", "old", "--out", "old.pt"])
    capsys.readouterr()
    train.main([*SMALL, "--data", "new", "--init-from", "old.pt", "--out", "new.pt"])
    said = capsys.readouterr().out
    saved = checkpoint.load("new.pt")
    patcher = runs.patcher_from(saved)
    _, held_out = runs.corpus_behind(saved["asked"]).split()
    found = mean_patch(closes_of(patcher, [train.document_ids(data) for data in held_out]))
    assert saved["results"]["mean_patch_held_out"] == found
    assert f"mean patch {found:.2f} bytes held out" in said
    assert found != checkpoint.load("old.pt")["results"]["mean_patch_held_out"]
    # An export asks for the patches that the model was trained on, not for --patch-size.
    export.main(["new.pt", "small.pt"])
    results = checkpoint.load("small.pt")["results"]
    assert abs(results["mean_patch_held_out"] - found) < 0.3
    # What was measured with other weights and another threshold is not in it.
    assert "mean_patch_train" not in results
    assert results["masked_bits_per_byte"] != saved["results"]["masked_bits_per_byte"]


# ---- other advice


def test_advice_on_flags_of_training(run_file, monkeypatch):
    monkeypatch.setattr(runs, "processes", lambda: 3)
    saved = checkpoint.load(run_file)
    with pytest.raises(BadInput, match="16 crops .* start 1, 2, 4, 8 or 16"):
        runs.check_shares({**saved["asked"], "batch": 16}, False)
    muon = {**saved["asked"], "optimizer": "muon", "batch": 3}
    with pytest.raises(BadInput, match="give --optimizer|needs --optimizer adamw"):
        runs.check_shares(muon, True)
    with pytest.raises(BadInput, match="leave --shard out"):
        runs.check_shares(muon, True, resumes=True)


def test_a_loss_that_is_not_finite_asks_for_another_run():
    """A lower --lr was advised, which --resume refuses."""
    with pytest.raises(BadInput, match="begin anew with a lower --lr"):
        steps.check_finite(float("nan"), steps.Task("model", *[None] * 5), 3)
    with pytest.raises(BadInput, match="begin anew with --optimizer adamw, or --patcher space"):
        steps.check_finite(float("inf"), steps.Task("patcher", *[None] * 5), 3)


def test_a_checkpoint_that_is_missing_or_in_the_way(tmp_path, monkeypatch):
    """Training wrote another file than the one that was missing; one in the way was to be given."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="train one with `python train.py --out 'my model.pt'`"):
        checkpoint.load("my model.pt")
    with pytest.raises(BadInput, match="train one with `python train.py`"):
        checkpoint.load(checkpoint.DEFAULT)
    (tmp_path / "notes").write_bytes(b"dear diary")
    with pytest.raises(BadInput, match="not a checkpoint.*give another name"):
        check_target("notes")
    with pytest.raises(BadInput, match="give a file that train.py wrote"):
        checkpoint.load("notes")


def test_an_exported_checkpoint_says_how_it_is_trained_further(run_file):
    export.main([run_file, "small.pt"])
    line = refused(train.main, "--resume", "small.pt")
    assert line.endswith("train it further with --init-from small.pt")
    known = ["--init-from", "small.pt", "--preset", "nano", "--steps", "2", "--data", "my text"]
    # Its shape is no preset's, as it has fewer global layers.
    assert "give the file that train.py wrote" in refused(train.main, *known, "--out", "y.pt")


def test_every_advice_of_a_shape_is_a_flag():
    """Flags that are named in refusals exist."""
    flags = {flag for action in PARSER._actions for flag in action.option_strings}
    assert {"--length", "--patcher", "--init-from", "--out", "--optimizer", "--shard"} <= flags


def test_a_speed_needs_something_that_ran():
    """A single byte follows from the prompt alone: it had 50,000 bytes a second."""
    machine = fast_of(*make_models(0))
    endless = Sampling(ignore_eos=True)
    one = generate(machine.state(), [100], 1, sampling=endless)
    assert one.new_bytes == 1 and one.bytes_per_second is None
    assert "bytes/s" not in summary("blt", one, "")
    assert bandwidth.cost_of(one)["bytes_per_second"] is None
    assert bandwidth.cost_beside([one], [one])["ratio"] is None
    assert generate(machine.state(), [100], 3, sampling=endless).bytes_per_second > 0
