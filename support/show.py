"""What the root files print when they are run to show their idea: text, masks, drafts."""

import codecs
import sys
from collections import Counter

import torch

from data import decode
from support.terminal import has_colour, paint, show_patches, table, visible


def draw_rows(seen, kinds, names, groups):
    """Print who sees whom. seen: rows of bools; kinds, names: of the rows, names of columns too.

    groups: sizes of the groups of rows and columns that a gap sets apart.
    """

    def in_groups(marks):
        parts, at = [], 0
        for size in groups:
            parts.append("".join(marks[at : at + size]))
            at += size
        return " ".join(parts)

    starts = {sum(groups[:i]) for i in range(1, len(groups))}
    print(" " * 10 + in_groups(names))
    for r, marks in enumerate(seen):
        if r in starts:
            print()
        print(f"{kinds[r]:<6} {names[r]:>2} {in_groups(['■' if mark else '·' for mark in marks])}")


def show_patching(data, closes, entropies, longest, what):
    """Print a text in its patches, the entropy before each byte, and the lengths of patches.

    closes, entropies: of BOS and every byte; entropies None if there are none; what: the patcher
    in words.
    """
    patches, rows = [b""], []
    for i in range(len(data)):
        if i and closes[i]:
            patches.append(b"")
        byte = data[i : i + 1]
        patches[-1] += byte
        before = f"{entropies[i]:.2f}" if entropies else ""
        rows.append([len(patches), visible(byte), before, "opens" if closes[i] else ""])
    print(show_patches(patches) + "\n")
    if len(rows) <= 400:
        print(table(["patch", "byte", "entropy before it", ""], rows) + "\n")
    mean = len(data) / len(patches)
    print(f"{what}: {len(data)} bytes in {len(patches)} patches, mean {mean:.2f}")
    lengths = Counter(map(len, patches))
    for length in range(1, longest + 1):
        bar = "█" * round(40 * lengths[length] / max(lengths.values()))
        print(f"{length:3} bytes  {lengths[length]:6}  {bar}".rstrip())


def show_blocks(data, closes, blocks, K, sees):
    """Print the patches of a text, the diffusion.Blocks at it, what they hide, who sees whom.

    closes: of BOS and every byte but the last; sees: the rule, layers.sees.
    """
    N = len(closes)
    cuts = [i for i, closed in enumerate(closes) if closed] + [len(data)]
    patches = [data[a:b] for a, b in zip(cuts, cuts[1:])]
    print("patches   " + show_patches(patches))
    # ^ is BOS, · what lies past the end of the text
    letters = ["^"] + [visible(data[i : i + 1]) for i in range(len(data))] + ["·"] * K
    print(f"\nblocks of K = {K}, with the noise t of each and what it hides (░)")
    starts = blocks.starts[0, ::K].tolist()
    order = sorted(range(len(starts)), key=starts.__getitem__)
    for b in order:
        row = ""
        for c in range(b * K, b * K + K):
            hidden = blocks.masked[0, c]
            row += paint("░", 36) if hidden else letters[blocks.positions[0, c]]
        t = 1 / float(blocks.weight[0, b * K])
        print(f"{' ' * (9 + starts[b])}{row}   start {starts[b]}, t {t:.2f}")
    cells = [c for b in order[:4] for c in range(b * K, b * K + K)]
    position = torch.cat([torch.arange(N), blocks.positions[0, cells]])
    start = torch.cat([torch.full((N,), -1), blocks.starts[0, cells]])
    seen = sees(position[:, None], start[:, None], position[None], start[None], 10**9).tolist()
    print(f"\nwho (row) sees whom (column): {N} clean rows, then those of blocks; ^ is BOS")
    names, kinds = [letters[p] for p in position.tolist()], ["clean"] * N + ["block"] * len(cells)
    draw_rows(seen, kinds, names, [N] + [K] * len(order[:4]))


class Trace:
    """Prints unmasking steps and rounds as they happen; on a terminal a block's steps overwrite."""

    def __init__(self):
        self.rounds = self.steps = 0

    def step(self, ids, masked):
        """One unmasking step of a block: ░ is still masked."""
        self.steps += 1
        done, cells = not any(masked), []
        for id_, hidden in zip(ids, masked):
            cells.append(paint("░", 36) if hidden else visible(decode([id_])) or "■")
        end = "" if has_colour() and not done else "\n"
        back = "\r" if has_colour() else ""
        print(f"{back}  step {self.steps:2}  {''.join(cells)}", end=end, flush=True)
        if done:
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


# ---- what generations cost


def summary(mode, made, paper_calls):
    """The lines under a text: speed and cost, and how many bytes rounds accepted."""
    c = made.counters
    parts = [f"{made.new_bytes} bytes", f"{made.bytes_per_second:.0f} bytes/s"]
    if made.mean_patch:
        parts.append(f"mean patch {made.mean_patch:.2f}")
    if c.rounds:
        parts.append(f"{c.rounds} rounds")
    if c.drafted:
        parts.append(f"{made.acceptance:.0%} of {c.drafted} drafted bytes accepted")
    by_paper = f" (the paper's count: {paper_calls})" if c.rounds else ""
    passes = f"decoder {c.decoder}, encoder/global {c.encoder_global}{by_paper}"
    parts.append(f"NFEs: {passes}, patcher {c.entropy}; {made.gigabytes():.2f} GB by Eq. 8")
    lines = f"[{mode}: {', '.join(parts)}]"
    if c.lengths:
        lengths = ", ".join(f"{n} in {rounds}" for n, rounds in sorted(c.lengths.items()))
        lines += f"\n[bytes accepted a round: {lengths} rounds]"
    return lines


def printer():
    """An `emit` that writes ids as text at once; bytes of one character wait for each other."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def emit(ids, final=False):
        sys.stdout.write(decoder.decode(decode(ids), final))
        sys.stdout.flush()

    return emit


# Columns of the table: what stands above them, the key, the form of the number
COLUMNS = """
agrees agreement .0%, bits/B output_bits_per_byte .2f, 4-grams distinct_4grams .0%,
accepted acceptance .0%, dec decoder_nfes .0f, enc+glob encoder_global_nfes .0f,
patcher entropy_nfes .0f, GB bandwidth_gb .2f, saved decrease .0%, bytes/s bytes_per_second .0f,
x_blt ratio .2f, of_ceiling of_ceiling .2f, of_memory_speed memory_bandwidth_share .0%
"""


def print_measured(rows, times):
    """The rows of `compare` as a table."""
    columns = [column.split() for column in COLUMNS.split(",")]
    header = ["mode, setting", *(title.replace("_", " ") for title, _, _ in columns)]
    cells = []
    for r in rows:
        values = ["" if r[key] is None else format(r[key], form) for _, key, form in columns]
        cells.append([f"{r['mode']} {r['setting']}".strip(), *values])
    print(table(header, cells))
    mean_patch = f"mean patch on plain BLT's text: {rows[0]['mean_patch']:.2f} bytes"
    print(f"\n{mean_patch}. {describe_passes(times)}")


def describe_passes(times):
    """A bandwidth.PassSeconds as one line, in milliseconds."""
    parts = [f"decoder of {n} {1000 * times.decoder[n]:.2f}" for n in sorted(times.decoder)]
    parts += [f"patcher of {n} {1000 * times.patcher[n]:.2f}" for n in sorted(times.patcher)]
    parts.append(f"encoder and global for 1 patch {1000 * times.encoder_global[1]:.2f}")
    threads = f"{torch.get_num_threads()} threads, spread at most {times.spread:.0%}"
    return f"One pass, ms: {', '.join(parts)}; {threads}"
