"""layers.py: who sees whom, RoPE, layers, cross-attention and the chained head, against loops."""

import math

import pytest
import torch

from layers import (
    CLEAN,
    ChainedHead,
    CrossAttention,
    Layer,
    Rows,
    Stack,
    View,
    attend,
    mask_of,
    rotary,
    rotate,
    sees,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_weights(module, seed=0):
    """A module in float64 with weights of which none is zero, and norms that are not one."""
    torch.manual_seed(seed)
    for p in module.double().parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.3)
    return module


# ---- who sees whom

# (position, start of its block, is it a drafted byte?), clean rows and blocks of every kind: cells
# alone, drafted bytes alone, drafted bytes in front of cells
ROWS = [(i, CLEAN, False) for i in range(12)]
ROWS += [(3 + j, 3, False) for j in range(4)]
ROWS += [(4 + j, 4, True) for j in range(4)]
ROWS += [(9 + j, 9, j < 2) for j in range(5)]


def rows_of(listed):
    position, start, draft = zip(*listed)
    return Rows(torch.tensor(position), torch.tensor(start), torch.tensor(draft))


def may_read(query, key, window):
    """The rule of layers.sees for one pair of rows, case by case."""
    position, start, drafted = query
    of_key, start_of_key, _ = key
    recent = position - window < of_key <= position
    if start == CLEAN:
        return start_of_key == CLEAN and recent
    if start_of_key not in (CLEAN, start):
        return False
    if drafted:  # from left to right, but no clean row of what the block holds
        return recent and (start_of_key == start or of_key < start)
    if start_of_key == start:
        return True
    return start - window <= of_key < start


@pytest.mark.parametrize("window", [1, 2, 5, 100])
def test_mask_predicate_against_a_loop(window):
    """Clean rows are causal; a block sees the clean rows before its start, and itself.

    Guards: block rows that read the clean twin of the byte they must predict.
    """
    rows = rows_of(ROWS)
    query = Rows(*(x[:, None] for x in rows))
    got = sees(query, Rows(*(x[None] for x in rows)), window)
    for q, asking in enumerate(ROWS):
        for k, asked in enumerate(ROWS):
            assert got[q, k] == may_read(asking, asked, window), (asking, asked)
    assert torch.equal(mask_of(rows, window), got)


def test_no_row_reads_what_it_must_predict():
    """Neither a cell its own clean byte or a later one, nor a clean or a drafted row the next."""
    mask = mask_of(rows_of(ROWS), 100)
    for q, (position, start, drafted) in enumerate(ROWS):
        for k, (of_key, start_of_key, _) in enumerate(ROWS):
            if start != CLEAN and start_of_key == CLEAN and of_key >= start:
                assert not mask[q, k]
            if (start == CLEAN or drafted) and of_key > position:
                assert not mask[q, k]
            if start_of_key not in (CLEAN, start):
                assert not mask[q, k]


@pytest.mark.parametrize("window", [1, 2, 7, 100])
def test_clean_rows_are_causal(window):
    seen = mask_of(Rows.clean(20, "cpu"), window)
    assert seen.tolist() == [[i - window < j <= i for j in range(20)] for i in range(20)]


def test_masks_of_a_batch_are_those_of_its_rows():
    """(B, 1, N, N): each row of a batch has blocks of its own, all heads alike."""
    other = [(i, CLEAN, False) for i in range(20)] + [(7 + j, 7, False) for j in range(5)]
    batch = Rows(*(torch.stack(both) for both in zip(rows_of(ROWS), rows_of(other))))
    masks = mask_of(batch, 5)
    assert masks.shape == (2, 1, 25, 25)
    assert torch.equal(masks[0, 0], mask_of(rows_of(ROWS), 5))
    assert torch.equal(masks[1, 0], mask_of(rows_of(other), 5))


# ---- RoPE


def test_rope_depends_on_distance_alone_even_far_out():
    q, k = normal(2, 1, 1, 1, 1, 16).unbind(0)

    def turned(x, i):
        return rotate(x, rotary(torch.tensor([i]), 16, 500000.0, torch.float64))

    def score(i, j):
        return (turned(q, i) * turned(k, j)).sum().item()

    assert score(7, 3) == pytest.approx(score(1_000_007, 1_000_003), abs=1e-9)
    assert score(7, 3) != pytest.approx(score(7, 4), abs=1e-3)


