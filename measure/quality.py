"""How good outputs and drafts of a model are, and how two outputs compare."""

import math
import os

import torch
import torch.nn.functional as F

from data import BOS, MASK, decode, encode
from generate import Sampling, ban, generate
from speculate import MODES


def near_tie(machine, prompt, ids, others, sampling, tolerance=1e-3):
    """Do two greedy outputs part only where rounding decides? prompt, ids, others: without BOS.

    True if at their first difference the two best logits lie within `tolerance`, or at a byte made
    before it what the patcher compares with its threshold.
    """
    text = [BOS, *prompt, *os.path.commonprefix([ids, others])]
    logits = ban(machine.state().extend(text)[-1], sampling)
    best, second = logits.topk(2).values.tolist()
    gaps = [best - second]
    patcher = machine.patcher
    scores = patcher.scores(patcher.entropies(torch.tensor(text, device=machine.model.device)))
    if scores is not None:
        of_output = scores[1 + len(prompt) :]
        gaps += (of_output - patcher.config.threshold).abs().tolist()
    return min(gaps) < tolerance


@torch.inference_mode()
def bits_per_byte(new_state, documents, show=None):
    """Bits that a model needs for each byte of `documents` (ids, BOS first), EOS in the sum.

    Every byte is predicted once, from all that precedes it in its document. new_state() -> an empty
    state; documents: anything with a length and slices, of which one piece at a time is made; show:
    called with the bytes of each piece done. None where there is not one byte.
    """
    nats = 0.0
    count = 0
    piece = 256
    for document in documents:
        state = new_state()
        for i in range(0, len(document) - 1, piece):
            # The last piece ends with what is predicted last, and is not taken in.
            ids = document[i : i + piece + 1].long()
            # (n, V)
            logits = state.extend(ids[:-1].tolist()).float().cpu()
            nats += F.cross_entropy(logits, ids[1:], reduction="sum").item()
            if show:
                show(len(ids) - 1)
        count += len(document) - 2
    return nats / math.log(2) / count if count else None


@torch.inference_mode()
def log_likelihood(state, logits, ids):
    """Nats of ids behind what a state holds, which takes all but the last of them in.

    logits (V,): of what comes next there.
    """
    rows = logits[None]
    if len(ids) > 1:  # the last id need not be taken in
        rows = torch.cat([rows, state.extend(ids[:-1])])
    # (n, V)
    rows = rows[: len(ids)].cpu().double()
    targets = torch.tensor(ids, dtype=torch.long)
    return -F.cross_entropy(rows, targets, reduction="sum").item()


@torch.inference_mode()
def output_bits(machine, prompt, ids):
    """Bits per byte of an output under the model's own causal reading; None where there is none.

    prompt, ids: without BOS.
    """
    if not ids:
        return None
    state = machine.state()
    nats = log_likelihood(state, state.extend([BOS, *prompt])[-1], ids)
    return -nats / math.log(2) / len(ids)


def distinct_4grams(outputs):
    """Share of the 4-grams of several outputs that differ: looping text flatters acceptance.

    None where no output has four ids.
    """
    grams = [tuple(ids[i : i + 4]) for ids in outputs for i in range(len(ids) - 3)]
    return len(set(grams)) / len(grams) if grams else None


def written(machine, length, prompt):
    """What a model writes behind a prompt, as bytes; sampled, as greedy text loops."""
    sampling = Sampling(temperature=0.8, top_p=0.95)
    made = generate(machine.state(), encode(prompt), length, sampling=sampling)
    return prompt + decode(made.ids)


@torch.inference_mode()
def masked_accuracy(machine, documents, block_size, stride=61):
    """How well a wholly masked block is guessed behind the end of the text, as in generation.

    Every `stride` bytes of the starts of a few documents (ids), which are enough -> accuracy and
    loss in bits, lists by position in the block; None and None where no block fits.
    """
    hits = torch.zeros(block_size)
    nats = torch.zeros(block_size)
    count = 0
    for document in documents[:20]:
        ids = document[:4000].tolist()
        state = machine.state()
        for start in range(stride, len(ids) - block_size, stride):
            state.advance(ids[start - stride : start])
            rows = state.peek(block=[MASK] * block_size)[-block_size:]
            # (K, V)
            logits = state.model.decoder.head(rows).float().cpu()
            truth = torch.tensor(ids[start : start + block_size])
            # Generation draws no PAD, BOS or MASK, so none of them is a guess.
            hits += ban(logits, Sampling()).argmax(-1) == truth
            nats += F.cross_entropy(logits, truth, reduction="none")
            count += 1
    if not count:
        return None, None
    return (hits / count).tolist(), (nats / count / math.log(2)).tolist()


def identical(mode, machine, prompt, plain, made, options):
    """Is greedy output plain BLT's? True, False, "tie" where rounding decides, None if sampled.

    Verified modes must be identical (Fast BLT §5): a False among them is a bug, and would show
    here. Sampled output has plain BLT's distribution instead, which one text can't show.
    """
    if options.temperature:
        return None
    if made.ids == plain.ids or not MODES[mode].verified:
        return made.ids == plain.ids
    sampling = Sampling(ignore_eos=options.ignore_eos)
    tie = near_tie(machine, prompt, plain.ids, made.ids, sampling)
    return "tie" if tie else False
