"""BLT-D: the decoder learns to fill a block of K bytes in a few parallel passes (Fast BLT §3).

Run it to see blocks and what they hide on a line of text, and to draw who sees whom:

    python diffusion.py --text "def main():" --plot mask.png

In the order a reader needs it: where blocks start, how they are corrupted, the loss, which cells
to unmask, generation. Who sees whom is `layers.sees`, one rule for training and generation.

Letters in shape comments: B batch, N byte positions, P rows of blocks (K for each), K block size,
V vocabulary, t noise level.
"""

import math
import os
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from data import BOS, MASK, PAD, encode
from generate import Sampling, ban, begin, distribution, draw, finish, next_byte_loss, until_end
from layers import sees
from patcher import patcher_from
from stream import Stream
from support import checkpoint
from support.flags import idea_options
from support.presets import RECIPES, Recipe
from support.show import show_blocks
from support.terminal import BadInput, run

SIZES = (4, 8, 16, 32)

# ---- training: blocks, corruption, loss


class Blocks(NamedTuple):
    """Corrupted blocks beside a batch of text, (B, P) each: K rows a block, block after block."""

    ids: torch.Tensor  # the byte, or MASK where it is hidden and past the end of the text
    positions: torch.Tensor  # byte positions
    starts: torch.Tensor  # first position of the row's block
    targets: torch.Tensor = None  # the byte itself (PAD past the end of the text)
    masked: torch.Tensor = None  # bool: the cell is hidden and has a target
    weight: torch.Tensor = None  # 1/t of its block; 0 where there is no target


class Noise(NamedTuple):
    """All that chance decides about the blocks of a crop, for each start 1..N there may be."""

    order: torch.Tensor  # (N,) which starts come first
    t: torch.Tensor  # (N,) noise level of a block that starts there
    hidden: torch.Tensor  # (N, K) bool: cells that are masked


def draw_noise(N, recipe, generator):
    """The Noise of one crop of N bytes, from its own generator."""
    order = torch.rand(N, generator=generator)
    t = torch.rand(1 if recipe.noise == "sequence" else N, generator=generator).expand(N)
    t = recipe.t_min + (1 - recipe.t_min) * t
    full = torch.rand(N, generator=generator) < recipe.full_share
    t = torch.where(full, 1.0, t)
    hidden = torch.rand(N, recipe.block_size, generator=generator) < t[:, None]
    return Noise(order, t, hidden)


def choose_starts(closes, order, recipe):
    """closes, order (B, N) -> starts (B, blocks) in 1..N, and which of them are wanted, bool.

    "patch" starts where a patch opens; a row of the batch with fewer patches than its neighbours
    gets blocks that nobody wants.
    """
    N = closes.shape[1]
    allowed = closes if recipe.starts == "patch" else torch.ones_like(closes)
    count = int(allowed.sum(1).max())
    if recipe.cells_per_byte:
        count = min(count, max(1, round(recipe.cells_per_byte * N / recipe.block_size)))
    chosen = (order + allowed.float()).topk(count, 1)  # what is allowed comes out on top
    return chosen.indices + 1, chosen.values >= 1


def make_blocks(ids, closes, recipe, generators):
    """Cut blocks out of ids (B, N + 1) and corrupt them -> Blocks.

    closes (B, N); generators: one for each row (data.Crops.generators). A block holds the K bytes
    from its start on, over later patches too. Cells past the end of the text stay MASK, are
    attended like the others and carry no loss: padding would reveal where the text ends.
    """
    N, K, device = closes.shape[1], recipe.block_size, ids.device
    noise = [draw_noise(N, recipe, generator) for generator in generators]
    order, t, hidden = (torch.stack(parts).to(device) for parts in zip(*noise))
    starts, wanted = choose_starts(closes, order, recipe)
    # (B, blocks, K)
    positions = starts[..., None] + torch.arange(K, device=device)
    inside = positions <= N
    targets = ids.gather(1, positions.clamp(max=N).flatten(1)).view_as(positions)
    t = t.gather(1, starts - 1)[..., None]
    hidden = hidden.gather(1, (starts - 1)[..., None].expand(-1, -1, K))
    counts = inside & wanted[..., None]
    blocks = Blocks(
        ids=torch.where(hidden | ~inside, MASK, targets),
        positions=positions,
        starts=starts[..., None].expand_as(positions),
        targets=torch.where(inside, targets, PAD),
        masked=hidden & counts,
        weight=torch.where(counts, 1 / t, 0.0),
    )
    # (B, blocks, K) -> (B, P)
    return Blocks(*(part.flatten(1) for part in blocks))


def masked_nats(logits, blocks):
    """Sum over the hidden cells of -log p / t (Eq. 6): logits (B, P, V) -> nats."""
    # (B, P)
    nats = F.cross_entropy(logits.float().transpose(1, 2), blocks.targets, reduction="none")
    return (nats * blocks.weight * blocks.masked).sum()


