"""diffusion.py: what is hidden, what is lost, and generation against slow twins."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from conftest import count_passes, make_models, random_ids
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

import diffusion
from data import BOS, EOS, MASK, PAD, Crops, document_ids
from diffusion import (
    RECIPES,
    Blocks,
    Recipe,
    Unmask,
    chain_loss,
    chained_head,
    chained_nats,
    check_block_size,
    confidence,
    denoise,
    diffusion_loss,
    entropy_bounded,
    generate_bltd,
    make_blocks,
    one_step,
)
from generate import Sampling, ban, distribution
from layers import mask_of, sees
from stream import Stream
from support.quality import masked_accuracy
from support.show import Trace
from support.terminal import BadInput

ENDLESS = Sampling(ignore_eos=True)
DENSE = {"cells_per_byte": 1.0}  # enough blocks that a short text has several
RULES = [Unmask("confidence", 0.02), Unmask("entropy", 5.0), Unmask("one-step", None)]


def generators(n, seed=0):
    """A generator for each row of a batch."""
    return [torch.Generator().manual_seed(100 * seed + i) for i in range(n)]


def text_and_blocks(patcher, n=60, recipe=None, seed=0, rows=1):
    """-> ids (B, n + 1), closes (B, n) and blocks cut out of them."""
    recipe = recipe or Recipe(4, **DENSE)
    ids = torch.stack([random_ids(n + 1, seed + row) for row in range(rows)])
    closes = torch.stack([patcher.closes(row)[:n] for row in ids])
    return ids, closes, make_blocks(ids, closes, recipe, generators(rows, seed))


def block_logits(model, ids, closes, blocks):
    """One forward over text ids (B, N + 1) and blocks -> logits (B, N, V) and (B, P, V)."""
    logits = model(ids[:, :-1], closes, blocks)
    return logits[:, : closes.shape[1]], logits[:, closes.shape[1] :]


# ---- a block knows what was there before it


@pytest.mark.parametrize("starts, cells", [("any", 1.0), ("patch", 0.0)])
def test_blocks_see_nothing_from_their_start_on(starts, cells):
    """Guards: block rows that could read the clean twin of the byte they must predict.

    100 % right in training, 3.75 % after.
    """
    model, patcher = make_models(0, window=24)
    recipe = Recipe(4, starts, cells)
    ids, closes, blocks = text_and_blocks(patcher, recipe=recipe)
    _, logits = block_logits(model, ids, closes, blocks)
    for change in (7, 20, 33, 59):
        changed = ids.clone()
        changed[0, change:] = random_ids(200, 5)[1 : 1 + 61 - change] + 30
        new_closes = patcher.closes(changed[0])[None, :60]
        after = block_logits(model, changed, new_closes, blocks)[1]
        moved = (after - logits).abs().amax(-1)[0] > 1e-12
        start = blocks.starts[0]
        assert not moved[start <= change].any(), "a later byte reached a block"
        assert moved[start == change + 1].all(), "the byte before the start should matter"


def test_training_layout_equals_generation_layout_and_ignores_what_follows():
    model, patcher = make_models(1, window=16, global_window=6)
    recipe = Recipe(5, cells_per_byte=1.0, full_share=0.3)
    ids, closes, blocks = text_and_blocks(patcher, recipe=recipe)
    _, logits = block_logits(model, ids, closes, blocks)
    for b in range(0, blocks.ids.shape[1], 5):
        start = int(blocks.starts[0, b])
        stream = Stream(model, patcher)
        stream.extend(ids[0, :start].tolist())
        alone = stream.decode(block=blocks.ids[0, b : b + 5].tolist())
        assert torch.allclose(alone, logits[0, b : b + 5], atol=1e-9)


def test_cached_drafting_equals_an_uncached_forward_with_rows_riding_along():
    model, patcher = make_models(2, window=16)
    ids, K = random_ids(80, 3), 6
    stream = Stream(model, patcher)
    stream.extend(ids[:50].tolist())
    stream.advance(ids[50:56].tolist())  # a committed block, not decoded yet
    cells = [MASK, 110, MASK, MASK, 105, MASK]
    cached = stream.decode(block=cells)
    assert cached.shape[0] == 6 + K
    position, start = torch.arange(56, 56 + K)[None], torch.full((1, K), 56)
    blocks = Blocks(torch.tensor([cells]), position, start)
    closes = patcher.closes(ids[:56])[None]
    clean, block = block_logits(model, ids[None, :57], closes, blocks)
    assert torch.allclose(cached[6:], block[0], atol=1e-9)
    assert torch.allclose(cached[:6], clean[0, 50:], atol=1e-9)


def test_blocks_cost_no_clean_logit():
    model, patcher = make_models(0)
    ids, closes, blocks = text_and_blocks(patcher)
    clean = block_logits(model, ids, closes, blocks)[0]
    assert torch.allclose(clean, model(ids[:, :-1], closes), atol=1e-12)


# ---- where blocks start and what they hide


def test_paper_recipe_starts_a_block_at_every_patch_but_the_first():
    _, patcher = make_models(0)
    recipe = Recipe(4, **RECIPES["paper"])
    _, closes, blocks = text_and_blocks(patcher, recipe=recipe)
    expected = [i + 1 for i, c in enumerate(closes[0].tolist()) if c]
    assert sorted(blocks.starts[0, ::4].tolist()) == expected
    inside = blocks.positions[0].view(-1, 4) - blocks.starts[0].view(-1, 4)
    assert inside.tolist() == [[0, 1, 2, 3]] * len(expected)


def test_rows_with_fewer_patches_get_no_blocks_that_count():
    """A batch is as wide as its row of most patches; what fills the others up has no loss."""
    _, patcher = make_models(0)
    recipe = Recipe(4, **RECIPES["paper"])
    _, closes, blocks = text_and_blocks(patcher, recipe=recipe, rows=4)
    counts = closes.sum(1)
    assert counts.min() < counts.max() == blocks.starts.shape[1] // 4
    for row in range(4):
        wanted = blocks.weight[row, ::4] > 0
        starts = blocks.starts[row, ::4]
        assert wanted.sum() == counts[row]
        assert set(starts[wanted].tolist()) == {
            i + 1 for i, c in enumerate(closes[row].tolist()) if c
        }
        unwanted = blocks.weight[row].view(-1, 4)[~wanted]
        assert (unwanted == 0).all() and not blocks.masked[row].view(-1, 4)[~wanted].any()


def test_blocks_hold_the_text_and_cells_past_its_end_stay_masked_without_loss():
    _, patcher = make_models(0)
    recipe = Recipe(8, cells_per_byte=2.0, full_share=0.0)
    ids, _, blocks = text_and_blocks(patcher, recipe=recipe)
    outside = blocks.positions[0] > 60
    assert outside.any() and (blocks.ids[0][outside] == MASK).all()
    assert (blocks.weight[0][outside] == 0).all() and not blocks.masked[0][outside].any()
    inside, hidden = ~outside, blocks.masked[0]
    assert torch.equal(blocks.targets[0][inside], ids[0][blocks.positions[0][inside]])
    assert (blocks.ids[0][hidden] == MASK).all()
    shown = inside & ~hidden
    assert torch.equal(blocks.ids[0][shown], blocks.targets[0][shown])
    assert len(set(blocks.starts[0, ::8].tolist())) == blocks.ids.shape[1] // 8


def test_corruption_rate_and_weight_meet_their_expectation():
    ids, closes = torch.full((64, 513), 100), torch.ones(64, 512, dtype=torch.bool)
    recipe = Recipe(8, cells_per_byte=1.0, full_share=0.0, t_min=0.1, noise="block")
    blocks = make_blocks(ids, closes, recipe, generators(64))
    inside = blocks.weight > 0
    # The mean of t on (0.1, 1)
    assert blocks.masked[inside].float().mean().item() == pytest.approx(0.55, abs=0.01)
    weight = (blocks.weight * blocks.masked)[inside].mean().item()
    assert weight == pytest.approx(1.0, abs=0.03)
    assert blocks.weight[inside].min() >= 1 and blocks.weight.max() <= 10
    recipe = Recipe(8, cells_per_byte=1.0, full_share=1.0)
    full = make_blocks(ids, closes, recipe, generators(64))
    assert full.masked[full.weight > 0].all() and (full.ids == MASK).all()
    assert set(full.weight.unique().tolist()) <= {0.0, 1.0}


def levels(recipe, rows=16):
    """The noise levels t of the blocks of each crop of a batch -> list of lists."""
    ids, closes = torch.full((rows, 129), 100), torch.ones(rows, 128, dtype=torch.bool)
    blocks = make_blocks(ids, closes, recipe, generators(rows))
    K = recipe.block_size
    return [[1 / w for w in row[::K].tolist() if w] for row in blocks.weight]


def test_noise_by_sequence_is_one_level_for_all_blocks_of_a_crop():
    """The paper: t ~ U(0, 1) once a sequence. Crops have levels of their own."""
    by_crop = levels(Recipe(4, **RECIPES["paper"]), rows=200)
    assert all(max(row) - min(row) < 1e-5 and len(row) == 128 for row in by_crop)
    t = torch.tensor([row[0] for row in by_crop])
    assert len(set(t.tolist())) == 200 and t.min() >= 0.001 and t.max() <= 1
    assert t.mean().item() == pytest.approx(0.5, abs=0.07)
    assert (t < 0.25).float().mean().item() == pytest.approx(0.25, abs=0.1)


def test_noise_by_block_is_another_level_for_each():
    for row in levels(Recipe(4, cells_per_byte=1.0, full_share=0.0, noise="block")):
        assert len({round(t, 5) for t in row}) > len(row) - 3
    shares = [sum(t > 0.9999 for t in row) / len(row) for row in levels(Recipe(4, **DENSE))]
    assert sum(shares) / len(shares) == pytest.approx(Recipe(4).full_share, abs=0.1)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_same_crop_in_another_batch_gets_the_same_corruption(recipe):
    """Guards: corruption from a generator that had moved on with the batches before.

    The blocks of a crop depend on (seed, index) alone, not on its neighbours or its place.
    """
    _, patcher = make_models(0)
    documents = [document_ids(bytes(random_ids(900, s)[1:] - 4)) for s in range(2)]
    closes = torch.cat([patcher.closes(ids) for ids in documents])
    recipe = Recipe(4, **RECIPES[recipe])

    def blocks_of(first, size, seed=5):
        """A dict from the number of a crop to its blocks that count."""
        crops = Crops(torch.cat(documents), closes, 64, seed)
        ids, closed = crops.batch(first, size)
        blocks = make_blocks(ids, closed, recipe, crops.generators(first, size))
        found = {}
        for row in range(size):
            cells = list(zip(*(part[row].tolist() for part in blocks)))
            every = [tuple(cells[i : i + 4]) for i in range(0, len(cells), 4)]
            found[first + row] = {block for block in every if block[0][5]}  # its weight
        return found

    together = blocks_of(0, 12)
    for first, size in ((0, 1), (3, 1), (11, 1), (2, 5)):
        for index, blocks in blocks_of(first, size).items():
            assert blocks == together[index] and blocks, index
    assert blocks_of(3, 1, seed=6)[3] != together[3]


# ---- recipes


@pytest.mark.parametrize("starts, cells", [("any", 0.5), ("any", 2.0), ("patch", 0.0)])
def test_cells_are_as_many_as_are_made(starts, cells):
    """The estimate against blocks really cut out of a long text."""
    _, patcher = make_models(0)
    recipe = Recipe(8, starts, cells, after=0.0)
    _, closes, blocks = text_and_blocks(patcher, n=800, recipe=recipe)
    mean = 800 / int(closes.sum())
    assert blocks.ids.shape[1] / 800 == pytest.approx(cells or 8 / mean, rel=0.02)


def test_a_block_at_every_byte_is_refused():
    """Guards: --cells-per-byte 0 with starts anywhere put a block at every byte."""
    with pytest.raises(BadInput, match="--cells-per-byte 0"):
        Recipe(8, "any", 0.0)
    assert Recipe(8, "patch", 0.0).cells_per_byte == 0
    assert Recipe(0, "any", 0.0).block_size == 0  # no blocks at all


def test_recipes_are_what_they_say():
    """The paper's: every patch start, one t, all of (0, 1), λ = 1, blocks from the first step."""
    paper = Recipe(8, **RECIPES["paper"])
    told = paper.starts, paper.noise, paper.mask_weight, paper.after, paper.full_share
    assert told == ("patch", "sequence", 1.0, 0.0, 0.0) and paper.t_min <= 0.001
    assert Recipe(8, **RECIPES["ours"]) == Recipe(8)


