"""diffusion.py: what is hidden, what is lost, and generation against slow twins."""

import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import (
    DEVICE,
    FAST,
    count_passes,
    fast_of,
    make_models,
    plain_of,
    random_ids,
    tensor_of,
)
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

import generate as generating
from bandwidth import gigabytes_of
from data import BOS, EOS, MASK, PAD, Crops, document_ids
from diffusion import (
    REJECTED,
    UNMASK,
    Corrupted,
    Unmask,
    chained_loss,
    confidence,
    denoise,
    entropy_bounded,
    fill_block,
    generate_bltd,
    losses_of,
    make_blocks,
    next_byte_nats,
    verifier,
)
from fast.fixed import FixedDecoder, drawn, of_host
from generate import Prefix, Sampling, ban, distribution
from layers import CLEAN, Rows, mask_of, sees
from measure import ideas
from measure.quality import masked_accuracy
from model import Blocks
from support.checkpoint import check_block_size
from support.generation import Counters, Watch
from support.presets import RECIPES, Recipe
from support.terminal import BadInput
from train import chain_loss

ENDLESS = Sampling(ignore_eos=True)
DENSE = {"cells_per_byte": 1.0}  # enough blocks that a short text has several
DRAFTS = {"draft_weight": 0.5, "draft_rows_per_byte": 1.0}  # blocks of draft rows beside them
RULES = [Unmask("confidence", 0.02), Unmask("entropy", 5.0), Unmask("one-step", None)]


class Recorder(Watch):
    """Remembers the steps and bytes that it is told."""

    def __init__(self):
        self.steps = []
        self.written = []

    def step(self, ids, masked):
        self.steps.append((ids, masked))

    def bytes(self, ids):
        self.written += ids


def generators(n, seed=0):
    """A generator for each row of a batch."""
    return [torch.Generator().manual_seed(100 * seed + i) for i in range(n)]


def text_and_blocks(patcher, n=60, recipe=None, seed=0, rows=1):
    """-> ids (B, n + 1), closes (B, n) and Corrupted blocks cut out of them."""
    recipe = recipe or Recipe(4, **DENSE)
    ids = torch.stack([random_ids(n + 1, seed + row) for row in range(rows)])
    closes = torch.stack([patcher.closes(row)[:n] for row in ids])
    return ids, closes, make_blocks(ids, closes, recipe, generators(rows, seed))


def rows_of_a_block(recipe):
    """Cells, and the draft row in front of them where there is one."""
    return recipe.block_size + (recipe.draft_weight > 0)


@torch.no_grad()
def block_logits(model, ids, closes, blocks):
    """One forward over text ids (B, N + 1) and blocks -> logits (B, N, V) and (B, P, V)."""
    logits = model(ids[:, :-1], closes, blocks)
    return logits[:, : closes.shape[1]], logits[:, closes.shape[1] :]


def each_block(corrupted, width):
    """(number of the row of the batch, first and last + 1 of its P) of every block."""
    B, P = corrupted.place.shape
    return [(b, first, first + width) for b in range(B) for first in range(0, P, width)]


# ---- a block knows what was there before it


@pytest.mark.parametrize("starts, cells", [("any", 1.0), ("patch", 0.0)])
@pytest.mark.parametrize("drafts", [{}, DRAFTS], ids=["cells", "draft rows"])
def test_blocks_see_nothing_of_the_text_from_their_start_on(starts, cells, drafts):
    """Guards: block rows that could read the clean twin of the byte they must predict.

    100 % right in training, 3.75 % after.
    """
    model, patcher = make_models(0, window=24)
    recipe = Recipe(4, starts, cells, **drafts)
    ids, closes, corrupted = text_and_blocks(patcher, recipe=recipe)
    blocks = corrupted.blocks
    _, logits = block_logits(model, ids, closes, blocks)
    for change in (7, 20, 33, 59):
        changed = ids.clone()
        changed[0, change:] = random_ids(200, 5)[1 : 1 + 61 - change] + 30
        new_closes = patcher.closes(changed[0])[None, :60]
        _, after = block_logits(model, changed, new_closes, blocks)
        moved = (after - logits).abs().amax(-1)[0] > 1e-12
        start = blocks.starts[0]
        assert not moved[start <= change].any(), "a later byte reached a block"
        assert moved[start == change + 1].all(), "the byte before the start should matter"


def test_draft_rows_see_nothing_that_stands_behind_them_in_their_block():
    """Cells see the draft row before them and each other; no draft row sees its own answer."""
    model, patcher = make_models(0, window=24)
    recipe = Recipe(4, **DENSE, **DRAFTS)
    ids, closes, corrupted = text_and_blocks(patcher, recipe=recipe)
    blocks = corrupted.blocks
    draft = blocks.draft[0]
    _, logits = block_logits(model, ids, closes, blocks)
    for _, first, last in each_block(corrupted, 5):
        for place in range(first, last):
            changed = blocks.ids.clone()
            changed[0, place] = 200
            _, after = block_logits(model, ids, closes, blocks._replace(ids=changed))
            moved = (after - logits).abs().amax(-1)[0] > 1e-12
            before = torch.arange(first, place, device=DEVICE)
            assert not moved[before][draft[before]].any(), "a draft row read what it must predict"
            assert not moved[:first].any() and not moved[last:].any(), "a block read another"
            cells = torch.arange(first, last, device=DEVICE)[~draft[first:last]]
            assert moved[place] and moved[cells].all()


