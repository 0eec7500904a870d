"""fast/load.py: the fast machine serves only while it follows the root files, whatever they say.

Each change below is one that a reader might try: the repository is copied, one root file is edited,
and what sample.py prints there is what `sample.py --plain` prints there.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from typing import NamedTuple

import pytest
import torch
from conftest import ROOT, make_models

from fast.lean import FastModel
from fast.load import PROBE, Machine, checked, load, prepared
from fast.official import ByteStateStream
from fast.stream import Stream
from generate import Prefix
from measure.rounds import PaperPrefix
from support import checkpoint

LINE = "fast/ does not follow the changed model"
# Generates in every folder that it is given, in a process of its own each: plain BLT and BLT-D, on
# the fast machine and on the plain one. What all of them need of torch is imported once.
DRIVER = """
import os, sys
import torch, tqdm
given = ["--checkpoint", sys.argv[1], "--json", "--ignore-eos", "--bytes", "16"]
given += ["--temperature", "0.3", "--prompt", "fed by a cab " * 9]
for folder in sys.argv[2:]:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        continue
    os.chdir(folder)
    os.dup2(os.open("out", os.O_WRONLY | os.O_CREAT), 1)
    os.dup2(os.open("err", os.O_WRONLY | os.O_CREAT), 2)
    sys.path.insert(0, folder)
    try:
        import sample
        for mode in (["blt"], ["bltd", "--unmask", "chained"]):
            sample.main([*given, "--mode", *mode])
            sample.main([*given, "--mode", *mode, "--plain"])
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    os._exit(0)
"""


class Change(NamedTuple):
    """An edit of a root file."""

    file: str
    before: str
    after: str


# What the fast machine has in a form of its own
UNFOLLOWED = {
    "another activation": Change("layers.py", "F.silu(gate) * up", "F.gelu(gate) * up"),
    "a norm on queries and keys": Change(
        "layers.py",
        "        v = qkv[:, :, 2].transpose(1, 2)\n",
        "        q, k = (F.rms_norm(x, x.shape[-1:]) for x in (q, k))\n"
        "        v = qkv[:, :, 2].transpose(1, 2)\n",
    ),
    "another residual": Change("layers.py", "x = x + self.out(", "x = x + 0.5 * self.out("),
    "the latent before last": Change(
        "model.py", "closes.long().cumsum(1) - 1\n", "(closes.long().cumsum(1) - 2).clamp(min=0)\n"
    ),
    "one more term in the decoder's embedding": Change(
        "model.py",
        "x = self.embed(ids) if self.embed",
        "x = self.embed(ids) + self.embed.weight[0] if self.embed",
    ),
    "a renamed attribute": Change("layers.py", "self.heads", "self.number_of_heads"),
    # Layers see 100 rows: more than the check asks about.
    "half of the window": Change(
        "layers.py", "reach - window)\n    own", "reach - window // 2)\n    own"
    ),
    "two entropies in a row": Change(
        "patcher.py",
        "            return asked | (scores > self.config.threshold)\n",
        "            over = scores > self.config.threshold\n"
        "            over[1:] = over[1:] & over[:-1]\n"
        "            return asked | over\n",
    ),
}
UNFOLLOWED_MORE = {
    "a residual around the global model": Change(
        "model.py", "self.globe(patches, ", "patches + self.globe(patches, "
    ),
    "another cross-attention": Change(
        "layers.py", "self.q(self.query_norm(x))", "2 * self.q(self.query_norm(x))"
    ),
    "another chained head": Change(
        "layers.py", "rows + self.out(states)", "rows - self.out(states)"
    ),
    "shorter patches": Change(
        "patcher.py", "opened) % (max_patch or", "opened) % (max_patch // 2 or"
    ),
    "half of the window of the local models": Change(
        "model.py", "(self.view, window=c.window,", "(self.view, window=c.window // 2,"
    ),
    "half of the window of the global model": Change(
        "model.py",
        "self.view(numbers, c.global_window,",
        "self.view(numbers, c.global_window // 8,",
    ),
    "a first byte that all see": Change(
        "layers.py",
        "    return past | own_block",
        "    past = past | (clean_key & (key.position == 0) & clean_query)\n"
        "    return past | own_block",
    ),
    "another RoPE base": Change("model.py", "self.config.rope_base, dtype", "100.0, dtype"),
    "smoothed entropies": Change(
        "patcher.py",
        "        return H\n\n    def scores",
        "        return (H + torch.cat([H[:1], H[:-1]])) / 2\n\n    def scores",
    ),
    "scores over the mean so far": Change(
        "patcher.py",
        'kind == "entropy":\n            return H\n',
        'kind == "entropy":\n'
        "            return 1.5 * H - 0.5 * H.cumsum(0) / torch.arange(1, len(H) + 1)\n",
    ),
    "patches that end at newlines": Change(
        "patcher.py",
        "self.signals(ids, self.entropies(ids)),",
        "self.signals(ids, self.entropies(ids)) | (ids == 14 + ord(' ') - 10),",
    ),
    "a mean of two latents": Change(
        "model.py",
        "        reads = latent_read(closes)\n",
        "        latents = torch.cat([latents[:, :1], latents[:, 1:] + latents[:, :-1]], 1)\n"
        "        reads = latent_read(closes)\n",
    ),
    "blocks on the latent before last": Change(
        "model.py",
        "reads.gather(1, blocks.starts - 1)",
        "(reads.gather(1, blocks.starts - 1) - 1).clamp(min=0)",
    ),
    "drafts on the open patch": Change(
        "generate.py",
        "        return self.rows(self.ids, self.closed, ids, block)[self.length :]",
        "        closed = [*self.closed[:-1], True]\n"
        "        return self.rows(self.ids, closed, ids, block)[self.length :]",
    ),
    "other eps": Change("layers.py", "eps=1e-5", "eps=1e-2"),
    "a capped output": Change(
        "model.py",
        "        return self.norm(x)\n",
        "        return 3 * torch.tanh(self.norm(x) / 3)\n",
    ),
}
# What both machines run by the same lines of the root
FOLLOWED = {
    "nothing": Change("model.py", "", ""),
    "one more term in the encoder's embedding": Change(
        "model.py",
        "        return self.layers(x, view)\n\n    def forward(self, states",
        "        x = x + self.embed(ids[:, LEAD - 1 : -1])\n"
        "        return self.layers(x, view)\n\n    def forward(self, states",
    ),
    "another signal": Change("patcher.py", "asked | (scores >", "asked | (scores <"),
}
FOLLOWED_MORE = {
    "nothing": Change("model.py", "", ""),
    "another global model": Change(
        "model.py", "self.norm(self.layers(patches, view))", "self.norm(patches)"
    ),
    "cells that see no later ones": Change("layers.py", "(in_order | ~query.draft)", "in_order"),
    "no RoPE": Change(
        "layers.py", "return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)", "return x"
    ),
    "patches queried by their mean": Change(
        "model.py", ".amax(1)", ".nan_to_num(neginf=0).mean(1)"
    ),
    "other n-grams": Change("model.py", "NGRAMS = range(3, 9)", "NGRAMS = range(2, 8)"),
}


def saved(path, model, patcher):
    """Write a checkpoint of a model and its patcher, in float32."""
    contents = {
        "config": asdict(model.config),
        "patcher_config": asdict(patcher.config),
        "model": model.float().state_dict(),
        "patcher": patcher.float().state_dict(),
        "results": {},
    }
    checkpoint.save(path, contents)
    return path


def changed_copy(folder, change):
    """A copy of the code in a folder of its own, with one file edited."""
    folder.mkdir()
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    for room in ("fast", "support", "measure", "training"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    text = (folder / change.file).read_text()
    assert change.before in text, f"{change.file} has changed: nothing to edit at {change.before!r}"
    (folder / change.file).write_text(text.replace(change.before, change.after))


class Ran(NamedTuple):
    """What was printed in one of the folders."""

    fast: list  # output_hex of each mode
    plain: list
    said: list  # lines on stderr


def run_all(top, changes):
    """Generate in a copy of the code for each change, below the folder `top` -> {change: Ran}."""
    models = make_models(0, window=100, global_window=40, block_size=8, chain_width=6)
    file = saved(top / "random.pt", *models)
    folders = {}
    for name, change in changes.items():
        folders[name] = top / f"{len(folders)}"
        changed_copy(folders[name], change)
    command = [sys.executable, "-c", DRIVER, str(file), *map(str, folders.values())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    subprocess.run(command, check=True, env=environment, cwd=top)
    found = {}
    for name, folder in folders.items():
        rows = [json.loads(line) for line in (folder / "out").read_text().splitlines()]
        outputs = [row["output_hex"] for row in rows]
        said = (folder / "err").read_text().splitlines()
        found[name] = Ran(outputs[::2], outputs[1::2], said)
    return found


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    return run_all(tmp_path_factory.mktemp("changed"), {**FOLLOWED, **UNFOLLOWED})


@pytest.fixture(scope="module")
def ran_more(tmp_path_factory):
    return run_all(tmp_path_factory.mktemp("changed"), {**FOLLOWED_MORE, **UNFOLLOWED_MORE})


def check_unfollowed(run, unchanged, change):
    """It is said in one line of each fast run, and the change has its effect."""
    assert len(run.fast) == len(run.plain) == 2, run.said
    assert run.fast == run.plain, f"fast.load.checked lets a changed model through: {change}"
    assert len(run.said) == 2 and all(line.startswith(LINE) for line in run.said), run.said
    if change != "a renamed attribute":
        assert run.plain != unchanged.plain, "the change should change what is written"


def check_followed(run, unchanged, change):
    """Nothing is said, and both machines write the same."""
    assert len(run.fast) == len(run.plain) == 2, run.said
    assert run.fast == run.plain, f"fast.load.checked lets a changed model through: {change}"
    assert run.said == []
    assert (run.plain == unchanged.plain) == (change == "nothing")


@pytest.mark.parametrize("change", UNFOLLOWED)
def test_a_change_that_fast_does_not_follow_runs_on_the_plain_machine(ran, change):
    check_unfollowed(ran[change], ran["nothing"], change)


@pytest.mark.parametrize("change", FOLLOWED)
def test_a_change_that_fast_follows_runs_fast(ran, change):
    check_followed(ran[change], ran["nothing"], change)


@pytest.mark.more
@pytest.mark.parametrize("change", UNFOLLOWED_MORE)
def test_more_changes_that_fast_does_not_follow_run_on_the_plain_machine(ran_more, change):
    check_unfollowed(ran_more[change], ran_more["nothing"], change)


@pytest.mark.more
@pytest.mark.parametrize("change", FOLLOWED_MORE)
def test_more_changes_that_fast_follows_run_fast(ran_more, change):
    check_followed(ran_more[change], ran_more["nothing"], change)


# ---- models as they are

ORIGINAL = dict(byte_states=True, double_residual=True, global_norm=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"block_size": 8, "chain_width": 6},
        {"block_size": 1, "chain_width": 6},
        {"kind": "monotonic"},
        {"kind": "space"},
        {"kind": "stride"},
        {"max_patch": 1, "mean": 1},
        {"window": 3, "global_window": 2, "patcher_window": 3},
        {**ORIGINAL},
        {**ORIGINAL, "max_patch": 0, "mean": 40},
    ],
    ids=str,
)
def test_models_of_every_kind_and_number_format_pass_the_check(changes, dtype, capsys):
    """And are left as they were: what the check sets for itself is set back."""
    model, patcher = make_models(0, **changes)
    model = model.to(dtype)
    patcher = patcher.to(dtype)
    before = asdict(model.config), asdict(patcher.config)
    machine = checked(model, patcher)
    assert machine.kind is (ByteStateStream if model.config.byte_states else Stream)
    assert isinstance(machine.model, FastModel)
    assert (asdict(model.config), asdict(patcher.config)) == before
    assert capsys.readouterr().err == ""


PARTS = [
    "encoder.query.weight",
    "encoder.layers.0.gate_up.weight",
    "globe.layers.0.attention_norm.weight",
    "globe.layers.1.down.weight",
    "decoder.split.weight",
    "decoder.crosses.1.kv.weight",
    "decoder.layers.1.qkv.weight",
    "decoder.norm.weight",
    "decoder.head.weight",
    "decoder.chain.gru.weight_hh_l0",
]


@pytest.mark.parametrize("part", PARTS)
def test_a_difference_of_one_part_in_a_hundred_is_seen_in_every_part(part, capsys):
    """Weights that changed after they were folded."""
    model, patcher = make_models(0, block_size=8, chain_width=6)
    fast = prepared(model, patcher)
    weight = dict(model.named_parameters())[part]
    with torch.no_grad():
        weight.mul_(1 + 0.01 * torch.randn_like(weight))
    assert_falls_back(model.float(), patcher, fast, capsys, part)


def test_the_largest_rounding_is_a_thousandth_of_a_logit(capsys):
    model, patcher = make_models(0)
    fast = prepared(model.float(), patcher)
    head = model.decoder.head.weight.data
    head *= 1.002
    assert_falls_back(model, patcher, fast, capsys, "the head")
    head *= 0.9985
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fast.load.prepared", lambda *_: fast)
        assert checked(model, patcher) is fast


def assert_falls_back(model, patcher, fast, capsys, what):
    """With this machine as the fast one of a model, the check takes the plain one and says so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fast.load.prepared", lambda *_: fast)
        machine = checked(model, patcher)
    said = capsys.readouterr().err
    assert machine.kind is Prefix and machine.model is model, what
    assert said.startswith(LINE) and said.count("\n") == 1, said


