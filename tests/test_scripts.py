"""The real scripts as a user runs them: output, JSON keys, one clear line for bad input."""

import ast
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

import sample
from measure import ideas
from support import terminal
from support.terminal import BadInput

KEYS = """
mode prompt output output_hex new_bytes seconds bytes_per_second decoder_nfes encoder_global_nfes
entropy_nfes prefill_nfes paper_encoder_global_nfes rounds drafted accepted acceptance
accepted_lengths mean_patch bandwidth_gb bandwidth_gb_with_patcher
"""
MODES = ("blt", "blts", "bltd", "bltdv", "lookup")


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


def module_of(name):
    """What `python NAME` or `python -m NAME` runs, or None for a file of the method.

    That calls the function of measure/ideas.py that has its name.
    """
    name = name.removesuffix(".py")
    if hasattr(ideas, name) and (ROOT / f"{name}.py").exists():
        return None
    module = importlib.import_module(name)
    return importlib.import_module(f"{name}.__main__") if hasattr(module, "__path__") else module


def main_of(name):
    """The function that a command runs: it takes arguments."""
    module = module_of(name)
    return module.main if module else getattr(ideas, name.removesuffix(".py"))


def complaint(name, *arguments):
    """What a script says of bad input: the same without a process of its own, so in no time."""
    with pytest.raises(BadInput) as problem:
        main_of(name)([*map(str, arguments)])
    text = str(problem.value)
    assert text and "\n" not in text, text
    return text


# ---- the main job


def test_train_then_sample(corpus_file, tmp_path):
    """In small: train with the defaults of everything else, then every mode."""
    begin = ["train.py", "--data", corpus_file, "--preset", "nano", "--steps", 12]
    out = script(*begin, cwd=tmp_path).stdout.decode()
    assert "sha256" in out and "bits per byte" in out and "mean patch 4.0" in out
    assert (tmp_path / "checkpoint.pt").exists()
    ask = ["--prompt", "def ", "--bytes", 20]
    how = ["--mode", "bltdv", "--json", "--ignore-eos"]
    (line,) = script("sample.py", *how, *ask, cwd=tmp_path).stdout.decode().splitlines()
    row = json.loads(line)
    assert set(row) == set(KEYS.split()) and row["mode"] == "bltdv"
    assert row["new_bytes"] == 20 == len(bytes.fromhex(row["output_hex"]))
    trace = script("sample.py", "--mode", "bltdv", "--trace", *ask, cwd=tmp_path).stdout.decode()
    assert "round   1" in trace and "step  1" in trace and "\x1b" not in trace
    compare = ["sample.py", "--compare", *ask, "--ignore-eos"]
    table = script(*compare, cwd=tmp_path).stdout.decode()
    assert all(f"{mode} " in table for mode in MODES)
    lines = script(*compare, "--json", cwd=tmp_path).stdout.decode().splitlines()
    rows = [json.loads(line) for line in lines]
    assert all(set(row) == {*KEYS.split(), "identical_to_blt"} for row in rows) and len(rows) == 5
    assert all(row["identical_to_blt"] for row in rows if row["mode"] != "bltd")


@pytest.mark.parametrize("ask", [["--prompt-file", "raw.bin"], ["--prompt", ""], ["--prompt", "é"]])
def test_any_bytes_are_a_prompt(ask, trained_file, tmp_path, monkeypatch, capsysbinary):
    (tmp_path / "raw.bin").write_bytes(bytes(range(256)))
    monkeypatch.chdir(tmp_path)
    known = ["--mode", "blt", "--checkpoint", str(trained_file), "--bytes", "30"]
    sample.main([*known, "--temperature", "2", *ask])
    assert b"bytes/s" in capsysbinary.readouterr().out


# What a file shows when it is run on a line of text
IDEAS = {
    "data.py": "held out",
    "layers.py": "■",
    "patcher.py": "mean",
    "model.py": "blt-3b",
    "fast": "reads latent",
    "generate.py": "its patch",
    "diffusion.py": "blocks of K = 4",
    "speculate.py": "round   1",
}


@pytest.mark.parametrize("name", IDEAS)
def test_every_file_shows_its_idea(name, trained_file, corpus_file, capsys):
    arguments = ["--checkpoint", str(trained_file)]
    if name in ("data.py", "layers.py", "model.py"):
        arguments = []
    if name == "data.py":
        arguments += [str(corpus_file)]
    main_of(name)(arguments)
    out = capsys.readouterr().out
    assert IDEAS[name] in out and "\x1b" not in out


