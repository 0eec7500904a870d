"""model.py: sizes, causality, and each vectorised piece against a loop."""
import pytest
import torch

from conftest import make_models, random_ids
from data import PAD
from layers import attend, attend_window, rotary, rotate, sees
from model import BLT, HASH_PRIME, LEAD, NGRAMS, PRESETS, latent_read, ngram_rows, preset, running_max
from terminal import BadInput
from train import next_byte_loss


@pytest.mark.parametrize("name, encoder, globe, decoder", [("blt-1b", 19e6, 1.28e9, 160e6), ("blt-3b", 26e6, 2.82e9, 160e6)])
def test_sizes_are_the_papers(name, encoder, globe, decoder):
    with torch.device("meta"):
        sizes = BLT(PRESETS[name]).sizes()
    assert sizes["encoder"] == pytest.approx(encoder, rel=0.03)
    assert sizes["global"] == pytest.approx(globe, rel=0.03)
    assert sizes["decoder"] == pytest.approx(decoder, rel=0.03)
    assert sizes["hash_tables"] == 6 * 500002 * 1024


def test_unknown_preset_is_refused():
    with pytest.raises(BadInput, match="nano"):
        preset("huge")


@pytest.mark.parametrize("seed, max_patch, window", [(0, 8, 24), (1, 4, 100), (2, 1, 7)])
def test_no_byte_moves_an_earlier_logit(seed, max_patch, window):
    """Guards: bytes that read their own, unfinished patch's latent. The byte itself must move something, though."""
    model, patcher = make_models(seed, window=window, max_patch=max_patch)
    ids = random_ids(60, seed)
    logits = model(ids[None], patcher.closes(ids)[None])[0]
    for position in (1, 2, 13, 30, 47, 59):
        changed = ids.clone()
        changed[position] = 4 + 200
        moved = (model(changed[None], patcher.closes(changed)[None])[0] - logits).abs().amax(-1) > 1e-12
        assert not moved[:position].any() and moved[position]


def test_a_batch_equals_its_rows_one_by_one():
    model, patcher = make_models(5)
    rows = torch.stack([random_ids(70, s) for s in range(4)])
    closes = torch.stack([patcher.closes(row) for row in rows])
    assert len(set(closes.sum(1).tolist())) > 1, "rows should differ in their number of patches"
    together = model(rows, closes)
    for row, c, logits in zip(rows, closes, together):
        assert torch.allclose(model(row[None], c[None])[0], logits, atol=1e-11)


def test_latent_read_is_the_last_closed_patch():
    closes = torch.tensor([[True, False, False, True, True, False, False]])
    assert latent_read(closes).tolist() == [[0, 0, 0, 1, 2, 2, 2]]


def test_running_max_and_ngram_rows_against_loops():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 40, 3, generator=generator)
    closes = torch.rand(2, 40, generator=generator) < 0.3
    own = closes.long().cumsum(1) - closes.long()
    got = running_max(x, own, 64)
    for b in range(2):
        for i in range(40):
            mine = [x[b, j] for j in range(i + 1) if own[b, j] == own[b, i]]
            assert torch.equal(got[b, i], torch.stack(mine).amax(0))
    ids = random_ids(20, 1)
    rows = ngram_rows(torch.cat([torch.full((LEAD,), PAD), ids])[None], 97)[0]
    for i in range(20):
        for table, n in enumerate(NGRAMS):
            gram = ([PAD] * LEAD + ids.tolist())[i + LEAD + 1 - n:i + LEAD + 1]
            exact = sum(g * HASH_PRIME ** p for p, g in enumerate(gram))
            wrapped = (exact + 2 ** 63) % 2 ** 64 - 2 ** 63
            assert rows[i, table].item() == wrapped % 97 + table * 97


@pytest.mark.parametrize("n, window", [(5, 8), (8, 8), (21, 8), (64, 16), (33, 1)])
def test_windowed_attention_equals_a_masked_one(n, window):
    q, k, v = torch.randn(3, 2, 3, n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(n)).unbind(0)
    row, clean = torch.arange(n), torch.full((n,), -1)
    mask = sees(row[:, None], clean[:, None], row[None], clean[None], window)
    assert mask.tolist() == [[i - window < j <= i for j in range(n)] for i in range(n)]
    assert torch.allclose(attend_window(q, k, v, window), attend(q, k, v, mask), atol=1e-12)


def test_rope_depends_on_distance_alone_even_far_out():
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind(0)
    score = lambda i, j: (rotate(q, rotary(torch.tensor([i]), 16, 500000.0, torch.float64)) *
                          rotate(k, rotary(torch.tensor([j]), 16, 500000.0, torch.float64))).sum().item()
    assert score(7, 3) == pytest.approx(score(1_000_007, 1_000_003), abs=1e-9) and score(7, 3) != pytest.approx(score(7, 4), abs=1e-3)


def test_every_target_position_has_a_loss():
    """Guards: the last row of every window was never supervised."""
    logits = torch.randn(2, 9, 260, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ids = torch.randint(4, 260, (2, 10))
    next_byte_loss(logits, ids).backward()
    assert (logits.grad.abs().sum(-1) > 0).all()
    before = next_byte_loss(logits, ids)
    for position in range(1, 10):
        changed = ids.clone()
        changed[0, position] = (ids[0, position] + 1 - 4) % 256 + 4
        assert next_byte_loss(logits, changed) != before
