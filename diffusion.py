"""BLT-D: the decoder learns to fill a block of K bytes in a few parallel passes (Fast BLT §3).

Run it to see blocks, a corruption and who sees whom:  python diffusion.py --text "def main():"

In the order a reader needs it: where blocks start, how they are corrupted, the loss, which cells to unmask, generation. The
attention rule of a block's rows is `layers.sees`; the same rule masks training here and generation in stream.py.
Letters in shape comments: B batch, N byte positions, P rows of blocks (K for each), K block size, V vocabulary, t noise level.
"""
import math
import os
import sys
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import checkpoint
from data import BOS, MASK, OFFSET, PAD, decode, encode
from layers import sees
from patcher import Patcher, PatcherConfig, load_patcher
from stream import Generation, Sampling, Stream, ban, distribution, draw, until_end
from terminal import BadInput, Parser, number, paint, run, show_patches, visible

SIZES = (4, 8, 16, 32)


# ---- training: blocks, corruption, loss

@dataclass
class Recipe:
    """How BLT-D is trained. The paper's is Recipe(K, "patch", 0.0, 0.0, 0.0): a block at every patch start, t alone decides."""
    block_size: int = 8       # K
    starts: str = "any"       # any: blocks start anywhere | patch: at patch starts
    rows: float = 0.5         # rows of blocks for each byte of the text; 0: a block at every patch start
    full: float = 0.5         # share of blocks masked whole (t = 1, weight 1): the state every draft starts from
    after: float = 0.6  # share of the steps before blocks join: filling gaps is learned faster once the model can read
    t_min: float = 0.1        # t is uniform on (t_min, 1): a cell's weight is 1/t, and so stays below 10


@dataclass
class Blocks:
    """Corrupted blocks beside a batch of text, (B, P) each: K rows for each block, one block after the other."""
    ids: torch.Tensor         # the byte, or MASK where it is hidden and past the end of the text
    positions: torch.Tensor   # byte positions
    starts: torch.Tensor      # first position of the row's block
    targets: torch.Tensor     # the byte itself (PAD past the end of the text)
    masked: torch.Tensor      # bool: the cell is hidden and has a target
    weight: torch.Tensor      # 1/t of its block; 0 where there is no target


def choose_starts(closes, recipe):
    """closes (B, N) -> starts (B, blocks) of distinct blocks, in 1..N, and whether each is wanted, (B, blocks) bool.

    "patch" starts where a patch opens; a row of the batch with fewer patches than its neighbours gets unwanted blocks.
    """
    B, N = closes.shape
    may = closes if recipe.starts == "patch" else torch.ones_like(closes)
    most = int(may.sum(1).max())
    count = most if recipe.rows == 0 else min(most, max(1, round(recipe.rows * N / recipe.block_size)))
    chance = torch.rand(B, N).to(closes.device) + may.float()              # what may start a block comes out on top
    chosen = chance.topk(count, 1)
    return chosen.indices + 1, chosen.values >= 1


def make_blocks(ids, closes, recipe):
    """Cut blocks out of ids (B, N + 1) and corrupt them -> Blocks. closes (B, N). Draws from torch's global generator.

    A block holds the K bytes from its start on, over later patches too; cells past the end of the text stay MASK, are attended
    like the others and carry no loss (padding would reveal where the text ends).
    """
    N, K = closes.shape[1], recipe.block_size
    starts, wanted = choose_starts(closes, recipe)
    positions = starts[..., None] + torch.arange(K, device=ids.device)     # (B, blocks, K)
    inside = positions <= N
    targets = ids.gather(1, positions.clamp(max=N).flatten(1)).view_as(positions)
    t, hidden = corrupt(positions.shape, recipe)
    t, hidden = t.to(ids.device), hidden.to(ids.device)
    counts = inside & wanted[..., None]
    blocks = Blocks(torch.where(hidden | ~inside, MASK, targets), positions, starts[..., None].expand_as(positions),
                    torch.where(inside, targets, PAD), hidden & counts, torch.where(counts, 1 / t, 0.0))
    return Blocks(*(getattr(blocks, name).flatten(1) for name in blocks.__dataclass_fields__))


def corrupt(shape, recipe):
    """Noise for blocks of shape (B, blocks, K): t (B, blocks, 1), and which cells it hides, (B, blocks, K) bool."""
    t = recipe.t_min + (1 - recipe.t_min) * torch.rand(*shape[:2], 1)
    t = torch.where(torch.rand(*shape[:2], 1) < recipe.full, 1.0, t)
    return t, torch.rand(shape) < t


