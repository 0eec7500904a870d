"""Finding the patches of whole corpora: many documents a pass, and the threshold they calibrate.

The same entropies and patches as those of patcher.Patcher, which takes a piece of one document at
a time. What makes it quick: attention over windows alone, and passes whose rows fit into a cache.

Letters in shape comments: B pieces of documents, N positions of a piece, H heads, C head width,
c positions of a chunk, w of a window.
"""

import math
from collections import defaultdict
from typing import NamedTuple

import torch
import torch.nn.functional as F

from data import VOCAB
from layers import Rows, attend, rotary, sees
from patcher import entropy, fill_patches

CHUNK = 64  # positions whose attention is one product; lengths of pieces are multiples of it
# Rows a pass, by the kind of device. A CPU's cache holds what a small model makes of 1024; a GPU
# takes 128 pieces of so many at once.
ROWS = {"cpu": 1 << 10, "cuda": 1 << 17, "mps": 1 << 15}

# ---- entropies


class WindowView:
    """As layers.View of N clean rows, in chunks: each sees itself and the window in front of it.

    So there are N (w + c) scores, not N N.
    """

    def __init__(self, n, window, head_width, rope_base, like):
        """n: a multiple of CHUNK; like: a parameter of the model."""
        self.window = window
        # Rows that are not there stand in front, as many as the first chunk would see.
        rows = Rows.clean(window + n, like.device)
        there = torch.arange(window + n, device=like.device) >= window
        self.rope = rotary(rows.position[window:], head_width, rope_base, like.dtype)
        # (N / c, c, 1) and (N / c, 1, w + c)
        query = Rows(*(x[window:].view(-1, CHUNK, 1) for x in rows))
        key = Rows(*(self.windows(x)[:, None] for x in rows))
        seen = sees(query, key, window) & self.windows(there)[:, None]
        # (1, N / c, c, w + c), 0 or -inf: kernels of CPUs want it so
        mask = torch.zeros(seen.shape, dtype=like.dtype, device=like.device)
        self.mask = mask.masked_fill(~seen, -math.inf)[None]

    def windows(self, x):
        """Cut x (..., w + N) into what each chunk sees: (..., N / c, w + c), views of x."""
        return x.unfold(-1, self.window + CHUNK, CHUNK)

    def attend(self, q, k, v, depth):
        """q, k, v (B, H, N, C) -> (B, H, N, C)."""
        # (B, H, N, C) -> (B H, N / c, c, C)
        chunks = q.unflatten(2, (-1, CHUNK)).flatten(0, 1)
        y = attend(chunks, self.seen_by_chunks(k), self.seen_by_chunks(v), self.mask)
        return y.view(q.shape)

    def seen_by_chunks(self, x):
        """Keys or values (B, H, N, C) -> those that each chunk sees (B H, N / c, w + c, C)."""
        # (B, H, w + N, C)
        x = F.pad(x, (0, 0, self.window, 0))
        # (B H, C, w + N) -> (B H, C, N / c, w + c)
        parts = self.windows(x.flatten(0, 1).transpose(1, 2))
        return parts.permute(0, 2, 3, 1)


class Piece(NamedTuple):
    """Positions of a document that go through the model in one row of a pass."""

    document: int  # its number
    first: int  # where the row begins: as far in front as `start` can see
    start: int  # from here on its entropies are kept
    stop: int


def pieces_of(documents, lead):
    """Documents cut into Pieces -> {N: those that take N rows with their padding}."""
    step = max(1024, 4 * lead)  # the longer, the fewer rows are run for what others see of them
    found = defaultdict(list)
    for number, ids in enumerate(documents):
        for start in range(0, len(ids), step):
            piece = Piece(number, max(0, start - lead), start, min(len(ids), start + step))
            length = piece.stop - piece.first
            found[length + -length % CHUNK].append(piece)
    return found