def test_rotation_is_that_of_pairs():
    """Channels c and c + C/2 are the two parts of a complex number, turned by position / base^."""
    positions = torch.tensor([0, 1, 5, 77])
    x = normal(2, 4, 2, 3, 8, seed=1)  # (B, N, queries and keys, H, C)
    got = rotate(x, rotary(positions, 8, 10000.0, torch.float64))
    for n, position in enumerate(positions.tolist()):
        for c in range(4):
            angle = position * 10000.0 ** (-c / 4)
            a, b = x[:, n, ..., c], x[:, n, ..., c + 4]
            expected = a * math.cos(angle) - b * math.sin(angle)
            assert torch.allclose(got[:, n, ..., c], expected, atol=1e-12)
            expected = b * math.cos(angle) + a * math.sin(angle)
            assert torch.allclose(got[:, n, ..., c + 4], expected, atol=1e-12)


def test_angles_are_exact_at_any_position():
    """Guards: angles in float32, which hold no position beyond 16 million."""
    far = 123_456_789
    cos, sin = rotary(torch.tensor([far]), 8, 10000.0)
    assert cos.dtype == torch.float32 and cos.shape == (1, 1, 1, 8)
    for c in range(4):
        angle = far * 10000.0 ** (-c / 4)
        assert cos[..., c].item() == pytest.approx(math.cos(angle), abs=1e-6)
        assert -sin[..., c].item() == pytest.approx(math.sin(angle), abs=1e-6)


def test_rope_is_computed_where_the_positions_are():
    """Guards: a host that computes sines for its GPU: a wait, and a thread that limits training."""
    for factors in rotary(torch.arange(5, device="meta").view(1, 5), 8, 10000.0):
        assert factors.device.type == "meta" and factors.shape == (1, 5, 1, 1, 8)


# ---- attention


def slow_attention(q, k, v, mask):
    """q (H, N, C) over k, v (H, S, C), mask (N, S), a row and a head at a time -> (H, N, C)."""
    y = torch.zeros_like(q)
    for h in range(len(q)):
        for n in range(q.shape[1]):
            scores = torch.stack([q[h, n] @ row for row in k[h]]) / q.shape[-1] ** 0.5
            shares = torch.exp(scores) * mask[n]
            y[h, n] = (shares / shares.sum()) @ v[h]
    return y


def test_attention_against_a_loop():
    q = normal(2, 3, 5, 4)
    k, v = normal(2, 2, 3, 7, 4, seed=1).unbind(0)
    mask = torch.rand(5, 7, generator=torch.Generator().manual_seed(2)) < 0.6
    mask[:, 0] = True
    got = attend(q, k, v, mask)
    everything = attend(q, k, v)
    for b in range(2):
        expected = slow_attention(q[b], k[b], v[b], mask)
        assert torch.allclose(got[b], expected, atol=1e-12)
        expected = slow_attention(q[b], k[b], v[b], torch.ones_like(mask))
        assert torch.allclose(everything[b], expected, atol=1e-12)
    added = torch.zeros(5, 7, dtype=torch.float64).masked_fill(~mask, -math.inf)
    assert torch.allclose(attend(q, k, v, added), got, atol=1e-12)


def test_attention_of_a_cpu_is_float32_under_autocast():
    q, k, v = normal(3, 1, 2, 5, 4).to(torch.bfloat16).unbind(0)
    with torch.autocast("cpu", torch.bfloat16):
        got = attend(q, k, v)
    assert got.dtype == torch.float32
    assert torch.allclose(got, attend(q.float(), k.float(), v.float()), atol=1e-6)


# ---- layers

WINDOW = 9
BASE = 10000.0
WIDTH = 16
HEADS = 2


