"""Generate bytes from a checkpoint:  python sample.py --mode bltdv --prompt "def "

Text streams as it is made; --trace shows drafts and unmasking instead, --json prints one object a prompt, --compare runs all
modes on the same prompts and prints one table. Any bytes are a prompt, the empty one too.
"""
import codecs
import json
import os
import sys

import torch
from tqdm import tqdm

import checkpoint
from bandwidth import distinct_4grams, generation_gigabytes
from data import BOS, decode, encode
from diffusion import UNMASK, Unmask, check_block_size, generate_bltd
from machine import choose_device
from model import load_model
from speculate import generate_bltdv, generate_blts, generate_lookup, near_tie
from stream import Sampling, generate
from terminal import BadInput, Parser, has_colour, number, paint, run, table, visible
from timing import break_even, pass_seconds, predicted_seconds

MODES = ("blt", "blts", "bltd", "bltdv", "lookup")
DRAFTED = ("blts", "bltdv", "lookup")
THRESHOLDS = {("bltd", "confidence"): 0.7, ("bltdv", "confidence"): 0.3, ("bltd", "entropy"): 1.0,
              ("bltdv", "entropy"): 1.5}


def read_prompts(options):
    """-> list of prompts, bytes each."""
    if not options.prompt_file:
        return [os.fsencode(options.prompt)]
    prompts = []
    for path in options.prompt_file:
        try:
            with open(path, "rb") as file:
                prompts.append(file.read())
        except OSError as problem:
            raise BadInput(f"can't read the prompt file {path}: {problem.strerror}") from None
    return prompts


def unmask_rule(mode, options):
    """The unmasking rule asked for, or the mode's own: confidence for bltd, one-step for bltdv."""
    rule = options.unmask or ("confidence" if mode == "bltd" else "one-step")
    given = {"confidence": options.alpha, "entropy": options.gamma}.get(rule)
    return Unmask(rule, THRESHOLDS.get((mode, rule)) if given is None else given)


def check_mode(mode, model, options):
    """Raises BadInput where a model can't generate in that mode, or not in blocks of --block-size."""
    if mode in ("bltd", "bltdv") or options.block_size is not None:
        check_block_size(model, model.config.block_size if options.block_size is None else options.block_size)


def generate_mode(mode, model, patcher, prompt, options, emit=None, trace=None, stop=()):
    """One generation in the mode asked for; prompt: bytes -> Generation. options: what `add_generation` added to a parser.

    trace: an object with `step` and `round`, or None. stop: ids that end the output.
    """
    sampling = Sampling(options.temperature, options.top_p, options.ignore_eos, options.seed, stop)
    args = model, patcher, encode(prompt), options.bytes
    common = dict(sampling=sampling, emit=emit, watch=trace and trace.round, paper_rounds=options.paper_rounds)
    K = model.config.block_size if options.block_size is None else options.block_size
    if mode == "blt":
        return generate(*args, sampling, emit)
    if mode == "bltd":
        return generate_bltd(*args, K, unmask_rule(mode, options), sampling, emit, trace and trace.step)
    if mode == "bltdv":
        return generate_bltdv(*args, K, unmask_rule(mode, options), trace and trace.step, **common)
    return (generate_blts if mode == "blts" else generate_lookup)(*args, options.window, **common)


def as_json(mode, prompt, made, model, patcher):
    """The keys of one result (see README)."""
    c, output, seconds = made.counters, decode(made.ids), max(made.seconds, 1e-9)
    paper, with_patcher = generation_gigabytes(c, model, patcher)
    return {
        "mode": mode, "prompt": prompt.decode("utf-8", "replace"), "output": output.decode("utf-8", "replace"),
        "output_hex": output.hex(), "new_bytes": len(output), "seconds": made.seconds,
        "bytes_per_second": len(output) / seconds, "decoder_nfes": c.decoder, "encoder_global_nfes": c.encoder_global,
        "entropy_nfes": c.entropy, "prefill_nfes": c.prefill,
        "paper_encoder_global_nfes": 2 * c.rounds if mode in DRAFTED else c.encoder_global, "rounds": c.rounds,
        "drafted": c.drafted, "accepted": c.accepted, "acceptance": c.accepted / c.drafted if c.drafted else None,
        "accepted_lengths": {str(n): rounds
                             for n, rounds in sorted(c.lengths.items())
                             }, "mean_patch": c.bytes_advanced / c.patches if c.patches else None,
        "bandwidth_gb": paper, "bandwidth_gb_with_patcher": with_patcher
    }


