"""How likely a model finds a continuation: multiple choice by log-likelihood, and a cloze made of any text (Fast BLT §4.2).

Plain BLT and BLT-D alike are read through the causal mask. Letters in shape comments: n bytes of a choice, V vocabulary.
"""
import torch
from torch.nn.functional import log_softmax

from data import BOS, encode
from items import Choice, as_bytes
from stream import Stream
from terminal import BadInput


@torch.inference_mode()
def choice_log_likelihoods(model, patcher, item):
    """Log-likelihoods in nats of each choice after the query -> (list, Counters).

    The query is processed once; after each choice the stream rolls back to its end.
    """
    choices = [encode(as_bytes(choice)) for choice in item.choices]
    stream, sums = Stream(model, patcher, reach=max(map(len, choices)) + 1), []
    first = stream.extend([BOS, *encode(as_bytes(item.query))])[-1:]                      # (1, V)
    end = stream.length
    for ids in choices:
        logits = torch.cat([first, stream.extend(ids[:-1])]) if len(ids) > 1 else first   # (n, V)
        p = log_softmax(logits.double(), -1)
        sums.append(sum(p[i, id_].item() for i, id_ in enumerate(ids)))
        stream.rollback(end)
    return sums, stream.counters


def cloze(texts, seed=0, context=200, length=32):
    """Which of four pieces goes on here? The true one stands against three from elsewhere in held-out text: chance is 25 %."""
    pick = torch.Generator().manual_seed(seed)
    draw = lambda n: int(torch.randint(n, (), generator=pick))
    long = [t for t in texts if len(t) > 2 * (context + length)]
    if not long:
        raise BadInput(f"the cloze needs a held-out document of more than {2 * (context + length)} bytes: give --data with longer texts")
    while True:
        text = long[draw(len(long))]
        start = context + draw(len(text) - context - length)
        pieces = [text[start:start + length]]
        while len(pieces) < 4:
            other = long[draw(len(long))]
            place = draw(len(other) - length)
            pieces.append(other[place:place + length])
        gold = draw(4)
        pieces[0], pieces[gold] = pieces[gold], pieces[0]
        as_text = lambda data: data.decode("utf-8", "surrogateescape")
        yield Choice(as_text(text[start - context:start]), [as_text(p) for p in pieces], gold)


