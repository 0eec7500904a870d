"""Official weights: scripts/convert.py against the BLT of Hugging Face transformers.

Real weights are gated and not at hand: random small models of the same classes stand for them,
without their cache, which is broken.
"""

import json
import pathlib
import shutil
from dataclasses import dataclass

import pytest
import torch
from conftest import count_passes, fast_of, plain_of, unfolded_of

import sample
import train
from data import BOS, EOS, MASK, OFFSET, PAD
from evaluation import __main__ as evaluation
from fast import __main__ as way
from fast.lean import LeanLayer
from fast.load import Machine, checked, load, load_model, model_from
from fast.official import ByteStateStream
from generate import Sampling, generate
from measure import ideas
from measure.rounds import PaperPrefix
from scripts import convert, export
from speculate import Drafting, run_mode
from support import checkpoint
from support.terminal import BadInput

pytestmark = pytest.mark.more  # minutes together: .ci/run has them

needs = "pip install -r requirements-dev.txt"
safetensors = pytest.importorskip("safetensors.torch", reason=f"safetensors is missing: {needs}")
transformers = pytest.importorskip("transformers", reason=f"transformers is missing: {needs}")


@dataclass
class Official:
    """A random model of transformers and what scripts/convert.py made of it."""

    theirs: torch.nn.Module
    folder: object
    path: object

    @torch.no_grad()
    def logits(self, ids):
        """Of every next byte, by the whole prefix anew: ids (N,) -> (N, V)."""
        return self.theirs(ids[None], use_cache=False).logits[0]

    @torch.no_grad()
    def closes(self, ids):
        """Where their patches close: ids (N,) -> (N,) bool, the last one's open end left out."""
        patcher, config = self.theirs.model.patcher, self.theirs.config
        lengths = patcher(ids[None], patch_size=4, threshold=config.patching_threshold)[1][0]
        closes = torch.zeros(len(ids) + 1, dtype=torch.bool)
        closes[lengths.cumsum(0)[:-1] - 1] = True
        return closes[: len(ids)]


