"""How two outputs of one model compare."""

import torch

from data import BOS
from generate import ban
from stream import Stream


def near_tie(model, patcher, prompt, ids, others, sampling, tolerance=1e-3):
    """Do two greedy outputs part only where rounding decides? prompt, ids, others: without BOS.

    True if at their first difference the two best logits lie within `tolerance`, or at a byte made
    before it what the patcher compares with its threshold.
    """
    part = min(len(ids), len(others))
    for i, (a, b) in enumerate(zip(ids, others)):
        if a != b:
            part = i
            break
    text = [BOS, *prompt, *ids[:part]]
    logits = ban(Stream(model, patcher).prefill(text), sampling)
    best, second = logits.topk(2).values.tolist()
    scores = patcher.scores(patcher.entropies(torch.tensor(text)))
    if scores is not None:
        near = (scores - patcher.config.threshold).abs() < tolerance
        if near[1 + len(prompt) :].any():
            return True
    return best - second < tolerance
