"""A race: one real generation of every mode on the same prompt, replayed side by side.

    python -m scripts.race --prompt "def " --out race.html

How fast a mode is, is measured without watching it, all modes in turn. What it did and when is
recorded in a run of its own, whose times are then stretched to the measured ones. race.html beside
this file draws all that moves from what is recorded here.
"""

import json
import os
import statistics
from dataclasses import replace
from pathlib import Path

import torch

from bandwidth import measure
from data import BOS, OFFSET, encode
from diffusion import RULES
from sample import load, sampling_of
from speculate import MODES, check_mode, rule_of, run_mode, size_of_blocks
from stream import Stream
from support.flags import Only, add_checkpoint, add_mode, add_sampling
from support.plots import METHODS, to_write
from support.show import Recorder
from support.terminal import BadInput, Parser, run

TEMPLATE = Path(__file__).with_name("race.html")
REPEATS = 9  # timed generations of each mode; the median counts


def record(mode, model, patcher, prompt, options, seconds=None):
    """A watched generation as it is replayed -> dict. seconds: that it takes unwatched, if known.

    bytes: (id, entropy after it, patches closed) of BOS, prompt and output.
    """
    trace, how = Recorder(), {"sampling": sampling_of(options)}
    made = run_mode(mode, model, patcher, prompt, options.bytes, options, trace=trace, **how)
    seconds, verified = seconds or made.seconds, MODES[mode].verified
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
    lane = {"mode": mode, "name": METHODS[mode], "seconds": round(seconds, 6), "verified": verified}
    lane |= {"blocks": MODES[mode].fills_blocks, "rule": rule_of(mode, model, options)}
    lane["bytes"] = [(k.id, round(k.entropy, 3), k.patches_closed) for k in stream.known]
    return {**lane, "events": trace.events}


def run_race(model, patcher, prompt, options):
    """Time every mode in turn, then watch each -> what is replayed, as plain data."""
    modes = [mode for mode in MODES if model.config.block_size or not MODES[mode].fills_blocks]
    for mode in modes:
        check_mode(mode, model, options)
    settings, new_sampling = [(m, "", options) for m in modes], lambda: sampling_of(options)
    made = measure(model, patcher, [prompt] * REPEATS, options.bytes, settings, new_sampling)
    seconds = [statistics.median(run.seconds for run in runs) for runs in made]
    race = {name: getattr(options, name) for name in "draft_size copy temperature top_p".split()}
    race |= {"block_size": size_of_blocks(model, options), "threads": torch.get_num_threads()}
    race |= {"prompt": len(prompt), "repeats": REPEATS, "offset": OFFSET}
    lanes = [record(m, model, patcher, prompt, options, s) for m, s in zip(modes, seconds)]
    config = patcher.config  # other kinds compare no entropies with their threshold
    threshold = config.threshold if config.kind == "entropy" else None
    return {**race, "threshold": threshold, "lanes": lanes}


def write_page(path, race):
    """Put the recording into the template. As data in ASCII it can't end the script around it."""
    data = json.dumps(race, separators=(",", ":")).replace("<", "\\u003c")
    page = TEMPLATE.read_text(encoding="utf-8").replace("RECORDING", data, 1)
    Path(path).write_text(page, encoding="utf-8")


def options_from(argv):
    parser = Parser(prog="scripts.race", description="Every mode on one prompt, side by side.")
    add_checkpoint(parser)
    drafting = "draft-size block-size unmask alpha gamma rounds copy"
    add_mode(Only(parser, drafting), MODES, RULES)
    add_sampling(parser, bytes=96)
    add = parser.add_argument
    add("--prompt", default="def ", help="text to go on with")
    add("--out", metavar="PAGE", type=to_write(".html"), required=True, help="to write")
    options = parser.parse_args(argv)
    if len(os.fsencode(options.prompt)) > 200 or options.bytes > 400:
        raise BadInput("a race shows up to 200 bytes of --prompt and 400 new --bytes")
    return options


def main(argv=None):
    options = options_from(argv)
    model, patcher = load(options)
    race = run_race(model, patcher, encode(os.fsencode(options.prompt)), options)
    write_page(options.out, race)
    for lane in race["lanes"]:
        new = len(lane["bytes"]) - 1 - race["prompt"]
        print(f"{lane['name']:7} {new} bytes in {lane['seconds']:.3f} s")


if __name__ == "__main__":
    run(main, "scripts.race")
