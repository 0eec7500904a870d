"""What people look at: colours where there are any, one line for bad input, bytes as text."""

import argparse
import contextlib
import importlib
import io
import itertools
import json
import math
import os
import signal
import stat
import sys
import unicodedata
from typing import NamedTuple

from tqdm import tqdm

# ANSI background colours that neighbouring patches take in turn
BACKGROUNDS = (44, 42, 45, 46, 41, 43)
SIGNS = {"\n": "⏎", "\t": "⇥"}
SPACE = "␣"  # of a byte that stands alone; in running text a space is a space
# Classes of characters that turn the direction of what follows
TURNS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
LONGEST = 1 << 32  # bytes of a file that is read whole


class BadInput(Exception):
    """Something the user gave can't be used; the message says what was wrong and what to do."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Says a flag's default behind its help, where there is one and the help does not say it."""

    def _get_help_string(self, action):
        has_none = action.default is None or action.default is False
        if has_none or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line with exit code 2, like every other bad input here."""

    def __init__(self, **options):
        super().__init__(formatter_class=HelpFormatter, **options)

    def error(self, message):
        raise BadInput(f"{message} (see {self.prog} --help)")


def run(main, name=None):
    """Run a script's `main()`: bad input ends in one line on stderr and exit code 2.

    So does output that can't be written; a closed pipe, Ctrl-C and other signals end it quietly.
    name: of the program, if not that of its file.
    """
    name, line, code = name or os.path.basename(sys.argv[0]), None, 0
    sys.stderr = sys.stderr or io.StringIO()  # `2>&-` leaves none
    take_signals(signal.default_int_handler)
    try:
        if sys.stdout is None:
            raise BadInput("standard output is closed: there is nowhere to print to")
        sys.stdout.reconfigure(errors="replace")  # what an encoding can't show must not end it
        main()
        sys.stdout.flush()
    except BadInput as problem:
        line, code = problem, 2
    except KeyboardInterrupt:
        line, code = "interrupted", 130
    except BrokenPipeError:
        code = 141
    except RuntimeError as problem:  # gloo and NCCL say no more of a process that is gone
        if "TORCHELASTIC_RUN_ID" not in os.environ or "onnection" not in str(problem):
            raise
        line, code = "another process has ended: go on with --resume, from what was saved last", 2
    except OSError as problem:
        line, code = f"can't go on: {problem}", 2
    take_signals(signal.SIG_IGN)  # it ends anyway
    if line and said_first(str(line)):
        print(f"{name}: {escaped(str(line))}", file=sys.stderr)
    try:
        print(end="", flush=True)
    except OSError:  # or Python would try again at its end, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def said_first(line):
    """Has no other process that torchrun started with this one said this line?"""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return True
    from torch.distributed import rendezvous

    return next(rendezvous("env://"))[0].add(line, 1) == 1


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
        if not low <= value <= high or math.isinf(value) or (above and value == low):
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


def visible(data, space=" "):
    """Bytes as one line of text: control bytes escaped, invalid UTF-8 as replacement characters.

    space: what a space is shown as; SPACE where bytes stand alone, as in tables and in patches.
    """
    return escaped(bytes(data).decode("utf-8", "replace")).replace(" ", space)


def escaped(text):
    """Text as one line, control characters escaped."""
    return "".join(c if c.isprintable() else SIGNS.get(c, f"\\x{ord(c):02x}") for c in text)


def note(text):
    """Say something in one line on stderr, where several processes run in the first."""
    if os.environ.get("RANK", "0") == "0":
        print(f"note: {escaped(text)}", file=sys.stderr)


def for_terminal(text):
    """Text of several lines for stdout: on a terminal its control characters are escaped.

    Else a prompt, or what a model writes, could move the cursor, or worse. Newlines and tabs stay,
    and a pipe gets everything as it is.
    """
    if not sys.stdout.isatty():
        return text
    return "".join(escaped(c) if is_control(c) else c for c in text)


def is_control(c):
    """Is it a control character, or one that turns the direction of what follows it?"""
    if c in "\n\t":
        return False
    return unicodedata.category(c) == "Cc" or unicodedata.bidirectional(c) in TURNS


def show_patches(patches):
    """One line: a list of bytes on changing backgrounds, or between bars; a space is SPACE."""
    coloured = zip(patches, itertools.cycle(BACKGROUNDS))
    bar = "" if has_colour() else "|"
    return bar.join(paint(visible(patch, SPACE), 30, colour) for patch, colour in coloured)


def table(header, rows):
    """Rows of cells as aligned text, the first column to the left and numbers to the right.

    A cell is one line: file names may hold any characters.
    """
    cells = [[escaped(str(c)) for c in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    cells.insert(1, ["-" * width for width in widths])
    lines = []
    for first, *others in cells:
        lines.append("  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]))
    return "\n".join(lines)


class Column(NamedTuple):
    """One column of a table: which key of the rows it shows, as what, and under which title."""

    key: str
    form: str  # as format() takes it
    title: str


def table_of(rows, columns):
    """Dicts as a `table` with these Columns. What is None stays blank."""
    cells = []
    for row in rows:
        known = [(row[column.key], column.form) for column in columns]
        cells.append(["" if value is None else format(value, form) for value, form in known])
    return table([column.title for column in columns], cells)


def print_rows(rows):
    """One JSON object a line; numbers that JSON has not are null."""
    for row in rows:
        row = json.loads(json.dumps(row), parse_constant=lambda name: None)
        print(json.dumps(row), flush=True)


def check_regular(path, what):
    """Raises BadInput, which names `what` it should be, for all but files: others may not end."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as problem:
        why = getattr(problem, "strerror", problem)
        raise BadInput(f"can't read {what} {path}: {why}") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise BadInput(f"can't read {what} {path}: it is {kind}, not a file")