def view_of(rows, window=WINDOW):
    return View.of(rows, window, WIDTH // HEADS, BASE, torch.float64)


def slow_norm(x, norm):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight


def slow_layer(layer, x, rows, window):
    """layers.Layer on rows x (N, D) of one text, in the plainest words."""
    N, D = x.shape
    q, k, v = (
        (layer.qkv.weight @ slow_norm(x, layer.attention_norm).T).T.view(N, 3, HEADS, -1).unbind(1)
    )
    rope = rotary(rows.position, D // HEADS, BASE, torch.float64)
    q, k = rotate(torch.stack([q, k], 1)[None], rope)[0].unbind(1)
    mask = mask_of(rows, window)
    y = slow_attention(q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), mask)
    x = x + y.transpose(0, 1).reshape(N, D) @ layer.out.weight.T
    gate, up = (slow_norm(x, layer.ffn_norm) @ layer.gate_up.weight.T).chunk(2, -1)
    return x + (gate / (1 + torch.exp(-gate)) * up) @ layer.down.weight.T


@torch.no_grad()
def test_layers_against_plain_words():
    """Pre-norm attention with RoPE, then SwiGLU, one layer after the other; no biases."""
    stack = random_weights(Stack(2, WIDTH, HEADS, 24))
    assert [layer.depth for layer in stack] == [0, 1]
    assert not [name for name, _ in stack.named_parameters() if name.endswith("bias")]
    rows = rows_of(ROWS)
    x = normal(2, len(ROWS), WIDTH, seed=1)
    got = stack(x, view_of(rows))
    for b in range(2):
        expected = x[b]
        for layer in stack:
            expected = slow_layer(layer, expected, rows, WINDOW)
        assert torch.allclose(got[b], expected, atol=1e-11)


@torch.no_grad()
def test_a_batch_of_masks_equals_its_rows_one_by_one():
    """Guards: rows of a batch that meet, where each has a mask and positions of its own."""
    stack = random_weights(Stack(2, WIDTH, HEADS, 24))
    other = [(i, CLEAN, False) for i in range(20)] + [(7 + j, 7, False) for j in range(5)]
    listed = [rows_of(ROWS), rows_of(other)]
    x = normal(2, 25, WIDTH, seed=2)
    together = stack(x, view_of(Rows(*(torch.stack(both) for both in zip(*listed)))))
    for b, rows in enumerate(listed):
        assert torch.allclose(together[b : b + 1], stack(x[b : b + 1], view_of(rows)), atol=1e-11)


@torch.no_grad()
def test_a_row_does_not_depend_on_what_it_does_not_see():
    """Padding behind a text, other blocks, bytes out of the window: nothing of them comes through.

    That is in one layer; two see twice as far.
    """
    layer = random_weights(Layer(WIDTH, HEADS, 24))
    rows = rows_of(ROWS)
    seen = mask_of(rows, 4)
    x = normal(1, len(ROWS), WIDTH, seed=3)
    before = layer(x, view_of(rows, 4))
    for k in range(len(ROWS)):
        changed = x.clone()
        changed[0, k] = normal(WIDTH, seed=4)
        moved = (layer(changed, view_of(rows, 4)) - before).abs().amax(-1)[0] > 1e-12
        assert torch.equal(moved, seen[:, k])


# ---- cross-attention


def slow_cross(cross, x, source):
    """x (N, D) reads source (S, D), vector by vector and head by head -> (N, D)."""
    D = x.shape[1]
    C = D // cross.heads
    q = slow_norm(x, cross.query_norm) @ cross.q.weight.T
    k, v = (slow_norm(source, cross.source_norm) @ cross.kv.weight.T).split(D, -1)
    y = torch.zeros_like(x)
    for n in range(len(x)):
        for h in range(cross.heads):
            mine = slice(h * C, (h + 1) * C)
            shares = torch.softmax(k[:, mine] @ q[n, mine] / C**0.5, 0)
            y[n, mine] = shares @ v[:, mine]
    return cross.residual * x + y @ cross.out.weight.T


@pytest.mark.parametrize("residual", [1, 2])
@torch.no_grad()
def test_a_patch_reads_its_bytes_and_no_others(residual):
    """k vectors of each patch read as many bytes as are there: (patches, k, D) over (.., L, D)."""
    cross = random_weights(CrossAttention(12, 3, residual))
    patches, k, L = 6, 2, 4
    queries = normal(patches, k, 12, seed=1)
    members = normal(patches, L, 12, seed=2)
    lengths = [1, 4, 2, 3, 4, 1]
    there = torch.arange(L) < torch.tensor(lengths)[:, None]
    got = cross(queries, cross.project(members), there)
    for p, length in enumerate(lengths):
        expected = slow_cross(cross, queries[p], members[p, :length])
        assert torch.allclose(got[p], expected, atol=1e-12), p
    # What is not there may be anything.
    members[~there] = 1e3
    assert torch.equal(cross(queries, cross.project(members), there), got)


@pytest.mark.parametrize("residual", [1, 2])
@torch.no_grad()
def test_a_byte_reads_one_latent(residual):
    """A row each, which reads the k vectors of its latent: (bytes, 1, D) over (bytes, k, D)."""
    cross = random_weights(CrossAttention(12, 3, residual))
    latents = normal(3, 2, 12, seed=1)
    reads = [0, 0, 1, 2, 2]
    x = normal(5, 1, 12, seed=2)
    got = cross(x, cross.project(latents)[reads])
    for row, latent in enumerate(reads):
        assert torch.allclose(got[row], slow_cross(cross, x[row], latents[latent]), atol=1e-12)


def test_groups_of_few_rows_are_written_out(monkeypatch):
    """Guards: fused attention, which fills a tile of 64 queries for a group that has one or two.

    It was most of a training step on an H100.
    """
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)
    cross = random_weights(CrossAttention(12, 3))
    x = normal(5, 1, 12)
    source = normal(5, 2, 12)
    for there in (None, torch.ones(5, 2, dtype=torch.bool)):
        assert cross(x, cross.project(source), there).shape == x.shape


