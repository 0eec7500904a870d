"""What people look at, and what they give: colours, one line for bad input, files, signals."""

import argparse
import io
import itertools
import json
import math
import os
import signal
import stat
import sys
import tempfile

from tqdm import tqdm

# ANSI background colours that neighbouring patches take in turn
BACKGROUNDS = (44, 42, 45, 46, 41, 43)
SIGNS = {"\n": "⏎", "\t": "⇥"}


# What asks a program to end; a terminal that closes sends the last, which Windows has not.
ENDING = [getattr(signal, name, signal.SIGTERM) for name in ("SIGINT", "SIGTERM", "SIGHUP")]
# How Python and torch say that no memory is left
NO_MEMORY = ("MemoryError", "can't allocate memory", "out of memory")


class BadInput(Exception):
    """Something the user gave can't be used; the message says what was wrong and what to do.

    It is one line, whatever names of files are in it.
    """

    def __init__(self, message):
        super().__init__(escaped(message))


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line with exit code 2, like every other bad input here."""

    def __init__(self, **options):
        super().__init__(formatter_class=argparse.ArgumentDefaultsHelpFormatter, **options)

    def error(self, message):
        raise BadInput(f"{message} (see {self.prog} --help)")


def run(main, name=None):
    """Run a script's `main()`: bad input ends in one line on stderr and exit code 2.

    So does output that can't be written; a closed pipe and signals end it as quietly. name: of the
    program, if not that of its file.
    """
    name, line, code = name or os.path.basename(sys.argv[0]), None, 0
    sys.stderr = sys.stderr or io.StringIO()  # `2>&-` leaves none
    take_signals(interrupt)
    try:
        if sys.stdout is None:
            raise BadInput("standard output is closed: there is nowhere to print to")
        sys.stdout.reconfigure(errors="replace")  # what an encoding can't show must not end it
        main()
        sys.stdout.flush()
    except BadInput as problem:
        line, code = str(problem), 2
    except KeyboardInterrupt as problem:
        line, code = "interrupted", 128 + (*problem.args, signal.SIGINT)[0]
    except BrokenPipeError:
        code = 141
    except OSError as problem:
        line, code = f"can't go on: {problem}", 2
    except (MemoryError, RuntimeError) as problem:
        if not any(words in repr(problem) for words in NO_MEMORY):
            raise
        line, code = "there is not enough memory for this: ask for something smaller", 2
    take_signals(signal.SIG_IGN)  # it ends anyway
    if line:
        print(f"{name}: {escaped(line)}", file=sys.stderr)
    try:
        print(end="", flush=True)
    except OSError:  # Python would try again at its end, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


# ---- signals


def interrupt(number, _):
    """A handler that ends the program, wherever it is, as Ctrl-C does."""
    raise KeyboardInterrupt(number)


def take_signals(handler):
    """Let `handler` take what asks the program to end -> handlers before, by number.

    What is ignored stays so: `nohup` ignores SIGHUP.
    """
    before = {number: signal.getsignal(number) for number in ENDING}
    taken = {number: old for number, old in before.items() if old is not signal.SIG_IGN}
    for number in taken:
        signal.signal(number, handler)
    return taken


class Interrupt:
    """Ctrl-C and other signals wait until the block is done, or until it looks at `asked`.

    A second one does not wait, unless the block must be whole.
    """

    def __init__(self, whole=False):
        self.whole, self.asked = whole, None  # the number of the first signal

    def __enter__(self):
        self.taken = take_signals(self.ask)
        return self

    def ask(self, number, frame):
        if self.asked and not self.whole:
            interrupt(number, frame)
        self.asked = self.asked or number

    def __exit__(self, kind, *_):
        for number, handler in self.taken.items():
            signal.signal(number, handler)
        if self.asked and kind is None:
            signal.raise_signal(self.asked)


# ---- words and numbers


def number(kind, low, high=float("inf"), above=False):
    """An argparse type: an int or float within [low, high], or (low, high] when `above`."""
    interval = f"{'(' if above else '['}{low}, {high}]"

    def parse(text):
        value = kind(text)
        fits = low <= value <= high and math.isfinite(value)
        if not fits or (above and value == low):
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
    return escaped(bytes(data).decode("utf-8", "replace"))


def escaped(text):
    """Text as one line: control characters escaped."""
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


# ---- files that are given

ENDLESS = 1 << 26  # bytes that no file has which says that it is empty


def refuse_special(path, said):
    """Raises BadInput, which begins with `said`, for all but regular files: others may not end."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as problem:
        raise BadInput(f"{said}: {reason(problem)}") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise BadInput(f"{said}: it is {kind}, not a file")


def check_name(path, said):
    """Raises BadInput, which begins with `said`, for no name or one with a line break or the like.

    It is a mistake, and what is printed of it would be no command to type.
    """
    if not path or any(ord(c) < 32 or ord(c) == 127 for c in str(path)):
        raise BadInput(f"{said}: the name is empty or has control characters in it")


def read_file(path, what, most=1 << 26):
    """The bytes of a file, `most` at most. Raises BadInput, which names `what` it should be."""
    said = f"can't read {what} {path}"
    check_name(path, said)
    refuse_special(path, said)
    try:
        # Files of /proc say that they are empty, and some would make a reader wait.
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = (file.read(size or ENDLESS) if size <= most else None) or b""
    except (OSError, MemoryError) as problem:
        raise BadInput(f"{said}: {reason(problem)}") from None
    if size > most or (not size and len(data) == ENDLESS):
        raise BadInput(f"{said}: it is longer than {most:,} bytes")
    return data


def reason(problem):
    """Why something failed, in the system's words."""
    return getattr(problem, "strerror", None) or str(problem) or type(problem).__name__


def check_target(path, what, is_ours, inputs=()):
    """Raises BadInput where a file may not or can't be written, before there is anything to write.

    is_ours(path): may an existing one be replaced? inputs: files, and folders, that are read.
    """
    said, real = f"can't write {path}", os.path.realpath(path)
    check_name(path, said)
    for given in inputs:
        if os.path.commonpath([os.path.realpath(given), real]) == os.path.realpath(given):
            raise BadInput(f"{said}: it is among what is read ({given}); give another name")
    if os.path.exists(real):
        refuse_special(real, said)
        if not is_ours(real):
            raise BadInput(f"{said}: it exists and is no {what}; give another name")
    try:
        with tempfile.NamedTemporaryFile(dir=os.path.dirname(real), prefix=os.path.basename(real)):
            pass
    except FileNotFoundError:
        raise BadInput(f"{said}: there is no folder {os.path.dirname(real)}") from None
    except OSError as problem:
        raise BadInput(f"{said}: {reason(problem)}") from None


def print_json(row):
    """Print one JSON object on a line of its own; numbers that JSON has not become null."""
    row = json.loads(json.dumps(row), parse_constant=lambda name: None)
    print(json.dumps(row), flush=True)


def progress(what, total, done=0):
    """A progress bar over bytes, on stderr; it goes when it is full."""
    options = {"unit": "B", "unit_scale": True, "leave": False, "dynamic_ncols": True}
    often = 0.5 if sys.stderr.isatty() else 20
    return tqdm(desc=what, total=total, initial=done, mininterval=often, **options)
