"""Bytes in: ids, the default corpus, anyone's files and folders, the split, training crops.

A document is BOS + bytes + EOS. Run it to see what would be trained on:

    python data.py                  # the default corpus
    python data.py my_notes/        # files and folders of yours

Letters in shape comments: B batch, N byte positions.
"""

import functools
import hashlib
import os
import sys
import sysconfig
from dataclasses import dataclass, field
from itertools import accumulate
from operator import itemgetter

import torch
from tqdm import tqdm

from support.terminal import BadInput, FileText, Parser, read_file, run, visible

# The official vocabulary leaves id 3 unused; MASK takes it, so that official weights keep their
# shapes. Byte b is id b + OFFSET.
PAD, BOS, EOS, MASK = 0, 1, 2, 3
OFFSET = 4
VOCAB = 256 + OFFSET

# Of the standard library: tests, GUI programs, tables, what is gone from newer Pythons, and the
# language reference, whose pages are documents of their own.
NOT_IN_CORPUS = {
    *("test", "tests", "idle_test", "site-packages", "dist-packages", "idlelib", "tkinter"),
    *("turtledemo", "encodings", "lib2to3", "distutils", "msilib", "__pycache__", "topics.py"),
}
VALIDATION_SHARE = 0.05
VALIDATION_BYTES = 1 << 20  # of what is held out more is not looked at
IN_MEMORY = 1 << 28  # bytes of a corpus; what comes behind them is read where it is needed


def encode(data):
    """Bytes -> list of ids, without BOS and EOS."""
    return [b + OFFSET for b in data]


def decode(ids):
    """Ids -> bytes; special ids are left out."""
    return bytes(i - OFFSET for i in ids if i >= OFFSET)


def document_ids(data, start=0, stop=None):
    """The bytes of one document -> ids BOS + bytes + EOS, or start..stop-1 of them, int16."""
    stop = len(data) + 2 if stop is None else stop
    ids = torch.full((stop - start,), BOS, dtype=torch.int16)
    if text := bytes(data[max(0, start - 1) : stop - 1]):
        first = int(start == 0)
        text = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        ids[first : first + len(text)] = text.short() + OFFSET
    if stop == len(data) + 2:
        ids[-1] = EOS
    return ids


# ---- corpora


@dataclass
class Corpus:
    """Named documents and what identifies them."""

    documents: list = field(repr=False)  # of (name, bytes or FileText), sorted by name
    origin: str = ""

    @property
    def size(self):
        """Bytes in all documents together."""
        return sum(len(data) for _, data in self.documents)

    @functools.cached_property
    def sha256(self):
        """Hash over names and contents: runs that print the same one trained on the same bytes."""
        digest = hashlib.sha256()
        for name, data in self.documents:
            digest.update(name_bytes(name) + b"\0" + len(data).to_bytes(8, "little"))
            for start in tqdm(range(0, len(data), 1 << 20), "hashing", leave=False, delay=2):
                digest.update(bytes(data[start : start + (1 << 20)]))
        return digest.hexdigest()

    def describe(self):
        """One line that identifies the corpus."""
        size = f"{len(self.documents)} documents, {self.size:,} bytes"
        return f"{self.origin}: {size}, sha256 {self.sha256[:16]}"

    def split(self):
        """-> (train, validation), lists of bytes or FileTexts; of validation some is enough.

        A hash of its name decides for each document (95/5). Where that leaves either side without
        its share (few documents), the last 5 % of each document is held out instead.
        """
        train, held_out = [], []
        for name, data in self.documents:
            (held_out if name_chance(name) < VALIDATION_SHARE else train).append(data)
        share = sum(map(len, held_out)) / max(1, self.size)
        if not VALIDATION_SHARE / 2 <= share <= VALIDATION_SHARE * 4:
            cuts = [(data, max(1, int(len(data) * VALIDATION_SHARE))) for _, data in self.documents]
            train, held_out = [d[:-n] for d, n in cuts], [d[-n:] for d, n in cuts]
        before = accumulate(map(len, held_out), initial=0)
        held_out = [d[: max(0, VALIDATION_BYTES - n)] for d, n in zip(held_out, before)]
        return [d for d in train if len(d)], [d for d in held_out if len(d)]


def name_bytes(name):
    """A file name as bytes, those that are no UTF-8 too."""
    return name.encode("utf-8", "surrogateescape")


def name_chance(name):
    """A number in [0, 1) that only the name decides."""
    return int.from_bytes(hashlib.sha256(name_bytes(name)).digest()[:8], "big") / 2**64


def default_corpus():
    """The running Python's own standard library: every `.py` file and its language reference.

    Needs no download. Differs a little between Python versions, so results name its hash.
    """
    documents = documents_below(sysconfig.get_paths()["stdlib"], NOT_IN_CORPUS, ".py")
    try:
        from pydoc_data.topics import topics

        documents += [(f"pydoc_data/topics/{name}", text.encode()) for name, text in topics.items()]
    except ImportError:
        pass  # some distributions leave it out; the corpus is then that much smaller
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Corpus(sorted(documents), f"standard library of Python {version}")


