"""What docs/RESULTS.md shows, measured anew and written there: tables, a picture, how and on what.

    python -m scripts.results --quick --page /tmp/page.md   # all of it, small: a few minutes
    python -m scripts.results --only speed                  # one part
    python -m scripts.results --held-out valid.txt          # all of it, a quarter of an hour

A part is written between its two marks in the page, as soon as it is measured. The parts, and how
long they take for a model of 7 M parameters on one core:

    quality   bits per byte of held-out text, beside xz and a plain twin     5 minutes a megabyte
    speed     each mode greedy and sampled, over openings and seeds          5 minutes
    eq8       passes and gigabytes of each mode                              1 minute
    passes    seconds of single passes                                       seconds
    modes     every mode and setting of the paper's appendix, and a picture  5 minutes
"""

import datetime
import functools
import hashlib
import os
import platform
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import torch

from bandwidth import (
    PAPER_MODELS,
    Setting,
    acceptance,
    compare,
    cost_of,
    gigabytes,
    measure,
    read_prompts,
    settings_of,
    share,
    total,
)
from data import DocumentIds
from evaluation.likelihood import held_out_texts, xz_size
from fast.load import load
from generate import Sampling
from measure.passes import pass_seconds, settle_threads
from measure.plots import draw_tradeoff
from measure.quality import bits_per_byte, distinct_4grams
from measure.show import COLUMNS, with_words
from scripts.bytelm import load_twin, speed_of
from speculate import MODES, Drafting
from support import checkpoint
from support.flags import Only, add_checkpoint, add_texts
from support.hardware import choose_device
from support.terminal import BadInput, Parser, check_writable, progress, read_file, run, table_of

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PAGE = os.path.join(ROOT, "docs", "RESULTS.md")
SEEDS = (0, 1, 2)
SAMPLED = (0.8, 0.95)  # temperature and top-p
# Published by others, of text that may be another part of the same collection
PEER = ("a Fast BLT in C/CUDA, 7.8 M parameters, as published, on TinyStories", 1.147)


# ---- what is measured on


class Bench:
    """A model with all that its parts are measured on. What several parts read is made once."""

    def __init__(self, options):
        self.options = options
        self.path = checkpoint.find(options.checkpoint)
        self.device = choose_device(options.device)
        self.machine = load(self.path, self.device)
        settle_threads(self.machine)
        self.length = 48 if options.quick else 256
        self.prompts = read_prompts(None, self.machine.openings)[: 2 if options.quick else None]
        self.seeds = SEEDS[:1] if options.quick else SEEDS

    @functools.cached_property
    def settings(self):
        """The settings that a reader compares, those without copies first."""
        config = self.machine.model.config
        settings = [Setting("blt", "", Drafting())]
        rules = ["one-step"] if config.block_size else []
        if config.chain_width:
            rules.insert(0, "chained")
        for rule in rules:
            settings.append(Setting("bltdv", rule, Drafting(unmask=rule, copy=0)))
            if rule == "chained":
                shorter = Drafting(unmask=rule, alpha=0.02, copy=0)
                settings.append(Setting("bltdv", "chained, α = 0.02", shorter))
        if config.block_size > 4:
            short = Drafting(block_size=4, unmask="one-step", copy=0)
            settings.append(Setting("bltdv", "one-step, K = 4", short))
        settings.append(Setting("blts", "k = 8", Drafting(draft_size=8)))
        settings.append(Setting("blts", "k = 16", Drafting(draft_size=16)))
        settings.append(Setting("blts", "k = 16, α = 0.1", Drafting(draft_size=16, alpha=0.1)))
        if rules:
            settings.append(Setting("bltd", "α = 0.7", Drafting(unmask="confidence", alpha=0.7)))
            copies = Drafting(unmask=rules[0], copy=16)
            settings.append(Setting("bltdv", f"{rules[0]}, copies of 16", copies))
        settings.append(Setting("lookup", "k = 8, copies alone", Drafting(draft_size=8)))
        return settings

    def write(self, settings, temperature, top_p, seed):
        """What every setting writes behind every prompt -> a list of Generations for each."""

        def sampling_of():
            return Sampling(temperature, top_p, ignore_eos=True, seed=seed)

        return measure(self.machine, self.prompts, self.length, settings, sampling_of)

    @functools.cached_property
    def greedy(self):
        """What the settings write greedily."""
        return self.write(self.settings, 0.0, 1.0, 0)

    @functools.cached_property
    def sampled(self):
        """What they write sampled: of each seed."""
        return [self.write(self.settings, *SAMPLED, seed) for seed in self.seeds]

    @functools.cached_property
    def twin(self):
        """The plain twin that was given, or None."""
        if not self.options.twin:
            return None
        twin, _ = load_twin(self.options.twin, self.device)
        return twin

    def how(self):
        """How many of what is measured, in words."""
        return f"{len(self.prompts)} openings of held-out text, {self.length} bytes each"


