"""model.py: sizes, causality, each vectorised piece against a loop, and what checkpoints hold."""

from dataclasses import asdict, fields

import pytest
import torch
from conftest import DEVICE, ROOT, make_models, random_ids, tensor_of

from data import BOS, MASK, PAD, encode
from fast.load import load_model, model_from, patcher_from
from generate import Sampling
from model import (
    BLT,
    HASH_PRIME,
    LEAD,
    NGRAMS,
    Blocks,
    BLTConfig,
    bytes_of_patches,
    latent_read,
    ngram_entries,
)
from patcher import fill_patches
from support import checkpoint
from support.openings import known_openings
from support.presets import SIZES
from support.terminal import BadInput
from training.presets import PRESETS

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


@pytest.mark.parametrize("changes", [{}, {"chain_width": 6}, {"byte_states": True}])
def test_sizes_are_all_that_is_learned(changes):
    model, _ = make_models(0, **changes)
    assert sum(model.sizes().values()) == sum(p.numel() for p in model.parameters())
    assert bool(model.sizes()["chain"]) == ("chain_width" in changes)


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


def test_presets_say_what_differs_and_nothing_else():
    """A field of SIZES is one of its part; `tiny` is the defaults; all that a size has is there."""
    assert list(SIZES) == ["nano", "tiny", "reference", "small", "blt-1b", "blt-3b"]
    assert PRESETS["tiny"].model == BLTConfig() and not SIZES["tiny"]["model"]
    for name, size in SIZES.items():
        assert set(size) == set(PRESETS[name]._fields)
        for part, given in size.items():
            whole = getattr(PRESETS[name], part)
            known = {field.name: getattr(whole, field.name) for field in fields(whole)}
            assert given.items() <= known.items()


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


def block_at(start, ids, draft):
    """One block of a row of text: ids and draft, a row of each."""
    positions = start + torch.arange(len(ids), device=DEVICE)[None]
    starts = torch.full_like(positions, start)
    return Blocks(tensor_of([ids]), positions, starts, tensor_of([draft]))


@pytest.mark.parametrize("drafted", [0, 2])
def test_a_block_knows_nothing_of_the_bytes_from_its_start_on(drafted):
    """Guards: block rows that read the clean twin of the byte they must predict.

    Bytes before its start move it. Nothing in a block moves the text.
    """
    model, patcher = make_models(3, block_size=4)
    ids = random_ids(40, 4)
    start = 21
    block = block_at(
        start, [*range(100, 100 + drafted), *[MASK] * 4], [True] * drafted + [False] * 4
    )

    def logits(ids, closes, block):
        return model(ids[None], closes[None], block)[0]

    closes = patcher.closes(ids)
    before = logits(ids, closes, block)
    assert before.shape == (40 + drafted + 4, 260)
    assert torch.allclose(before[:40], model(ids[None], closes[None])[0], atol=1e-12)
    for position in (1, 15, start - 1, start, start + 1, 30, 39):
        changed = ids.clone()
        changed[position] = 4 + 200
        moved = (logits(changed, patcher.closes(changed), block) - before).abs().amax(-1) > 1e-12
        assert moved[40:].all() == moved[40:].any() == (position < start), position
    # Cells are moved by all of the block, drafted bytes by those in front of them.
    for j in range(drafted + 4):
        other = block.ids.clone()
        other[0, j] = 4 + 201
        after = logits(ids, closes, block._replace(ids=other))
        moved = (after - before).abs().amax(-1) > 1e-12
        expected = [j <= row or row >= drafted for row in range(drafted + 4)]
        assert not moved[:40].any() and moved[40:].tolist() == expected