# Those of the method, none of which has a `main` of its own, and one that has
IN_PROCESSES = [
    "layers.py",
    "patcher.py",
    "model.py",
    "generate.py",
    "diffusion.py",
    "speculate.py",
]


@pytest.mark.parametrize("name", [*IN_PROCESSES, "fast"])
def test_files_are_scripts_that_find_a_model_anywhere(name, tmp_path):
    """From a folder without a checkpoint of its own, with that of the project, in a process."""
    command = [name] if name.endswith(".py") else ["-m", name]
    out = script(*command, cwd=tmp_path).stdout.decode()
    assert IDEAS[name] in out


def test_the_patcher_shows_any_kind(trained_file, capsys):
    """`--kind monotonic` once compared differences with a threshold of entropies: no boundary."""
    text = ["--text", "def main(): return the_answer + 42"]

    def shown(*arguments):
        ideas.patcher([*text, *arguments])
        return capsys.readouterr().out

    assert "stride patcher" in shown("--kind", "stride")
    known = ["--checkpoint", str(trained_file), "--kind", "monotonic"]
    out = shown(*known)
    mean = float(re.search(r"mean ([\d.]+)", out).group(1))
    assert "monotonic patcher" in out and 2.5 < mean < 5.5
    assert "threshold 99.000" in shown(*known, "--threshold", "99")


# ---- bad input


def test_bad_input_is_one_clear_line_and_exit_code_2(trained_file, tmp_path):
    """As a user sees it. `complaint` below is the line without the process around it."""
    (tmp_path / "one").write_bytes(b"x")
    assert "1 bytes" in refused("train.py", "--data", "one", cwd=tmp_path)
    assert "telepathy" in refused("sample.py", "--mode", "telepathy", cwd=tmp_path)
    known = ["sample.py", "--checkpoint", trained_file]
    words = "up to 8 bytes, not 32"
    assert words in refused(*known, "--mode", "bltd", "--block-size", "32", cwd=tmp_path)


def test_what_is_bad_is_said(trained_file, tmp_path, monkeypatch):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "one").write_bytes(b"x")
    (tmp_path / "short").write_bytes(b"short text")
    (tmp_path / "cut.pt").write_bytes(pathlib.Path(trained_file).read_bytes()[:2000])
    (tmp_path / "noise.pt").write_bytes(b"not a checkpoint")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "foreign.pt")
    torch.save({"format": "fast-blt", "version": 99}, tmp_path / "newer.pt")
    monkeypatch.chdir(tmp_path)
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
        (["train.py", "--out", "no/such/folder.pt"], "can't write"),
        ([*train_on, "short", "--out", "short"], "among what is read"),
        ([*train_on, "short", "--out", "foreign.pt"], "another program"),
        (["scripts.export", trained_file, "short"], "short is not a checkpoint"),
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
        (["fast", "--text", "x" * 201], "up to 200"),
        (["data.py", "gone"], "no such file"),
        (["train.py", "--full-share", "1.5"], "1.5"),
        (["train.py", "--block-after", "-0.1"], "-0.1"),
        (["train.py", "--cells-per-byte", "0"], "--cells-per-byte 0"),
        (["train.py", "--recipe", "theirs"], "theirs"),
        (["sample.py", "--top-p", "0"], "0"),
        (["sample.py", "--draft-size", "0"], "0"),
        (["bandwidth.py", "--prompts", "gone"], "gone"),
        (["bandwidth.py", "--checkpoint", trained_file, "--prompts", "empty"], "no prompts"),
        (["layers.py", "--rows", "x"], "--rows"),
        (["generate.py", "--bytes", "0"], "0"),
    ]
    for arguments, words in expected:
        assert words in complaint(*arguments), arguments
    assert (tmp_path / "short").read_bytes() == b"short text", "the training text is kept"


def test_exit_codes_and_the_line_of_a_program(monkeypatch, capsys):
    """terminal.run: what it makes of bad input, of Ctrl-C and of a good end."""

    def exit_code(problem=None):
        def main():
            if problem:
                raise problem

        with pytest.raises(SystemExit) as end:
            terminal.run(main, "some.name")
        return end.value.code or 0

    monkeypatch.setattr(sys.stdout, "reconfigure", lambda **_: None, raising=False)
    monkeypatch.setattr(terminal, "take_signals", lambda handler: {})
    assert not exit_code()
    assert exit_code(BadInput("it is bad")) == 2
    assert capsys.readouterr().err == "some.name: it is bad\n"
    assert exit_code(KeyboardInterrupt()) == 130
    assert "interrupted" in capsys.readouterr().err