@pytest.mark.parametrize("drafts", [{}, DRAFTS], ids=["cells", "draft rows"])
def test_training_layout_equals_generation_layout_and_ignores_what_follows(drafts):
    """On the plain state and on the fast one, which peek at the rows of one block alone."""
    models = make_models(1, window=16, global_window=6)
    recipe = Recipe(5, cells_per_byte=1.0, full_share=0.3, **drafts)
    ids, closes, corrupted = text_and_blocks(models[1], recipe=recipe)
    blocks = corrupted.blocks
    _, logits = block_logits(models[0], ids, closes, blocks)
    kinds = set()
    for row, first, last in each_block(corrupted, rows_of_a_block(recipe)):
        start = int(blocks.starts[row, first])
        drafted = int(blocks.draft[row, first:last].sum())
        kinds.add(drafted)
        behind = blocks.ids[row, first:last].tolist()
        for machine in (plain_of(*models), fast_of(*models)):
            state = machine.state()
            state.extend(ids[0, :start].tolist())
            with torch.inference_mode():
                rows = state.peek(behind[:drafted], behind[drafted:])
                alone = state.model.decoder.head(rows)
            said = f"{machine.kind.__name__}.peek does not follow model.BLT.rows"
            assert torch.allclose(alone, logits[row, first:last], atol=1e-9), said
    assert kinds == ({1, 6} if drafts else {0})


def test_blocks_cost_no_clean_logit():
    model, patcher = make_models(0)
    for drafts in ({}, DRAFTS):
        recipe = Recipe(4, **DENSE, **drafts)
        ids, closes, corrupted = text_and_blocks(patcher, recipe=recipe)
        clean, _ = block_logits(model, ids, closes, corrupted.blocks)
        with torch.no_grad():
            assert torch.allclose(clean, model(ids[:, :-1], closes), atol=1e-12)


# ---- where blocks start and what they hide


def patch_starts(closes):
    """Where a patch opens, that of BOS left out: closes (N,) -> list of 1..N."""
    return [i + 1 for i, closed in enumerate(closes.tolist()) if closed]


def test_paper_recipe_starts_a_block_at_every_patch_but_the_first():
    _, patcher = make_models(0)
    recipe = Recipe(4, **RECIPES["paper"])
    _, closes, corrupted = text_and_blocks(patcher, recipe=recipe)
    blocks = corrupted.blocks
    expected = patch_starts(closes[0])
    assert sorted(blocks.starts[0, ::4].tolist()) == expected
    inside = blocks.positions[0].view(-1, 4) - blocks.starts[0].view(-1, 4)
    assert inside.tolist() == [[0, 1, 2, 3]] * len(expected)
    assert not blocks.draft.any()


def test_rows_with_fewer_patches_get_no_blocks_that_count():
    """A batch is as wide as its row of most patches; what fills the others up has no loss."""
    _, patcher = make_models(0)
    recipe = Recipe(4, **{**RECIPES["paper"], "full_share": 1.0})
    _, closes, corrupted = text_and_blocks(patcher, recipe=recipe, rows=4)
    patches = closes.sum(1)
    assert patches.min() < patches.max() == corrupted.place.shape[1] // 4
    for row in range(4):
        starts = corrupted.blocks.starts[row, ::4]
        # Wholly masked, so that a block that counts has a cell that counts.
        wanted = corrupted.counts[row].view(-1, 4).any(1)
        assert wanted.sum() == patches[row]
        assert sorted(starts[wanted].tolist()) == patch_starts(closes[row])


def test_blocks_hold_the_text_and_cells_past_its_end_stay_masked_without_loss():
    _, patcher = make_models(0)
    recipe = Recipe(8, cells_per_byte=2.0, full_share=0.0)
    ids, _, corrupted = text_and_blocks(patcher, recipe=recipe)
    blocks, place, counts, _, _ = corrupted
    outside = blocks.positions[0] > 60
    assert outside.any() and (blocks.ids[0][outside] == MASK).all()
    assert not counts[0][outside].any() and (place[0][outside] == 59).all()
    inside = ~outside
    assert torch.equal(place[0][inside] + 1, blocks.positions[0][inside])
    assert (blocks.ids[0][counts[0]] == MASK).all()
    shown = inside & ~counts[0]
    assert torch.equal(blocks.ids[0][shown], ids[0][blocks.positions[0][shown]])
    assert len(set(blocks.starts[0, ::8].tolist())) == blocks.ids.shape[1] // 8


def test_draft_rows_hold_the_text_and_tell_the_next_byte():
    """One in front of the cells of each block; blocks of nothing else, which start elsewhere."""
    _, patcher = make_models(0)
    recipe = Recipe(8, cells_per_byte=1.0, **DRAFTS)
    ids, _, corrupted = text_and_blocks(patcher, n=90, recipe=recipe, rows=2)
    blocks = corrupted.blocks
    draft = blocks.draft
    assert {tuple(d) for d in draft.view(-1, 9).tolist()} == {(True,) + (False,) * 8, (True,) * 9}
    drafted = draft.view(2, -1, 9).all(-1)
    assert drafted.sum(1).tolist() == [10, 10], "one row a byte, nine a block"
    for row in range(2):
        starts = blocks.starts[row, ::9].tolist()
        assert len(set(starts)) == len(starts)
    told = blocks.positions + 1
    inside = draft & (told <= 90)
    assert torch.equal(corrupted.counts[draft], (told <= 90)[draft])
    of_batch = tensor_of([0, 1])[:, None].expand_as(told)
    assert torch.equal(corrupted.place[inside], blocks.positions[inside])
    here = draft & (blocks.positions <= 90)
    assert torch.equal(blocks.ids[here], ids[of_batch[here], blocks.positions[here]])
    past = draft & (told > 90)
    assert past.any() and not corrupted.counts[past].any()
    assert (corrupted.weight[draft] == 1).all()


