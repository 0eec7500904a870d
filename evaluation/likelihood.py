"""How likely a model finds a continuation: multiple choice, and a cloze made of any text.

Plain BLT and BLT-D alike are read through the causal mask (Fast BLT §4.2). Letters in shape
comments: n bytes of a choice, V vocabulary.
"""

import torch

from data import BOS, encode
from evaluation.items import Choice, as_bytes, as_text
from stream import Stream
from support.terminal import BadInput


@torch.inference_mode()
def choice_log_likelihoods(model, patcher, item):
    """Log-likelihoods in nats of each choice after the query -> (list, Counters).

    The query is processed once; after each choice the stream rolls back to its end.
    """
    choices = [encode(as_bytes(choice)) for choice in item.choices]
    stream = Stream(model, patcher, max_rollback=max(map(len, choices)) + 1)
    # (1, V)
    first = stream.extend([BOS, *encode(as_bytes(item.query))])[-1:]
    end, sums = stream.length, []
    for ids in choices:
        # (n, V); the last byte of a choice need not be processed
        logits = torch.cat([first, stream.extend(ids[:-1])]) if len(ids) > 1 else first
        nats = logits.double().log_softmax(-1)
        sums.append(sum(nats[i, id_].item() for i, id_ in enumerate(ids)))
        stream.rollback(end)
    return sums, stream.counters


def cloze(texts, seed=0, context=200, length=32):
    """Which of four pieces goes on here? -> endless Choices, made of a list of bytes.

    The true piece stands against three from elsewhere in the texts: chance is 25 %.
    """
    generator = torch.Generator().manual_seed(seed)

    def pick(n):
        return int(torch.randint(n, (), generator=generator))

    least = 2 * (context + length)
    long = [text for text in texts if len(text) > least]
    if not long:
        raise BadInput(
            f"the cloze needs a held-out document of more than {least} bytes: "
            "give --data with longer texts"
        )
    while True:
        text = long[pick(len(long))]
        start = context + pick(len(text) - context - length)
        pieces = [text[start : start + length]]
        while len(pieces) < 4:
            other = long[pick(len(long))]
            place = pick(len(other) - length)
            pieces.append(other[place : place + length])
        gold = pick(4)
        pieces[0], pieces[gold] = pieces[gold], pieces[0]
        query = as_text(text[start - context : start])
        yield Choice(query, [as_text(piece) for piece in pieces], gold)
