"""From logits to bytes: sampling, what a generation cost, plain BLT and its slow twin.

Run it to watch plain BLT write, how sure it is of each byte, and the passes behind it:

    python generate.py --prompt "def "

A sampler is a function that returns a Generation: what it made and what it cost. Letters in shape
comments: n rows of logits, V vocabulary.
"""

import functools
import math
import os
import time
from collections import Counter
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from data import BOS, EOS, MASK, PAD, VOCAB, decode, encode
from model import count_parameters, load_model
from stream import Counters, Stream
from support import checkpoint
from support.flags import idea_options
from support.terminal import run, table, visible

# ---- how the next byte is chosen


@dataclass
class Sampling:
    """How bytes are chosen from logits, and what ends them. Temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    ignore_eos: bool = False  # never end before the byte budget
    seed: int = 0
    stop: tuple = ()  # ids that end the output as EOS does, say that of a newline

    def __post_init__(self):
        self.generator = torch.Generator().manual_seed(self.seed)


def until_end(ids, sampling):
    """-> (ids up to the first that ends the output, whether there is one)."""
    for i, id_ in enumerate(ids):
        if id_ == EOS or id_ in sampling.stop:
            return ids[:i], True
    return ids, False


@functools.cache
def penalties(ignore_eos):
    """What bans ids that are no output when it is added to logits, (V,)."""
    banned = torch.tensor([PAD, BOS, MASK] + [EOS] * ignore_eos)
    return torch.zeros(VOCAB).index_fill(0, banned, -math.inf)


def ban(logits, sampling):
    """Logits (..., V) without the ids that are no output: PAD, BOS, MASK, and EOS if ignored."""
    return logits + penalties(sampling.ignore_eos).to(logits)


def distribution(logits, sampling):
    """What `draw` draws the next byte from: logits (n, V) -> probabilities (n, V) on the CPU.

    Never in less than float32. Greedy: the banned logits, the best of which needs no probability.
    """
    logits = ban(logits.cpu(), sampling)
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    if sampling.temperature == 0:
        return logits
    p = torch.softmax(logits / sampling.temperature, -1)
    if sampling.top_p == 1:
        return p
    ordered, index = p.sort(-1, descending=True)
    # (n, V): kept while the mass in front of an id is below top_p
    ordered *= ordered.cumsum(-1) - ordered < sampling.top_p
    ordered /= ordered.sum(-1, keepdim=True)
    return p.scatter_(-1, index, ordered)


def draw(p, sampling):
    """One id from each row of a distribution p (n, V) -> list of n ids."""
    if sampling.temperature == 0:
        return p.argmax(-1).tolist()
    # The first id up to which there is more mass than a uniform number
    mass = p.cumsum(-1, dtype=torch.float64)
    chance = torch.rand(len(p), 1, dtype=torch.float64, generator=sampling.generator)
    return torch.searchsorted(mass, chance * mass[:, -1:], right=True)[:, 0].tolist()


# ---- what a generation made and what it cost


def gigabytes(decoder_nfes, encoder_global_nfes, decoder, encoder_global, bits=16):
    """Fast BLT §4.2, Eq. 8: every forward pass (NFE) reads each parameter of its part once -> GB.

    decoder, encoder_global: parameters of the parts. The n-gram tables are not among them: a pass
    reads a few of their entries, looked up one by one. GB are 1e9 bytes.
    """
    numbers_read = decoder_nfes * decoder + encoder_global_nfes * encoder_global
    return bits / 8 * numbers_read / 1e9


@dataclass
class Generation:
    """What a sampler returns; also the sum of several, which `total` makes."""

    ids: list  # generated, without the id that ended them
    counters: Counters
    seconds: float  # after the prefill
    sizes: dict  # parameters by part, the patcher among them

    @classmethod
    def total(cls, several):
        """Several generations of one model as one: all their ids, the sums of what they cost."""
        counters = Counters()
        for name, zero in vars(counters).items():
            values = [getattr(made.counters, name) for made in several]
            if isinstance(zero, dict):
                values = map(Counter, values)
            setattr(counters, name, sum(values, zero))
        ids = [id_ for made in several for id_ in made.ids]
        return cls(ids, counters, sum(made.seconds for made in several), several[0].sizes)

    @property
    def new_bytes(self):
        """Bytes generated; what ended them is not counted."""
        return len(self.ids)

    @property
    def bytes_per_second(self):
        """Speed after the prefill."""
        return self.new_bytes / max(self.seconds, 1e-9)

    @property
    def acceptance(self):
        """Share of drafted bytes that verification accepted, or None where nothing was drafted."""
        c = self.counters
        return c.accepted / c.drafted if c.drafted else None

    @property
    def mean_patch(self):
        """Bytes a patch, or None if no patch closed."""
        c = self.counters
        return c.bytes_advanced / c.patches_closed if c.patches_closed else None

    def gigabytes(self, bits=16):
        """Eq. 8 at `bits` a parameter, without the patcher's passes, as the paper has it."""
        size, c = self.sizes, self.counters
        together = size["encoder"] + size["global"]
        chained = bits / 8 * c.chain * size["chain"] / 1e9  # once for each cell of a draft
        return chained + gigabytes(c.decoder, c.encoder_global, size["decoder"], together, bits)

    def gigabytes_with_patcher(self, bits=16):
        """As `gigabytes`, and the patcher's passes."""
        return self.gigabytes(bits) + bits / 8 * self.counters.entropy * self.sizes["patcher"] / 1e9

    def cost(self):
        """The sums that every report gives, by their JSON keys."""
        c = self.counters
        return {
            "new_bytes": self.new_bytes,
            "seconds": self.seconds,
            "bytes_per_second": self.bytes_per_second,
            "decoder_nfes": c.decoder,
            "encoder_global_nfes": c.encoder_global,
            "entropy_nfes": c.entropy,
            "bandwidth_gb": self.gigabytes(),
        }


