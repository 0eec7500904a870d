"""From logits to bytes: sampling, the plain state, plain BLT, what a generation made and cost.

Run it to watch plain BLT write, how sure it is of each byte, and the passes behind it:

    python generate.py --prompt "def "

A *state* holds the bytes of one text and answers questions about what follows. `Prefix` is the
plain one: it runs the model over the whole text at each question. fast/stream.py has the other,
which keeps what was computed; both have the same few calls, so every sampler is written once.
fast/load.py compares the two whenever a checkpoint is loaded, tests/test_stream.py call by call.

    extend(ids)          takes n bytes in -> logits of the byte after each of them (n, V)
    advance(ids)         takes n bytes in, for callers who do not need the logits
    peek(ids, block)     the decoder's rows for n ids behind the text and for the K cells of a block
                         behind those -> (n + K, D); both read the last latent there is, and the
                         text stays what it was
    alone(ids, ..)       the decoder alone goes on behind them -> its ids and their logits
    chained(ids, ..)     the chained head fills a block behind them -> the same
    rollback(length)     forgets all bytes from position `length` on
    closes(position)     does the byte there close its patch?
    length, counters     bytes that it holds (BOS included), and what was run

Letters in shape comments: n rows of logits, K block size, V vocabulary, D width.
"""

import math
import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

from data import BOS, EOS, MASK, PAD, VOCAB
from model import Blocks
from support.generation import Counters, Generation, Watch
from support.hardware import synchronize

# Added to logits: PAD, BOS and MASK never come out, and in the second row EOS neither.
BANNED = torch.zeros(2, VOCAB)
BANNED[:, [PAD, BOS, MASK]] = BANNED[1, EOS] = -math.inf


