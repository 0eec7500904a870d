"""Drafts that are verified: BLT-S, BLT-DV and prompt lookup (Fast BLT §5); the table of modes.

Lossless: greedy output is byte for byte plain BLT's, and sampled output has its distribution. A
draft is just bytes, and for sampling the distributions they were drawn from; one `verify` and one
loop serve every drafter. Run it to watch rounds of draft and verification:

    python speculate.py --prompt "def "

Letters in shape comments: n drafted bytes, K block size, k draft size, V vocabulary.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from data import BOS, EOS, encode
from diffusion import Unmask, block_filler, check_block_size, generate_bltd
from generate import Sampling, begin, distribution, draw, finish, generate, until_end
from model import load_model
from stream import Stream
from support import checkpoint
from support.flags import idea_options
from support.show import Trace
from support.terminal import run

COLDER = 0.85  # temperature of a drafted block over that of the text

# ---- verification


def verify(p, drafted, q, sampling):
    """Algorithm 2 -> (how many drafted bytes are accepted, the byte that follows them).

    p (n + 1, V): the model's own distributions, row j for what follows j accepted bytes. drafted:
    n ids. q (n, V): what they were drawn from, or None for a draft that did not depend on chance.
    What comes out is distributed as p alone would have it, whatever the draft. Greedy, a byte is
    accepted iff it is the model's own, whatever q is.
    """
    if q is None or sampling.temperature == 0:
        own = draw(p, sampling)  # the model's byte after each prefix
        for j, x in enumerate(drafted):
            if own[j] != x:
                return j, own[j]
        return len(drafted), own[-1]
    for j, x in enumerate(drafted):
        # Accept with probability min(1, p/q), else draw from what p has more of than q.
        if torch.rand((), generator=sampling.generator) * q[j, x] >= p[j, x]:
            left = (p[j] - q[j]).clamp(min=0)
            return j, draw((left if left.sum() > 0 else p[j])[None], sampling)[0]
    return len(drafted), draw(p[-1:], sampling)[0]  # the free byte


# ---- drafters: (stream, text, decided, count, sampling) -> at most `count` drafted ids, q or None
#
# text: all bytes so far. decided: the ids at its end that the stream has not got. A drafter gives
# them to its first `stream.decode` as provisional rows, so that the draft knows them.


def draft_self(stream, text, decided, count, sampling):
    """BLT-S: the decoder alone goes on, byte by byte, past patch boundaries, on the last latent."""
    provisional, drafted, q = decided, [], []
    while len(drafted) < count:
        row = distribution(stream.decode(provisional)[-1:], sampling)
        provisional = draw(row, sampling)
        drafted += provisional
        q.append(row)
        if drafted[-1] == EOS:
            break
    return drafted, torch.cat(q)


def diffusion_drafter(model, block_size, unmask, trace=None):
    """BLT-DV: one block by diffusion behind the decided byte -> a drafter.

    Drawing cells in several steps has no known q, so then the most probable bytes are drafted.
    Others are drawn a little colder than the text and without top-p: more of them are accepted,
    and nothing needs to be sorted.
    """
    fill = block_filler(model, block_size, unmask, trace)
    colder = COLDER if unmask.rule in ("one-step", "chained") else 0.0

    def draft_block(stream, text, decided, count, sampling):
        drawing = replace(sampling, temperature=colder * sampling.temperature, top_p=1.0)
        drawing.generator = sampling.generator  # one stream of chance for drafts and verification
        drafted, q = fill(stream, decided, text[-1], drawing)
        if EOS in drafted:
            count = min(count, drafted.index(EOS) + 1)
        return drafted[:count], q

    return draft_block


def draft_lookup(stream, text, decided, count, sampling, longest=8, shortest=3):
    """Prompt lookup: what followed the last occurrence of the last few bytes. Costs no pass.

    Where that is cut short by the end of the text, it begins again: the text may be a loop.
    """
    data = "".join(map(chr, text))
    for n in range(min(longest, len(data) - 1), shortest - 1, -1):
        found = data.rfind(data[-n:], 0, len(data) - 1)
        if found >= 0:
            return (text[found + n :] * count)[:count], None
    return [], None


# ---- the loop


def speculate(model, patcher, prompt, max_bytes, drafter, count, *, rounds="ours", **run):
    """Rounds of draft and verification. count: most bytes drafted in one. run: sampling, emit and
    trace, as generate.generate takes them.

    Between rounds exactly one byte is decided (corrected, or free) but not processed.

    rounds "ours": the pass that verified has filled every cache for what it accepted, so the draft
    starts from there and takes the decided byte along: at most one encoder/global call a round.
    "paper" (Algorithm 1): everything decided is encoded first, the open patch too as if it ended
    there, the draft reads that latent, and it is taken back: exactly two calls a round.
    """
    sampling, emit, trace = run.get("sampling") or Sampling(), run.get("emit"), run.get("trace")
    encode_open = rounds == "paper"
    stream, text = Stream(model, patcher, max_rollback=count + 1), [BOS, *prompt]
    logits, spent = stream.prefill(text), stream.counters
    began, made = begin(stream, trace), draw(distribution(logits[None], sampling), sampling)
    while True:
        new, ended = until_end(made, sampling)
        text += new
        if emit:
            emit(new)
        left = max_bytes - (len(text) - 1 - len(prompt))
        if ended or left == 0:
            return finish(stream, text[1 + len(prompt) :], began)
        decided = text[-1:]
        if encode_open:
            stream.advance(decided, encode_open)
            decided = []
        drafted, q = [], None
        if left > 1:
            drafted, q = drafter(stream, text, decided, min(count, left - 1), sampling)
        if trace:
            trace.draft(drafted)
        if encode_open:
            stream.rollback(len(text) - 1)  # taken back: the pass below verifies it with its draft
        stream.advance(text[-1:] + drafted, encode_open)
        stream.forget_open()
        p = distribution(stream.decode(), sampling)
        accepted, following = verify(p, drafted, q, sampling)
        stream.rollback(len(text) + accepted)
        spent.rounds += 1
        spent.drafted += len(drafted)
        spent.accepted += accepted
        spent.lengths[accepted] += 1
        if trace:
            trace.round(stream.taken(len(text) - 1), drafted, accepted, following)
        made = drafted[:accepted] + [following]


def generate_blts(model, patcher, prompt, max_bytes, *, draft_size=8, **options):
    """BLT-S: self-drafts of `draft_size` bytes. options: as `speculate` takes them."""
    return speculate(model, patcher, prompt, max_bytes, draft_self, draft_size, **options)


def generate_bltdv(model, patcher, prompt, max_bytes, *, block_size, unmask, copy=0, **options):
    """BLT-DV: drafts of `block_size` bytes by diffusion. options: as `speculate` takes them.

    copy: draft so many bytes by lookup instead where the last six occurred before; 0 for never.
    """
    draft_block = diffusion_drafter(model, block_size, unmask, options.get("trace"))

    def draft(stream, text, decided, count, sampling):
        if copy:
            copied, _ = draft_lookup(stream, text, decided, min(copy, count), sampling, 16, 6)
            if copied:
                return copied, None
        return draft_block(stream, text, decided, min(block_size, count), sampling)

    count = max(block_size, copy)
    return speculate(model, patcher, prompt, max_bytes, draft, count, **options)


def generate_lookup(model, patcher, prompt, max_bytes, *, draft_size=8, **options):
    """Prompt lookup, the baseline that needs no drafting model. options: as `speculate`'s."""
    return speculate(model, patcher, prompt, max_bytes, draft_lookup, draft_size, **options)