def printer():
    """An `emit` that writes ids as text at once; bytes of one character wait for each other, invalid ones are replaced."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def emit(ids, final=False):
        sys.stdout.write(decoder.decode(decode(ids), final))
        sys.stdout.flush()

    return emit


class Trace:
    """Prints rounds and unmasking steps as they happen; on a terminal the steps of a block overwrite each other."""
    def __init__(self):
        self.rounds = self.steps = 0

    def step(self, ids, masked):
        """One unmasking step of a block."""
        cells = "".join(paint("░", 36) if m else visible(decode([i])) or "■" for i, m in zip(ids, masked))
        self.steps += 1
        done = not any(masked)
        print(f"{chr(13) if has_colour() else ''}  step {self.steps:2}  {cells}",
              end="" if has_colour() and not done else "\n", flush=True)
        if done:
            self.steps = 0

    def round(self, processed, drafted, accepted, following):
        """One verification: processed: the bytes that the stream took in for good, with a bar behind those that close a patch."""
        self.rounds += 1
        taken = "".join(visible(decode([i])) + (paint("|", 34) if closes else "") for i, closes in processed)
        own = visible(decode([following])) or "end"
        rejected = visible(decode(drafted[accepted:]))
        print(
            f"round {self.rounds:3}  {accepted}/{len(drafted):<2}  {paint(taken, 32)}{paint(own, 33, 1) if has_colour() else f' -> {own}'}"
            + (f"  {paint('rejected: ' + rejected, 31)}" if rejected else ""), flush=True)


def identical(mode, model, patcher, prompt, plain, made, options):
    """Is greedy output plain BLT's? true, false, "tie" where float32 rounding decides (see README); None when sampling."""
    if options.temperature:
        return None
    if made.ids == plain.ids or mode == "bltd":
        return made.ids == plain.ids
    return "tie" if near_tie(model, patcher, [BOS, *encode(prompt)], plain.ids, made.ids) else False


def compare(model, patcher, prompts, options):
    """Every mode on the same prompts, in turn, after a warm-up -> rows of (JSON keys, Generation)."""
    modes = [m for m in MODES if model.config.block_size or m not in ("bltd", "bltdv")]
    for mode in modes:
        generate_mode(mode, model, patcher, prompts[0], options)
    rows = []
    for prompt in tqdm(prompts, desc="prompts", leave=False, disable=len(prompts) == 1):
        plain = None
        for mode in modes:
            made = generate_mode(mode, model, patcher, prompt, options)
            plain = plain or made
            same = identical(mode, model, patcher, prompt, plain, made, options)
            rows.append((as_json(mode, prompt, made, model, patcher) | {"identical_to_blt": same}, made))
    return rows


def print_comparison(rows, model, patcher, options):
    """One table over all prompts, then what single passes cost here and the acceptance above which each mode wins."""
    K = model.config.block_size if options.block_size is None else options.block_size
    times = pass_seconds(model, patcher, {1, options.window + 1, K, K + 1, 2 * K} - {0})
    plain_speed = plain_gb = None
    cells = []
    for mode in dict.fromkeys(row["mode"] for row, _ in rows):
        mine = [(row, made) for row, made in rows if row["mode"] == mode]
        total = lambda key: sum(row[key] for row, _ in mine)
        size, seconds = max(1, total("new_bytes")), max(1e-9, total("seconds"))
        speed, gb = size / seconds, total("bandwidth_gb") / size
        plain_speed, plain_gb = plain_speed or speed, plain_gb or gb
        count = {"blts": options.window, "lookup": options.window}.get(mode, K)
        ideal = sum(predicted_seconds(mode, made.counters, times, count)[0] for _, made in mine)
        same = [row["identical_to_blt"] for row, _ in mine]
        verdict = "" if None in same else "no" if False in same else f"{same.count('tie')} near-ties" if "tie" in same else "yes"
        nfes = (total(key) / size for key in ("decoder_nfes", "encoder_global_nfes", "entropy_nfes"))
        cells.append([mode, f"{speed:.0f}", f"{speed / plain_speed:.2f}", f"{ideal / seconds:.2f}", *(f"{x:.3f}" for x in nfes),
                      f"{total('accepted') / total('drafted'):.0%}" if total("drafted") else "", f"{1000 * gb:.2f}",
                      f"{1 - gb / plain_gb:.0%}", f"{distinct_4grams([made.ids for _, made in mine]):.0%}", verdict])
    print(table(["mode", "bytes/s", "x blt", "of ceiling", "decoder/B", "enc+glob/B", "patcher/B", "accepted", "MB/B", "saved",
                 "4-grams", "identical"], cells))
    print("\n" + times.describe(sorted(times.decoder)))
    blt = [row for row, _ in rows if row["mode"] == "blt"]
    mean_patch = sum(r["new_bytes"] for r in blt) / max(1, sum(r["encoder_global_nfes"] for r in blt))
    for mode, count, needed in break_even(times, mean_patch, options.window, K if model.config.block_size else 0):
        print(f"{mode}: wins above {needed:.2f} bytes a round, an acceptance of {(needed - 1) / count:.0%} of {count} drafted")


