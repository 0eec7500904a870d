"""Seconds of single passes of the fast machine, measured."""

import functools
from dataclasses import dataclass, field

import numpy as np
import torch

from data import BOS, MASK, default_corpus, encode
from fast.stream import Stream
from generate import Sampling
from support.hardware import choose_threads, median_seconds_in_turn

ANY = 100  # an id of a byte, whichever: a pass takes as long for all of them


@dataclass
class PassSeconds:
    """Medians of seconds of single passes: decoder[n], patcher[n] for n rows, encoder_global[M] for
    M patches, chain[n] for n cells drawn greedily. spread: how far repeated times of a pass
    scatter, the largest of all.
    """

    decoder: dict
    patcher: dict
    encoder_global: dict
    spread: float
    chain: dict = field(default_factory=dict)

    def of(self, passes):
        """Seconds, by part, of passes: a Counter by (part, width), widths between those timed."""
        seconds = dict.fromkeys(("decoder", "encoder_global", "patcher", "chain"), 0.0)
        for (part, width), n in passes.items():
            timed = sorted(getattr(self, part).items())
            widths = [known for known, _ in timed]
            medians = [median for _, median in timed]
            seconds[part] += n * float(np.interp(width, widths, medians))
        return seconds


def is_fast(machine):
    """Does a machine keep what it has computed? The plain one has no passes of a single row."""
    return issubclass(machine.kind, Stream)


@torch.inference_mode()
def settle_threads(machine):
    """On a CPU, let torch use one thread or all, by the time of a decoder pass over one row."""
    if machine.model.device.type != "cpu":
        return
    state = machine.state()
    state.extend([BOS])
    choose_threads(functools.partial(decoder_pass, state, 1))


def decoder_pass(state, n):
    """One pass of the decoder over n rows behind the text."""
    state.peeked = []  # a Stream keeps rows that were asked for before, and would run none again
    state.model.decoder.head(state.peek([ANY] * n))


def encoder_global_pass(stream, low, high, old, new):
    """One call of encoder and global model for patches that are there already: it changes nothing.

    The arguments are those of Stream.encode_patches.
    """
    stream.decoded -= 1  # the byte that closes a patch is not decoded yet when that is encoded
    stream.encode_patches(low, high, old, new)
    stream.decoded += 1


def draw_cells(model, rows):
    """Draw the cells of a block with the chained head, greedily. rows (n, D): the decoder's."""
    sampling = Sampling()
    for _ in model.decoder.chained(rows, ANY, sampling.noise(len(rows)), sampling):
        pass


@torch.inference_mode()
def pass_seconds(machine, rows, patches=(1, 2, 4, 8), context=512, repeats=20):
    """Time single passes at `context` bytes -> PassSeconds, or None for a plain machine.

    They are timed in turn, as a generation runs them: repeated alone, each would find its weights
    in the caches of a CPU. rows, patches: how many a pass takes, each timed for itself.
    """
    if not is_fast(machine):
        return None
    model = machine.model
    # Rows behind the text may be as many as a rollback may take back.
    stream = machine.kind(model, machine.patcher, max_rollback=max(72, *rows))
    text = context_of(machine)
    stream.extend([BOS, *encode(text[:context])])
    passes = {}
    for m, last in patches_at_end(stream, patches).items():
        passes["encoder_global", m] = functools.partial(encoder_global_pass, stream, *last)
    for n in sorted(set(rows)):
        passes["decoder", n] = functools.partial(decoder_pass, stream, n)
        passes["patcher", n] = functools.partial(stream.boundary_signals, [ANY] * n)
    if model.config.chain_width:
        K = model.config.block_size
        cells = stream.peek(block=[MASK] * K)[-K:]
        for n in {1, K}:
            passes["chain", n] = functools.partial(draw_cells, model, cells[:n])
    times, spread = median_seconds_in_turn(passes, repeats, model.device)
    parts = {"decoder": {}, "patcher": {}, "encoder_global": {}, "chain": {}}
    for (part, n), seconds in times.items():
        parts[part][n] = seconds
    return PassSeconds(**parts, spread=spread)


def context_of(machine):
    """Text that a model knows, as bytes: passes are timed behind it."""
    if machine.openings:
        return b"\n".join(machine.openings)
    return b"".join(bytes(data) for _, data in default_corpus().documents[:20])


def patches_at_end(stream, counts):
    """The last m patches of a Stream's text, for each m of `counts` that there are.

    -> {m: what Stream.encode_patches takes}.
    """
    # Where patches start: behind those that closed
    starts = sorted({known.open_start for known in stream.known})
    closed = stream.known[-1].patches_closed
    found = {}
    for m in counts:
        if m < len(starts):
            found[m] = starts[-1 - m], starts[-1], closed - m, closed
    return found