def masked_loss(logits, blocks):
    """Cross-entropy of hidden cells, weighted 1/t, over the number of cells that have a target: logits (B, P, V) -> nats a byte.

    A cell is hidden with probability t, so its expected weight is 1, and the loss compares with that of next bytes.
    """
    nats = F.cross_entropy(logits.float().transpose(1, 2), blocks.targets, reduction="none")                 # (B, P)
    return (nats * blocks.weight * blocks.masked).sum() / (blocks.weight > 0).sum()


def blt_d_logits(model, ids, closes, blocks):
    """One forward over text and blocks: ids (B, N + 1) -> logits of clean rows (B, N, V) and of block rows (B, P, V)."""
    N = closes.shape[1]
    logits = model(ids[:, :-1], closes, blocks.ids, blocks.positions, blocks.starts)  # (B, N + P, V)
    return logits[:, :N], logits[:, N:]


# ---- which masked cells to unmask: raw probabilities p (K, V) and masked (K,) bool -> bool (K,), at least one (Fast BLT §3.1)

def confidence(p, masked, alpha):
    """Every cell whose top probability is above α; if none is, the most confident one."""
    top = p.amax(-1).masked_fill(~masked, -1.0)
    return (top > alpha) & masked if (top > alpha).any() else F.one_hot(top.argmax(), len(top)).bool()


def entropy_bounded(p, masked, gamma):
    """By rising entropy, as many cells as together stay within γ nats; if none does, the one of lowest entropy."""
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
    threshold: float = 0.7

    def __call__(self, p, masked):
        return UNMASK[self.rule](p, masked, self.threshold)


# ---- generation

def denoise(decode_block, size, unmask, sampling, watch=None):
    """Fill one block, from all masked to none: -> its ids, and the distribution (K, V) each was drawn from, from its own step.

    decode_block(ids) -> logits (K, V) runs the decoder over the block; it is called once a step. watch(ids, masked) sees each step.
    """
    ids, masked = torch.full((size,), MASK), torch.ones(size, dtype=torch.bool)
    q = None
    while masked.any():
        logits = decode_block(ids.tolist()).float().cpu()
        new = distribution(logits, sampling)
        pick = unmask(torch.softmax(ban(logits, sampling), -1), masked)
        q = new if q is None else torch.where(pick[:, None], new, q)
        ids = torch.where(pick, torch.tensor(draw(new, sampling)), ids)
        masked = masked & ~pick
        if watch:
            watch(ids.tolist(), masked.tolist())
    return ids.tolist(), q


def generate_bltd(model, patcher, prompt, max_bytes, block_size, unmask, sampling=None, emit=None, watch=None):
    """Block by block (Algorithm 1). prompt: ids without BOS; emit, watch: called with new ids, with each unmasking step.

    A block unmasked in s steps costs s decoder passes and, when the next one needs it, one encoder/global pass: its clean rows
    go through the decoder together with the first pass of the block behind it.
    """
    check_block_size(model, block_size)
    sampling = sampling or Sampling()
    stream = Stream(model, patcher)
    stream.prefill([BOS, *prompt])
    ids, began = [], time.perf_counter()
    while True:
        block, _ = denoise(lambda cells: stream.decode(cells)[-block_size:], block_size, unmask, sampling, watch)
        stream.counters.rounds += 1
        new, ended = until_end(block[:max_bytes - len(ids)], sampling)
        ids += new
        if emit:
            emit(new)
        if ended or len(ids) == max_bytes:
            return Generation(ids, stream.counters, time.perf_counter() - began)
        stream.advance(block)


def check_block_size(model, block_size):
    """Raises BadInput where a model can't fill blocks of that size."""
    trained = model.config.block_size
    if not trained:
        raise BadInput("this checkpoint is a plain BLT (K = 0), it can't fill blocks: "
                       "train a BLT-D with `python train.py --block-size 8`")
    if not 1 <= block_size <= trained:
        raise BadInput(f"this checkpoint was trained for blocks of up to {trained} bytes, not {block_size}: "
                       "give a smaller --block-size or train with that one")