def test_generation_imports_no_compiler(tmp_path):
    """Guards: FlexAttention imported where a GPU alone needs it, two seconds before every start."""
    heavy = "[name for name in ('torch._dynamo', 'torch._inductor') if name in sys.modules]"
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import sample, bandwidth; print({heavy})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


# ---- what people are told to type


def commands_of(text):
    """Every `python ...` command in the code of a page.

    In place of a variable stands what the page sets it to; that of a loop becomes a number.
    """
    text = text.replace("\\\n", " ")
    for name, value in re.findall(r'^(\w+)="(.*)"$', text, re.MULTILINE):
        text = text.replace(f"${name}", value.replace("#", "x"))  # no comment begins there
    text = re.sub(r"\$\w+", "8", text)
    commands = re.findall(r"python (-m [\w.]+[^`\n#|]*|\w+\.py[^`\n#|]*)", text)
    return [command.split("&&")[0].strip() for command in commands]


def pages():
    """README and docs, and what all files say of themselves -> list of (name, text)."""
    told = [ROOT / "README.md", ROOT / "checkpoints" / "README.md"]
    told += sorted((ROOT / "docs").glob("*.md"))
    found = [(str(path.relative_to(ROOT)), path.read_text()) for path in told]
    for folder in (".", "fast", "training", "measure", "support", "evaluation", "scripts"):
        for path in sorted((ROOT / folder).glob("*.py")):
            words = ast.get_docstring(ast.parse(path.read_text()))
            found.append((str(path.relative_to(ROOT)), words or ""))
    return found


class Parsed(Exception):
    """Raised where the arguments of a command are parsed, and nothing has run yet."""


def parses(command, monkeypatch):
    """Raises unless the command's script, options and choices exist."""
    first, *arguments = shlex.split(command)
    if first == "-m":
        first, *arguments = arguments
        if first in ("pytest", "zipfile") or "TASK" in arguments:
            return
    # The rule that an experiment adds; test_experiments.py runs it.
    arguments = ["one-step" if a == "margin" else a for a in arguments if a != "..."]
    module = module_of(first)
    try:
        if module:
            module.options_from(arguments)
            return
        with monkeypatch.context() as patch:
            parse = terminal.Parser.parse_args

            def parse_alone(parser, argv):
                parse(parser, argv)
                raise Parsed

            patch.setattr(terminal.Parser, "parse_args", parse_alone)
            with pytest.raises(Parsed):
                main_of(first)(arguments)
    except BadInput as problem:
        # a file that the reader is to have made by then
        assert str(problem).startswith("no checkpoint"), (command, problem)


def test_every_command_of_the_pages_parses(monkeypatch):
    """What people are told to type exists. A file without `options_from` fails here."""
    commands = {name: commands_of(text) for name, text in pages()}
    # Programs that a page has its readers write
    written = {name for _, text in pages() for name in re.findall(r"cat > (\w+\.py)", text)}
    for command in sorted({c for found in commands.values() for c in found}):
        if command.split()[0] not in written:
            parses(command, monkeypatch)
    assert len(commands["README.md"]) > 12
    told = " ".join(commands["README.md"])
    for path in ROOT.glob("*.py"):
        assert path.name in told, f"README.md does not say how to run {path.name}"


def test_the_check_of_commands_sees_what_is_wrong(monkeypatch):
    """A flag, a choice, a script that is not there, and a file that parses nothing."""
    assert commands_of("`python a.py --x` or\n$ python -m b.c d  # e\npip i && python f.py") == [
        *("a.py --x", "-m b.c d", "f.py"),
    ]
    parses("sample.py --mode bltdv --rounds paper", monkeypatch)
    parses("diffusion.py --text x", monkeypatch)  # too short, which parsing does not know
    for command, problem in (
        ("sample.py --window 8", AssertionError),
        ("sample.py --mode telepathy", AssertionError),
        ("diffusion.py --window 8", AssertionError),
        ("walk.py", ModuleNotFoundError),
        ("-m scripts.walk", ModuleNotFoundError),
        ("conftest.py", AttributeError),
    ):
        with pytest.raises(problem):
            parses(command, monkeypatch)
