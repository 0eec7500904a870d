"""Bytes in: ids, the default corpus, anyone's files and folders, the split, training crops.

A document is BOS + bytes + EOS. Run it to see what would be trained on:

    python data.py                  # the default corpus
    python data.py my_notes/        # files and folders of yours
    python data.py all.txt --separator "=="    # many documents in one file

Whatever a document is kept in (memory, a large file, a piece of one), it is a `Text`: it has a
length, its slices are Texts again, and `bytes(text)` reads it. So text that does not fit into
memory is read where it is needed, and nobody who uses a corpus has to know.

In order: documents, corpora and the files they come from, the split into what is trained on and
what is held out, the crops of a training step. Letters in shape comments: B batch, N byte
positions.
"""

import functools
import hashlib
import os
import sys
import sysconfig
from array import array
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate
from operator import itemgetter

import numpy as np
import torch
from tqdm import tqdm

from support.flags import add_texts
from support.formats import (
    MARK,
    OFTEN,
    documents_between,
    documents_in_lines,
    packing_of,
    too_large,
    unpacked,
)
from support.terminal import BadInput, Parser, escaped, note, read_file, run, visible

# The official vocabulary leaves id 3 unused; MASK takes it, so that official weights keep their
# shapes. Byte b is id b + OFFSET.
PAD = 0
BOS = 1
EOS = 2
MASK = 3
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
OPENINGS = 8  # that a checkpoint keeps of held-out documents
OPENING_BYTES = 200


def encode(data):
    """Bytes or a Text -> list of ids, without BOS and EOS."""
    return [b + OFFSET for b in bytes(data)]


def decode(ids):
    """Ids -> bytes; special ids are left out."""
    return bytes(i - OFFSET for i in ids if i >= OFFSET)


def document_ids(data, start=0, stop=None):
    """A document (bytes or a Text) -> ids BOS + bytes + EOS, or start..stop-1 of them, int16."""
    stop = len(data) + 2 if stop is None else stop
    ids = torch.full((stop - start,), BOS, dtype=torch.int16)
    text = bytes(data[max(0, start - 1) : max(0, stop - 1)])
    if text:
        first = int(start == 0)
        values = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        ids[first : first + len(text)] = values.short() + OFFSET
    if start < stop == len(data) + 2:
        ids[-1] = EOS
    return ids


