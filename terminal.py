"""What people look at: colours where the terminal has them, one clear line for bad input, bytes as printable text."""
import argparse
import os
import sys

BACKGROUNDS = (44, 42, 45, 46, 41, 43)  # ANSI background colours that neighbouring patches take in turn


class BadInput(Exception):
    """Something the user gave can't be used; the message says what was wrong and what to do."""


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line with exit code 2, like every other bad input here."""

    def __init__(self, **options):
        super().__init__(formatter_class=argparse.ArgumentDefaultsHelpFormatter, **options)

    def error(self, message):
        raise BadInput(f"{message} (see {self.prog} --help)")


def run(main):
    """Run a script's `main()`: bad input ends in one line on stderr and exit code 2, a closed pipe or Ctrl-C quietly."""
    name = os.path.basename(sys.argv[0])
    try:
        sys.exit(main())
    except BadInput as problem:
        print(f"{name}: {problem}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # keeps the flush at exit from failing too
        sys.exit(141)


def number(kind, low, high=float("inf"), above=False):
    """An argparse type: an int or float within [low, high], or (low, high] when `above`."""
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is not a number of type {kind.__name__}") from None
        if not (low <= value <= high) or (above and value == low):
            raise argparse.ArgumentTypeError(f"{text} is outside {'(' if above else '['}{low}, {high}]")
        return value
    return parse


def has_colour(stream=None):
    """True where `stream` (default stdout) is a terminal that shows colours; NO_COLOR and TERM=dumb turn them off."""
    stream = stream or sys.stdout
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def paint(text, *codes):
    """`text` with the ANSI codes around it, or as it is where there is no colour."""
    return f"\x1b[{';'.join(map(str, codes))}m{text}\x1b[0m" if codes and has_colour() else text


def visible(data):
    """Bytes as one line of text: control bytes escaped, invalid UTF-8 shown as the replacement character."""
    text = bytes(data).decode("utf-8", "replace")
    return "".join({"\n": "⏎", "\t": "⇥"}.get(c, c if c.isprintable() else f"\\x{ord(c):02x}") for c in text)


def show_patches(patches):
    """One line of text: the patches (a list of bytes) on changing backgrounds, or between bars where there is no colour."""
    if has_colour():
        return "".join(paint(visible(p), 30, BACKGROUNDS[i % len(BACKGROUNDS)]) for i, p in enumerate(patches))
    return "|".join(visible(p) for p in patches)


def write_text(data):
    """Write bytes to stdout as text at once, whatever the terminal's encoding can't show replaced."""
    text = bytes(data).decode("utf-8", "replace")
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def table(header, rows):
    """Rows of cells as aligned text, the first column to the left and numbers to the right."""
    cells = [[str(c) for c in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))) for row in cells]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])
