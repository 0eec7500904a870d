"""Several processes train what one does: by DistributedDataParallel, and sharded by FSDP2."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT

import layers
import train
from support import checkpoint
from support.terminal import BadInput
from training import distributed

pytestmark = pytest.mark.more  # minutes together: .ci/run has them

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]
SMALL = ["--preset", "nano", "--length", "32", "--dtype", "float32", "--steps", "20"]
# The steps that an interrupted run is stopped in are many, so that they are met.
LONG = ["--preset", "nano", "--length", "32", "--dtype", "float32", "--steps", "300"]


# train.py in float64. With an argument in front, the second of two processes alone is told to end,
# in the tenth step of the model.
EXACT = f"""
import os, signal, sys
import torch
torch.set_default_dtype(torch.float64)
sys.path.insert(0, {str(ROOT)!r})
import train
real = train.check_finite
def stopping(norm, task, step):
    if task.name == "model" and step == 9 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    real(norm, task, step)
if sys.argv[1] == "STOP":
    train.check_finite = stopping
    del sys.argv[1]
train.run_script(train.main, "train.py")
"""


@pytest.fixture
def exact(tmp_path):
    """A script like train.py in float64, as is this process from now on.

    In float32 AdamW makes whole steps of gradients that are nothing but rounding.
    """
    torch.set_default_dtype(torch.float64)
    (tmp_path / "exact.py").write_text(EXACT)
    yield tmp_path / "exact.py"
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Invented words, always the same. It was source files, whose edits moved what is rounding."""
    chance = random.Random(0)
    letters = "etaoinshrdlu"
    words = ["".join(chance.choices(letters, k=chance.randint(2, 8))) for _ in range(400)]
    lines = [" ".join(chance.choices(words, k=10)) + ".\n" for _ in range(450)]
    path = tmp_path_factory.mktemp("text") / "text.py"
    path.write_text("".join(lines))
    return path


