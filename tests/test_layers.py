"""layers.py: who sees whom, RoPE, and cached rows against whole sequences."""

import pytest
import torch

import layers
from layers import (
    Cache,
    CrossAttention,
    PackedView,
    Stack,
    WholeView,
    attend,
    attend_window,
    causal,
    rotary,
    rotate,
    sees,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- who sees whom


def test_mask_predicate_against_a_loop():
    """Clean rows are causal; a block sees the clean rows before its start, and all of itself."""
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


@pytest.mark.parametrize("window", [1, 2, 7, 100])
def test_the_causal_rule_is_the_rule_of_clean_rows(window):
    """The short rule for clean rows is the long one with nobody in a block."""
    row, clean = torch.arange(20), torch.full((20,), -1)
    short = causal(row[:, None], row[None], window)
    assert torch.equal(short, sees(row[:, None], clean[:, None], row[None], clean[None], window))
    assert short.tolist() == [[i - window < j <= i for j in range(20)] for i in range(20)]
    # As the global model uses it: positions of several rows of a batch behind each other
    patch = torch.tensor([0, 1, 2, 0, 1])
    expected = [[q - window < k <= q for k in patch.tolist()] for q in patch.tolist()]
    assert causal(patch[:, None], patch[None], window).tolist() == expected


@pytest.mark.parametrize("n, window", [(5, 8), (8, 8), (21, 8), (64, 16), (33, 1)])
def test_windowed_attention_equals_a_masked_one(n, window):
    q, k, v = normal(3, 2, 3, n, 4, seed=n).unbind(0)
    row = torch.arange(n)
    mask = causal(row[:, None], row[None], window)
    assert torch.allclose(attend_window(q, k, v, window), attend(q, k, v, mask), atol=1e-12)


# ---- RoPE


@pytest.mark.parametrize("group", [1, 3])
def test_reading_a_few_equals_hiding_the_rest(group):
    """What each group reads is copied to it; the slow twin scores all and hides the others."""
    B, H, M, S, D = 2, 3, 10, 11, 12
    cross, x = CrossAttention(D, H).double(), normal(B, M * group // B, D)
    kv = cross.project(normal(1, S, D, seed=1))
    chance = torch.rand(M, S, generator=torch.Generator().manual_seed(2))
    reads = chance.argsort(-1)[:, :4]
    reads[1, 2:] = -1
    allowed = torch.zeros(M, S, dtype=torch.bool)
    for m, mine in enumerate(reads.tolist()):
        allowed[m, [s for s in mine if s >= 0]] = True
    q = cross.q(cross.query_norm(x)).view(1, M * group, H, D // H).transpose(1, 2)
    y = attend(q, kv[0], kv[1], allowed.repeat_interleave(group, 0))
    expected = x + cross.out(y.transpose(1, 2).reshape(x.shape))
    assert torch.allclose(cross(x, kv, reads), expected, atol=1e-12)


@pytest.mark.parametrize("window", [2, 4, 50])
def test_packed_sequences_equal_each_alone(window):
    """Behind each other without padding, they still see none but their own rows."""
    sizes, H, C = [7, 1, 12], 2, 4
    q, k, v = (normal(1, H, sum(sizes), C, seed=i) for i in range(3))
    row = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))
    position = torch.cat([torch.arange(n) for n in sizes])
    got = PackedView(None, row, position).attend(0, q, k, v, window)
    for b, end in enumerate(torch.tensor(sizes).cumsum(0).tolist()):
        mine = slice(end - sizes[b], end)
        alone = WholeView(None).attend(0, q[:, :, mine], k[:, :, mine], v[:, :, mine], window)
        assert torch.allclose(got[:, :, mine], alone, atol=1e-12)


def test_rope_depends_on_distance_alone_even_far_out():
    q, k = normal(2, 1, 1, 1, 16).unbind(0)

    def turned(x, i):
        return rotate(x, rotary(torch.tensor([i]), 16, 500000.0, torch.float64))

    def score(i, j):
        return (turned(q, i) * turned(k, j)).sum().item()

    assert score(7, 3) == pytest.approx(score(1_000_007, 1_000_003), abs=1e-9)
    assert score(7, 3) != pytest.approx(score(7, 4), abs=1e-3)


# ---- whole sequences and cached rows

WINDOW, BASE, WIDTH, HEADS = 9, 10000.0, 16, 2


@pytest.fixture
def stack():
    """Two layers in float64, whose norms are not one."""
    torch.manual_seed(0)
    modules = Stack(2, WIDTH, HEADS, 24, WINDOW).double()
    for p in modules.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.3)
    return modules


