"""What commands print of generations: traces as they happen, streamed text, tables."""

import codecs
import time
from dataclasses import replace

import torch

from data import decode
from support.generation import Watch
from support.terminal import SPACE, Column, for_terminal, has_colour, paint, table_of, visible


class Trace(Watch):
    """Prints unmasking steps and rounds as they happen; on a terminal a block's steps overwrite."""

    def begin(self, state):
        self.rounds = 0
        self.steps = 0
        self.waiting = []  # decided, but not taken in

    def bytes(self, ids):
        self.waiting = ids[-1:]

    def step(self, ids, masked):
        """░ is still masked."""
        self.steps += 1
        cells = [visible(decode([id_]), SPACE) or "■" for id_ in ids]
        shown = "".join(paint("░", 36) if m else cell for cell, m in zip(cells, masked))
        begin = "\r" if has_colour() else ""
        end = "" if begin and any(masked) else "\n"
        print(f"{begin}  step {self.steps:2}  {shown}", end=end, flush=True)
        if not any(masked):
            self.steps = 0

    def round(self, state, drafted, accepted, following):
        """Accepted of drafted, what the state has taken in for good (a bar closes a patch), the
        model's own byte, and what was rejected.
        """
        self.rounds += 1
        taken = ""
        ids = [*self.waiting, *drafted[:accepted]]
        for position, id_ in enumerate(ids, state.length - len(ids)):
            bar = paint("|", 34) if state.closes(position) else ""
            taken += visible(decode([id_]), SPACE) + bar
        own = visible(decode([following]), SPACE) or "end"
        own = paint(own, 33, 1) if has_colour() else f" -> {own}"
        line = f"round {self.rounds:3}  {accepted}/{len(drafted):<2}  {paint(taken, 32)}{own}"
        rejected = visible(decode(drafted[accepted:]), SPACE)
        if rejected:
            line += "  " + paint("rejected: " + rejected, 31)
        print(line, flush=True)


class Recorder(Watch):
    """Keeps what it is told as `events`: dicts, with the seconds and Counters then."""

    def begin(self, state):
        self.state = state
        self.events = []
        self.began = time.perf_counter()
        self.see()

    def see(self, **told):
        t = time.perf_counter() - self.began
        self.events.append({"t": t, "counters": replace(self.state.counters), **told})

    def step(self, ids, masked):
        self.see(cells=[None if hidden else id_ for id_, hidden in zip(ids, masked)])

    def draft(self, ids):
        self.see(cells=ids, whole=True)

    def round(self, state, drafted, accepted, following):
        self.see(accepted=accepted, decided=[*drafted[:accepted], following])


class Printer(Watch):
    """Writes new bytes as text at once; the bytes of one character wait for each other."""

    def __init__(self):
        self.text_of = codecs.getincrementaldecoder("utf-8")("replace").decode

    def prompt(self, data):
        """Write a prompt, dim. A character that it leaves open ends with the bytes that follow."""
        print(paint(for_terminal(self.text_of(data)), 2), end="", flush=True)

    def bytes(self, ids):
        print(for_terminal(self.text_of(decode(ids))), end="", flush=True)

    def finish(self):
        """What still waits will not be completed."""
        print(for_terminal(self.text_of(b"", final=True)), end="", flush=True)


COLUMNS = [
    Column("name", "s", "mode, setting"),
    Column("agreement", ".0%", "agrees"),
    Column("output_bits_per_byte", ".2f", "bits/B"),
    Column("distinct_4grams", ".0%", "4-grams"),
    Column("acceptance", ".0%", "accepted"),
    Column("decoder_nfes", ".0f", "dec"),
    Column("encoder_global_nfes", ".0f", "enc+glob"),
    Column("entropy_nfes", ".0f", "patcher"),
    Column("bandwidth_gb", ".2f", "GB"),
    Column("decrease", ".0%", "saved"),
    Column("bytes_per_second", ".0f", "bytes/s"),
    Column("ratio", ".2f", "x blt"),
    Column("spread", "s", "least-most"),
    Column("of_ceiling", ".2f", "of ceiling"),
]


def with_words(rows):
    """The rows of `compare` with what COLUMNS shows in words."""
    shown = []
    for row in rows:
        name = f"{row['mode']} {row['setting']}".strip()
        spread = None
        if row["ratio_spread"]:
            spread = "-".join(f"{ratio:.1f}" for ratio in row["ratio_spread"])
        shown.append({**row, "name": name, "spread": spread})
    return shown


def print_measured(rows, times):
    """The rows of `compare` as a table, and a line below. times: a passes.PassSeconds, or None."""
    print(table_of(with_words(rows), COLUMNS) + "\n")
    mean = rows[0]["mean_patch"]
    if mean is not None:
        print(f"mean patch on plain BLT's text: {mean:.2f} bytes.", end=" ")
    if times is None:
        print("Seconds are those of the plain machine, which say nothing of the method.")
        return
    passes = [f"decoder of {n} {1000 * s:.2f}" for n, s in sorted(times.decoder.items())]
    passes.append(f"patcher of 1 {1000 * times.patcher[1]:.2f}")
    if 1 in times.encoder_global:
        passes.append(f"encoder and global for 1 patch {1000 * times.encoder_global[1]:.2f}")
    threads = f"{torch.get_num_threads()} threads, spread at most {times.spread:.0%}"
    print(f"One pass, ms: {', '.join(passes)}; {threads}")
