"""Random models, texts and calls against the plain machine, in float64, until the time is up.

    python -m tests.fuzzing --minutes 5 --seed 0

A stream case takes one text through a Stream in random pieces, with drafts, blocks, wrong bytes and
rollbacks between them, and compares its logits with the full forward pass. A generation compares
the greedy output of a mode with that of plain BLT on the plain state. What differs is excused only
where rounding decides: where the patcher's score and its threshold, or the two best logits, are
equal to nine digits. Some thresholds are a score of the text itself, so that there are such places.
"""

import sys
import time
from collections import Counter

import torch

from data import BOS, EOS, MASK, OFFSET
from diffusion import RULES
from fast.lean import FastModel
from fast.load import Machine, prepared
from generate import Prefix, Sampling, generate
from measure.quality import near_tie
from measure.rounds import PaperPrefix
from model import BLT, BLTConfig
from patcher import KINDS, Patcher, PatcherConfig
from speculate import MODES, Drafting, run_mode
from support.flags import COUNT, POSITIVE
from support.terminal import Parser, number, run

CLOSE = 1e-9  # in nats; logits of these models are of size one to ten
STREAMS = 40  # cases of one model
LENGTH = 12  # bytes of a generation


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
    c = chance
    heads = c.of(1, 2)
    max_patch = c.number(1, 8)
    byte_states = c.of(False, False, False, True)  # as official weights, which fill no blocks
    model = BLT(
        BLTConfig(
            width=16,
            heads=heads,
            hidden=24,
            ngram_table_size=c.number(3, 40),
            encoder_layers=c.number(1, 2),
            decoder_layers=c.number(1, 2),
            window=c.number(2, 20),
            patch_vectors=c.number(1, 3),
            global_width=c.of(16, 32),
            global_heads=heads,
            global_hidden=24,
            global_layers=c.number(1, 2),
            global_window=c.number(1, 6),
            block_size=0 if byte_states else 8,
            chain_width=0 if byte_states else c.of(0, 6),
            max_patch=max_patch + c.number(0, 2),
            byte_states=byte_states,
            double_residual=c.of(False, True),
            global_norm=c.of(False, True),
        )
    )
    patcher = Patcher(
        PatcherConfig(
            kind=c.of(*KINDS, "entropy"),
            max_patch=max_patch,
            width=8,
            heads=1,
            hidden=12,
            layers=c.number(1, 2),
            window=c.number(2, 12),
        )
    )
    for module in (model.double(), patcher.double()):
        for p in module.parameters():
            if p.ndim == 1:
                torch.nn.init.normal_(p.data, 1.0, 0.3, generator=c.generator)
            else:
                std = 1.5 * p.shape[1] ** -0.5
                torch.nn.init.normal_(p.data, 0.0, std, generator=c.generator)
    scores = patcher.scores(patcher.entropies(text))
    if scores is not None:
        score = scores[c.number(1, len(scores) - 1)].item()
        patcher.config.threshold = score + 0.01 * c.number(0, 9)
    return model.eval(), patcher.eval()


def near_threshold(patcher, ids):
    """Does rounding decide about a boundary of these ids (N,)?"""
    scores = patcher.scores(patcher.entropies(ids))
    return scores is not None and bool((scores - patcher.config.threshold).abs().lt(CLOSE).any())


def alike(logits, others):
    """Are two logits the same but for rounding?"""
    return bool((logits - others).abs().max() < 1e3 * CLOSE)


