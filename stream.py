"""The same model, cached and incremental: `Stream` holds everything that one sequence needs to go on.

A byte's way: the entropy model says whether it closes its patch; only then the encoder reads that patch's bytes and the global
model makes one more latent; the decoder predicts the next byte from the last latent there is. So the two local models run once a
byte and the encoder and global model once a patch, and nothing is ever computed twice.

Letters in shape comments: n bytes given, K block size, k vectors a patch, V vocabulary, M patches, G global width.
"""
import math
import time
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from data import BOS, EOS, MASK, PAD
from layers import Cache
from model import LEAD


@dataclass
class Counters:
    """What a generation cost: forward passes really run (NFEs) by part, the prefill's apart, and what speculation did."""
    decoder: int = 0
    encoder_global: int = 0      # encoder and global model always run together
    entropy: int = 0
    bytes_advanced: int = 0      # bytes taken in, and the patches closed among them; rollbacks take theirs off again
    patches: int = 0
    prefill: dict = field(default_factory=dict)
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    lengths: dict = field(default_factory=dict)   # accepted bytes -> rounds that accepted so many


class Known(NamedTuple):
    """What a Stream keeps of one byte."""
    id: int
    entropy: float   # of the prediction after it, nats
    patches: int     # patches closed up to and including it
    open_start: int  # where the patch open after it starts: its own position + 1 if it closes one


