"""A race: one real generation of every mode on the same prompt, replayed side by side.

    python -m scripts.race --prompt "def " --out race.html   # one page that needs nothing else
    python -m scripts.race --prompt "def " --gif race.gif    # the same as an animation

How fast a mode is, is measured without watching it, all modes in turn. What it did and when is
recorded in a run of its own, whose times are then stretched to the measured ones. race.html beside
this file draws the page, all that moves on it from what is recorded here.
"""

import functools
import json
import os
import statistics
from dataclasses import replace

import torch

from bandwidth import measure
from data import BOS, EOS, MASK, decode, encode
from diffusion import RULES
from evaluation.plots import METHODS
from sample import load, sampling_of
from speculate import MODES, arguments_of, check_mode, run_mode
from support.flags import Only, add_checkpoint, add_mode, add_sampling
from support.show import Recorder, how_drawn
from support.terminal import BadInput, Parser, package, run, to_write, visible

TEMPLATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "race.html")
LONGEST = 200  # bytes of a prompt: a Stream still knows all of them when the clock starts
REPEATS = 9  # timed generations of each mode; the median counts
# Of the animation, in pixels; CELL is the width of its font
WIDTH, LEFT, ROW, CELL, FRAMES = 830, 100, 22, 9, 90
PAPER, INK, QUIET, ACCENT = (250, 249, 246), (28, 31, 38), (102, 107, 118), (0, 114, 178)
COLD, HOT, KEPT, STRUCK = (237, 240, 246), (240, 168, 48), (0, 130, 97), (200, 64, 26)
WORDS = {
    "blt": "plain BLT, byte by byte",
    "blts": "the decoder drafts {draft_size} bytes, the full model verifies",
    "bltd": "blocks of {block_size} by diffusion, not verified",
    "bltdv": "blocks of {block_size} by diffusion or up to {copy} bytes copied, verified",
    "lookup": "up to {draft_size} bytes copied from earlier text, verified",
}


# ---- a lane: one mode's generation


def record(mode, model, patcher, prompt, options):
    """A watched generation -> (Generation, events, Known of BOS, prompt and output)."""
    recorder, how = Recorder(), {"sampling": sampling_of(options)}
    made = run_mode(mode, model, patcher, prompt, options.bytes, options, trace=recorder, **how)
    events, stream, text = recorder.events, recorder.stream, [BOS, *prompt, *made.ids]
    if mode != "bltd":  # the first byte follows from the prompt alone
        events[0] |= {"accepted": 0, "decided": made.ids[:1]}
    for event in events:  # a full block of BLT-D is decided
        if mode == "bltd" and MASK not in event.get("cells", [MASK]):
            event["decided"] = event["cells"]
    if stream.length < len(text):  # the last bytes were never taken in: what would they close?
        stream.counters = replace(stream.counters)  # not at the cost of what was made
        stream.advance(text[stream.length :])
        recorder.learn()
    return made, events, recorder.known[: len(text)]


def shown(ids):
    """Ids as the page has them: bytes as numbers, None where masked, words for the ends of text."""
    words = {MASK: None, BOS: "start", EOS: "end"}
    return [words[id_] if id_ in words else decode([id_])[0] for id_ in ids]


def lane_of(mode, model, patcher, prompt, options, timed):
    """All that the page shows of a mode -> dict. timed: its Generations that nothing watched."""
    made, events, known = record(mode, model, patcher, prompt, options)
    seconds = round(statistics.median(generation.seconds for generation in timed), 6)
    lane = {
        "mode": mode,
        "name": METHODS[mode],
        "what": WORDS[mode].format(**arguments_of(mode, model, options)),
        "verified": MODES[mode].verified,
        "blocks": MODES[mode].fills_blocks,
        "seconds": seconds,
        "bytes": [(*shown([k.id]), round(k.entropy, 3), k.patches_closed) for k in known],
        "events": [],
    }
    # Watching costs a little time. The timed runs tell how long it all takes, this one when what.
    for event in events:
        c, gb = event["counters"], replace(made, counters=event["counters"]).gigabytes()
        passes = {"decoder": c.decoder, "closing": c.encoder_global, "patcher": c.entropy}
        t = min(1, event["seconds"] / made.seconds) * seconds
        told = {"t": round(t, 6), "passes": passes, "gb": round(gb, 6)}
        told |= {key: event[key] for key in ("accepted", "whole") if key in event}
        told |= {key: shown(event[key]) for key in ("cells", "decided") if key in event}
        lane["events"].append(told)
    return lane


