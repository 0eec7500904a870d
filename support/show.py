"""What the root files print to show their idea, text, masks, drafts; what watches generations."""

import codecs
import time
from collections import Counter
from dataclasses import replace
from itertools import accumulate, islice, pairwise

import torch

from data import decode
from support.plots import draw_mask
from support.terminal import has_colour, paint, show_patches, table, table_of, visible


def draw_rows(seen, kinds, names, groups):
    """Print who sees whom. seen: rows of bools; kinds, names: of the rows, names of columns too.

    groups: sizes of the groups of rows and columns that a gap sets apart.
    """

    def in_groups(marks):
        marks = iter(marks)
        return " ".join("".join(islice(marks, size)) for size in groups)

    print(" " * 10 + in_groups(names))
    for r, marks in enumerate(seen):
        if r in accumulate(groups):
            print()
        print(f"{kinds[r]:<6} {names[r]:>2} {in_groups('■' if mark else '·' for mark in marks)}")


def patches_of(data, closes):
    """The patches of a text. closes: of BOS and every byte; where one closes, the next opens."""
    cuts = [i for i in range(len(data)) if closes[i]] + [len(data)]
    return [data[start:end] for start, end in pairwise(cuts)]


def show_patching(data, closes, entropies, config):
    """Print a text in its patches, the entropy before each byte, and the lengths of patches.

    closes, entropies: of BOS and every byte; entropies None if there are none; config: a
    PatcherConfig.
    """
    what, threshold = f"{config.kind} patcher", config.threshold
    if entropies:
        what += f", threshold {threshold:.3f} nats"
    patches, rows = patches_of(data, closes), []
    for i, number in zip(range(len(data)), accumulate(map(int, closes))):
        before = f"{entropies[i]:.2f}" if entropies else ""
        rows.append([number, visible(data[i : i + 1]), before, "opens" if closes[i] else ""])
    print(show_patches(patches) + "\n")
    if len(rows) <= 400:
        print(table(["patch", "byte", "entropy before it", ""], rows) + "\n")
    size, count = len(data), len(patches)
    print(f"{what}: {size} bytes in {count} patches, mean {size / count:.2f}")
    lengths = Counter(map(len, patches))
    for length in range(1, (config.max_patch or max(lengths)) + 1):
        bar = "█" * round(40 * lengths[length] / max(lengths.values()))
        print(f"{length:3} bytes  {lengths[length]:6}  {bar}".rstrip())


def show_blocks(data, closes, blocks, K, sees, plot=None):
    """Print the patches of a text, the diffusion.Blocks at it, and what they hide.

    closes: of BOS and every byte but the last; plot: a file to draw who sees whom in, by the rule
    layers.sees, or None.
    """
    N = len(closes)
    print("patches   " + show_patches(patches_of(data, closes)))
    # ^ is BOS, · what lies past the end of the text
    letters = ["^"] + [visible(data[i : i + 1]) for i in range(len(data))] + ["·"] * K
    print(f"\nblocks of K = {K}, with the noise t of each and what it hides (░)")
    # a row for each block
    parts = (blocks.positions, blocks.masked, blocks.starts, blocks.weight)
    positions, masked, starts, weight = (part[0].reshape(-1, K) for part in parts)
    order = starts[:, 0].argsort(stable=True)
    for b in order.tolist():
        cells = zip(positions[b].tolist(), masked[b])
        row = "".join(paint("░", 36) if hidden else letters[p] for p, hidden in cells)
        start, t = int(starts[b, 0]), 1 / float(weight[b, 0])
        print(f"{' ' * (9 + start)}{row}   start {start}, t {t:.2f}")
    if plot:
        shown = order[:4]
        position = torch.cat([torch.arange(N), positions[shown].flatten()])
        start = torch.cat([torch.full((N,), -1), starts[shown].flatten()])
        seen = sees(position[:, None], start[:, None], position[None], start[None], 10**9).tolist()
        draw_mask(plot, seen, [letters[p] for p in position.tolist()], [N] + [K] * len(shown))


