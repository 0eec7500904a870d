"""BLT-D: the decoder learns to fill a block of K bytes in a few parallel passes (Fast BLT §3).

Run it to see blocks and what they hide on a line of text, and to draw who sees whom:

    python diffusion.py --text "Once upon a" --plot mask.png

Who sees whom is `layers.sees`, one rule for training and generation. How blocks are trained is a
support/presets.Recipe, which explains its fields. Letters in shape comments: B batch, N byte
positions, K block size (cells), P rows of all blocks (K for each, K + 1 with draft rows), V
vocabulary, D width, t noise level.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from data import EOS, MASK
from generate import Output, Sampling, ban, distribution, draw
from model import Blocks
from support.checkpoint import check_block_size
from support.generation import Watch
from support.hardware import sent

# ---- training: where blocks start, and what they hide

REJECTED = 10.0  # what a rejected byte weighs in draft_loss, beside a nat of cross-entropy


class Corrupted(NamedTuple):
    """Blocks beside a batch of text, and what the loss needs of each of their rows, (B, P)."""

    blocks: Blocks
    place: torch.Tensor  # the clean row that predicts the same byte: in front of it
    counts: torch.Tensor  # bool: a hidden cell or a draft row whose byte is in the text
    weight: torch.Tensor  # of a cell in the loss, 1/t of its block; of a draft row 1
    width: int  # rows of each block


def draw_noise(N, recipe, generator):
    """All that chance decides about the blocks of a crop, from its own generator (Fast BLT §3.2).

    For each start 1..N there may be: which come first (N,), the noise level t of a block there
    (N,), and which of its cells are masked (N, K) bool.
    """
    order = torch.rand(N, generator=generator)
    levels = 1 if recipe.noise == "sequence" else N
    t = torch.rand(levels, generator=generator).expand(N)
    t = recipe.t_min + (1 - recipe.t_min) * t  # uniform on (t_min, 1)
    whole = torch.rand(N, generator=generator) < recipe.full_share
    t = torch.where(whole, 1.0, t)
    hidden = torch.rand(N, recipe.block_size, generator=generator) < t[:, None]
    return order, t, hidden


def choose_starts(closes, order, recipe):
    """closes, order (B, N) -> starts (B, blocks) in 1..N, and which of them are wanted, bool.

    "patch" starts where a patch opens; a row of the batch with fewer patches than its neighbours
    gets blocks that nobody wants.
    """
    N = closes.shape[1]
    # Column i stands for the start i + 1: behind a byte that closes its patch, or anywhere.
    possible = closes if recipe.starts == "patch" else torch.ones_like(closes)
    count = N
    if recipe.starts == "patch":
        count = int(possible.sum(1).max())
    if recipe.cells_per_byte:
        count = min(count, max(1, round(recipe.cells_per_byte * N / recipe.block_size)))
    chosen = (order + possible.float()).topk(count, 1)  # what is possible comes out on top
    return chosen.indices + 1, chosen.values >= 1


def choose_draft_starts(taken, order, recipe):
    """Starts (B, blocks) of blocks of draft rows: anywhere but at `taken` (B, ..)."""
    N = order.shape[1]
    count = round(recipe.draft_rows_per_byte * N / (recipe.block_size + 1))
    free = order.scatter(1, taken - 1, -1.0)
    return free.topk(min(count, N - taken.shape[1]), 1).indices + 1


def make_blocks(ids, closes, recipe, generators):
    """Cut blocks out of ids (B, N + 1) and corrupt them -> Corrupted.

    closes (B, N); generators: one for each row (data.Crops.generators). A block holds the K bytes
    from its start on, over later patches too. Cells past the end of the text stay MASK, are
    attended like the others and carry no loss: padding would reveal where the text ends.

    A clean row always reads the newest latent, but what is drafted reads one that grows stale. So
    with a draft_weight (not in the paper) there are blocks of draft rows alone: true bytes, read
    from left to right on the latent before their start, as BLT-S drafts. And a block of cells
    begins with one draft row, as BLT-DV drafts behind one byte that is decided already.
    """
    N = closes.shape[1]
    K = recipe.block_size
    noise = [draw_noise(N, recipe, generator) for generator in generators]
    # (B, N), (B, N), (B, N, K)
    order, t, hidden = (sent(torch.stack(parts), ids.device) for parts in zip(*noise))
    starts, wanted = choose_starts(closes, order, recipe)
    # (B, blocks, K) and (B, blocks, 1): what was drawn for these starts
    hidden = hidden.gather(1, (starts - 1)[..., None].expand(-1, -1, K))
    t = t.gather(1, starts - 1)[..., None]
    draft = torch.zeros_like(hidden)
    if recipe.draft_weight:
        hidden = F.pad(hidden, (1, 0))
        draft = F.pad(draft, (1, 0), value=True)
        drafts = choose_draft_starts(starts, order, recipe)
        more = drafts.shape[1]
        starts = torch.cat([starts, drafts], 1)
        # (B, blocks, K + 1): behind them the blocks that are draft rows alone
        hidden = F.pad(hidden, (0, 0, 0, more))
        draft = F.pad(draft, (0, 0, 0, more), value=True)
        t = F.pad(t, (0, 0, 0, more), value=1.0)
        wanted = F.pad(wanted, (0, more), value=True)
    # (B, blocks, rows of a block): where each stands, and which byte it predicts
    positions = starts[..., None] + torch.arange(hidden.shape[2], device=ids.device)
    told = positions + draft.long()
    counts = (told <= N) & wanted[..., None] & (hidden | draft)
    weight = torch.where(draft, 1.0, 1 / t)
    bytes_there = ids.gather(1, positions.clamp(max=N).flatten(1)).view_as(positions)
    given = torch.where(hidden | (positions > N), MASK, bytes_there)
    starts = starts[..., None].expand_as(positions)
    # each (B, blocks, rows of a block) -> (B, P)
    blocks = Blocks(*(rows.flatten(1) for rows in (given, positions, starts, draft)))
    place = (told - 1).clamp(max=N - 1)
    return Corrupted(blocks, *(x.flatten(1) for x in (place, counts, weight)), hidden.shape[2])


class Losses(NamedTuple):
    """Sums over a batch, by what is predicted."""

    clean: torch.Tensor  # nats of every next byte
    hidden: torch.Tensor  # nats of masked cells, each weighed by 1/t
    chained: torch.Tensor  # draft_loss of the cells of wholly masked blocks, by the chained head
    drafted: torch.Tensor  # draft_loss of every draft row

    def total(self, recipe, count):
        """What is minimised, for each of `count` clean bytes.

        With the recipe "paper" (λ = 1, μ = 0) and no chained head that is Eq. 5-7 / count.
        """
        of_blocks = recipe.mask_weight * (self.hidden + self.chained)
        return (self.clean + of_blocks + recipe.draft_weight * self.drafted) / count


def losses_of(model, ids, closes, corrupted, recipe):
    """ids (B, N + 1), closes (B, N) and their Corrupted blocks -> Losses (Fast BLT Eq. 5-7)."""
    N = closes.shape[1]
    rows = model.rows(ids[:, :-1], closes, corrupted.blocks)  # (B, N + P, D)
    logits = model.decoder.head(rows)
    clean = next_byte_nats(logits[:, :N], ids)
    draft = corrupted.blocks.draft
    # (B, P): Eq. 6 over the hidden cells
    nats = nats_of(logits[:, N:], ids[:, 1:].gather(1, corrupted.place)) * corrupted.weight
    hidden = (nats * (corrupted.counts & ~draft)).sum()
    chained = drafted = torch.zeros_like(clean)
    if recipe.draft_weight or model.decoder.chain:  # else nobody asks
        p = verifier(logits[:, :N], corrupted)
    if recipe.draft_weight:
        loss, _ = draft_loss(p, logits[:, N:])
        drafted = (loss * (corrupted.counts & draft)).sum()
    if model.decoder.chain:
        chained, _ = chained_loss(model.decoder, p, rows[:, N:], ids, corrupted, recipe.block_size)
    return Losses(clean, hidden, chained, drafted)


def next_byte_nats(logits, ids):
    """Sum of -log p over every next byte (Eq. 5): logits (B, N, V), ids (B, N + 1) -> nats."""
    return nats_of(logits, ids[:, 1:]).sum()


def nats_of(logits, targets):
    """-log p of targets (B, n) by logits (B, n, V) -> (B, n)."""
    return F.cross_entropy(wide(logits).transpose(1, 2), targets, reduction="none")


def wide(logits):
    """Logits in float32, or float64 if they are: sums of half precision would be too coarse."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def verifier(logits, corrupted):
    """What will verify a draft (§5): the clean rows' logits (B, N, V) -> p (B, P, V).

    For each row of a block the distribution of the byte that it is to tell, as the model itself
    sees it. No gradient goes that way: drafts follow the model, and not the model its drafts.
    """
    place = corrupted.place[..., None].expand(-1, -1, logits.shape[2])
    return wide(logits.detach().gather(1, place)).softmax(-1)