@torch.no_grad()
def stream_case(machine, plain, text, whole, chance):
    """Whether a Stream through `text` (N,) gives the logits `whole` (N, V), whatever lies between.

    After each piece one of the things happens that must leave no trace. Drafts and blocks behind
    the text are compared with what the machine `plain` says of them.
    """
    c = chance
    N = len(text)
    back = 12
    K = machine.model.config.block_size
    stream = machine.kind(
        machine.model, machine.patcher, max_rollback=back, max_rows=c.of(12, 25, 256)
    )
    ids = text.tolist()
    agree = True
    while stream.length < N:
        start = stream.length
        n = c.number(1, min(10, N - start))
        agree &= alike(stream.extend(ids[start : start + n]), whole[start : start + n])
        what = c.number(0, 4)
        if what == 1:
            draft = c.ids(c.number(0, 3))
            block = [MASK] * c.number(0, K)
            if draft or block:
                known = plain.state()
                known.advance(ids[: stream.length])
                expected = plain.model.decoder.head(known.peek(draft, block))
                agree &= alike(stream.model.decoder.head(stream.peek(draft, block)), expected)
        elif what == 2:  # wrong bytes, with what follows them, and back
            stream.advance(c.ids(c.number(1, back)))
            stream.peek(c.ids(c.number(0, 3)), [MASK] * c.number(0, K))
            stream.rollback(start + n)
        elif what == 3 and stream.furthest == stream.length:
            stream.rollback(max(1, stream.length - c.number(0, min(back, stream.length - 1))))
    return agree


def plain_output(plain, prompt):
    """What plain BLT writes on the plain state, greedily -> ids."""
    return generate(plain.state(), prompt, LENGTH).ids


def generation(machine, plain, prompt, expected, mode, chance):
    """Whether the greedy output of `mode`, drafted in a random way, is as expected, or "excused".

    It runs on the machine, or in the paper's rounds on the plain one.
    """
    rules = [rule for rule in RULES if rule != "chained" or machine.model.config.chain_width]
    drafting = Drafting(
        draft_size=chance.number(1, 9),
        block_size=chance.number(1, 8),
        unmask=chance.of(*rules),
        copy=chance.of(0, 5),
    )
    state = machine.state()
    if chance.of(True, False):
        state = PaperPrefix(plain.model, plain.patcher)
    made = run_mode(mode, state, prompt, LENGTH, drafting).ids
    if made == expected:
        return True
    # Boundaries in the prompt count here, too.
    both = [*prompt, *expected], [*prompt, *made]
    return near_tie(plain, [], *both, Sampling(), CLOSE) and "excused"


@torch.no_grad()
def try_models(seed, counts):
    """One model and text: forty stream cases, and a generation of every mode that is plain BLT's.

    counts: a Counter of (what, how it ended), which is added to. Prints the seed of what differs.
    """
    chance = Chance(seed)
    text = torch.tensor([BOS, *chance.ids(chance.number(8, 40)), *chance.of([], [EOS])])
    model, patcher = random_models(chance, text)
    whole = model(text[None], patcher.closes(text)[None])[0]
    plain = Machine(model, patcher, Prefix)
    machine = prepared(model, patcher)
    if chance.of(True, False):  # as a GPU has it, with nothing folded
        machine = Machine(FastModel(model, fold=False), patcher, machine.kind)
    ended = []
    tie = near_threshold(patcher, text)
    for _ in range(STREAMS):
        agrees = stream_case(machine, plain, text, whole, chance)
        ended.append(("stream cases", agrees or (tie and "excused")))
    prompt = text[1 : 1 + chance.number(0, 12)].tolist()
    expected = plain_output(plain, prompt)
    for mode, known in MODES.items():
        if not known.verified and mode != "blt":
            continue
        if known.fills_blocks and not model.config.block_size:
            continue
        same = generation(machine, plain, prompt, expected, mode, chance)
        ended.append((f"generations {mode}", same))
    for case in ended:
        counts[case] += 1
        if not case[1]:
            print(f"seed {seed}: {case[0]} differ", file=sys.stderr)


# ---- run: until the time is up


def options_from(argv):
    parser = Parser(prog="tests.fuzzing", description="Random cases against the plain machine.")
    add = parser.add_argument
    add("--minutes", type=POSITIVE, default=1.0, help="how long, if --models does not end it")
    add("--models", type=COUNT, default=1 << 31, help="how many random models and texts")
    add("--seed", type=number(int, 0, 1 << 31), default=0, help="of the first; each has the next")
    return parser.parse_args(argv)


def main(argv=None):
    options = options_from(argv)
    counts = Counter()
    ends = time.perf_counter() + 60 * options.minutes
    seed = options.seed
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