@torch.no_grad()
def masked_accuracy(model, patcher, documents, block_size, stride=61):
    """How well a wholly masked block is guessed, in the layout of generation: behind the end of the text, every `stride` bytes
    of `documents` (lists of ids) -> accuracy and loss in nats, each by position in the block (lists of K).
    """
    hits, nats, count = torch.zeros(block_size), torch.zeros(block_size), 0
    for ids in documents:
        stream, ids = Stream(model, patcher), ids.tolist()
        for start in range(stride, len(ids) - block_size, stride):
            stream.extend(ids[start - stride:start])
            logits = stream.decode([MASK] * block_size).float().cpu()
            truth = torch.tensor(ids[start:start + block_size])
            hits += logits.argmax(-1) == truth
            nats += F.cross_entropy(logits, truth, reduction="none")
            count += 1
    return (hits / max(1, count)).tolist(), (nats / max(1, count)).tolist()


# ---- the idea on a line of text

def show(patcher, data, recipe):
    """Print the patches of a text, the blocks at them, one corruption, and the mask of clean and block rows."""
    ids = torch.tensor([[BOS] + encode(data)])
    closes = patcher.closes(ids[0])[None, :-1]
    cuts = [0, *(i + 1 for i, c in enumerate(closes[0].tolist()) if c), ids.shape[1]]
    print("patches   " + show_patches([decode(ids[0, a:b].tolist()) for a, b in zip(cuts, cuts[1:])][1:]))
    blocks = make_blocks(ids, closes, recipe)
    K, N = recipe.block_size, closes.shape[1]
    order = blocks.starts[0, ::K].argsort()
    letters = [visible([i - OFFSET]) if i >= OFFSET else "^" for i in ids[0].tolist()]
    print(f"\nblocks of K = {K}, with the noise t of each and what it hides (░)")
    letters += ["·"] * K                                                   # past the end of the text
    positions, masked = blocks.positions[0].view(-1, K).tolist(), blocks.masked[0].view(-1, K).tolist()
    for b in order.tolist():
        start = int(blocks.starts[0, b * K])
        row = "".join(paint("░", 36) if hidden else letters[p] for p, hidden in zip(positions[b], masked[b]))
        t = 1 / max(1e-9, float(blocks.weight[0, b * K]))
        print(f"{' ' * 10}{' ' * (start - 1)}{row}   start {start}, t {t:.2f}")
    shown = order[:4].tolist()
    rows = [c for b in shown for c in range(b * K, b * K + K)]
    position = torch.cat([torch.arange(N), blocks.positions[0, rows]])
    start = torch.cat([torch.full((N,), -1), blocks.starts[0, rows]])
    seen = sees(position[:, None], start[:, None], position[None], start[None], 10 ** 9)
    print(f"\nwho (row) sees whom (column): {N} clean rows, then the rows of the first {len(shown)} blocks; ^ is BOS")
    print(" " * 10 + "".join(letters[:N]) + "".join(" " + "".join(letters[p] for p in positions[b]) for b in shown))
    for r in range(len(position)):
        if r >= N and (r - N) % K == 0:
            print()
        marks = "".join((" " if c >= N and (c - N) % K == 0 else "") + ("■" if seen[r, c] else "·") for c in range(len(position)))
        print(f"{'clean' if r < N else 'block':<6} {letters[position[r]]:>2} {marks}")


def main(argv=None):
    parser = Parser(prog="diffusion.py", description="Show blocks, a corruption and the attention rule on a line of text.")
    parser.add_argument("--text", default="def main():", help="the text to show")
    parser.add_argument("--block-size", type=number(int, 1, 64), default=4, help="K")
    parser.add_argument("--starts", default="patch", choices=("patch", "any"), help="where blocks start")
    parser.add_argument("--checkpoint", help="whose patches to show (default: the newest model there is, else words)")
    parser.add_argument("--seed", type=int, default=0, help="of the corruption")
    options = parser.parse_args(argv)
    data = os.fsencode(options.text)
    if not 2 <= len(data) <= 60:
        raise BadInput(f"--text has {len(data)} bytes: the picture needs 2 to 60")
    torch.manual_seed(options.seed)
    path = checkpoint.find(options.checkpoint)
    patcher = load_patcher(path) if options.checkpoint or os.path.exists(path) else Patcher(PatcherConfig(kind="space"))
    show(patcher, data, Recipe(options.block_size, options.starts, rows=0.0, full=0.0))


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")
    run(main)
