"""Draft rows: what they may read, what they are trained for, and that self-drafts are just that."""

import pytest
import torch
from conftest import DEVICE, make_models, random_ids

from data import MASK, Crops
from diffusion import REJECTED, Losses, choose_draft_starts, losses_of, make_blocks
from fast.load import prepared
from model import Blocks
from support.presets import Recipe

K = 4
RECIPE = Recipe(K, draft_weight=1.0, draft_rows_per_byte=1.0, full_share=0.3)


def a_batch(seed=0, rows=2, length=48, mean=3.0, **changes):
    """A float64 model, and text with closes and generators for its blocks."""
    model, patcher = make_models(seed, mean=mean, block_size=K, **changes)
    text = [random_ids(length + 1, seed=seed + 10 + row) for row in range(rows)]
    ids = torch.stack(text)
    closes = torch.stack([patcher.closes(row)[:-1] for row in ids])
    generators = [torch.Generator().manual_seed(seed + row) for row in range(rows)]
    return model, ids, closes, generators


def test_blocks_begin_with_a_draft_row_and_some_are_draft_rows_alone():
    _, ids, closes, generators = a_batch()
    blocks = make_blocks(ids, closes, RECIPE, generators)
    draft = blocks.blocks.draft.view(2, -1, K + 1)
    alone = draft.all(-1)
    assert draft[..., 0].all() and alone.any() and not draft[~alone][:, 1:].any()
    # 48 bytes: a row a byte in blocks of five, beside half a cell a byte in blocks of four
    assert alone.sum(1).tolist() == [10, 10] and (~alone).sum(1).tolist() == [6, 6]
    # No two blocks of a crop begin at one place: they would read each other.
    starts = blocks.blocks.starts.view(2, -1, K + 1)[..., 0]
    assert all(len(set(row.tolist())) == len(row) for row in starts)
    # True bytes stand in draft rows, and never a MASK; they are to tell the next bytes.
    position = blocks.blocks.positions
    drafted = blocks.blocks.draft & (position <= 48)
    there = ids.gather(1, position.clamp(max=48))
    assert (blocks.blocks.ids[drafted] == there[drafted]).all()
    told = blocks.blocks.draft & (position < 48)
    assert (blocks.place[told] == position[told]).all() and (blocks.weight[told] == 1).all()
    assert torch.equal(blocks.counts & blocks.blocks.draft, told)


def test_without_a_weight_there_are_none():
    _, ids, closes, generators = a_batch()
    blocks = make_blocks(ids, closes, Recipe(K), generators)
    assert not blocks.blocks.draft.any() and blocks.place.shape[1] % K == 0


def test_corruption_follows_from_seed_and_crop_alone():
    """The same crop in another batch gets the same blocks."""
    _, ids, closes, _ = a_batch(rows=3)
    crops = Crops(ids.flatten(), closes.flatten(), 20, seed=5)
    whole = make_blocks(ids, closes, RECIPE, crops.generators(0, 3))
    last = make_blocks(ids[2:], closes[2:], RECIPE, crops.generators(2, 1))
    assert whole.width == last.width
    for ours, theirs in zip((*whole.blocks, *whole[1:-1]), (*last.blocks, *last[1:-1])):
        assert torch.equal(ours[2:], theirs)


def test_draft_starts_are_free_places():
    taken = torch.tensor([[3, 1], [2, 6]])
    order = torch.rand(2, 12, generator=torch.Generator().manual_seed(0))
    starts = choose_draft_starts(taken, order, Recipe(K, draft_rows_per_byte=4.0))
    for row, used in zip(starts.tolist(), taken.tolist()):
        assert len(row) == len(set(row)) and not set(row) & set(used) and min(row) >= 1


