"""What the six files of the method show when they are run: each its idea, on a line of text."""

import os
from dataclasses import asdict

import torch

from data import BOS, decode, encode
from diffusion import make_blocks
from fast.load import load_model, patcher_from
from fast.patching import calibrate
from generate import Prefix, Sampling, ban
from layers import Rows, mask_of
from measure.show import Trace
from model import BLT, BLTConfig
from patcher import KINDS, PatcherConfig
from speculate import run_mode
from support import checkpoint
from support.flags import TEXT, idea_options, text_for
from support.generation import Counters
from support.pictures import draw_mask
from support.presets import RECIPES, SIZES, Recipe
from support.show import draw_rows, patches_of, rule_in_words, show_patching
from support.terminal import (
    SPACE,
    BadInput,
    Parser,
    number,
    paint,
    read_file,
    run,
    show_patches,
    table,
    visible,
)

LONGEST = 1 << 20  # bytes of a file that is shown in its patches


def layers(argv=None):
    """The attention rule as a picture."""
    Parser(prog="layers.py", description="Draw the attention rule.").parse_args(argv)
    n = 12
    window = 6
    start = 8
    drafted = 2
    cells = 4
    text = Rows.clean(n, "cpu")
    place = torch.arange(drafted + cells)
    block = Rows(start + place, torch.full_like(place, start), place < drafted)
    rows = Rows(*(torch.cat(both) for both in zip(text, block)))
    names = [str(p % 10) for p in rows.position.tolist()]
    print(
        f"{n} clean rows that see {window}; at position {start} a block of drafted bytes and cells"
    )
    kinds = ["clean"] * n + ["draft"] * drafted + ["cell"] * cells
    draw_rows(mask_of(rows, window).tolist(), kinds, names, [n, drafted + cells])


def patcher(argv=None):
    """A text in its patches."""
    parser = Parser(prog="patcher.py", description="Show a text in its patches.")
    source = parser.add_mutually_exclusive_group()
    help_ = "the text to show (default: the beginning of text that the model knows)"
    source.add_argument("--text", help=help_)
    source.add_argument("--file", help="a file to show instead")
    parser.add_argument("--checkpoint", help="whose entropy model and threshold to use")
    parser.add_argument("--kind", choices=KINDS, help="another rule than the checkpoint's")
    help_ = "nats; default: the checkpoint's, for another --kind what makes patches of 4 bytes here"
    parser.add_argument("--threshold", type=number(float, -100, 100), help=help_)
    parser.add_argument("--max-patch", type=number(int, 1, 1 << 20), help="another limit in bytes")
    options = parser.parse_args(argv)
    if options.file is not None:
        data = read_file(options.file, "the text")
    elif options.text is not None:
        data = os.fsencode(options.text)
    else:
        data = os.fsencode(text_for(options.checkpoint, TEXT))
    if not data:
        raise BadInput("there is no text to show: it is empty")
    if len(data) > LONGEST:
        raise BadInput(f"the text has {len(data):,} bytes: this shows up to {LONGEST:,}")
    loaded = patcher_from(checkpoint.load(checkpoint.find(options.checkpoint)))
    trained = loaded.config
    changes = {name: getattr(options, name) for name in ("kind", "threshold", "max_patch")}
    given = {name: value for name, value in changes.items() if value is not None}
    c = loaded.config = PatcherConfig(**{**asdict(trained), **given})
    ids = torch.tensor([BOS, *encode(data)])
    if c.kind != trained.kind and options.threshold is None:
        # A threshold of entropies says nothing about their differences.
        calibrate(loaded, [ids])
    threshold = None
    entropies = None
    if loaded.needs_entropy:
        threshold = c.threshold
        entropies = loaded.entropies(ids).tolist()
    rule = rule_in_words(c.kind, threshold, c.max_patch)
    show_patching(data, loaded.closes(ids).tolist(), entropies, rule, c.max_patch)


def model(argv=None):
    """The sizes of the presets."""
    Parser(prog="model.py", description="Parameters of every preset.").parse_args(argv)
    rows = []
    for name, size in SIZES.items():
        with torch.device("meta"):  # shapes alone, no memory
            sizes = BLT(BLTConfig(**size["model"])).sizes()
        rows.append([name, *(f"{n / 1e6:,.2f}" for n in sizes.values())])
    print("parameters in millions; the n-gram tables are looked up, not multiplied")
    print(table(["preset", *sizes], rows))


