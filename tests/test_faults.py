"""What goes wrong around the program: full disks, signals, kills, rotten bits, closed pipes."""

import json
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, make_models, random_ids
from test_train import options, text_file  # noqa: F401 (a fixture)

import sample
import train
from data import BOS, encode
from fast.load import load, prepared
from fast.stream import Stream
from generate import Sampling, generate
from speculate import MODES, Drafting, run_mode
from support import checkpoint, terminal
from support.terminal import BadInput
from tests import fuzzing
from training import boundaries, runs, validation

pytestmark = pytest.mark.more  # minutes together: .ci/run has them


@pytest.fixture
def exit_code():
    """Run a main() as a script does, with its handlers of signals -> its exit code."""
    before = {number: signal.getsignal(number) for number in terminal.SIGNALS}

    def run(main, *arguments):
        with pytest.raises(SystemExit) as end:
            terminal.run(lambda: main([*map(str, arguments)]), "a.name")
        for number, handler in before.items():
            signal.signal(number, handler)
        return end.value.code

    return run


def equal(a, b):
    """Are two loaded checkpoints the same, but for seconds and paths?"""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        skip = {"path", "bytes_per_second", "seconds"}
        same = a.keys() - skip == b.keys() - skip  # a run that had ended has no speed of its own
        return same and all(equal(a[k], b[k]) for k in a.keys() - skip)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


# ---- rotten bits


def test_no_flipped_bit_is_read_in_silence(trained_file, tmp_path):
    """A file with one other bit is refused, or read as what was written (a date has changed)."""
    whole, data = checkpoint.load(trained_file), trained_file.read_bytes()
    draw, refused = random.Random(0), 0
    # anywhere; and where the zip format has its own words, at the end
    places = [draw.randrange(len(data)) for _ in range(60)]
    places += [len(data) - 1 - draw.randrange(6000) for _ in range(60)]
    for place in places:
        rotten = bytearray(data)
        rotten[place] ^= 1 << draw.randrange(8)
        (tmp_path / "rotten.pt").write_bytes(rotten)
        try:
            saved = checkpoint.load(tmp_path / "rotten.pt")
        except BadInput as problem:
            refused += "damaged" in str(problem)
        else:
            assert equal(saved, whole), place
    assert refused > 60


# ---- standard output


def test_json_is_json_whatever_the_numbers(capsys):
    row = {"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": -float("inf")}}
    terminal.print_rows([row])
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": {"d": None}}


# ---- files that can't be written


