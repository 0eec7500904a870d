"""A fast state for GPUs: passes whose shapes never change, so that each is one captured graph.

A Stream's passes take as many rows as there are, and see as many earlier ones as there are: a GPU
gets another program each time, launched kernel by kernel. Here a pass takes 1 byte or patch, K + 1,
2 K + 1, or as many as a prefill has at once; what is missing is padding. It sees the whole buffer,
through a mask that is computed from positions. So all that changes are a few integers on the
device, and fast/graphs.py repeats the rest.

Padding stands behind the rows of a pass, in slots that are scratch: whoever writes them for good
comes later, and until then nobody sees them. But 0 x NaN is NaN, so memory begins as zeros.

Drafts of BLT-S and of the chained head are drawn on the device. What `extend` will ask of a draft
runs behind it before the host has seen it: where its bytes close patches, the device finds out. So
their rounds wait once, for the draft and for the logits that verify it.

Letters in shape comments: n rows of a pass, S slots of a buffer, M patches, L bytes of the longest
patch, H heads, C head width, K block size, V vocabulary.
"""

import functools
import weakref
from types import SimpleNamespace
from typing import NamedTuple

import torch

from data import MASK, PAD, VOCAB
from fast.cache import Buffer, Cache
from fast.graphs import Graphs
from fast.lean import PlainDecoder
from fast.stream import Stream
from layers import CLEAN, Rows, attend, sees
from model import LEAD, bytes_of_patches
from patcher import entropy, fill_patches
from support.hardware import sent

CACHES = ("entropy_cache", "encoder_cache", "global_cache", "decoder_cache", "latent_cache")
PLACE = 5  # integers that say where the rows of a pass stand: see FixedCache.place


class FixedView(NamedTuple):
    """As layers.View, of n rows that are written into a buffer and see all of it."""

    rope: tuple
    mask: torch.Tensor  # (n, S) bool
    slots: torch.Tensor  # (n,): where they are written
    rows: torch.Tensor  # (layers, 2, 1, H, S, C)

    def attend(self, q, k, v, depth):
        """q, k, v (1, H, n, C) of layer number `depth` -> (1, H, n, C)."""
        keys, values = self.rows[depth]
        keys.index_copy_(2, self.slots, k)
        values.index_copy_(2, self.slots, v)
        return attend(q, keys, values, self.mask)


class FixedLatents(Buffer):
    """A Buffer that always lies in the same memory and holds numbers."""

    def __init__(self, *shape):
        super().__init__(*shape)
        self.rows.zero_()

    def restart(self):
        """Let another text begin."""
        self.base = 0
        self.turned()


class FixedCache(Cache):
    """A Cache whose passes differ in integers alone."""

    def __init__(self, *shape):
        super().__init__(*shape)
        self.rows.zero_()
        self.slots = torch.arange(self.capacity, device=self.rows.device)

    restart = FixedLatents.restart

    def turned(self):
        """Graphs read RoPE factors where they lay when they were captured."""
        before = getattr(self, "rope", None)
        super().turned()
        if before:
            for kept, factors in zip(before, self.rope):
                kept.copy_(factors)
            self.rope = before

    def place(self, first, n, size, start=None, cells=0):
        """The integers of a pass over the n rows from position `first` on, padded to `size`: where
        the buffer begins, where the rows do, where they end, where their block begins, where its
        cells do.

        start: of the block that the last of them belong to; the last `cells` are cells.
        """
        oldest = min(first, start) if cells else first
        self.span(max(0, oldest - self.window), first + size)
        end = first + n
        if not cells:  # drafted bytes are read as those of the text are
            start = end + self.capacity
        return [self.base, first, end, start, end - cells]

    def fixed_view(self, place, n, cells=False):
        """A pass over n rows. place (5,): what the function above says, on the device.

        cells: may there be some among them?
        """
        base, first, end, start, first_cell = place.unbind()
        slots = self.slots[:n] + (first - base)
        rope = tuple(factors.index_select(0, slots) for factors in self.rope)
        if not cells:  # layers.sees of clean rows, by four kernels instead of forty
            back = slots[:, None] - self.slots  # padding is ahead of all others, and reads anything
            return FixedView(rope, (back >= 0) & (back < self.window), slots, self.rows)

        def rows_at(position):
            in_block = position >= start
            return Rows(
                position, torch.where(in_block, start, CLEAN), in_block & (position < first_cell)
            )

        query = rows_at((base + slots)[:, None])
        key = rows_at(base + self.slots)
        # Padding is seen by padding alone, which must see something.
        mask = sees(query, key, self.window) & ((key.position < end) | (query.position >= end))
        return FixedView(rope, mask, slots, self.rows)


