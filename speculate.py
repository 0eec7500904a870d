"""Drafts that are verified: BLT-S, BLT-DV and prompt lookup (Fast BLT §5); the table of modes.

Lossless: greedy output is byte for byte plain BLT's, and sampled output has its distribution (where
two logits lie within rounding of each other, passes of different widths may order them apart). One
`verify` and one loop serve every drafter. Run it to watch rounds of draft and verification:

    python speculate.py --prompt "def "

Letters in shape comments: n drafted bytes, K block size, k draft size, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F

from data import EOS
from diffusion import Unmask, fill_block, generate_bltd, until_unsure
from generate import Output, Sampling, distribution, draw, generate
from support.checkpoint import check_block_size
from support.generation import Watch
from support.ngrams import LastPlaces

COLDER = 0.85  # the temperature of a draft: this share of the text's


def verify(p, drafted, q, sampling):
    """Verify a draft -> (how many drafted bytes are accepted, the byte that follows them).

    p (n + 1, V): the model's own distributions, row j for what follows j accepted bytes. drafted:
    n ids. q (n, V): what they were drawn from, or None for a draft that did not depend on chance.
    Greedy, a byte is accepted iff it is the model's own, whatever q is. Sampled, what comes out is
    distributed as p alone would have it, if a draft's end depends on nothing but the bytes in it.

    Algorithm 2 accepts byte after byte with probability min(1, p/q). Here block verification (Sun
    et al. 2025) lets a byte that p likes more than q make up for one before it that p likes less.
    """
    if q is None or sampling.temperature == 0:
        own = draw(p, sampling)  # the model's byte after each prefix
        for j, x in enumerate(drafted):
            if own[j] != x:
                return j, own[j]
        return len(drafted), own[-1]
    ids = torch.tensor(drafted)[:, None]
    ratios = (p[:-1].gather(1, ids) / q.gather(1, ids)).flatten()
    # keep[j]: of drafts that begin with these j bytes, the share that is kept at least so far
    keep = [1.0]
    for ratio in ratios.tolist():
        keep.append(min(1.0, keep[-1] * ratio))
    keep = p.new_tensor(keep)[:, None]
    # (n + 1, V): the j bytes are to be followed by keep p in all. Drafts that are kept further
    # bring min(keep p, q) of it, together keep - mass; drafts that end here bring the rest.
    rest = (keep * p - F.pad(q, (0, 0, 0, 1))).clamp(min=0)
    mass = rest.sum(1, keepdim=True)
    # So of the 1 - (keep - mass) that are kept no further, mass end here, and at the beginning all.
    ends = mass / (mass + 1 - keep)  # NaN, which no chance is below, where all are kept further
    ends[0] = 1.0
    chance = torch.rand(ends.shape, dtype=p.dtype, generator=sampling.generator)
    accepted = int((chance < ends).nonzero()[-1, 0])  # the longest that may end
    rest = torch.where(mass > 0, rest, p)  # nothing is left: p and q are the same but for rounding
    return accepted, draw(rest[accepted, None], sampling)[0]


@torch.inference_mode()
def speculate(state, prompt, max_bytes, drafter, sampling, watch):
    """Rounds of draft and verification (Algorithm 2) -> Generation. state: a new one.

    Between rounds exactly one byte is decided, which `verify` returned, but not taken in. The pass
    that verifies takes it in with the draft behind it, and fills every cache for what is accepted:
    so a round costs at most one encoder/global call (the paper's two: see measure/rounds.py).
    """
    out = Output(state, prompt, max_bytes, sampling, watch)
    drafter.draft(state, out.text, 0)  # before the clock starts: it may index the prompt
    more = out.write(draw(distribution(out.prefill(), sampling), sampling))
    while more:
        decided = out.text[-1:]
        drafted, q = drafter.draft(state, out.text, out.left - 1)
        watch.draft(drafted)
        # What plain BLT would write after the decided byte, and after each drafted one
        p = distribution(state.extend(decided + drafted), sampling)
        accepted, following = verify(p, drafted, q, sampling)
        state.rollback(len(out.text) + accepted)
        count = state.counters
        count.rounds += 1
        count.drafted += len(drafted)
        count.accepted += accepted
        count.lengths[accepted] += 1
        watch.round(state, drafted, accepted, following)
        more = out.write([*drafted[:accepted], following])
    return out.finish()


# ---- drafters go on with one text, of which the state has taken in all but the last, decided byte
# draft(state, text, limit) -> Draft of at most `limit` bytes behind the ids of the text, BOS first.


class Draft(NamedTuple):
    """Bytes that may follow, and what each was drawn from (n, V); None: not by chance."""

    ids: list[int]
    q: torch.Tensor | None = None


def colder(sampling, share=COLDER):
    """For drafts: colder, of which more was accepted, and without top-p, since sorting is slow."""
    drawing = replace(sampling, temperature=share * sampling.temperature, top_p=1.0)
    drawing.generator = sampling.generator  # one stream of chance for drafts and verification
    return drawing


@dataclass
class SelfDrafter:
    """BLT-S: the decoder alone goes on, byte by byte, past patch boundaries, on the last latent."""

    size: int  # k
    threshold: float  # of until_unsure; the paper's drafts are all of one length: 0
    sampling: Sampling

    def draft(self, state, text, limit):
        n = min(self.size, limit)
        if not n:
            return Draft([])
        drawing = colder(self.sampling)
        drawn = state.alone(text[-1:], drawing.noise(n), drawing)
        return Draft(*until_unsure(drawn, self.threshold, drawing))


@dataclass
class BlockDrafter:
    """BLT-DV: one block by diffusion behind the decided byte.

    Drawing cells in several steps has no known q, so then the most probable bytes are drafted.
    """

    size: int  # K
    unmask: Unmask
    sampling: Sampling
    watch: Watch = field(default_factory=Watch)

    def draft(self, state, text, limit):
        if not limit:
            return Draft([])
        share = COLDER if self.unmask.rule in ("one-step", "chained") else 0.0
        drawing = colder(self.sampling, share)
        ids, q = fill_block(state, text[-1:], text[-1], self.size, self.unmask, drawing, self.watch)
        if EOS in ids:
            limit = min(limit, ids.index(EOS) + 1)
        return Draft(ids[:limit], q if q is None else q[:limit])


@dataclass
class LookupDrafter:
    """Prompt lookup: what followed the last occurrence of the last few bytes. Costs no pass.

    Where that is cut short by the end of the text, it begins again: the text may be a loop.
    """

    size: int  # most bytes drafted
    longest: int = 8  # how many last bytes are looked for, the more the better
    shortest: int = 3

    def __post_init__(self):
        self.places = LastPlaces(self.shortest, self.longest)  # of one text, as it grows

    def draft(self, state, text, limit):
        found = self.places.behind(text)
        size = min(self.size, limit)
        return Draft((text[found : found + size] * size)[:size])


@dataclass
class CopyOrBlock:
    """A copy where the last bytes occurred before, else a block."""

    copies: LookupDrafter
    blocks: BlockDrafter

    def draft(self, state, text, limit):
        copied = self.copies.draft(state, text, limit)
        return copied if copied.ids else self.blocks.draft(state, text, limit)


# ---- the verified modes. state: a new one; prompt: list of ids without BOS -> Generation


def generate_blts(state, prompt, max_bytes, *, draft_size, alpha=0.0, sampling=None, watch=None):
    """BLT-S: self-drafts of `draft_size` bytes, or until they are together less probable than α."""
    sampling = sampling or Sampling()
    drafter = SelfDrafter(draft_size, alpha, sampling)
    return speculate(state, prompt, max_bytes, drafter, sampling, watch or Watch())


def generate_lookup(state, prompt, max_bytes, *, draft_size, sampling=None, watch=None):
    """Prompt lookup, the baseline that needs no drafting model."""
    drafter = LookupDrafter(draft_size)
    return speculate(state, prompt, max_bytes, drafter, sampling or Sampling(), watch or Watch())


def generate_bltdv(
    state, prompt, max_bytes, *, block_size, unmask, copy=0, sampling=None, watch=None
):
    """BLT-DV: drafts of `block_size` bytes by diffusion, verified by the same weights.

    copy: draft so many bytes by lookup instead where the last six occurred before; 0 for never.
    Raises BadInput where the model can't fill such blocks.
    """
    check_block_size(state.model, block_size, unmask.rule)
    sampling = sampling or Sampling()
    watch = watch or Watch()
    drafter = BlockDrafter(block_size, unmask, sampling, watch)
    if copy:
        drafter = CopyOrBlock(LookupDrafter(copy, longest=16, shortest=6), drafter)
    return speculate(state, prompt, max_bytes, drafter, sampling, watch)


# ---- every mode


@dataclass
class Drafting:
    """How a mode drafts; None is the mode's or the model's own default."""

    draft_size: int | None = None  # k of blts and lookup
    block_size: int | None = None  # K of bltd and bltdv
    unmask: str | None = None  # how a block is filled, one of diffusion.RULES
    alpha: float | None = None  # threshold of confidence, of chained drafts and of self-drafts
    gamma: float | None = None  # nats of entropy that a step may unmask
    copy: int | None = None  # bytes that bltdv copies where the text repeats


@dataclass(frozen=True)
class Mode:
    """A way to generate, as sample, bandwidth and evaluation know it."""

    sampler: Callable
    defaults: dict  # of the fields of Drafting that it reads; None: see `settled`
    verified: bool = False  # drafts are verified: the output is plain BLT's
    fills_blocks: bool = False  # needs a model trained by diffusion
    paper_calls: int = 0  # encoder/global calls that the paper counts a round; 0: those made


MODES = {
    "blt": Mode(generate, {}),
    "blts": Mode(generate_blts, {"draft_size": 8, "alpha": 0.0}, verified=True, paper_calls=2),
    "bltd": Mode(
        generate_bltd,
        {"block_size": None, "unmask": "confidence", "alpha": None, "gamma": 1.0},
        fills_blocks=True,
        paper_calls=1,
    ),
    "bltdv": Mode(
        generate_bltdv,
        {"block_size": None, "unmask": None, "alpha": None, "gamma": 1.5, "copy": None},
        verified=True,
        fills_blocks=True,
        paper_calls=2,
    ),
    "lookup": Mode(generate_lookup, {"draft_size": 8}, verified=True, paper_calls=2),
}
# Which field of Drafting is the threshold of a rule
THRESHOLDS = {"confidence": "alpha", "chained": "alpha", "entropy": "gamma"}
ALPHAS = {"bltd": 0.7, "bltdv": 0.3}  # of confidence by default; chained blocks are not cut


def settled(mode, model, drafting):
    """The fields of a Drafting that a mode reads, with its defaults in place of None -> dict."""
    chosen = dict(MODES[mode].defaults)
    for name in chosen:
        if getattr(drafting, name) is not None:
            chosen[name] = getattr(drafting, name)
    if not MODES[mode].fills_blocks:
        return chosen
    if chosen["block_size"] is None:
        chosen["block_size"] = model.config.block_size
    if chosen["unmask"] is None:  # BLT-DV chains its cells if it can
        chosen["unmask"] = "chained" if model.config.chain_width else "one-step"
    chained = chosen["unmask"] == "chained"
    if chosen["alpha"] is None:
        chosen["alpha"] = 0.0 if chained else ALPHAS[mode]
    if "copy" in chosen and chosen["copy"] is None:  # the paper's rules stay the paper's
        chosen["copy"] = 16 if chained else 0
    return chosen


def run_mode(mode, state, prompt, max_bytes, drafting=None, *, sampling=None, watch=None):
    """One generation in any mode -> Generation.

    state: a new Prefix or fast.stream.Stream; prompt: list of ids without BOS; drafting: a
    Drafting. Raises BadInput where the model can't fill such blocks.
    """
    chosen = settled(mode, state.model, drafting or Drafting())
    if MODES[mode].fills_blocks:
        rule = chosen["unmask"]
        chosen["unmask"] = Unmask(rule, chosen.get(THRESHOLDS.get(rule)))
        del chosen["alpha"], chosen["gamma"]  # the rule has the one that it reads
    sampler = MODES[mode].sampler
    return sampler(state, prompt, max_bytes, sampling=sampling, watch=watch, **chosen)


if __name__ == "__main__":
    from measure import ideas

    ideas.show("speculate")
