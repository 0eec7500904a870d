"""Random models, texts and calls against the slow twins, in float64, until the time is up.

    python -m tests.fuzzing --minutes 5 --seed 0

A stream case takes one text through a Stream in random pieces, with drafts, blocks, wrong bytes and
rollbacks between them, and compares its logits with the full forward pass. A generation compares
the greedy output of a mode with that of plain BLT without caches. What differs is excused only
where rounding decides: where the patcher's score and its threshold, or the two best logits, are
equal to nine digits. Some thresholds are a score of the text itself, so that there are such places.
"""

import copy
import sys
import time
from collections import Counter

import torch

from data import BOS, EOS, MASK, OFFSET
from diffusion import RULES
from generate import Sampling, generate_uncached
from model import BLT, BLTConfig
from patcher import KINDS, Patcher, PatcherConfig
from speculate import MODES, Drafting, run_mode
from stream import Stream
from support.flags import COUNT, POSITIVE
from support.lean import make_lean
from support.quality import near_tie
from support.terminal import Parser, number, run

CLOSE = 1e-9  # in nats; logits of these models are of size one to ten
STREAMS, LENGTH = 40, 12  # cases of one model; bytes of a generation


class Chance:
    """Draws that only the seed decides."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def number(self, low, high):
        """From low to high, both possible."""
        return low + int(torch.randint(high - low + 1, (), generator=self.generator))

    def of(self, *several):
        """One of several."""
        return several[self.number(0, len(several) - 1)]

    def ids(self, n):
        """n bytes of a few kinds, so that n-grams repeat; spaces and newlines among them."""
        return [OFFSET + ord(self.of(*"abcde \n")) for _ in range(n)]


def random_models(chance, text):
    """A BLT and its patcher; one threshold in ten is a score of the text itself."""
    c, heads = chance, chance.of(1, 2)
    shape = {"width": 16, "heads": heads, "hidden": 24, "ngram_table_size": c.number(3, 40)}
    shape |= {f"{part}_layers": c.number(1, 2) for part in ("encoder", "decoder", "global")}
    shape |= {"window": c.number(2, 20), "global_window": c.number(1, 6)}
    shape |= {"patch_vectors": c.number(1, 3), "global_width": c.of(16, 32), "global_heads": heads}
    shape |= {"global_hidden": 24, "block_size": 8, "chain_width": c.of(0, 6)}
    max_patch = c.number(1, 8)
    model = BLT(BLTConfig(**shape, max_patch=max_patch + c.number(0, 2)))
    shape = {"kind": c.of(*KINDS, "entropy"), "max_patch": max_patch, "width": 8, "heads": 1}
    shape |= {"hidden": 12, "layers": c.number(1, 2), "window": c.number(2, 12)}
    patcher = Patcher(PatcherConfig(**shape, reset_at_newline=c.of(False, False, True)))
    for module in (model.double(), patcher.double()):
        for p in module.parameters():
            mean, std = (1.0, 0.3) if p.ndim == 1 else (0.0, 1.5 * p.shape[1] ** -0.5)
            torch.nn.init.normal_(p.data, mean, std, generator=c.generator)
    scores = patcher.scores(patcher.entropies(text))
    if scores is not None:
        score = scores[c.number(1, len(scores) - 1)].item()
        patcher.config.threshold = score + 0.01 * c.number(0, 9)
    return model.eval(), patcher.eval()


def near_threshold(patcher, ids):
    """Does rounding decide about a boundary of these ids (N,)?"""
    scores = patcher.scores(patcher.entropies(ids))
    return scores is not None and bool((scores - patcher.config.threshold).abs().lt(CLOSE).any())


@torch.no_grad()
def stream_case(model, patcher, text, whole, chance):
    """Whether a Stream through `text` (N,) gives the logits `whole` (N, V), whatever lies between.

    After each piece one of the things happens that must leave no trace.
    """
    c, N, back = chance, len(text), 12
    stream = Stream(model, patcher, max_rollback=back, max_rows=c.of(12, 25, 256))
    ids, agree = text.tolist(), True
    while stream.length < N:
        start, n = stream.length, c.number(1, min(10, N - stream.length))
        logits = stream.extend(ids[start : start + n])[-n:]
        agree &= bool((logits - whole[start : start + n]).abs().max() < 1e3 * CLOSE)
        what = c.number(0, 4)
        if what == 1:
            stream.decode(c.ids(c.number(0, 3)), [MASK] * c.number(1, 8))
        elif what == 2:  # wrong bytes, the open patch encoded, and back
            stream.advance(c.ids(c.number(1, back)), encode_open=c.of(True, False))
            stream.decode()
            stream.rollback(start + n)
        elif what == 3 and stream.furthest == stream.length:
            stream.rollback(max(1, stream.length - c.number(0, min(back, stream.length - 1))))
    return agree


def generation(model, patcher, prompt, plain, mode, chance):
    """Whether the greedy output of `mode`, drafted in a random way, is `plain`, or "excused"."""
    rules = [rule for rule in RULES if rule != "chained" or model.config.chain_width]
    how = {"draft_size": chance.number(1, 9), "block_size": chance.number(1, 8)}
    how |= {"unmask": chance.of(*rules), "copy": chance.of(0, 5)}
    how["rounds"] = chance.of("ours", "paper")
    made = run_mode(mode, model, patcher, prompt, LENGTH, Drafting(**how)).ids
    if made == plain:
        return True
    # Boundaries in the prompt count here, too.
    both = [*prompt, *plain], [*prompt, *made]
    return near_tie(model, patcher, [], *both, Sampling(), CLOSE) and "excused"


@torch.no_grad()
def try_models(seed, counts):
    """One model and text: forty stream cases, and a generation of every mode that is plain BLT's.

    counts: a Counter of (what, how it ended), which is added to. Prints the seed of what differs.
    """
    chance = Chance(seed)
    text = torch.tensor([BOS, *chance.ids(chance.number(8, 40)), *chance.of([], [EOS])])
    model, patcher = random_models(chance, text)
    whole = model(text[None], patcher.closes(text)[None])[0]
    fast, fast_patcher = copy.deepcopy(model), copy.deepcopy(patcher)
    if chance.of(True, False):  # as generation runs them
        for part in (fast, fast_patcher):
            make_lean(part)
    ended, tie = [], near_threshold(patcher, text)
    for _ in range(STREAMS):
        agrees = stream_case(fast, fast_patcher, text, whole, chance)
        ended.append(("stream cases", agrees or (tie and "excused")))
    prompt = text[1 : 1 + chance.number(0, 12)].tolist()
    plain = generate_uncached(model, patcher, prompt, LENGTH)
    for mode in [mode for mode, known in MODES.items() if known.verified or mode == "blt"]:
        same = generation(fast, fast_patcher, prompt, plain, mode, chance)
        ended.append((f"generations {mode}", same))
    for case in ended:
        counts[case] += 1
        if not case[1]:
            print(f"seed {seed}: {case[0]} differ", file=sys.stderr)


# ---- run: until the time is up


def options_from(argv):
    parser = Parser(prog="tests.fuzzing", description="Random cases against the slow twins.")
    add = parser.add_argument
    add("--minutes", type=POSITIVE, default=1.0, help="how long, if --models does not end it")
    add("--models", type=COUNT, default=1 << 31, help="how many random models and texts")
    add("--seed", type=number(int, 0, 1 << 31), default=0, help="of the first; each has the next")
    return parser.parse_args(argv)


def main(argv=None):
    options, counts = options_from(argv), Counter()
    ends, seed = time.perf_counter() + 60 * options.minutes, options.seed
    while seed < options.seed + options.models and time.perf_counter() < ends:
        try_models(seed, counts)
        seed += 1
    print(f"{seed - options.seed} models, seeds {options.seed} to {seed - 1}")
    for what in sorted({what for what, _ in counts}):
        same, excused, differ = (counts[what, how] for how in (True, "excused", False))
        print(f"{what}: {same:,} the same, {excused:,} excused, {differ:,} differ")
    if any(not how for _, how in counts):
        sys.exit(1)


if __name__ == "__main__":
    run(main, "tests.fuzzing")