def random_text(n, seed=0):
    """BOS and n - 1 bytes, some of them again and again."""
    generator = torch.Generator().manual_seed(seed)
    some = torch.randint(OFFSET, OFFSET + 256, (n - 1,), generator=generator)
    some[n // 2 :] = some[: len(some) - n // 2] % 20 + 100
    return torch.cat([torch.tensor([BOS]), some])


def make_official(folder, seed=0, k=2, width=32, globe=64, window=512, sight=512, **changes):
    """Random weights of every kind, gains too. threshold: None puts it where patches are of 4."""
    encoder_layers, threshold = changes.pop("encoder_layers", 1), changes.pop("threshold", None)
    torch.manual_seed(seed)

    def part(size, layers, hidden, heads=2, **more):
        shape = dict(hidden_size=size, num_hidden_layers=layers, intermediate_size=hidden)
        return {**shape, "num_attention_heads": heads, **more}

    local = dict(cross_attn_k=k, hidden_size_global=globe)
    config = transformers.BltConfig(
        encoder_config=part(width, encoder_layers, 48, **local),
        decoder_config=part(width, 2, 48, **local),
        global_config=part(globe, 2, 96, heads=4),
        patcher_config=part(24, 2, 40, sliding_window=sight),
        cross_attn_k=k,
        local_attention_window_len=window,
        encoder_hash_byte_group_vocab=1000,
    )
    theirs = transformers.BltForCausalLM(config).eval().float()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if p.ndim == 1:
                p.normal_(1.0, 0.3)
            elif "lm_head" in name or "patcher" in name:
                p *= 1.5
        H = theirs.model.patcher(random_text(300)[None], patch_size=4, threshold=0.0)[0][0].sort()
    # In the middle of the widest gap between entropies near their 0.75 quantile
    near = H.values[215:235]
    at = near.diff().argmax()
    theirs.config.patching_threshold = threshold
    if threshold is None:
        theirs.config.patching_threshold = float(near[at] + near[at + 1]) / 2
    theirs.config.max_patch_length = changes.pop("max_patch", None)
    theirs.save_pretrained(folder, **changes)
    convert.main([str(folder), str(folder / "ours.pt")])
    return Official(theirs, folder, folder / "ours.pt")


CASES = {
    "k 2": {},
    "k 2, projected": dict(globe=48, width=16),
    "k 4": dict(k=4, width=16),
    "k 4, projected, in several files": dict(k=4, max_shard_size="60KB"),
    "windows shorter than the text": dict(window=17, sight=9),
    "two encoder layers, no windows": dict(encoder_layers=2, window=None, sight=None),
    "three encoder layers, a short window": dict(encoder_layers=3, window=24),
    "every byte a patch": dict(threshold=-1.0),
    "one patch without end": dict(threshold=100.0),
    "one patch without end, k 4, a short window": dict(threshold=100.0, k=4, window=20, sight=30),
}


@pytest.fixture(scope="module", params=CASES)
def official(request, tmp_path_factory):
    seed = list(CASES).index(request.param)
    return make_official(tmp_path_factory.mktemp("official"), seed, **CASES[request.param])


# ---- the same function


def test_converted_weights_give_the_same_patches_and_logits(official):
    """In full and from caches, whatever the split into calls; as in the file, and folded."""
    model, patcher = load_model(official.path)
    folded, as_stored = fast_of(model, patcher), unfolded_of(model, patcher)
    assert folded.kind is as_stored.kind is ByteStateStream
    for n in (1, 2, 3, 299, 300):
        ids = random_text(n, n)
        expected, closes = official.logits(ids), patcher.closes(ids)
        assert n == 1 or torch.equal(closes, official.closes(ids)), n
        assert torch.allclose(model(ids[None], closes[None])[0], expected, atol=1e-4), n
        for machine, size in ((folded, 1), (folded, 7), (as_stored, 7), (as_stored, 300)):
            stream = machine.kind(machine.model, machine.patcher, max_rows=64)
            logits = [stream.extend(piece.tolist()) for piece in ids.split(size)]
            assert torch.allclose(torch.cat(logits), expected, atol=1e-4), (n, size)


def test_cached_and_folded_is_plain_in_float64(official, capsys):
    """Every mode that needs no blocks: the same bytes, rounds and passes, and the load-time check.

    Sampled too, where all follow one stream of chance.
    """
    model, patcher = load_model(official.path)
    model, patcher = model.double(), patcher.double()
    machines = [plain_of(model, patcher), checked(model, patcher), unfolded_of(model, patcher)]
    assert machines[1].kind is ByteStateStream and not capsys.readouterr().err
    prompt = random_text(30, 3)[1:].tolist()
    for mode, drafting in (
        ("blt", Drafting()),
        ("blts", Drafting(draft_size=5)),
        ("blts", Drafting(draft_size=16)),
        ("lookup", Drafting(draft_size=5)),
    ):
        for temperature in (0.0, 0.8):
            made = []
            for machine in machines:
                sampling = Sampling(temperature, ignore_eos=True)
                output = run_mode(mode, machine.state(), prompt, 24, drafting, sampling=sampling)
                made.append((output.ids, output.counters))
            assert made[1] == made[0] and made[2] == made[0], (mode, temperature)


def test_steps_back_and_drafts_change_nothing_in_float64(one):
    """Peeks and rollbacks between the pieces of a text, whose logits stay the full forward's."""
    model, patcher = load_model(one.path)
    model, patcher = model.double(), patcher.double()
    ids = random_text(100, 5)
    expected = model(ids[None], patcher.closes(ids)[None])[0]
    pieces = torch.Generator().manual_seed(0)

    def random(n):
        return int(torch.randint(n, (), generator=pieces))

    for machine in (fast_of(model, patcher), unfolded_of(model, patcher)):
        stream = machine.kind(machine.model, machine.patcher, max_rollback=9, max_rows=40)
        slow = plain_of(model, patcher).state()
        while stream.length < len(ids):
            piece = ids[stream.length :][: 1 + random(12)].tolist()
            logits = stream.extend(piece)
            slow.advance(piece)
            assert torch.allclose(logits, expected[slow.length - len(piece) : slow.length])
            behind = random_text(1 + random(4), random(99)).tolist()
            for n in range(1, len(behind) + 1):
                assert torch.allclose(stream.peek(behind[:n]), slow.peek(behind[:n]))
            back = max(1, stream.length - random(9), stream.furthest - 9)
            stream.rollback(back)
            slow.rollback(back)
            assert [stream.closes(i) for i in range(back - 1, back)] == slow.closed[-1:]
        assert stream.counters.bytes_advanced == slow.counters.bytes_advanced


def test_what_the_original_has_otherwise_matters(one):
    """So a test that forgot it would fail."""
    saved, ids = checkpoint.load(one.path), random_text(60)[None]
    closes = load_model(one.path)[1].closes(ids[0])[None]
    expected = model_from(saved)(ids, closes)
    assert (model_from(saved, double_residual=False)(ids, closes) - expected).abs().max() > 0.1
    # Not all gains one: the decoder norms what it reads again
    saved["model"]["globe.norm.weight"] = torch.linspace(0.5, 1.5, 64)
    assert (model_from(saved, global_norm=True)(ids, closes) - expected).abs().max() > 0.1


def best(logits):
    """The most probable of what may be generated."""
    return logits.index_fill(-1, torch.tensor([PAD, BOS, EOS, MASK]), -torch.inf).argmax(-1)


def test_greedy_bytes_are_the_same_and_speculation_changes_none(official):
    """200 bytes of plain BLT, then of BLT-S; fewer by other drafts."""
    ours, papers = load(official.path), load(official.path, plain=PaperPrefix)
    assert ours.kind is ByteStateStream
    prompt, sampling = random_text(40, 1)[1:].tolist(), Sampling(ignore_eos=True)
    ids = generate(ours.state(), prompt, 200, sampling=sampling).ids
    assert len(ids) == 200
    # Theirs is causal, so one pass over all of it tells what each prefix would have gone on with.
    logits = official.logits(torch.tensor([BOS, *prompt, *ids]))
    assert best(logits[len(prompt) : -1]).tolist() == ids
    for mode, machine, n in (("blts", ours, 200), ("blts", papers, 50), ("lookup", ours, 50)):
        drafting = Drafting(draft_size=5)
        made = run_mode(mode, machine.state(), prompt, n, drafting, sampling=sampling)
        assert made.ids == ids[:n], (mode, machine.kind)
        assert made.counters.rounds < n


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """One of them is enough for what does not depend on shapes."""
    return make_official(tmp_path_factory.mktemp("one"), 1, max_shard_size="100KB")


def test_greedy_bytes_are_what_theirs_writes_byte_by_byte(one):
    """The whole prefix through their model for each of 200 bytes."""
    state = load(one.path).state()
    prompt = random_text(30, 2).tolist()
    made = generate(state, prompt[1:], 200, sampling=Sampling(ignore_eos=True)).ids
    ids = list(prompt)
    for _ in range(200):
        ids.append(best(one.logits(torch.tensor(ids))[-1]).item())
    assert made == ids[len(prompt) :]


def test_patches_of_bounded_length_are_converted_too(tmp_path):
    """Of theirs the last position may read the wrong patch then: it is left out."""
    bounded = make_official(tmp_path, 3, threshold=100.0, max_patch=3)
    machine = load(bounded.path)
    ids = random_text(100)
    logits = machine.state().extend(ids.tolist())
    assert torch.allclose(logits[:-1], bounded.logits(ids)[:-1], atol=1e-4)
    assert machine.model.config.max_patch == machine.patcher.config.max_patch == 3


# ---- what it costs


def papers_of(model, patcher):
    """The machine of the paper's rounds."""
    return Machine(model, patcher, PaperPrefix)


@pytest.mark.parametrize(
    "mode, machine_of",
    [
        *((mode, kind) for mode in ("blt", "blts", "lookup") for kind in (fast_of, unfolded_of)),
        ("blts", plain_of),
        ("blts", papers_of),
    ],
)
def test_the_byte_layers_run_as_often_as_the_decoder(one, mode, machine_of):
    """So they are counted with its parameters, and an encoder/global pass is what it was."""
    plain, patcher = load_model(one.path)
    machine = machine_of(plain, patcher)
    model = machine.model
    ran, layers = count_passes(model, machine.patcher), []
    model.encoder.layers[0].register_forward_hook(lambda *_: layers.append(1))
    drafting = Drafting(draft_size=4) if mode != "blt" else Drafting()
    made = run_mode(mode, machine.state(), random_text(30).tolist(), 40, drafting)
    c = made.counters
    assert ran["decoder"] == c.decoder + c.prefill["decoder"]
    if machine.kind is ByteStateStream:  # the plain one runs all at each question
        assert len(layers) == ran["decoder"]
        assert ran["encoder"] == c.encoder_global + c.prefill["encoder_global"]
    sizes = model.sizes()
    assert sizes == plain.sizes()
    moved = sum(p.numel() for p in plain.encoder.layers.parameters())
    moved += plain.encoder.embed.weight.numel()
    assert sizes["decoder"] == sum(p.numel() for p in plain.decoder.parameters()) + moved
    everything = sum(p.numel() for p in plain.parameters())
    assert sum(sizes.values()) == everything


# ---- the file


def test_half_precision_stays_in_the_file(one, tmp_path):
    """No float32 copy of the model, no copy at all; the patcher in float32, and folded."""
    folder = tmp_path / "half"
    one.theirs.to(torch.bfloat16).save_pretrained(folder)
    one.theirs.float()
    convert.main([str(folder), str(tmp_path / "half.pt")])
    machine = load(tmp_path / "half.pt")
    assert machine.kind is ByteStateStream
    model, patcher = machine.model, machine.patcher
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in patcher.parameters()} == {torch.float32}
    maps = pathlib.Path("/proc/self/maps").read_text().splitlines()
    spans = [[int(x, 16) for x in m.split()[0].split("-")] for m in maps if "half.pt" in m]
    assert all(any(a <= p.data_ptr() < b for a, b in spans) for p in model.parameters())
    assert not any(isinstance(m, LeanLayer) for m in model.modules())
    assert any(isinstance(m, LeanLayer) for m in patcher.modules())
    # The same weights, rounded by nobody but them: q and k in another order of rows
    theirs = safetensors.load_file(folder / "model.safetensors")
    value = theirs["model.local_decoder.layers.1.self_attn.v_proj.weight"]
    assert torch.equal(model.decoder.decoder.layers[1].qkv.weight[-len(value) :], value)
    made = generate(machine.state(), [100, 101], 30, sampling=Sampling(ignore_eos=True))
    assert made.new_bytes == 30


