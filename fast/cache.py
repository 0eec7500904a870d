"""Buffers that hold the latest rows of an endless sequence: keys and values of a stack, latents.

Letters in shape comments: n rows of a pass, S rows that it sees, H heads, C head width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from layers import CLEAN, Rows, rotary, sees


class Buffer:
    """The latest rows of an endless sequence, (.., capacity, width).

    Position p lies in slot p - base. When the buffer is full, the rows still needed move to its
    front. Rows from the position that the owner writes next are scratch.
    """

    def __init__(self, shape, width, window, max_rollback, max_rows, like):
        """shape: what stands in front of rows. window: rows that are read together. max_rollback:
        how far back the owner may go. max_rows: most rows written at once. like: a parameter.
        """
        self.window = window
        self.max_rollback = max_rollback
        self.capacity = 2 * (window + max_rollback) + max_rows
        # Not filled: of a wide window only what is used becomes memory, and no other row is read.
        size = (*shape, self.capacity, width)
        self.rows = torch.empty(size, dtype=like.dtype, device=like.device)
        self.base = 0

    def span(self, low, high):
        """Rows of positions low..high-1, to read and to fill: (.., high - low, width).

        Raises ValueError for rows that were let go.
        """
        if high - self.base > self.capacity:
            base = max(self.base, low - self.max_rollback)
            kept = self.rows[..., base - self.base :, :].clone()
            self.rows[..., : kept.shape[-2], :] = kept
            self.base = base
            self.turned()
        if low < self.base:
            raise ValueError(f"position {low} is no longer held: the cache starts at {self.base}")
        return self.rows[..., low - self.base : high - self.base, :]

    def turned(self):
        """The buffer holds other positions from now on."""


class CachedView(NamedTuple):
    """As layers.View, of the next n rows of a sequence whose earlier keys and values are kept."""

    rope: tuple
    mask: torch.Tensor | None  # (n, S), 0 or -inf: whom they see; None: all of `past`
    past: torch.Tensor  # (layers, 2, 1, H, S, C), rows up to and including these, to be filled in

    def attend(self, q, k, v, depth):
        """q, k, v (1, H, n, C) of layer number `depth` -> (1, H, n, C)."""
        return self.attend_kept(q, torch.stack([k, v]), depth)

    def attend_kept(self, q, kv, depth):
        """As attend, keys and values in one: kv (2, 1, H, n, C)."""
        past = self.past[depth]
        past[..., -q.shape[2] :, :] = kv
        return F.scaled_dot_product_attention(q, past[0], past[1], self.mask)


class Cache(Buffer):
    """Keys and values of one stack, (layers, 2, 1, H, capacity, C)."""

    def __init__(self, layers, heads, head_width, window, max_rollback, max_rows, rope_base, like):
        # Kernels of GPUs would copy a mask over all slots if 16 did not divide these.
        max_rows += -(2 * (window + max_rollback) + max_rows) % 16
        super().__init__((layers, 2, 1, heads), head_width, window, max_rollback, max_rows, like)
        self.rope_base = rope_base
        self.masks = {}
        self.turned()

    def turned(self):
        """Compute the RoPE factors of the positions that the buffer holds now."""
        slots = torch.arange(self.base, self.base + self.capacity, device=self.rows.device)
        # each (capacity, 1, 1, C)
        self.rope = rotary(slots, self.rows.shape[-1], self.rope_base, self.rows.dtype)

    def view(self, first, n, start=None, cells=0):
        """A pass over the n rows from position `first` on.

        start: where the block begins that the last of them belong to, drafted bytes that may be in
        the cache already, then `cells`; None: all are rows of the text.
        """
        one_clean_row = n == 1 and not cells  # sees all that it is given: no mask
        # Cells see the rows before their block, which may begin before this pass.
        oldest = min(first, start) if cells else first
        low = max(0, oldest - self.window + one_clean_row)
        past = self.span(low, first + n)
        # each (n, 1, 1, C)
        rope = tuple(r[first - self.base : first + n - self.base] for r in self.rope)
        if one_clean_row:
            return CachedView(rope, None, past)
        mask = self.mask(n, n if start is None else start - first, cells)
        if past.shape[-2] < mask.shape[-1]:
            # A slice of it would begin at any address: kernels of GPUs want one they can divide.
            mask = mask[:, -past.shape[-2] :].clone()
        return CachedView(rope, mask, past)

    def mask(self, n, start, cells):
        """Whom n rows see of S - n rows before them and of themselves, (n, S).

        start: of the block, counted from the first of the n; below 0 if that is in the block. The
        rows before are the `window` in front of all, and those of the block.
        """
        if not cells:  # drafted bytes are read as those of the text are
            start = n
        key = n, start, cells
        if key not in self.masks:
            if len(self.masks) > 64:
                self.masks.clear()  # odd prefill sizes must not pile up
            before = self.window + max(0, -start)
            position = torch.arange(before + n)
            in_block = position >= before + start
            rows = Rows(
                position,
                torch.where(in_block, before + start, CLEAN),
                in_block & (position < before + n - cells),
            )
            query = Rows(*(x[before:, None] for x in rows))
            allowed = sees(query, Rows(*(x[None] for x in rows)), self.window)
            mask = torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))
            self.masks[key] = mask.to(self.rows.device, self.rows.dtype)
        return self.masks[key]