@pytest.mark.parametrize("changes", [{}, {"byte_states": True}, {"max_patch": 0, "mean": 5}])
@torch.no_grad()
def test_a_batch_equals_its_rows_one_by_one(changes):
    """Guards: patches that are only padding, and change what they stand beside.

    Patches of the global model's window, of rows with few and with many of them, and with blocks.
    """
    model, patcher = make_models(5, block_size=4, **changes)
    rows = torch.stack([random_ids(70, s, alphabet=2 + 6 * s) for s in range(4)])
    rows[3, 1:] = rows[3, 1]  # hardly a patch, or one at every byte
    closes = torch.stack([patcher.closes(row) for row in rows])
    counts = closes.sum(1).tolist()
    assert len(set(counts)) > 1, "rows should differ in their number of patches"
    assert -max(counts) % 16, "some patches of every row should be padding"
    together = model(rows, closes)
    for row, c, logits in zip(rows, closes, together):
        assert torch.allclose(model(row[None], c[None])[0], logits, atol=1e-11)
    starts = (5, 20, 33, 64)
    blocks = [block_at(s, [100 + s, *[MASK] * 4], [True, *[False] * 4]) for s in starts]
    together = model(rows, closes, Blocks(*(torch.cat(parts) for parts in zip(*blocks))))
    for row, c, block, logits in zip(rows, closes, blocks, together):
        assert torch.allclose(model(row[None], c[None], block)[0], logits, atol=1e-11)


def test_a_block_reads_the_latent_closed_before_it_starts():
    """As the state will see it: a text that ends there, and a block behind it."""
    model, patcher = make_models(4, block_size=4)
    ids = random_ids(50, 4)
    closes = patcher.closes(ids)
    for start in range(1, 50):
        block = Blocks.behind(start, [105], [MASK] * 4, DEVICE)
        assert block.draft.tolist() == [[True, False, False, False, False]]
        assert block.positions[0].tolist() == list(range(start, start + 5))
        among = model(ids[None], closes[None], block)[0, 50:]
        behind = model(ids[None, :start], closes[None, :start], block)[0, start:]
        assert torch.allclose(among, behind, atol=1e-11), start


# ---- pieces against loops


def test_latent_read_is_the_last_closed_patch():
    closes = torch.tensor([[True, False, False, True, True, False, False]])
    assert latent_read(closes).tolist() == [[0, 0, 0, 1, 2, 2, 2]]
    # Of its own row: numbers of a batch do not go on from row to row.
    assert latent_read(closes.repeat(2, 1)).tolist() == [[0, 0, 0, 1, 2, 2, 2]] * 2


def slow_patches(closes, longest):
    """The positions of each patch of a row that closes, in a list of longest, -1 behind them."""
    patches = []
    mine = []
    for i, closing in enumerate(closes):
        mine.append(i)
        if closing:
            patches.append(mine + [-1] * (longest - len(mine)))
            mine = []
    return patches


@pytest.mark.parametrize("longest", [5, 7, 0])
@pytest.mark.parametrize("rows", [1, 3])
def test_bytes_of_patches_against_a_loop(rows, longest):
    """Bytes behind a row's last patch are of none, and other rows may have more patches."""
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        shares = torch.rand(rows, 1, generator=generator)
        signals = torch.rand(rows, 40, generator=generator) < shares
        closes = torch.stack([fill_patches(row, 5) for row in signals])
        closes[:, -int(torch.randint(1, 8, (), generator=generator)) :] = False
        found = bytes_of_patches(closes, longest)
        L = longest or found.shape[2]
        expected = [slow_patches(row, L) for row in closes.tolist()]
        M = max(map(len, expected))
        if rows > 1:
            M += -M % 16  # as many for all, few shapes
        assert found.shape == (rows, M, L)
        for got, patches in zip(found.tolist(), expected):
            assert got[: len(patches)] == patches
            assert got[len(patches) :] == [[-1] * L] * (M - len(patches))
        if not longest:
            assert (found[..., -1] >= 0).any(), "no shorter than the longest, and no longer"


def test_an_open_patch_may_be_of_any_length():
    """Guards: one that is longer than a patch may be, as behind a draft, reached into another."""
    closes = torch.zeros(2, 30, dtype=torch.bool)
    closes[:, 0] = True
    closes[1, 3] = True
    for longest in (4, 0):
        found = bytes_of_patches(closes, longest)
        L = found.shape[2]
        assert L == (longest or 3) and found.shape[1] == 16
        assert found[0, 0].tolist() == [0] + [-1] * (L - 1)
        assert found[1, 1].tolist() == [1, 2, 3] + [-1] * (L - 3)
        assert (found[0, 1:] == -1).all() and (found[1, 2:] == -1).all()
    model, _ = make_models(1, max_patch=4)
    ids = random_ids(30, 1)[None].expand(2, -1)
    assert model(ids, closes.to(DEVICE)).isfinite().all()


