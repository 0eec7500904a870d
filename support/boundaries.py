"""Packed documents, and where their patches close, of corpora that need not fit into memory."""

import functools
import os
from bisect import bisect_right
from itertools import accumulate

import numpy as np
import torch

from data import document_ids
from support.distributed import anywhere, processes, rank
from support.terminal import BadInput, progress

MAGIC = b"fast-blt patches\n"
PIECE = 1 << 22  # positions of a document that are found at once


class Packed:
    """Documents behind each other, BOS + bytes + EOS each. A slice is made when it is asked for."""

    def __init__(self, documents):
        self.documents = documents
        self.starts = [0, *accumulate(len(data) + 2 for data in documents)]

    def __len__(self):
        return self.starts[-1]

    def parts(self, start, stop):
        """Positions start..stop-1 -> (document, first there, last there + 1) of each it touches."""
        document = bisect_right(self.starts, start) - 1
        while start < stop:
            begin, end = self.starts[document], min(stop, self.starts[document + 1])
            yield document, start - begin, end - begin
            start, document = end, document + 1

    def __getitem__(self, part):
        """-> ids, int16."""
        parts = self.parts(part.start, part.stop)
        return torch.cat([document_ids(self.documents[d], *where) for d, *where in parts])


class Boundaries:
    """Where the patches of a Packed text close: one bit a position, in a file. A slice is bool.

    The file is for one text and one patcher, which `key` (bytes) stands for. Behind that it has a
    byte for each piece, whether it is found, then the bits: those of a document begin with a byte
    of their own, so that no two processes write the same one.
    """

    def __init__(self, path, text, key):
        self.path, self.text, self.head = path, text, MAGIC + key
        lengths = (stop - start for start, stop in zip(text.starts, text.starts[1:]))
        self.pieces = [
            (document, start, min(start + PIECE, length))
            for document, length in enumerate(lengths)
            for start in range(0, length, PIECE)
        ]
        self.first = len(self.head) + len(self.pieces)
        self.size = self.place(len(text.documents))

    def place(self, document):
        """Where in the file its bits begin."""
        return self.first + self.text.starts[document] // 8 + document

    def find(self, patcher, device):
        """Find what is not found yet, all processes together -> these Boundaries."""
        if rank() == 0 and not self.is_begun():
            with open(self.path, "wb") as file:
                file.write(self.head)
                file.truncate(self.size)
        anywhere(False)  # until the first is here
        with open(self.path, "r+b") as file, progress("patching", len(self.text)) as bar:
            file.seek(len(self.head))
            found = file.read(len(self.pieces))
            for number in range(rank(), len(self.pieces), processes()):
                document, start, stop = self.pieces[number]
                if not found[number]:
                    read = functools.partial(document_ids, self.text.documents[document])
                    closes = patcher.closes_between(read, start, stop, device).cpu().numpy()
                    file.seek(self.place(document) + start // 8)
                    file.write(np.packbits(closes))
                    file.seek(len(self.head) + number)
                    file.write(b"\1")
                bar.update((stop - start) * processes())
        anywhere(False)
        self.bits = np.memmap(self.path, np.uint8, "r")
        return self

    def is_begun(self):
        """Is the file there, and of this text and patcher? Raises BadInput for any other kind."""
        if not os.path.exists(self.path):
            return False
        with open(self.path, "rb") as file:
            head = file.read(len(self.head))
        if not head.startswith(MAGIC):
            raise BadInput(f"can't write patches to {self.path}, another file: move it")
        return head == self.head and os.path.getsize(self.path) == self.size

    def __getitem__(self, part):
        found = []
        for document, start, stop in self.text.parts(part.start, part.stop):
            place = self.place(document)
            bits = np.unpackbits(self.bits[place + start // 8 : place + (stop + 7) // 8])
            found.append(torch.from_numpy(bits[start % 8 :][: stop - start]).bool())
        return torch.cat(found)

    def mean_patch(self):
        """Bytes a patch, BOS and its patch left out, as patcher.mean_patch."""
        documents, closed = len(self.text.documents), 0
        for start in range(self.first, self.size, PIECE):
            closed += int(np.unpackbits(self.bits[start : start + PIECE]).sum(dtype=np.int64))
        return (len(self.text) - documents) / max(1, closed - documents)