# ---- every mode


@dataclass
class Mode:
    """A way to generate, as sample, bandwidth and evaluation know it."""

    sampler: Callable
    verified: bool = False  # drafts are verified: the output is plain BLT's
    fills_blocks: bool = False  # needs a model trained by diffusion
    paper_calls: int = 0  # encoder/global calls that the paper counts a round; 0: those made
    rule: str = ""  # how it unmasks by default


MODES = {
    "blt": Mode(generate),
    "blts": Mode(generate_blts, verified=True, paper_calls=2),
    "bltd": Mode(generate_bltd, fills_blocks=True, paper_calls=1, rule="confidence"),
    "bltdv": Mode(generate_bltdv, verified=True, fills_blocks=True, paper_calls=2, rule="one-step"),
    "lookup": Mode(generate_lookup, verified=True, paper_calls=2),
}
# α and γ by default, by the rule
THRESHOLDS = {
    "bltd": {"confidence": 0.7, "entropy": 1.0},
    "bltdv": {"confidence": 0.3, "entropy": 1.5, "chained": 0.05},
}


@dataclass
class Drafting:
    """What `run_mode` reads; None is the mode's or the model's own default."""

    draft_size: int = 8  # k of blts and lookup
    block_size: int | None = None  # K of bltd and bltdv
    unmask: str | None = None
    alpha: float | None = None
    gamma: float | None = None
    rounds: str = "ours"
    copy: int | None = None  # bytes that bltdv copies where the text repeats; None: chained, 16


