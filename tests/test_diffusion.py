"""diffusion.py: who sees whom, what is hidden, what is lost, and generation against slow twins."""
import pytest
import torch

from conftest import make_models, random_ids
from data import BOS, EOS, MASK, PAD
from diffusion import Blocks, Recipe, Unmask, blt_d_logits, check_block_size, confidence, denoise, entropy_bounded, generate_bltd, make_blocks, masked_loss, one_step
from layers import sees
from stream import Sampling, Stream, ban
from terminal import BadInput


def text_and_blocks(model, patcher, n=60, recipe=Recipe(4, "any", 1.0, 0.5), seed=0):
    ids = random_ids(n + 1, seed)[None]
    closes = patcher.closes(ids[0])[None, :n]
    torch.manual_seed(seed)
    return ids, closes, make_blocks(ids, closes, recipe)


def test_mask_predicate_against_a_loop():
    """Clean rows are causal; a block sees the clean rows before its start, within the window, and all of itself."""
    rows = [(i, -1) for i in range(12)] + [(s + j, s) for s in (3, 4, 9) for j in range(4)]
    for window in (2, 5, 100):
        position, start = torch.tensor(rows).T
        got = sees(position[:, None], start[:, None], position[None], start[None], window)
        for q, (qp, qs) in enumerate(rows):
            for k, (kp, ks) in enumerate(rows):
                if qs < 0:
                    expected = ks < 0 and qp - window < kp <= qp
                else:
                    expected = (ks < 0 and qs - window <= kp < qs) or ks == qs
                assert got[q, k] == expected, (rows[q], rows[k], window)


@pytest.mark.parametrize("starts, rows", [("any", 1.0), ("patch", 0.0)])
def test_blocks_see_nothing_from_their_start_on(starts, rows):
    """Guards: block rows that could read the clean twin of the byte they must predict (100 % in training, 3.75 % after)."""
    model, patcher = make_models(0, window=24)
    ids, closes, blocks = text_and_blocks(model, patcher, recipe=Recipe(4, starts, rows, 0.5))
    _, logits = blt_d_logits(model, ids, closes, blocks)
    for change in (7, 20, 33, 59):
        changed = ids.clone()
        changed[0, change:] = random_ids(200, 5)[1:1 + 61 - change] + 30
        new_closes = patcher.closes(changed[0])[None, :60]
        moved = (blt_d_logits(model, changed, new_closes, blocks)[1] - logits).abs().amax(-1)[0] > 1e-12
        start = blocks.starts[0]
        assert not moved[start <= change].any(), "a later byte reached a block"
        assert moved[start == change + 1].all(), "the byte before the start should matter"


def test_training_layout_equals_generation_layout_and_ignores_what_follows():
    model, patcher = make_models(1, window=16, global_window=6)
    ids, closes, blocks = text_and_blocks(model, patcher, recipe=Recipe(5, "any", 1.0, 0.3))
    _, logits = blt_d_logits(model, ids, closes, blocks)
    for b in range(0, blocks.ids.shape[1], 5):
        start = int(blocks.starts[0, b])
        stream = Stream(model, patcher)
        stream.extend(ids[0, :start].tolist())
        alone = stream.decode(blocks.ids[0, b:b + 5].tolist())
        assert torch.allclose(alone, logits[0, b:b + 5], atol=1e-9)


def test_cached_drafting_equals_an_uncached_forward_with_rows_riding_along():
    model, patcher = make_models(2, window=16)
    ids, K = random_ids(80, 3), 6
    stream = Stream(model, patcher)
    stream.extend(ids[:50].tolist())
    stream.advance(ids[50:56].tolist())                      # a committed block, not decoded yet
    cells = [MASK, 110, MASK, MASK, 105, MASK]
    cached = stream.decode(cells)
    assert cached.shape[0] == 6 + K
    blocks = Blocks(torch.tensor([cells]), torch.arange(56, 56 + K)[None], torch.full((1, K), 56), None, None, None)
    clean, block = blt_d_logits(model, ids[None, :57], patcher.closes(ids[:56])[None], blocks)
    assert torch.allclose(cached[6:], block[0], atol=1e-9) and torch.allclose(cached[:6], clean[0, 50:], atol=1e-9)


