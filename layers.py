"""What the patcher and the model share: who sees whom, RoPE, the Transformer layer, cross-attention and the KV cache.

Letters in shape comments: B batch, N rows (bytes, or patches), S rows seen, D width, H heads, C = D / H head width.
"""
import torch
import torch.nn.functional as F
from torch import nn


def sees(query, query_block, key, key_block, window):
    """The attention rule of every causal and every block-diffusion row (BLT §3; Fast BLT §3.2), as a pure predicate.

    query, key: byte positions (any shapes that broadcast, e.g. (N, 1) and (1, S)). query_block, key_block: where the
    row's block starts, or -1 for a clean row. A clean row is the case of a "block" that starts right after itself.
    Returns a bool tensor: may the query's row read the key's row?
    """
    clean_query, clean_key = query_block < 0, key_block < 0
    start = torch.where(clean_query, query + 1, query_block)  # the first position whose clean row must stay hidden
    past = clean_key & (key < start) & (key >= start - window)
    own_block = ~clean_query & (key_block == query_block)
    return past | own_block


def rotary(positions, head_width, theta, dtype=torch.float32):
    """RoPE factors at `positions` (..., N) -> cos, sin, each (..., N, 1, 1, C); angles in float64, exact at any length."""
    frequency = theta ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angle = positions.cpu().double()[..., None, None, None] * frequency    # (..., N, 1, 1, C/2)
    cos, sin = torch.cos(angle), torch.sin(angle)
    cos, sin = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)       # (..., N, 1, 1, C): the sign serves `rotate`
    return cos.to(positions.device, dtype), sin.to(positions.device, dtype)


def rotate(x, rope):
    """Turn each pair (x_c, x_{c+C/2}) of queries and keys x (B, N, 2, H, C) by its row's angle."""
    cos, sin = rope
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def attend(q, k, v, mask=None, causal=False):
    """Attention of q (B, H, N, C) over k, v (B, H, S, C); mask: bool, or 0 / -inf of q's type, (.., N, S)."""
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # With narrow heads the fused kernels are faster in float32 than in bfloat16 on CPUs; matrix products are not.
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask, is_causal=causal)
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)


def attend_window(q, k, v, window):
    """Causal attention over rows 0..N-1 in which a row sees `window` rows, itself included: (B, H, N, C) each.

    Rows are taken in blocks of `window`, which see themselves and the block before: N * 2 window scores instead of N * N.
    """
    B, H, N, C = q.shape
    if N <= window:
        return attend(q, k, v, causal=True)
    q, k, v = (F.pad(t, (0, 0, 0, -N % window)) for t in (q, k, v))
    blocks = q.shape[2] // window
    fold = lambda t: t.reshape(B, H * blocks, window, C)
    with_previous = lambda t: torch.cat([fold(F.pad(t, (0, 0, window, 0))[:, :, :-window]), fold(t)], 2)  # (B, H blocks, 2 window, C)
    key = torch.arange(2 * window, device=q.device)
    clean = torch.full_like(key, -1)
    allowed = sees(key[window:, None], clean[:window, None], key[None], clean[None], window)
    allowed = allowed.repeat(H, blocks, 1, 1)                             # (H, blocks, window, 2 window)
    allowed[:, 0, :, :window] = False                                     # nothing comes before the first block
    y = attend(fold(q), with_previous(k), with_previous(v), allowed.flatten(0, 1))
    return y.reshape(B, H, -1, C)[:, :, :N]


class Layer(nn.Module):
    """Pre-norm Transformer layer: attention with RoPE over a sliding window of rows, then SwiGLU; no biases."""

    def __init__(self, width, heads, hidden, window):
        super().__init__()
        self.heads, self.window = heads, window
        self.attention_norm = nn.RMSNorm(width, eps=1e-5)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.ffn_norm = nn.RMSNorm(width, eps=1e-5)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)  # both in one product
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x, rope, mask=None, past=None):
        """x (B, N, D) -> (B, N, D).

        past None (training): rows are causal within the window, but for the last P if there is a mask (B, 1, P, N): that is
        what these see. past: this layer's rows of a Cache, (2, B, H, S, C), whose last N are filled here with the keys and
        values of x; all S are seen, or what the mask (N, S) allows.
        """
        B, N, D = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(B, N, 3, self.heads, D // self.heads)
        q, k = rotate(qkv[:, :, :2], rope).permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, N, C)
        v = qkv[:, :, 2].transpose(1, 2)
        if past is not None:
            past[0][:, :, -N:], past[1][:, :, -N:] = k, v
            k, v = past[0], past[1]                                       # (B, H, S, C)
            y = attend(q, k, v, mask)                                     # (B, H, N, C)
        elif mask is None:
            y = attend_window(q, k, v, self.window)
        else:
            clean = N - mask.shape[-2]
            y = attend(q[:, :, clean:], k, v, mask)
            if clean:
                y = torch.cat([attend_window(*(t[:, :, :clean] for t in (q, k, v)), self.window), y], 2)
        x = x + self.out(y.transpose(1, 2).reshape(B, N, D))
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, -1)            # each (B, N, hidden)
        return x + self.down(F.silu(gate) * up)


