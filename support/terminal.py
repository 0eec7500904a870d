"""What people look at: colours where there are any, one line for bad input, bytes as text."""

import argparse
import importlib
import itertools
import json
import os
import signal
import sys

from tqdm import tqdm

# ANSI background colours that neighbouring patches take in turn
BACKGROUNDS = (44, 42, 45, 46, 41, 43)
SIGNS = {"\n": "⏎", "\t": "⇥"}


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


def package(name, what):
    """An optional package. Raises BadInput, which says what needs it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise BadInput(f"{what} needs {name}: pip install -r requirements-dev.txt") from None


def number(kind, low, high=float("inf"), above=False):
    """An argparse type: an int or float within [low, high], or (low, high] when `above`."""
    interval = f"{'(' if above else '['}{low}, {high}]"

    def parse(text):
        value = kind(text)
        if not (low <= value <= high) or (above and value == low):
            raise argparse.ArgumentTypeError(f"{text} is outside {interval}")
        return value

    parse.__name__ = kind.__name__  # argparse names it where `kind` refuses a text
    return parse


def has_colour():
    """Is stdout a terminal that shows colours? NO_COLOR and TERM=dumb say no."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.getenv("TERM") != "dumb"


def paint(text, *codes):
    """`text` with the ANSI codes around it, or as it is where there is no colour."""
    return f"\x1b[{';'.join(map(str, codes))}m{text}\x1b[0m" if codes and has_colour() else text


def visible(data):
    """Bytes as one line of text: control bytes escaped, invalid UTF-8 as replacement characters."""
    text = bytes(data).decode("utf-8", "replace")
    return "".join(c if c.isprintable() else SIGNS.get(c, f"\\x{ord(c):02x}") for c in text)


def show_patches(patches):
    """One line of text: a list of bytes on changing backgrounds, between bars without colour."""
    coloured = zip(patches, itertools.cycle(BACKGROUNDS))
    bar = "" if has_colour() else "|"
    return bar.join(paint(visible(patch), 30, colour) for patch, colour in coloured)


def table(header, rows):
    """Rows of cells as aligned text, the first column to the left and numbers to the right."""
    cells = [[str(c) for c in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    cells.insert(1, ["-" * width for width in widths])
    lines = []
    for first, *others in cells:
        lines.append("  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]))
    return "\n".join(lines)


def table_of(rows, columns):
    """Dicts as a `table`. columns: key, form and title of each, bars between; None stays blank."""
    columns = [column.split() for column in columns.split("|")]
    cells = [
        ["" if row[key] is None else format(row[key], form) for key, form, *_ in columns]
        for row in rows
    ]
    return table([" ".join(title) for _, _, *title in columns], cells)


def print_rows(rows):
    """One JSON object a line."""
    for row in rows:
        print(json.dumps(row), flush=True)


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
    """Signals to end, unless ignored (nohup), ask a loop to stop where it can; a second at once."""

    asked = False
    signals = [s for s in signal.Signals if s.name in ("SIGINT", "SIGTERM", "SIGHUP")]

    def __enter__(self):
        heard = [s for s in self.signals if signal.getsignal(s) != signal.SIG_IGN]
        self.previous = {number: signal.signal(number, self.ask) for number in heard}
        return self

    def ask(self, *_):
        self.asked = True
        self.__exit__()

    def __exit__(self, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler)