def begin(stream, trace):
    """A sampler has taken its prompt in: the clock starts -> the time. trace: or None."""
    if trace:
        trace.begin(stream)
    return time.perf_counter()


def finish(stream, ids, began, counters=None):
    """The Generation of a sampler that ends now. counters: if not those of the stream."""
    seconds = time.perf_counter() - began
    sizes = {**stream.model.sizes(), "patcher": count_parameters(stream.patcher)}
    return Generation(ids, counters or stream.counters, seconds, sizes)


# ---- plain BLT


def generate(model, patcher, prompt, max_bytes, *, sampling=None, emit=None, trace=None):
    """Plain BLT, byte by byte from true caches.

    prompt: ids without BOS. emit: called with each list of new ids. trace.round sees every byte
    as a round in which nothing was drafted (speculate.py has others).
    """
    sampling = sampling or Sampling()
    stream = Stream(model, patcher)
    logits, ids = stream.prefill([BOS, *prompt]), []
    began = begin(stream, trace)
    while len(ids) < max_bytes:
        if ids:
            logits = stream.extend(ids[-1:])[-1]
        drawn = draw(distribution(logits[None], sampling), sampling)
        if trace and ids:
            trace.round(stream.taken(stream.length - 1), [], 0, drawn[0])
        new, ended = until_end(drawn, sampling)
        if ended:
            break
        ids += new
        if emit:
            emit(new)
    return finish(stream, ids, began)


@torch.no_grad()
def generate_uncached(model, patcher, prompt, max_bytes, sampling=None):
    """The slow twin: the whole prefix through the whole model for every byte. Ids in and out."""
    sampling, ids = sampling or Sampling(), [BOS, *prompt]
    for _ in range(max_bytes):
        prefix = torch.tensor(ids, device=model.decoder.head.weight.device)
        logits = model(prefix[None], patcher.closes(prefix)[None])[0, -1:]
        new, ended = until_end(draw(distribution(logits, sampling), sampling), sampling)
        if ended:
            break
        ids += new
    return ids[1 + len(prompt) :]


# ---- how likely bytes are


def next_byte_loss(logits, ids):
    """Mean cross-entropy in nats of every next byte, the last position's too.

    logits (B, N, V), ids (B, N + 1).
    """
    return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


@torch.inference_mode()
def bits_per_byte(model, patcher, documents, show=None):
    """Bits that the model needs for each byte of `documents` (ids, BOS first), EOS in the sum.

    Every byte is predicted once, from all that precedes it in its document. show: called with the
    bytes of each piece done.
    """
    nats, count, piece = 0.0, 0, 512
    for ids in documents:
        ids, stream = ids.tolist(), Stream(model, patcher, max_rows=piece)
        for i in range(0, len(ids) - 1, piece):
            targets = torch.tensor(ids[i + 1 : i + 1 + piece])
            # (n, V)
            logits = stream.extend(ids[i : i + piece])[: len(targets)].float().cpu()
            nats += F.cross_entropy(logits, targets, reduction="sum").item()
            if show:
                show(len(targets))
        count += len(ids) - 2
    return nats / math.log(2) / max(1, count)


# ---- run: plain BLT at work


options_from = idea_options("generate.py", "Watch plain BLT write.", "def ", bytes=12)


def main(argv=None):
    options = options_from(argv)
    stream = Stream(*load_model(checkpoint.find(options.checkpoint)))
    sampling, rows = Sampling(ignore_eos=True), []
    logits = stream.prefill([BOS, *encode(os.fsencode(options.text))])
    for _ in range(options.bytes):
        best = torch.softmax(ban(logits, sampling), -1).topk(3)
        id_, *others = (visible(decode([i])) for i in best.indices.tolist())
        logits = stream.extend(best.indices[:1].tolist())[-1]
        closes = "closes" if stream.closes(stream.length - 1) else ""
        passes = [stream.counters.encoder_global, stream.counters.decoder]
        rows.append([id_, f"{best.values[0]:.0%}", "  ".join(others), closes, *passes])
    print(table(["byte", "sure", "or", "its patch", "encoder+global", "decoder"], rows))


if __name__ == "__main__":
    run(main)
