"""The same model, cached and incremental: `Stream` is the state of one sequence.

A byte's way: the entropy model says whether it closes its patch; only then the encoder reads that
patch's bytes and the global model makes one more latent; the decoder predicts the next byte from
the last latent there is. So the two local models run once a byte, encoder and global model once a
patch, and nothing is ever computed twice. Run it to watch a line of text go that way:

    python stream.py --text "def main():"

Letters in shape comments: n bytes given, K block size, k vectors a patch, V vocabulary, M patches,
G global width, H heads, C head width.
"""

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from data import BOS, PAD, decode, encode
from layers import Cache
from model import LEAD, bytes_of_patches, load_model
from support import checkpoint
from support.flags import idea_options
from support.terminal import BadInput, run, table, visible


@dataclass
class Counters:
    """Forward passes really run (NFEs) by part, the prefill's apart, and what speculation did."""

    decoder: int = 0
    encoder_global: int = 0  # encoder and global model always run together
    entropy: int = 0
    chain: int = 0  # cells that the chained head drew
    bytes_advanced: int = 0  # bytes taken in; rollbacks take theirs off again
    patches_closed: int = 0  # among these bytes
    prefill: Counter = field(default_factory=Counter)
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    # accepted bytes -> rounds that accepted so many
    lengths: Counter = field(default_factory=Counter)


class Known(NamedTuple):
    """What a Stream keeps of one byte."""

    id: int
    entropy: float  # of the prediction after it, nats
    patches_closed: int  # up to and including it
    open_start: int  # where the patch open after it starts: behind it, if it closes one
    state: torch.Tensor | None = None  # (D,) the encoder's, if the decoder starts from it


START = Known(PAD, 0.0, 0, 0)  # what stands before the first byte


