"""What the root files print to show their ideas: masks, and texts in their patches."""

from collections import Counter
from itertools import accumulate, islice, pairwise

from support.terminal import SPACE, show_patches, table, visible


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
    """A text cut behind every byte that closes a patch. closes: of each byte -> list of bytes."""
    ends = [i + 1 for i in range(len(data)) if closes[i]]
    if not ends or ends[-1] < len(data):  # the last patch may be open
        ends.append(len(data))
    return [data[start:end] for start, end in pairwise([0, *ends])]


def rule_in_words(kind, threshold, longest):
    """A patcher in words. threshold: in nats, or None; longest: most bytes of a patch, or 0."""
    words = f"{kind} patcher"
    if threshold is not None:
        words += f", threshold {threshold:.3f} nats"
    return f"{words}, at most {longest or 'any number of'} bytes a patch"


def show_patching(data, closes, entropies, rule, longest):
    """Print a text in its patches, each byte with the entropy after it, the lengths of patches.

    closes, entropies: of BOS, which is a patch of its own, and of each byte; entropies None if
    there are none; rule: the patcher in words; longest: bytes that a patch holds at most, or 0.
    """
    patches = patches_of(data, closes[1:])
    print(show_patches(patches) + "\n")
    if len(data) <= 400:
        letters = ["BOS", *(visible([byte], SPACE) for byte in data)]
        patch = 1
        rows = []
        for i, letter in enumerate(letters):
            after = f"{entropies[i]:.2f}" if entropies else ""
            rows.append([patch, letter, after, "closes" if closes[i] else ""])
            patch += closes[i]
        print(table(["patch", "byte", "entropy after it", "its patch"], rows) + "\n")
    size = len(data)
    count = len(patches)
    print(f"{rule}: {size} bytes in {count} patches, mean {size / count:.2f}")
    lengths = Counter(map(len, patches))
    for length in range(1, (longest or max(lengths)) + 1):
        bar = "█" * round(40 * lengths[length] / max(lengths.values()))
        print(f"{length:3} bytes  {lengths[length]:6}  {bar}".rstrip())