@pytest.fixture
def small_disk():
    """From now on no file may grow beyond 20 kB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_keeps_the_old_file_and_leaves_no_part(tmp_path, small_disk):
    path = tmp_path / "c.pt"
    checkpoint.save(path, {"weights": torch.zeros(10)})
    kept = path.read_bytes()
    small_disk()
    with pytest.raises(BadInput, match="can't write .*c.pt: File too large"):
        checkpoint.save(path, {"weights": torch.zeros(100_000)})
    assert path.read_bytes() == kept and os.listdir(tmp_path) == ["c.pt"]


def test_a_symlink_is_written_through_and_a_part_left_by_a_kill_replaced(tmp_path):
    (tmp_path / "link.pt").symlink_to("real.pt")
    (tmp_path / "real.pt.part").write_bytes(b"half")
    checkpoint.save(tmp_path / "link.pt", {"value": 1})
    assert (tmp_path / "link.pt").is_symlink() and checkpoint.read(tmp_path / "real.pt")[
        "value"
    ] == 1
    assert sorted(os.listdir(tmp_path)) == ["link.pt", "real.pt"]


def test_training_goes_on_where_a_save_fails(
    text_file,  # noqa: F811
    tmp_path,
    monkeypatch,
    capsys,
):
    """Three saves fail, the last of them behind all the training: it waits and tries again."""
    out, again = tmp_path / "x.pt", tmp_path / "again.pt"
    train.main(options(text_file, out, "--block-size", "0"))
    calls, real = [], checkpoint.save

    def failing(path, contents):
        calls.append(path)
        if len(calls) in (2, 5, 12):
            raise BadInput("can't write it: No space left on device")
        real(path, contents)

    monkeypatch.setattr(checkpoint, "save", failing)
    monkeypatch.setattr(runs, "RETRY", 0)
    capsys.readouterr()
    train.main(options(text_file, again, "--block-size", "0", "--save-every", "0"))
    said = capsys.readouterr().err
    assert said.count("No space left on device; the old file is kept") == 3
    a, b = checkpoint.load(out), checkpoint.load(again)
    assert equal(a["model"], b["model"]) and b["progress"]["step"] == 8


# ---- signals


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(scope="module")
def whole_run(text_file, tmp_path_factory):  # noqa: F811
    path = tmp_path_factory.mktemp("whole") / "x.pt"
    train.main(options(text_file, path, "--block-size", "4"))
    return checkpoint.load(path)


# Where a signal comes: (object, name) of a function called then, and at which call. Four steps of
# the patcher, eight of the model.
MOMENTS = {
    "patcher": (train, "patcher_loss", 2),
    "last step of the patcher": (train, "patcher_loss", 4),
    "calibration": (train, "calibrate", 1),
    "patching": (boundaries, "closes_of", 1),
    "model": (train, "next_byte_nats", 5),
    "last step": (train, "learning_rate", 12),
    "validation": (validation, "bits_per_byte", 1),
    "masked accuracy": (validation, "masked_accuracy", 1),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_any_moment_saves_and_resumes_bit_for_bit(
    moment,
    text_file,  # noqa: F811
    tmp_path,
    monkeypatch,
    capsys,
    exit_code,
    whole_run,
):
    """SIGTERM and SIGHUP as Ctrl-C; behind the last step the random state had gone on."""
    number = SIGNALS[list(MOMENTS).index(moment) % 3]
    place, name, at = MOMENTS[moment]
    real, calls, cut = getattr(place, name), [], tmp_path / "cut.pt"

    def interrupted(*given, **named):
        calls.append(name)
        if len(calls) == at:
            signal.raise_signal(number)
        return real(*given, **named)

    monkeypatch.setattr(place, name, interrupted)
    assert exit_code(train.main, *options(text_file, cut, "--block-size", "4")) == 130
    said = capsys.readouterr().err
    assert "interrupted" in said and "Traceback" not in said
    monkeypatch.setattr(place, name, real)
    train.main(["--resume", str(cut)])
    assert equal(checkpoint.load(cut), {**whole_run, "path": ""})


@pytest.mark.parametrize("number", SIGNALS)
def test_more_signals_never_lose_the_save_that_is_under_way(number, tmp_path, exit_code, capsys):
    path, real = tmp_path / "c.pt", torch.save

    def interrupted(contents, file):
        for _ in range(3):
            signal.raise_signal(number)
        real(contents, file)

    def main(_):
        with terminal.Interrupt() as interrupt:
            signal.raise_signal(signal.SIGINT)
            assert interrupt.asked
            torch.save = interrupted
            try:
                checkpoint.save(path, {"value": 1})
            finally:
                torch.save = real
            raise AssertionError("the second signal comes behind the save")

    assert exit_code(main) == 130
    assert checkpoint.read(path)["value"] == 1 and os.listdir(tmp_path) == ["c.pt"]
    assert capsys.readouterr().err == "a.name: interrupted\n"


def test_what_is_ignored_stays_ignored():
    """`nohup` ignores SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminal.Interrupt() as interrupt:
            signal.raise_signal(signal.SIGHUP)
            assert interrupt.asked is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    "where, code, words",
    [
        (">&-", 2, "standard output is closed"),
        (">/dev/full", 2, "No space left on device"),
        ("2>&- >/dev/full", 2, ""),
        ("| true", 0, ""),
    ],
)
def test_output_that_cannot_be_written_is_one_line(where, code, words, tmp_path):
    (tmp_path / "text").write_bytes(b"def f():\n" * 20)
    command = f"{sys.executable} {ROOT / 'data.py'} text {where}"
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, shell=True, timeout=300)
    said = done.stderr.decode()
    assert done.returncode == code and words in said and said.count("\n") == bool(words), said


# ---- random cases


def test_fuzz_finds_no_difference_and_would_see_one(capsys, monkeypatch):
    fuzzing.main(["--models", "2", "--seed", "5"])
    out = capsys.readouterr().out
    assert "stream cases: 80 the same, 0 excused, 0 differ" in out
    assert "generations bltdv: 2 the same" in out
    real = Stream.rollback

    def forgetful(self, length):
        real(self, length)
        self.decoded = length  # rows of bytes that are gone count as decoded

    monkeypatch.setattr(Stream, "rollback", forgetful)
    monkeypatch.setattr(fuzzing, "plain_output", lambda *given: [5] * 12)
    with pytest.raises(SystemExit):
        fuzzing.main(["--models", "2", "--seed", "5"])
    shown = capsys.readouterr()
    assert "differ" in shown.err and "generations blt: 0 the same, 0 excused, 2 differ" in shown.out