@torch.no_grad()
def entropies_of(patcher, documents):
    """Patcher.entropies of many documents (ids, (N,) each) -> list of (N,), on its device."""
    weight = patcher.model.head.weight
    found = [torch.zeros(len(ids), dtype=weight.dtype, device=weight.device) for ids in documents]
    if not patcher.needs_entropy:
        return found
    c = patcher.config
    for n, pieces in pieces_of(documents, patcher.model.receptive_field).items():
        view = WindowView(n, c.window, c.width // c.heads, c.rope_base, weight)
        batch = max(1, ROWS.get(weight.device.type, ROWS["cpu"]) // n)
        for i in range(0, len(pieces), batch):
            group = pieces[i : i + batch]
            # Padding stands behind a piece, where nothing sees it.
            ids = torch.zeros(len(group), n, dtype=torch.long)
            for row, piece in zip(ids, group):
                text = documents[piece.document][piece.first : piece.stop]
                row[: len(text)] = text
            H = entropy(patcher.model(ids.to(weight.device), view))
            for row, piece in zip(H, group):
                kept = row[piece.start - piece.first : piece.stop - piece.first]
                found[piece.document][piece.start : piece.stop] = kept
    return found


# ---- boundaries


class Joined:
    """Documents behind each other, and what their patches depend on: ids and entropies."""

    def __init__(self, patcher, documents):
        """documents: list of ids (N,), BOS first; at least one."""
        self.patcher = patcher
        self.lengths = [len(ids) for ids in documents]
        self.entropies = torch.cat(entropies_of(patcher, documents))
        self.ids = torch.cat(documents).to(self.entropies.device)
        lengths = torch.tensor(self.lengths, device=self.ids.device)
        self.starts = lengths.cumsum(0) - lengths

    def closes(self):
        """Patcher.closes of all documents, by the threshold that the patcher has now: (N,) bool."""
        signals = self.patcher.signals(self.ids, self.entropies)
        # The first byte of a document closes its patch, so nothing is counted from one to the next.
        signals[self.starts] = True
        return fill_patches(signals, self.patcher.config.max_patch)

    def mean_patch(self):
        """Bytes a patch, as the function below says."""
        count = int(self.closes().sum()) - len(self.lengths)
        return (len(self.ids) - len(self.lengths)) / count if count else None


@torch.no_grad()
def closes_of(patcher, documents):
    """Patcher.closes of many documents (ids, (N,) each, BOS first) -> list of (N,) bool."""
    if not documents:
        return []
    joined = Joined(patcher, documents)
    return list(joined.closes().split(joined.lengths))


@torch.no_grad()
def closes_between(patcher, read, start, stop, back=1 << 14):
    """Patcher.closes of positions start..stop-1 of a long document; read(start, stop) -> its ids.

    Patches are counted off from the last signal, looked for in `back` positions, then in more.
    """
    max_patch = patcher.config.max_patch
    if patcher.config.kind == "stride":  # no signals: patches are counted from the first byte on
        first = start - start % max_patch if max_patch else 0
        (closes,) = closes_of(patcher, [read(first, stop)])
        return closes[start - first :]
    lead = patcher.model.receptive_field + 1
    while True:
        first = max(0, start - lead - back)
        ids = read(first, stop)
        (H,) = entropies_of(patcher, [ids])
        signals = patcher.signals(ids.to(H.device), H)
        # The first of them did not have all that stands in front.
        skip = lead if first else 0
        if first == 0 or signals[skip : start - first].any():
            closes = fill_patches(signals[skip:], max_patch)
            return closes[start - first - skip :]
        back *= 2


# ---- how long patches are


def mean_patch(closes):
    """Bytes a patch over a list of closes (N,), BOS and its patch left out; None without any."""
    size = sum(len(c) - 1 for c in closes)
    count = sum(int(c[1:].sum()) for c in closes)
    return size / count if count else None


@torch.no_grad()
def calibrate(patcher, documents, target=4.0):
    """Set the threshold so that patches on `documents` hold `target` bytes on average -> that mean.

    documents: list of ids (N,), BOS first. Bisection: the mean never falls when the threshold
    rises. It is None where no patch closes.
    """
    joined = Joined(patcher, documents)
    if not patcher.needs_entropy:
        return joined.mean_patch()

    def mean_at(threshold):
        patcher.config.threshold = threshold
        return joined.mean_patch()

    # Entropies, and their differences, lie between these.
    low = -math.log(VOCAB)
    high = math.log(VOCAB)
    for _ in range(40):
        middle = (low + high) / 2
        mean = mean_at(middle)
        if mean is not None and mean < target:
            low = middle
        else:
            high = middle
    return mean_at(high)