class Trace:
    """Prints unmasking steps and rounds as they happen; on a terminal a block's steps overwrite.

    Whatever watches a generation has these four methods.
    """

    rounds = steps = 0

    def begin(self, stream):
        """The stream has taken the prompt in, and the clock starts."""

    def draft(self, ids):
        """A whole draft, before it is verified: `round` shows it."""

    def step(self, ids, masked):
        """One unmasking step of a block: ░ is still masked."""
        self.steps += 1
        cells = [visible(decode([id_])) or "■" for id_ in ids]
        shown = "".join(paint("░", 36) if m else cell for cell, m in zip(cells, masked))
        begin = "\r" if has_colour() else ""
        end = "" if begin and any(masked) else "\n"
        print(f"{begin}  step {self.steps:2}  {shown}", end=end, flush=True)
        if not any(masked):
            self.steps = 0

    def round(self, processed, drafted, accepted, following):
        """One verification. processed: what the stream took in for good, each with whether it
        closes its patch (a bar behind it). following: the byte that is the model's own.
        """
        self.rounds += 1
        taken = "".join(visible(decode([i])) + paint("|", 34) * closes for i, closes in processed)
        own = visible(decode([following])) or "end"
        own = paint(own, 33, 1) if has_colour() else f" -> {own}"
        line = f"round {self.rounds:3}  {accepted}/{len(drafted):<2}  {paint(taken, 32)}{own}"
        rejected = visible(decode(drafted[accepted:]))
        if rejected:
            line += "  " + paint("rejected: " + rejected, 31)
        print(line, flush=True)


class Recorder:
    """A trace that keeps what it is told as `events`: dicts, with the seconds and Counters then."""

    def begin(self, stream):
        self.stream, self.events, self.began = stream, [], time.perf_counter()
        self.see()

    def see(self, **told):
        t, counters = time.perf_counter() - self.began, replace(self.stream.counters)
        self.events.append({"t": t, "counters": counters, **told})

    def step(self, ids, masked):
        self.see(cells=[None if hidden else id_ for id_, hidden in zip(ids, masked)])

    def draft(self, ids):
        self.see(cells=ids, whole=True)

    def round(self, processed, drafted, accepted, following):
        self.see(accepted=accepted, decided=[*drafted[:accepted], following])


def summary(mode, made, paper_calls, plain):
    """The lines under a text: bytes that rounds accepted; speed and cost. plain: by plain BLT."""
    c, ratio = made.counters, made.bytes_per_second / max(1e-9, plain.bytes_per_second)
    by_paper = f" (the paper's count: {paper_calls})" if c.rounds else ""
    passes = f"decoder {c.decoder}, encoder/global {c.encoder_global}{by_paper}"
    parts = [
        f"{made.new_bytes} bytes, {made.bytes_per_second:.0f} bytes/s",
        mode != "blt" and plain.new_bytes and f"{ratio:.2f} times plain BLT",
        made.mean_patch and f"mean patch {made.mean_patch:.2f}",
        c.rounds and f"{c.rounds} rounds",
        c.drafted and f"{made.acceptance:.0%} of {c.drafted} drafted bytes accepted",
        f"NFEs: {passes}, patcher {c.entropy}; {made.gigabytes():.2f} GB by Eq. 8",
    ]
    lengths = ", ".join(f"{n} in {rounds}" for n, rounds in sorted(c.lengths.items()))
    before = f"[bytes accepted a round: {lengths} rounds]\n" if lengths else ""
    return before + f"[{mode}: {', '.join(filter(None, parts))}]"


def printer():
    """An `emit` that writes ids as text at once; bytes of one character wait for each other."""
    text_of = codecs.getincrementaldecoder("utf-8")("replace").decode
    return lambda ids, final=False: print(text_of(decode(ids), final), end="", flush=True)


COLUMNS = """
name s mode, setting | agreement .0% agrees | output_bits_per_byte .2f bits/B |
distinct_4grams .0% 4-grams | acceptance .0% accepted | decoder_nfes .0f dec |
encoder_global_nfes .0f enc+glob | entropy_nfes .0f patcher | bandwidth_gb .2f GB |
decrease .0% saved | bytes_per_second .0f bytes/s | ratio .2f x blt | spread s least-most |
of_ceiling .2f of ceiling
"""


def print_measured(rows, times):
    """The rows of `compare` as a table, and a passes.PassSeconds in a line below."""
    named = [{**row, "name": f"{row['mode']} {row['setting']}".strip()} for row in rows]
    for row in named:
        row["spread"] = "-".join(f"{ratio:.1f}" for ratio in row["ratio_spread"])
    print(table_of(named, COLUMNS))
    passes = [f"decoder of {n} {1000 * s:.2f}" for n, s in sorted(times.decoder.items())]
    passes.append(f"patcher of 1 {1000 * times.patcher[1]:.2f}")
    passes.append(f"encoder and global for 1 patch {1000 * times.encoder_global[1]:.2f}")
    threads = f"{torch.get_num_threads()} threads, spread at most {times.spread:.0%}"
    print(f"\nmean patch on plain BLT's text: {rows[0]['mean_patch']:.2f} bytes.", end=" ")
    print(f"One pass, ms: {', '.join(passes)}; {threads}")
