"""model.py: sizes, causality, each vectorised piece against a loop, and what checkpoints hold."""

from dataclasses import asdict

import pytest
import torch
from conftest import make_models, random_ids
from torch.nn import RMSNorm

import model as modelling
from data import MASK, PAD
from model import (
    BLT,
    HASH_PRIME,
    LEAD,
    NGRAMS,
    PRESETS,
    bytes_of_patches,
    latent_read,
    load_model,
    model_from,
    ngram_entries,
)
from patcher import fill_patches, patcher_from
from stream import Stream
from support import checkpoint
from support.lean import make_lean
from support.terminal import BadInput

# ---- sizes

PAPER_PARTS = [("blt-1b", 19e6, 1.28e9, 160e6), ("blt-3b", 26e6, 2.82e9, 160e6)]


@pytest.mark.parametrize("name, encoder, globe, decoder", PAPER_PARTS)
def test_sizes_are_the_papers(name, encoder, globe, decoder):
    with torch.device("meta"):
        sizes = BLT(PRESETS[name].model).sizes()
    assert sizes["encoder"] == pytest.approx(encoder, rel=0.03)
    assert sizes["global"] == pytest.approx(globe, rel=0.03)
    assert sizes["decoder"] == pytest.approx(decoder, rel=0.03)
    assert sizes["ngram_tables"] == 6 * 500002 * 1024


@pytest.mark.parametrize("name, crops, warmup", [("blt-1b", 512, 2000), ("blt-3b", 1024, 4000)])
def test_paper_presets_train_as_the_paper_says(name, crops, warmup):
    """Guards: batches of a fourth of the paper's, and the 3B model's warm-up taken from 1B's.

    A step is 2^19 tokens of 4.4 bytes for 1B and 2^20 for 3B: 512 and 1024 crops of 4096 bytes.
    """
    s = PRESETS[name].training
    assert (s.batch * s.accumulate, s.length, s.warmup) == (crops, 4096, warmup)
    tokens = s.batch * s.accumulate * s.length / 4  # patches hold four bytes
    assert tokens == {"blt-1b": 2**19, "blt-3b": 2**20}[name]
    assert (s.lr, s.weight_decay, s.clip) == (4e-4, 0.1, 1.0)


@pytest.mark.parametrize("name", PRESETS)
def test_a_patcher_is_trained_on_crops_that_fill_its_window(name):
    """Guards: one setting for all presets, 256-byte crops for a patcher that sees 512 bytes."""
    preset = PRESETS[name]
    assert preset.patcher_training.length >= preset.patcher.window
    assert preset.training.length >= preset.model.window
    assert preset.patcher.max_patch <= preset.model.max_patch


# ---- causality


@pytest.mark.parametrize("seed, max_patch, window", [(0, 8, 24), (1, 4, 100), (2, 1, 7)])
def test_no_byte_moves_an_earlier_logit(seed, max_patch, window):
    """Guards: bytes that read their own, unfinished patch's latent.

    The byte itself must move something, though.
    """
    model, patcher = make_models(seed, window=window, max_patch=max_patch)
    ids = random_ids(60, seed)
    logits = model(ids[None], patcher.closes(ids)[None])[0]
    for position in (1, 2, 13, 30, 47, 59):
        changed = ids.clone()
        changed[position] = 4 + 200
        after = model(changed[None], patcher.closes(changed)[None])[0]
        moved = (after - logits).abs().amax(-1) > 1e-12
        assert not moved[:position].any() and moved[position]


def test_a_batch_equals_its_rows_one_by_one():
    model, patcher = make_models(5)
    rows = torch.stack([random_ids(70, s) for s in range(4)])
    closes = torch.stack([patcher.closes(row) for row in rows])
    assert len(set(closes.sum(1).tolist())) > 1, "rows should differ in their number of patches"
    together = model(rows, closes)
    for row, c, logits in zip(rows, closes, together):
        assert torch.allclose(model(row[None], c[None])[0], logits, atol=1e-11)


# ---- pieces against loops


def test_latent_read_is_the_last_closed_patch():
    closes = torch.tensor([[True, False, False, True, True, False, False]])
    assert latent_read(closes).tolist() == [[0, 0, 0, 1, 2, 2, 2]]
    assert latent_read(closes.repeat(2, 1))[1].tolist() == [3, 3, 3, 4, 5, 5, 5]


def test_bytes_of_patches_against_a_loop():
    """Bytes behind a row's last patch are of none, though the next row closes its first at once."""
    generator = torch.Generator().manual_seed(0)
    signals = torch.rand(3, 40, generator=generator) < 0.3
    closes = torch.stack([fill_patches(row, 5) for row in signals])
    closes[:, -2:] = False
    patches = []
    for b in range(3):
        mine = []
        for i in range(40):
            mine.insert(0, 40 * b + i)
            if closes[b, i]:
                patches.append(mine + [-1] * (5 - len(mine)))
                mine = []
    assert bytes_of_patches(closes, 5).tolist() == patches