def draft_loss(p, logits):
    """What each row of a draft costs: p (..., V), and logits (..., V) of its q -> loss, nats (...).

    Such a row learns not the true byte, but p: what is drawn from q is, alone, kept with the
    probability sum of min(p, q). Cross-entropy, the nats, helps where the two do not overlap yet.
    """
    log_q = wide(logits).log_softmax(-1)
    nats = -(p * log_q).sum(-1)
    rejected = 1 - torch.minimum(p, log_q.exp()).sum(-1)
    return nats + REJECTED * rejected, nats


def chained_loss(decoder, p, rows, ids, corrupted, K):
    """Sums over the cells of wholly masked blocks, each told the true bytes before -> loss, nats.

    p (B, P, V) of `verifier`; rows (B, P, D): the decoder's of blocks, which learn by it too.
    """
    before = cells_of(ids.gather(1, corrupted.place), corrupted, K)
    cells, _ = decoder.chain(cells_of(rows, corrupted, K), before)
    whole = whole_blocks(corrupted, K)
    both = draft_loss(cells_of(p, corrupted, K), decoder.head(cells))
    return [(cost * whole).sum() for cost in both]


def cells_of(rows, corrupted, K):
    """The last K rows of each block: (B, P, ..) -> (B blocks, K, ..)."""
    return rows.unflatten(1, (-1, corrupted.width)).flatten(0, 1)[:, -K:]


