"""Drafts that are verified: BLT-S, BLT-DV and prompt lookup (Fast BLT §5). Lossless: greedy output is byte for byte plain BLT's,
and sampled output has plain BLT's distribution.

A draft is just bytes, and for sampling the distributions they were drawn from; one `verify` and one loop serve every drafter.
Letters in shape comments: n drafted bytes, K block size, V vocabulary.
"""
import time

import torch

from data import BOS, EOS
from diffusion import check_block_size, denoise
from stream import Generation, Sampling, Stream, distribution, draw, until_end


def verify(p, drafted, q, sampling):
    """Algorithm 2 -> (how many drafted bytes are accepted, the byte that follows them).

    p (n + 1, V): the model's own distributions, row j for what follows j accepted bytes. drafted: n ids. q (n, V): what they
    were drawn from, or None for a draft that did not depend on chance. The bytes that come out are distributed as p alone would
    have it, whatever the draft: greedy p is one-hot, and then a byte is accepted iff it is the model's own.
    """
    if q is None:
        own = draw(p, sampling)  # the model's byte after each prefix
        accepted = next((j for j, x in enumerate(drafted) if own[j] != x), len(drafted))
        return accepted, own[accepted]
    for j, x in enumerate(drafted):
        if torch.rand((), generator=sampling.generator) * q[j, x] >= p[j, x]:  # accept with probability min(1, p/q)
            left = (p[j] - q[j]).clamp(min=0)
            return j, draw((left if left.sum() > 0 else p[j])[None], sampling)[0]
    return len(drafted), draw(p[len(drafted):], sampling)[0]                             # the free byte


# ---- drafters: (stream, text, count, sampling) -> up to `count` drafted ids, and q or None.
# text: all bytes so far, whose last one is decided but in the stream only under paper_rounds.

def provisional(stream, text):
    """The decided byte as a clean row of the draft, unless the stream has it already and `decode` brings it along."""
    return text[-1:] if len(text) > stream.length else []


def pass_over(stream, ids, block=()):
    """One decoder pass over rows still owed, provisional ids and a block -> logits (rows, V)."""
    return stream.draft(ids, block) if stream.decoded == stream.length else stream.decode(block)


def draft_self(stream, text, count, sampling):
    """BLT-S: the decoder alone goes on, byte by byte, past patch boundaries, on the last latent there is."""
    ids, drafted, q = provisional(stream, text), [], []
    while len(drafted) < count:
        row = distribution(pass_over(stream, ids)[-1:].float().cpu(), sampling)
        drafted += draw(row, sampling)
        q.append(row)
        ids = drafted[-1:]
        if ids == [EOS]:
            break
    return drafted, torch.cat(q) if q and sampling.temperature else None


def diffusion_drafter(block_size, unmask, watch=None):
    """BLT-DV: one block by diffusion behind the decided byte. Several steps make a deterministic draft (most probable bytes)."""
    def draft_block(stream, text, count, sampling):
        owed = [provisional(stream, text)]  # goes along with the first pass

        def decode_block(cells):
            return pass_over(stream, owed.pop() if owed else [], cells)[-block_size:]

        by_chance = sampling.temperature > 0 and unmask.rule == "one-step"
        drawing = sampling if by_chance else Sampling(ignore_eos=sampling.ignore_eos)
        drafted, q = denoise(decode_block, block_size, unmask, drawing, watch)
        drafted = drafted[:drafted.index(EOS) + 1] if EOS in drafted else drafted
        return drafted[:count], q if by_chance else None
    return draft_block


def draft_lookup(stream, text, count, sampling, longest=8, shortest=3):
    """Prompt lookup: copy what followed the last occurrence of the last few bytes. Costs no pass of any model."""
    data = "".join(map(chr, text))
    for n in range(min(longest, len(data) - 1), shortest - 1, -1):
        found = data.rfind(data[-n:], 0, len(data) - 1)
        if found >= 0:
            return text[found + n:found + n + count], None
    return [], None


def speculate(model, patcher, prompt, max_bytes, drafter, count, sampling=None, emit=None, watch=None, paper_rounds=False):
    """Rounds of draft and verification. Between rounds exactly one byte is decided (corrected or free) but not yet processed.

    The pass that verifies has filled every cache for the bytes it accepts, so the next draft starts from there: at most one
    encoder/global call a round, none if no patch closed. paper_rounds encodes the decided byte before drafting, as Algorithm 1
    is written: up to two calls a round. count: most bytes drafted a round. watch(processed, drafted, accepted, next) sees each
    round; processed: the bytes taken in for good, each with whether it closes its patch.
    """
    sampling = sampling or Sampling()
    stream = Stream(model, patcher, reach=count + 1)
    text = [BOS, *prompt]
    logits, spent = stream.prefill(text)[None], stream.counters
    began, made = time.perf_counter(), draw(distribution(logits.float().cpu(), sampling), sampling)
    while True:
        new, ended = until_end(made, sampling)
        text += new
        if emit:
            emit(new)
        left = max_bytes - (len(text) - 1 - len(prompt))
        if ended or left == 0:
            return Generation(text[1 + len(prompt):], spent, time.perf_counter() - began)
        if paper_rounds:
            stream.advance(text[-1:])
        drafted, q = drafter(stream, text, min(count, left - 1), sampling) if left > 1 else ([], None)
        if paper_rounds:
            stream.rollback(len(text) - 1)  # verified together with its draft, as without
        logits = stream.extend(text[-1:] + drafted)
        accepted, following = verify(distribution(logits.float().cpu(), sampling), drafted, q, sampling)
        stream.rollback(len(text) + accepted)
        spent.rounds, spent.drafted, spent.accepted = spent.rounds + 1, spent.drafted + len(drafted), spent.accepted + accepted
        spent.lengths[accepted] = spent.lengths.get(accepted, 0) + 1
        if watch:
            processed = range(len(text) - 1, stream.length)
            watch([(stream.at(i).id, stream.at(i).open_start == i + 1) for i in processed], drafted, accepted, following)
        made = drafted[:accepted] + [following]


def generate_blts(model, patcher, prompt, max_bytes, window=8, **options):
    """BLT-S: self-drafts of `window` bytes. options: as `speculate` takes them."""
    return speculate(model, patcher, prompt, max_bytes, draft_self, window, **options)


def generate_bltdv(model, patcher, prompt, max_bytes, block_size, unmask, steps=None, **options):
    """BLT-DV: drafts of `block_size` bytes by diffusion. steps(ids, masked) sees each unmasking step."""
    check_block_size(model, block_size)
    return speculate(model, patcher, prompt, max_bytes, diffusion_drafter(block_size, unmask, steps), block_size, **options)


def generate_lookup(model, patcher, prompt, max_bytes, window=8, **options):
    """Prompt lookup with drafts of up to `window` bytes, the baseline that needs no drafting model."""
    return speculate(model, patcher, prompt, max_bytes, draft_lookup, window, **options)


def near_tie(model, patcher, prompt, ids, others, tolerance=1e-3):
    """Do two greedy outputs part only where rounding decides? True if at their first difference the two best logits, or before
    it an entropy and θ, lie within `tolerance`. prompt, ids, others: lists of ids, the prompt with BOS.
    """
    part = next((i for i, (a, b) in enumerate(zip(ids, others)) if a != b), min(len(ids), len(others)))
    stream = Stream(model, patcher)
    best, second = stream.prefill([*prompt, *ids[:part]]).topk(2).values.tolist()
    theta = patcher.config.theta
    return best - second < tolerance or any(abs(known.entropy - theta) < tolerance for known in stream.known[-2 * model.config.max_patch:])