class Stream:
    """Caches, boundaries and counters of one sequence.

    advance: entropies, boundaries, and the latents of patches that close.
    decode: logits of the rows not decoded yet, of provisional rows and of a block.
    extend: both. rollback: forget the last bytes.
    """

    def __init__(self, model, patcher, max_rollback=64, max_rows=256):
        """max_rollback: how many bytes back a rollback may go. max_rows: rows a pass takes at most.

        Raises ValueError for a patcher whose patches are longer than the model takes.
        """
        c = model.config
        if c.max_patch and not 0 < patcher.config.max_patch <= c.max_patch:
            longest = patcher.config.max_patch or "any number of"
            takes = f"the model takes {c.max_patch}"
            raise ValueError(f"the patcher makes patches of {longest} bytes, {takes}")
        self.model, self.patcher = model, patcher
        self.max_rollback, self.max_rows = max_rollback, max_rows
        # Bytes that a patcher without a cache has to see again
        self.sight = patcher.config.reset_at_newline * patcher.model.receptive_field
        self.make_caches(model.decoder.head.weight)
        # Known of the latest bytes, how many before them were let go, how many there ever were
        self.known, self.forgotten, self.furthest = [], 0, 0
        # Rows of the sequence that the decoder has processed, ids of provisional ones behind them
        self.decoded, self.provisional = 0, []
        # Is there a latent of the open patch, encoded as if it ended here?
        self.open_latent = False
        self.counters = Counters()

    def make_caches(self, like):
        """A Cache for each stack, and one for what the decoder reads of latents."""
        c, back, rows = self.model.config, self.max_rollback, self.max_rows
        local = c.heads, c.width // c.heads
        globe = c.global_heads, c.global_width // c.global_heads
        rest = c.rope_base, like
        self.entropy_cache = self.patcher.model.cache(back, rows)
        # After a rollback over a patch start the encoder reads from that start again, or for byte
        # states it runs ahead as the decoder does.
        more = back if c.byte_states else c.max_patch
        bounds = c.window, back + more, rows + more
        self.encoder_cache = Cache(c.encoder_layers, *local, *bounds, *rest)
        bounds = c.global_window, back + 1, rows + 1
        self.global_cache = Cache(c.global_layers, *globe, *bounds, *rest)
        # Provisional rows run ahead of the sequence, which then goes back from where it is.
        self.decoder_cache = Cache(c.decoder_layers, *local, c.window, 2 * back, rows, *rest)
        heads, each, width = self.model.decoder.latent_shape
        bounds = each, (back + 1) * each, (rows + 1) * each
        self.latent_cache = Cache(c.decoder_layers, heads, width, *bounds, None, like)

    @property
    def length(self):
        """Bytes in the sequence, BOS included."""
        return self.forgotten + len(self.known)

    def at(self, position):
        """Known of a byte that is still held; PAD before the start of the text."""
        return self.known[position - self.forgotten] if position >= 0 else START

    def closes(self, position):
        """Does the byte at this position close its patch?"""
        return self.at(position).open_start == position + 1

    def taken(self, first):
        """What was taken in from position `first` on: (id, whether it closes its patch) each."""
        return [(self.at(i).id, self.closes(i)) for i in range(first, self.length)]

    def rollback(self, length):
        """Forget all bytes from position `length` on.

        Raises ValueError beyond `max_rollback` bytes back from the furthest length there ever was.
        """
        if not max(1, self.furthest - self.max_rollback) <= length <= self.length:
            reach = f"reaches {self.max_rollback} bytes back from its furthest, {self.furthest}"
            raise ValueError(f"can't roll back from {self.length} to {length}: this stream {reach}")
        self.forget_open()
        closed = self.known[-1].patches_closed - self.at(length - 1).patches_closed
        self.counters.bytes_advanced -= self.length - length
        self.counters.patches_closed -= closed
        del self.known[length - self.forgotten :]
        self.decoded, self.provisional = min(self.decoded, length), []

    # ---- bytes -> boundaries -> latents

    @torch.inference_mode()
    def advance(self, ids, encode_open=False):
        """Take n >= 1 more bytes (list of ids): one entropy pass and, if patches closed, one
        encoder and global pass.

        encode_open: that pass takes the patch still open too, as if it ended here, and what is
        decoded reads its latent until the next advance or rollback (Fast BLT, Algorithm 1).
        Raises ValueError for a batch: a Stream is one sequence.
        """
        if not all(isinstance(i, int) for i in ids):
            raise ValueError("a Stream holds one sequence: give it one list of ids")
        for i in range(0, len(ids), self.max_rows):
            last = i + self.max_rows >= len(ids)
            self.advance_piece(ids[i : i + self.max_rows], encode_open and last)

    def advance_piece(self, ids, encode_open):
        """As advance, at most max_rows bytes."""
        self.forget_open()
        first, before = self.length, self.known[-1] if self.known else START
        last = (before.id, before.entropy) if first else None
        tensor = torch.tensor(ids, device=self.entropy_cache.rows.device)
        context = [self.at(i).id for i in range(max(self.forgotten, first - self.sight), first)]
        signals, H = self.patcher.step(tensor, first, self.entropy_cache, last, context)
        self.counters.entropy += self.patcher.needs_entropy
        self.counters.bytes_advanced += len(ids)
        closed, start = before.patches_closed, before.open_start
        self.provisional = []
        states = self.states_behind(ids)
        for i, (id_, signal, h) in enumerate(zip(ids, signals.tolist(), H.tolist()), first):
            if signal or i == 0 or i + 1 - start == self.patcher.config.max_patch:
                closed, start = closed + 1, i + 1
            self.known.append(Known(id_, h, closed, start, states[i - first]))
        self.furthest = max(self.furthest, self.length)
        self.counters.patches_closed += closed - before.patches_closed
        self.open_latent = encode_open and start < self.length
        new = closed + self.open_latent
        if new > before.patches_closed:
            end = self.length if self.open_latent else start
            self.encode_patches(before.open_start, end, before.patches_closed, new)
        self.let_go()

    def encode(self, first, ids):
        """The encoder's states (n, D) of ids[LEAD:], which stand from position `first` on."""
        ids = torch.tensor([ids], device=self.encoder_cache.rows.device)
        view = self.encoder_cache.view(first, ids.shape[1] - LEAD)
        return self.model.encoder.states(ids, view)[0]

    def states_behind(self, ids):
        """States (n, D) of n ids behind all rows there are, or n times None: nobody needs them."""
        if not (ids and self.model.config.byte_states):
            return [None] * len(ids)
        before = [self.at(i).id for i in range(self.length - LEAD, self.length)] + self.provisional
        return self.encode(self.length + len(self.provisional), before[-LEAD:] + ids)

    def encode_patches(self, low, high, old, new):
        """Encode the bytes low..high-1, the patches old..new-1, and make their latents."""
        device, each = self.global_cache.rows.device, self.model.decoder.latent_shape[1]
        if self.model.config.byte_states:  # they are there
            states = torch.stack([self.at(i).state for i in range(low, high)])
        else:
            states = self.encode(low, [self.at(i).id for i in range(low - LEAD, high)])
        # (1, n)
        closes = torch.tensor([[self.closes(i) for i in range(low, high)]], device=device)
        closes[0, -1] = True  # of an open patch too
        patches = bytes_of_patches(closes, self.model.config.max_patch)
        # (1, M, G) each
        vectors = self.model.encoder(states[None], patches)
        latents = self.model.globe(vectors, self.global_cache.view(old, new - old))
        # (layers, 2, 1, H, M k, C)
        rows = self.latent_cache.span(old * each, new * each)
        for row, keys in zip(rows, self.model.decoder.latent_keys(latents)):
            row.copy_(keys)
        self.counters.encoder_global += 1

    def forget_open(self):
        """Drop the latent of the open patch, and the decoder's row of the byte that read it."""
        if self.open_latent:
            self.open_latent, self.decoded = False, min(self.decoded, self.length - 1)

    def let_go(self):
        """Drop Known of bytes that no rollback, n-gram or pass can ask for again, now and then.

        A patch that may still be open is held from its start on, whatever its length.
        """
        back = min(self.furthest - self.max_rollback, self.decoded) - 1
        if back < self.forgotten:
            return
        drop = self.at(back).open_start - LEAD - self.sight - self.forgotten
        if drop > self.max_rows:
            self.forgotten += drop
            del self.known[:drop]

    # ---- rows -> logits

    @torch.inference_mode()
    def decode(self, provisional=(), block=()):
        """Logits (rows + n + K, V) of what `last_rows` computes, and of the same arguments."""
        return self.model.decoder.head(self.last_rows(provisional, block))

    @torch.inference_mode()
    def last_rows(self, provisional=(), block=()):
        """One decoder pass over the rows not decoded yet, provisional rows, and a block's cells.

        provisional: ids that stand behind the sequence and earlier provisional ones until the next
        advance or rollback. block: K ids, which leave nothing behind. Both read the last latent.
        -> the decoder's last rows (rows + n + K, D). Raises ValueError for too many.
        """
        owed = [self.at(i) for i in range(self.decoded, self.length)]
        if owed:
            self.provisional = []
        first = self.decoded + len(self.provisional)
        ids = [known.id for known in owed] + [*provisional, *block]
        if len(ids) > self.max_rows or len(self.provisional) + len(provisional) > self.max_rollback:
            limits = f"{self.max_rows} at once, {self.max_rollback} of them provisional"
            raise ValueError(f"{len(ids)} decoder rows, this stream takes {limits}")
        # Which latent each row reads; one that ends an open patch by decree reads that patch's.
        last = self.known[-1].patches_closed - 1 + self.open_latent
        reads = [known.patches_closed - 1 for known in owed]
        if owed:
            reads[-1] = last
        low = reads[0] if owed else last
        each, device = self.model.decoder.latent_shape[1], self.decoder_cache.rows.device
        read_from = None
        if low < last:
            reads += [last] * (len(ids) - len(owed))
            read_from = torch.tensor([[r - low for r in reads]], device=device)  # (1, rows + n + K)
        # (layers, 2, 1, H, M k, C)
        keys = self.latent_cache.span(low * each, (last + 1) * each)
        view = self.decoder_cache.view(first, len(ids), len(block))
        states = [known.state for known in owed] + [*self.states_behind([*provisional])]
        # (1, rows + n, D)
        states = torch.stack(states)[None] if self.model.config.byte_states else None
        self.decoded, self.provisional = self.length, [*self.provisional, *provisional]
        self.counters.decoder += 1
        ids = torch.tensor([ids], device=device)
        return self.model.decoder(ids, keys, read_from, view, states)[0]

    # ---- both

    def extend(self, ids):
        """Take n more bytes, predict the next after each -> logits (n, V), rows owed in front."""
        logits = []
        for i in range(0, len(ids), self.max_rows):
            self.advance(ids[i : i + self.max_rows])
            logits.append(self.decode())
        return torch.cat(logits) if len(logits) > 1 else logits[0]

    def prefill(self, ids):
        """Extend by a prompt -> logits (V,) after its last byte, None if it is empty.

        What it cost is kept apart."""
        logits = None
        for i in range(0, len(ids), self.max_rows):
            logits = self.extend(ids[i : i + self.max_rows])[-1]
        spent = self.counters
        passes = {name: getattr(spent, name) for name in ("decoder", "encoder_global", "entropy")}
        self.counters = Counters(prefill=passes)
        return logits