class DocumentIds:
    """The document_ids of a text of any size: a slice is made when it is asked for."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data) + 2

    def __getitem__(self, part):
        start, stop, _ = part.indices(len(self))
        return document_ids(self.data, start, max(start, stop))


# ---- the bytes of a document, wherever they lie


@dataclass(frozen=True)
class LargeFile:
    """A file that is not kept in memory. A slice is read, as bytes.

    It is open for that moment alone: open files are few that a system allows.
    """

    path: str
    written: int  # when it last was, in nanoseconds

    def __getitem__(self, part):
        """Raises BadInput where the file is another by now."""
        try:
            with open(self.path, "rb") as file:
                about = os.fstat(file.fileno())
                if about.st_mtime_ns != self.written:
                    raise BadInput(f"{self.path} has changed since it was first read: begin anew")
                start, stop, _ = part.indices(about.st_size)
                file.seek(start)
                return file.read(max(0, stop - start))
        except OSError as problem:
            raise BadInput(f"can't read the text {self.path}: {problem.strerror}") from None


class Text:
    """The bytes of one document. Whatever it can do, bytes can do too.

    A slice is another Text, and nothing is read for it; bytes(text) are the bytes themselves.
    """

    __slots__ = ("source", "start", "stop")  # there are millions of them

    def __init__(self, source, start, stop):
        """Of what `source` (bytes, or a LargeFile) holds, the bytes start..stop-1."""
        self.source = source
        self.start = start
        self.stop = stop

    def __len__(self):
        return self.stop - self.start

    def __getitem__(self, part):
        first, last, _ = part.indices(len(self))
        return Text(self.source, self.start + first, self.start + max(first, last))

    def __bytes__(self):
        return self.source[self.start : self.stop]


# ---- documents, few or millions


@dataclass(frozen=True)
class SplitFile:
    """What one file holds: one document, or several that are slices of it."""

    name: str
    source: bytes | LargeFile
    bounds: np.ndarray  # (n, 2), where its documents start and stop in the source
    is_split: bool  # else all of it is one document, and has its name

    def __len__(self):
        return len(self.bounds)

    def document(self, number):
        """-> (name, Text). Of several documents the number is part of the name."""
        start, stop = self.bounds[number].tolist()
        name = f"{self.name}/{number:08}" if self.is_split else self.name
        return name, Text(self.source, start, stop)


class Documents:
    """(name, Text) of every document of some files, in their order.

    Each is made when it is asked for: of millions in one file all that is kept is where they lie.
    """

    def __init__(self, files):
        self.files = files
        self.firsts = [0, *accumulate(map(len, files))]  # numbers of their first documents

    def __len__(self):
        return self.firsts[-1]

    def __getitem__(self, number):
        file = bisect_right(self.firsts, number) - 1
        return self.files[file].document(number - self.firsts[file])

    def __iter__(self):
        for file in self.files:
            yield from map(file.document, range(len(file)))


class Chosen:
    """The Texts of some of the documents of a corpus, by their numbers."""

    def __init__(self, documents, numbers):
        self.documents = documents
        self.numbers = numbers

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, place):
        _, data = self.documents[self.numbers[place]]
        return data

    def __iter__(self):
        return map(self.__getitem__, range(len(self)))


# ---- corpora


@dataclass
class Corpus:
    """Named documents and what identifies them."""

    documents: Documents | list = field(repr=False)  # of (name, Text), sorted by name
    origin: str = ""
    held_out: "Corpus | None" = None  # text to validate on that comes with it, no part of it

    @functools.cached_property
    def size(self):
        """Bytes in all documents together."""
        return sum(len(data) for _, data in self.documents)

    @functools.cached_property
    def sha256(self):
        """Hash over names and contents: runs that print the same one trained on the same bytes."""
        digest = hashlib.sha256()
        with tqdm(total=self.size, desc="hashing", unit="B", leave=False, delay=2) as bar:
            for name, data in self.documents:
                digest.update(name_bytes(name) + b"\0" + len(data).to_bytes(8, "little"))
                for start in range(0, len(data), 1 << 20):
                    piece = bytes(data[start : start + (1 << 20)])
                    digest.update(piece)
                    bar.update(len(piece))
        return digest.hexdigest()

    def describe(self):
        """One line that identifies the corpus."""
        size = f"{len(self.documents)} documents, {self.size:,} bytes"
        return escaped(f"{self.origin}: {size}, sha256 {self.sha256[:16]}")

    def identity(self):
        """What a checkpoint keeps of it."""
        known = {"origin": self.origin, "bytes": self.size, "sha256": self.sha256}
        if self.held_out:
            known["held_out"] = self.held_out.identity()
        return known

    def is_that_of(self, known):
        """Is it what a checkpoint keeps of one, with the same text held out?"""
        both = [(self, known)]
        if self.held_out:
            both.append((self.held_out, known.get("held_out", {})))
        return all(corpus.sha256 == kept.get("sha256") for corpus, kept in both)

    def split(self):
        """-> (train, validation), sequences of Texts; of validation some is enough.

        Text that is held out by itself leaves all else to train on. Otherwise a hash of its name
        decides for each document (95/5). Where that leaves either side without its share (few
        documents), the last 5 % of each document is held out instead.
        """
        if self.held_out:
            everything = Chosen(self.documents, range(len(self.documents)))
            return everything, first_bytes([data for _, data in self.held_out.documents])
        train = array("q")
        held_out = array("q")
        held_out_size = 0
        for number, (name, data) in enumerate(self.documents):
            if name_chance(name) >= VALIDATION_SHARE:
                train.append(number)
            else:
                held_out.append(number)
                held_out_size += len(data)
        share = held_out_size / max(1, self.size)
        if VALIDATION_SHARE / 2 <= share <= VALIDATION_SHARE * 4:
            return Chosen(self.documents, train), first_bytes(Chosen(self.documents, held_out))
        cuts = [(data, max(1, int(len(data) * VALIDATION_SHARE))) for _, data in self.documents]
        train = [data[:-n] for data, n in cuts if len(data) > n]
        return train, first_bytes([data[-n:] for data, n in cuts])


def first_bytes(texts):
    """The first VALIDATION_BYTES of some Texts together -> list of Texts."""
    kept = []
    left = VALIDATION_BYTES
    for data in texts:
        if left <= 0:
            break
        if len(data):
            kept.append(data[:left])
        left -= len(data)
    return kept


def describe_rest(corpus, split):
    """One line about what `split` has cut off, so that it is in neither part; None for nothing."""
    _, held_out = split
    kept = sum(map(len, held_out))
    if corpus.held_out:
        rest = corpus.held_out.size - kept
    else:
        rest = corpus.size - sum(map(len, split[0])) - kept
    if not rest:
        return None
    return f"held out beyond {VALIDATION_BYTES:,} bytes, and not looked at: {rest:,} bytes"


def openings_of(texts):
    """Up to OPENINGS beginnings of documents, OPENING_BYTES each: what such text looks like.

    They are those of the first documents that go on as far again. Where there are fewer such
    documents, each gives several, from places spread over it: lines that begin there, if some do.
    -> list of bytes
    """
    long = [data for data in texts if len(data) >= 2 * OPENING_BYTES][:OPENINGS]
    openings = []
    for number, data in enumerate(long):
        # Each of the n documents gives OPENINGS / n of them, rounded so that all are given.
        count = OPENINGS * (number + 1) // len(long) - OPENINGS * number // len(long)
        room = len(data) - 2 * OPENING_BYTES
        for place in range(count):
            start = room * place // count
            if place:
                start += bytes(data[start : start + OPENING_BYTES]).find(b"\n") + 1
            openings.append(bytes(data[start : start + OPENING_BYTES]))
    return openings


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
    files = files_below(sysconfig.get_paths()["stdlib"], NOT_IN_CORPUS, ".py")
    # No separator: these are documents as they are, whatever they hold.
    documents = list(Documents(split_files(files, separator="")))
    try:
        from pydoc_data.topics import topics

        for name, topic in topics.items():
            data = topic.encode()
            documents.append((f"pydoc_data/topics/{name}", Text(data, 0, len(data))))
    except ImportError:
        pass  # some distributions leave it out; the corpus is then that much smaller
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    by_name = sorted(documents, key=itemgetter(0))
    return Corpus(by_name, f"standard library of Python {version}")


def files_below(path, leave_out=(), ending="", skipped=None):
    """A file, or all visible regular ones below a folder -> list of (name, path).

    leave_out: names of files and folders. Links to folders are followed, and each real folder is
    taken once. skipped: a Counter of what else is left out, by kinds in words. Raises BadInput for
    what does not exist or can't be read.
    """
    skipped = Counter() if skipped is None else skipped

    def kept(names):
        visible_ones = [name for name in names if name[0] != "."]
        skipped["hidden"] += len(names) - len(visible_ones)
        return sorted(name for name in visible_ones if name not in leave_out)

    def refuse(problem):
        raise BadInput(f"can't read the folder {problem.filename}: {problem.strerror}")

    if not os.path.exists(path):
        raise BadInput(f"no such file or folder: {path}")
    top = path if os.path.isdir(path) else os.path.dirname(path)
    found = [path]
    taken = set()  # real paths of folders
    ahead = [path] if os.path.isdir(path) else []
    while ahead:
        # Linked folders come last: one that lies below `path` itself keeps its own name.
        linked = []
        for start in ahead:
            for folder, subfolders, names in os.walk(start, onerror=refuse):
                real = os.path.realpath(folder)
                if real in taken:
                    subfolders.clear()
                    continue
                taken.add(real)
                subfolders[:] = kept(subfolders)
                inside = [os.path.join(folder, name) for name in subfolders]
                linked += [subfolder for subfolder in inside if os.path.islink(subfolder)]
                names = [name for name in kept(names) if name.endswith(ending)]
                found += [os.path.join(folder, name) for name in names]
        ahead = linked
    files = [whole for whole in found if os.path.isfile(whole)]
    skipped["no regular file"] += len(found) - len(files) - os.path.isdir(path)
    return [(os.path.relpath(whole, top).replace(os.sep, "/"), whole) for whole in files]


def files_of(paths, elsewhere=()):
    """The files below several paths -> list of (name, path), sorted by name, each real one once.

    Else one text could be trained on under one name, and held out under another. elsewhere: files,
    as (name, path), that are left to something else. What is left out is said on stderr.
    """
    taken = {os.path.realpath(path) for _, path in elsewhere}
    skipped = Counter()
    files = []
    for path in paths:
        for name, whole in files_below(os.fspath(path), skipped=skipped):
            real = os.path.realpath(whole)
            if real in taken:
                skipped["taken already"] += 1
                continue
            taken.add(real)
            files.append((name, whole))
    counts = [f"{count} {kind}" for kind, count in skipped.items() if count]
    if counts and files:
        note(f"left out of {', '.join(map(str, paths))}: {', '.join(counts)}")
    return sorted(files, key=itemgetter(0))


def split_files(files, separator=None):
    """Files as (name, path) -> a SplitFile of each that holds anything.

    separator: what stands between documents in a file; "": nothing does; None: nothing, but in
    files that hold MARK more than OFTEN times, which is said on stderr. Plain files are kept in
    memory up to IN_MEMORY bytes of all. Raises BadInput for what can't be read.
    """
    mark = os.fsencode(MARK if separator is None else separator)
    found = []
    marks = 0
    left = IN_MEMORY
    for name, path in files:
        source, size, bounds = read_text(path, left)
        left -= size
        is_split = bounds is not None
        if not is_split:
            bounds = np.array([[0, size]], dtype=np.int64)
            if mark and size:
                between, count = documents_between(mark, source, size)
                marks += count
                is_split = count > (OFTEN if separator is None else 0)
                if is_split:
                    bounds = between
                if is_split and separator is None:
                    said = f"{path} holds {MARK} {count:,} times: it is split into documents there"
                    note(f'{said} (--separator "": not)')
        if size and len(bounds):
            found.append(SplitFile(name, source, bounds, is_split))
    if separator and not marks:
        raise BadInput(f"the separator {separator!r} does not occur in {paths_in_words(files)}")
    return found


def paths_in_words(files):
    """The paths of a list of (name, path), the first few of them."""
    paths = [path for _, path in files]
    more = f" and {len(paths) - 3} more files" if len(paths) > 3 else ""
    return ", ".join(map(str, paths[:3])) + more


def read_text(path, left):
    """-> (bytes or a LargeFile, its size, where the documents of a .jsonl lie in it, else None).

    left: bytes that still fit into memory, where packed files and .jsonl have to fit.
    """
    about = os.stat(path)
    packing = packing_of(path)
    in_lines = path[: len(path) - len(packing)].lower().endswith(".jsonl")
    limit = max(0, left)
    if packing:
        data = unpacked(path, limit)
    elif about.st_size <= limit:
        # A file may be longer than it says, as those of /proc are.
        data = read_file(path, "the text")
    elif in_lines:
        advice = "write its texts into a plain file, with a --separator between them"
        raise too_large(path, limit, advice)
    else:
        return LargeFile(path, about.st_mtime_ns), about.st_size, None
    bounds = None
    if in_lines:
        data, bounds = documents_in_lines(data, path)
    return data, len(data), bounds


def corpus_of(paths, separator=None, held_out=None):
    """The corpus that `--data` names, the default one for None: files and folders as they are.

    separator: as split_files takes it; held_out: paths of text to validate on. Raises BadInput for
    what does not exist, can't be read, or has fewer than two bytes in all. What is held out is no
    text to train on, wherever it lies.
    """
    kept_apart = corpus_of(held_out, separator) if held_out else None
    if paths is None:
        corpus = default_corpus()
        corpus.held_out = kept_apart
        return corpus
    apart = [file for path in held_out or () for file in files_below(os.fspath(path))]
    documents = Documents(split_files(files_of(paths, apart), separator))
    corpus = Corpus(documents, ", ".join(map(str, paths)), kept_apart)
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

    def __init__(self, ids, closes, length, seed, advice=""):
        """ids (total,) packed documents, closes (total,) where their patches close, or None.

        Both may be anything with slices. length: positions predicted in a crop. Raises BadInput for
        less text than two crops; advice: what to do then, beside giving more.
        """
        self.ids = ids
        self.closes = closes
        self.length = length
        self.seed = seed
        self.per_epoch = (len(ids) - 1) // length - 1  # one less than fits leaves room for a phase
        if self.per_epoch < 1:
            size = f"{len(ids)} ids, less than two windows of {length}"
            raise BadInput(f"the training text has {size}: give more text{advice}")
        self.epoch = -1
        self.permutation = None
        self.phase = 0

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
    add_texts(parser)
    return parser.parse_args(argv)


def main(argv=None):
    options = options_from(argv)
    corpus = corpus_of(options.paths or None, options.separator, options.held_out)
    print(corpus.describe())
    if corpus.held_out:
        print(f"held out: {corpus.held_out.describe()}")
    split = corpus.split()
    for name, part in zip(("training", "held out"), split):
        print(f"{name}: {len(part)} documents, {sum(map(len, part)):,} bytes")
    if rest := describe_rest(corpus, split):
        print(rest)
    name, data = corpus.documents[0]
    print(f"{escaped(name)} begins {visible(bytes(data[:40]))}")
    # Of a long document the ids that are shown are all that is made.
    ids = DocumentIds(data)
    print(f"as ids: {ids[:8].tolist()} ... {ids[-2:].tolist()}")


if __name__ == "__main__":
    run(main)