class Stream:
    """Caches, boundaries and counters of one sequence. Rows at positions >= length are scratch.

    advance: entropies, boundaries, and latents of the patches that close.  decode: logits of rows not decoded yet, and of a
    block.  extend: both.  draft: decoder rows that are not part of the sequence.  rollback: forget the last bytes.
    `reach` is how far back a rollback may go; a pass takes at most `room` bytes, more are taken in pieces.
    """

    def __init__(self, model, patcher, reach=64, room=256):
        c, longest = model.config, max(model.config.max_patch, patcher.config.max_patch)
        if patcher.config.max_patch > c.max_patch:
            raise ValueError(f"the patcher makes patches of {patcher.config.max_patch} bytes, the model takes {c.max_patch}")
        self.model, self.patcher, self.reach, self.room = model, patcher, reach, room
        weight = model.decoder.head.weight
        self.entropy_cache = patcher.model.cache(reach, room)
        # After a rollback over a patch start the encoder reads from that start again: its rows reach a patch further back.
        head, k, theta = c.width // c.heads, c.patch_vectors, c.rope_theta
        self.encoder_cache = Cache(c.encoder_layers, c.heads, head, c.window, reach + longest, room + longest, theta, weight)
        self.global_cache = Cache(c.global_layers, c.global_heads, c.global_width // c.global_heads, c.global_window,
                                  reach + 1, room + 1, theta, weight)
        self.decoder_cache = Cache(c.decoder_layers, c.heads, head, c.window, reach, room, theta, weight)
        self.latent_cache = Cache(c.decoder_layers, c.heads, head, k, (reach + 1) * k, (room + 1) * k, None, weight)
        self.known, self.forgotten = [], 0  # Known of the latest bytes; how many before them were let go
        self.decoded = 0                    # rows of the sequence that the decoder has processed
        self.drafts = 0                     # decoder rows behind them that `draft` wrote
        self.counters = Counters()

    @property
    def length(self):
        """Bytes in the sequence, BOS included."""
        return self.forgotten + len(self.known)

    def at(self, position):
        """Known of a byte that is still held; PAD before the start of the text."""
        return self.known[position - self.forgotten] if position >= 0 else Known(PAD, 0.0, 0, 0)

    def rollback(self, length):
        """Forget all bytes from position `length` on. Raises ValueError beyond `reach` bytes back."""
        if not max(1, self.length - self.reach) <= length <= self.length:
            raise ValueError(f"can't roll back from {self.length} to {length}: this stream reaches {self.reach} bytes back")
        self.counters.bytes_advanced -= self.length - length
        self.counters.patches -= self.known[-1].patches - self.at(length - 1).patches
        del self.known[length - self.forgotten:]
        self.decoded = min(self.decoded, length)
        self.drafts = 0

    @torch.inference_mode()
    def advance(self, ids):
        """Take n >= 1 more bytes (list of ids): one entropy pass and, if patches closed, one encoder and global pass.

        Raises ValueError for a batch: a Stream is one sequence.
        """
        if not all(isinstance(i, int) for i in ids):
            raise ValueError("a Stream holds one sequence: give it a list of ids, and a batch one Stream for each row")
        for i in range(0, len(ids), self.room):
            self._advance(ids[i:i + self.room])

    def _advance(self, ids):
        first, before = self.length, self.known[-1] if self.known else None
        tensor = torch.tensor(ids, device=self.entropy_cache.rows.device)
        signals, H = self.patcher.step(tensor, first, self.entropy_cache, before)
        self.counters.entropy += self.patcher.needs_entropy
        self.counters.bytes_advanced += len(ids)
        patches, start = (before.patches, before.open_start) if before else (0, 0)
        old_patches, old_start = patches, start
        for i, (id_, signal, h) in enumerate(zip(ids, signals.tolist(), H.tolist()), first):
            if signal or i == 0 or i + 1 - start == self.patcher.config.max_patch:
                patches, start = patches + 1, i + 1
            self.known.append(Known(id_, h, patches, start))
        self.drafts = 0
        if patches > old_patches:
            self.close_patches(old_start, start, old_patches, patches)
        held = self.reach + self.model.config.max_patch + LEAD
        if len(self.known) > 4 * held + self.room:
            drop = len(self.known) - max(held, self.length - self.decoded + held)
            self.forgotten += drop
            del self.known[:drop]

    def close_patches(self, low, high, old, new):
        """Encode the bytes low..high-1, which are the patches old..new-1, and make their latents."""
        decoder, device = self.model.decoder, self.global_cache.rows.device
        ids = torch.tensor([[self.at(i).id for i in range(low - LEAD, high)]], device=device)  # (1, LEAD + n)
        closes = torch.tensor([[self.at(i).open_start == i + 1 for i in range(low, high)]], device=device)   # (1, n)
        vectors = self.model.encoder(ids, closes, self.encoder_cache.view(low, high - low))                  # (1, M, G)
        latents = self.model.globe(vectors, self.global_cache.view(old, new - old))                          # (1, M, G)
        k = self.model.config.patch_vectors
        rows = self.latent_cache.span(old * k, new * k)  # (layers, 2, 1, H, M k, C)
        for row, keys in zip(rows, decoder.latent_keys(latents)):
            row.copy_(keys)
        self.counters.encoder_global += 1
        self.counters.patches += new - old

    @torch.inference_mode()
    def decode(self, block=()):
        """One decoder pass over the clean rows not decoded yet and, if given, the rows of a block (list of K ids).

        -> logits (rows + K, V). The block starts at `length`, reads the last latent, and leaves nothing behind.
        """
        low, high = self.decoded, self.length
        if high - low + len(block) > self.room:
            raise ValueError(f"{high - low + len(block)} decoder rows at once, this stream has room for {self.room}")
        ids = [self.at(i).id for i in range(low, high)]
        reads = [self.at(i).patches - 1 for i in range(low, high)]
        self.drafts, self.decoded = 0, high
        return self._decode(low, ids, reads, block)

    @torch.inference_mode()
    def draft(self, ids, block=()):
        """A decoder pass over provisional rows behind the sequence and earlier drafts, and then a block: as `decode`, but all
        rows read the last latent, and the next advance, decode or rollback forgets them. -> logits (n + K, V).
        """
        if self.decoded != self.length:
            raise ValueError("a draft needs every row of the sequence decoded")
        first, last = self.decoded + self.drafts, self.known[-1].patches - 1
        self.drafts += len(ids)
        return self._decode(first, ids, [last] * len(ids), block)

    def _decode(self, first, ids, reads, block):
        last = self.known[-1].patches - 1
        low, k, device = min(reads, default=last), self.model.config.patch_vectors, self.decoder_cache.rows.device
        keys = self.latent_cache.span(low * k, (last + 1) * k)  # (layers, 2, 1, H, M k, C)
        reads = [r - low for r in reads] + [last - low] * len(block)
        reads = torch.tensor([reads], device=device) if low < last else None  # (1, rows + K)
        ids = torch.tensor([[*ids, *block]], device=device)  # (1, rows + K)
        view = self.decoder_cache.view(first, ids.shape[1], len(block))
        self.counters.decoder += 1
        return self.model.decoder(ids, keys, reads, *view)[0]

    def extend(self, ids):
        """Take n more bytes and predict the next after each: list of ids -> logits (n, V). Prefill, one byte, verification."""
        logits = []
        for i in range(0, len(ids), self.room):
            self.advance(ids[i:i + self.room])
            logits.append(self.decode())
        return torch.cat(logits) if len(logits) > 1 else logits[0]

    def prefill(self, ids):
        """Extend by a prompt -> logits (V,) after its last byte; what it cost is kept apart from the generation's counts."""
        for i in range(0, len(ids), self.room):
            logits = self.extend(ids[i:i + self.room])[-1]
        spent = self.counters
        self.counters = Counters(prefill={"decoder": spent.decoder, "encoder_global": spent.encoder_global, "entropy": spent.entropy})
        return logits