# ---- the parts: each gives what stands between its marks


def markdown(header, rows):
    """A table as Markdown has it; what is None stays blank."""
    lines = [header, ["---"] * len(header), *rows]
    cells = [["" if cell is None else str(cell) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def quality(bench):
    """How many bits each held-out byte costs, beside what knows less and what others name."""
    options = bench.options
    text = SimpleNamespace(
        data=options.held_out, separator=options.separator, checkpoint=bench.path
    )
    texts, name = held_out_texts(text)
    # Where it lies is nobody else's business.
    name = os.path.basename(name)
    if options.quick:
        texts = [text[:2000] for text in texts[:4]]
    size = sum(map(len, texts))
    documents = [DocumentIds(text) for text in texts]
    rows = []
    readers = {f"this model, {parameters(bench.machine)}": bench.machine.state}
    if bench.twin:
        count = sum(p.numel() for p in bench.twin.model.parameters())
        words = f"its plain twin over bytes, {count / 1e6:.2f} M parameters"
        readers[words] = bench.twin.state
    for words, new_state in readers.items():
        with progress("bits per byte", size + len(texts)) as bar:
            bits = bits_per_byte(new_state, documents, bar.update)
        rows.append([words, f"{bits:.3f}"])
    rows.append(["`xz -6`, all of it as one file", f"{8 * xz_size(texts) / size:.3f}"])
    words, bits = PEER
    rows.append([words, f"{bits:.3f}"])
    header = [f"bits per byte of {size:,} held-out bytes ({name})", ""]
    return markdown(header, rows)


def parameters(machine):
    """How large a model is, in words."""
    count = sum(machine.model.sizes().values()) + machine.patcher.size()
    return f"{count / 1e6:.2f} M parameters"


def ratios(outputs, plain):
    """How many times as fast as plain BLT, opening by opening -> list."""
    found = [share(a.bytes_per_second, b.bytes_per_second) for a, b in zip(outputs, plain)]
    return [ratio for ratio in found if ratio is not None]


def ratio_in_words(several, plains):
    """The speed over plain BLT's, and the least and most of it: over openings, or over seeds."""
    made = [total(outputs) for outputs in several]
    base = [total(outputs) for outputs in plains]
    if len(several) == 1:
        alone = ratios(several[0], plains[0])
    else:
        alone = ratios(made, base)
    whole = share(total(made).bytes_per_second, total(base).bytes_per_second)
    return f"**{whole:.2f}** ({min(alone):.2f}-{max(alone):.2f})"


def speed(bench):
    """How fast each mode is, greedy and sampled, and what its drafts are worth."""
    rows = []
    for number, (mode, name, _) in enumerate(bench.settings):
        greedy = bench.greedy[number]
        sampled = [made[number] for made in bench.sampled]
        of_seeds = total([made for outputs in sampled for made in outputs])
        row = [f"`{mode}` {name}".strip(), f"{total(greedy).bytes_per_second:.0f}"]
        row.append(ratio_in_words([greedy], [bench.greedy[0]]))
        row.append(f"{of_seeds.bytes_per_second:.0f}")
        row.append(ratio_in_words(sampled, [made[0] for made in bench.sampled]))
        accepted = acceptance(of_seeds)
        row.append(None if accepted is None else f"{accepted:.0%}")
        rounds = of_seeds.counters.rounds
        row.append(f"{of_seeds.new_bytes / rounds:.1f}" if rounds else None)
        row.append("yes" if mode == "blt" or MODES[mode].verified else "no")
        rows.append(row)
    if bench.twin:
        rows.append(row_of_twin(bench))
    temperature, top_p = SAMPLED
    header = [
        "mode",
        "greedy, bytes/s",
        "x `blt` (by opening)",
        f"temperature {temperature}, bytes/s",
        "x `blt` (by seed)",
        "drafts kept",
        "bytes a round",
        "`blt`'s text",
    ]
    seeds = f"seeds {', '.join(map(str, bench.seeds))}"
    loops = [[made.ids for made in outputs[0]] for outputs in (bench.greedy, bench.sampled[0])]
    distinct = [f"{distinct_4grams(ids):.0%}" for ids in loops]
    return (
        f"{bench.how()}; sampled at {temperature}, top-p {top_p}, {seeds}. Kept drafts and bytes a "
        f"round are those of sampling. Of plain BLT's 4-grams {distinct[0]} differ greedy, "
        f"{distinct[1]} sampled: text that loops flatters drafts.\n\n{markdown(header, rows)}"
    )


def row_of_twin(bench):
    """The row of the plain twin, whose text is its own."""
    found = []
    for how, seeds in (((0.0, 1.0), (0,)), (SAMPLED, bench.seeds)):
        found.append(speed_of(bench.twin, bench.prompts, bench.length, *how, seeds))
    base = [total(bench.greedy[0]), total([one for made in bench.sampled for one in made[0]])]
    row = ["plain twin over bytes"]
    for fast, plain in zip(found, base):
        row += [f"{fast:.0f}", f"**{fast / plain.bytes_per_second:.2f}**"]
    return [*row, None, None, "its own"]


def eq8(bench):
    """Passes and gigabytes of a greedy generation, which are the same on any machine."""
    rows = []
    plain = cost_of(total(bench.greedy[0]))
    for (mode, name, _), outputs in zip(bench.settings, bench.greedy):
        cost = cost_of(total(outputs))
        row = [f"`{mode}` {name}".strip()]
        for key in ("decoder_nfes", "encoder_global_nfes", "entropy_nfes"):
            row.append(f"{cost[key] / len(outputs):.0f}")
        row.append(f"{cost['bandwidth_gb'] / len(outputs):.2f}")
        row.append(f"{1 - cost['bandwidth_gb'] / plain['bandwidth_gb']:.0%}")
        rows.append(row)
    header = ["mode", "decoder", "encoder + global", "patcher", "GB", "saved"]
    table = markdown(header, rows)
    return f"{bench.how()}, greedy; of one generation.\n\n{table}\n\n{at_papers_sizes(bench)}"


def at_papers_sizes(bench):
    """What the same passes would save if the parts were those of the paper's models."""
    size = bench.machine.model.sizes()
    header = ["mode"]
    rows = [[f"`{mode}` {name}".strip()] for mode, name, _ in bench.settings]
    made = {"greedy": [bench.greedy], f"temperature {SAMPLED[0]}": bench.sampled}
    for name, parts in PAPER_MODELS.items():
        for how, seeds in made.items():
            header.append(f"{name}, {how}")
            read = []
            for number in range(len(rows)):
                spent = total([one for outputs in seeds for one in outputs[number]]).counters
                # The paper has no chained head: here it is as large a share of the decoder as ours.
                of_cells = spent.chain * size["chain"] / size["decoder"]
                decoder = spent.decoder + of_cells
                read.append(gigabytes(decoder, spent.encoder_global, *parts))
            for row, gb in zip(rows, read):
                row.append(f"{1 - gb / read[0]:.0%}")
    words = "Saved by Eq. 8 if these passes were those of the paper's models, whose decoder is an "
    words += "eighth (1B) and an eighteenth (3B) of encoder and global model:"
    return f"{words}\n\n{markdown(header, rows)}"


def passes(bench):
    """How long single passes take."""
    K = bench.machine.model.config.block_size
    widths = sorted({1, 9, K, K + 1} - {0})
    times = pass_seconds(bench.machine, widths, repeats=5 if bench.options.quick else 20)
    rows = [[f"decoder, {n} rows", f"{1000 * times.decoder[n]:.2f}"] for n in widths]
    for m, seconds in sorted(times.encoder_global.items()):
        rows.append([f"encoder and global model, {m} patches", f"{1000 * seconds:.2f}"])
    rows.append(["patcher, 1 row", f"{1000 * times.patcher[1]:.2f}"])
    for n, seconds in sorted(times.chain.items()):
        rows.append([f"chained head, {n} cells drawn", f"{1000 * seconds:.2f}"])
    table = markdown(["one pass", "ms"], rows)
    return f"Medians of passes timed in turn, spread at most {times.spread:.0%}.\n\n{table}"


def modes(bench):
    """Modes and settings sampled, as bandwidth.py measures them, and its picture.

    Of the sizes of blocks in between, which bandwidth.py has too, none.
    """
    model = bench.machine.model
    sizes = None, 4, model.config.block_size
    settings = [one for one in settings_of(model) if one.drafting.block_size in sizes]
    if bench.options.quick:
        settings = settings[:3]
    made = bench.write(settings, *SAMPLED, 0)
    rows, _ = compare(bench.machine, bench.prompts, settings, made)
    temperature, top_p = SAMPLED
    how = f"{bench.how()}, temperature {temperature}, top-p {top_p}"
    folder = os.path.dirname(os.path.abspath(bench.options.page))
    draw_tradeoff(os.path.join(folder, "tradeoff.png"), rows, how)
    picture = "![gigabytes and milliseconds a byte against bits a byte of the output](tradeoff.png)"
    return f"{how}.\n\n```\n{table_of(with_words(rows), COLUMNS)}\n```\n\n{picture}"


class Part(NamedTuple):
    """A part of the page."""

    run: Callable  # takes a Bench -> what stands in the page
    takes: str  # how long, in words


PARTS = {
    "quality": Part(quality, "5 minutes a megabyte"),
    "speed": Part(speed, "5 minutes"),
    "eq8": Part(eq8, "1 minute"),
    "passes": Part(passes, "seconds"),
    "modes": Part(modes, "5 minutes"),
}


# ---- the page


def marks_of(name):
    """The two lines that a part stands between."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def put_between(page, name, text):
    """A page with a part's text between its marks. Raises BadInput where they are missing."""
    first, last = marks_of(name)
    head, found, rest = page.partition(first)
    _, found_too, tail = rest.partition(last)
    if not found or not found_too:
        raise BadInput(f"the page has no place for {name}: put two lines there, {first} and {last}")
    return f"{head}{first}\n{text}\n{last}{tail}"


def measured_on(bench, name):
    """The line above a part: its command, when and on what it was measured."""
    options = bench.options
    command = f"python -m scripts.results --only {name}"
    for flag in ("checkpoint", "twin"):
        given = getattr(options, flag)
        if given:
            command += f" --{flag} {path_in_words(given)}"
    if options.held_out:
        command += f" --held-out {' '.join(map(os.path.basename, options.held_out))}"
    if options.quick:
        command += " --quick"
    digest = hashlib.sha256(read_file(bench.path, "the checkpoint")).hexdigest()
    model = f"{os.path.basename(bench.path)} (sha256 {digest[:16]})"
    threads = f"threads: {torch.get_num_threads()}" if bench.device == "cpu" else bench.device
    today = datetime.date.today().isoformat()
    where = f"{processor()}, {threads}, torch {torch.__version__}"
    return f"`{command}`, {today}: {model} on {where}."


def path_in_words(path):
    """A path from the project's folder on; of a file elsewhere its name alone."""
    inside = os.path.relpath(path, ROOT)
    return os.path.basename(path) if inside.startswith("..") else inside


def processor():
    """The name of the CPU, as far as the system tells it."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def write(path, text):
    """Write the page at once: whoever interrupts this keeps the one before."""
    with open(f"{path}.part", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(f"{path}.part", path)


# ---- the command


def options_from(argv):
    words = ", ".join(f"{name} {part.takes}" for name, part in PARTS.items())
    parser = Parser(prog="scripts.results", description=f"Measure what the page shows: {words}.")
    add = parser.add_argument
    add_checkpoint(Only(parser, ["checkpoint", "device"]))
    help_ = "text to measure on (default: what the checkpoint's training held out)"
    add("--held-out", nargs="+", metavar="PATH", help=help_)
    add_texts(Only(parser, ["separator"]))
    add("--twin", metavar="FILE", help="of scripts.bytelm, to stand beside it")
    add("--only", nargs="+", choices=PARTS, metavar="PART", help=f"some of {', '.join(PARTS)}")
    add("--quick", action="store_true", help="a little of everything, to see that it works")
    add("--page", default=PAGE, metavar="FILE", help="to write into (default: docs/RESULTS.md)")
    return parser.parse_args(argv)


def main(argv=None):
    options = options_from(argv)
    names = options.only or list(PARTS)
    check_writable(options.page)
    for name in names:  # refused now rather than after minutes
        put_between(read_file(options.page, "the page").decode(), name, "")
    bench = Bench(options)
    for name in names:
        part = PARTS[name]
        takes = "a minute or less" if options.quick else part.takes
        print(f"{name}: {part.run.__doc__.splitlines()[0]} ({takes})", file=sys.stderr)
        text = f"{measured_on(bench, name)}\n\n{part.run(bench)}"
        # Read anew: who edits the page meanwhile loses nothing.
        page = read_file(options.page, "the page").decode()
        write(options.page, put_between(page, name, text))
        print(f"{text}\n")


if __name__ == "__main__":
    run(main, "scripts.results")
