"""Bytes in: ids, the default corpus, anyone's files and folders, the train/validation split.

A document is BOS + bytes + EOS. Letters in shape comments: B batch, N byte positions.
"""
import hashlib
import os
import sys
import sysconfig
from dataclasses import dataclass, field

import torch

from terminal import BadInput

PAD, BOS, EOS, MASK = 0, 1, 2, 3  # the official vocabulary leaves id 3 unused; MASK takes it, so that shapes agree
OFFSET = 4                        # byte b is id b + 4
VOCAB = 256 + OFFSET

# Folders of the standard library that are tests, GUI programs, tables or gone from newer Pythons.
NOT_IN_CORPUS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "idlelib", "tkinter", "turtledemo",
                 "encodings", "lib2to3", "distutils", "msilib", "__pycache__"}
VALIDATION_SHARE = 0.05


def encode(data):
    """Bytes -> list of ids, without BOS and EOS."""
    return [b + OFFSET for b in data]


def decode(ids):
    """Ids -> bytes; special ids are left out."""
    return bytes(i - OFFSET for i in ids if i >= OFFSET)


@dataclass
class Corpus:
    """Named documents and what identifies them."""
    documents: list = field(repr=False)  # of (name, bytes), sorted by name
    origin: str = ""

    @property
    def size(self):
        """Bytes in all documents together."""
        return sum(len(data) for _, data in self.documents)

    @property
    def sha256(self):
        """Hash over names and contents: two runs that print the same one trained on the same bytes."""
        digest = hashlib.sha256()
        for name, data in self.documents:
            digest.update(name.encode("utf-8", "surrogateescape") + b"\0" + len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()

    def describe(self):
        """One line that identifies the corpus."""
        return f"{self.origin}: {len(self.documents)} documents, {self.size:,} bytes, sha256 {self.sha256[:16]}"

    def split(self):
        """-> (train, validation), lists of bytes.

        Whole documents are told apart by a hash of their name (95/5), so the split never depends on order or on seeds.
        Where that leaves either side without its share (few documents), the last 5 % of each document is held out instead.
        """
        train, held_out = [], []
        for name, data in self.documents:
            chance = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big") / 2 ** 64
            (held_out if chance < VALIDATION_SHARE else train).append(data)
        share = sum(map(len, held_out)) / max(1, self.size)
        if not VALIDATION_SHARE / 2 <= share <= VALIDATION_SHARE * 4:
            cuts = [len(data) - max(1, int(len(data) * VALIDATION_SHARE)) for _, data in self.documents]
            train = [data[:cut] for (_, data), cut in zip(self.documents, cuts)]
            held_out = [data[cut:] for (_, data), cut in zip(self.documents, cuts)]
        return [d for d in train if d], [d for d in held_out if d]


def default_corpus():
    """The running Python's own standard library: every `.py` file (about 7.7 MB) and the prose of its language reference.

    Needs no download. Differs a little between Python versions: results name its hash.
    """
    root = sysconfig.get_paths()["stdlib"]
    documents = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(d for d in subfolders if d not in NOT_IN_CORPUS)
        for name in sorted(names):
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, root).replace(os.sep, "/")
            if name.endswith(".py") and relative != "pydoc_data/topics.py":
                with open(path, "rb") as file:
                    documents.append((relative, file.read()))
    try:
        from pydoc_data.topics import topics
        documents += [(f"pydoc_data/topics/{name}", text.encode()) for name, text in topics.items()]
    except ImportError:
        pass  # some distributions leave it out; the corpus is then that much smaller
    documents = sorted((name, data) for name, data in documents if data)
    return Corpus(documents, f"standard library of Python {sys.version_info.major}.{sys.version_info.minor}")


def read_corpus(paths):
    """Files, and folders with every regular file below them (hidden ones left out), as they are: any bytes.

    Raises BadInput for a path that does not exist or can't be read, and for a corpus with fewer than two bytes.
    """
    documents = []
    for path in paths:
        if os.path.isdir(path):
            for folder, subfolders, names in os.walk(path):
                subfolders[:] = sorted(d for d in subfolders if not d.startswith("."))
                documents += [(os.path.relpath(os.path.join(folder, n), path), os.path.join(folder, n))
                              for n in sorted(names) if not n.startswith(".")]
        elif os.path.exists(path):
            documents.append((os.path.basename(path), path))
        else:
            raise BadInput(f"no such file or folder: {path}")
    try:
        contents = []
        for name, path in documents:
            if os.path.isfile(path):
                with open(path, "rb") as file:
                    contents.append((name.replace(os.sep, "/"), file.read()))
    except OSError as problem:
        raise BadInput(f"can't read {problem.filename}: {problem.strerror}") from None
    corpus = Corpus(sorted((name, data) for name, data in contents if data), ", ".join(map(str, paths)))
    if corpus.size < 2:
        raise BadInput(f"nothing to train on in {corpus.origin}: {corpus.size} bytes; give files with text in them")
    return corpus


def document_ids(data):
    """Bytes of one document -> ids (N,) int64: BOS + bytes + EOS."""
    body = torch.frombuffer(bytearray(data), dtype=torch.uint8).long() + OFFSET if data else torch.empty(0, dtype=torch.long)
    return torch.cat([torch.tensor([BOS]), body, torch.tensor([EOS])])


class Crops:
    """Training crops of equal length from packed documents, in an order that only (seed, index) decides.

    Every epoch shifts the grid by a random phase and visits each crop once, so a run's data position is one number:
    how many crops it has taken.
    """

    def __init__(self, ids, closes, length, seed):
        """ids, closes: (total,) packed documents and where their patches close; length: positions predicted in a crop."""
        self.ids, self.closes, self.length, self.seed = ids, closes, length, seed
        self.per_epoch = (len(ids) - 1) // length - 1  # one less than fits leaves room for the phase
        if self.per_epoch < 1:
            raise BadInput(f"the training text has {len(ids)} ids, less than two windows of {length}: give more text or a smaller preset")
        self.order = (-1, None, 0)  # the epoch at hand: its number, its permutation and its phase

    def start(self, index):
        """Where crop number `index` of the run begins."""
        epoch, place = divmod(index, self.per_epoch)
        if self.order[0] != epoch:
            rng = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            permutation = torch.randperm(self.per_epoch, generator=rng).tolist()
            self.order = (epoch, permutation, int(torch.randint(self.length, (), generator=rng)))
        return self.order[1][place] * self.length + self.order[2]

    def batch(self, first, size):
        """Crops first..first+size-1 -> ids (B, N+1) and closes (B, N); a crop's first byte closes its own patch, as BOS does."""
        starts = [self.start(first + i) for i in range(size)]
        ids = torch.stack([self.ids[s:s + self.length + 1] for s in starts]).long()          # (B, N+1)
        closes = torch.stack([self.closes[s:s + self.length] for s in starts])               # (B, N)
        closes[:, 0] = True
        return ids, closes
