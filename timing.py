"""Seconds of single passes, what a generation should take by them, and when drafting pays."""
import functools
from dataclasses import dataclass

import torch

from data import BOS, default_corpus, encode
from machine import median_seconds_in_turn
from stream import Stream


@dataclass
class PassSeconds:
    """Seconds of single passes at one stream: decoder[n] and patcher[n] for n rows, encoder_global[m] for m patches."""
    decoder: dict
    patcher: dict
    encoder_global: dict
    spread: float  # the largest

    def patches(self, m):
        """Seconds of an encoder/global pass that closes m patches on average, on the line through 1 and 2."""
        return self.encoder_global[1] + (m - 1) * (self.encoder_global[2] - self.encoder_global[1])

    def describe(self, rows):
        """One line: the passes over so many rows, in milliseconds."""
        name = lambda store, part: ", ".join(f"{part} of {n} {1000 * store[n]:.2f}" for n in rows)
        return (f"One pass, ms: {name(self.decoder, 'decoder')}, {name(self.patcher, 'patcher')}, encoder and global for 1 patch "
                f"{1000 * self.encoder_global[1]:.2f}; {torch.get_num_threads()} threads, spread at most {self.spread:.0%}")


@torch.inference_mode()
def pass_seconds(model, patcher, rows, patches=(1, 2), context=512, repeats=20):
    """Time single passes of a Stream at `context` bytes -> PassSeconds.

    The passes are timed in turn, as a generation runs them: repeated alone, each would find its weights in the CPU's caches.
    """
    stream = Stream(model, patcher)
    stream.prefill([BOS] + encode(b"".join(d for _, d in default_corpus().documents[:20])[:context]))
    passes, rows = {}, sorted(set(rows))

    def draft(n):
        stream.drafts = 0
        stream.draft([100] * n)

    def entropies(n):
        ids = torch.tensor([100] * n, device=stream.entropy_cache.rows.device)
        patcher.step(ids, stream.length, stream.entropy_cache, stream.known[-1])[1].tolist()

    end = start = stream.known[-1].open_start
    count = stream.known[-1].patches
    for m in range(1, max(patches) + 1):
        start -= 1
        while stream.at(start - 1).open_start != start:
            start -= 1
        if m in patches:
            passes["encoder_global", m] = functools.partial(stream.close_patches, start, end, count - m, count)
    for n in rows:
        passes["decoder", n], passes["patcher", n] = functools.partial(draft, n), functools.partial(entropies, n)
    times, spread = median_seconds_in_turn(passes, repeats)
    part = lambda name: {n: seconds for (kind, n), seconds in times.items() if kind == name}
    return PassSeconds(part("decoder"), part("patcher"), part("encoder_global"), spread)


def predicted_seconds(mode, counters, times, count):
    """What a generation would take if only its passes took time: its counters times the seconds of single passes.

    count: bytes drafted a round (k, or K in bltd and bltdv) -> seconds in all, of these in encoder and global, and in the patcher.
    """
    c = counters
    first, later, taken = {"blt": (1, 1, 1), "bltd": (2 * count, count, count), "bltdv": (count + 1, count, count + 1)}.get(
        mode, (1, 1, count + 1))  # rows of a round's first draft pass, of the others
    verifying = c.rounds * times.decoder[count + 1] if mode in ("blts", "bltdv", "lookup") else 0.0
    drafts = c.decoder - (c.rounds if verifying else 0)
    firsts = min(drafts, c.rounds)
    decoding = firsts * times.decoder[first] + (drafts - firsts) * times.decoder[later] + verifying
    closing = c.encoder_global * times.patches(max(1.0, c.patches / max(1, c.encoder_global)))
    patching = c.entropy * times.patcher[taken]
    return decoding + closing + patching, closing, patching


def break_even(times, mean_patch, window, block_size):
    """Bytes a round above which drafting beats plain BLT, by single passes -> rows of (mode, bytes drafted, bytes a round)."""
    plain = times.decoder[1] + times.patcher[1] + times.patches(1) / mean_patch
    verify = lambda n: times.decoder[n + 1] + times.patcher[n + 1] + times.patches(1)
    rows = [("blts", window, (verify(window) + window * times.decoder[1]) / plain),
            ("lookup", window, verify(window) / plain)]
    if block_size:
        rows.append(("bltdv", block_size, (verify(block_size) + times.decoder[block_size + 1]) / plain))
    return rows