def whole_blocks(corrupted, K):
    """Which blocks have all their K cells hidden, and in the text: (B blocks, 1) bool."""
    return cells_of(corrupted.counts & ~corrupted.blocks.draft, corrupted, K).all(-1, keepdim=True)


# ---- which masked cells to unmask: probabilities p (K, V), masked (K,) bool -> bool (K,), at least
# one (Fast BLT §3.1)


def confidence(p, masked, alpha):
    """Every cell whose top probability is above α; if none is, the most confident one."""
    top = p.amax(-1).masked_fill(~masked, -1.0)
    sure = top > alpha
    return sure if sure.any() else F.one_hot(top.argmax(), len(top)).bool()


def entropy_bounded(p, masked, gamma):
    """By rising entropy, as many cells as together stay within γ nats; at least the lowest."""
    H = torch.special.entr(p).sum(-1).masked_fill(~masked, math.inf)
    ordered, index = H.sort()
    chosen = ordered.cumsum(0) <= gamma
    chosen[0] = True
    return torch.zeros_like(masked).scatter_(0, index, chosen)


UNMASK = {"confidence": confidence, "entropy": entropy_bounded}
UNMASK["one-step"] = lambda p, masked, _: masked  # everything at once
RULES = (*UNMASK, "chained")  # or cell by cell, by the chained head


class Unmask(NamedTuple):
    """One of RULES and its threshold: α of confidence and chained, γ of entropy."""

    rule: str = "confidence"
    threshold: float | None = 0.7


# ---- generation: one block
# state: of generate.py. decided: ids behind its text that it has not taken in. -> list of ids, and
# what each was drawn from (n, V), or None where that is not known.


def denoise(state, decided, size, unmask, sampling, watch):
    """Fill a block of `size` cells, from all masked to none, by a decoder pass for each step."""
    ids = torch.full((size,), MASK)
    masked = torch.ones(size, dtype=torch.bool)
    while masked.any():
        rows = state.peek(decided, ids.tolist())[-size:]
        logits = state.model.decoder.head(rows).cpu()
        q = distribution(logits, sampling)
        p = torch.softmax(ban(logits, sampling), -1)
        pick = UNMASK[unmask.rule](p, masked, unmask.threshold)
        ids = torch.where(pick, torch.tensor(draw(q, sampling)), ids)
        masked = masked & ~pick
        watch.step(ids.tolist(), masked.tolist())
    # Cells drawn in several steps have no known distribution together.
    return ids.tolist(), q if unmask.rule == "one-step" else None


def until_unsure(drawn, threshold, sampling):
    """Ids and logits (1, V) as they are drawn, up to EOS, or until their q multiply to less than
    the threshold -> (ids, q (n, V)). The id that ends them is one of them: `verify` relies on that.
    """
    ids, logits = [], []
    together = 1.0
    for id_, its_logits in drawn:
        ids.append(id_)
        logits.append(its_logits)
        if threshold:
            p = distribution(its_logits, sampling)  # greedy these are logits
            together *= (p if sampling.temperature else p.softmax(-1))[0, id_].item()
        if together < threshold or id_ == EOS:
            break
    return ids, distribution(torch.cat(logits), sampling)


def fill_block(state, decided, before, size, unmask, sampling, watch):
    """Fill a block by any of RULES, chained from left to right. before: the id in front of it."""
    if unmask.rule != "chained":
        return denoise(state, decided, size, unmask, sampling, watch)
    drawn = state.chained(decided, before, sampling.noise(size), sampling)
    ids, q = until_unsure(drawn, unmask.threshold or 0.0, sampling)
    state.counters.chain += len(ids)
    watch.step(ids, [False] * len(ids))
    return ids, q


@torch.inference_mode()
def generate_bltd(state, prompt, max_bytes, *, block_size, unmask, sampling=None, watch=None):
    """BLT-D (Algorithm 1): fill a block, take it in, fill the next -> Generation.

    state: a new one; prompt: list of ids without BOS. A block unmasked in s steps costs s decoder
    passes and, if it closes a patch, one encoder/global pass. Raises BadInput where the model can't
    fill such blocks.
    """
    check_block_size(state.model, block_size, unmask.rule)
    sampling = sampling or Sampling()
    watch = watch or Watch()
    out = Output(state, prompt, max_bytes, sampling, watch)
    out.prefill()
    while True:
        block, _ = fill_block(state, [], out.text[-1], block_size, unmask, sampling, watch)
        state.counters.rounds += 1
        if not out.write(block):
            return out.finish()
        state.advance(block)


if __name__ == "__main__":
    from measure import ideas

    ideas.show("diffusion")