def test_ngram_entries_against_a_loop():
    ids = random_ids(20, 1)
    entries = ngram_entries(torch.cat([tensor_of([PAD] * LEAD), ids])[None], 97)[0]
    padded = [PAD] * LEAD + ids.tolist()
    for i in range(20):
        for table, n in enumerate(NGRAMS):
            gram = padded[i + LEAD + 1 - n : i + LEAD + 1]
            exact = sum(g * HASH_PRIME**p for p, g in enumerate(gram))
            wrapped = (exact + 2**63) % 2**64 - 2**63
            assert entries[i, table].item() == wrapped % 97 + table * 97


@torch.no_grad()
def test_patch_vectors_against_a_loop():
    """Each patch's vectors come of its own bytes: the largest of each number reads them all."""
    model, patcher = make_models(2, max_patch=5)
    encoder = model.encoder
    rows = torch.stack([random_ids(50, s, alphabet=4 + 20 * s) for s in range(2)])
    closes = torch.stack([patcher.closes(row) for row in rows])
    states = torch.randn(2, 50, 32, dtype=torch.float64).to(DEVICE)
    got = encoder(states, closes)
    for b in range(2):
        for m, patch in enumerate(slow_patches(closes[b].tolist(), 5)):
            members = states[b, [i for i in patch if i >= 0]]
            queries = encoder.query(members.amax(0)).view(1, 2, 32)
            vectors = encoder.cross(queries, encoder.cross.project(members[None]))
            assert torch.allclose(got[b, m], encoder.to_global(vectors.view(64)), atol=1e-12)


@torch.no_grad()
def test_a_chained_block_is_the_chained_head():
    """Cell by cell with what was drawn, or all at once with what is known."""
    model, _ = make_models(1, chain_width=6)
    rows = torch.randn(4, 32, dtype=torch.float64).to(DEVICE)
    before, *ids = random_ids(5, 1).tolist()
    whole, _ = model.decoder.chain(rows[None], tensor_of([[before, *ids[:3]]]))
    noise = torch.zeros(4, 260).scatter_(1, torch.tensor(ids)[:, None], torch.inf)  # picks them
    for j, (id_, logits) in enumerate(model.decoder.chained(rows, before, noise, Sampling())):
        assert id_ == ids[j]
        assert logits.shape == (1, 260)
        assert torch.allclose(logits, model.decoder.head(whole[:, j]), atol=1e-12)
    assert j == 3


def test_what_training_starts_from():
    """N-gram tables of zero, a chained head that changes nothing, and weights the seed decides."""
    config = PRESETS["nano"].model
    with_chain = BLTConfig(**{**asdict(config), "chain_width": 8})
    torch.manual_seed(3)
    model = BLT(with_chain).init_weights()
    assert not model.encoder.hashes.weight.any() and not model.decoder.chain.out.weight.any()
    torch.manual_seed(3)
    same = BLT(with_chain).init_weights()
    torch.manual_seed(4)
    other = BLT(with_chain).init_weights()
    for name, p in model.named_parameters():
        assert torch.equal(p, same.get_parameter(name))
        still = p.ndim == 1 or name in ("encoder.hashes.weight", "decoder.chain.out.weight")
        assert torch.equal(p, other.get_parameter(name)) == still, name


# ---- checkpoints


def test_model_from_gives_what_was_saved(trained_file):
    saved = checkpoint.load(trained_file)
    model = model_from(saved)
    patcher = patcher_from(saved)
    assert not model.training and not patcher.training
    assert asdict(model.config) == saved["config"]
    assert asdict(patcher.config) == saved["patcher_config"]
    for part, weights in ((model, saved["model"]), (patcher, saved["patcher"])):
        state = part.state_dict()
        assert set(state) == set(weights)
        assert all(torch.equal(state[k], weights[k]) for k in state)