def check_writable(path):
    """Raises BadInput where no file can be written beside, or as, this one; an old one is kept."""
    try:
        open(f"{path}.part", "ab").close()
        with contextlib.suppress(FileNotFoundError):  # another process of ours looked too
            os.remove(f"{path}.part")
    except (OSError, ValueError) as problem:
        why = getattr(problem, "strerror", problem)
        raise BadInput(f"can't write {path}: {why}") from None


def read_file(path, what):
    """The bytes of a file, LONGEST at most. Raises BadInput, which names `what` it should be."""
    check_regular(path, what)
    try:
        # Some files of /proc would wait for more, and all say that they are empty.
        waits_not = getattr(os, "O_NONBLOCK", 0)
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | waits_not)) as file:
            size = os.fstat(file.fileno()).st_size
            limit = min(size, LONGEST) or 1 << 26
            data = file.read(limit + 1) if size <= LONGEST else None
    except (OSError, MemoryError) as problem:
        why = getattr(problem, "strerror", "too long")
        raise BadInput(f"can't read {what} {path}: {why}") from None
    if data is None or len(data) > limit:
        raise BadInput(f"can't read {what} {path}: it is longer than {limit:,} bytes")
    return data


def progress(what, total, done=0):
    """A progress bar over bytes, on stderr; it goes when it is full."""
    options = {"unit": "B", "unit_scale": True, "leave": False, "dynamic_ncols": True}
    often = 0.5 if sys.stderr.isatty() else 20
    options["disable"] = os.environ.get("RANK", "0") != "0"  # the first of several processes shows
    return tqdm(desc=what, total=total, initial=done, mininterval=often, **options)


SIGNALS = [s for s in signal.Signals if s.name in ("SIGINT", "SIGTERM", "SIGHUP")]


def take_signals(handler):
    """Let `handler` take signals to end, but for ignored ones (nohup) -> handlers before."""
    heard = [s for s in SIGNALS if signal.getsignal(s) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


class Interrupt:
    """Signals to end ask a loop to stop where it can; a second one ends at once.

    whole: all of them wait until the block is done.
    """

    def __init__(self, whole=False):
        self.whole, self.asked = whole, None  # the signal that came first

    def __enter__(self):
        self.previous = take_signals(self.ask)
        return self

    def ask(self, number, _):
        self.asked = self.asked or number
        # torchrun passes on what a terminal has sent already
        if not self.whole and "TORCHELASTIC_RUN_ID" not in os.environ:
            self.__exit__()

    def __exit__(self, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        if self.whole and self.asked:
            signal.raise_signal(self.asked)
