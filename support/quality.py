"""How good outputs and drafts of a model are, and how two outputs compare."""

import math
import os

import torch
import torch.nn.functional as F

from data import BOS, MASK, decode, encode
from generate import Sampling, ban, generate
from speculate import MODES
from stream import Stream


def near_tie(model, patcher, prompt, ids, others, sampling, tolerance=1e-3):
    """Do two greedy outputs part only where rounding decides? prompt, ids, others: without BOS.

    True if at their first difference the two best logits lie within `tolerance`, or at a byte made
    before it what the patcher compares with its threshold.
    """
    text = [BOS, *prompt, *os.path.commonprefix([ids, others])]
    best, second = ban(Stream(model, patcher).prefill(text), sampling).topk(2).values.tolist()
    ids = torch.tensor(text, device=patcher.model.head.weight.device)
    scores, gaps = patcher.scores(patcher.entropies(ids)), [best - second]
    if scores is not None:
        gaps += (scores - patcher.config.threshold).abs()[1 + len(prompt) :].tolist()
    return min(gaps) < tolerance


@torch.inference_mode()
def log_likelihood(stream, logits, ids):
    """Nats of ids behind what a Stream has taken in; logits (V,): of what comes next there."""
    # (n, V); the last id need not be processed
    rows = torch.cat([logits[None], stream.extend(ids[:-1])]) if len(ids) > 1 else logits[None]
    rows, targets = rows[: len(ids)].cpu().double(), torch.tensor(ids, dtype=torch.long)
    return -F.cross_entropy(rows, targets, reduction="sum").item()


def output_bits(model, patcher, prompt, ids):
    """Bits per byte of an output under the model's own causal reading; ids without BOS."""
    stream = Stream(model, patcher)
    nats = log_likelihood(stream, stream.prefill([BOS, *prompt]), ids)
    return -nats / math.log(2) / len(ids)


def distinct_4grams(outputs):
    """Share of the 4-grams of several outputs that differ: looping text flatters acceptance."""
    grams = [tuple(ids[i : i + 4]) for ids in outputs for i in range(len(ids) - 3)]
    return len(set(grams)) / max(1, len(grams))


def written(model, patcher, length, prompt=b"def "):
    """What a model writes behind a prompt, as bytes; sampled, as greedy text loops."""
    sampling = Sampling(temperature=0.8, top_p=0.95)
    made = generate(model, patcher, encode(prompt), length, sampling=sampling)
    return prompt + decode(made.ids)


@torch.no_grad()
def masked_accuracy(model, patcher, documents, block_size, stride=61):
    """How well a wholly masked block is guessed behind the end of the text, as in generation.

    Every `stride` bytes of the starts of a few documents (ids), which are enough -> accuracy and
    loss in bits, by position in the block.
    """
    hits, nats, count = torch.zeros(block_size), torch.zeros(block_size), 0
    for ids in documents[:20]:
        stream, ids = Stream(model, patcher), ids[:4000].tolist()
        for start in range(stride, len(ids) - block_size, stride):
            stream.extend(ids[start - stride : start])
            logits = stream.decode(block=[MASK] * block_size).float().cpu()
            truth = torch.tensor(ids[start : start + block_size])
            hits += logits.argmax(-1) == truth
            nats += F.cross_entropy(logits, truth, reduction="none")
            count += 1
    count = max(1, count)
    return (hits / count).tolist(), [n / math.log(2) for n in (nats / count).tolist()]


def identical(mode, model, patcher, prompt, plain, made, options):
    """Is greedy output plain BLT's? True, False, "tie" where rounding decides, None if sampled.

    Verified modes must be identical (Fast BLT §5): a False among them is a bug, and would show
    here. Sampled output has plain BLT's distribution instead, which one text can't show.
    """
    if options.temperature:
        return None
    if made.ids == plain.ids or not MODES[mode].verified:
        return made.ids == plain.ids
    sampling = Sampling(ignore_eos=options.ignore_eos)
    return near_tie(model, patcher, prompt, plain.ids, made.ids, sampling) and "tie"