def test_load_model_returns_what_model_py_says(trained_file):
    """Guards: folded layers in place of those above, put there without a word."""
    saved = checkpoint.load(trained_file)
    model, patcher = load_model(trained_file)
    assert not model.training and not patcher.training
    expected = model_from(saved)
    assert str(model) == str(expected) and str(patcher) == str(patcher_from(saved))
    assert {type(m).__module__.split(".")[0] for m in model.modules()} <= {
        "model",
        "layers",
        "torch",
    }
    ids = random_ids(80, 2).cpu()
    closes = patcher.closes(ids)[None]
    assert torch.equal(model(ids[None], closes), expected(ids[None], closes))


def test_a_chained_head_is_new_where_there_was_none(trained_file):
    """And begins by changing nothing; one that is there stays."""
    saved = checkpoint.load(trained_file)
    rows = torch.randn(2, 4, 64)
    before = torch.full((2, 4), 100)
    assert not torch.equal(model_from(saved).decoder.chain(rows, before)[0], rows)
    saved["config"].pop("chain_width")
    saved["model"] = {k: v for k, v in saved["model"].items() if "chain" not in k}
    assert model_from(saved).decoder.chain is None
    torch.manual_seed(0)
    new = model_from(saved, chain_width=10)
    assert new.config.chain_width == 10
    assert torch.equal(new.decoder.chain(rows, before)[0], rows)
    state = new.state_dict()
    assert all(torch.equal(state[k], saved["model"][k]) for k in saved["model"])


def test_a_checkpoint_without_its_model_is_refused(trained_file, tmp_path):
    saved = {**checkpoint.load(trained_file), "model": None}
    checkpoint.save(tmp_path / "early.pt", saved)
    with pytest.raises(BadInput, match="no model yet"):
        load_model(tmp_path / "early.pt")


def test_a_patcher_whose_patches_are_too_long_is_refused(trained_file, tmp_path):
    saved = checkpoint.load(trained_file)
    for longest in (0, 9):
        saved["patcher_config"] = {**saved["patcher_config"], "max_patch": longest}
        checkpoint.save(tmp_path / "long.pt", saved)
        with pytest.raises(BadInput, match="its model takes patches of 8 bytes at most"):
            load_model(tmp_path / "long.pt")


SHIPPED = {
    "stories": b"Once upon a time, there was a little girl named Lily. She loved to play.",
    "code": b"def main(argv=None):\n    return",  # from before settings and head were what they are
}


@pytest.mark.parametrize("name", SHIPPED)
@torch.no_grad()
def test_a_shipped_checkpoint_knows_its_text(name):
    path = ROOT / "checkpoints" / f"{name}.pt"
    if not path.exists():
        pytest.skip("the shipped model is not here")
    model, patcher = load_model(path)
    shape = PRESETS["reference"].model
    trained = {"block_size": model.config.block_size, "chain_width": model.config.chain_width}
    assert asdict(model.config) == {**asdict(shape), **trained} and trained["block_size"]
    assert len(known_openings(checkpoint.load(path))) == 8
    ids = torch.tensor([BOS, *encode(SHIPPED[name])])
    best = model(ids[None], patcher.closes(ids)[None])[0].argmax(-1)
    right = (best[:-1] == ids[1:]).float().mean()
    assert right > 0.4


def test_settings_that_are_gone_may_be_off(trained_file, tmp_path):
    """Older files have `reset_at_newline`: where it was on, the patches would be others now."""
    saved = checkpoint.load(trained_file)
    config = saved["patcher_config"]
    config.pop("reset_at_newline", None)
    path = tmp_path / "older.pt"
    saved["patcher_config"] = {**config, "reset_at_newline": False}
    checkpoint.save(path, saved)
    assert asdict(load_model(path)[1].config) == config
    saved["patcher_config"] = {**config, "reset_at_newline": True}
    checkpoint.save(path, saved)
    with pytest.raises(BadInput) as refused:
        load_model(path)
    said = str(refused.value)
    assert "reset_at_newline" in said and "train it again" in said and "\n" not in said


def test_a_model_remembers_nothing():
    """Nothing of model.py remembers a batch: what one text leaves behind moves no other."""
    model, patcher = make_models(7)
    ids = random_ids(40, 1)
    closes = patcher.closes(ids)[None]
    before = model(ids[None], closes)
    other = random_ids(60, 2)
    model(other[None], patcher.closes(other)[None])
    assert torch.equal(model(ids[None], closes), before)
    assert not list(model.buffers())