# ---- the loss


def slow_loss(model, patcher, ids, closes, blocks, mask_weight):
    """Eq. 5-7 in a loop: every clean byte once, every hidden cell over its t.

    Each block stands alone behind the text before its start.
    """
    nats = clean = 0.0
    rows, N = closes.shape
    K = int((blocks.starts[0] == blocks.starts[0, 0]).sum())
    for row in range(rows):
        text = ids[row]
        logits = model(text[None, :-1], closes[row][None])[0]
        for i in range(N):
            clean -= logits[i].float().log_softmax(-1)[text[i + 1]].item()
        for first in range(0, blocks.ids.shape[1], K):
            t = 1 / blocks.weight[row, first].item() if blocks.weight[row, first] else None
            start = int(blocks.starts[row, first])
            cells = blocks.ids[row, first : first + K]
            alone = Blocks(cells[None], start + torch.arange(K)[None], torch.full((1, K), start))
            logits = model(text[None, :start], closes[row][None, :start], alone)[0, start:]
            for j in range(K):
                if t and start + j <= N and cells[j] == MASK:
                    p = logits[j].float().log_softmax(-1)[text[start + j]].item()
                    nats -= p / t
    return (clean + mask_weight * nats) / (rows * N), clean / (rows * N)


@pytest.mark.parametrize("name, K", [("ours", 4), ("ours", 7), ("paper", 4), ("paper", 8)])
@torch.no_grad()
def test_the_loss_equals_a_slow_loop_over_the_papers_equations(name, K):
    """Both recipes, three crops with unlike numbers of patches, blocks past the end of the text.

    Both sums over the same number of clean bytes.
    """
    model, patcher = make_models(3)
    recipe = Recipe(K, **RECIPES[name])
    ids, closes, blocks = text_and_blocks(patcher, n=40, recipe=recipe, seed=7, rows=3)
    assert blocks.masked.any(1).all() and (blocks.positions > 40).any()
    for mask_weight in (recipe.mask_weight, 0.0, 3.0):
        weighted = replace(recipe, mask_weight=mask_weight)
        loss, clean = diffusion_loss(model, ids, closes, blocks, weighted)
        by_hand, clean_by_hand = slow_loss(model, patcher, ids, closes, blocks, mask_weight)
        assert loss.item() == pytest.approx(by_hand, rel=1e-5)
        assert clean.item() == pytest.approx(clean_by_hand, rel=1e-5)