# ---- run: a text's way through the model


options_from = idea_options("stream.py", "Show a text's way through the model.", "def main():")


def main(argv=None):
    options = options_from(argv)
    data = os.fsencode(options.text)
    if len(data) > 200:
        raise BadInput(f"--text has {len(data)} bytes: this shows up to 200")
    model, patcher = load_model(checkpoint.find(options.checkpoint))
    stream, rows = Stream(model, patcher), []
    for id_ in [BOS, *encode(data)]:
        guess = stream.extend([id_])[-1].argmax().item()
        known, counters = stream.known[-1], stream.counters
        byte = "BOS" if id_ == BOS else visible(decode([id_]))
        closes = "closes" if stream.closes(stream.length - 1) else ""
        passes = [counters.entropy, counters.encoder_global, counters.decoder]
        guessed = visible(decode([guess])) or "end"
        rows.append([byte, f"{known.entropy:.2f}", closes, known.patches_closed, *passes, guessed])
    config = patcher.config
    longest = config.max_patch or "any number of"
    print(f"θ = {config.threshold:.2f} nats, at most {longest} bytes a patch\n")
    header = ["byte", "entropy after", "its patch", "reads latent"]
    print(table([*header, "patcher", "encoder+global", "decoder", "guesses"], rows))


if __name__ == "__main__":
    run(main)