def started(processes, *arguments, script=ROOT / "train.py"):
    """torchrun with train.py, in a session of its own."""
    command = [*TORCHRUN, str(processes), str(script), *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def together(processes, *arguments, script=ROOT / "train.py"):
    """-> (exit code, what it printed)."""
    run = started(processes, *arguments, script=script)
    said, _ = run.communicate(timeout=550)
    return run.returncode, said


def lines_of(said):
    """What train.py itself says in its end."""
    return [line for line in said.splitlines() if line.startswith("train.py: ")]


def agree(one, several, within=1e-5):
    """Do two runs end within rounding?"""
    a, b = checkpoint.load(one), checkpoint.load(several)
    for part in ("patcher", "model"):
        for name, weight in a[part].items():
            assert (weight - b[part][name]).norm() <= within * (1 + weight.norm()), name
    for key in ("validation_bits_per_byte", "mean_patch_train", "trained_bytes"):
        assert b["results"][key] == pytest.approx(a["results"][key], rel=within)
    assert {k: v for k, v in a["asked"].items() if k not in ("batch", "accumulate")} == {
        k: v for k, v in b["asked"].items() if k not in ("batch", "accumulate")
    }
    assert a["progress"]["step"] == b["progress"]["step"] and a["rng"].equal(b["rng"])
    states = [s["optimizer"].get("state", s["optimizer"]) for s in (a, b)]
    assert states[0].keys() == states[1].keys()


@pytest.mark.parametrize("K", [0, 8])
def test_two_processes_end_where_one_does(K, text, exact, tmp_path):
    """Replicated; and sharded, in two parts of a step, without activations."""
    known = ["--data", str(text), *SMALL, "--optimizer", "adamw", "--block-size", str(K)]
    one, two, shards = (tmp_path / f"{i}.pt" for i in range(3))
    train.main([*known, "--batch", "8", "--out", str(one)])
    code, said = together(2, *known, "--batch", "4", "--out", two, script=exact)
    assert code == 0, said
    assert said.count("trained 20 steps") == 1 and said.count(f"wrote {two}") == 1
    agree(one, two)
    more = ["--batch", "2", "--accumulate", "2", "--shard", "--recompute", "--out", shards]
    code, said = together(2, *known, *more, script=exact)
    assert code == 0, said
    agree(one, shards)


# train.py that notes for every pass of the model whether it is its step's last, and how often
# gradients have met in it: buckets of DistributedDataParallel; shards that have a gradient behind
# it, as those of FSDP2 get none before
COUNTED = f"""
import os
import sys
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
sys.path.insert(0, {str(ROOT)!r})
import train
spread, meet = train.distributed.spread, train.distributed.gradients_meet
clip, passes, sharded = train.distributed.clip_gradients, [], "--shard" in sys.argv
def watched(*given, **named):
    loss = spread(*given, **named)
    if not sharded:
        loss.register_comm_hook(None, exchange)
    return loss
def exchange(state, bucket):
    passes[-1][1] += 1
    return allreduce_hook(state, bucket)
def look(model):
    if sharded and passes:
        passes[-1][1] += sum(p.grad is not None for p in model.parameters())
def meeting(loss, last):
    look(loss)
    passes.append([last, 0])
    return meet(loss, last)
def clipping(model, limit):
    look(model)
    return clip(model, limit)
train.distributed.spread, train.distributed.gradients_meet = watched, meeting
train.distributed.clip_gradients = clipping
train.main()
if os.environ["RANK"] == "0":  # the group has ended with the training
    print("passes", passes)
"""


@pytest.mark.parametrize("shard", [[], ["--shard"]])
def test_gradients_meet_in_the_last_pass_of_a_step_alone(shard, text, tmp_path):
    """Guards: an exchange in every pass, which ends in the same weights and takes longer."""
    (tmp_path / "counted.py").write_text(COUNTED)
    known = ["--data", text, *SMALL, "--steps", "2", "--batch", "1", "--accumulate", "3"]
    more = ["--optimizer", "adamw", "--patcher", "space", *shard, "--out", tmp_path / "x.pt"]
    code, said = together(2, *known, *more, script=tmp_path / "counted.py")
    assert code == 0, said
    passes = json.loads(re.search(r"^passes (.*)", said, re.MULTILINE)[1].lower())
    assert [last for last, _ in passes] == 2 * [False, False, True]
    assert all((count > 0) == last for last, count in passes), passes


def test_in_float32_muon_and_adamw_stay_near(text, tmp_path):
    """Muon's products are of bfloat16; what n-grams seen once learn is mostly rounding."""
    one, two = tmp_path / "1.pt", tmp_path / "2.pt"
    known = ["--data", str(text), *SMALL]
    train.main([*known, "--batch", "8", "--out", str(one)])
    code, said = together(2, *known, "--batch", "4", "--out", two)
    assert code == 0, said
    agree(one, two, within=0.1)
    a, b = (checkpoint.load(path)["model"] for path in (one, two))
    for name in a.keys() - {"encoder.hashes.weight"}:
        assert (a[name] - b[name]).norm() <= 0.05 * (1 + a[name].norm()), name


@pytest.mark.parametrize("shard", [[], ["--shard"]])
def test_what_two_wrote_one_resumes_and_the_other_way_round(shard, text, exact, tmp_path):
    """SIGTERM, as schedulers send it, saves; all processes stop behind the same step."""
    known = ["--data", str(text), *SMALL, "--steps", "30", "--optimizer", "adamw"]
    whole, out = tmp_path / "whole.pt", tmp_path / "x.pt"
    train.main([*known, "--batch", "4", "--out", str(whole)])
    more = ["--batch", "2", *shard, "--out", out]
    code, said = together(2, "STOP", *known, *more, script=exact)
    assert code != 0 and "saved" in said and lines_of(said) == ["train.py: interrupted"], said
    saved = checkpoint.load(out)
    assert saved["progress"]["step"] == 10 and saved["asked"]["batch"] == 4
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stops_at(patch, 20)
        train.main(["--resume", str(out)])  # one process goes on for ten steps
    assert checkpoint.load(out)["progress"]["step"] == 20
    code, said = together(2, "--resume", out, *shard, script=exact)  # and two end it
    assert code == 0, said
    agree(whole, out, within=1e-4)


def stops_at(patch, step):
    """Send this process SIGINT in that step of the model."""
    real = train.check_finite

    def stopping(norm, task, number):
        if number == step - 1:
            os.kill(os.getpid(), signal.SIGINT)
        real(norm, task, number)

    patch.setattr(train, "check_finite", stopping)


def test_signals_to_torchrun_save(text, tmp_path):
    known = ["--data", str(text), *LONG, "--save-every", "1000", "--batch", "2"]
    run = started(2, *known, "--out", tmp_path / "x.pt")
    for line in run.stdout:
        if line.startswith("model: "):
            break
    time.sleep(1.0)
    run.send_signal(signal.SIGTERM)
    said = run.communicate(timeout=120)[0]
    assert "saved" in said and lines_of(said) == ["train.py: interrupted"], said
    saved = checkpoint.load(tmp_path / "x.pt")
    assert saved["progress"]["stage"] == "model" and saved["progress"]["step"] < 300


@pytest.mark.parametrize("shard", [[], ["--shard"]])
def test_a_process_that_dies_ends_the_others_with_one_line(shard, text, tmp_path):
    known = ["--data", str(text), *LONG, "--optimizer", "adamw", "--save-every", "1000"]
    out = tmp_path / "x.pt"
    run = started(2, *known, "--batch", "2", *shard, "--out", out)
    for line in run.stdout:
        if line.startswith("model: "):
            break
    kept = out.read_bytes()  # the patcher is saved
    time.sleep(1.0)  # until it takes steps, where torchrun's own signal ends nothing
    last = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True)
    os.kill(max(map(int, last.stdout.split())), signal.SIGKILL)
    said = run.communicate(timeout=120)[0]
    (line,) = lines_of(said)
    assert "another process has ended" in line and "--resume" in line
    assert out.read_bytes() == kept and not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--shard", "--optimizer", "muon"], "--shard needs --optimizer adamw"),
        (["--resume", "FILE"], "can't be shared by 2 processes"),
        (["--data", "gone"], "no such file or folder"),
        (["--device", "cuda:1"], "--device cuda:1 would hold all processes of torchrun"),
    ],
)
def test_bad_input_of_several_is_one_line(arguments, words, text, tmp_path):
    out = tmp_path / "x.pt"
    if "FILE" in arguments:
        train.main(["--data", str(text), *SMALL, "--steps", "2", "--batch", "3", "--out", str(out)])
        arguments = ["--resume", str(out)]
    elif "--data" not in arguments:
        arguments = [*arguments, "--data", str(text), "--out", str(out)]
    code, said = together(2, *arguments)
    assert code != 0 and len(lines_of(said)) == 1 and words in lines_of(said)[0], said