def test_the_check_asks_for_64_bytes(monkeypatch):
    """Of each machine, once: a model of any size starts soon."""
    asked = {Prefix: 0, Stream: 0}
    for kind in asked:

        def advance(self, ids, kind=kind, whole=kind.advance):
            asked[kind] += len(ids)
            return whole(self, ids)

        monkeypatch.setattr(kind, "advance", advance)
    checked(*make_models(0))
    assert len(PROBE) == 64
    assert asked == {Prefix: 65, Stream: 65}, "64 bytes and BOS"


def test_a_model_that_gives_no_numbers_is_no_fast_one(capsys):
    """NaN is no small difference."""
    model, patcher = make_models(0)
    fast = prepared(model, patcher)
    for p in fast.model.globe.parameters():
        p.data.fill_(float("nan"))
    assert_falls_back(model, patcher, fast, capsys, "NaN")


def test_load_takes_the_plain_machine_that_it_is_asked_for(tmp_path, capsys):
    file = saved(tmp_path / "random.pt", *make_models(0))
    assert load(file).kind is Stream
    for plain in (Prefix, PaperPrefix):
        machine = load(file, plain=plain)
        assert isinstance(machine, Machine) and type(machine.state()) is plain
        assert machine.state().model is machine.model
    assert capsys.readouterr().err == ""


def test_every_generation_takes_a_new_state():
    machine = prepared(*make_models(0))
    first = machine.state()
    first.extend([1, 104])
    assert machine.state() is not first
    assert machine.state().length == 0
