"""The fast state: the same answers as generate.Prefix gives, and nothing is computed twice.

A byte's way: the entropy model says whether it closes its patch; only then the encoder reads that
patch's bytes and the global model makes one more latent; the decoder predicts the next byte from
the last latent there is. So the two local models run once a byte, encoder and global model once a
patch. Run it to watch a line of text go that way:

    python -m fast --text "def main():"

Letters in shape comments: n bytes given, K block size, k vectors a patch, V vocabulary, M patches,
D local width, G global width.
"""

from typing import NamedTuple

import torch

from data import PAD
from fast.cache import Buffer, Cache
from generate import Prefix
from model import LEAD
from patcher import entropy
from support.generation import Counters


class Known(NamedTuple):
    """What a Stream keeps of one byte."""

    id: int
    entropy: float  # of the prediction after it, nats
    patches_closed: int  # up to and including it
    open_start: int  # where the patch open after it starts: behind it, if it closes one


START = Known(PAD, 0.0, 0, 0)  # what stands before the first byte


class Stream:
    """Caches, boundaries and counters of one text: generate.Prefix says what its calls do."""

    keys_and_values = Cache  # what keeps those of a stack
    latents = Buffer  # what keeps what the decoder reads of latents

    def __init__(self, model, patcher, max_rollback=72, max_rows=256):
        """model: as fast.lean prepares it. max_rollback: how many bytes back a rollback may go, and
        most ids behind the text in a peek. max_rows: rows a pass takes at most.

        Raises ValueError for a patcher whose patches are longer than the model takes.
        """
        c = model.config
        if c.max_patch and not 0 < patcher.config.max_patch <= c.max_patch:
            longest = patcher.config.max_patch or "any number of"
            takes = f"the model takes {c.max_patch}"
            raise ValueError(f"the patcher makes patches of {longest} bytes, {takes}")
        self.model = model
        self.patcher = patcher
        self.max_rollback = max_rollback
        self.max_rows = max_rows
        self.device = model.device
        self.make_caches(model.decoder.head.weight)
        self.known = []  # Known of the latest bytes
        self.forgotten = 0  # how many before them were let go
        self.furthest = 0  # how many there ever were
        self.decoded = 0  # rows of the text that the decoder has processed
        self.peeked = []  # ids behind the text whose rows are in the decoder's cache,
        # and those rows, (n, D)
        self.peeked_rows = model.decoder.head.weight.new_empty(0, model.config.width)
        self.counters = Counters()

    def make_caches(self, like):
        """A Cache for each stack, and one for what the decoder reads of latents."""
        c = self.model.config
        p = self.patcher.config
        back = self.max_rollback
        rows = self.max_rows
        local = c.heads, c.width // c.heads
        globe = c.global_heads, c.global_width // c.global_heads
        rest = c.rope_base, like
        shape = p.layers, p.heads, p.width // p.heads, p.window
        entropy_like = self.patcher.model.head.weight
        self.entropy_cache = self.keys_and_values(*shape, back, rows, p.rope_base, entropy_like)
        # After a rollback over a patch start the encoder reads from that start again.
        more = self.encoder_ahead()
        self.encoder_cache = self.keys_and_values(
            c.encoder_layers, *local, c.window, back + more, rows + more, *rest
        )
        self.global_cache = self.keys_and_values(
            c.global_layers, *globe, c.global_window, back + 1, rows + 1, *rest
        )
        # Rows of a peek run ahead of the text, which then goes back from where it is.
        self.decoder_cache = self.keys_and_values(
            c.decoder_layers, *local, c.window, 2 * back, rows, *rest
        )
        kinds, each, width = self.model.decoder.latent_shape
        bounds = each, (back + 1) * each, (rows + 1) * each
        self.latent_cache = self.latents((c.decoder_layers, kinds), width, *bounds, like)

    def encoder_ahead(self):
        """How many rows in front of new ones the encoder may have to run again."""
        return self.model.config.max_patch

    # ---- what it holds

    @property
    def length(self):
        """Bytes that it holds, BOS included."""
        return self.forgotten + len(self.known)

    def at(self, position):
        """Known of a byte that is still held; PAD before the start of the text."""
        return self.known[position - self.forgotten] if position >= 0 else START

    def closes(self, position):
        """Does the byte at this position close its patch?"""
        return self.at(position).open_start == position + 1

    def rollback(self, length):
        """Forget all bytes from position `length` on.

        Raises ValueError beyond `max_rollback` bytes back from the furthest length there ever was.
        """
        if not max(1, self.furthest - self.max_rollback) <= length <= self.length:
            reach = f"reaches {self.max_rollback} bytes back from its furthest, {self.furthest}"
            raise ValueError(f"can't roll back from {self.length} to {length}: this stream {reach}")
        closed = self.known[-1].patches_closed - self.at(length - 1).patches_closed
        self.counters.bytes_advanced -= self.length - length
        self.counters.patches_closed -= closed
        del self.known[length - self.forgotten :]
        self.decoded = min(self.decoded, length)
        self.peeked = []

    def let_go(self):
        """Drop Known of bytes that no rollback, n-gram or pass can ask for again, now and then.

        A patch that may still be open is held from its start on, whatever its length.
        """
        back = min(self.furthest - self.max_rollback, self.decoded) - 1
        if back < self.forgotten:
            return
        drop = self.at(back).open_start - LEAD - self.forgotten
        if drop > self.max_rows:
            self.forgotten += drop
            del self.known[:drop]

    # ---- bytes -> boundaries -> latents

    @torch.inference_mode()
    def advance(self, ids):
        """Take n >= 1 bytes in: one entropy pass and, if patches closed, one encoder and global
        pass. The decoder's rows are owed, and run with its next pass; before that only where they
        are more than a pass takes.

        Raises ValueError for anything but one list of ids: a Stream is one text.
        """
        if not all(isinstance(i, int) for i in ids):
            raise ValueError("a Stream holds one sequence: give it one list of ids")
        for i in range(0, len(ids), self.max_rows):
            piece = ids[i : i + self.max_rows]
            self.catch_up(len(piece))
            self.advance_piece(piece)

    def advance_piece(self, ids):
        """As advance, at most max_rows bytes."""
        first = self.length
        before = self.known[-1] if self.known else START
        signals, entropies = self.boundary_signals(ids)
        self.counters.bytes_advanced += len(ids)
        self.peeked = []
        closed = before.patches_closed
        start = before.open_start
        for i, (id_, signal, h) in enumerate(zip(ids, signals, entropies), first):
            # patcher.fill_patches, byte by byte
            if signal or i == 0 or i + 1 - start == self.patcher.config.max_patch:
                closed += 1
                start = i + 1
            self.known.append(Known(id_, h, closed, start))
        self.furthest = max(self.furthest, self.length)
        self.counters.patches_closed += closed - before.patches_closed
        if closed > before.patches_closed:
            self.encode_patches(before.open_start, start, before.patches_closed, closed)
        self.let_go()

    def boundary_signals(self, ids):
        """One pass of the entropy model over the next ids -> (signals, entropies), lists."""
        first = self.length
        before = (self.at(first - 1).id, self.at(first - 1).entropy) if first else None
        if self.patcher.needs_entropy:
            H = self.entropy_pass(first, ids).cpu()
            self.counters.entropy += 1
        else:
            H = torch.zeros(len(ids))
        return self.patcher.signals(torch.tensor(ids), H, before).tolist(), H.tolist()

    def entropy_pass(self, first, ids):
        """The entropies (n,) after ids, which stand from position `first` on."""
        view = self.entropy_cache.view(first, len(ids))
        ids = torch.tensor([ids], device=self.device)
        return entropy(self.patcher.model(ids, view))[0]

    def encode(self, first, ids):
        """The encoder's states (n, D) of ids[LEAD:], which stand from position `first` on."""
        view = self.encoder_cache.view(first, len(ids) - LEAD)
        return self.model.encoder.states(torch.tensor([ids], device=self.device), view)[0]

    def states_between(self, low, high):
        """The encoder's states (high - low, D) of bytes that are held."""
        return self.encode(low, [self.at(i).id for i in range(low - LEAD, high)])

    def encode_patches(self, low, high, old, new):
        """Encode the bytes low..high-1, the patches old..new-1, and make their latents."""
        # Rows that the decoder owes read older latents, which have to stay.
        oldest = min(old, self.at(self.decoded).patches_closed - 1)
        each = self.model.decoder.latent_shape[1]
        self.latent_cache.span(oldest * each, new * each)
        self.patch_pass(low, high, old, new)
        self.counters.encoder_global += 1

    def patch_pass(self, low, high, old, new):
        """As encode_patches; there is room for the latents."""
        states = self.states_between(low, high)
        longest = self.model.config.max_patch or high - low
        members = self.members(low, high, old, new - old, longest)
        members = torch.tensor(members, device=self.device).view(1, -1, longest)
        # (1, M, G) each
        vectors = self.model.encoder.vectors(states[None], members)
        latents = self.model.globe(vectors, self.global_cache.view(old, new - old))
        each = self.model.decoder.latent_shape[1]
        # (layers, kinds, M each, width)
        rows = self.latent_cache.span(old * each, new * each)
        rows.copy_(self.model.decoder.latent_rows(latents))

    def members(self, low, high, old, M, longest):
        """model.bytes_of_patches, known without a pass: the bytes low..high-1, numbered from 0, of
        M patches from number `old` on -> list of M `longest`, -1 where a patch is shorter.
        """
        found = [-1] * (M * longest)
        for i in range(low, high):
            before = self.at(i - 1)
            patch = before.patches_closed - old
            found[patch * longest + i - before.open_start] = i - low
        return found

    # ---- rows -> logits

    @torch.inference_mode()
    def peek(self, ids=(), block=()):
        """Decoder rows of n ids behind the text and of K cells behind those (n + K, D).

        Rows of ids that the last peek asked for too are kept. Raises ValueError for too many.
        """
        ids = [*ids]
        same = len(self.peeked) if self.peeked and self.peeked == ids[: len(self.peeked)] else 0
        if self.decoded < self.length:
            same = 0
        n = len(ids)
        if n > self.max_rollback or n - same + len(block) > self.max_rows:
            limits = f"{self.max_rows} at once, {self.max_rollback} of them ids behind the text"
            raise ValueError(f"{n + len(block)} decoder rows, this stream takes {limits}")
        if not block and same == n:
            return self.peeked_rows[:n]
        kept = self.peeked_rows[:same] if same else None
        self.catch_up(n + len(block))
        rows = self.decode(ids, same, block)
        # What is owed of the text itself stands in front.
        rows = rows[len(rows) - (n - same + len(block)) :]
        if same:
            rows = torch.cat([kept, rows])
        self.peeked = ids
        self.peeked_rows = rows[:n]
        return rows

    alone = Prefix.alone
    chained = Prefix.chained

    def decode(self, ids=(), same=0, block=()):
        """One decoder pass over the rows owed of the text, ids[same:] behind it, and a block.

        The first `same` ids are in the cache already. -> the last rows (owed + n - same + K, D).
        """
        owed = [self.at(i) for i in range(self.decoded, self.length)]
        first = self.decoded + same
        ids_of_pass = [known.id for known in owed] + [*ids[same:], *block]
        # Which latent each row reads: what is behind the text reads the last.
        last = self.known[-1].patches_closed - 1
        reads = [known.patches_closed - 1 for known in owed]
        reads += [last] * (len(ids_of_pass) - len(owed))
        states = self.states_of_pass(ids, same)
        rows = self.decoder_pass(first, ids_of_pass, reads, len(block), states)
        self.decoded = self.length
        self.counters.decoder += 1
        return rows

    def decoder_pass(self, first, ids, reads, cells, states):
        """The decoder's last rows (R, D) of ids, which stand from position `first` on.

        reads: which latent each of them reads. The last `cells` of them are cells.
        """
        low = reads[0]
        last = reads[-1]
        read_from = None  # all read one latent, which needs no tensor
        if low < last:
            # (1, rows)
            read_from = torch.tensor([[r - low for r in reads]], device=self.device)
        each = self.model.decoder.latent_shape[1]
        # (layers, kinds, M each, width)
        latents = self.latent_cache.span(low * each, (last + 1) * each)
        view = self.decoder_cache.view(first, len(ids), self.length, cells)
        ids = torch.tensor([ids], device=self.device)
        return self.model.decoder(ids, latents, read_from, view, states)[0]

    def states_of_pass(self, ids, same):
        """Encoder states that the decoder's rows start from; None: from an embedding."""
        return None

    @torch.inference_mode()
    def extend(self, ids):
        """Take n bytes in -> logits of the byte after each of them (n, V)."""
        logits = []
        for i in range(0, len(ids), self.max_rows):
            piece = ids[i : i + self.max_rows]
            self.advance(piece)
            # Rows owed from before stand in front.
            logits.append(self.model.decoder.head(self.decode()[-len(piece) :]))
        return torch.cat(logits) if len(logits) > 1 else logits[0]

    def catch_up(self, n):
        """Run the rows that are owed, where n more would be too many for one pass."""
        if self.length - self.decoded + n > self.max_rows:
            self.decode()