def test_the_loss_of_a_batch_made_by_hand():
    """No randomness: two blocks of two cells, t of 0.5 and 0.25, in a text of four bytes."""
    model, patcher = make_models(0)
    ids = torch.tensor([[BOS, 104, 105, 106, 107]])
    closes = torch.tensor([[True, False, True, False]])
    blocks = Blocks(
        ids=torch.tensor([[MASK, 105, MASK, MASK]]),
        positions=torch.tensor([[1, 2, 4, 5]]),
        starts=torch.tensor([[1, 1, 4, 4]]),
        targets=torch.tensor([[104, 105, 107, PAD]]),
        masked=torch.tensor([[True, False, True, False]]),
        weight=torch.tensor([[2.0, 2.0, 4.0, 0.0]]),
    )
    logits = model(ids[:, :-1], closes, blocks)[0].log_softmax(-1)
    clean = -sum(logits[i, id_] for i, id_ in enumerate((104, 105, 106, 107))) / 4
    hidden = -(2 * logits[4, 104] + 4 * logits[6, 107]) / 4
    for weight in (1.0, 2.5):
        loss, only_clean = diffusion_loss(model, ids, closes, blocks, Recipe(2, mask_weight=weight))
        assert loss.item() == pytest.approx((clean + weight * hidden).item(), rel=1e-6)
        assert only_clean.item() == pytest.approx(clean.item(), rel=1e-6)


