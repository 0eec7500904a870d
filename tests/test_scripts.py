"""The real scripts as a user runs them: output, JSON keys, one clear line for bad input."""

import importlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from support.terminal import BadInput

KEYS = """
mode prompt output output_hex new_bytes seconds bytes_per_second decoder_nfes encoder_global_nfes
entropy_nfes prefill_nfes paper_encoder_global_nfes rounds drafted accepted acceptance
accepted_lengths mean_patch bandwidth_gb bandwidth_gb_with_patcher
"""
MODES = ("blt", "blts", "bltd", "bltdv", "lookup")
IDEAS = ("data", "layers", "patcher", "model", "stream", "generate", "diffusion", "speculate")


def script(*arguments, cwd, code=0):
    """Run `python FILE ...` of the project, or `python -m MODULE ...`, as a user would."""
    first = arguments[0] if arguments[0] == "-m" else str(ROOT / arguments[0])
    command = [sys.executable, first, *map(str, arguments[1:])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, capture_output=True, timeout=300, env=environment)
    assert done.returncode == code, done.stderr.decode()[-2000:]
    return done


def refused(*arguments, cwd):
    """-> the one line on stderr, which begins with the program's name."""
    done = script(*arguments, cwd=cwd, code=2)
    lines = done.stderr.decode().strip().splitlines()
    name = arguments[1] if arguments[0] == "-m" else arguments[0]
    assert len(lines) == 1 and "Traceback" not in lines[0] and lines[0].startswith(name), lines
    return lines[0]


def test_train_then_sample(corpus_file, tmp_path):
    """The main job, in small: train with the defaults of everything else, then every mode."""
    begin = ["train.py", "--data", corpus_file, "--preset", "nano", "--steps", 12]
    out = script(*begin, cwd=tmp_path).stdout.decode()
    assert "sha256" in out and "bits per byte" in out and "mean patch 4.0" in out and "def " in out
    assert (tmp_path / "checkpoint.pt").exists()
    ask = ["--prompt", "def ", "--bytes", 20]
    for mode in MODES:
        for rounds in ("ours", "paper"):
            how = ["--mode", mode, "--rounds", rounds, "--json", "--ignore-eos"]
            (line,) = script("sample.py", *how, *ask, cwd=tmp_path).stdout.decode().splitlines()
            row = json.loads(line)
            assert set(row) == set(KEYS.split()) and row["mode"] == mode
            assert row["new_bytes"] == 20 == len(bytes.fromhex(row["output_hex"]))
    trace = script("sample.py", "--mode", "bltdv", "--trace", *ask, cwd=tmp_path).stdout.decode()
    assert "round   1" in trace and "step  1" in trace and "\x1b" not in trace
    compare = ["sample.py", "--compare", *ask, "--ignore-eos"]
    table = script(*compare, cwd=tmp_path).stdout.decode()
    assert all(f"{mode} " in table for mode in MODES) and "wins above" in table
    lines = script(*compare, "--json", cwd=tmp_path).stdout.decode().splitlines()
    rows = [json.loads(line) for line in lines]
    assert all(set(row) == {*KEYS.split(), "identical_to_blt"} for row in rows) and len(rows) == 5
    assert all(row["identical_to_blt"] for row in rows if row["mode"] != "bltd")


def test_any_bytes_are_a_prompt(trained_file, tmp_path):
    (tmp_path / "raw.bin").write_bytes(bytes(range(256)))
    known = ["--mode", "blt", "--checkpoint", trained_file, "--bytes", 30]
    for ask in (["--prompt-file", "raw.bin"], ["--prompt", ""], ["--temperature", "2"]):
        script("sample.py", *known, *ask, cwd=tmp_path)


@pytest.mark.parametrize("name", IDEAS)
def test_every_root_file_shows_its_idea(name, trained_file, tmp_path):
    arguments = [] if name in ("data", "layers", "model") else ["--checkpoint", trained_file]
    if name == "patcher":
        arguments += ["--text", "def main():"]
    out = script(f"{name}.py", *arguments, cwd=tmp_path).stdout.decode()
    said = {
        "data": "held out",
        "layers": "■",
        "patcher": "mean",
        "model": "blt-3b",
        "stream": "reads latent",
        "generate": "its patch",
        "diffusion": "who (row) sees whom (column)",
        "speculate": "round   1",
    }
    assert said[name] in out and "\x1b" not in out