def test_ngram_entries_against_a_loop():
    ids = random_ids(20, 1)
    entries = ngram_entries(torch.cat([torch.full((LEAD,), PAD), ids])[None], 97)[0]
    padded = [PAD] * LEAD + ids.tolist()
    for i in range(20):
        for table, n in enumerate(NGRAMS):
            gram = padded[i + LEAD + 1 - n : i + LEAD + 1]
            exact = sum(g * HASH_PRIME**p for p, g in enumerate(gram))
            wrapped = (exact + 2**63) % 2**64 - 2**63
            assert entries[i, table].item() == wrapped % 97 + table * 97


def test_long_patches_are_gathered_few_at_a_time(monkeypatch):
    """Padded to the longest of them all at once they would take any amount of memory."""
    model, patcher = make_models(2, max_patch=0, mean=6, byte_states=True)
    ids = random_ids(200, 5)
    closes = patcher.closes(ids)[None]
    assert bytes_of_patches(closes, 0).shape[1] > 12
    expected = model(ids[None], closes)
    monkeypatch.setattr(modelling, "GATHERED", 30)
    assert torch.allclose(model(ids[None], closes), expected, atol=1e-12)


@pytest.mark.parametrize("kind", ["entropy", "stride"])
def test_a_lean_model_is_the_same_function(kind):
    """Folded for generation: the same logits, whole and from caches, and the same entropies."""
    model, patcher = make_models(6, kind=kind, block_size=4, chain_width=6)
    ids = random_ids(60, 3)
    closes = patcher.closes(ids)[None]
    expected, H = model(ids[None], closes), patcher.entropies(ids)
    stream = Stream(model, patcher)
    stream.prefill(ids.tolist())
    block = stream.decode([110], [MASK] * 4)
    make_lean(model)
    make_lean(patcher)
    assert not [m for part in (model, patcher) for m in part.modules() if isinstance(m, RMSNorm)]
    assert torch.allclose(model(ids[None], closes), expected, atol=1e-11)
    assert torch.allclose(patcher.entropies(ids), H, atol=1e-11)
    for size in (1, 7, 60):
        stream = Stream(model, patcher)
        pieces = [stream.extend(ids[i : i + size].tolist()) for i in range(0, 60, size)]
        assert torch.allclose(torch.cat(pieces), expected[0], atol=1e-11)
        assert torch.allclose(stream.decode([110], [MASK] * 4), block, atol=1e-11)


# ---- checkpoints


def test_model_from_gives_what_was_saved(trained_file):
    saved = checkpoint.load(trained_file)
    model, patcher = model_from(saved), patcher_from(saved)
    assert not model.training and not patcher.training
    assert asdict(model.config) == saved["config"]
    assert asdict(patcher.config) == saved["patcher_config"]
    for part, weights in ((model, saved["model"]), (patcher, saved["patcher"])):
        state = part.state_dict()
        assert set(state) == set(weights)
        assert all(torch.equal(state[k], weights[k]) for k in state)


def test_load_model_is_the_same_function(trained_file):
    saved, ids = checkpoint.load(trained_file), random_ids(80, 2)
    model, patcher = load_model(trained_file)
    slow, slow_patcher = model_from(saved).double(), patcher_from(saved).double()
    closes = slow_patcher.closes(ids)[None]
    assert not model.training and not patcher.training
    assert torch.allclose(model.double()(ids[None], closes), slow(ids[None], closes), atol=1e-4)


def test_a_chained_head_is_new_where_there_was_none(trained_file):
    """And begins by changing nothing; one that is there stays."""
    saved = checkpoint.load(trained_file)
    rows, before = torch.randn(2, 4, 64), torch.full((2, 4), 100)
    assert not torch.equal(model_from(saved).decoder.chain(rows, before), rows)
    saved["config"].pop("chain_width")
    saved["model"] = {k: v for k, v in saved["model"].items() if "chain" not in k}
    assert model_from(saved).decoder.chain is None
    torch.manual_seed(0)
    new = model_from(saved, chain_width=10)
    assert new.config.chain_width == 10 and torch.equal(new.decoder.chain(rows, before), rows)
    state = new.state_dict()
    assert all(torch.equal(state[k], saved["model"][k]) for k in saved["model"])


def test_a_checkpoint_without_its_model_is_refused(trained_file, tmp_path):
    saved = {**checkpoint.load(trained_file), "model": None}
    checkpoint.save(tmp_path / "early.pt", saved)
    with pytest.raises(BadInput, match="no model yet"):
        load_model(tmp_path / "early.pt")


# ---- run


def test_it_prints_the_sizes_of_every_preset(capsys):
    modelling.main([])
    out = capsys.readouterr().out
    assert all(name in out for name in PRESETS) and "1,284.61" in out
