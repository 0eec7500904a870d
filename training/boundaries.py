"""Packed documents, and where their patches close, of corpora that need not fit into memory."""

import os
from array import array
from bisect import bisect_right
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch

from data import document_ids
from fast.patching import closes_between, closes_of
from support.terminal import BadInput, progress
from training.distributed import anywhere, processes, rank

MAGIC = b"fast-blt patches\n"
LONGEST = 1 << 22  # positions of a piece; a document that is longer has several
TOGETHER = 1 << 20  # positions of short documents whose patches are found at once


class Packed:
    """Documents behind each other, BOS + bytes + EOS each. A slice is made when it is asked for."""

    def __init__(self, documents):
        self.documents = documents
        self.starts = array("q", [0])
        self.starts.extend(accumulate(len(data) + 2 for data in documents))

    def __len__(self):
        return self.starts[-1]

    def parts(self, start, stop):
        """Positions start..stop-1 -> the Piece of each document that they touch."""
        document = bisect_right(self.starts, start) - 1
        while start < stop:
            begin = self.starts[document]
            end = min(stop, self.starts[document + 1])
            yield Piece(document, start - begin, end - begin)
            start = end
            document += 1

    def ids_of(self, piece):
        """-> ids, int16."""
        return document_ids(self.documents[piece.document], piece.start, piece.stop)

    def __getitem__(self, part):
        """-> ids, int16."""
        return torch.cat([self.ids_of(piece) for piece in self.parts(part.start, part.stop)])


class Piece(NamedTuple):
    """Positions start..stop-1 of one document."""

    document: int  # its number
    start: int
    stop: int

    @property
    def size(self):
        """How many there are."""
        return self.stop - self.start


class Pieces:
    """The Pieces of all documents of a Packed text, in order; each is made when it is asked for."""

    def __init__(self, starts):
        """starts: of the documents, and where the last one stops."""
        self.starts = starts
        self.documents = array("q")
        self.firsts = array("q")
        for document in range(len(starts) - 1):
            for first in range(0, starts[document + 1] - starts[document], LONGEST):
                self.documents.append(document)
                self.firsts.append(first)

    def __len__(self):
        return len(self.documents)

    def __getitem__(self, number):
        document = self.documents[number]
        first = self.firsts[number]
        length = self.starts[document + 1] - self.starts[document]
        return Piece(document, first, min(first + LONGEST, length))


class Boundaries:
    """Where the patches of a Packed text close: one bit a position, in a file. A slice is bool.

    The file is for one text and one patcher, which `key` (bytes) stands for. Behind that it has a
    byte for each piece, whether it is found, then the bits: those of a document begin with a byte
    of their own, so that no two processes write the same one.
    """

    def __init__(self, path, text, key):
        self.path = path
        self.text = text
        self.head = MAGIC + key
        self.pieces = Pieces(text.starts)
        self.first = len(self.head) + len(self.pieces)
        self.size = self.place(len(text.documents))

    def place(self, document):
        """Where in the file its bits begin."""
        return self.first + self.text.starts[document] // 8 + document

    def find(self, patcher):
        """Find what is not found yet, all processes together -> these Boundaries."""
        if rank() == 0 and not self.is_begun():
            with open(self.path, "wb") as file:
                file.write(self.head)
                file.truncate(self.size)
        anywhere(False)  # until the first is here
        with open(self.path, "r+b") as file, progress("patching", len(self.text)) as bar:
            file.seek(len(self.head))
            found = file.read(len(self.pieces))
            mine = range(rank(), len(self.pieces), processes())
            known = sum(self.pieces[number].size for number in mine if found[number])
            bar.update(known * processes())
            for group in self.groups(number for number in mine if not found[number]):
                for number, closes in zip(group, self.closes_of(group, patcher)):
                    self.write(file, number, closes)
                    bar.update(self.pieces[number].size * processes())
        anywhere(False)
        self.bits = np.memmap(self.path, np.uint8, "r")
        return self

    def groups(self, numbers):
        """Numbers of pieces -> lists of those to find at once: some short documents, or one piece
        of a long one.
        """
        group = []
        size = 0
        for number in numbers:
            piece = self.pieces[number]
            if not self.is_whole(piece):
                yield [number]
                continue
            if group and size + piece.size > TOGETHER:
                yield group
                group = []
                size = 0
            group.append(number)
            size += piece.size
        if group:
            yield group

    def is_whole(self, piece):
        """Is it all of its document?"""
        return piece.size == len(self.text.documents[piece.document]) + 2

    def closes_of(self, group, patcher):
        """The numbers of one of the groups -> closes (N,) of each."""
        pieces = [self.pieces[number] for number in group]
        if self.is_whole(pieces[0]):
            return closes_of(patcher, [self.text.ids_of(piece) for piece in pieces])
        (piece,) = pieces

        def read(start, stop):
            return self.text.ids_of(Piece(piece.document, start, stop))

        return [closes_between(patcher, read, piece.start, piece.stop)]

    def write(self, file, number, closes):
        """Keep the closes (N,) of a piece, then that they are found."""
        piece = self.pieces[number]
        file.seek(self.place(piece.document) + piece.start // 8)
        file.write(np.packbits(closes.cpu().numpy()))
        file.seek(len(self.head) + number)
        file.write(b"\1")

    def is_begun(self):
        """Is the file there, and of this text and patcher? Raises BadInput for any other kind."""
        if not os.path.exists(self.path):
            return False
        with open(self.path, "rb") as file:
            head = file.read(len(self.head))
        if not head.startswith(MAGIC):
            advice = "move it, or give another --out"
            raise BadInput(f"can't write patches to {self.path}, another file: {advice}")
        return head == self.head and os.path.getsize(self.path) == self.size

    def __getitem__(self, part):
        found = []
        for document, start, stop in self.text.parts(part.start, part.stop):
            place = self.place(document)
            bits = np.unpackbits(self.bits[place + start // 8 : place + (stop + 7) // 8])
            found.append(torch.from_numpy(bits[start % 8 :][: stop - start]).bool())
        return torch.cat(found)

    def mean_patch(self):
        """Bytes a patch, BOS and its patch left out, as fast.patching.mean_patch."""
        documents = len(self.text.documents)
        closed = 0
        for start in range(self.first, self.size, LONGEST):
            bits = np.unpackbits(self.bits[start : start + LONGEST])
            closed += int(bits.sum(dtype=np.int64))
        patches = closed - documents
        return (len(self.text) - documents) / patches if patches else None