def new_cache(max_rollback, max_rows):
    like = torch.zeros(1, dtype=torch.float64)
    return Cache(2, HEADS, WIDTH // HEADS, WINDOW, max_rollback, max_rows, BASE, like)


@torch.no_grad()
def test_rows_in_pieces_through_a_cache_equal_the_whole(stack):
    """Pieces of any sizes, some taken twice after a step back, past several turns of the buffer."""
    x, cache = normal(1, 200, WIDTH, seed=1), new_cache(max_rollback=5, max_rows=16)
    whole = stack(x, WholeView.causal(200, WIDTH // HEADS, BASE, x))
    first, sizes = 0, [1, 1, 16, 3, 1, 8]
    for turn in range(100):
        n = min(sizes[turn % len(sizes)], 200 - first)
        if not n:
            break
        got = stack(x[:, first : first + n], cache.view(first, n))
        assert torch.allclose(got, whole[:, first : first + n], atol=1e-12), (first, n)
        first += n
        if turn % 3 == 2 and first < 200:
            first -= 5
            # What is overwritten later must not matter.
            stack(normal(1, 2, WIDTH, seed=turn), cache.view(first, 2))
    assert first == 200 and cache.base > 0 and cache.capacity < 60


@torch.no_grad()
def test_a_block_behind_clean_rows_equals_the_whole(stack):
    """The same rule in both views: n clean rows and K rows of a block, for every n and K."""
    x = normal(1, 40, WIDTH, seed=2)
    for n, K in ((0, 4), (1, 1), (3, 5), (7, 8)):
        start = 20 + n
        cache = new_cache(max_rollback=5, max_rows=20)
        for first, many in ((0, 16), (16, 4)):
            stack(x[:, first : first + many], cache.view(first, many))
        got = stack(x[:, 20 : start + K], cache.view(20, n + K, K))

        position = torch.arange(start + K)
        of_block = torch.where(position >= start, start, -1)
        mask = sees(
            position[start:, None], of_block[start:, None], position[None], of_block[None], WINDOW
        )
        rope = rotary(position, WIDTH // HEADS, BASE, torch.float64)
        whole = stack(x[:, : start + K], WholeView(rope, mask[None, None]))
        assert torch.allclose(got, whole[:, 20:], atol=1e-12), (n, K)


@torch.no_grad()
def test_a_mask_over_all_rows_is_as_good_as_none(stack):
    """A mask for the last rows alone, for all of them, or none: the same rule, the same rows."""
    x, row = normal(1, 30, WIDTH, seed=3), torch.arange(30)
    rope = rotary(row, WIDTH // HEADS, BASE, torch.float64)
    mask = causal(row[:, None], row[None], WINDOW)
    none, every, last = (stack(x, WholeView(rope, given)) for given in (None, mask, mask[20:]))
    assert torch.allclose(none, every, atol=1e-12) and torch.allclose(none, last, atol=1e-12)


def test_rows_that_were_let_go_are_refused():
    cache = new_cache(max_rollback=5, max_rows=16)
    for first in range(0, 128, 16):
        cache.view(first, 16)
    with pytest.raises(ValueError, match="no longer held"):
        cache.view(40, 16)


def test_masks_are_aligned_as_kernels_of_gpus_want_them():
    """A slice of a larger mask began at any address: a GPU stopped at the first cached pass."""
    cache, seen = new_cache(max_rollback=5, max_rows=16), set()
    for first in range(0, 40, 3):
        for n, block in ((2, 0), (3, 2), (16, 8)):
            mask = cache.view(first, n, block).mask
            assert mask.data_ptr() % 16 == 0 and mask.is_contiguous(), (first, n)
            seen.add(mask.shape[1])
        cache.view(first, 3)
    assert len(seen) > 10


def test_it_draws_the_rule(capsys):
    """What is drawn: twelve clean rows that see six each, and a block of four at position 8."""
    layers.main([])
    lines = capsys.readouterr().out.splitlines()
    clean = [line.split()[2:] for line in lines if line.startswith("clean ")]
    block = [line.split()[2:] for line in lines if line.startswith("block ")]
    assert clean[0] == ["■···········", "····"] and clean[7] == ["··■■■■■■····", "····"]
    assert len(clean) == 12 and block == [["··■■■■■■····", "■■■■"]] * 4