def test_it_generates_and_is_evaluated_as_ours_are(one, tmp_path, capsys):
    """In the modes that need no blocks; what it was trained on it does not know."""
    text = tmp_path / "text.txt"
    text.write_bytes(bytes(range(32, 127)) * 8)
    file = ["--checkpoint", str(one.path)]
    for mode in ("blt", "blts", "lookup"):
        sample.main([*file, "--mode", mode, "--json", "--prompt", "Hi", "--bytes", "9"])
        assert json.loads(capsys.readouterr().out)["mode"] == mode
    for mode in ("bltd", "bltdv"):
        with pytest.raises(BadInput, match="plain BLT"):
            sample.main([*file, "--mode", mode])
    way.main([*file, "--text", "def main():"])
    ideas.patcher([*file, "--text", "def main():"])
    assert "any number of bytes a patch" in capsys.readouterr().out
    for task in (["bpb"], ["likelihood", "--limit", "3"]):
        evaluation.main([*task, *file, "--json", "--data", str(text)])
        assert json.loads(capsys.readouterr().out)
        with pytest.raises(BadInput, match="give --data"):
            evaluation.main([*task, *file])
    for main, options in ((train.main, ["--resume"]), (train.main, ["--init-from"])):
        with pytest.raises(BadInput):
            main([*options, str(one.path)])
    with pytest.raises(BadInput, match="no finished training run"):
        export.main([str(one.path), str(tmp_path / "small.pt")])