def test_the_patcher_shows_any_kind(trained_file, tmp_path):
    """`--kind monotonic` once compared differences with a threshold of entropies: no boundary."""
    text = ["patcher.py", "--text", "def main(): return the_answer + 42"]
    assert "stride patcher" in script(*text, "--kind", "stride", cwd=tmp_path).stdout.decode()
    known = [*text, "--checkpoint", trained_file, "--kind", "monotonic"]
    out = script(*known, cwd=tmp_path).stdout.decode()
    mean = float(re.search(r"mean ([\d.]+)", out).group(1))
    assert "monotonic patcher" in out and 2.5 < mean < 5.5
    one = script(*known, "--threshold", "99", cwd=tmp_path).stdout.decode()
    assert "threshold 99.000" in one


def test_bad_input_is_one_clear_line(trained_file, tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "one").write_bytes(b"x")
    (tmp_path / "short").write_bytes(b"short text")
    (tmp_path / "cut.pt").write_bytes(pathlib.Path(trained_file).read_bytes()[:2000])
    (tmp_path / "noise.pt").write_bytes(b"not a checkpoint")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "foreign.pt")
    torch.save({"format": "fast-blt", "version": 99}, tmp_path / "newer.pt")
    train_on = ["train.py", "--preset", "nano", "--steps", "2", "--data"]
    known = ["sample.py", "--checkpoint", trained_file]
    expected = [
        ([*train_on, "missing"], "no such file"),
        ([*train_on, "empty"], "0 bytes"),
        ([*train_on, "one"], "1 bytes"),
        ([*train_on, "short"], "windows"),
        (["train.py", "--preset", "huge"], "huge"),
        (["train.py", "--block-size", "5"], "5"),
        (["train.py", "--resume", "nowhere.pt"], "no checkpoint at nowhere.pt"),
        (["train.py", "--init-from", "nowhere.pt"], "no checkpoint at nowhere.pt"),
        (["train.py", "--init-from", "a.pt", "--resume", "b.pt"], "not allowed with"),
        (["train.py", "--minutes", "-1"], "-1"),
        (["train.py", "--mask-weight", "-1"], "-1"),
        (["train.py", "--patch-size", "0"], "0"),
        (["train.py", "--patch-size", "9"], "can't be the mean"),
        (["train.py", "--out", "no/such/folder.pt"], "no folder"),
        ([*train_on, "short", "--cells-per-byte", "0"], "--cells-per-byte 0"),
        (["sample.py", "--mode", "telepathy"], "telepathy"),
        (["sample.py", "--rounds", "theirs"], "theirs"),
        (["sample.py", "--checkpoint", "nowhere.pt"], "no checkpoint at nowhere.pt"),
        (["sample.py", "--checkpoint", "cut.pt"], "damaged"),
        (["sample.py", "--checkpoint", "noise.pt"], "damaged"),
        (["sample.py", "--checkpoint", "foreign.pt"], "another program"),
        (["sample.py", "--checkpoint", "newer.pt"], "version 99"),
        ([*known, "--prompt-file", "gone.txt"], "gone.txt"),
        ([*known, "--mode", "bltd", "--block-size", "32"], "up to 8 bytes, not 32"),
        ([*known, "--device", "warp"], "no device 'warp'"),
        (["train.py", "--device", "warp"], "no device 'warp'"),
        (["patcher.py", "--file", "gone.txt"], "gone.txt"),
        (["patcher.py", "--text", ""], "empty"),
        (["diffusion.py", "--text", "x"], "2 to 60"),
        (["stream.py", "--text", "x" * 201], "up to 200"),
        (["data.py", "gone"], "no such file"),
    ]
    for arguments, words in expected:
        assert words in refused(*arguments, cwd=tmp_path), arguments


def commands_of(path):
    """Every `python ...` command in the code of a page."""
    commands = re.findall(r"python (-m [\w.]+[^`\n#|]*|\w+\.py[^`\n#|]*)", path.read_text())
    return [command.split("&&")[0].strip() for command in commands]


def test_every_command_of_the_pages_parses():
    """What README and docs tell people to type exists: scripts, options and choices."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    commands = [command for page in pages for command in commands_of(page)]
    assert len(commands) > 20
    for command in commands:
        first, *arguments = shlex.split(command)
        if first == "-m":
            first, *arguments = arguments
            if first == "pytest" or "TASK" in arguments:
                continue
        name = first.removesuffix(".py")
        module = importlib.import_module(f"{name}.__main__" if name == "evaluation" else name)
        try:
            module.options_from([a for a in arguments if a != "..."])
        except BadInput as problem:
            # a file that the reader is to have made by then
            assert str(problem).startswith("no checkpoint"), (command, problem)