# ---- the chained head


@torch.no_grad()
def test_the_chained_loss_equals_a_slow_loop():
    """Wholly masked blocks alone, each cell behind the true bytes before it; the term adds to the
    others with the same weight.
    """
    model, patcher = make_models(3, chain_width=6)
    decoder, K = model.decoder, 4
    recipe = Recipe(K, full_share=0.5, cells_per_byte=2.0, mask_weight=2.0)
    ids, closes, blocks = text_and_blocks(patcher, n=40, recipe=recipe, seed=7, rows=2)
    rows, nats, whole = model.last_rows(ids[:, :-1], closes, blocks)[:, 40:], 0.0, 0
    for b in range(2):
        for c in range(0, blocks.ids.shape[1], K):
            if not blocks.masked[b, c : c + K].all():
                continue
            start, whole = int(blocks.starts[b, c]), whole + 1
            state = torch.zeros(1, 1, 6, dtype=torch.float64)
            for j in range(K):
                x = torch.cat([rows[b, c + j], decoder.chain.embed(ids[b, start + j - 1])])
                out, state = decoder.chain.gru(x[None, None], state)
                logits = decoder.head(rows[b, c + j] + decoder.chain.out(out[0, 0]))
                nats -= logits.log_softmax(-1)[ids[b, start + j]].item()
    assert 3 < whole < blocks.ids.shape[1] // K * 2
    assert chained_nats(decoder, rows, ids, blocks, K).item() == pytest.approx(nats, rel=1e-5)
    loss, _ = diffusion_loss(model, ids, closes, blocks, recipe)
    without, _ = slow_loss(model, patcher, ids, closes, blocks, 2.0)
    assert loss.item() == pytest.approx(without + 2 * nats / 80, rel=1e-5)
    alone, _ = chain_loss(model, ids, closes, blocks, recipe)
    assert alone.item() == pytest.approx(nats / (K * whole), rel=1e-5)