# ---- what is refused


def change_config(folder, part=None, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    (config[part] if part else config).update(changes)
    path.write_text(json.dumps(config))


def change_tensors(folder, change):
    """Of the first file."""
    path = sorted(folder.glob("*.safetensors"))[0]
    tensors = safetensors.load_file(path)
    change(tensors)
    safetensors.save_file(tensors, path)


def cut(folder):
    path = sorted(folder.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-100])


def rename(tensors):
    tensors["model.something.weight"] = tensors.pop(min(tensors))


def widen(tensors):
    tensors[min(tensors)] = torch.zeros(3, 5)


def halve(tensors):
    tensors[min(tensors)] = tensors[min(tensors)].half()


def option(part=None, **changes):
    return lambda folder: change_config(folder, part, **changes)


BAD = {
    "nothing": (shutil.rmtree, "can't read the weights: .*config.json"),
    "no json": (lambda folder: (folder / "config.json").write_text("{"), "damaged"),
    "another model": (option(model_type="llama"), "no BLT"),
    "no object": (option(encoder_config=5), "no BLT"),
    "no part": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "blt"}'),
        "says",
    ),
    "no size": (option("patcher_config", hidden_size=None), "hidden_size"),
    "activation": (option("global_config", hidden_act="gelu"), "global_config has hidden_act gelu"),
    "group sizes": (option(encoder_hash_byte_group_size=[3, 4]), "encoder_hash_byte_group_size"),
    "hashes": (option(encoder_hash_byte_group_nb_functions=3), "nb_functions 3"),
    "patching": (option(patching_mode="space"), "patching_mode space"),
    "shared keys": (option("encoder_config", num_key_value_heads=1), "num_key_value_heads 1"),
    "some layers": (option("decoder_config", cross_attn_all_layers=False), "cross_attn_all_layers"),
    "no length": (option("global_config", max_position_embeddings=None), "max_position_embeddings"),
    "two widths": (
        option("decoder_config", num_attention_heads=4, num_key_value_heads=4),
        "differ",
    ),
    "rope": (option("global_config", rope_parameters={"rope_type": "yarn"}), "rope_type yarn"),
    "layers": (option("global_config", num_hidden_layers=3), "tensors missing.*global_transformer"),
    "fewer layers": (option("global_config", num_hidden_layers=1), "tensors unexpected.*layers.1"),
    "no shard": (lambda folder: sorted(folder.glob("*.safetensors"))[1].unlink(), "missing"),
    "half a shard": (cut, "model-00002-of-.*missing or damaged"),
    "no index": (lambda folder: (folder / INDEX).write_text("[]"), "index.json is damaged"),
    "another name": (lambda folder: change_tensors(folder, rename), "tensors missing"),
    "another shape": (lambda folder: change_tensors(folder, widen), "tensors of another shape"),
    "mixed": (lambda folder: change_tensors(folder, halve), "of another number format"),
}
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize("what", BAD)
def test_bad_folders_end_in_one_line_and_nothing_is_written(one, tmp_path, what):
    spoil, message = BAD[what]
    folder, out = tmp_path / "folder", tmp_path / "out"
    shutil.copytree(one.folder, folder)
    out.mkdir()
    spoil(folder)
    with pytest.raises(BadInput, match=message) as problem:
        convert.main([str(folder), str(out / "ours.pt")])
    assert "\n" not in str(problem.value)
    assert not list(out.iterdir())


def test_an_output_that_can_not_be_written_is_named(one, tmp_path):
    with pytest.raises(BadInput, match="can't write"):
        convert.main([str(one.folder), str(tmp_path / "nowhere" / "ours.pt")])