def chained_nats(decoder, rows, ids, blocks, K):
    """Sum of -log p over the cells of wholly masked blocks, each knowing the bytes before it.

    rows (B, P, D): the decoder's last ones, of blocks. ids (B, N + 1). -> nats
    """
    # (B, P) -> (B P / K, K)
    targets = blocks.targets.reshape(-1, K)
    whole = blocks.masked.reshape(-1, K).all(-1, keepdim=True)
    first = ids.gather(1, blocks.starts[:, ::K] - 1).reshape(-1, 1)
    before = torch.cat([first, targets[:, :-1]], 1)
    logits = decoder.head(decoder.chain(rows.reshape(-1, K, rows.shape[-1]), before))
    # (B P / K, K)
    nats = F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
    return (nats * whole).sum()


def diffusion_loss(model, ids, closes, blocks, recipe):
    """Fast BLT Eq. 5-7, all sums over the number of clean bytes -> (loss, clean part), nats.

    With mask_weight (λ) 1 it is the paper's. A chained head adds a term, with λ too.
    """
    N, decoder = closes.shape[1], model.decoder
    rows = model.last_rows(ids[:, :-1], closes, blocks)  # (B, N + P, D)
    logits = decoder.head(rows)
    clean, hidden = next_byte_loss(logits[:, :N], ids), masked_nats(logits[:, N:], blocks)
    if decoder.chain:
        hidden = hidden + chained_nats(decoder, rows[:, N:], ids, blocks, recipe.block_size)
    return clean + recipe.mask_weight * hidden / closes.numel(), clean


def chain_loss(model, ids, closes, blocks, recipe):
    """The chained head's loss alone, all else being frozen -> (nats a cell, the same)."""
    with torch.no_grad():
        rows = model.last_rows(ids[:, :-1], closes, blocks)[:, closes.shape[1] :]
    K = recipe.block_size
    cells = K * blocks.masked.reshape(-1, K).all(-1).sum().clamp(min=1)
    loss = chained_nats(model.decoder, rows, ids, blocks, K) / cells
    return loss, loss


# ---- which masked cells to unmask: probabilities p (K, V), masked (K,) bool -> bool (K,), at least
# one (Fast BLT §3.1)


def confidence(p, masked, alpha):
    """Every cell whose top probability is above α; if none is, the most confident one."""
    top = p.amax(-1).masked_fill(~masked, -1.0)
    if (top > alpha).any():
        return (top > alpha) & masked
    return F.one_hot(top.argmax(), len(top)).bool()


def entropy_bounded(p, masked, gamma):
    """By rising entropy, as many cells as together stay within γ nats; at least the lowest."""
    H = torch.special.entr(p).sum(-1).masked_fill(~masked, math.inf)
    ordered, index = H.sort()
    chosen = ordered.cumsum(0) <= gamma
    chosen[0] = True
    return torch.zeros_like(masked).scatter_(0, index, chosen)


def one_step(p, masked, _=None):
    """Everything at once."""
    return masked


UNMASK = {"confidence": confidence, "entropy": entropy_bounded, "one-step": one_step}
# How a block is filled: by one of these, or cell by cell (chained_head)
RULES = (*UNMASK, "chained")


@dataclass
class Unmask:
    """One of RULES and its threshold: α of confidence and chained, γ of entropy."""

    rule: str = "confidence"
    threshold: float | None = 0.7

    def __call__(self, p, masked):
        return UNMASK[self.rule](p, masked, self.threshold)


# ---- generation


def denoise(decode_block, size, unmask, sampling, trace=None):
    """Fill one block, from all masked to none -> its ids, and what each was drawn from (K, V).

    decode_block(ids) -> logits (K, V) runs the decoder over the block, once a step.
    trace.step(ids, masked) sees each step.
    """
    ids, masked = torch.full((size,), MASK), torch.ones(size, dtype=torch.bool)
    q = None
    while masked.any():
        logits = decode_block(ids.tolist()).cpu()
        new = distribution(logits, sampling)
        pick = unmask(torch.softmax(ban(logits.float(), sampling), -1), masked)
        q = new if q is None else torch.where(pick[:, None], new, q)
        ids = torch.where(pick, torch.tensor(draw(new, sampling)), ids)
        masked = masked & ~pick
        if trace:
            trace.step(ids.tolist(), masked.tolist())
    return ids.tolist(), q


@torch.inference_mode()
def chained_head(decoder):
    """A function that draws the cells of a block one after the other, by the chained head.

    It is (rows (K, D), the id before them, sampling, threshold) -> n <= K ids, and what each was
    drawn from (n, V). It stops behind a cell where all of them together have a
    probability below the threshold: more would hardly be accepted. What depends on no cell is
    multiplied out here or once a block, so that a cell costs two products of a vector and a small
    matrix.
    """
    head, gru, S = decoder.chain, decoder.chain.gru, decoder.chain.out.in_features
    of_row, of_byte = gru.weight_ih_l0.chunk(2, 1)  # (3 S, D) each
    of_byte, of_state = head.embed.weight @ of_byte.T, gru.weight_hh_l0  # (V, 3 S), (3 S, S)
    to_logits = decoder.head.weight @ head.out.weight  # (V, S)

    @torch.inference_mode()
    def draw_cells(rows, before, sampling, threshold=0.0):
        logits, inputs = decoder.head(rows), rows @ of_row.T
        state, ids, q, together = rows.new_zeros(S), [], [], 1.0
        for j in range(len(rows)):
            x, h = inputs[j] + of_byte[before], of_state @ state
            # As nn.GRU: gates reset and update, then the new state, (S,) each
            reset, update = torch.sigmoid(x[: 2 * S] + h[: 2 * S]).chunk(2)
            new = torch.tanh(torch.addcmul(x[2 * S :], reset, h[2 * S :]))
            state = torch.lerp(new, state, update)
            p = distribution(torch.addmv(logits[j], to_logits, state)[None], sampling)
            before = draw(p, sampling)[0]
            ids.append(before)
            q.append(p)
            together *= (p[0] if sampling.temperature else p[0].softmax(-1))[before].item()
            if together < threshold:
                break
        return ids, torch.cat(q)

    return draw_cells