def size_of_blocks(model, options):
    """K: the one asked for, else the one that the model was trained for."""
    return model.config.block_size if options.block_size is None else options.block_size


def rule_of(mode, model, options):
    """The unmasking rule: the one asked for, else the mode's; BLT-DV chains its cells if it can."""
    if not options.unmask and mode == "bltdv" and model.config.chain_width:
        return "chained"
    return options.unmask or MODES[mode].rule


def check_mode(mode, model, options):
    """Raises BadInput where a model can't generate in that mode, or not in such blocks."""
    if MODES[mode].fills_blocks or options.block_size is not None:
        rule = rule_of(mode, model, options)
        check_block_size(model, size_of_blocks(model, options), rule)


def arguments_of(mode, model, options):
    """What the sampler of a mode takes besides sampling, emit and trace -> keyword arguments."""
    known, arguments = MODES[mode], {}
    if known.fills_blocks:
        rule = rule_of(mode, model, options)
        given = options.gamma if rule == "entropy" else options.alpha
        threshold = THRESHOLDS[mode].get(rule) if given is None else given
        arguments["block_size"] = size_of_blocks(model, options)
        arguments["unmask"] = Unmask(rule, threshold)
    elif known.verified:
        arguments["draft_size"] = options.draft_size
    if mode == "bltdv":
        # The paper's rules stay the paper's.
        copied = 16 if rule == "chained" else 0
        arguments["copy"] = copied if options.copy is None else options.copy
    if known.fills_blocks or known.verified:
        arguments["rounds"] = options.rounds
    return arguments


def run_mode(mode, model, patcher, prompt, max_bytes, options, **run):
    """One generation in any mode -> Generation. prompt: ids without BOS; options: a Drafting, or
    anything with its fields; run: sampling, emit and trace, as generate.generate takes them.
    """
    arguments = arguments_of(mode, model, options)
    return MODES[mode].sampler(model, patcher, prompt, max_bytes, **arguments, **run)


# ---- run: rounds of two drafters


options_from = idea_options("speculate.py", "Watch drafts verified.", "def ", bytes=24)


def main(argv=None):
    options = options_from(argv)
    model, patcher = load_model(checkpoint.find(options.checkpoint))
    prompt = encode(os.fsencode(options.text))
    for mode in ("blts", "bltdv") if model.config.block_size else ("blts",):
        print(f"{mode}: accepted/drafted, the bytes taken in, the model's own byte")
        run = {"sampling": Sampling(ignore_eos=True), "trace": Trace()}
        run_mode(mode, model, patcher, prompt, options.bytes, Drafting(), **run)


if __name__ == "__main__":
    run(main)