def test_corruption_rate_and_weight_meet_their_expectation():
    ids = torch.full((64, 513), 100)
    closes = torch.ones(64, 512, dtype=torch.bool)
    recipe = Recipe(8, cells_per_byte=1.0, full_share=0.0, t_min=0.1, noise="block")
    corrupted = make_blocks(ids, closes, recipe, generators(64))
    inside = corrupted.blocks.positions <= 512
    # The mean of t on (0.1, 1)
    assert corrupted.counts[inside].float().mean().item() == pytest.approx(0.55, abs=0.01)
    weight = (corrupted.weight * corrupted.counts)[inside].mean().item()
    assert weight == pytest.approx(1.0, abs=0.03)
    assert corrupted.weight[inside].min() >= 1 and corrupted.weight.max() <= 10
    recipe = Recipe(8, cells_per_byte=1.0, full_share=1.0)
    full = make_blocks(ids, closes, recipe, generators(64))
    assert torch.equal(full.counts, inside_of(full, 512))
    assert (full.blocks.ids == MASK).all()
    assert (full.weight[full.counts] == 1).all()


def inside_of(corrupted, N):
    """Which cells stand within a text of N bytes."""
    return corrupted.blocks.positions <= N


def levels(recipe, rows=16):
    """The noise levels t of the blocks of each crop of a batch -> list of lists."""
    ids = torch.full((rows, 129), 100)
    closes = torch.ones(rows, 128, dtype=torch.bool)
    corrupted = make_blocks(ids, closes, recipe, generators(rows))
    return [[1 / w for w in row[:: recipe.block_size].tolist()] for row in corrupted.weight]


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


@pytest.mark.parametrize("changes", [*RECIPES.values(), DRAFTS], ids=[*RECIPES, "draft rows"])
def test_the_same_crop_in_another_batch_gets_the_same_corruption(changes):
    """Guards: corruption from a generator that had moved on with the batches before.

    The blocks of a crop depend on (seed, index) alone, not on its neighbours or its place.
    """
    _, patcher = make_models(0)
    documents = [document_ids(bytes(random_ids(900, s)[1:] - 4)) for s in range(2)]
    closes = torch.cat([patcher.cpu().closes(ids) for ids in documents])
    recipe = Recipe(4, **changes)
    width = rows_of_a_block(recipe)

    def blocks_of(first, size, seed=5):
        """A dict from the number of a crop to its blocks that count."""
        crops = Crops(torch.cat(documents), closes, 64, seed)
        ids, closed = crops.batch(first, size)
        corrupted = make_blocks(ids, closed, recipe, crops.generators(first, size))
        blocks, place, counts, weight, _ = corrupted
        found = {first + row: set() for row in range(size)}
        for row, low, high in each_block(corrupted, width):
            if counts[row, low:high].any():
                parts = (*blocks, place, counts, weight)
                found[first + row].add(tuple(tuple(p[row, low:high].tolist()) for p in parts))
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
    _, closes, corrupted = text_and_blocks(patcher, n=800, recipe=recipe)
    mean = 800 / int(closes.sum())
    assert corrupted.place.shape[1] / 800 == pytest.approx(cells or 8 / mean, rel=0.02)


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
    assert not paper.draft_weight and not paper.chain_width
    assert Recipe(8, **RECIPES["ours"]) == Recipe(8)


# ---- the loss