def test_paper_recipe_starts_a_block_at_every_patch_but_the_first():
    model, patcher = make_models(0)
    ids, closes, blocks = text_and_blocks(model, patcher, recipe=Recipe(4, "patch", 0.0, 0.0))
    expected = [i + 1 for i, c in enumerate(closes[0].tolist()) if c]
    assert sorted(blocks.starts[0, ::4].tolist()) == expected
    assert (blocks.positions[0].view(-1, 4) - blocks.starts[0].view(-1, 4)).tolist() == [[0, 1, 2, 3]] * len(expected)


def test_blocks_hold_the_text_and_cells_past_its_end_stay_masked_without_loss():
    model, patcher = make_models(0)
    ids, _, blocks = text_and_blocks(model, patcher, recipe=Recipe(8, "any", 2.0, 0.0))
    outside = blocks.positions[0] > 60
    assert outside.any() and (blocks.ids[0][outside] == MASK).all() and (blocks.weight[0][outside] == 0).all() and not blocks.masked[0][outside].any()
    inside = ~outside
    assert torch.equal(blocks.targets[0][inside], ids[0][blocks.positions[0][inside]])
    hidden = blocks.masked[0]
    assert (blocks.ids[0][hidden] == MASK).all() and torch.equal(blocks.ids[0][inside & ~hidden], blocks.targets[0][inside & ~hidden])
    assert len(set(blocks.starts[0, ::8].tolist())) == blocks.ids.shape[1] // 8


def test_corruption_rate_and_weight_meet_their_expectation():
    ids, closes = torch.full((64, 513), 100), torch.ones(64, 512, dtype=torch.bool)
    torch.manual_seed(0)
    blocks = make_blocks(ids, closes, Recipe(8, "any", 1.0, 0.0, 0.1))
    inside = blocks.weight > 0
    assert blocks.masked[inside].float().mean().item() == pytest.approx(0.55, abs=0.01)     # mean of t on (0.1, 1)
    assert (blocks.weight * blocks.masked)[inside].mean().item() == pytest.approx(1.0, abs=0.03)
    assert 1 <= blocks.weight[inside].min() and blocks.weight.max() <= 10
    full = make_blocks(ids, closes, Recipe(8, "any", 1.0, 1.0))
    assert full.masked[full.weight > 0].all() and (full.ids == MASK).all() and set(full.weight.unique().tolist()) <= {0.0, 1.0}


def test_masked_loss_equals_a_slow_loop():
    model, patcher = make_models(3)
    ids, closes, blocks = text_and_blocks(model, patcher, recipe=Recipe(4, "any", 1.0, 0.4))
    _, logits = blt_d_logits(model, ids, closes, blocks)
    total, cells = 0.0, 0
    for j in range(blocks.ids.shape[1]):
        if blocks.positions[0, j] > 60:
            continue
        cells += 1
        if blocks.masked[0, j]:
            nats = -torch.log_softmax(logits[0, j].float(), -1)[ids[0, blocks.positions[0, j]]]
            total += nats.item() * blocks.weight[0, j].item()
    assert masked_loss(logits, blocks).item() == pytest.approx(total / cells, rel=1e-5)


def test_unmasking_rules():
    p = torch.tensor([[.9, .1, 0.], [.4, .35, .25], [.6, .4, 0.], [.99, .01, 0.]])
    masked = torch.tensor([True, True, True, False])
    assert confidence(p, masked, 0.5).tolist() == [True, False, True, False]
    assert confidence(p, masked, 1.1).tolist() == [True, False, False, False]  # one a step, never an open cell
    assert confidence(p, masked, 0.0).tolist() == masked.tolist()
    H = torch.special.entr(p).sum(-1)
    assert entropy_bounded(p, masked, 0.0).tolist() == [True, False, False, False]
    assert entropy_bounded(p, masked, H[0] + H[2] + 1e-4).tolist() == [True, False, True, False]
    assert entropy_bounded(p, masked, 1e9).tolist() == one_step(p, masked).tolist() == masked.tolist()


