"""Who sees whom, RoPE, the Transformer layer, cross-attention, the chained head.

Patcher, encoder, global model and decoder are all made of these pieces. Run it to see the
attention rule as a picture of clean rows and one block:

    python layers.py

Letters in shape comments: B batch, N rows (bytes, or patches), S rows that are read, K cells of a
block, D width, H heads, C = D / H head width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from support.hardware import block_mask, flexible

CLEAN = -1  # the `start` of rows that lie in no block

# ---- who sees whom


class Rows(NamedTuple):
    """What decides who sees whom: of each row, (N,) or (B, N)."""

    position: torch.Tensor  # of its byte (or patch) in the text
    start: torch.Tensor  # first position of its block; CLEAN for a row of the text itself
    draft: torch.Tensor  # bool: a byte of a block that is read from left to right, no cell

    @classmethod
    def clean(cls, n, device):
        """Rows 0..n-1 of a text."""
        position = torch.arange(n, device=device)
        start = torch.full_like(position, CLEAN)
        return cls(position, start, torch.zeros_like(position, dtype=torch.bool))


def sees(query, key, window):
    """May the row `query` read the row `key`? Rows whose shapes broadcast -> bool (Fast BLT §3.2).

    A clean row (of the text) reads the last `window` clean rows, itself included. Rows of a block
    read the last clean rows before it: a cell is to predict its byte, which the clean row there
    holds. Of their own block (no two of a text have one start) cells read everything, and draft
    rows themselves and what stands before them. Nobody else reads a block.
    """
    clean_query = query.start == CLEAN
    clean_key = key.start == CLEAN
    left_to_right = clean_query | query.draft
    # The first position whose clean row must stay hidden
    end = torch.where(clean_query, query.position + 1, query.start)
    # The window reaches back from here
    reach = torch.where(left_to_right, query.position + 1, query.start)
    past = clean_key & (key.position < end) & (key.position >= reach - window)
    own_block = ~clean_query & (key.start == query.start)
    in_order = (key.position <= query.position) & (key.position >= reach - window)
    return past | own_block & (in_order | ~query.draft)


def mask_of(rows, window):
    """Who sees whom among rows, as a mask that `attend` takes: bool (N, N) or (B, 1, N, N).

    For a batch on a GPU it is a BlockMask of FlexAttention, which asks the same rule tile by tile:
    dense masks would take gigabytes there.
    """

    def rule(b, h, query, key):
        of_query = Rows(*(x[b, query] for x in rows))
        of_key = Rows(*(x[b, key] for x in rows))
        return sees(of_query, of_key, window)

    if rows.position.ndim == 2 and rows.position.device.type == "cuda":
        return block_mask(rule, *rows.position.shape, rows.position.device)
    query = Rows(*(x[..., :, None] for x in rows))
    key = Rows(*(x[..., None, :] for x in rows))
    mask = sees(query, key, window)
    # (B, N, N) -> (B, 1, N, N): all heads alike
    return mask[:, None] if mask.ndim == 3 else mask


def rotary(positions, head_width, rope_base, dtype=torch.float32):
    """RoPE factors at `positions` (..., N) -> cos, sin, each (..., N, 1, 1, C).

    Angles are float64, so that they are exact at any position.
    """
    place = positions.device
    if place.type == "mps":  # it has no float64
        place = torch.device("cpu")
    channel = torch.arange(0, head_width, 2, dtype=torch.float64, device=place)
    frequency = rope_base ** (-channel / head_width)
    # (..., N, 1, 1, C / 2)
    angle = positions.to(place).double()[..., None, None, None] * frequency
    cos = torch.cos(angle)
    sin = torch.sin(angle)
    # (..., N, 1, 1, C), with the signs that `rotate` needs
    cos = torch.cat([cos, cos], -1)
    sin = torch.cat([-sin, sin], -1)
    return cos.to(positions.device, dtype), sin.to(positions.device, dtype)


def rotate(x, rope):
    """Turn each pair (x_c, x_{c + C/2}) of queries and keys x (B, N, 2, H, C) by its angle."""
    cos, sin = rope
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def attend(q, k, v, mask=None):
    """Attention of q (B, H, N, C) over k, v (B, H, S, C) -> (B, H, N, C).

    mask: None, bool or 0 / -inf (.., N, S), or a BlockMask.
    """
    if mask is not None and not isinstance(mask, torch.Tensor):
        return flexible("flex_attention")(q.to(v.dtype), k.to(v.dtype), v, block_mask=mask)
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # With narrow heads the fused kernels of CPUs are faster in float32 than in bfloat16.
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask)
    return F.scaled_dot_product_attention(q, k, v, mask)


def attend_few(q, k, v, there=None):
    """As attend, where there are few rows: each score is a sum of products, written out.

    there (B, S) bool: which rows of k and v there are. Fused kernels fill tiles of 64 queries.
    """
    # (B, H, N, 1, C) * (B, H, 1, S, C) -> (B, H, N, S)
    scores = (q[..., :, None, :] * k[..., None, :, :]).sum(-1) * q.shape[-1] ** -0.5
    if there is not None:
        scores = scores.masked_fill(~there[:, None, None], -torch.inf)
    shares = scores.softmax(-1).to(v.dtype)
    # (B, H, N, S, 1) * (B, H, 1, S, C) -> (B, H, N, C)
    return (shares[..., None] * v[..., None, :, :]).sum(-2)


class View(NamedTuple):
    """How the layers of a stack see the rows of a pass: RoPE factors, and who sees whom.

    fast/cache.py has another kind, whose earlier keys and values are kept.
    """

    rope: tuple
    mask: torch.Tensor

    @classmethod
    def of(cls, rows, window, head_width, rope_base, dtype):
        """Of rows whose keys and values are all here, nothing kept."""
        return cls(rotary(rows.position, head_width, rope_base, dtype), mask_of(rows, window))

    def attend(self, q, k, v, depth):
        """q, k, v (B, H, N, C) of layer number `depth` of the stack -> (B, H, N, C)."""
        return attend(q, k, v, self.mask)


class Layer(nn.Module):
    """Pre-norm Transformer layer: attention with RoPE, then SwiGLU; no biases."""

    def __init__(self, width, heads, hidden, depth=0):
        super().__init__()
        self.heads = heads
        self.depth = depth  # its number in its stack
        self.attention_norm = nn.RMSNorm(width, eps=1e-5)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.ffn_norm = nn.RMSNorm(width, eps=1e-5)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)  # both in one product
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x, view):
        """x (B, N, D) -> (B, N, D)."""
        B, N, D = x.shape
        # (B, N, 3 D) -> (B, N, 3, H, C)
        qkv = self.qkv(self.attention_norm(x)).view(B, N, 3, self.heads, D // self.heads)
        # (B, N, 2, H, C) -> q, k (B, H, N, C)
        q, k = rotate(qkv[:, :, :2], view.rope).permute(2, 0, 3, 1, 4)
        v = qkv[:, :, 2].transpose(1, 2)
        y = view.attend(q, k, v, self.depth)
        # (B, H, N, C) -> (B, N, D)
        x = x + self.out(y.transpose(1, 2).reshape(B, N, D))
        # (B, N, 2 hidden) -> each (B, N, hidden)
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Stack(nn.ModuleList):
    """Layers of one shape, one after the other."""

    def __init__(self, layers, width, heads, hidden):
        super().__init__(Layer(width, heads, hidden, depth) for depth in range(layers))

    def forward(self, x, view):
        """x (B, N, D) -> (B, N, D)."""
        for layer in self:
            x = layer(x, view)
        return x


class CrossAttention(nn.Module):
    """Pre-norm cross-attention between rows of one width, without positions.

    Rows come in groups, and each group reads sources of its own: the vectors of a patch read its
    bytes (encoder), or one byte reads the vectors of one latent (decoder).
    """

    def __init__(self, width, heads, residual=1):
        """residual: how often the input is added to the output; 2 in the original BLT."""
        super().__init__()
        self.heads = heads
        self.residual = residual
        self.query_norm = nn.RMSNorm(width, eps=1e-5)
        self.source_norm = nn.RMSNorm(width, eps=1e-5)
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def project(self, source):
        """source (..., D) -> its keys and values side by side (..., 2 D)."""
        return self.kv(self.source_norm(source))

    def forward(self, x, kv, there=None):
        """x (G, N, D), G groups of N rows, reads kv (G, S, 2 D) -> (G, N, D).

        there (G, S) bool: which of the S sources a group has; None: all of them.
        """
        G, N, D = x.shape
        # (G, N, D) -> (G, H, N, C)
        q = self.q(self.query_norm(x)).view(G, N, self.heads, -1).transpose(1, 2)
        # (G, S, 2 D) -> k, v (G, H, S, C)
        k, v = kv.view(G, -1, 2, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        y = attend_few(q, k, v, there)
        # (G, H, N, C) -> (G, N, D)
        y = self.out(y.transpose(1, 2).reshape(G, N, D))
        return torch.add(y, x, alpha=self.residual)


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

    def forward(self, rows, before, state=None):
        """rows (B, K, D) of blocks, before (B, K) the id before each cell -> rows (B, K, D), state.

        state (1, B, width): what the cells before these left behind, None for the first.
        """
        inputs = torch.cat([rows, self.embed(before).to(rows.dtype)], -1)
        # Under autocast cuDNN's GRU would run in float16, whose gradients vanish here.
        with torch.autocast(rows.device.type, enabled=False):
            states, state = self.gru(inputs.to(self.gru.weight_hh_l0.dtype), state)
        return rows + self.out(states), state


if __name__ == "__main__":
    from measure import ideas

    ideas.show("layers")