def documents_below(path, leave_out=(), ending=""):
    """A file, or all visible regular ones below a folder -> (name, bytes) of each that has any.

    leave_out: names of files and folders. Raises BadInput for what can't be read.
    """

    def kept(names):
        return [name for name in names if name[0] != "." and name not in leave_out]

    if not os.path.exists(path):
        raise BadInput(f"no such file or folder: {path}")
    found, documents, size = [path], [], 0
    for folder, subfolders, names in os.walk(path):
        subfolders[:] = kept(subfolders)
        found += [os.path.join(folder, name) for name in kept(names) if name.endswith(ending)]
    top = path if os.path.isdir(path) else os.path.dirname(path)
    for whole in filter(os.path.isfile, found):
        about = os.stat(whole)
        size += about.st_size
        data = FileText(whole, 0, about.st_size, about.st_mtime_ns)
        if size <= IN_MEMORY:
            data = read_file(whole, "the text")
        if len(data):
            documents.append((os.path.relpath(whole, top).replace(os.sep, "/"), data))
    return documents


def corpus_of(paths):
    """The corpus that `--data` names, the default one for None: files and folders as they are.

    Raises BadInput for what does not exist, can't be read, or has fewer than two bytes in all.
    """
    if paths is None:
        return default_corpus()
    documents = [document for path in paths for document in documents_below(path)]
    corpus = Corpus(sorted(documents, key=itemgetter(0)), ", ".join(map(str, paths)))
    if corpus.size < 2:
        found = f"{corpus.size} bytes; give files with text in them"
        raise BadInput(f"nothing to train on in {corpus.origin}: {found}")
    return corpus


# ---- training crops


class Crops:
    """Training crops of equal length from packed documents, in an order (seed, index) decides.

    Every epoch shifts the grid by a random phase and visits each crop once, so a run's position
    in its data is one number: how many crops it has taken.
    """

    def __init__(self, ids, closes, length, seed):
        """ids (total,) packed documents, closes (total,) where their patches close, or None.

        Both may be anything with slices. length: positions predicted in a crop. Raises BadInput for
        less text than two crops.
        """
        self.ids, self.closes, self.length, self.seed = ids, closes, length, seed
        self.per_epoch = (len(ids) - 1) // length - 1  # one less than fits leaves room for a phase
        if self.per_epoch < 1:
            size = f"{len(ids)} ids, less than two windows of {length}"
            raise BadInput(f"the training text has {size}: give more text or a smaller preset")
        self.epoch, self.permutation, self.phase = -1, None, 0

    def start(self, index):
        """Where crop number `index` of the run begins."""
        epoch, place = divmod(index, self.per_epoch)
        if self.epoch != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self.permutation = torch.randperm(self.per_epoch, generator=generator)
            self.phase = int(torch.randint(self.length, (), generator=generator))
            self.epoch = epoch
        return int(self.permutation[place]) * self.length + self.phase

    def batch(self, first, size):
        """Crops first..first + size - 1 -> ids (B, N + 1) int64 and closes (B, N) bool."""
        starts = [self.start(first + i) for i in range(size)]
        # (B, N + 1) and (B, N)
        ids = torch.stack([self.ids[s : s + self.length + 1] for s in starts]).long()
        closes = torch.zeros(size, self.length, dtype=torch.bool)
        if self.closes is not None:
            closes = torch.stack([self.closes[s : s + self.length] for s in starts])
        closes[:, 0] = True  # a crop's first byte closes its own patch, as BOS does
        return ids, closes

    def generators(self, first, size):
        """A random generator for each crop, so that its corruption is the same in any batch."""
        generators = []
        for index in range(first, first + size):
            digest = hashlib.sha256(f"{self.seed} {index}".encode()).digest()
            seed = int.from_bytes(digest[:8], "big") >> 1
            generators.append(torch.Generator().manual_seed(seed))
        return generators


# ---- run: what would be trained on


def options_from(argv):
    parser = Parser(prog="data.py", description="Describe a corpus and how it is split.")
    parser.add_argument("paths", nargs="*", help="files and folders (default: the default corpus)")
    return parser.parse_args(argv)


def main(argv=None):
    corpus = corpus_of(options_from(argv).paths or None)
    print(corpus.describe())
    for name, part in zip(("training", "held out"), corpus.split()):
        print(f"{name}: {len(part)} documents, {sum(map(len, part)):,} bytes")
    name, data = corpus.documents[0]
    ids = document_ids(data).tolist()
    print(f"{name} begins {visible(data[:40])}\nas ids: {ids[:8]} ... {ids[-2:]}")


if __name__ == "__main__":
    run(main)