@pytest.mark.parametrize("seed, K, width", [(0, 1, 6), (1, 4, 6), (2, 8, 20)])
def test_cells_drawn_one_by_one_are_those_of_the_module(seed, K, width):
    """The head's products taken apart and put in advance, against nn.GRU over the whole block."""
    model, _ = make_models(seed, chain_width=width)
    decoder = model.decoder
    rows = torch.randn(K, 32, dtype=torch.float64)
    for sampling in (Sampling(0.9, 0.8), Sampling(1.0, ignore_eos=True), Sampling()):
        ids, q = chained_head(decoder)(rows, 110, sampling)
        before = torch.tensor([[110, *ids[:-1]]])
        with torch.no_grad():
            logits = decoder.head(decoder.chain(rows[None], before))[0]
        p = distribution(logits, sampling)
        assert torch.allclose(q, p, atol=1e-12)
        if sampling.temperature:
            assert (q[range(K), ids] > 0).all()
        else:
            assert ids == p.argmax(-1).tolist()


def test_a_chained_draft_stops_where_it_is_unsure():
    """Behind the first cell at which the probabilities together fall below the threshold."""
    model, _ = make_models(1, chain_width=6)
    rows = torch.randn(8, 32, dtype=torch.float64)
    draw_cells, lengths = chained_head(model.decoder), []
    whole, _ = draw_cells(rows, 110, Sampling())
    with torch.no_grad():
        before = torch.tensor([[110, *whole[:-1]]])
        logits = ban(model.decoder.head(model.decoder.chain(rows[None], before))[0], Sampling())
    sure = logits.softmax(-1).amax(-1).cumprod(0)
    for threshold in (0.0, *(sure * 1.01).tolist()):
        ids, _ = draw_cells(rows, 110, Sampling(), threshold)
        assert ids == whole[: len(ids)]
        assert len(ids) == min(8, 1 + int((sure >= threshold).sum()))
        lengths.append(len(ids))
    assert lengths == [8, 1, 2, 3, 4, 5, 6, 7, 8]
    ids, q = draw_cells(rows, 110, Sampling(1.0, seed=3), 0.5)
    assert len(q) == len(ids) < 8