def run_race(model, patcher, prompt, options):
    """Time every mode in turn, then watch each -> what the page replays, as plain data."""
    modes = [mode for mode in MODES if model.config.block_size or not MODES[mode].fills_blocks]
    for mode in modes:
        check_mode(mode, model, options)
    settings, prompts = [(mode, "", options) for mode in modes], [prompt] * REPEATS
    new_sampling = functools.partial(sampling_of, options)
    made = measure(model, patcher, prompts, options.bytes, settings, new_sampling)
    lanes = [lane_of(m, model, patcher, prompt, options, g) for m, g in zip(modes, made)]
    threads = torch.get_num_threads()
    entropies = [entropy for lane in lanes for _, entropy, _ in lane["bytes"]]
    return {
        "lanes": lanes,
        "prompt": len(prompt),
        "threshold": patcher.config.threshold,
        "hottest": max(entropies) or 1.0,  # a patcher may have none
        "how": f"{how_drawn(options)}; median of {REPEATS} runs; threads: {threads}",
    }


# ---- the page


def write_page(path, race):
    """Put the recording into the template. As data in ASCII it can't end the script around it."""
    data = json.dumps(race, separators=(",", ":")).replace("<", "\\u003c")
    with open(TEMPLATE, encoding="utf-8") as file:
        page = file.read().replace("RECORDING", data, 1)
    with open(path, "w", encoding="utf-8") as file:
        file.write(page)


# ---- the animation: the lanes below each other, in the page's colours


def cells_at(lane, t, first):
    """What stands in a lane at t seconds -> list of (byte, kind, heat, whether a patch opens).

    kind: "kept" and "own" of decided bytes, else "draft" or "struck". first: of `bytes`, where the
    output begins. heat: entropy before the byte in nats.
    """
    kinds, pending = ["own"] * first, []
    for event in lane["events"]:
        if event["t"] > t:
            break
        if "decided" in event:
            new, accepted = len(event["decided"]), event.get("accepted", 0)
            kinds += ["kept"] * accepted + ["own"] * (new - accepted)
            struck = [byte for byte, *_ in pending][accepted:] if lane["verified"] else []
            pending = [(byte, "struck", 0, False) for byte in struck]
        else:
            pending = [(byte, "draft", 0, False) for byte in event.get("cells", [])]
    sure, closed = lane["bytes"][: len(kinds)], [0, *(k for _, _, k in lane["bytes"])]
    cells = [
        (byte, kinds[i], lane["bytes"][i - 1][1], closed[i] > closed[i - 1])
        for i, (byte, *_) in enumerate(sure)
    ]
    return cells[1:] + (pending if t < lane["seconds"] else [])


def sign(byte):
    """One character for a byte, for a masked cell or for the end of the text."""
    if byte is None:
        return "░"
    text = visible([byte]) if isinstance(byte, int) else "∎"
    return text if len(text) == 1 else "·"