def test_an_exact_tie_with_the_threshold_is_excused(trained):
    """θ is an entropy of the text itself, to the last digit: any patching may be right there."""
    model, patcher = make_models(0)
    text = random_ids(40)
    H = patcher.entropies(text)
    for i in range(5, 20, 3):
        patcher.config.threshold = H[i].item()
        assert fuzzing.near_threshold(patcher, text)
        machine = prepared(model, patcher)
        plain = generate(machine.state(), text[1:].tolist(), 12).ids
        for mode in ("blts", "bltdv", "lookup"):
            if mode == "bltdv" and not model.config.block_size:
                continue
            made = run_mode(mode, machine.state(), text[1:].tolist(), 12).ids
            assert made == plain or fuzzing.near_threshold(patcher, torch.tensor([BOS, *made]))
    patcher.config.threshold = 99.0
    assert not fuzzing.near_threshold(patcher, text)


# ---- slow: kills, signals at random moments, memory


@pytest.mark.slow
def test_fifty_kills_during_saves_leave_fifty_checkpoints(trained_file, tmp_path):
    """kill -9 at random moments of a process that does nothing but save."""
    path, saved, draw = tmp_path / "x.pt", checkpoint.load(trained_file), random.Random(0)
    checkpoint.save(path, saved)
    halves = 0
    for _ in range(50):
        child = os.fork()
        if not child:
            while True:
                checkpoint.save(path, saved)
        time.sleep(draw.uniform(0.005, 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        halves += os.path.exists(f"{path}.part")
        assert equal(checkpoint.load(path), saved)
    assert halves > 10, "hardly any kill met a save"
    checkpoint.save(path, saved)
    assert os.listdir(tmp_path) == ["x.pt"]


@pytest.mark.slow
def test_signals_at_random_moments_leave_no_traceback(text_file, tmp_path):  # noqa: F811
    """One or two of them to a run in a process of its own, from the first import to its end."""
    draw, out = random.Random(1), tmp_path / "x.pt"
    command = [sys.executable, str(ROOT / "train.py"), *options(text_file, out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    seconds = time.perf_counter() - began
    for turn in range(30):
        child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        # Importing torch is not ours: a Ctrl-C there has a traceback, and nothing to lose.
        time.sleep(draw.uniform(0.5, 1.0) * seconds)
        for _ in range(1 + turn % 2):
            child.send_signal(draw.choice(SIGNALS))
            time.sleep(draw.uniform(0, 0.2))
        _, said = child.communicate(timeout=120)
        assert b"Traceback" not in said, said.decode()
        assert not out.exists() or checkpoint.load(out)
        assert not os.path.exists(f"{out}.part")


def resources_held():
    """Memory in bytes and open files of this process."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd"))


@pytest.mark.slow
def test_memory_and_open_files_stay_flat(trained_file, corpus_file, tmp_path, capsys):
    """Over 100 kB of text in one Stream, and over 50 prompts in every mode."""
    machine = load(trained_file)
    ids = encode(pathlib.Path(corpus_file).read_bytes() * 3)[:100_000]
    stream = machine.state()
    held = []
    for i in range(0, len(ids), 1000):
        stream.extend(ids[i : i + 1000])
        held.append(resources_held())
    assert stream.length == 100_000
    assert max(held[50:])[0] - held[20][0] < 4e6 and len({files for _, files in held}) == 1
    known = ["--checkpoint", str(trained_file), "--bytes", "40", "--json", "--ignore-eos"]
    held = []
    for i in range(50):
        for mode in MODES:
            run_mode(mode, machine.state(), ids[i : i + 200], 40, Drafting())
        sample.main([*known, "--prompt", f"def f{i}("])
        held.append(resources_held())
    assert max(held[25:])[0] - held[10][0] < 8e6 and len({files for _, files in held}) == 1
    assert len(capsys.readouterr().out.splitlines()) == 50
    made = generate(machine.state(), ids[:9], 4, sampling=Sampling(ignore_eos=True))
    assert made.new_bytes == 4