@pytest.mark.parametrize("unmask, steps", [(Unmask("confidence", 1.1), 6), (Unmask("confidence", 0.0), 1), (Unmask("entropy", 0.0), 6),
                                           (Unmask("entropy", 1e9), 1), (Unmask("one-step", None), 1)])
def test_denoising_starts_all_masked_and_takes_the_steps_its_threshold_says(unmask, steps):
    seen = []

    def decode_block(cells):
        seen.append(cells)
        return torch.randn(6, 260, generator=torch.Generator().manual_seed(len(seen)))

    ids, q = denoise(decode_block, 6, unmask, Sampling())
    assert len(seen) == steps and seen[0] == [MASK] * 6
    assert all(a.count(MASK) > b.count(MASK) for a, b in zip(seen, seen[1:]))
    assert not {MASK, BOS, PAD} & set(ids) and q.shape == (6, 260)


@pytest.mark.parametrize("unmask", [Unmask("confidence", 0.02), Unmask("entropy", 5.0), Unmask("one-step", None)])
def test_generation_equals_a_slow_twin_and_counts_its_passes(unmask):
    model, patcher = make_models(4, window=16, block_size=4)
    ran, steps = {"decoder": 0, "encoder": 0}, []
    for name in ran:
        getattr(model, name).register_forward_hook(lambda *_, name=name: ran.__setitem__(name, ran[name] + 1))
    made = generate_bltd(model, patcher, [110, 111], 42, 4, unmask, Sampling(ignore_eos=True), watch=lambda ids, masked: steps.append(sum(masked)))
    c = made.counters
    assert len(made.ids) == 42 and ran == {"decoder": c.decoder + c.prefill["decoder"], "encoder": c.encoder_global + c.prefill["encoder_global"]}
    assert c.decoder == len(steps) and c.rounds == 11 and c.encoder_global <= c.rounds and c.entropy == 10

    ids = [BOS, 110, 111]
    while len(ids) < 45:                                       # the slow twin: everything anew in every step
        cells, masked = torch.full((4,), MASK), torch.ones(4, dtype=torch.bool)
        while masked.any():
            text = torch.tensor([ids + [0]])
            blocks = Blocks(cells[None], torch.arange(len(ids), len(ids) + 4)[None], torch.full((1, 4), len(ids)), None, None, None)
            with torch.no_grad():
                logits = ban(blt_d_logits(model, text, patcher.closes(text[0, :-1])[None], blocks)[1][0].float(), Sampling(ignore_eos=True))
            pick = unmask(logits.softmax(-1), masked)
            cells, masked = torch.where(pick, logits.argmax(-1), cells), masked & ~pick
        ids += cells.tolist()
    assert made.ids == ids[3:45]


def test_eos_inside_a_block_ends_the_output_there():
    model, patcher = make_models(4, block_size=8)
    with torch.no_grad():
        model.decoder.head.weight[EOS] = model.decoder.head.weight[100] * 3
    made = generate_bltd(model, patcher, [], 600, 8, Unmask("one-step", None), Sampling(temperature=1.0))
    assert 0 < len(made.ids) < 600 and not {PAD, BOS, EOS, MASK} & set(made.ids)
    assert len(made.ids) <= 8 * made.counters.rounds


def test_blocks_larger_than_trained_are_refused():
    plain, _ = make_models(0)
    with pytest.raises(BadInput, match="block-size 8"):
        check_block_size(plain, 4)
    with pytest.raises(BadInput, match="up to 4 bytes, not 8"):
        check_block_size(make_models(0, block_size=4)[0], 8)


def test_blocks_cost_no_clean_logit():
    model, patcher = make_models(0)
    ids, closes, blocks = text_and_blocks(model, patcher)
    assert torch.allclose(blt_d_logits(model, ids, closes, blocks)[0], model(ids[:, :-1], closes), atol=1e-12)
