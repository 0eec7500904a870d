"""What people look at: colours where there are any, one line for bad input, bytes as text."""

import argparse
import os
import signal
import sys

from tqdm import tqdm

# ANSI background colours that neighbouring patches take in turn
BACKGROUNDS = (44, 42, 45, 46, 41, 43)


class BadInput(Exception):
    """Something the user gave can't be used; the message says what was wrong and what to do."""


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line with exit code 2, like every other bad input here."""

    def __init__(self, **options):
        super().__init__(formatter_class=argparse.ArgumentDefaultsHelpFormatter, **options)

    def error(self, message):
        raise BadInput(f"{message} (see {self.prog} --help)")


def run(main, name=None):
    """Run a script's `main()`: bad input ends in one line on stderr and exit code 2.

    A closed pipe or Ctrl-C end it quietly. name: of the program, if not that of its file.
    """
    name = name or os.path.basename(sys.argv[0])
    sys.stdout.reconfigure(errors="replace")  # what an encoding can't show must not end anything
    try:
        sys.exit(main())
    except BadInput as problem:
        print(f"{name}: {problem}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # Keeps the flush at exit from failing too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def number(kind, low, high=float("inf"), above=False):
    """An argparse type: an int or float within [low, high], or (low, high] when `above`."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            problem = f"'{text}' is not a number of type {kind.__name__}"
            raise argparse.ArgumentTypeError(problem) from None
        if not (low <= value <= high) or (above and value == low):
            bracket = "(" if above else "["
            raise argparse.ArgumentTypeError(f"{text} is outside {bracket}{low}, {high}]")
        return value

    return parse


def has_colour(stream=None):
    """Is `stream` (default stdout) a terminal that shows colours? NO_COLOR and TERM=dumb say no."""
    stream = stream or sys.stdout
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def paint(text, *codes):
    """`text` with the ANSI codes around it, or as it is where there is no colour."""
    return f"\x1b[{';'.join(map(str, codes))}m{text}\x1b[0m" if codes and has_colour() else text


def visible(data):
    """Bytes as one line of text: control bytes escaped, invalid UTF-8 as replacement characters."""
    shown = []
    for c in bytes(data).decode("utf-8", "replace"):
        if c in "\n\t":
            shown.append({"\n": "⏎", "\t": "⇥"}[c])
        else:
            shown.append(c if c.isprintable() else f"\\x{ord(c):02x}")
    return "".join(shown)


def show_patches(patches):
    """One line of text: a list of bytes on changing backgrounds, between bars without colour."""
    if not has_colour():
        return "|".join(visible(p) for p in patches)
    shown = []
    for i, patch in enumerate(patches):
        shown.append(paint(visible(patch), 30, BACKGROUNDS[i % len(BACKGROUNDS)]))
    return "".join(shown)


def table(header, rows):
    """Rows of cells as aligned text, the first column to the left and numbers to the right."""
    cells = [[str(c) for c in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for first, *others in cells:
        padded = [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:]))]
        lines.append("  ".join(padded))
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def read_file(path, what):
    """The bytes of a file. Raises BadInput, which names `what` it should have been."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as problem:
        raise BadInput(f"can't read {what} {path}: {problem.strerror}") from None


def progress(what, total, done=0):
    """A progress bar over bytes, on stderr; it goes when it is full."""
    options = {"unit": "B", "unit_scale": True, "leave": False, "dynamic_ncols": True}
    often = 0.5 if sys.stderr.isatty() else 20
    return tqdm(desc=what, total=total, initial=done, mininterval=often, **options)


class Interrupt:
    """Ctrl-C asks a loop to stop where it can; a second one stops at once."""

    asked = False

    def __enter__(self):
        self.previous = signal.signal(signal.SIGINT, self.ask)
        return self

    def ask(self, *_):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_):
        signal.signal(signal.SIGINT, self.previous)