def test_what_is_drawn_is_what_q_says(monkeypatch):
    """Pairs of cells over three bytes, many times, against the product of their q."""
    model, _ = make_models(4, chain_width=6)
    decoder = model.decoder
    some, rows = [100, 101, 102], torch.randn(2, 32, dtype=torch.float64)
    sampling, counts, expected, trials = Sampling(2.0, seed=3), Counter(), {}, 2000

    def of_three(logits, sampling):
        others = torch.full((260,), -math.inf).index_fill(0, torch.tensor(some), 0.0)
        return distribution(logits + others, sampling)

    monkeypatch.setattr(diffusion, "distribution", of_three)
    draw_cells = chained_head(decoder)
    for _ in range(trials):
        ids, q = draw_cells(rows, 99, sampling)
        counts[tuple(ids)] += 1
        p = expected.setdefault(tuple(ids), (q[0, ids[0]] * q[1, ids[1]]).item())
        assert p == pytest.approx((q[0, ids[0]] * q[1, ids[1]]).item())
    assert len(expected) == 9 and sum(expected.values()) == pytest.approx(1.0)
    seconds = {pair[0]: q for pair, q in expected.items() if pair[1] == 100}
    firsts = {a: sum(expected[a, b] for b in some) for a in some}
    shares = [seconds[a] / firsts[a] for a in some]
    assert max(shares) - min(shares) > 0.01, "the second cell should depend on the first"
    chi_square = sum((counts[k] - p * trials) ** 2 / (p * trials) for k, p in expected.items())
    assert chi_square < 8 + 4 * 16**0.5, "beyond four standard deviations"


def test_a_chained_block_costs_one_pass_and_its_cells():
    model, patcher = make_models(1, block_size=8, chain_width=6)
    how = {"block_size": 4, "unmask": Unmask("chained", None), "sampling": ENDLESS}
    made = generate_bltd(model, patcher, [100, 104], 24, **how)
    c, size = made.counters, model.sizes()
    assert c.decoder == c.rounds == 6 and c.chain == 24
    head = sum(p.numel() for p in model.decoder.chain.parameters())
    assert size["chain"] == head > 0
    together = size["encoder"] + size["global"]
    by_hand = 2 * (6 * size["decoder"] + c.encoder_global * together + 24 * head) / 1e9
    assert made.gigabytes() == pytest.approx(by_hand)
    assert sum(size.values()) == sum(p.numel() for p in model.parameters())


def test_a_model_without_a_chained_head_says_how_to_get_one():
    model, patcher = make_models(1, block_size=8)
    with pytest.raises(BadInput, match="no chained head.*--recipe chain"):
        generate_bltd(model, patcher, [], 4, block_size=4, unmask=Unmask("chained", None))


# ---- unmasking


def test_unmasking_rules():
    p = torch.tensor([[0.9, 0.1, 0.0], [0.4, 0.35, 0.25], [0.6, 0.4, 0.0], [0.99, 0.01, 0.0]])
    masked = torch.tensor([True, True, True, False])
    assert confidence(p, masked, 0.5).tolist() == [True, False, True, False]
    # One a step, never an open cell
    assert confidence(p, masked, 1.1).tolist() == [True, False, False, False]
    assert confidence(p, masked, 0.0).tolist() == masked.tolist()
    H = torch.special.entr(p).sum(-1)
    assert entropy_bounded(p, masked, 0.0).tolist() == [True, False, False, False]
    assert entropy_bounded(p, masked, H[0] + H[2] + 1e-4).tolist() == [True, False, True, False]
    everything = entropy_bounded(p, masked, 1e9).tolist()
    assert everything == one_step(p, masked).tolist() == masked.tolist()


@pytest.mark.parametrize(
    "unmask, steps",
    [
        (Unmask("confidence", 1.1), 6),
        (Unmask("confidence", 0.0), 1),
        (Unmask("entropy", 0.0), 6),
        (Unmask("entropy", 1e9), 1),
        (Unmask("one-step", None), 1),
    ],
)
def test_denoising_starts_all_masked_and_takes_the_steps_its_threshold_says(unmask, steps):
    seen, watched = [], []

    class Spy(Trace):
        def step(self, ids, masked):
            watched.append((ids, masked))

    def decode_block(cells):
        seen.append(cells)
        return torch.randn(6, 260, generator=torch.Generator().manual_seed(len(seen)))

    ids, q = denoise(decode_block, 6, unmask, Sampling(), Spy())
    assert len(seen) == steps and seen[0] == [MASK] * 6
    assert all(a.count(MASK) > b.count(MASK) for a, b in zip(seen, seen[1:]))
    assert not {MASK, BOS, PAD} & set(ids) and q.shape == (6, 260)
    # The trace sees what each step left.
    assert [ids for ids, _ in watched] == seen[1:] + [ids]
    for cells, masked in watched:
        assert [id_ == MASK for id_ in cells] == masked