@pytest.mark.parametrize("seed, mean, window", [(0, 3.0, 24), (1, 1.5, 7), (2, 5.0, 64)])
@torch.no_grad()
def test_no_row_reads_its_answer(seed, mean, window):
    """A byte is changed, in the text and wherever a block shows it: no earlier logit moves.

    A draft row may read what stands at its place and before; a hidden cell what stands before its
    block, and the cells that are shown.
    """
    model, ids, closes, generators = a_batch(seed, rows=1, mean=mean, window=window)
    corrupted = make_blocks(ids, closes, RECIPE, generators)
    blocks = corrupted.blocks
    rows = model(ids[:, :-1], closes, blocks)[0]
    N = closes.shape[1]
    for j in range(1, N):
        changed = ids.clone()
        changed[0, j] = ids[0, j] + 1
        shown = (blocks.positions == j) & (blocks.ids != MASK)
        others = blocks._replace(ids=torch.where(shown, changed[0, j], blocks.ids))
        moved = (model(changed[:, :-1], closes, others)[0] != rows).any(-1)
        assert not moved[:j].any(), "a clean row"
        of_blocks = moved[N:]
        before = blocks.positions[0] < j
        hidden_there = (blocks.positions == j) & (blocks.ids == MASK)
        shows = torch.zeros_like(of_blocks)
        for start in blocks.starts[0].unique():
            block = blocks.starts[0] == start
            in_block = block & (blocks.positions[0] == j) & ~hidden_there[0]
            # j in front of the block is known to all of it; inside, to whom it is shown
            shows |= block & ((j < start) | in_block.any())
        assert not of_blocks[blocks.draft[0] & before].any(), "a draft row"
        assert not of_blocks[~shows].any(), "a cell"
        assert moved[j:N].any()


@pytest.mark.parametrize("seed, mean, window", [(0, 3.0, 24), (3, 1.5, 7), (4, 6.0, 64)])
@torch.no_grad()
def test_cached_self_drafts_are_what_draft_rows_are_trained_for(seed, mean, window):
    """Draft rows of the training forward equal a Stream's peeks behind the text before them."""
    model, patcher = make_models(seed, mean=mean, window=window, block_size=K)
    machine = prepared(model, patcher)
    ids = random_ids(60, seed=seed)
    closes = patcher.closes(ids)
    for start in (1, 9, 30, 41):
        length = 8
        drafted = ids[start : start + length].tolist()
        blocks = Blocks.behind(start, drafted, [], DEVICE)
        # Beside the whole text, which holds the answers
        trained = model(ids[None], closes[None], blocks)[0, len(ids) :]
        state = machine.state()
        state.extend(ids[:start].tolist())
        for n in range(1, length + 1):
            rows = state.peek(drafted[:n])
            cached = state.model.decoder.head(rows)
            assert torch.allclose(cached, trained[:n], atol=1e-10), (start, n)
        # And a block of cells behind the first of them, as BLT-DV drafts it
        mixed = Blocks.behind(start, drafted[:1], [MASK] * K, DEVICE)
        trained = model(ids[None], closes[None], mixed)[0, len(ids) :]
        cached = state.model.decoder.head(state.peek(drafted[:1], [MASK] * K))
        assert torch.allclose(cached, trained, atol=1e-10), start


def test_the_loss_against_a_loop():
    model, ids, closes, generators = a_batch(seed=5, chain_width=6)
    corrupted = make_blocks(ids, closes, RECIPE, generators)
    losses = losses_of(model.train(), ids, closes, corrupted, RECIPE)
    logits = model(ids[:, :-1], closes, corrupted.blocks).log_softmax(-1)
    N = closes.shape[1]
    clean = hidden = drafted = 0.0
    for b in range(len(ids)):
        for i in range(N):
            clean -= logits[b, i, ids[b, i + 1]]
        for r in range(corrupted.place.shape[1]):
            place = int(corrupted.blocks.positions[b, r])
            row = logits[b, N + r]
            if corrupted.blocks.draft[b, r]:
                if place < N:  # what the clean row there says of the next byte
                    p = logits[b, place].exp().detach()
                    drafted -= (p * row).sum()
                    drafted += REJECTED * (1 - torch.minimum(p, row.exp()).sum())
            elif corrupted.blocks.ids[b, r] == MASK and place <= N:
                hidden -= row[ids[b, place]] * corrupted.weight[b, r]
    for ours, loop in zip(losses, (clean, hidden, None, drafted)):
        assert loop is None or torch.allclose(ours, loop)
    count = closes.numel()
    weighed = Recipe(K, mask_weight=0.5, draft_weight=0.25)
    expected = clean + 0.5 * (hidden + losses.chained) + 0.25 * drafted
    assert torch.allclose(losses.total(weighed, count), expected / count)
    assert torch.allclose(
        Losses(*losses).total(Recipe(K), count) * count, clean + hidden + losses.chained
    )