def generate(argv=None):
    """Plain BLT at work: each byte, how sure it was, and the passes run so far."""
    options = idea_options("generate.py", "Watch plain BLT write.", bytes=12)(argv)
    state = Prefix(*load_model(checkpoint.find(options.checkpoint)))
    sampling = Sampling(ignore_eos=True)
    rows = []
    logits = state.extend([BOS, *encode(os.fsencode(options.text))])[-1]
    state.counters = Counters()  # of the output alone
    for _ in range(options.bytes):
        best = torch.softmax(ban(logits, sampling), -1).topk(3)
        id_, *others = (visible(decode([i]), SPACE) for i in best.indices.tolist())
        logits = state.extend(best.indices[:1].tolist())[-1]
        closes = "closes" if state.closes(state.length - 1) else ""
        passes = [state.counters.encoder_global, state.counters.decoder]
        rows.append([id_, f"{best.values[0]:.0%}", "  ".join(others), closes, *passes])
    print(table(["byte", "sure", "or", "its patch", "encoder+global", "decoder"], rows))


def diffusion(argv=None):
    """Blocks at a line of text, and what they hide."""
    options = idea_options("diffusion.py", "Show blocks and the mask.", plot=True)(argv)
    data = os.fsencode(options.text)
    if not 2 <= len(data) <= 60:
        raise BadInput(f"--text has {len(data)} bytes: the picture needs 2 to 60")
    loaded = patcher_from(checkpoint.load(checkpoint.find(options.checkpoint)))
    recipe = Recipe(4, **RECIPES["paper"])
    ids = torch.tensor([[BOS] + encode(data)])
    closes = loaded.closes(ids[0])[None]
    corrupted = make_blocks(ids, closes[:, :-1], recipe, [torch.Generator().manual_seed(0)])
    show_blocks(data, closes[0].tolist(), corrupted, recipe.block_size, options.plot)


def show_blocks(data, closes, corrupted, K, plot=None):
    """Print the patches of a text, the blocks at it, and what they hide.

    closes: of BOS and every byte; plot: a file to draw who sees whom in, or None.
    """
    N = len(data)  # clean rows: BOS and all bytes but the last
    print("patches   " + show_patches(patches_of(data, closes[1:])))
    # ▸ is BOS, · what lies past the end of the text
    letters = ["▸", *(visible([byte], SPACE) for byte in data), *(["·"] * K)]
    print(f"\nblocks of K = {K}, with the noise t of each and what it hides (░)")
    blocks = corrupted.blocks
    # (P,) -> (blocks, K) each, in the order of their starts
    of_cell = blocks.positions, blocks.starts, corrupted.counts, corrupted.weight
    positions, starts, hidden, weight = (part[0].reshape(-1, K) for part in of_cell)
    order = starts[:, 0].argsort(stable=True)
    for b in order.tolist():
        cells = zip(positions[b].tolist(), hidden[b])
        shown = "".join(paint("░", 36) if masked else letters[p] for p, masked in cells)
        start = int(starts[b, 0])
        print(f"{' ' * (9 + start)}{shown}   start {start}, t {1 / weight[b, 0]:.2f}")
    if plot:
        few = order[:4]  # blocks
        text = Rows.clean(N, "cpu")
        cells = Rows(positions[few], starts[few], torch.zeros_like(hidden[few]))
        rows = Rows(*(torch.cat([x, y.flatten()]) for x, y in zip(text, cells)))
        seen = mask_of(rows, window=N + K).tolist()
        draw_mask(plot, seen, [letters[p] for p in rows.position.tolist()], [N] + [K] * len(few))


def speculate(argv=None):
    """Rounds of two drafters."""
    options = idea_options("speculate.py", "Watch drafts verified.", bytes=24)(argv)
    loaded = load_model(checkpoint.find(options.checkpoint))
    prompt = encode(os.fsencode(options.text))
    for mode in ("blts", "bltdv") if loaded[0].config.block_size else ("blts",):
        print(f"{mode}: accepted/drafted, the bytes taken in, the model's own byte")
        sampling = Sampling(ignore_eos=True)
        run_mode(mode, Prefix(*loaded), prompt, options.bytes, sampling=sampling, watch=Trace())


IDEAS = {
    "layers": layers,
    "patcher": patcher,
    "model": model,
    "generate": generate,
    "diffusion": diffusion,
    "speculate": speculate,
}


def show(name):
    """What the file of that name does when it is run as a script."""
    run(IDEAS[name])