class Passes:
    """The passes, each a function of integers on the device, and the buffers they work in."""

    def __init__(self, stream):
        m = stream.model
        # Its parts alone: the model keeps what is captured of it, and both shall end together.
        self.model = SimpleNamespace(
            config=m.config, encoder=m.encoder, globe=m.globe, decoder=m.decoder
        )
        self.patcher = stream.patcher
        for name in CACHES:
            setattr(self, name, getattr(stream, name))
        self.graphs = Graphs(stream.device)
        # Of each byte that the decoder writes alone: what makes its id random
        self.noise = torch.zeros(stream.max_rollback, VOCAB, device=stream.device)
        # Ids that follow the text and that the host does not know
        self.drafted = torch.zeros(stream.max_rows, dtype=torch.long, device=stream.device)
        self.next = torch.tensor([0, 1, 1, 1, 1], device=stream.device)  # from a place to the next

    def entropy(self, ints):
        """[place, n ids] -> the entropy after each (n,)."""
        place = ints[:PLACE]
        ids = ints[PLACE:]
        view = self.entropy_cache.fixed_view(place, len(ids))
        return entropy(self.patcher.model(ids[None], view))[0]

    def patches(self, ints, M):
        """[two places, slot of the first latent, M L members, LEAD + n ids]: makes M latents.

        members: which of the n bytes belong to each patch, -1 for none.
        """
        L = self.model.config.max_patch
        of_bytes, of_patches, slot, members, ids = ints.split(
            [PLACE, PLACE, 1, M * L, len(ints) - 2 * PLACE - 1 - M * L]
        )
        view = self.encoder_cache.fixed_view(of_bytes, len(ids) - LEAD)
        states = self.model.encoder.states(ids[None], view)
        vectors = self.model.encoder.vectors(states, members.view(1, M, L))
        latents = self.model.globe(vectors, self.global_cache.fixed_view(of_patches, M))
        # (layers, kinds, M each, width)
        rows = self.model.decoder.latent_rows(latents)
        slots = slot + torch.arange(rows.shape[2], device=ints.device)
        self.latent_cache.rows.index_copy_(2, slots, rows)

    def decoder(self, ints, cells=False):
        """[place, n ids, which latent of the buffer each of them reads] -> last rows (n, D)."""
        place = ints[:PLACE]
        ids, reads = ints[PLACE:].view(2, 1, -1)
        view = self.decoder_cache.fixed_view(place, ids.shape[1], cells)
        return self.model.decoder(ids, self.latent_cache.rows, reads, view)[0]

    def alone(self, ints, n):
        """[place, id there, which latent of the buffer all read] -> n rows of `drawn`."""
        place, id_, read = ints.split([PLACE, 1, 1])
        made = []
        for noise in self.noise[:n]:
            row = self.decoder(torch.cat([place, id_, read]))
            id_, kept = drawn(self.model.decoder.head(row), noise)
            made.append(kept)
            place = place + self.next
        return torch.cat(made)

    def extend(self, ints, n):
        """All passes of `extend` over n ids, padding included, and what lies between them.

        ints: [four places, how many bytes the open patch has, slot of the first new latent, n ids,
        LEAD + n + L - 1 ids: those before the open patch, its own, room for the new]. Ids below 0
        are drafted. -> rows (n, V + 2): logits, entropy, does the text ask there for the end of a
        patch?
        """
        L = self.model.config.max_patch
        size = n + L - 1  # bytes from the start of the open patch on
        of_ids, of_bytes, of_patches, of_rows, open_, slot, ids, all_ids = ints.split(
            [PLACE, PLACE, PLACE, PLACE, 1, 1, n, LEAD + size]
        )
        ids = torch.where(ids < 0, self.drafted[:n], ids)
        H = self.entropy(torch.cat([of_ids, ids]))
        number = torch.arange(size + 1, device=ints.device)
        asked = self.patcher.signals(ids, H)
        # Where the new bytes stand among these. In front of all a patch closed.
        where = open_ + number[:n]
        behind = torch.zeros_like(number, dtype=torch.bool).index_copy(0, 1 + where, asked)
        closes = fill_patches(behind, self.patcher.config.max_patch)[1:]
        closes &= number[:size] < open_ + n  # of padding too, whose patches nobody reads
        closed = closes.cumsum(0)
        members = bytes_of_patches(closes[None], L, n).flatten()
        all_ids = all_ids.index_copy(0, LEAD + where, ids)
        self.patches(torch.cat([of_bytes, of_patches, slot, members, all_ids]), n)
        reads = slot // self.model.decoder.latent_shape[1] - 1 + closed[where]
        rows = self.decoder(torch.cat([of_rows, ids, reads]))
        answers = H[:, None], asked[:, None].to(H.dtype)
        return torch.cat([self.model.decoder.head(rows), *answers], 1)


