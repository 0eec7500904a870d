"""The nine experiments of docs/EXPERIMENTS.md: patches still apply, and what they change runs.

A change of the code that breaks an experiment is seen here, and two experiments must be seen by
tests of ours: what they break is what those tests guard.
"""

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

FOLDER = ROOT / "docs" / "experiments"
PATCHES = sorted(FOLDER.glob("*.patch"))
TEXT = (ROOT / "docs" / "EXPERIMENTS.md").read_text()
# Of each experiment its text in one line
SECTIONS = [" ".join(text.split()) for text in re.split(r"^### ", TEXT, flags=re.M)[1:]]
AT_MOST = 20  # changed lines of an experiment
ROOMS = ("support", "fast", "measure", "training")
# What fast.load says where it takes the plain machine, and what a section says of that
NOT_FOLLOWED = "fast/ does not follow the changed model"

# Trains a model for four steps and writes sixteen bytes by every rule, in one process
RUN = """
import sys, diffusion, train, sample
options = ["--preset", "nano", "--steps", "4", "--block-size", "4", "--dtype", "float32"]
train.main([*options, "--data", sys.argv[1], "--out", "x.pt"])
wanted = ["--checkpoint", "x.pt", "--prompt", "def ", "--bytes", "16", "--ignore-eos"]
for mode in ("bltd", "bltdv"):
    for rule in diffusion.UNMASK:
        sample.main([*wanted, "--mode", mode, "--unmask", rule])
"""


def changed(patch):
    """-> {file: lines added and removed} of a patch."""
    counts = {}
    name = None
    for line in patch.read_text().splitlines():
        if line.startswith("+++ b/"):
            name = line.removeprefix("+++ b/")
            counts[name] = 0
        elif line[:1] in ("+", "-") and not line.startswith("---"):
            counts[name] += 1
    return counts


def patched(patch, folder):
    """A copy of the code, without the shipped model, with a patch applied."""
    for path in ROOT.glob("*.*"):
        if path.suffix in (".py", ".toml"):
            shutil.copy(path, folder)
    for name in (*ROOMS, "paper", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    # Not as a part of a repository that the folder may happen to lie in
    env = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    done = subprocess.run(["git", "apply", patch], cwd=folder, env=env, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def python(*arguments, cwd):
    env = {**os.environ, "PYTHONPATH": str(cwd), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True)


def section_of(patch):
    """The section that names a patch."""
    return next(text for text in SECTIONS if f"(experiments/{patch.name})" in text)


def test_there_are_nine_experiments_and_every_patch_is_told():
    assert [int(text.split(".")[0]) for text in SECTIONS] == list(range(1, 10))
    linked = re.findall(r"\]\(experiments/(.*?)\)", TEXT)
    assert sorted(linked) == [patch.name for patch in PATCHES]
    for text in SECTIONS:
        assert "**Predict first:**" in text and "```sh" in text, text[:60]
        assert re.search(r"BLT §\d", text), text[:60]
        for name in re.findall(r"git apply (?:-R )?docs/experiments/(\S+)", text):
            assert (FOLDER / name).exists(), name
    assert "docs/EXPERIMENTS.md" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_a_patch_changes_no_more_than_it_says(patch):
    files = changed(patch)
    said = re.search(r"\((\d+) lines? of `([^`]*)`", section_of(patch))
    assert said and sum(files.values()) == int(said[1]) <= AT_MOST, files
    assert said[2] in files


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_a_patch_applies(patch, tmp_path):
    """And what it leaves is Python."""
    patched(patch, tmp_path)
    for file in changed(patch):
        text = (tmp_path / file).read_text()
        assert text != (ROOT / file).read_text()
        compile(text, file, "exec")


@pytest.mark.more
@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_a_patched_program_still_trains_and_writes(patch, corpus_file, tmp_path):
    patched(patch, tmp_path)
    done = python("-c", RUN, corpus_file, cwd=tmp_path)
    said = done.stderr.decode()
    assert done.returncode == 0, said[-2000:]
    # A change is seen at once: the fast machine follows it, or the plain one is used.
    assert (NOT_FOLLOWED in said) == (NOT_FOLLOWED in section_of(patch)), said[-2000:]


# What sections say of tests of ours -> (patch, file, name of tests, does it fail?)
TOLD = [
    (patch, file, name, verdict == "fails")
    for patch in PATCHES
    for file, name, verdict in re.findall(
        r"`pytest tests/(\w+\.py) -k (\w+)` (fails|passes)", section_of(patch)
    )
]


def test_experiments_break_tests_and_one_that_breaks_none_is_told():
    assert len({patch for patch, _, _, fails in TOLD if fails}) >= 4
    assert not all(fails for _, _, _, fails in TOLD)


@pytest.mark.more
@pytest.mark.parametrize("patch, file, name, fails", TOLD, ids=lambda x: getattr(x, "stem", x))
def test_a_named_test_sees_an_experiment(patch, file, name, fails, tmp_path):
    """It fails for what it asserts, not for an error; without the patch it passes, as all do."""
    patched(patch, tmp_path)
    command = (
        "-m",
        "pytest",
        "-n",
        "0",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        f"tests/{file}",
        "-k",
        name,
    )
    said = python(*command, cwd=tmp_path)
    assert said.returncode == int(fails), said.stdout[-2000:]
    assert (b"AssertionError" in said.stdout) == fails, said.stdout[-2000:]
