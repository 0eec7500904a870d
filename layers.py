"""Who sees whom, RoPE, the Transformer layer, cross-attention and the KV cache.

Patcher, encoder, global model and decoder are all made of these pieces. Run it to see the
attention rule as a picture of clean rows and one block:

    python layers.py

Letters in shape comments: B batch, N rows (bytes, or patches), S rows seen, P rows of blocks,
D width, H heads, C = D / H head width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from support.machine import flexible
from support.show import draw_rows
from support.terminal import Parser, run

# ---- who sees whom


def in_window(key, start, window):
    """Is `key` one of the `window` positions before `start`?"""
    return (key < start) & (key >= start - window)


def causal(query, key, window):
    """May the clean row at `query` read that at `key`? Positions (N, 1), (1, S) -> bool (N, S)."""
    return in_window(key, query + 1, window)


def sees(query, query_block, key, key_block, window):
    """The attention rule of clean rows and of the rows of blocks (Fast BLT §3.2) -> bool.

    query, key: byte positions; query_block, key_block: where the row's block starts, or -1 for a
    clean row; shapes broadcast. Nobody reads a block but its own rows, and a block reads only what
    was there before it: a clean row from its start on would hold its answer.
    """
    clean_query, clean_key = query_block < 0, key_block < 0
    # The first position whose clean row must stay hidden.
    start = torch.where(clean_query, query + 1, query_block)
    past = clean_key & in_window(key, start, window)
    own_block = ~clean_query & (key_block == query_block)
    return past | own_block


def mask_of(rule, B, N, S, device):
    """rule(b, h, query, key) -> bool, as a mask that `attend` takes: (B, 1, N, S).

    On a GPU as blocks of FlexAttention, which asks the rule itself: dense ones take gigabytes.
    """
    if device.type == "cuda":
        return flexible("create_block_mask")(rule, B, None, N, S, device)
    b, query, key = (torch.arange(n, device=device) for n in (B, N, S))
    return rule(b[:, None, None], 0, query[:, None], key)[:, None]


# ---- RoPE


def rotary(positions, head_width, rope_base, dtype=torch.float32):
    """RoPE factors at `positions` (..., N) -> cos, sin, each (..., N, 1, 1, C); exact anywhere."""
    frequency = rope_base ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    # (..., N, 1, 1, C/2)
    angle = positions.cpu().double()[..., None, None, None] * frequency
    cos, sin = torch.cos(angle), torch.sin(angle)
    # (..., N, 1, 1, C), with the signs that `rotate` needs
    cos, sin = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
    return cos.to(positions.device, dtype), sin.to(positions.device, dtype)


def rotate(x, rope):
    """Turn each pair (x_c, x_{c + C/2}) of queries and keys x (B, N, 2, H, C) by its angle."""
    cos, sin = rope
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


# ---- attention


def attend(q, k, v, mask=None, is_causal=False):
    """Attention of q (B, H, N, C) over k, v (B, H, S, C).

    mask (.., N, S): bool, or 0 / -inf in q's own number format, or a BlockMask.
    """
    if mask is not None and not isinstance(mask, torch.Tensor):
        return flexible("flex_attention")(q.to(v.dtype), k.to(v.dtype), v, block_mask=mask)
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # With narrow heads the fused kernels of CPUs are faster in float32 than in bfloat16.
        with torch.autocast("cpu", enabled=False):
            q, k, v = q.float(), k.float(), v.float()
            return F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal)
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal)


def attend_window(q, k, v, window):
    """Causal attention in which a row sees `window` rows, itself included: (B, H, N, C) each.

    Chunks of `window` rows see themselves and the chunk before: N * 2 window scores, not N * N.
    """
    B, H, N, C = q.shape
    if N <= window:
        return attend(q, k, v, is_causal=True)
    q, k, v = (F.pad(x, (0, 0, 0, -N % window)) for x in (q, k, v))
    chunks = q.shape[2] // window

    def in_chunks(x):
        # (B, H * chunks, window, C)
        return x.reshape(B, H * chunks, window, C)

    def with_previous(x):
        # (B, H * chunks, 2 * window, C)
        previous = F.pad(x, (0, 0, window, 0))[:, :, :-window]
        return torch.cat([in_chunks(previous), in_chunks(x)], 2)

    position = torch.arange(2 * window, device=q.device)
    allowed = causal(position[window:, None], position[None], window)
    # (H, chunks, window, 2 * window): nothing comes before the first chunk
    allowed = allowed.repeat(H, chunks, 1, 1)
    allowed[:, 0, :, :window] = False
    y = attend(in_chunks(q), with_previous(k), with_previous(v), allowed.flatten(0, 1))
    return y.reshape(B, H, -1, C)[:, :, :N]


# ---- where a pass's rows lie and whom they see


class WholeView(NamedTuple):
    """Rows of whole sequences, nothing cached: training, and the slow twins of generation."""

    rope: tuple  # factors of all N rows
    # (.., P, N): whom the last P rows see; those before are causal within each layer's window
    mask: torch.Tensor | None = None

    @classmethod
    def causal(cls, n, head_width, rope_base, like):
        """Rows 0..n-1, each after the other. like: a parameter, for device and number format."""
        positions = torch.arange(n, device=like.device)
        return cls(rotary(positions, head_width, rope_base, like.dtype))

    def attend(self, depth, q, k, v, window):
        """q, k, v (B, H, N, C) of the layer number `depth` -> (B, H, N, C)."""
        if self.mask is None:
            return attend_window(q, k, v, window)
        clean = q.shape[2] - self.mask.shape[-2]
        y = attend(q[:, :, clean:], k, v, self.mask)
        if not clean:
            return y
        past = attend_window(q[:, :, :clean], k[:, :, :clean], v[:, :, :clean], window)
        return torch.cat([past, y], 2)


class PackedView(NamedTuple):
    """Rows of several sequences behind each other, without padding: S in all, B sequences."""

    rope: tuple  # factors of all S rows
    row: torch.Tensor  # (S,) which sequence each belongs to
    position: torch.Tensor  # (S,) its place there

    def attend(self, depth, q, k, v, window):
        """q, k, v (1, H, S, C) -> (1, H, S, C). Attention alone is padded: it costs least so."""
        place = self.row, self.position
        size = int(self.row.max()) + 1, int(self.position.max()) + 1

        def spread(x):
            # (1, H, S, C) -> (B, H, M, C)
            x = x[0].transpose(0, 1)
            return x.new_zeros(*size, *x.shape[1:]).index_put(place, x).transpose(1, 2)

        y = attend_window(spread(q), spread(k), spread(v), window)
        return y.transpose(1, 2)[place].transpose(0, 1)[None]


class CachedView(NamedTuple):
    """The next N rows of one endless sequence, whose earlier keys and values a Cache holds."""

    rope: tuple
    mask: torch.Tensor | None  # (N, S), 0 or -inf: whom they see; None: all of `past`
    past: torch.Tensor  # (layers, 2, B, H, S, C), rows up to and including these, to be filled in

    def attend(self, depth, q, k, v, window):
        """As WholeView.attend; the window is in the mask already."""
        keys, values = self.past[depth]
        keys[:, :, -q.shape[2] :], values[:, :, -q.shape[2] :] = k, v
        return attend(q, keys, values, self.mask)


# ---- layers


class Layer(nn.Module):
    """Pre-norm Transformer layer: attention with RoPE over a sliding window, SwiGLU; no biases."""

    def __init__(self, width, heads, hidden, window):
        super().__init__()
        self.heads, self.window = heads, window
        self.attention_norm = nn.RMSNorm(width, eps=1e-5)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.ffn_norm = nn.RMSNorm(width, eps=1e-5)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)  # both in one product
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x, view, depth):
        """x (B, N, D) -> (B, N, D). view: who sees whom; depth: number of this layer."""
        B, N, D = x.shape
        # (B, N, 3, H, C)
        qkv = self.qkv(self.attention_norm(x)).view(B, N, 3, self.heads, D // self.heads)
        # each (B, H, N, C)
        q, k = rotate(qkv[:, :, :2], view.rope).permute(2, 0, 3, 1, 4).unbind(0)
        v = qkv[:, :, 2].transpose(1, 2)
        y = view.attend(depth, q, k, v, self.window)
        # (B, H, N, C) -> (B, N, D)
        x = x + self.out(y.transpose(1, 2).reshape(B, N, D))
        # each (B, N, hidden)
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Stack(nn.ModuleList):
    """`depth` Layers of one shape, one after the other."""

    def __init__(self, depth, *shape):
        super().__init__(Layer(*shape) for _ in range(depth))

    def forward(self, x, view):
        """x (B, N, D) -> (B, N, D)."""
        for depth, layer in enumerate(self):
            x = layer(x, view, depth)
        return x


class CrossAttention(nn.Module):
    """Pre-norm cross-attention between rows of one width, without positions; adds its input once,
    or `residual` times."""

    def __init__(self, width, heads, residual=1):
        super().__init__()
        self.heads, self.residual = heads, residual
        self.query_norm = nn.RMSNorm(width, eps=1e-5)
        self.source_norm = nn.RMSNorm(width, eps=1e-5)
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def project(self, source):
        """Keys and values of source (B, S, D), stacked: (2, B, H, S, C)."""
        B, S, D = source.shape
        kv = self.kv(self.source_norm(source)).view(B, S, 2, self.heads, D // self.heads)
        return kv.permute(2, 0, 3, 1, 4)

    def forward(self, x, kv, reads=None):
        """x (B, N, D) reads kv (2, 1, H, S, C) -> (B, N, D).

        reads (M, few): which of the S each of M groups of rows reads, -1 for none; the groups are
        the B N rows in equal parts. None: all rows read all.
        """
        (B, N, D), H = x.shape, self.heads
        M = 1 if reads is None else len(reads)
        # (M, H, rows of a group, C)
        q = self.q(self.query_norm(x)).view(M, -1, H, D // H).transpose(1, 2)
        mask = None
        if reads is not None:
            # Copied to who reads it: cheaper than scores of all S, most of them hidden.
            # (S, 2 D) -> (2, M, H, few, C)
            kv = F.embedding(reads.clamp(min=0), kv.permute(1, 3, 0, 2, 4).reshape(-1, 2 * D))
            kv = kv.view(*reads.shape, 2, H, D // H).permute(2, 0, 3, 1, 4)
            mask = (reads >= 0)[:, None, None]
        y = attend(q, kv[0], kv[1], mask)
        return torch.add(self.out(y.transpose(1, 2).reshape(B, N, D)), x, alpha=self.residual)


class ChainedHead(nn.Module):
    """Corrects the rows of a block from left to right, each by the bytes drawn before it.

    One pass guesses the cells of a block apart from each other, so that neighbours need not fit.
    A small recurrent state, s_j = GRU(s_{j-1}, [row_j, embedding of byte j-1]), makes them fit.
    """

    def __init__(self, vocabulary, width, state):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.gru = nn.GRU(2 * width, state, bias=False, batch_first=True)
        self.out = nn.Linear(state, width, bias=False)

    def forward(self, rows, before):
        """rows (B, K, D) of blocks, before (B, K) the id before each cell -> rows (B, K, D)."""
        states, _ = self.gru(torch.cat([rows, self.embed(before).to(rows.dtype)], -1))
        return rows + self.out(states)


# ---- the KV cache


class Cache:
    """Keys and values of one stack: the latest rows of an endless sequence in a fixed buffer.

    Position p lies in slot p - base. When the buffer is full, the rows still needed move to its
    front. Rows from the position that the owner writes next are scratch.
    """

    def __init__(self, layers, heads, head_width, window, max_rollback, max_rows, rope_base, like):
        """window: rows a row sees. max_rollback: how far back the owner may go. max_rows: most
        rows that a pass writes. like: a parameter.
        """
        self.window, self.max_rollback, self.rope_base = window, max_rollback, rope_base
        self.capacity = 2 * (window + max_rollback) + max_rows
        shape = layers, 2, 1, heads, self.capacity, head_width
        # Not filled: of a wide window only what is used becomes memory, and no other row is read.
        self.rows = torch.empty(shape, dtype=like.dtype, device=like.device)
        self.base, self.masks = 0, {}
        self.turn()

    def turn(self):
        """Compute the RoPE factors of the positions that the buffer holds now."""
        if self.rope_base:
            slots = torch.arange(self.base, self.base + self.capacity, device=self.rows.device)
            # each (capacity, 1, 1, C)
            self.rope = rotary(slots, self.rows.shape[-1], self.rope_base, self.rows.dtype)

    def span(self, low, high):
        """Rows of positions low..high-1 to read and fill: (layers, 2, 1, H, high - low, C)."""
        if high - self.base > self.capacity:
            base = max(self.base, low - self.max_rollback)
            kept = self.rows[..., base - self.base :, :].clone()
            self.rows[..., : kept.shape[-2], :] = kept
            self.base = base
            self.turn()
        if low < self.base:
            raise ValueError(f"position {low} is no longer held: the cache starts at {self.base}")
        return self.rows[..., low - self.base : high - self.base, :]

    def view(self, first, n, block=0):
        """A pass over the n rows from position `first` on, the last `block` of them one block."""
        one_clean_row = n == 1 and not block  # sees all that it is given: no mask
        low = max(0, first - self.window + one_clean_row)
        past = self.span(low, first + n)
        # each (n, 1, 1, C)
        rope = tuple(r[first - self.base : first + n - self.base] for r in self.rope)
        mask = None if one_clean_row else self.mask(n, block)
        if mask is not None and past.shape[-2] < mask.shape[-1]:
            # A slice of it would begin at any address: kernels of GPUs want one they can divide.
            mask = mask[:, -past.shape[-2] :].clone()
        return CachedView(rope, mask, past)

    def mask(self, n, block):
        """Whom n rows see of the `window` rows before them and of themselves, (n, window + n)."""
        if (n, block) not in self.masks:
            if len(self.masks) > 64:
                self.masks.clear()  # odd prefill sizes must not pile up
            position = torch.arange(-self.window, n)
            start = torch.where(position >= n - block, n - block, -1)
            query = slice(self.window, None)
            allowed = sees(
                position[query, None], start[query, None], position[None], start[None], self.window
            )
            mask = torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))
            self.masks[n, block] = mask.to(self.rows.device, self.rows.dtype)
        return self.masks[n, block]


# ---- run: the rule as a picture


def options_from(argv):
    return Parser(prog="layers.py", description="Draw the attention rule.").parse_args(argv)


def main(argv=None):
    options_from(argv)
    n, window, begin, K = 12, 6, 8, 4
    position = torch.cat([torch.arange(n), begin + torch.arange(K)])
    start = torch.cat([torch.full((n,), -1), torch.full((K,), begin)])
    seen = sees(position[:, None], start[:, None], position[None], start[None], window)
    names = [str(p % 10) for p in position.tolist()]
    print(f"{n} clean rows that see {window}, and a block of {K} at position {begin}")
    draw_rows(seen.tolist(), ["clean"] * n + ["block"] * K, names, [n, K])


if __name__ == "__main__":
    run(main)