def draw_lane(pen, font, lane, top, t, race):
    """Draw a lane at t seconds with its name, its bytes and how fast they came."""
    first = 1 + race["prompt"]
    cells, x, y = cells_at(lane, t, first), LEFT, top
    count = sum(kind in ("own", "kept") for _, kind, *_ in cells) + 1 - first
    speed = count / max(1e-9, min(t, lane["seconds"]))
    pen.text((10, top), lane["name"], INK, font)
    pen.text((10, top + ROW), f"{count} B", QUIET, font)
    pen.text((10, top + 2 * ROW), f"{speed:.0f} B/s", ACCENT if t < lane["seconds"] else KEPT, font)
    for byte, kind, heat, opens in cells:
        x += 3 * opens
        if x + CELL > WIDTH - 8:
            x, y = LEFT, y + ROW
        box, share = (x, y, x + CELL - 1, y + ROW - 5), round(8 * heat / race["hottest"]) / 8
        colour, fill = INK, tuple(round(c + share * (h - c)) for c, h in zip(COLD, HOT))
        if kind in ("draft", "struck"):
            colour, fill = (QUIET, PAPER) if kind == "draft" else (STRUCK, PAPER)
        pen.rectangle(box, fill, colour if fill == PAPER else None)
        pen.text((x, y), sign(byte), colour, font)
        if kind == "kept":
            pen.line((x, y + ROW - 5, x + CELL - 1, y + ROW - 5), KEPT, 2)
        if kind == "struck":
            pen.line((x, y + ROW // 2 - 2, x + CELL - 1, y + ROW // 2 - 2), STRUCK, 2)
        x += CELL


def pillow():
    """Pillow's modules and a font -> (Image, ImageDraw, font). Raises BadInput where one misses."""
    names = ("PIL.Image", "PIL.ImageDraw", "PIL.ImageFont", "matplotlib.font_manager")
    image, drawing, fonts, manager = (package(name, "an animation") for name in names)
    return image, drawing, fonts.truetype(manager.findfont("DejaVu Sans Mono"), 15)


def draw_gif(path, race):
    """Draw the lanes at FRAMES moments and save them as an animation that begins again."""
    image, drawing, font = pillow()
    end, frames = max(lane["seconds"] for lane in race["lanes"]), []
    rows = 1 + max(len(lane["bytes"]) for lane in race["lanes"]) * (CELL + 1) // (WIDTH - LEFT)
    height = max(3, rows) * ROW + 12
    bottom, waits = height * len(race["lanes"]) + 10, [100] * FRAMES + [4000]
    # What the colours mean, in these colours, so that each frame has them all
    notes = [(f"{FRAMES / 10 / end:.0f} times slower", INK), ("colour: entropy", QUIET)]
    notes += [("boxed: drafted", QUIET), ("░: masked", QUIET), ("accepted", KEPT)]
    notes += [("struck out", STRUCK)]
    for frame in range(FRAMES + 1):
        picture, t = image.new("RGB", (WIDTH, bottom + ROW), PAPER), end * frame / FRAMES
        pen = drawing.Draw(picture)
        for i, lane in enumerate(race["lanes"]):
            draw_lane(pen, font, lane, 10 + height * i, t, race)
        for i, (note, colour) in enumerate(notes):
            x = 10 + CELL * sum(2 + len(before) for before, _ in notes[:i])
            pen.text((x, bottom - 2), note, colour, font)
        frames.append(picture)
    # A middle frame has all colours, and this method keeps the rare ones. Of the 256 that there
    # may be some stay free, as one has to stand for "as before".
    palette = frames[FRAMES // 3].quantize(200, image.Quantize.MAXCOVERAGE)
    frames = [frame.quantize(palette=palette, dither=0) for frame in frames]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=waits, loop=0)


# ---- the command


def options_from(argv):
    parser = Parser(prog="scripts.race", description="Every mode on one prompt, side by side.")
    add_checkpoint(parser)
    drafting = "draft-size block-size unmask alpha gamma rounds copy"
    add_mode(Only(parser, drafting), MODES, RULES)
    add_sampling(parser, bytes=96)
    parser.add_argument("--prompt", default="def ", help="text to go on with")
    parser.add_argument("--out", metavar="FILE", type=to_write(".html"), help="page to write")
    parser.add_argument("--gif", metavar="FILE", type=to_write(".gif"), help="animation to write")
    options = parser.parse_args(argv)
    if not (options.out or options.gif):
        raise BadInput("there is nothing to write: give --out FILE or --gif FILE")
    if options.gif:
        pillow()  # says what is missing before anything is measured
    if len(os.fsencode(options.prompt)) > LONGEST or options.bytes > 400:
        raise BadInput(f"a race shows up to {LONGEST} bytes of --prompt and 400 new --bytes")
    return options


def main(argv=None):
    options = options_from(argv)
    model, patcher = load(options)
    race = run_race(model, patcher, encode(os.fsencode(options.prompt)), options)
    if options.out:
        write_page(options.out, race)
    if options.gif:
        draw_gif(options.gif, race)
    for lane in race["lanes"]:
        new = len(lane["bytes"]) - 1 - race["prompt"]
        print(f"{lane['name']:7} {new} bytes in {lane['seconds']:.3f} s")


if __name__ == "__main__":
    run(main, "scripts.race")