def run_layers(layers, x, rope, mask=None, past=None):
    """x through a list of Layers; past: None or the Cache rows of all of them, (layers, 2, B, H, S, C)."""
    for i, layer in enumerate(layers):
        x = layer(x, rope, mask, None if past is None else past[i])
    return x


class CrossAttention(nn.Module):
    """Pre-norm cross-attention between rows of one width, without positions; adds its input once."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query_norm = nn.RMSNorm(width, eps=1e-5)
        self.source_norm = nn.RMSNorm(width, eps=1e-5)
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def project(self, source):
        """Keys and values of source (B, S, D), stacked: (2, B, H, S, C)."""
        B, S, D = source.shape
        return self.kv(self.source_norm(source)).view(B, S, 2, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)

    def forward(self, x, kv, mask=None):
        """x (B, N, D) reads kv (2, B, H, S, C) where mask (.., N, S) allows -> (B, N, D)."""
        B, N, D = x.shape
        q = self.q(self.query_norm(x)).view(B, N, self.heads, D // self.heads).transpose(1, 2)  # (B, H, N, C)
        y = attend(q, kv[0], kv[1], mask)
        return x + self.out(y.transpose(1, 2).reshape(B, N, D))


class Cache:
    """Storage for the keys and values of one stack: the latest rows of an endless sequence in a buffer of fixed size.

    Position p lies in slot p - base; when the buffer is full, the rows still within reach move to the front. What is valid
    is for the owner to know: rows from the position it writes next are scratch. Constant memory, and no copy per row.
    """

    def __init__(self, layers, heads, head_width, window, reach, room, theta, like):
        """window: rows a row sees; reach: how far back the owner may go; room: most rows a pass writes; like: a parameter."""
        self.window, self.reach = window, reach
        self.capacity = 2 * (window + reach) + room
        self.base, self.theta = 0, theta
        self.rows = torch.zeros(layers, 2, 1, heads, self.capacity, head_width, dtype=like.dtype, device=like.device)
        self.templates = {}
        self._turn()

    def _turn(self):
        if self.theta:
            slots = torch.arange(self.base, self.base + self.capacity, device=self.rows.device)
            self.rope = rotary(slots, self.rows.shape[-1], self.theta, self.rows.dtype)  # each (capacity, 1, 1, C)

    def span(self, low, high):
        """The rows of positions low..high-1, (layers, 2, 1, H, high - low, C): a view, to read and to fill."""
        if high - self.base > self.capacity:
            base = max(self.base, low - self.reach)
            kept = self.rows[..., base - self.base:, :].clone()
            self.rows[..., :kept.shape[-2], :] = kept
            self.base = base
            self._turn()
        if low < self.base:
            raise ValueError(f"position {low} is no longer held: the cache starts at {self.base}")
        return self.rows[..., low - self.base:high - self.base, :]

    def view(self, first, n, block=0):
        """What a pass over the n rows from position `first` needs -> (rope, mask, past), as `run_layers` takes them.

        The last `block` of them are the rows of one block, the others clean.
        """
        clean_row = n == 1 and not block  # sees all that it is given: no mask
        low = max(0, first - self.window + clean_row)
        past = self.span(low, first + n)
        rope = tuple(r[first - self.base:first + n - self.base] for r in self.rope)     # each (N, 1, 1, C)
        mask = None if clean_row else self._template(n, block)[:, -past.shape[-2]:]     # (N, S)
        return rope, mask, past

    def _template(self, n, block):
        """The mask of n rows over the `window` rows before them and themselves, (N, window + N), 0 or -inf."""
        if (n, block) not in self.templates:
            if len(self.templates) > 64:
                self.templates.clear()                                    # odd prefill sizes must not pile up
            position = torch.arange(-self.window, n)
            start = torch.where(position >= n - block, n - block, -1)
            allowed = sees(position[-n:, None], start[-n:, None], position[None], start[None], self.window)
            mask = torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))
            self.templates[n, block] = mask.to(self.rows.device, self.rows.dtype)
        return self.templates[n, block]
