"""BLT-D: the decoder learns to fill a block of K bytes in a few parallel passes (Fast BLT §3).

Run it to see blocks, a corruption and who sees whom on a line of text:

    python diffusion.py --text "def main():"

In the order a reader needs it: where blocks start, how they are corrupted, the loss, which cells
to unmask, generation. Who sees whom is `layers.sees`, one rule for training and generation.

Letters in shape comments: B batch, N byte positions, P rows of blocks (K for each), K block size,
V vocabulary, t noise level.
"""

import math
import os
import time
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from data import BOS, MASK, PAD, encode
from generate import Sampling, ban, distribution, draw, finish, next_byte_loss, until_end
from layers import sees
from patcher import Patcher, PatcherConfig, patcher_from
from stream import Stream
from support import checkpoint
from support.flags import idea_options
from support.show import show_blocks
from support.terminal import BadInput, run

SIZES = (4, 8, 16, 32)

# ---- training: blocks, corruption, loss


@dataclass
class Recipe:
    """How BLT-D is trained: where blocks start, what is hidden in them, what that weighs."""

    block_size: int = 8  # K
    starts: str = "any"  # any: blocks start anywhere, as drafts do | patch: at patch starts
    cells_per_byte: float = 0.5  # cells of blocks a byte of text; 0: a block at every patch start
    noise: str = "sequence"  # one noise level t for all blocks of a crop | block: one for each
    full_share: float = 0.5  # share of blocks masked whole: the state every draft starts from
    t_min: float = 0.1  # t is uniform on (t_min, 1): a cell's weight 1/t stays below 1 / t_min
    mask_weight: float = 1.0  # λ of the loss
    after: float = 0.6  # share of the steps before blocks join

    def __post_init__(self):
        if self.block_size and self.starts == "any" and not self.cells_per_byte:
            raise BadInput(
                "--cells-per-byte 0 puts a block at every start there may be: give it with "
                "--block-starts patch, or a number above 0"
            )

    def cells(self, mean_patch):
        """Cells of blocks beside each byte of text, on average over a run."""
        each = self.cells_per_byte or self.block_size / mean_patch
        return each * (1 - self.after) if self.block_size else 0.0


# What differs from the defaults, which are ours. The paper: blocks at every patch start from the
# first step on, one t ~ U(0, 1) a sequence. Its 1/t has no bound; here it stays below 1000, and a
# cell's expected weight 1.
RECIPES = {
    "ours": {},
    "paper": {
        "starts": "patch",
        "cells_per_byte": 0.0,
        "noise": "sequence",
        "full_share": 0.0,
        "t_min": 0.001,
        "mask_weight": 1.0,
        "after": 0.0,
    },
}


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


def block_logits(model, ids, closes, blocks):
    """One forward over text ids (B, N + 1) and blocks -> logits (B, N, V) and (B, P, V)."""
    N = closes.shape[1]
    logits = model(ids[:, :-1], closes, blocks)  # (B, N + P, V)
    return logits[:, :N], logits[:, N:]


def diffusion_loss(model, ids, closes, blocks, mask_weight):
    """Fast BLT Eq. 5-7, both sums over the number of clean bytes -> (loss, clean part), nats.

    With mask_weight (λ) 1 it is the paper's.
    """
    clean_logits, masked_logits = block_logits(model, ids, closes, blocks)
    clean = next_byte_loss(clean_logits, ids)
    return clean + mask_weight * masked_nats(masked_logits, blocks) / closes.numel(), clean


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


@dataclass
class Unmask:
    """A rule and its threshold: α of confidence, γ of entropy."""

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


def generate_bltd(model, patcher, prompt, max_bytes, *, block_size, unmask, rounds="ours", **run):
    """BLT-D, block by block (Algorithm 1). run: sampling, emit and trace, as generate.generate.

    A block unmasked in s steps costs s decoder passes and, if it closes a patch, one
    encoder/global pass: its clean rows go through the decoder together with the first pass of the
    block behind it. rounds "paper": the open patch is encoded too before each block, as if it
    ended there, and the block reads that latent: exactly one encoder/global pass a block.
    """
    check_block_size(model, block_size)
    sampling, emit, trace = run.get("sampling") or Sampling(), run.get("emit"), run.get("trace")
    stream, text, encode_open = Stream(model, patcher), [BOS, *prompt], rounds == "paper"
    stream.prefill(text[:-1] if encode_open else text)
    ids, began = [], time.perf_counter()
    if encode_open:  # with the last byte of the prompt, so that the first block costs a call too
        stream.advance(text[-1:], encode_open)

    def decode_block(cells):
        return stream.decode(block=cells)[-block_size:]

    while True:
        block, _ = denoise(decode_block, block_size, unmask, sampling, trace)
        stream.counters.rounds += 1
        new, ended = until_end(block[: max_bytes - len(ids)], sampling)
        ids += new
        if emit:
            emit(new)
        if ended or len(ids) == max_bytes:
            return finish(stream, ids, began)
        stream.advance(block, encode_open)


def check_block_size(model, block_size):
    """Raises BadInput where a model can't fill blocks of that size."""
    trained = model.config.block_size
    if not trained:
        raise BadInput(
            "this checkpoint is a plain BLT (K = 0), it can't fill blocks: "
            "train a BLT-D with `python train.py --block-size 8`"
        )
    if not 1 <= block_size <= trained:
        raise BadInput(
            f"this checkpoint was trained for blocks of up to {trained} bytes, not {block_size}: "
            "give a smaller --block-size or train with that one"
        )


# ---- run: the idea on a line of text


options_from = idea_options("diffusion.py", "Show blocks, a corruption, the mask.", "def main():")


def main(argv=None):
    options = options_from(argv)
    data = os.fsencode(options.text)
    if not 2 <= len(data) <= 60:
        raise BadInput(f"--text has {len(data)} bytes: the picture needs 2 to 60")
    path = checkpoint.find(options.checkpoint)
    patcher = Patcher(PatcherConfig(kind="space"))  # words, where there is no checkpoint
    if options.checkpoint or os.path.exists(path):
        patcher = patcher_from(checkpoint.load(path))
    recipe, ids = Recipe(4, **RECIPES["paper"]), torch.tensor([[BOS] + encode(data)])
    closes = patcher.closes(ids[0])[None, :-1]
    blocks = make_blocks(ids, closes, recipe, [torch.Generator().manual_seed(0)])
    show_blocks(data, closes[0].tolist(), blocks, recipe.block_size, sees)


if __name__ == "__main__":
    run(main)