class Foreseen(NamedTuple):
    """What extending a text by some ids answers: all passes have run, and no more."""

    ids: list[int]
    logits: torch.Tensor  # (n, V), on the host as all of it
    signals: list
    entropies: list


class FixedStream(Stream):
    """A Stream of fixed shapes. Its model is not folded: see FixedDecoder."""

    keys_and_values = FixedCache
    latents = FixedLatents

    foreseen = None  # of the next ids, if they are these

    @torch.inference_mode()  # as all passes: what is used again may not be of two kinds
    def make_caches(self, like):
        """Its own, or those of a Stream like it that nobody has any more: with what is captured."""
        p = self.patcher.config
        # What is captured holds for one configuration.
        alike = repr((self.model.config, p, self.max_rollback, self.max_rows))
        idle = self.model.idle.setdefault((alike, id(self.patcher)), [])
        if idle:
            self.passes = idle.pop()
            for name in CACHES:
                setattr(self, name, getattr(self.passes, name))
                getattr(self, name).restart()
        else:
            super().make_caches(like)
            self.passes = Passes(self)
        weakref.finalize(self, idle.append, self.passes)

    def padded(self, n):
        """The number of rows that a pass over n of them takes."""
        K = self.model.config.block_size or 8
        for size in (1, K + 1, 2 * K + 1):
            if n <= size < self.max_rows:
                return size
        return self.max_rows

    @torch.inference_mode()
    def extend(self, ids):
        """As Stream, but logits come on the host. For several bytes they are all it waits for."""
        if not self.is_foreseen(ids):
            if not self.can_foresee(len(ids)):
                return super().extend(ids).cpu()
            self.foresee(ids)
        logits = self.foreseen.logits[: len(ids)]
        self.advance(ids)
        self.counters.decoder += 1
        return logits

    def is_foreseen(self, ids):
        """Have the passes over these ids run?"""
        return self.foreseen is not None and self.foreseen.ids[: len(ids)] == ids

    def can_foresee(self, n):
        """Can one graph do all for n more ids? It always runs the encoder and the global model,
        which one byte alone seldom needs.
        """
        ready = self.length and self.decoded == self.length
        fits = 1 < n and self.padded(n) < self.max_rows
        # Others look at what stands before the first byte, or have no entropies to wait for.
        return ready and fits and self.patcher.config.kind == "entropy"

    def foresee(self, ids, drafted=None):
        """Run what `extend` asks of ids and of a draft behind them -> the draft's rows on the host.

        drafted (n, V + 1): rows of `drawn` on the device, whose ids the host does not know.
        """
        unknown = 0 if drafted is None else len(drafted)
        n = len(ids) + unknown
        if unknown:
            self.passes.drafted[len(ids) : n] = drafted[:, -1]
        size = self.padded(n)
        more = size + self.model.config.max_patch - 1
        first = self.length
        last = self.known[-1]
        low = last.open_start
        old = last.patches_closed
        each = self.model.decoder.latent_shape[1]
        self.latent_cache.span((old - 1) * each, (old + size) * each)
        ints = [
            *self.entropy_cache.place(first, n, size),
            *self.encoder_cache.place(low, first + n - low, more),
            *self.global_cache.place(old, size, size),
            *self.decoder_cache.place(first, n, size),
            first - low,
            old * each - self.latent_cache.base,
            *ids,
            *[-1] * unknown,
            *[PAD] * (size - n),
            *[self.at(i).id for i in range(low - LEAD, first)],
            *[PAD] * (more - (first - low)),
        ]
        self.peeked = []  # their rows are of another text
        made = functools.partial(self.passes.extend, n=size)
        rows = self.passes.graphs.run("extend", made, ints)
        # One copy to the host
        parts = [rows] if drafted is None else [rows, drafted]
        everything = torch.cat([part.flatten() for part in parts]).cpu()
        rows, draft = everything.tensor_split([rows.numel()])
        rows = rows.view(size, -1)[:n]
        draft = draft.view(-1, VOCAB + 1)
        ids = ids + [int(id_) for id_ in draft[:, -1]]
        self.foreseen = Foreseen(ids, rows[:, :-2], rows[:, -1].tolist(), rows[:, -2].tolist())
        return draft

    def advance_piece(self, ids):
        if not self.is_foreseen(ids):
            self.foreseen = None
        super().advance_piece(ids)
        if self.foreseen:
            self.decoded = self.length
        self.foreseen = None

    def rollback(self, length):
        self.foreseen = None
        super().rollback(length)

    def boundary_signals(self, ids):
        if not self.foreseen:
            return super().boundary_signals(ids)
        self.counters.entropy += 1
        return self.foreseen.signals, self.foreseen.entropies

    def entropy_pass(self, first, ids):
        size = self.padded(len(ids))
        place = self.entropy_cache.place(first, len(ids), size)
        ints = [*place, *ids, *[PAD] * (size - len(ids))]
        return self.passes.graphs.run("entropy", self.passes.entropy, ints)[: len(ids)]

    def patch_pass(self, low, high, old, new):
        if self.foreseen:
            return
        longest = self.model.config.max_patch
        n = high - low
        # M patches come with room for M + longest - 1 bytes, as one may be open in front.
        M = self.padded(max(new - old, n - longest + 1))
        size = M + longest - 1
        of_bytes = self.encoder_cache.place(low, n, size)
        of_patches = self.global_cache.place(old, new - old, M)
        each = self.model.decoder.latent_shape[1]
        # Rows that the decoder owes read older latents, which have to stay.
        oldest = min(old, self.at(self.decoded).patches_closed - 1)
        self.latent_cache.span(oldest * each, (old + M) * each)
        slot = old * each - self.latent_cache.base
        members = self.members(low, high, old, M, longest)
        ids = [self.at(i).id for i in range(low - LEAD, high)] + [PAD] * (size - n)
        ints = [*of_bytes, *of_patches, slot, *members, *ids]
        self.passes.graphs.run("patches", functools.partial(self.passes.patches, M=M), ints)

    def decoder_pass(self, first, ids, reads, cells, states):
        self.foreseen = None  # these rows lie where its rows lay
        size = self.padded(len(ids))
        each = self.model.decoder.latent_shape[1]
        self.latent_cache.span(reads[0] * each, (reads[-1] + 1) * each)
        oldest = self.latent_cache.base // each
        padding = [PAD] * (size - len(ids))
        place = self.decoder_cache.place(first, len(ids), size, self.length, cells)
        slots = [read - oldest for read in reads + [reads[-1]] * len(padding)]
        ints = [*place, *ids, *padding, *slots]
        made = functools.partial(self.passes.decoder, cells=cells > 0)
        rows = self.passes.graphs.run(f"decoder, {cells > 0}", made, ints)
        # The next replay writes to the same memory.
        return rows[: len(ids)].clone()

    @torch.inference_mode()
    def alone(self, ids, noise, sampling):
        """As generate.Prefix, but one wait for all bytes. Those that nobody asks for run too, and
        are not counted.
        """
        n = len(noise)
        # A graph for each power of two, not for each n
        size = min(1 << (n - 1).bit_length(), self.max_rollback)
        # top-p sorts, on the host
        if sampling.top_p < 1 or n > size or len(ids) > 1 or self.decoded < self.length:
            yield from super().alone(ids, noise, sampling)
            return
        place = self.decoder_cache.place(self.length, 1, size)
        each = self.model.decoder.latent_shape[1]
        read = self.known[-1].patches_closed - 1
        self.latent_cache.span(read * each, (read + 1) * each)
        ints = [*place, *ids, read - self.latent_cache.base // each]
        self.passes.noise[:n] = sent(noise, self.device)
        self.peeked = []  # their rows are of another text
        self.foreseen = None
        made = functools.partial(self.passes.alone, n=size)
        drafted = self.passes.graphs.run(f"{size} alone", made, ints)[:n]
        for id_, logits in self.of_draft(ids, drafted):
            self.counters.decoder += 1
            yield id_, logits

    @torch.inference_mode()
    def chained(self, ids, before, noise, sampling):
        """As generate.Prefix, but one wait for all cells, and none of them is left out."""
        if sampling.top_p < 1:  # sorts, on the host
            yield from super().chained(ids, before, noise, sampling)
            return
        rows = self.peek(ids, [MASK] * len(noise))[-len(noise) :]
        yield from self.of_draft(ids, self.model.decoder.drawn_cells(rows, before, noise))

    def of_draft(self, ids, drafted):
        """As of_host, of what is drafted behind ids. What `extend` asks of that runs too."""
        if self.can_foresee(len(ids) + len(drafted)):
            drafted = self.foresee(ids, drafted)
        return of_host(drafted)


# ---- drafts that are drawn on the device


def drawn(logits, noise):
    """The id that noise (V,) picks from logits (1, V), on the device -> the id (1,), and the logits
    with the id behind them (1, V + 1).
    """
    scores = logits + noise
    id_ = scores.argmax(-1)
    # Half precision has not every id.
    return id_, torch.cat([logits.to(scores.dtype), id_[:, None].to(scores.dtype)], 1)


def of_host(rows):
    """Rows of `drawn` (n, V + 1): yields each id, and its logits (1, V) on the host. One wait."""
    for row in rows.cpu().split(1):
        yield int(row[0, -1]), row[:, :-1]


class FixedDecoder(PlainDecoder):
    """model.LocalDecoder as it is, but all cells of a block are drawn in one captured pass.

    Once it is made, its weights stay where they are: graphs know the memory.
    """

    def __init__(self, decoder):
        super().__init__(decoder)
        c = decoder.config
        weight = decoder.head.weight
        self.graphs = Graphs(weight.device)
        # Of each cell: its row, and what makes its id random
        self.rows = weight.new_zeros(c.block_size, c.width)
        self.noise = torch.zeros(c.block_size, VOCAB, device=weight.device)

    def chained(self, rows, before, noise, sampling):
        """As model.LocalDecoder, but one wait a block, and none of its cells is left out."""
        if sampling.top_p < 1:  # sorts, on the host
            yield from super().chained(rows, before, noise, sampling)
            return
        yield from of_host(self.drawn_cells(rows, before, noise))

    def drawn_cells(self, rows, before, noise):
        """rows (K, D), the id before them, noise (K, V) -> K rows of `drawn`, on the device."""
        K = len(rows)
        self.rows[:K] = rows
        self.noise[:K] = sent(noise, self.noise.device)
        made = functools.partial(self.cells, K=K)
        return self.graphs.run(f"{K} cells", made, [before])

    def cells(self, before, K):
        """The id before K cells (1,) -> K rows of `drawn`."""
        made = []
        state = None
        for row, noise in zip(self.rows[:K], self.noise):
            row, state = self.decoder.chain(row[None, None], before[None], state)
            before, kept = drawn(self.head(row)[0], noise)
            made.append(kept)
        return torch.cat(made)


def fixed(fast_model):
    """A FastModel that is not folded, for FixedStreams."""
    fast_model.decoder = FixedDecoder(fast_model.decoder.decoder)
    return fast_model