# ---- from logits to bytes

@dataclass
class Sampling:
    """How the next byte is chosen from logits: temperature 0 is greedy."""
    temperature: float = 0.0
    top_p: float = 1.0
    ignore_eos: bool = False     # never end before the byte budget
    seed: int = 0
    stop: tuple = ()             # ids that end the output as EOS does, say that of a newline

    def __post_init__(self):
        self.generator = torch.Generator().manual_seed(self.seed)


def until_end(ids, sampling):
    """-> (ids up to the first that ends the output, whether there is one)."""
    end = next((i for i, id_ in enumerate(ids) if id_ == EOS or id_ in sampling.stop), None)
    return ids[:end], end is not None


def ban(logits, sampling):
    """Logits (..., V) without the ids that are no output: PAD, BOS, MASK, and EOS if it is to be ignored."""
    logits = logits.clone()
    logits[..., [PAD, BOS, MASK] + [EOS] * sampling.ignore_eos] = float("-inf")
    return logits


def distribution(logits, sampling):
    """The distribution that the next byte is drawn from: logits (n, V) -> probabilities (n, V), one-hot when greedy."""
    logits = ban(logits, sampling)
    if sampling.temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    p = torch.softmax(logits / sampling.temperature, -1)
    if sampling.top_p < 1:
        ordered, index = p.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered                              # (n, V) mass in front of each id
        p = torch.zeros_like(p).scatter_(-1, index, torch.where(before < sampling.top_p, ordered, 0.0))
    return p / p.sum(-1, keepdim=True)


def draw(p, sampling):
    """One id from each row of p (n, V) -> list of n ids."""
    if sampling.temperature == 0:
        return p.argmax(-1).tolist()
    return torch.multinomial(p.float().cpu(), 1, generator=sampling.generator)[:, 0].tolist()


@torch.inference_mode()
def bits_per_byte(model, patcher, documents, show=None):
    """Bits that the model needs for each byte of `documents` (lists of ids, BOS first), EOS included in the sum.

    Every byte is predicted once, from all that precedes it in its document. show: called with the bytes of each piece done.
    """
    nats = count = 0.0
    for ids in documents:
        ids, stream = ids.tolist(), Stream(model, patcher, room=512)
        for i in range(0, len(ids) - 1, 512):
            piece = ids[i:i + 512]
            targets = torch.tensor(ids[i + 1:i + 513])
            logits = stream.extend(piece)[:len(targets)].float().cpu()                                       # (n, V)
            nats += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
            if show:
                show(len(targets))
        count += len(ids) - 2
    return nats / math.log(2) / max(1, count)


@dataclass
class Generation:
    """What a sampler returns: what it made, and what it cost."""
    ids: list                    # generated ids, without the one that ended them
    counters: Counters
    seconds: float               # after the prefill


def generate(model, patcher, prompt, max_bytes, sampling=None, emit=None):
    """Plain BLT: byte by byte from true caches. prompt: ids without BOS; emit: called with each list of new ids."""
    sampling = sampling or Sampling()
    stream = Stream(model, patcher)
    logits, ids = stream.prefill([BOS, *prompt]), []
    began = time.perf_counter()
    while len(ids) < max_bytes:
        if ids:
            logits = stream.extend(ids[-1:])[-1]
        new, ended = until_end(draw(distribution(logits[None], sampling), sampling), sampling)
        if ended:
            break
        ids += new
        if emit:
            emit(new)
    return Generation(ids, stream.counters, time.perf_counter() - began)


@torch.no_grad()
def generate_uncached(model, patcher, prompt, max_bytes, sampling=None):
    """The slow twin: the whole prefix through the whole model for every byte. Lists of ids in and out."""
    sampling, ids = sampling or Sampling(), [BOS, *prompt]
    for _ in range(max_bytes):
        prefix = torch.tensor(ids)
        logits = model(prefix[None], patcher.closes(prefix)[None])[0, -1:]
        new, ended = until_end(draw(distribution(logits, sampling), sampling), sampling)
        if ended:
            break
        ids += new
    return ids[1 + len(prompt):]