# ---- generation


@pytest.mark.parametrize("rounds", ["ours", "paper"])
@pytest.mark.parametrize("unmask", RULES, ids=lambda u: u.rule)
@pytest.mark.parametrize("prompt", [[], [110, 111]], ids=["empty", "prompt"])
def test_generation_equals_a_slow_twin_and_counts_its_passes(rounds, unmask, prompt):
    """The paper's rounds: a block reads the open patch as if it ended, at one call a block."""
    model, patcher = make_models(4, window=16, block_size=4)
    ran, steps, budget = count_passes(model, patcher), [], 42

    class Spy(Trace):
        def step(self, ids, masked):
            steps.append(sum(masked))

    made = generate_bltd(
        model,
        patcher,
        prompt,
        budget,
        block_size=4,
        unmask=unmask,
        rounds=rounds,
        sampling=ENDLESS,
        trace=Spy(),
    )
    c, prefill = made.counters, made.counters.prefill
    assert ran["decoder"] == c.decoder + prefill["decoder"] and c.decoder == len(steps)
    assert ran["encoder"] == ran["globe"] == c.encoder_global + prefill["encoder_global"]
    assert ran["entropy"] == c.entropy + prefill["entropy"]
    assert len(made.ids) == budget and c.rounds == math.ceil(budget / 4) == 11
    if rounds == "paper":
        assert c.encoder_global == c.rounds == c.entropy
    else:
        assert c.encoder_global <= c.rounds and c.entropy == 10

    ids = [BOS, *prompt]
    while len(ids) < budget + 1 + len(prompt):  # the slow twin: everything anew in every step
        cells, masked = torch.full((4,), MASK), torch.ones(4, dtype=torch.bool)
        text = torch.tensor(ids)
        closes = patcher.closes(text)
        if rounds == "paper":
            closes[-1] = True
        position, start = len(ids) + torch.arange(4)[None], torch.full((1, 4), len(ids))
        while masked.any():
            blocks = Blocks(cells[None], position, start)
            with torch.no_grad():
                logits = model(text[None], closes[None], blocks)[0, -4:]
            logits = ban(logits.float(), ENDLESS)
            pick = unmask(logits.softmax(-1), masked)
            cells, masked = torch.where(pick, logits.argmax(-1), cells), masked & ~pick
        ids += cells.tolist()
    assert made.ids == ids[1 + len(prompt) :][:budget]


def test_the_papers_blocks_differ_from_ours():
    """The open patch's latent matters: else the tests of the paper's rounds would show nothing."""
    model, patcher = make_models(4, window=16, block_size=4, mean=6.0)
    given = dict(block_size=4, unmask=Unmask("one-step", None), sampling=ENDLESS)
    ours, paper = (
        generate_bltd(model, patcher, [], 60, rounds=rounds, **given).ids
        for rounds in ("ours", "paper")
    )
    assert ours != paper


@pytest.mark.parametrize("rounds", ["ours", "paper"])
def test_eos_inside_a_block_ends_the_output_there(rounds):
    model, patcher = make_models(4, block_size=8)
    with torch.no_grad():
        model.decoder.head.weight[EOS] = model.decoder.head.weight[100] * 3
    sampling, emitted = Sampling(temperature=1.0), []
    given = dict(block_size=8, unmask=Unmask("one-step", None), rounds=rounds)
    made = generate_bltd(model, patcher, [], 600, sampling=sampling, emit=emitted.extend, **given)
    assert 0 < len(made.ids) < 600 and not {PAD, BOS, EOS, MASK} & set(made.ids)
    assert len(made.ids) <= 8 * made.counters.rounds and emitted == made.ids


