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
from pathlib import Path

import torch

from bandwidth import measure
from data import BOS, OFFSET, decode, encode
from diffusion import RULES
from evaluation.plots import METHODS
from sample import load, sampling_of
from speculate import MODES, check_mode, rule_of, run_mode, size_of_blocks
from stream import Stream
from support.flags import Only, add_checkpoint, add_mode, add_sampling
from support.plots import to_write
from support.show import Recorder
from support.terminal import BadInput, Parser, package, run, visible

TEMPLATE = Path(__file__).with_name("race.html")
REPEATS = 9  # timed generations of each mode; the median counts
# Of the animation, in pixels, but for COLUMNS, bytes in a row
FRAMES, COLUMNS, LEFT, CELL, ROW = 90, 80, 100, 9, 22
INK, QUIET, PAPER, COLD = "#1c1f26", "#666b76", "#faf9f6", "#edf0f6"
HOT, KEPT, STRUCK = "#f0a830", "#008261", "#c8401a"


def record(mode, model, patcher, prompt, options, seconds=None):
    """A watched generation as it is replayed -> dict. seconds: that it takes unwatched, if known.

    bytes: (id, entropy after it, patches closed) of BOS, prompt and output.
    """
    trace, how = Recorder(), {"sampling": sampling_of(options)}
    made = run_mode(mode, model, patcher, prompt, options.bytes, options, trace=trace, **how)
    seconds = seconds or made.seconds
    if mode != "bltd":  # the first byte follows from the prompt alone
        trace.events[0] |= {"accepted": 0, "decided": made.ids[:1]}
    for event in trace.events:
        if mode == "bltd" and None not in event.get("cells", [None]):  # a full block is decided
            event |= {"accepted": 0, "decided": event["cells"]}
        # The timed runs tell how long it all takes, this one when what.
        event["t"] = round(min(1, event["t"] / made.seconds) * seconds, 6)
        c = event.pop("counters")
        event["passes"] = {"decoder": c.decoder, "closing": c.encoder_global, "patcher": c.entropy}
        event["gb"] = round(replace(made, counters=c).gigabytes(), 6)
    text = [BOS, *prompt, *made.ids]
    stream = Stream(model, patcher, max_rollback=len(text))  # one that lets go of nothing
    stream.advance(text)
    known, lane = MODES[mode], {"mode": mode, "name": METHODS[mode], "seconds": round(seconds, 6)}
    lane |= {"verified": known.verified, "blocks": known.fills_blocks, "events": trace.events}
    lane["bytes"] = [(k.id, round(k.entropy, 3), k.patches_closed) for k in stream.known]
    return {**lane, "rule": rule_of(mode, model, options)}


def run_race(model, patcher, prompt, options):
    """Time every mode in turn, then watch each -> what is replayed, as plain data."""
    modes = [mode for mode in MODES if model.config.block_size or not MODES[mode].fills_blocks]
    for mode in modes:
        check_mode(mode, model, options)
    settings, prompts = [(mode, "", options) for mode in modes], [prompt] * REPEATS
    new_sampling = functools.partial(sampling_of, options)
    made = measure(model, patcher, prompts, options.bytes, settings, new_sampling)
    seconds = [statistics.median(run.seconds for run in runs) for runs in made]
    race = {name: getattr(options, name) for name in "draft_size copy temperature top_p".split()}
    race |= {"block_size": size_of_blocks(model, options), "threads": torch.get_num_threads()}
    race |= {"prompt": len(prompt), "repeats": REPEATS, "offset": OFFSET}
    lanes = [record(m, model, patcher, prompt, options, s) for m, s in zip(modes, seconds)]
    return {**race, "threshold": patcher.config.threshold, "lanes": lanes}


def write_page(path, race):
    """Put the recording into the template. As data in ASCII it can't end the script around it."""
    data = json.dumps(race, separators=(",", ":")).replace("<", "\\u003c")
    page = TEMPLATE.read_text(encoding="utf-8").replace("RECORDING", data, 1)
    Path(path).write_text(page, encoding="utf-8")


# ---- the animation: the lanes below each other, in the page's colours


def cells_at(lane, t, first):
    """What stands in a lane at t seconds -> list of (id, its colour). first: bytes before it."""
    colours, pending = [INK] * first, []
    for event in lane["events"]:
        if event["t"] > t:
            break
        if "decided" in event:
            accepted = event["accepted"]
            struck = [id_ for id_, _ in pending][accepted:] if lane["verified"] else []
            colours += [KEPT] * accepted + [INK] * (len(event["decided"]) - accepted)
            pending = [(id_, STRUCK) for id_ in struck]
        else:
            pending = [(id_, QUIET) for id_ in event.get("cells", [])]
    sure = [(id_, colour) for (id_, *_), colour in zip(lane["bytes"], colours)]
    return sure[1:] + (pending if t < lane["seconds"] else [])


def draw_lane(pen, font, top, lane, cells, written, t):
    """Draw a lane: its name and speed, and cells whose ground is the entropy before the byte."""
    speed = written / max(1e-9, min(t, lane["seconds"]))
    pen.text((10, top), f"{lane['name']}\n{speed:.0f} B/s", INK, font)
    for i, (id_, colour) in enumerate(cells):
        x, y = LEFT + i % COLUMNS * CELL, top + i // COLUMNS * ROW
        text, sure = "░" if id_ is None else visible(decode([id_])), colour in (INK, KEPT)
        if sure:
            entropy, closed = lane["bytes"][i][1:]
            pen.rectangle((x, y, x + CELL - 1, y + ROW - 4), HOT if entropy > 2 else COLD)
        if sure and (not i or closed > lane["bytes"][i - 1][2]):  # a patch opens
            pen.line((x, y, x, y + ROW - 4), PAPER, 2)
        pen.text((x, y), text if len(text) == 1 else "·", colour, font)
        if colour in (KEPT, STRUCK):
            height = y + (ROW - 4 if sure else ROW // 2)
            pen.line((x, height, x + CELL - 1, height), colour, 2)


def draw_gif(path, race):
    """Draw the lanes at FRAMES moments and save them as an animation that begins again."""
    names = ("PIL.Image", "PIL.ImageDraw", "PIL.ImageFont", "matplotlib.font_manager")
    image, drawing, fonts, manager = (package(name, "an animation") for name in names)
    font = fonts.truetype(manager.findfont("DejaVu Sans Mono"), 15)
    end, frames = max(lane["seconds"] for lane in race["lanes"]), []
    height = ROW * (2 + max(len(lane["bytes"]) for lane in race["lanes"]) // COLUMNS)
    width, bottom = LEFT + COLUMNS * CELL + 10, height * len(race["lanes"]) + 10
    note = f"{FRAMES / 10 / end:.0f} x slower; yellow: entropy > 2 nats; gray: drafted; "
    note += "░: masked; green: kept; red: not"
    for frame in range(FRAMES + 1):
        picture, t = image.new("RGB", (width, bottom + ROW), PAPER), end * frame / FRAMES
        pen = drawing.Draw(picture)
        for i, lane in enumerate(race["lanes"]):
            cells = cells_at(lane, t, 1 + race["prompt"])
            written = sum(colour in (INK, KEPT) for _, colour in cells) - race["prompt"]
            draw_lane(pen, font, 10 + height * i, lane, cells, written, t)
        pen.text((10, bottom - 2), note, QUIET, font)
        frames.append(picture.quantize(64))
    waits = [100] * FRAMES + [4000]
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
    if len(os.fsencode(options.prompt)) > 200 or options.bytes > 400:
        raise BadInput("a race shows up to 200 bytes of --prompt and 400 new --bytes")
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
