"""Documents that one file holds: behind marks, a line of JSON each, or packed."""

import bz2
import gzip
import json
import lzma
import os
import zipfile
import zlib
from array import array

import numpy as np

from support.terminal import BadInput, check_regular

MARK = "<|endoftext|>"  # what many corpora put between their documents
OFTEN = 100  # a file that holds MARK more often than that is split there, asked or not
PIECE = 1 << 24  # bytes that marks are looked for in at once


# ---- documents between marks


def documents_between(mark, source, size):
    """Where the documents of a text lie that a mark divides -> (starts and stops (n, 2), marks).

    source: the text, anything whose slices are bytes; size: how long it is. A newline on either
    side of a mark belongs to it, and empty documents are left out.
    """
    bounds = array("q")
    marks = 0
    begin = 0  # where the document begins that is not ended yet
    for start in range(0, size, PIECE):
        # With what a mark that begins here may reach into, and the newlines around it
        low = max(0, start - 2)
        piece = source[low : start + PIECE + len(mark) + 1]
        last = start - low + PIECE + len(mark) - 1
        place = piece.find(mark, max(start, begin) - low, last)
        while place >= 0:
            marks += 1
            stop = place - newline_before(piece, place)
            if low + stop > begin:
                bounds.extend((begin, low + stop))
            after = place + len(mark)
            after += newline_behind(piece, after)
            begin = low + after
            place = piece.find(mark, after, last)
    if begin < size:
        bounds.extend((begin, size))
    return np.array(bounds, dtype=np.int64).reshape(-1, 2), marks


def newline_before(data, place):
    """How many bytes the newline takes that ends at a place of a text; 0 for none."""
    if data[place - 2 : place] == b"\r\n":
        return 2
    return int(data[max(0, place - 1) : place] == b"\n")


def newline_behind(data, place):
    """How many bytes the newline takes that begins at a place of a text; 0 for none."""
    if data[place : place + 2] == b"\r\n":
        return 2
    return int(data[place : place + 1] == b"\n")


# ---- a line of JSON each


def documents_in_lines(data, path):
    """The texts in lines of JSON -> (the texts behind each other, their starts and stops (n, 2)).

    Raises BadInput, which names the line, for one that is no object with a text. Empty texts are
    left out, and so are empty lines.
    """
    texts = []
    bounds = array("q")
    end = 0
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        text = text_of(line, f"line {number} of {path}")
        if text:
            texts.append(text)
            bounds.extend((end, end + len(text)))
            end += len(text)
    return b"".join(texts), np.array(bounds, dtype=np.int64).reshape(-1, 2)


def text_of(line, where):
    """The field `text` of a line of JSON, as bytes. where: names the line."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise BadInput(f"{where} is no JSON: give an object with a text a line") from None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise BadInput(f'{where} has no text: give a line like {{"text": "..."}}')
    # JSON can spell halves of characters, which have bytes of their own.
    return row["text"].encode("utf-8", "surrogatepass")


# ---- packed files


def open_member(path):
    """The one file in a zip archive, opened."""
    archive = zipfile.ZipFile(path)
    members = [member for member in archive.infolist() if not member.is_dir()]
    if len(members) != 1:
        advice = f"unpack it with `python -m zipfile -e {path} FOLDER` and give the folder"
        raise BadInput(f"{path} holds {len(members)} files, not one: {advice}")
    return archive.open(members[0])


READERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zip": open_member}
# What they raise for files that are cut short, damaged, locked or of another kind
DAMAGED = (
    EOFError,
    OSError,
    RuntimeError,
    lzma.LZMAError,
    zipfile.BadZipFile,
    zlib.error,
)


def packing_of(path):
    """The ending of a packed file's name, or "" for any other file."""
    ending = os.path.splitext(path)[1].lower()
    return ending if ending in READERS else ""


def unpacked(path, limit):
    """What a packed file holds, as bytes. Raises BadInput where it is damaged or has more."""
    check_regular(path, "the text")
    try:
        with READERS[packing_of(path)](path) as file:
            data = file.read(limit + 1)
    except DAMAGED as problem:
        why = getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
        advice = "it is cut short, damaged or of another kind: take a copy that is whole"
        raise BadInput(f"can't unpack {path} ({why}): {advice}") from None
    if len(data) > limit:
        raise too_large(path, limit, "unpack it, as plain files may be of any size")
    return data


def too_large(path, limit, advice):
    """The BadInput for a file of a kind that has to fit into memory, and does not."""
    return BadInput(f"{path} holds more than the {limit:,} bytes that fit into memory: {advice}")
