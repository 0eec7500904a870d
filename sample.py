"""Generate bytes from a checkpoint, in every mode:

    python sample.py --mode bltdv --prompt "def "
    python sample.py --compare --prompt "class "      # all modes, one table

Text streams as it is made; --trace shows drafts and unmasking instead, --json prints one object a
prompt. Any bytes are a prompt, the empty one too.

JSON keys: mode, prompt, output, output_hex, new_bytes, seconds, bytes_per_second, decoder_nfes,
encoder_global_nfes, entropy_nfes, prefill_nfes (the same three, apart), paper_encoder_global_nfes
(as the paper counts them), rounds, drafted, accepted, acceptance, accepted_lengths (how many rounds
accepted so many bytes), mean_patch, bandwidth_gb (Eq. 8), bandwidth_gb_with_patcher; with --compare
identical_to_blt: true, false, or "tie" where two float32 runs part at a place where rounding
decides (the best two logits, or what the patcher compares with its threshold, lie within 1e-3).
"""

import functools
import os

from bandwidth import compare, measure
from data import decode, encode
from diffusion import RULES
from generate import Sampling
from model import load_model
from speculate import MODES, check_mode, run_mode
from support import checkpoint
from support.flags import add_checkpoint, add_mode, add_sampling
from support.machine import choose_device
from support.passes import settle_threads
from support.quality import identical
from support.show import Trace, print_measured, printer, summary
from support.terminal import Parser, paint, print_rows, read_file, run


def sampling_of(options, stop=()):
    """The Sampling that the flags ask for. stop: ids that end the output."""
    o = options
    return Sampling(o.temperature, o.top_p, o.ignore_eos, o.seed, stop)


def load(options):
    """-> (model, patcher) of --checkpoint, on --device. Raises BadInput where either is missing."""
    model, patcher = load_model(checkpoint.find(options.checkpoint))
    if options.threshold is not None:
        patcher.config.threshold = options.threshold
    device = choose_device(options.device)
    model, patcher = model.to(device), patcher.to(device)
    if device == "cpu":
        settle_threads(model, patcher)
    return model, patcher


def as_json(mode, prompt, made):
    """What --json prints of one Generation (what its keys mean stands above); prompt: bytes.

    Text that is no UTF-8 is replaced; output_hex has the very bytes.
    """
    output, c = decode(made.ids), made.counters
    return {
        "mode": mode,
        "prompt": prompt.decode("utf-8", "replace"),
        "output": output.decode("utf-8", "replace"),
        "output_hex": output.hex(),
        **made.cost(),
        "prefill_nfes": c.prefill,
        "paper_encoder_global_nfes": paper_calls(mode, made),
        "rounds": c.rounds,
        "drafted": c.drafted,
        "accepted": c.accepted,
        "acceptance": made.acceptance,
        "accepted_lengths": {str(n): rounds for n, rounds in sorted(c.lengths.items())},
        "mean_patch": made.mean_patch,
        "bandwidth_gb_with_patcher": made.gigabytes_with_patcher(),
    }


def paper_calls(mode, made):
    """Encoder/global calls by the paper's count: two a verified round, one a block of BLT-D.

    Its tables count so (BLT-D: L / K for L bytes); plain BLT's are those really made.
    """
    return made.counters.rounds * MODES[mode].paper_calls or made.counters.encoder_global


def sample(model, patcher, prompt, options):
    """Generate after one prompt and print it as the flags say.

    Plain text streams as it is made. A trace prints lines of its own instead, and --json nothing
    until the end.
    """
    mode, how = options.mode, {"sampling": sampling_of(options)}
    if not options.json:
        print(paint(prompt.decode("utf-8", "replace"), 2), end="\n" if options.trace else "")
        how |= {"trace": Trace()} if options.trace else {"emit": printer()}
    ids, plain = encode(prompt), {"sampling": sampling_of(options)}
    made = run_mode(mode, model, patcher, ids, options.bytes, options, **how)
    if options.json:
        return print_rows([as_json(mode, prompt, made)])
    if "emit" in how:
        how["emit"]([], final=True)
    compared = made
    if mode != "blt":  # its speed beside plain BLT's, on the first bytes alone
        size = min(128, options.bytes)
        compared = run_mode("blt", model, patcher, ids, size, options, **plain)
    return print(paint("\n\n" + summary(mode, made, paper_calls(mode, made), compared), 2))


def compare_modes(model, patcher, prompts, options):
    """Every mode on the same prompts (bytes): JSON rows, or a table and who wrote BLT's bytes."""
    modes = [mode for mode in MODES if model.config.block_size or not MODES[mode].fills_blocks]
    settings, ids = [(mode, "", options) for mode in modes], [encode(p) for p in prompts]
    new_sampling = functools.partial(sampling_of, options)
    made = measure(model, patcher, ids, options.bytes, settings, new_sampling)
    verdicts = {mode: [] for mode in modes}
    for i, prompt in enumerate(prompts):
        for mode, outputs in zip(modes, made):
            same = identical(mode, model, patcher, ids[i], made[0][i], outputs[i], options)
            verdicts[mode].append(same)
            if options.json:
                print_rows([as_json(mode, prompt, outputs[i]) | {"identical_to_blt": same}])
    if options.json:
        return
    rows, times = compare(model, patcher, ids, settings, made)
    print_measured(rows, times)
    if not options.temperature:
        words = {True: "yes", False: "no", "tie": "tie"}  # one for each prompt
        said = (f"{mode} {', '.join(map(words.get, same))}" for mode, same in verdicts.items())
        print(f"identical to plain BLT: {'; '.join(said)}")


def options_from(argv):
    """The command line: which model, how it writes, and what is shown of it."""
    parser = Parser(prog="sample.py", description="Generate bytes from a checkpoint.")
    parser.epilog = __doc__[__doc__.index("JSON keys") :]
    add_checkpoint(parser)
    add_mode(parser, MODES, RULES)
    add_sampling(parser)
    add = parser.add_argument
    add("--prompt", default="", help="text to go on with")
    add("--prompt-file", nargs="+", metavar="FILE", help="instead: files, a generation each")
    add("--trace", action="store_true", help="show drafts and unmasking as they happen")
    add("--compare", action="store_true", help="every mode on the same prompts, in one table")
    add("--json", action="store_true", help="print JSON objects, a line each, and nothing else")
    return parser.parse_args(argv)


def main(argv=None):
    """Bad flags, prompts and checkpoints end in one line before anything is generated."""
    options = options_from(argv)
    # Any bytes are a prompt, none at all and invalid UTF-8 too.
    prompts = [read_file(path, "the prompt file") for path in options.prompt_file or ()]
    prompts = prompts or [os.fsencode(options.prompt)]
    model, patcher = load(options)
    check_mode(options.mode, model, options)
    if options.compare:
        return compare_modes(model, patcher, prompts, options)
    for prompt in prompts:
        sample(model, patcher, prompt, options)


if __name__ == "__main__":
    run(main)