def test_blocks_larger_than_trained_are_refused():
    plain, _ = make_models(0)
    with pytest.raises(BadInput, match="block-size 8"):
        check_block_size(plain, 4)
    trained, patcher = make_models(0, block_size=4)
    with pytest.raises(BadInput, match="up to 4 bytes, not 8"):
        check_block_size(trained, 8)
    with pytest.raises(BadInput, match="up to 4 bytes, not 8"):
        generate_bltd(trained, patcher, [], 9, block_size=8, unmask=Unmask("one-step", None))
    check_block_size(trained, 3)


def test_masked_accuracy_against_a_slow_loop():
    """As in generation: a wholly masked block behind the end of the text."""
    model, patcher = make_models(2, block_size=4)
    documents = [random_ids(90, s) for s in range(2)]
    accuracy, bits = masked_accuracy(model, patcher, documents, 4, stride=20)
    hits, losses = torch.zeros(4), torch.zeros(4)
    for ids in documents:
        for start in (20, 40, 60, 80):
            cells, positions = torch.full((1, 4), MASK), start + torch.arange(4)[None]
            blocks = Blocks(cells, positions, torch.full((1, 4), start))
            closes = patcher.closes(ids[:start])[None]
            with torch.no_grad():
                logits = model(ids[None, :start], closes, blocks)[0, start:].float()
            truth = ids[start : start + 4]
            hits += logits.argmax(-1) == truth
            losses -= logits.log_softmax(-1)[range(4), truth]
    assert accuracy == pytest.approx((hits / 8).tolist())
    assert bits == pytest.approx((losses / 8 / math.log(2)).tolist(), rel=1e-5)


# ---- run


def test_it_shows_blocks_and_what_they_hide(trained_file, capsys):
    diffusion.main(["--text", "def main():", "--checkpoint", str(trained_file)])
    out = capsys.readouterr().out
    assert "blocks of K = 4" in out and "start 1, t" in out and "░" in out


# ---- FlexAttention, which GPUs use


@pytest.mark.parametrize("starts", ["any", "patch"])
@pytest.mark.parametrize("seed", range(2))
def test_blocks_of_flex_attention_are_the_dense_mask(starts, seed, monkeypatch):
    """A GPU asks the rule block by block. Here the same, uncompiled, against the dense mask."""
    model, patcher = make_models(seed, block_size=4)
    rows = [random_ids(61, seed + i) for i in range(2)]
    ids, closes = torch.stack(rows), torch.stack([patcher.closes(row) for row in rows])[:, :-1]
    recipe = Recipe(4, starts=starts, cells_per_byte=2.0)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(2)]
    blocks = make_blocks(ids, closes, recipe, generators)
    made = []

    def flexible(rule, B, N, S, device):
        made.append(create_block_mask(rule, B, None, N, S, device))
        return made[-1]

    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        dense = model.last_rows(ids[:, :-1], closes, blocks)
        monkeypatch.setattr("model.mask_of", flexible)
        flex = model.last_rows(ids[:, :-1], closes, blocks)
    assert len(made) == 1 and isinstance(made[0], BlockMask)
    assert torch.allclose(flex, dense, rtol=1e-9, atol=1e-9) and dense.dtype == torch.float64


def test_the_blocks_of_a_mask_need_little_memory():
    """A dense mask of every patch start grows with the square of the text, FlexAttention's hardly.

    Its rule is asked for 128 x 128 scores at once, and remembered is which of those are needed.
    """
    N, K = 512, 8
    clean, starts = torch.arange(N), torch.arange(4, N - K, 4)
    positions = torch.cat([clean, (starts[:, None] + torch.arange(K)).flatten()])[None]
    starts = torch.cat([torch.full((N,), -1), starts.repeat_interleave(K)])[None]

    def rule(b, h, query, key):
        of_query, of_key = ((positions[b, i], starts[b, i]) for i in (N + query, key))
        return sees(*of_query, *of_key, 64)

    P, S = positions.shape[1] - N, positions.shape[1]
    dense = mask_of(rule, 1, P, S, torch.device("cpu"))
    blocks = create_block_mask(rule, 1, None, P, S, device="cpu")
    assert dense.shape == (1, 1, P, S) and blocks.shape == (1, 1, P, S)
    kept = [x for x in blocks.as_tuple() if isinstance(x, torch.Tensor)]
    assert sum(x.nbytes for x in kept) < dense.nbytes / 100
    assert blocks.sparsity() > 50