def test_what_is_computed_again_are_all_kinds_of_layers(text, tmp_path, monkeypatch):
    """Guards: cross-attentions that kept their activations, a gigabyte a layer at blt-1b."""
    kinds = []
    monkeypatch.setattr(distributed, "recompute", lambda model, kind: kinds.append(kind))
    known = ["--data", str(text), *SMALL, "--steps", "1", "--patcher", "space", "--recompute"]
    train.main([*known, "--out", str(tmp_path / "x.pt")])
    assert kinds == [(layers.Layer, layers.CrossAttention)]


def test_sharding_alone_is_refused(text):
    with pytest.raises(BadInput, match=re.escape("start them with torchrun")):
        train.main(["--data", str(text), "--shard"])


def test_alone_nothing_is_exchanged():
    assert (distributed.rank(), distributed.processes()) == (0, 1)
    assert distributed.anywhere("x") and not distributed.anywhere(None)
    assert distributed.same({"a": 1}) == {"a": 1}


def test_each_process_first_takes_a_gpu_of_its_own(monkeypatch):
    """Guards: GPU 0 touched by all of them, and groups that guess which GPU is whose."""
    done = []

    def init(backend, **named):
        done.append((backend, named.get("device_id")))

    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(distributed.dist, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(distributed.dist, "init_process_group", init)
    monkeypatch.setattr(distributed, "choose_device", lambda name: done.append(name) or "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", done.append)
    assert distributed.join("auto", shard=False) == "cuda"
    assert done == [1, "auto", ("cpu:gloo,cuda:nccl", torch.device("cuda", 1))]
    with pytest.raises(BadInput, match="--device cuda:1 would hold all"):
        distributed.join("cuda:1", shard=False)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(BadInput, match="fewer GPUs than processes: start 2 here"):
        distributed.join("cuda", shard=False)
    assert len(done) == 3


def test_processes_part_when_all_have_come_to_the_end(text, tmp_path, monkeypatch):
    """Guards: threads of a group that still stood, which aborted a process now and then."""
    done = []
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda *_: done.append("meet"))
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: done.append("part"))
    distributed.leave()
    assert done == ["meet", "part"]
    monkeypatch.undo()
    monkeypatch.setattr(distributed, "leave", lambda: done.append("left"))
    known = ["--data", str(text), *SMALL, "--steps", "1", "--patcher", "space"]
    train.main([*known, "--out", str(tmp_path / "x.pt")])
    assert done[2:] == ["left"]


def test_layers_that_compute_again_give_the_same_gradients_and_names():
    torch.manual_seed(0)
    models = [layers.Stack(2, 16, 2, 24) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    distributed.recompute(models[1], layers.Layer)
    assert models[0].state_dict().keys() == models[1].state_dict().keys()
    x = torch.randn(2, 9, 16)
    for stack in models:
        view = layers.View.of(layers.Rows.clean(9, x.device), 4, 8, 10000.0, x.dtype)
        stack(x, view).square().sum().backward()
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


# train.py, which ends by saying how much memory the second process took at most
MEASURED = f"""
import atexit, os, resource, sys
sys.path.insert(0, {str(ROOT)!r})
import train
def told():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print("process", os.environ["RANK"], "took", peak, "kB", file=sys.stderr, flush=True)
atexit.register(told)
train.run_script(train.main, "train.py")
"""


@pytest.mark.slow
def test_the_widths_of_blt_1b_train_sharded(text, tmp_path):
    """Two steps of few layers and small tables: python -m pytest -m slow -k blt_1b -s"""
    (tmp_path / "measured.py").write_text(MEASURED)
    known = ["--preset", "blt-1b", "--decoder-layers", "1", "--global-layers", "4", "--steps", "2"]
    known += ["--ngram-table-size", "4096", "--patcher", "space", "--dtype", "float32"]
    known += ["--length", "256", "--accumulate", "1", "--recompute", "--data", str(text)]
    took = {}
    for how in ("", "--shard"):
        more = [*how.split(), "--out", tmp_path / "x.pt"]
        code, said = together(2, *known, *more, script=tmp_path / "measured.py")
        assert code == 0 and "trained 2 steps" in said, said
        took[how] = int(re.search(r"process 1 took (\d+) kB", said)[1])
        print(f"{how or 'replicated'}: {took[how] / 1e6:.2f} GB in the second process")
        print(re.search("model: .*", said)[0])
    assert took["--shard"] < 0.8 * took[""]
