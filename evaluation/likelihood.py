"""How likely a model finds what is written: bits per byte, multiple choice, a cloze of any text.

Plain BLT and BLT-D alike are read through the causal mask (Fast BLT §4.2).
"""

import lzma
import statistics
import time
from itertools import islice

from tqdm import tqdm

from data import BOS, DocumentIds, corpus_of, encode
from evaluation.benchmarks import read_items
from evaluation.tasks import Choice, as_bytes, mean, picker, report, show
from measure.quality import bits_per_byte, log_likelihood, masked_accuracy
from support import checkpoint
from support.generation import Generation
from support.terminal import BadInput, Column, note, progress, table

PIECE = 1 << 20  # bytes of a text that are packed at once

COLUMNS = [
    Column("text", "s", "text"),
    Column("bytes", "d", "bytes"),
    Column("bits_per_byte", ".3f", "bits per byte"),
    Column("xz_bits_per_byte", ".3f", "xz -6, as one"),
    Column("seconds", ".1f", "seconds"),
]


# ---- bits per byte


def held_out_texts(options):
    """--data whole, or the validation split of the checkpoint's corpus -> (list of Texts, name)."""
    if options.data:
        corpus = corpus_of(options.data, options.separator)
        return [data for _, data in corpus.documents], corpus.origin
    saved = checkpoint.load(checkpoint.find(options.checkpoint))
    # An exported checkpoint keeps only where its text came from, one of training all it was asked.
    asked = saved if "data" in saved else saved.get("asked")
    if not asked:
        raise BadInput("this checkpoint does not know what it was trained on: give --data")
    # Files were never split before there was a separator.
    corpus = corpus_of(asked["data"], asked.get("separator", ""), asked.get("held_out"))
    if not corpus.is_that_of(saved["corpus"]):
        differs = f"{corpus.origin} differs from what this checkpoint was trained on"
        note(f"{differs}; some of it may not be held out")
    _, held_out = corpus.split()
    if corpus.held_out:
        return held_out, corpus.held_out.origin
    return held_out, f"validation split of {corpus.origin}"


def xz_size(texts):
    """Bytes of all texts as one file of xz -6. Of a long one a piece at a time is read."""
    packer = lzma.LZMACompressor(preset=6)
    size = 0
    for text in texts:
        for start in range(0, len(text), PIECE):
            size += len(packer.compress(bytes(text[start : start + PIECE])))
    return size + len(packer.flush())


def evaluate_bpb(machine, options):
    """Bits per byte under the causal mask, beside xz.

    Of a BLT-D also the loss of masked blocks by position.
    """
    texts, name = held_out_texts(options)
    texts = texts[: options.limit]
    size = sum(map(len, texts))
    documents = [DocumentIds(text) for text in texts]
    began = time.perf_counter()
    # Every document ends with EOS, which is predicted too.
    with progress("bits per byte", size + len(texts)) as bar:
        bits = bits_per_byte(machine.state, documents, bar.update)
    row = {
        "text": name,
        "bytes": size,
        "seconds": time.perf_counter() - began,
        "bits_per_byte": bits,
        "xz_bits_per_byte": 8 * xz_size(texts) / size,
    }
    note = ""
    K = machine.model.config.block_size
    if K:
        accuracy, masked_bits = masked_accuracy(machine, documents, K)
        row["masked_bits_by_position"] = masked_bits
        row["masked_accuracy_by_position"] = accuracy
        if accuracy is not None:
            note = "\n\n" + table_of_positions(accuracy, masked_bits)
    return show(row, COLUMNS, options, note)


def table_of_positions(accuracy, bits):
    """How well each position of a masked block is guessed, as a table."""
    header = ["position in a wholly masked block", *range(1, len(bits) + 1)]
    losses = ["bits per byte", *(f"{x:.2f}" for x in bits)]
    shares = ["right", *(f"{x:.0%}" for x in accuracy)]
    return table(header, [losses, shares])


# ---- which of several choices goes on


def evaluate_likelihood(machine, options):
    """Multiple choice by the log-likelihood of each choice, as a sum and per byte.

    The sum favours short choices, the mean over bytes does not; publications report either.
    "accuracy" is lm-evaluation-harness' acc. "accuracy_per_byte" is its acc_bytes, which divides by
    the bytes of a choice without the space in front of it: in ASCII its acc_norm too, which divides
    by characters.
    """
    if options.set == "cloze":
        texts, _ = held_out_texts(options)
        items = list(islice(cloze(texts), options.limit))
    else:
        items = read_items(options.set, options.items, options.limit)
    right = []
    right_by_byte = []
    made = []
    for item in tqdm(items, desc=options.set, leave=False):
        sums, generation = choice_log_likelihoods(machine, item)
        by_byte = [nats / max(1, size) for nats, size in zip(sums, item.sizes())]
        right.append(sums.index(max(sums)) == item.gold)
        right_by_byte.append(by_byte.index(max(by_byte)) == item.gold)
        made.append(generation)
    score = {**mean("accuracy", right), **mean("accuracy_per_byte", right_by_byte)}
    # What guessing gets right, on average
    chance = statistics.mean(1 / len(item.choices) for item in items)
    return report({"set": options.set}, score, made, options, chance)


def choice_log_likelihoods(machine, item):
    """Log-likelihoods in nats of each choice after the query -> (list, Generation of no bytes)."""
    choices = [encode(as_bytes(choice)) for choice in item.choices]
    began = time.perf_counter()
    # Each choice is taken back, the longest too.
    state = machine.state(max_rollback=max(map(len, choices)) + 1)
    logits = state.extend([BOS, *encode(as_bytes(item.query))])[-1]
    end = state.length
    sums = []
    for ids in choices:
        sums.append(log_likelihood(state, logits, ids))
        state.rollback(end)
    seconds = time.perf_counter() - began
    sizes = {**state.model.sizes(), "patcher": state.patcher.size()}
    return sums, Generation([], state.counters, seconds, sizes)


def cloze(texts, seed=0, context=200, length=32):
    """Which of four pieces of the texts, bytes or Texts, goes on here? -> endless Choices."""
    pick = picker(seed)
    least = 2 * (context + length)
    long = [text for text in texts if len(text) > least]
    if not long:
        needed = f"a held-out document of more than {least} bytes"
        raise BadInput(f"the cloze needs {needed}: give --data with longer texts")
    if len(long) < len(texts):
        short = len(texts) - len(long)
        note(f"the cloze leaves out {short} of {len(texts)} documents: {least} bytes are too few")
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
        parts = [bytes(part) for part in (text[start - context : start], *pieces)]
        query, *choices = (part.decode("utf-8", "surrogateescape") for part in parts)
        # Nothing stands between the two: a space in front is one of the text.
        yield Choice(query, choices, gold, separator="")
