"""The beginnings of held-out documents that a checkpoint keeps: text of the kind that it knows."""

import os

from support import checkpoint

SHORT = 24  # bytes of a beginning that something goes on from; it ends with a word


def known_openings(saved):
    """The openings that a loaded checkpoint keeps -> list of bytes; older ones keep none."""
    openings = saved.get("openings", [])
    whole = isinstance(openings, list) and all(isinstance(text, bytes) for text in openings)
    if not whole:
        raise checkpoint.damaged(saved, "its openings are no list of bytes")
    return openings


def beginning(openings, otherwise, size=SHORT):
    """The first whole words of an opening, `size` bytes at most -> bytes.

    otherwise: what begins where there are no openings, a str.
    """
    if not openings:
        return otherwise.encode()
    text = openings[0].lstrip() or openings[0]
    if len(text) <= size:
        return text
    # Up to a space, if there is one behind the first byte
    end = text.rfind(b" ", 1, size + 1)
    return text[: end if end > 0 else size]


def beginning_of_file(path, otherwise, size=SHORT):
    """The same of a checkpoint file, as a str like those of a command line.

    Of a file that is no checkpoint nothing is said here: whoever loads it does.
    """
    if not os.path.exists(path):
        return otherwise
    return os.fsdecode(beginning(known_openings(checkpoint.read(path)), otherwise, size))
