"""The real scripts as a user runs them: output, JSON keys, and one clear line for each bad input."""
import importlib
import json
import pathlib
import re
import shlex
import subprocess
import sys

import torch

from conftest import ROOT
from terminal import BadInput

KEYS = {"mode", "prompt", "output", "output_hex", "new_bytes", "seconds", "bytes_per_second", "decoder_nfes", "encoder_global_nfes", "entropy_nfes",
        "prefill_nfes", "paper_encoder_global_nfes", "rounds", "drafted", "accepted", "acceptance", "accepted_lengths", "mean_patch", "bandwidth_gb", "bandwidth_gb_with_patcher"}


def script(*arguments, cwd, code=0):
    done = subprocess.run([sys.executable, str(ROOT / arguments[0]), *map(str, arguments[1:])], cwd=cwd, capture_output=True, timeout=300)
    assert done.returncode == code, done.stderr.decode()[-2000:]
    return done


def refused(*arguments, cwd):
    """-> the one line on stderr."""
    done = script(*arguments, cwd=cwd, code=2)
    lines = done.stderr.decode().strip().splitlines()
    assert len(lines) == 1 and "Traceback" not in lines[0] and lines[0].startswith(arguments[0]), lines
    return lines[0]


def test_train_then_sample(corpus_file, tmp_path):
    """The main job, in small: train with the defaults of everything else, then every mode from the file it wrote."""
    done = script("train.py", "--data", corpus_file, "--preset", "nano", "--steps", 12, cwd=tmp_path)
    out = done.stdout.decode()
    assert "sha256" in out and "bits per byte" in out and "mean patch 4.0" in out and "def " in out and (tmp_path / "checkpoint.pt").exists()
    for mode in ("blt", "blts", "bltd", "bltdv", "lookup"):
        done = script("sample.py", "--mode", mode, "--prompt", "def ", "--bytes", 20, "--json", "--ignore-eos", cwd=tmp_path)
        (line,) = done.stdout.decode().splitlines()
        row = json.loads(line)
        assert set(row) == KEYS and row["new_bytes"] == 20 == len(bytes.fromhex(row["output_hex"])) and row["mode"] == mode
    text = script("sample.py", "--mode", "bltdv", "--trace", "--prompt", "def ", "--bytes", 20, cwd=tmp_path).stdout.decode()
    assert "round   1" in text and "step  1" in text and "\x1b" not in text
    table = script("sample.py", "--compare", "--prompt", "def ", "--bytes", 20, "--ignore-eos", cwd=tmp_path).stdout.decode()
    assert all(mode in table for mode in ("blt ", "blts", "bltd ", "bltdv", "lookup")) and "wins above" in table
    rows = [json.loads(line) for line in script("sample.py", "--compare", "--bytes", 20, "--json", cwd=tmp_path).stdout.decode().splitlines()]
    assert all(set(row) == KEYS | {"identical_to_blt"} for row in rows) and len(rows) == 5
    assert all(row["identical_to_blt"] for row in rows if row["mode"] != "bltd")


def test_any_bytes_are_a_prompt(trained_file, tmp_path):
    (tmp_path / "raw.bin").write_bytes(bytes(range(256)))
    for arguments in (["--prompt-file", tmp_path / "raw.bin"], ["--prompt", ""], ["--temperature", "2"]):
        script("sample.py", "--mode", "blt", "--checkpoint", trained_file, "--bytes", 30, *arguments, cwd=tmp_path)


def test_patcher_and_diffusion_show_their_idea(trained_file, tmp_path):
    out = script("patcher.py", "--text", "def main():", "--checkpoint", trained_file, cwd=tmp_path).stdout.decode()
    assert "mean" in out and "|" in out and "\x1b" not in out
    assert "stride patcher" in script("patcher.py", "--text", "def main():", "--kind", "stride", cwd=tmp_path).stdout.decode()
    out = script("diffusion.py", "--text", "def main():", "--checkpoint", trained_file, cwd=tmp_path).stdout.decode()
    assert "who (row) sees whom (column)" in out and "■" in out and "░" in out


def test_bad_input_is_one_clear_line(trained_file, tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "one").write_bytes(b"x")
    (tmp_path / "short").write_bytes(b"short text")
    (tmp_path / "cut.pt").write_bytes(pathlib.Path(trained_file).read_bytes()[:2000])
    (tmp_path / "noise.pt").write_bytes(b"not a checkpoint")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "foreign.pt")
    torch.save({"format": "fast-blt", "version": 99}, tmp_path / "newer.pt")
    train_on = lambda name: ("train.py", "--preset", "nano", "--steps", 2, "--data", tmp_path / name)
    expected = {
        train_on("missing"): "no such file", train_on("empty"): "0 bytes", train_on("one"): "1 bytes", train_on("short"): "windows",
        ("train.py", "--preset", "huge"): "huge", ("train.py", "--block-size", "5"): "5", ("train.py", "--resume", "nowhere.pt"): "no checkpoint at nowhere.pt",
        ("train.py", "--minutes", "-1"): "-1", ("train.py", "--out", "no/such/folder.pt"): "no folder",
        ("sample.py", "--mode", "telepathy"): "telepathy", ("sample.py", "--checkpoint", "nowhere.pt"): "no checkpoint at nowhere.pt",
        ("sample.py", "--checkpoint", "cut.pt"): "damaged", ("sample.py", "--checkpoint", "noise.pt"): "damaged",
        ("sample.py", "--checkpoint", "foreign.pt"): "another program", ("sample.py", "--checkpoint", "newer.pt"): "version 99",
        ("sample.py", "--checkpoint", trained_file, "--prompt-file", "gone.txt"): "gone.txt",
        ("sample.py", "--checkpoint", trained_file, "--mode", "bltd", "--block-size", "32"): "up to 8 bytes, not 32",
        ("sample.py", "--checkpoint", trained_file, "--device", "warp"): "no device 'warp'",
        ("train.py", "--device", "warp"): "no device 'warp'",
        ("bandwidth.py", "--preset", "nano", "--measure", "--device", "warp"): "no device 'warp'",
        ("patcher.py", "--file", "gone.txt"): "gone.txt", ("patcher.py", "--text", ""): "empty", ("diffusion.py", "--text", "x"): "2 to 60",
    }
    for arguments, words in expected.items():
        assert words in refused(*arguments, cwd=tmp_path), arguments


def test_every_command_of_the_readme_parses():
    """What the README tells people to type exists: scripts, options and choices."""
    commands = re.findall(r"python (\w+\.py[^`\n#|]*)", (ROOT / "README.md").read_text())
    assert len(commands) > 12
    for command in commands:
        name, *arguments = shlex.split(command.split("&&")[0])
        module = importlib.import_module(name.removesuffix(".py"))
        if hasattr(module, "options_from"):
            try:
                module.options_from(arguments)
            except BadInput as problem:
                assert str(problem).startswith("no checkpoint"), command  # a file that the reader is to have made by then