def test_every_target_position_has_a_loss():
    """Guards: the last row of every window was never supervised."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 9, 260, generator=generator, requires_grad=True)
    ids = torch.randint(4, 260, (2, 10), generator=generator)
    before = next_byte_nats(logits, ids)
    before.backward()
    assert (logits.grad.abs().sum(-1) > 0).all()
    for position in range(1, 10):
        changed = ids.clone()
        changed[0, position] = (ids[0, position] + 1 - 4) % 256 + 4
        assert next_byte_nats(logits, changed) != before


def slow_draft_loss(p, q):
    """draft_loss of one row, by the probabilities p and q (V,) -> loss, nats."""
    nats = 0.0
    kept = 0.0
    for verified, drafted in zip(p.tolist(), q.tolist()):
        nats -= verified * math.log(drafted)
        kept += min(verified, drafted)
    return nats + REJECTED * (1 - kept), nats


@torch.no_grad()
def slow_losses(model, ids, closes, corrupted, width):
    """Eq. 5-7 in a loop, each block alone behind the text before its start -> nats by kind.

    Every clean byte once, every hidden cell over its t; every draft row against what the clean row
    of its byte says of the next.
    """
    nats = {"clean": 0.0, "hidden": 0.0, "drafted": 0.0}
    N = closes.shape[1]
    own = model(ids[:, :-1], closes).log_softmax(-1)
    for of_text, text in zip(own, ids):
        for i in range(N):
            nats["clean"] -= of_text[i, text[i + 1]].item()
    blocks = corrupted.blocks
    for row, first, last in each_block(corrupted, width):
        if not corrupted.counts[row, first:last].any():
            continue  # it counts for nothing, or nobody wants it
        start = int(blocks.starts[row, first])
        alone = Blocks(*(part[row : row + 1, first:last] for part in blocks))
        logits = model(ids[row, None, :start], closes[row, None, :start], alone)[0, start:]
        for j in range(last - first):
            log_p = logits[j].log_softmax(-1)
            position = start + j
            if alone.draft[0, j]:
                if position + 1 <= N:
                    nats["drafted"] += slow_draft_loss(own[row, position].exp(), log_p.exp())[0]
            elif position <= N and alone.ids[0, j] == MASK:
                t = 1 / corrupted.weight[row, first + j].item()
                nats["hidden"] -= log_p[ids[row, position]].item() / t
    return nats


@pytest.mark.parametrize(
    "changes, K",
    [
        ({}, 4),
        ({}, 7),
        (RECIPES["paper"], 4),
        (RECIPES["paper"], 8),
        (DRAFTS, 4),
        ({**RECIPES["paper"], **DRAFTS}, 7),
    ],
    ids=["ours 4", "ours 7", "paper 4", "paper 8", "draft rows 4", "paper and draft rows 7"],
)
@torch.no_grad()
def test_the_loss_equals_a_slow_loop_over_the_papers_equations(changes, K):
    """Three crops with unlike numbers of patches, blocks past the end of the text.

    All sums over the same number of clean bytes.
    """
    model, patcher = make_models(3)
    recipe = Recipe(K, **changes)
    ids, closes, corrupted = text_and_blocks(patcher, n=40, recipe=recipe, seed=7, rows=3)
    assert corrupted.counts.any(1).all() and (corrupted.blocks.positions > 40).any()
    losses = losses_of(model, ids, closes, corrupted, recipe)
    by_hand = slow_losses(model, ids, closes, corrupted, rows_of_a_block(recipe))
    for name, nats in by_hand.items():
        said = f"diffusion.losses_of does not follow the loop over single blocks: {name}"
        assert getattr(losses, name).item() == pytest.approx(nats, rel=1e-6), said
    assert losses.chained == 0
    assert (by_hand["drafted"] > 0) == (recipe.draft_weight > 0)
    for mask_weight in (recipe.mask_weight, 0.0, 3.0):
        weighted = replace(recipe, mask_weight=mask_weight)
        nats = by_hand["clean"] + mask_weight * by_hand["hidden"]
        nats += recipe.draft_weight * by_hand["drafted"]
        assert losses.total(weighted, 3 * 40).item() == pytest.approx(nats / 120, rel=1e-6)


def test_the_loss_of_a_batch_made_by_hand():
    """No randomness: two blocks of two cells, t of 0.5 and 0.25, in a text of four bytes."""
    model, _ = make_models(0)
    ids = tensor_of([[BOS, 104, 105, 106, 107]])
    closes = tensor_of([[True, False, True, False]])
    blocks = Blocks(
        ids=tensor_of([[MASK, 105, MASK, MASK]]),
        positions=tensor_of([[1, 2, 4, 5]]),
        starts=tensor_of([[1, 1, 4, 4]]),
        draft=tensor_of([[False] * 4]),
    )
    corrupted = Corrupted(
        blocks,
        place=tensor_of([[0, 1, 3, 3]]),
        counts=tensor_of([[True, False, True, False]]),
        weight=tensor_of([[2.0, 2.0, 4.0, 4.0]]),
        width=2,
    )
    logits = model(ids[:, :-1], closes, blocks)[0].log_softmax(-1)
    clean = -sum(logits[i, id_] for i, id_ in enumerate((104, 105, 106, 107)))
    hidden = -(2 * logits[4, 104] + 4 * logits[6, 107])
    losses = losses_of(model, ids, closes, corrupted, Recipe(2))
    assert losses.clean.item() == pytest.approx(clean.item(), rel=1e-6)
    assert losses.hidden.item() == pytest.approx(hidden.item(), rel=1e-6)
    for weight in (1.0, 2.5):
        total = losses.total(Recipe(2, mask_weight=weight), 4)
        assert total.item() == pytest.approx((clean + weight * hidden).item() / 4, rel=1e-6)


# ---- the chained head


@pytest.mark.parametrize("drafts", [{}, DRAFTS], ids=["cells", "draft rows"])
@torch.no_grad()
def test_the_chained_loss_equals_a_slow_loop(drafts):
    """Wholly masked blocks alone, each cell behind the true bytes before it, against what the
    model's clean row says there. The term adds to the others with their weight.
    """
    model, patcher = make_models(3, chain_width=6)
    decoder = model.decoder
    K = 4
    recipe = Recipe(K, full_share=0.5, cells_per_byte=2.0, mask_weight=2.0, **drafts)
    width = rows_of_a_block(recipe)
    ids, closes, corrupted = text_and_blocks(patcher, n=40, recipe=recipe, seed=7, rows=2)
    blocks = corrupted.blocks
    rows = model.rows(ids[:, :-1], closes, blocks)
    own = decoder.head(rows[:, :40]).softmax(-1)
    expected = nats = 0.0
    whole = 0
    for b, _, last in each_block(corrupted, width):
        cells = range(last - K, last)
        if blocks.draft[b, last - 1] or not all(corrupted.counts[b, c] for c in cells):
            continue
        whole += 1
        state = rows.new_zeros(1, 1, 6)
        for c in cells:
            before = int(blocks.positions[b, c]) - 1
            row = rows[b, 40 + c]
            x = torch.cat([row, decoder.chain.embed(ids[b, before])])
            out, state = decoder.chain.gru(x[None, None], state)
            q = decoder.head(row + decoder.chain.out(out[0, 0])).softmax(-1)
            costs = slow_draft_loss(own[b, before], q)
            expected += costs[0]
            nats += costs[1]
    assert 3 < whole < corrupted.place.shape[1] // width * 2
    p = verifier(decoder.head(rows[:, :40]), corrupted)
    got = chained_loss(decoder, p, rows[:, 40:], ids, corrupted, K)
    assert [x.item() for x in got] == pytest.approx([expected, nats])
    losses = losses_of(model, ids, closes, corrupted, recipe)
    assert losses.chained.item() == pytest.approx(expected)
    others = slow_losses(model, ids, closes, corrupted, width)
    total = others["clean"] + 2 * (others["hidden"] + expected)
    total += recipe.draft_weight * others["drafted"]
    assert losses.total(recipe, 80).item() == pytest.approx(total / 80, rel=1e-6)
    alone = chain_loss(model, ids, closes, corrupted, recipe)
    assert [x.item() * K * whole for x in alone] == pytest.approx([expected, nats])


@pytest.mark.parametrize("drafts", [{}, DRAFTS], ids=["cells", "draft rows"])
def test_drafts_follow_what_verifies_them_and_not_the_other_way_round(drafts):
    """What the model itself says is only compared with: no gradient goes that way."""
    model, patcher = make_models(3, chain_width=6)
    recipe = Recipe(4, full_share=1.0, cells_per_byte=2.0, **drafts)
    ids, closes, corrupted = text_and_blocks(patcher, n=40, recipe=recipe, seed=7, rows=2)
    seen = []
    model.decoder.norm.register_forward_hook(lambda *args: seen.append(args[-1]))
    losses = losses_of(model.train(), ids, closes, corrupted, recipe)
    for loss in (losses.chained, losses.drafted)[: 1 + bool(drafts)]:
        [gradient] = torch.autograd.grad(loss, seen, retain_graph=True)
        assert not gradient[:, :40].any()
        assert gradient[:, 40:].any()


def cells_behind(model, rows, ids):
    """Logits (K, V) of the cells of a block with rows (K, D), all at once: behind the first of
    ids, and with the others in the block.
    """
    whole, _ = model.decoder.chain(rows[None], tensor_of([ids[: len(rows)]]))
    return model.decoder.head(whole)[0]


@pytest.mark.parametrize("seed, K, width", [(0, 1, 6), (1, 4, 6), (2, 8, 20)])
@torch.no_grad()
def test_cells_drawn_one_by_one_are_those_of_the_training_forward(seed, K, width):
    """model.LocalDecoder.chained, and its other forms, against layers.ChainedHead at once."""
    model, patcher = make_models(seed, block_size=K, chain_width=width)
    rows = torch.randn(K, 32, dtype=torch.float64).to(DEVICE)
    before, *ids = random_ids(1 + K, seed).tolist()
    expected = cells_behind(model, rows, [before, *ids])
    noise = torch.zeros(K, 260).scatter_(1, torch.tensor(ids)[:, None], torch.inf)  # picks them
    for name, decoder in (
        ("model.LocalDecoder.chained", model.decoder),
        ("fast.lean.LeanChain", fast_of(model, patcher).model.decoder),
        ("fast.fixed.FixedDecoder", FixedDecoder(model.decoder)),
    ):
        picked, logits = zip(*decoder.chained(rows, before, noise, Sampling()))
        assert list(picked) == ids
        said = f"{name} does not follow layers.ChainedHead.forward"
        assert torch.allclose(torch.cat(logits).cpu(), expected.cpu(), atol=1e-9), said


@torch.no_grad()
def test_no_cell_is_what_is_no_output():
    """However large its logits are made: on every machine."""
    model, patcher = make_models(1, block_size=4, chain_width=6)
    rows = torch.randn(4, 32, dtype=torch.float64).to(DEVICE)
    folded = fast_of(model, patcher).model.decoder
    for decoder in (model.decoder, folded, FixedDecoder(model.decoder)):
        for sampling in (Sampling(), Sampling(ignore_eos=True), Sampling(0.8, seed=1)):
            noise = sampling.noise(4)
            noise[:, [PAD, BOS, MASK]] += 1e9
            noise[:, EOS] += 1e6
            ids = {id_ for id_, _ in decoder.chained(rows, 110, noise, sampling)}
            if sampling.ignore_eos:
                assert not ids & {PAD, BOS, MASK, EOS}
            else:
                assert ids == {EOS}


def test_ids_cross_from_a_device_in_half_precision():
    """Guards: bfloat16 counts in twos from 256 on, and the last ids are 257 and 259."""
    for id_ in range(260):
        logits = torch.eye(260)[[id_]].bfloat16()
        picked, kept = drawn(logits, torch.zeros(260))
        [(known, its_logits)] = of_host(kept)
        assert known == id_ == picked and torch.equal(its_logits, logits.float())


class Given:
    """A state that answers every question with the same decoder rows."""

    def __init__(self, model, rows):
        self.model = model
        self.rows = rows
        self.counters = Counters()

    def peek(self, ids, block):
        return self.rows[: len(block)]

    chained = Prefix.chained


def chained_cells(model, rows, sampling, threshold=0.0):
    """fill_block over given rows (K, D), behind the id 110 -> ids, q."""
    state = Given(model, rows)
    unmask = Unmask("chained", threshold)
    ids, q = fill_block(state, [], 110, len(rows), unmask, sampling, Watch())
    assert state.counters.chain == len(ids) == len(q)
    return ids, q


@torch.no_grad()
def test_a_chained_block_is_drawn_from_what_it_says():
    """Each cell from the distribution with those before it known."""
    model, _ = make_models(1, chain_width=6)
    rows = torch.randn(6, 32, dtype=torch.float64).to(DEVICE)
    for sampling in (Sampling(0.9, 0.8), Sampling(1.0, ignore_eos=True), Sampling()):
        ids, q = chained_cells(model, rows, sampling)
        p = distribution(cells_behind(model, rows, [110, *ids]), sampling)
        assert torch.allclose(q, p, atol=1e-9)
        if sampling.temperature:
            assert (q[range(6), ids] > 0).all()
        else:
            assert ids == p.argmax(-1).tolist()


@torch.no_grad()
def test_a_chained_draft_stops_where_it_is_unsure():
    """Behind the first cell at which the probabilities together fall below the threshold."""
    model, _ = make_models(1, chain_width=6)
    rows = torch.randn(8, 32, dtype=torch.float64).to(DEVICE)
    whole, _ = chained_cells(model, rows, Sampling())
    sure = ban(cells_behind(model, rows, [110, *whole]), Sampling()).softmax(-1).amax(-1).cumprod(0)
    lengths = []
    for threshold in (0.0, *(sure * 1.01).tolist()):
        ids, _ = chained_cells(model, rows, Sampling(), threshold)
        assert ids == whole[: len(ids)]
        assert len(ids) == min(8, 1 + int((sure >= threshold).sum()))
        lengths.append(len(ids))
    assert lengths == [8, 1, 2, 3, 4, 5, 6, 7, 8]
    ids, q = chained_cells(model, rows, Sampling(1.0, seed=3), 0.5)
    assert len(q) == len(ids) < 8


@torch.no_grad()
def test_what_is_drawn_is_what_q_says(monkeypatch):
    """Pairs of cells over three bytes, many times, against the product of their q."""
    model, patcher = make_models(4, block_size=4, chain_width=6)
    folded = fast_of(model, patcher).model
    some = [100, 101, 102]
    rows = torch.randn(2, 32, dtype=torch.float64).to(DEVICE)
    sampling = Sampling(2.0, seed=3)
    counts = Counter()
    expected = {}
    trials = 2000

    def all_but_three(logits, sampling):
        others = torch.full((260,), -math.inf).index_fill(0, torch.tensor(some), 0.0)
        return logits + others

    monkeypatch.setattr(generating, "ban", all_but_three)
    for _ in range(trials):
        ids, q = chained_cells(folded, rows, sampling)
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
    made = generate_bltd(fast_of(model, patcher).state(), [100, 104], 24, **how)
    spent = made.counters
    size = model.sizes()
    assert spent.decoder == spent.rounds == 6
    assert spent.chain == 24
    head = sum(p.numel() for p in model.decoder.chain.parameters())
    assert size["chain"] == head > 0
    together = size["encoder"] + size["global"]
    numbers = 6 * size["decoder"] + spent.encoder_global * together + 24 * head
    assert gigabytes_of(made) == pytest.approx(2 * numbers / 1e9)
    assert sum(size.values()) == sum(p.numel() for p in model.parameters())


def test_a_model_without_a_chained_head_says_how_to_get_one():
    machine = fast_of(*make_models(1, block_size=8))
    how = {"block_size": 4, "unmask": Unmask("chained", None)}
    with pytest.raises(BadInput, match="no chained head.*--recipe chain"):
        generate_bltd(machine.state(), [], 4, **how)


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
    assert everything == UNMASK["one-step"](p, masked, None).tolist() == masked.tolist()


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
    asked = []
    watch = Recorder()

    def peek(ids, block):
        assert ids == [104, 105]
        asked.append(block)
        # Rows of what is behind the text come first.
        return torch.randn(8, 260, generator=torch.Generator().manual_seed(len(asked)))

    decoder = SimpleNamespace(head=lambda rows: rows)
    state = SimpleNamespace(peek=peek, model=SimpleNamespace(decoder=decoder))
    ids, q = denoise(state, [104, 105], 6, unmask, Sampling(), watch)
    assert len(asked) == steps and asked[0] == [MASK] * 6
    assert all(a.count(MASK) > b.count(MASK) for a, b in zip(asked, asked[1:]))
    assert not {MASK, BOS, PAD} & set(ids)
    # Cells that were drawn in several steps have no known distribution.
    assert (q is not None) == (unmask.rule == "one-step")
    if q is not None:
        assert q.shape == (6, 260) and q.argmax(-1).tolist() == ids
    # The watch sees what each step left.
    assert [ids for ids, _ in watch.steps] == asked[1:] + [ids]
    for cells, masked in watch.steps:
        assert [id_ == MASK for id_ in cells] == masked


# ---- generation


def slow_twin(model, patcher, prompt, budget, K, unmask):
    """Greedy BLT-D without any state: everything anew in every step."""
    text = [BOS, *prompt]
    while len(text) < 1 + len(prompt) + budget:
        cells = torch.full((K,), MASK)
        masked = torch.ones(K, dtype=torch.bool)
        ids = tensor_of(text)
        closes = patcher.closes(ids)
        place = torch.arange(len(text), len(text) + K, device=DEVICE)[None]
        start = torch.full_like(place, len(text))
        while masked.any():
            blocks = Blocks(cells[None].to(DEVICE), place, start, torch.zeros_like(place).bool())
            with torch.no_grad():
                logits = model(ids[None], closes[None], blocks)[0, -K:]
            logits = ban(logits.cpu().float(), ENDLESS)
            pick = UNMASK[unmask.rule](logits.softmax(-1), masked, unmask.threshold)
            cells = torch.where(pick, logits.argmax(-1), cells)
            masked = masked & ~pick
        text += cells.tolist()
    return text[1 + len(prompt) :][:budget]


@pytest.mark.parametrize("unmask", RULES, ids=lambda u: u.rule)
@pytest.mark.parametrize("prompt", [[], [110, 111]], ids=["empty", "prompt"])
def test_fast_bltd_writes_what_its_slow_twin_does_and_counts_its_passes(unmask, prompt):
    models = make_models(4, window=16, block_size=4)
    how = {"block_size": 4, "unmask": unmask, "sampling": ENDLESS}
    expected = Recorder()
    on_prefix = generate_bltd(Prefix(*models), prompt, 42, **how, watch=expected)
    twin = slow_twin(*models, prompt, 42, 4, unmask)
    assert on_prefix.ids == twin, "diffusion.generate_bltd does not follow its slow twin"
    for name, make in FAST.items():
        machine = make(*models)
        ran = count_passes(machine.model, machine.patcher)
        watch = Recorder()
        made = generate_bltd(machine.state(), prompt, 42, **how, watch=watch)
        said = f"generate_bltd on fast.stream ({name}) does not follow that on generate.Prefix"
        assert made.ids == on_prefix.ids == watch.written, said
        assert made.counters == on_prefix.counters, said
        assert watch.steps == expected.steps, said
        spent = made.counters
        prefill = spent.prefill
        if not DEVICE.startswith("cuda"):  # graphs run no hooks
            assert ran["decoder"] == spent.decoder + prefill["decoder"]
            assert ran["encoder"] == spent.encoder_global + prefill["encoder_global"]
            assert ran["globe"] == ran["encoder"]
            assert ran["entropy"] == spent.entropy + prefill["entropy"]
        assert spent.decoder == len(watch.steps)
        assert spent.rounds == math.ceil(42 / 4) == 11
        assert spent.encoder_global <= spent.rounds
        assert spent.entropy == 10, "the last block is not taken in"


@pytest.mark.parametrize("budget", [1, 4, 5])
def test_bltd_writes_no_more_than_it_may(budget):
    models = make_models(4, window=16, block_size=4)
    for machine in (plain_of(*models), fast_of(*models)):
        how = {"block_size": 4, "unmask": RULES[2], "sampling": ENDLESS}
        made = generate_bltd(machine.state(), [104], budget, **how)
        longer = generate_bltd(machine.state(), [104], 12, **how)
        assert made.ids == longer.ids[:budget]
        assert made.counters.rounds == math.ceil(budget / 4)


@pytest.mark.parametrize("rule", [*RULES, Unmask("chained", 0.3)], ids=lambda u: u.rule)
def test_fast_bltd_samples_what_the_plain_state_does(rule):
    """From one seed: every step sees the same numbers."""
    models = make_models(5, window=16, block_size=8, chain_width=6)
    how = {"block_size": 8, "unmask": rule}
    for seed in range(2):
        sampling = Sampling(0.9, 0.9, seed=seed)
        on_prefix = generate_bltd(Prefix(*models), [104], 30, **how, sampling=replace(sampling))
        state = fast_of(*models).state()
        made = generate_bltd(state, [104], 30, **how, sampling=replace(sampling))
        assert (made.ids, made.counters) == (on_prefix.ids, on_prefix.counters)


@pytest.mark.more
@pytest.mark.parametrize(
    "seed, max_patch, mean, window", [(1, 1, 1, 24), (2, 4, 2, 9), (3, 8, 7, 30)]
)
@pytest.mark.parametrize("rule", [*RULES, Unmask("chained", None)], ids=lambda u: u.rule)
@pytest.mark.parametrize("size", [1, 5, 8])
def test_fast_bltd_writes_what_its_slow_twin_does_in_other_shapes(
    seed, max_patch, mean, window, rule, size
):
    shape = {"window": window, "max_patch": max_patch, "mean": mean}
    models = make_models(seed, **shape, block_size=8, chain_width=6)
    prompt = random_ids(1 + 9 * seed, seed)[1:].tolist()
    how = {"block_size": size, "unmask": rule, "sampling": ENDLESS}
    on_prefix = generate_bltd(Prefix(*models), prompt, 30, **how)
    if rule.rule != "chained":
        assert on_prefix.ids == slow_twin(*models, prompt, 30, size, rule)
    for make in FAST.values():
        made = generate_bltd(make(*models).state(), prompt, 30, **how)
        assert (made.ids, made.counters) == (on_prefix.ids, on_prefix.counters), make.__name__


def test_fast_bltd_writes_what_the_plain_state_does_on_a_trained_model(trained):
    how = {"block_size": 8, "sampling": ENDLESS}
    for rule in (*RULES, Unmask("confidence", 0.7), Unmask("chained", 0.05)):
        on_prefix = generate_bltd(Prefix(*trained), [104, 36], 40, unmask=rule, **how)
        made = generate_bltd(fast_of(*trained).state(), [104, 36], 40, unmask=rule, **how)
        assert (made.ids, made.counters) == (on_prefix.ids, on_prefix.counters), rule


def test_eos_inside_a_block_ends_the_output_there():
    model, patcher = make_models(4, block_size=8)
    with torch.no_grad():
        model.decoder.head.weight[EOS] = model.decoder.head.weight[100] * 3
    watch = Recorder()
    how = {"block_size": 8, "unmask": Unmask("one-step", None), "watch": watch}
    state = fast_of(model, patcher).state()
    made = generate_bltd(state, [], 600, sampling=Sampling(temperature=1.0), **how)
    assert 0 < len(made.ids) < 600 and not {PAD, BOS, EOS, MASK} & set(made.ids)
    assert len(made.ids) <= 8 * made.counters.rounds
    assert watch.written == made.ids


def test_a_stop_inside_a_block_ends_the_output_there():
    machine = fast_of(*make_models(4, block_size=8))
    how = {"block_size": 8, "unmask": Unmask("one-step", None)}
    whole = generate_bltd(machine.state(), [104], 40, sampling=ENDLESS, **how).ids
    stop = Sampling(ignore_eos=True, stop=(whole[21],))
    made = generate_bltd(machine.state(), [104], 40, sampling=stop, **how)
    assert made.ids == whole[: whole.index(whole[21])]


def test_blocks_larger_than_trained_are_refused():
    plain, _ = make_models(0)
    with pytest.raises(BadInput, match="block-size 8"):
        check_block_size(plain, 4)
    trained, patcher = make_models(0, block_size=4)
    with pytest.raises(BadInput, match="up to 4 bytes, not 8"):
        check_block_size(trained, 8)
    state = fast_of(trained, patcher).state()
    with pytest.raises(BadInput, match="up to 4 bytes, not 8"):
        generate_bltd(state, [], 9, block_size=8, unmask=Unmask("one-step", None))
    check_block_size(trained, 3)


def test_masked_accuracy_against_a_slow_loop():
    """As in generation: a wholly masked block behind the end of the text."""
    model, patcher = make_models(2, block_size=4)
    documents = [random_ids(90, s) for s in range(2)]
    hits = torch.zeros(4)
    losses = torch.zeros(4)
    for ids in documents:
        for start in (20, 40, 60, 80):
            blocks = Blocks.behind(start, [], [MASK] * 4, DEVICE)
            closes = patcher.closes(ids[:start])[None]
            with torch.no_grad():
                logits = model(ids[None, :start], closes, blocks)[0, start:].float().cpu()
            truth = ids[start : start + 4].cpu()
            hits += ban(logits, Sampling()).argmax(-1) == truth
            losses -= logits.log_softmax(-1)[range(4), truth]
    for machine in (plain_of(model, patcher), fast_of(model, patcher)):
        accuracy, bits = masked_accuracy(machine, documents, 4, stride=20)
        assert accuracy == pytest.approx((hits / 8).tolist())
        assert bits == pytest.approx((losses / 8 / math.log(2)).tolist(), rel=1e-5)
    assert masked_accuracy(machine, [], 4) == (None, None)


# ---- run


def test_it_shows_blocks_and_what_they_hide(trained_file, capsys):
    ideas.diffusion(["--text", "def main():", "--checkpoint", str(trained_file)])
    out = capsys.readouterr().out
    assert "blocks of K = 4" in out and "start 1, t" in out and "░" in out


# ---- FlexAttention, which GPUs use


@pytest.mark.skipif(DEVICE != "cpu", reason="there the model has no dense mask to compare with")
@pytest.mark.parametrize("starts", ["any", "patch"])
@pytest.mark.parametrize("drafts", [{}, DRAFTS], ids=["cells", "draft rows"])
def test_blocks_of_flex_attention_are_the_dense_mask(starts, drafts, monkeypatch):
    """A GPU asks the rule block by block. Here the same, uncompiled, against the dense mask."""
    model, patcher = make_models(0, block_size=4)
    recipe = Recipe(4, starts=starts, cells_per_byte=2.0, **drafts)
    ids, closes, corrupted = text_and_blocks(patcher, recipe=recipe, rows=2)
    made = []

    def flexible(rows, window):
        if rows.position.ndim == 1:
            return mask_of(rows, window)
        B, N = rows.position.shape

        def rule(b, h, query, key):
            of_query, of_key = (Rows(*(x[b, i] for x in rows)) for i in (query, key))
            return sees(of_query, of_key, window)

        made.append(create_block_mask(rule, B, None, N, N, "cpu"))
        return made[-1]

    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        dense = model.rows(ids[:, :-1], closes, corrupted.blocks)
        monkeypatch.setattr("layers.mask_of", flexible)
        flex = model.rows(ids[:, :-1], closes, corrupted.blocks)
    assert len(made) == 1 and isinstance(made[0], BlockMask)
    assert torch.allclose(flex, dense, rtol=1e-9, atol=1e-9) and dense.dtype == torch.float64


def test_the_blocks_of_a_mask_need_little_memory():
    """A dense mask of every patch start grows with the square of the text, FlexAttention's hardly.

    Its rule is asked for 128 x 128 scores at once, and remembered is which of those are needed.
    """
    N = 512
    K = 8
    starts = torch.arange(4, N - K, 4)
    text = Rows.clean(N, "cpu")
    rows = Rows(
        torch.cat([text.position, (starts[:, None] + torch.arange(K)).flatten()]),
        torch.cat([text.start, starts.repeat_interleave(K)]),
        torch.zeros(N + len(starts) * K, dtype=torch.bool),
    )
    assert (text.start == CLEAN).all()

    def rule(b, h, query, key):
        of_query, of_key = (Rows(*(x[i] for x in rows)) for i in (query, key))
        return sees(of_query, of_key, 64)

    P = len(rows.position)
    dense = mask_of(rows, 64)
    blocks = create_block_mask(rule, 1, None, P, P, device="cpu")
    assert dense.shape == (P, P) and blocks.shape == (1, 1, P, P)
    kept = [x for x in blocks.as_tuple() if isinstance(x, torch.Tensor)]
    assert sum(x.nbytes for x in kept) < dense.nbytes / 100
    assert blocks.sparsity() > 50