def block_filler(model, size, unmask, trace=None):
    """How blocks are filled -> a function (stream, provisional ids, id before the block, sampling).

    It returns the block's ids and what each was drawn from, (K, V) or None if that is not known.
    """
    check_block_size(model, size, unmask.rule)

    def by_steps(stream, provisional, before, sampling):
        def decode_block(cells):
            nonlocal provisional
            logits = stream.decode(provisional, cells)[-size:]
            provisional = []  # its row is there now, for the steps that follow
            return logits

        ids, q = denoise(decode_block, size, unmask, sampling, trace)
        # Cells drawn in several steps have no known distribution together.
        return ids, q if unmask.rule == "one-step" else None

    def by_chain(stream, provisional, before, sampling):
        rows = stream.last_rows(provisional, [MASK] * size)[-size:]
        ids, q = draw_cells(rows, before, sampling, unmask.threshold or 0.0)
        stream.counters.chain += len(ids)
        if trace:
            trace.step(ids, [False] * len(ids))
        return ids, q

    if unmask.rule != "chained":
        return by_steps
    draw_cells = chained_head(model.decoder)
    return by_chain


def generate_bltd(model, patcher, prompt, max_bytes, *, block_size, unmask, rounds="ours", **run):
    """BLT-D, block by block (Algorithm 1). run: sampling, emit and trace, as generate.generate.

    A block unmasked in s steps costs s decoder passes and, if it closes a patch, one
    encoder/global pass: its clean rows go through the decoder together with the first pass of the
    block behind it. rounds "paper": the open patch is encoded too before each block, as if it
    ended there, and the block reads that latent: exactly one encoder/global pass a block.
    """
    sampling, emit, trace = run.get("sampling") or Sampling(), run.get("emit"), run.get("trace")
    fill = block_filler(model, block_size, unmask, trace)
    stream, text, encode_open = Stream(model, patcher), [BOS, *prompt], rounds == "paper"
    stream.prefill(text[:-1] if encode_open else text)
    ids, before, began = [], text[-1], begin(stream, trace)
    if encode_open:  # with the last byte of the prompt, so that the first block costs a call too
        stream.advance(text[-1:], encode_open)

    while True:
        block, _ = fill(stream, [], before, sampling)
        stream.counters.rounds += 1
        new, ended = until_end(block[: max_bytes - len(ids)], sampling)
        ids += new
        if emit:
            emit(new)
        if ended or len(ids) == max_bytes:
            return finish(stream, ids, began)
        stream.advance(block, encode_open)
        before = block[-1]


def check_block_size(model, block_size, rule=None):
    """Raises BadInput where a model can't fill blocks of that size, or not by that rule."""
    trained = model.config.block_size
    if not trained:
        advice = "train a BLT-D with `python train.py --block-size 8`"
        raise BadInput(f"this checkpoint is a plain BLT (K = 0), it can't fill blocks: {advice}")
    if not 1 <= block_size <= trained:
        problem = f"was trained for blocks of up to {trained} bytes, not {block_size}"
        advice = "give a smaller --block-size or train with that one"
        raise BadInput(f"this checkpoint {problem}: {advice}")
    if rule == "chained" and not model.config.chain_width:
        advice = "train one with `python train.py --init-from FILE --recipe chain`"
        raise BadInput(f"this checkpoint has no chained head: give another --unmask, or {advice}")


# ---- run: the idea on a line of text


options_from = idea_options("diffusion.py", "Show blocks and the mask.", "def main():", plot=True)


def main(argv=None):
    options = options_from(argv)
    data = os.fsencode(options.text)
    if not 2 <= len(data) <= 60:
        raise BadInput(f"--text has {len(data)} bytes: the picture needs 2 to 60")
    patcher = patcher_from(checkpoint.load(checkpoint.find(options.checkpoint)))
    recipe, ids = Recipe(4, **RECIPES["paper"]), torch.tensor([[BOS] + encode(data)])
    closes = patcher.closes(ids[0])[None, :-1]
    blocks = make_blocks(ids, closes, recipe, [torch.Generator().manual_seed(0)])
    show_blocks(data, closes[0].tolist(), blocks, recipe.block_size, sees, options.plot)


if __name__ == "__main__":
    run(main)
