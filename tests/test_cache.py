"""fast/cache.py: rows in pieces, with kept keys and values, against whole sequences."""

import pytest
import torch

from fast.cache import Buffer, Cache
from layers import CLEAN, Rows, Stack, View, mask_of

WINDOW = 9
BASE = 10000.0
WIDTH = 16
HEADS = 2


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def stack():
    """Two layers in float64, whose norms are not one."""
    torch.manual_seed(0)
    modules = Stack(2, WIDTH, HEADS, 24).double()
    for p in modules.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.3)
    return modules


def whole_of(stack, x, rows):
    """The stack over all of x (1, N, D) at once."""
    return stack(x, View.of(rows, WINDOW, WIDTH // HEADS, BASE, torch.float64))


def new_cache(max_rollback=5, max_rows=16, dtype=torch.float64):
    like = torch.zeros(1, dtype=dtype)
    return Cache(2, HEADS, WIDTH // HEADS, WINDOW, max_rollback, max_rows, BASE, like)


# ---- rows of a text


@torch.no_grad()
def test_rows_in_pieces_through_a_cache_equal_the_whole(stack):
    """Pieces of any sizes, some taken twice after a step back, past several turns of the buffer."""
    x = normal(1, 200, WIDTH, seed=1)
    cache = new_cache()
    whole = whole_of(stack, x, Rows.clean(200, "cpu"))
    first = 0
    sizes = [1, 1, 16, 3, 1, 8]
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
def test_a_row_needs_no_mask_where_it_sees_all_that_it_is_given(stack):
    """One row and its window, or one row and a mask of many: the same."""
    x = normal(1, 40, WIDTH, seed=4)
    whole = whole_of(stack, x, Rows.clean(40, "cpu"))
    cache = new_cache()
    for first in range(40):
        view = cache.view(first, 1)
        assert view.mask is None
        assert torch.allclose(stack(x[:, first : first + 1], view), whole[:, first : first + 1])


# ---- a block behind it


@torch.no_grad()
@pytest.mark.parametrize("drafted", [0, 1, 3])
def test_a_block_behind_clean_rows_equals_the_whole(stack, drafted):
    """The same rule in both views: n clean rows, then drafted bytes and K cells of a block."""
    x = normal(1, 48, WIDTH, seed=2)
    for n, K in ((0, 4), (1, 1), (3, 5), (7, 8), (2, 0)):
        start = 20 + n
        stop = start + drafted + K
        position = torch.arange(stop)
        of_block = torch.where(position >= start, start, CLEAN)
        rows = Rows(position, of_block, (position >= start) & (position < start + drafted))
        whole = whole_of(stack, x[:, :stop], rows)

        cache = new_cache(max_rows=20)
        for first, many in ((0, 16), (16, 4)):
            stack(x[:, first : first + many], cache.view(first, many))
        if stop > 20:
            got = stack(x[:, 20:stop], cache.view(20, stop - 20, start, K))
            assert torch.allclose(got, whole[:, 20:], atol=1e-12), (n, K)
        # What of the block is there already is not run again, however much that is.
        for same in range(1, drafted + 1):
            stack(x[:, 20 : start + same], cache.view(20, start + same - 20, start))
            if start + same < stop:
                view = cache.view(start + same, stop - start - same, start, K)
                got = stack(x[:, start + same : stop], view)
                assert torch.allclose(got, whole[:, start + same :], atol=1e-12), (n, K, same)


@torch.no_grad()
def test_a_block_leaves_nothing_behind(stack):
    """The text goes on over it: its keys and values are scratch."""
    x = normal(1, 30, WIDTH, seed=3)
    whole = whole_of(stack, x, Rows.clean(30, "cpu"))
    cache = new_cache()
    for first in range(0, 30, 5):
        stack(normal(1, 6, WIDTH, seed=first), cache.view(first, 6, first + 2, 4))
        got = stack(x[:, first : first + 5], cache.view(first, 5))
        assert torch.allclose(got, whole[:, first : first + 5], atol=1e-12), first


# ---- masks


def test_masks_are_those_of_the_rule():
    """0 where layers.sees lets a row read, else -inf, of exactly the rows that are given."""
    for first in (0, 3, 9, 30):
        for n, block, cells in ((2, 2, 0), (5, 2, 3), (4, 0, 4), (6, 4, 1), (3, -2, 2), (1, -1, 1)):
            if first + block < 1:
                continue
            cache = new_cache(max_rollback=10)
            start = first + block
            mask = cache.view(first, n, start, cells).mask
            position = torch.arange(first + n)
            rows = Rows(
                position,
                torch.where(position >= start, start, CLEAN),
                (position >= start) & (position < first + n - cells),
            )
            seen = mask_of(rows, WINDOW)[first:]
            S = mask.shape[1]
            assert torch.equal(mask == 0, seen[:, -S:]), (first, n, block, cells)
            assert not seen[:, :-S].any() and set(mask.unique().tolist()) <= {0, -torch.inf}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_masks_are_aligned_as_kernels_of_gpus_want_them(dtype):
    """A slice of a larger mask began at any address: a GPU stopped at the first cached pass."""
    widths = set()
    for n in range(1, 17):
        for cells in range(n + 1):
            cache = new_cache(dtype=dtype)
            for first in (*range(1, 2 * WINDOW), 60):
                for block in {0, n - cells, n - cells - 1, -1}:
                    if not -1 <= block <= n - cells:
                        continue
                    start = None if n == block else first + block
                    mask = cache.view(first, n, start, cells).mask
                    if mask is not None:
                        assert mask.data_ptr() % 16 == 0 and mask.is_contiguous()
                        widths.add(mask.shape[1])
    assert len(widths) > 20


def test_masks_do_not_pile_up():
    """Guards: one more for every odd size of a prompt, for good."""
    cache = new_cache(max_rows=300)
    for n in range(2, 300):
        cache.view(0, n)
    assert len(cache.masks) <= 65


# ---- what is let go


def test_rows_that_were_let_go_are_refused():
    cache = new_cache()
    for first in range(0, 128, 16):
        cache.view(first, 16)
    with pytest.raises(ValueError, match="no longer held"):
        cache.view(40, 16)


def test_a_buffer_keeps_its_latest_rows():
    """Whatever is written and however often it turns, what a rollback may ask for is there."""
    buffer = Buffer((2,), 3, window=4, max_rollback=6, max_rows=5, like=torch.zeros(1))
    written = torch.arange(400.0).view(1, 400, 1).expand(2, 400, 3)
    turns = set()
    first = 0
    for size in [1, 5, 2, 5, 3, 4] * 20:
        low = max(0, first - 4)
        rows = buffer.span(low, first + size)
        assert rows.shape == (2, first + size - low, 3)
        rows[:, first - low :] = written[:, first : first + size]
        assert torch.equal(rows, written[:, low : first + size])
        # The furthest that its owner may go back, without losing what is there
        back = max(0, first - 6)
        assert torch.equal(
            buffer.span(max(0, back - 4), first), written[:, max(0, back - 4) : first]
        )
        turns.add(buffer.base)
        first += size
    assert len(turns) > 5 and buffer.capacity == 2 * (4 + 6) + 5


def test_rope_goes_with_the_buffer(stack):
    """Guards: factors of slots instead of positions, once the buffer has turned."""
    cache = new_cache()
    for first in range(0, 320, 16):
        rope = cache.view(first, 16).rope
        expected = View.of(
            Rows.clean(first + 16, "cpu"), 1, WIDTH // HEADS, BASE, torch.float64
        ).rope
        assert all(torch.equal(got, whole[-16:]) for got, whole in zip(rope, expected))
    assert cache.base > 0
