"""A race: one real generation of every mode on the same prompt, replayed side by side.

    python -m scripts.race --prompt "def " --out race.html

How fast a mode is, is measured without watching it, all modes in turn. What it did and when is
recorded in a run of its own, whose times are then stretched to the measured ones. race.html beside
this file draws all that moves from what is recorded here.
"""

import json
import os
import statistics
from dataclasses import fields, replace
from pathlib import Path

import torch

from bandwidth import Setting, gigabytes_of, measure
from data import BOS, OFFSET, encode
from diffusion import RULES
from measure.modes import check_compared, state_for
from measure.plots import METHODS
from measure.show import Recorder
from sample import drafting_of, load, sampling_of
from speculate import MODES, Drafting, run_mode, settled
from support.flags import PROMPT, Only, add_checkpoint, add_mode, add_sampling
from support.openings import beginning
from support.pictures import to_write
from support.terminal import BadInput, Parser, run

TEMPLATE = Path(__file__).with_name("race.html")
REPEATS = 9  # timed generations of each mode; the median counts
DRAFTING = [field.name.replace("_", "-") for field in fields(Drafting)]


def record(mode, machine, prompt, drafting, options, seconds=None):
    """A watched generation as it is replayed -> dict. seconds: that it takes unwatched, if known.

    prompt: ids. drafting: a Drafting. In what is returned, settings are what `settled` makes of it,
    and bytes are (id, entropy after it, patches closed) of BOS, prompt and output.
    """
    watch = Recorder()
    made = run_mode(
        mode,
        state_for(mode, machine),
        prompt,
        options.bytes,
        drafting,
        sampling=sampling_of(options),
        watch=watch,
    )
    if seconds is None:
        seconds = made.seconds
    return {
        "mode": mode,
        "name": METHODS[mode],
        "seconds": round(seconds, 6),
        "verified": MODES[mode].verified,
        "blocks": MODES[mode].fills_blocks,
        "settings": settled(mode, machine.model, drafting),
        "bytes": read_again(machine.patcher, [BOS, *prompt, *made.ids], machine.model.device),
        "events": [replayed(event, made, seconds) for event in decided_in(mode, watch, made)],
    }


def decided_in(mode, watch, made):
    """The events of a Recorder, with the bytes that are sure after each -> list of dicts.

    accepted: how many of the bytes that an event decides were drafted.
    """
    events = watch.events
    if mode == "blt":  # it begins with a round of its own, before anything has run
        return events[1:]
    if mode == "bltd":  # a block is decided when it is full
        for event in events:
            if "cells" in event and None not in event["cells"]:
                event["accepted"] = 0
                event["decided"] = event["cells"]
        return events
    # The first byte follows from the prompt alone.
    events[0]["accepted"] = 0
    events[0]["decided"] = made.ids[:1]
    return events


def replayed(event, made, seconds):
    """An event of a Generation as the page reads it, stretched to the seconds that it takes."""
    shown = dict(event)
    counters = shown.pop("counters")
    # The timed runs tell how long it all takes, this one when what.
    shown["t"] = round(min(1, event["t"] / made.seconds) * seconds, 6)
    shown["passes"] = {
        "decoder": counters.decoder,
        "closing": counters.encoder_global,
        "patcher": counters.entropy,
    }
    shown["gb"] = round(gigabytes_of(replace(made, counters=counters)), 6)
    return shown


def read_again(patcher, text, device):
    """Of each id of a text: (id, entropy after it, patches closed up to it)."""
    ids = torch.tensor(text, device=device)
    entropies = [round(h, 3) for h in patcher.entropies(ids).tolist()]
    closed = patcher.closes(ids).cumsum(0).tolist()
    return list(zip(text, entropies, closed))


def run_race(machine, prompt, options):
    """Time every mode in turn, then watch each -> what is replayed, as plain data. prompt: ids."""
    draftings = check_compared(machine.model, drafting_of(options))
    settings = [Setting(mode, "", drafting) for mode, drafting in draftings.items()]
    runs = measure(
        machine, [prompt] * REPEATS, options.bytes, settings, lambda: sampling_of(options)
    )
    lanes = []
    for (mode, drafting), made in zip(draftings.items(), runs):
        seconds = statistics.median(one.seconds for one in made)
        lanes.append(record(mode, machine, prompt, drafting, options, seconds))
    config = machine.patcher.config
    return {
        "temperature": options.temperature,
        "top_p": options.top_p,
        "threads": torch.get_num_threads(),
        "prompt": len(prompt),
        "repeats": REPEATS,
        "offset": OFFSET,
        # Other kinds compare no entropies with their threshold.
        "threshold": config.threshold if config.kind == "entropy" else None,
        "lanes": lanes,
    }


def write_page(path, race):
    """Put the recording into the template. As data in ASCII it can't end the script around it."""
    data = json.dumps(race, separators=(",", ":")).replace("<", "\\u003c")
    page = TEMPLATE.read_text(encoding="utf-8").replace("RECORDING", data, 1)
    Path(path).write_text(page, encoding="utf-8")


def options_from(argv):
    parser = Parser(prog="scripts.race", description="Every mode on one prompt, side by side.")
    add_checkpoint(parser)
    add_mode(Only(parser, [*DRAFTING, "rounds"]), MODES, RULES)
    add_sampling(parser, bytes=96)
    add = parser.add_argument
    help_ = "text to go on with (default: how text begins that the model knows)"
    add("--prompt", help=help_)
    add("--out", metavar="PAGE", type=to_write(".html"), required=True, help="to write")
    options = parser.parse_args(argv)
    if len(os.fsencode(options.prompt or "")) > 200 or options.bytes > 400:
        raise BadInput("a race shows up to 200 bytes of --prompt and 400 new --bytes")
    return options


def main(argv=None):
    options = options_from(argv)
    machine = load(options)
    prompt = beginning(machine.openings, PROMPT)
    if options.prompt is not None:
        prompt = os.fsencode(options.prompt)
    race = run_race(machine, encode(prompt), options)
    write_page(options.out, race)
    for lane in race["lanes"]:
        new = len(lane["bytes"]) - 1 - race["prompt"]
        print(f"{lane['name']:7} {new} bytes in {lane['seconds']:.3f} s")


if __name__ == "__main__":
    run(main, "scripts.race")