def add_generation(parser):
    """The flags of `generate_mode`, the checkpoint and the device, for this script and evaluate.py."""
    parser.add_argument("--mode", default="blt", choices=MODES, help="how to generate")
    parser.add_argument(
        "--checkpoint",
        help=f"file that train.py wrote (default: {checkpoint.DEFAULT}, else the one that comes with the project)")
    parser.add_argument("--bytes", type=number(int, 1), default=256, help="most bytes to generate")
    parser.add_argument("--temperature", type=number(float, 0), default=0.0, help="0 is greedy")
    parser.add_argument("--top-p", type=number(float, 0, 1, above=True), default=1.0,
                        help="draw from the fewest bytes that hold this much probability")
    parser.add_argument("--seed", type=number(int, 0, 2 ** 63 - 1), default=0, help="of the draws")
    parser.add_argument("--window", type=number(int, 1, 64), default=8,
                        help="k, bytes that blts and lookup draft a round")
    parser.add_argument("--block-size", type=int,
                        help="K, bytes of a block of bltd and bltdv (default: the size trained)")
    parser.add_argument("--unmask", choices=UNMASK,
                        help="which cells to unmask a step (default: confidence for bltd, one-step for bltdv)")
    parser.add_argument("--alpha", type=number(float, 0),
                        help="threshold of confidence (default: 0.7 for bltd, 0.3 for bltdv)")
    parser.add_argument("--gamma", type=number(float, 0),
                        help="nats of entropy a step may unmask (default: 1.0 for bltd, 1.5 for bltdv)")
    parser.add_argument(
        "--paper-rounds", action="store_true",
        help="encode the decided byte before each draft, as Algorithm 1 is written: two encoder/global calls a round")
    parser.add_argument("--ignore-eos", action="store_true", help="never end before the byte budget")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")


def options_from(argv):
    parser = Parser(prog="sample.py", description="Generate bytes from a checkpoint.")
    add_generation(parser)
    parser.add_argument("--prompt", default="", help="text to go on with")
    parser.add_argument("--prompt-file", nargs="+", metavar="FILE",
                        help="files to go on with instead, any bytes; one generation each")
    parser.add_argument("--trace", action="store_true",
                        help="show unmasking steps, drafts, accepted and rejected bytes as they happen")
    parser.add_argument("--compare", action="store_true", help="run every mode on the same prompts and print one table")
    parser.add_argument("--json", action="store_true",
                        help="print one JSON object a prompt (and mode) and nothing else")
    return parser.parse_args(argv)


def main(argv=None):
    options = options_from(argv)
    prompts = read_prompts(options)
    model, patcher = load_model(checkpoint.find(options.checkpoint))
    device = choose_device(options.device)
    model, patcher = model.to(device), patcher.to(device)
    check_mode(options.mode, model, options)
    if options.compare:
        rows = compare(model, patcher, prompts, options)
        if not options.json:
            return print_comparison(rows, model, patcher, options)
        for row, _ in rows:
            print(json.dumps(row), flush=True)
        return
    for prompt in prompts:
        trace = Trace() if options.trace and not options.json else None
        if not options.json:
            print(paint(prompt.decode("utf-8", "replace"), 2), end="\n" if trace else "", flush=True)
        emit = None if options.json or trace else printer()
        made = generate_mode(options.mode, model, patcher, prompt, options, emit, trace)
        row = as_json(options.mode, prompt, made, model, patcher)
        if options.json:
            print(json.dumps(row), flush=True)
            continue
        if emit:
            emit([], final=True)
        print(paint("\n\n" + summary(row), 2))


def summary(row):
    """The lines under the text: speed and cost, and the histogram of accepted lengths."""
    mean_patch = f"mean patch {row['mean_patch']:.2f}, " if row["mean_patch"] else ""
    rounds = f"{row['rounds']} rounds, " if row["rounds"] else ""
    accepted = f"{row['acceptance']:.0%} of {row['drafted']} drafted bytes accepted, " if row["drafted"] else ""
    two_a_round = f" (two a round: {row['paper_encoder_global_nfes']})" if row["mode"] in DRAFTED else ""
    lengths = ", ".join(f"{n} in {rounds_}" for n, rounds_ in row["accepted_lengths"].items())
    return (
        f"[{row['mode']}: {row['new_bytes']} bytes, {row['bytes_per_second']:.0f} bytes/s, {mean_patch}{rounds}{accepted}"
        f"NFEs: decoder {row['decoder_nfes']}, encoder/global {row['encoder_global_nfes']}{two_a_round}, "
        f"patcher {row['entropy_nfes']}; {row['bandwidth_gb']:.2f} GB by Eq. 8]" +
        (f"\n[bytes accepted a round: {lengths} rounds]" if lengths else ""))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.stdout.reconfigure(errors="replace")
    run(main)
