"""Seconds of single passes of a model, measured."""

import functools
from dataclasses import dataclass, field

import numpy as np
import torch

from data import BOS, MASK, default_corpus, encode
from diffusion import chained_head
from generate import Sampling
from stream import Stream
from support.machine import choose_threads, median_seconds_in_turn


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
            timed = zip(*sorted(getattr(self, part).items()))
            seconds[part] += n * float(np.interp(width, *timed))
        return seconds


def settle_threads(model, patcher):
    """Let torch use one thread or all, by the time of a decoder pass over one row."""
    stream = Stream(model, patcher)
    stream.prefill([BOS])
    choose_threads(functools.partial(stream.decode, [BOS]))


@torch.inference_mode()
def pass_seconds(model, patcher, rows, patches=(1, 2, 4, 8), context=512, repeats=20):
    """Time single passes of a Stream at `context` bytes -> PassSeconds.

    They are timed in turn, as a generation runs them: repeated alone, each would find its weights
    in the CPU's caches. rows, patches: how many a pass takes, each timed for itself.
    """
    stream = Stream(model, patcher)
    text = b"".join(data for _, data in default_corpus().documents[:20])
    stream.prefill([BOS, *encode(text[:context])])

    def decoder_pass(n):
        stream.provisional = []
        stream.decode([100] * n)

    def patcher_pass(n):
        ids = torch.tensor([100] * n, device=stream.entropy_cache.rows.device)
        before = stream.known[-1].id, stream.known[-1].entropy
        patcher.step(ids, stream.length, stream.entropy_cache, before, [])[1].tolist()

    # The last patches that closed, once more: encoding them again changes nothing.
    passes, count = {}, stream.known[-1].patches_closed
    starts = sorted({known.open_start for known in stream.known})
    for m in patches:
        these = starts[-1 - m], starts[-1], count - m, count
        passes["encoder_global", m] = functools.partial(stream.encode_patches, *these)
    for n in sorted(set(rows)):
        passes["decoder", n] = functools.partial(decoder_pass, n)
        passes["patcher", n] = functools.partial(patcher_pass, n)
    if model.decoder.chain:
        draw_cells, K = chained_head(model.decoder), model.config.block_size
        cells = stream.last_rows(block=[MASK] * K)[-K:]
        for n in {1, K}:
            passes["chain", n] = functools.partial(draw_cells, cells[:n], 100, Sampling())
    times, spread = median_seconds_in_turn(passes, repeats)
    parts = {}
    for (part, n), seconds in times.items():
        parts.setdefault(part, {})[n] = seconds
    return PassSeconds(**parts, spread=spread)