# ---- the chained head


def slow_chain(chain, rows, before):
    """A block's rows (K, D) corrected cell by cell, with a GRU in plain words -> (K, D)."""
    of_input = chain.gru.weight_ih_l0
    of_state = chain.gru.weight_hh_l0
    state = rows.new_zeros(of_state.shape[1])
    corrected = []
    for row, id_ in zip(rows, before):
        x = (of_input @ torch.cat([row, chain.embed.weight[id_]])).chunk(3)
        h = (of_state @ state).chunk(3)
        reset = torch.sigmoid(x[0] + h[0])
        update = torch.sigmoid(x[1] + h[1])
        new = torch.tanh(x[2] + reset * h[2])
        state = (1 - update) * new + update * state
        corrected.append(row + chain.out.weight @ state)
    return torch.stack(corrected)


@torch.no_grad()
def test_the_chained_head_against_a_loop():
    """Blocks at once, cell by cell with the state between, and the plain words: all the same."""
    chain = random_weights(ChainedHead(20, 8, 6))
    rows = normal(3, 5, 8, seed=1)
    before = torch.randint(20, (3, 5), generator=torch.Generator().manual_seed(2))
    whole, last = chain(rows, before)
    for b in range(3):
        assert torch.allclose(whole[b], slow_chain(chain, rows[b], before[b]), atol=1e-12)
    state = None
    for j in range(5):
        of_cell = slice(j, j + 1)
        cell, state = chain(rows[:, of_cell], before[:, of_cell], state)
        assert torch.allclose(cell, whole[:, of_cell], atol=1e-12)
    assert torch.allclose(state, last, atol=1e-12)


@torch.no_grad()
def test_a_cell_knows_the_bytes_before_it_alone():
    chain = random_weights(ChainedHead(20, 8, 6))
    rows = normal(1, 5, 8, seed=1)
    before = torch.tensor([[1, 2, 3, 4, 5]])
    whole, _ = chain(rows, before)
    before[0, 3] = 9
    moved = (chain(rows, before)[0] - whole).abs().amax(-1)[0] > 1e-12
    assert moved.tolist() == [False, False, False, True, True]


def test_the_chained_head_learns_in_float32_under_autocast():
    """Guards: a GRU whose gradients vanish in half precision."""
    chain = ChainedHead(20, 8, 6)
    rows = torch.randn(2, 4, 8)
    before = torch.randint(20, (2, 4))
    expected, _ = chain(rows, before)
    with torch.autocast("cpu", torch.bfloat16):
        got, state = chain(rows, before)
        _, of_half = chain(rows.to(torch.bfloat16), before)
    assert state.dtype == of_half.dtype == torch.float32
    assert torch.allclose(state[0], chain.gru(torch.cat([rows, chain.embed(before)], -1))[1][0])
    assert torch.allclose(got, expected, atol=0.02)
    got.sum().backward()
    assert chain.gru.weight_hh_l0.grad.dtype == torch.float32
    assert chain.gru.weight_hh_l0.grad.abs().sum() > 0
