"""How likely a model finds what is written: bits per byte, multiple choice, a cloze of any text.

Plain BLT and BLT-D alike are read through the causal mask (Fast BLT §4.2).
"""

import lzma
import sys
import time
from itertools import islice

from tqdm import tqdm

from data import BOS, corpus_of, document_ids, encode
from evaluation.benchmarks import read_items
from evaluation.tasks import Choice, as_bytes, mean, picker, report, show
from generate import bits_per_byte, finish
from stream import Stream
from support import checkpoint
from support.quality import log_likelihood, masked_accuracy
from support.terminal import BadInput, progress, table

COLUMNS = """
text s text | bytes d bytes | bits_per_byte .3f bits per byte | xz_bits_per_byte .3f xz -6, as one |
seconds .1f seconds
"""


def held_out_texts(options):
    """--data whole, or the validation split of the checkpoint's corpus -> (list of bytes, name)."""
    if options.data:
        corpus = corpus_of(options.data)
        return [data for _, data in corpus.documents], corpus.origin
    saved = checkpoint.load(checkpoint.find(options.checkpoint))
    # An exported checkpoint keeps only where its text came from, one of training all it was asked.
    asked = saved if "data" in saved else saved.get("asked")
    if not asked:
        raise BadInput("this checkpoint does not know what it was trained on: give --data")
    corpus = corpus_of(asked["data"])
    if corpus.sha256 != saved["corpus"]["sha256"]:
        differs = f"{corpus.origin} differs from what this checkpoint was trained on"
        print(f"note: {differs}; some of it may not be held out", file=sys.stderr)
    return corpus.split()[1], f"validation split of {corpus.origin}"


def evaluate_bpb(model, patcher, options):
    """Bits per byte under the causal mask, beside xz.

    Of a BLT-D also the loss of masked blocks by position.
    """
    texts, name = held_out_texts(options)
    texts = texts[: options.limit]
    documents, size = [document_ids(text) for text in texts], sum(map(len, texts))
    began = time.perf_counter()
    # Every document ends with EOS.
    with progress("bits per byte", size + len(texts)) as bar:
        bits = bits_per_byte(model, patcher, documents, bar.update)
    xz = 8 * len(lzma.compress(b"".join(texts), preset=6)) / size
    row = {"text": name, "bytes": size, "seconds": time.perf_counter() - began}
    row |= {"bits_per_byte": bits, "xz_bits_per_byte": xz}
    note, K = "", model.config.block_size
    if K:
        accuracy, masked_bits = masked_accuracy(model, patcher, documents, K)
        row |= {"masked_bits_by_position": masked_bits, "masked_accuracy_by_position": accuracy}
        header = ["position in a wholly masked block", *range(1, K + 1)]
        shares = ["right", *(f"{share:.0%}" for share in accuracy)]
        losses = ["bits per byte", *(f"{bits:.2f}" for bits in masked_bits)]
        note = "\n\n" + table(header, [losses, shares])
    show(row, COLUMNS, options, note)


def evaluate_likelihood(model, patcher, options):
    """Multiple choice by the log-likelihood of each choice, as a sum and per byte.

    The sum favours short choices, the mean over bytes does not; publications report either.
    """
    if options.set == "cloze":
        items = list(islice(cloze(held_out_texts(options)[0]), options.limit))
    else:
        items = read_items(options.set, options.items, options.limit)
    right, right_by_byte, made = [], [], []
    for item in tqdm(items, desc=options.set, leave=False):
        sums, generation = choice_log_likelihoods(model, patcher, item)
        made.append(generation)
        by_byte = [x / max(1, len(as_bytes(choice))) for x, choice in zip(sums, item.choices)]
        right.append(sums.index(max(sums)) == item.gold)
        right_by_byte.append(by_byte.index(max(by_byte)) == item.gold)
    score = {**mean("accuracy", right), **mean("accuracy_per_byte", right_by_byte)}
    report(score, made, options, set=options.set)


def choice_log_likelihoods(model, patcher, item):
    """Log-likelihoods in nats of each choice after the query -> (list, Generation of no bytes)."""
    began, sums = time.perf_counter(), []
    choices = [encode(as_bytes(choice)) for choice in item.choices]
    stream = Stream(model, patcher, max_rollback=max(map(len, choices)) + 1)
    logits = stream.extend([BOS, *encode(as_bytes(item.query))])[-1]
    end = stream.length
    for ids in choices:
        sums.append(log_likelihood(stream, logits, ids))
        stream.rollback(end)
    return sums, finish(stream, [], began)


def cloze(texts, seed=0, context=200, length=32):
    """Which of four pieces of the texts, lists of bytes, goes on here? -> endless Choices."""
    pick, least = picker(seed), 2 * (context + length)
    long = [text for text in texts if len(text) > least]
    if not long:
        needed = f"a held-out document of more than {least} bytes"
        raise BadInput(f"the cloze needs {needed}: give --data with longer texts")
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
        parts = (text[start - context : start], *pieces)
        query, *choices = (part.decode("utf-8", "surrogateescape") for part in parts)
        yield Choice(query, choices, gold)
