"""Generate bytes from a checkpoint:  python sample.py --mode blt --prompt "def "

Text streams as it is made; --json prints one object a prompt instead. Any bytes are a prompt, the empty one too.
"""
import codecs
import json
import os
import sys

import torch

import checkpoint
from bandwidth import generation_gigabytes
from data import decode, encode
from model import load_model
from stream import Sampling, generate
from terminal import BadInput, Parser, number, paint, run

MODES = ("blt",)


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


def generate_mode(mode, model, patcher, prompt, options, emit=None):
    """One generation in the mode asked for; prompt: bytes -> Generation."""
    sampling = Sampling(options.temperature, options.top_p, options.ignore_eos, options.seed)
    return generate(model, patcher, encode(prompt), options.bytes, sampling, emit)


def as_json(mode, prompt, made, model, patcher):
    """The keys of one result (see README)."""
    c, output, seconds = made.counters, decode(made.ids), max(made.seconds, 1e-9)
    paper, with_patcher = generation_gigabytes(c, model, patcher)
    return {
        "mode": mode, "prompt": prompt.decode("utf-8", "replace"), "output": output.decode("utf-8", "replace"),
        "output_hex": output.hex(), "new_bytes": len(output), "seconds": made.seconds, "bytes_per_second": len(output) / seconds,
        "decoder_nfes": c.decoder, "encoder_global_nfes": c.encoder_global, "entropy_nfes": c.entropy, "prefill_nfes": c.prefill,
        "rounds": c.rounds, "drafted": c.drafted, "accepted": c.accepted, "acceptance": c.accepted / c.drafted if c.drafted else None,
        "mean_patch": c.bytes_advanced / c.patches if c.patches else None,
        "bandwidth_gb": paper, "bandwidth_gb_with_patcher": with_patcher}


def printer():
    """An `emit` that writes ids as text at once; bytes of one character wait for each other, invalid ones are replaced."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def emit(ids, final=False):
        sys.stdout.write(decoder.decode(decode(ids), final))
        sys.stdout.flush()
    return emit


def options_from(argv):
    parser = Parser(prog="sample.py", description="Generate bytes from a checkpoint.")
    parser.add_argument("--mode", default="blt", choices=MODES, help="how to generate")
    parser.add_argument("--checkpoint", help=f"file that train.py wrote (default: {checkpoint.DEFAULT}, else the one that comes with the project)")
    parser.add_argument("--prompt", default="", help="text to go on with")
    parser.add_argument("--prompt-file", nargs="+", metavar="FILE", help="files to go on with instead, any bytes; one generation each")
    parser.add_argument("--bytes", type=number(int, 1), default=256, help="most bytes to generate")
    parser.add_argument("--temperature", type=number(float, 0), default=0.0, help="0 is greedy")
    parser.add_argument("--top-p", type=number(float, 0, 1, above=True), default=1.0, help="draw from the fewest bytes that hold this much probability")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--ignore-eos", action="store_true", help="never end before the byte budget")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    parser.add_argument("--json", action="store_true", help="print one JSON object a prompt and nothing else")
    return parser.parse_args(argv)


def main(argv=None):
    options = options_from(argv)
    prompts = read_prompts(options)
    model, patcher = load_model(checkpoint.find(options.checkpoint))
    model, patcher = model.to(options.device), patcher.to(options.device)
    for prompt in prompts:
        if not options.json:
            print(paint(prompt.decode("utf-8", "replace"), 2), end="", flush=True)
        emit = None if options.json else printer()
        made = generate_mode(options.mode, model, patcher, prompt, options, emit)
        row = as_json(options.mode, prompt, made, model, patcher)
        if options.json:
            print(json.dumps(row), flush=True)
            continue
        emit([], final=True)
        mean_patch = f"mean patch {row['mean_patch']:.2f}, " if row["mean_patch"] else ""
        print(paint(f"\n\n[{row['new_bytes']} bytes, {row['bytes_per_second']:.0f} bytes/s, {mean_patch}NFEs: decoder {row['decoder_nfes']}, "
                    f"encoder/global {row['encoder_global_nfes']}, patcher {row['entropy_nfes']}; {row['bandwidth_gb']:.2f} GB by Eq. 8]", 2))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.stdout.reconfigure(errors="replace")
    run(main)