@dataclass
class Sampling:
    """How bytes are chosen from logits, and what ends them. Temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    ignore_eos: bool = False  # never draw EOS
    seed: int = 0
    stop: tuple = ()  # ids that end the output as EOS does, say that of a newline

    def __post_init__(self):
        self.generator = torch.Generator().manual_seed(self.seed)

    def noise(self, n):
        """(n, V): argmax(logits + noise) is a draw from softmax(logits / T), never a banned id."""
        noise = torch.zeros(n, VOCAB)  # made ahead, so that a device can draw a whole draft by it
        if self.temperature > 0:  # T times Gumbel noise
            chance = torch.rand(n, VOCAB, generator=self.generator)
            noise = -self.temperature * (-chance.log()).log()
        return ban(noise, self)

    def pick(self, logits, noise):
        """The id drawn from `distribution` of logits (1, V) by one row of that noise, (V,)."""
        logits = allowed(logits.cpu(), self) if self.top_p < 1 else logits.cpu()
        return int((logits + noise).argmax())


def ban(logits, sampling):
    """Logits (..., V) in float32 or more, -inf for PAD, BOS, MASK, and EOS if it is ignored."""
    return logits + BANNED[int(sampling.ignore_eos)].to(logits.device)


def allowed(logits, sampling):
    """Logits (n, V) on the CPU, -inf for the ids that are banned, or that top-p leaves out."""
    logits = ban(logits, sampling)
    if sampling.temperature == 0 or sampling.top_p == 1:
        return logits
    p = torch.softmax(logits.detach() / sampling.temperature, -1)
    ordered = torch.from_numpy(np.sort(p.numpy())).flip(-1)  # NumPy sorts short rows fast
    # Kept are ids with less mass in front of them than top_p, and ties with the last of these
    kept = ordered.cumsum(-1) - ordered < sampling.top_p
    least = torch.where(kept, ordered, 1.0).amin(-1, keepdim=True)
    return logits.masked_fill(p < least, -math.inf)


def distribution(logits, sampling):
    """Logits (n, V) -> probabilities to draw from (n, V), the logits if T = 0; on the CPU."""
    logits = allowed(logits.cpu(), sampling)
    return torch.softmax(logits / sampling.temperature, -1) if sampling.temperature else logits


def draw(p, sampling):
    """One id from each row of p (n, V), which `distribution` gave -> list of n ids."""
    if sampling.temperature == 0:
        return p.argmax(-1).tolist()
    # The first id up to which there is more mass than a uniform number
    mass = p.cumsum(-1, dtype=torch.float64)
    chance = torch.rand(len(p), 1, dtype=torch.float64, generator=sampling.generator)
    return torch.searchsorted(mass, chance * mass[:, -1:], right=True)[:, 0].tolist()


# ---- the plain state


class Prefix:
    """The plain state: the bytes so far, and the model run over all of them at each question.

    Its counters are those of the fast state, which does not run again what it has run before.
    """

    def __init__(self, model, patcher):
        self.model = model
        self.patcher = patcher
        self.ids = []
        self.closed = []  # of each of them: does it close its patch?
        self.counters = Counters()

    @property
    def length(self):
        """Bytes that it holds, BOS included."""
        return len(self.ids)

    def closes(self, position):
        """Does the byte at this position close its patch?"""
        return self.closed[position]

    def advance(self, ids):
        """Take n bytes in."""
        known = self.length
        self.ids += ids
        text = torch.tensor(self.ids, device=self.model.device)
        self.closed = self.patcher.closes(text).tolist()
        new_patches = sum(self.closed[known:])
        self.counters.bytes_advanced += len(ids)
        self.counters.patches_closed += new_patches
        self.counters.entropy += int(self.patcher.needs_entropy)
        if new_patches:  # else there is no new latent to compute
            self.counters.encoder_global += 1

    @torch.inference_mode()
    def extend(self, ids):
        """Take n bytes in -> logits of the byte after each of them (n, V)."""
        self.advance(ids)
        return self.model.decoder.head(self.rows(self.ids, self.closed)[-len(ids) :])

    def peek(self, ids=(), block=()):
        """Decoder rows of n ids behind the text and of K cells behind those (n + K, D)."""
        return self.rows(self.ids, self.closed, ids, block)[self.length :]

    def alone(self, ids, noise, sampling):
        """The decoder goes on behind ids, a byte for a row of noise: yields id, logits (1, V)."""
        for row in noise:
            logits = self.model.decoder.head(self.peek(ids)[-1:])
            ids = [*ids, sampling.pick(logits, row)]
            yield ids[-1], logits

    def chained(self, ids, before, noise, sampling):
        """A block behind ids, by the chained head: yields as alone. before: the id in front."""
        rows = self.peek(ids, [MASK] * len(noise))[-len(noise) :]
        yield from self.model.decoder.chained(rows, before, noise, sampling)

    @torch.inference_mode()
    def rows(self, text, closes, drafted=(), cells=()):
        """The decoder's last rows of a text of N ids, and of what is laid behind it (N + n + K, D).

        What is drafted closes no patch, whatever the patcher would say of it: it reads the last
        latent that the text has.
        """
        device = self.model.device
        blocks = None
        if drafted or cells:
            blocks = Blocks.behind(len(text), drafted, cells, device)
        self.counters.decoder += 1
        text = torch.tensor([text], device=device)
        return self.model.rows(text, torch.tensor([closes], device=device), blocks)[0]

    def rollback(self, length):
        """Forget all bytes from position `length` on."""
        self.counters.bytes_advanced -= self.length - length
        self.counters.patches_closed -= sum(self.closed[length:])
        del self.ids[length:]
        del self.closed[length:]


class Output:
    """The text that a sampler writes behind its prompt, until it ends."""

    def __init__(self, state, prompt, max_bytes, sampling, watch):
        self.state = state
        self.text = [BOS, *prompt]
        self.first = len(self.text)  # where the output begins
        self.last = self.first + max_bytes
        self.sampling = sampling
        self.watch = watch

    @property
    def left(self):
        """How many bytes may follow."""
        return self.last - len(self.text)

    def prefill(self):
        """Let the state take the prompt in -> logits of what follows (1, V). The clock starts."""
        logits = self.state.extend(self.text)[-1:]
        spent = self.state.counters
        passes = {name: getattr(spent, name) for name in ("decoder", "encoder_global", "entropy")}
        self.state.counters = Counters(prefill=Counter(passes))
        synchronize(self.state.model.device)
        self.watch.begin(self.state)
        self.began = time.perf_counter()
        return logits

    def write(self, ids):
        """Take new ids, those before one that ends the output -> may more follow?"""
        ids = ids[: self.left]
        ends = [i for i, id_ in enumerate(ids) if id_ == EOS or id_ in self.sampling.stop]
        if ends:
            ids = ids[: ends[0]]
        self.text += ids
        self.watch.bytes(ids)
        return not ends and self.left > 0

    def finish(self):
        """-> the Generation."""
        seconds = time.perf_counter() - self.began
        state = self.state
        sizes = {**state.model.sizes(), "patcher": state.patcher.size()}
        return Generation(self.text[self.first :], state.counters, seconds, sizes)


@torch.inference_mode()
def generate(state, prompt, max_bytes, *, sampling=None, watch=None):
    """Plain BLT, byte by byte. state: a new one; prompt: list of ids without BOS -> Generation."""
    sampling = sampling or Sampling()
    out = Output(state, prompt, max_bytes, sampling, watch or Watch())
    logits = out.prefill()
    while True:
        byte = draw(distribution(logits, sampling), sampling)
        out.watch.round(state, [], 0, byte[0])  # a round in which nothing was drafted
        if not out.write(byte):
            return out.finish()
        logits = state.extend(byte)


if __name__ == "__main__":
    from measure import ideas

    ideas.show("generate")
