"""Generate bytes from a checkpoint, in every mode:

    python sample.py --mode bltdv --prompt "def "
    python sample.py --compare --prompt "class "      # all modes, one table
    python sample.py --mode bltdv --plain             # the same by the files of the root, slowly

Text streams as it is made; --trace shows drafts and unmasking instead, --json prints one object a
prompt. Any bytes are a prompt, the empty one too. Without one it goes on with the first words of
held-out text, if the checkpoint keeps openings of such.

JSON keys: mode, prompt, output, output_hex, new_bytes, seconds, bytes_per_second, decoder_nfes,
encoder_global_nfes, entropy_nfes, prefill_nfes (the same three, apart), paper_encoder_global_nfes
(as the paper counts them), rounds, drafted, accepted, acceptance, accepted_lengths (how many rounds
accepted so many bytes), mean_patch, bandwidth_gb (Eq. 8), bandwidth_gb_with_patcher; with --compare
identical_to_blt: true, false, or "tie" where two float32 runs part at a place where rounding
decides (the best two logits, or what the patcher compares with its threshold, lie within 1e-3).
"""

import os

from tqdm import tqdm

import fast.load
from bandwidth import (
    Setting,
    acceptance,
    compare,
    cost_of,
    gigabytes_of,
    gigabytes_with_patcher,
    mean_patch,
    measure,
)
from data import decode, encode
from diffusion import RULES
from generate import Prefix, Sampling
from measure.modes import check_compared, check_drafting
from measure.passes import is_fast, settle_threads
from measure.quality import identical
from measure.rounds import PaperPrefix
from measure.show import Printer, Trace, print_measured
from speculate import MODES, Drafting, run_mode
from support import checkpoint
from support.flags import add_checkpoint, add_mode, add_sampling
from support.generation import Watch
from support.hardware import choose_device
from support.openings import beginning
from support.terminal import BadInput, Parser, for_terminal, paint, print_rows, read_file, run

# ---- from flags to what generates


def sampling_of(options, stop=()):
    """The Sampling that the flags ask for. stop: ids that end the output."""
    return Sampling(options.temperature, options.top_p, options.ignore_eos, options.seed, stop)


def drafting_of(options):
    """The Drafting that the flags ask for; what is not given is None."""
    return Drafting(
        draft_size=options.draft_size,
        block_size=options.block_size,
        unmask=options.unmask,
        alpha=options.alpha,
        gamma=options.gamma,
        copy=options.copy,
    )


def plain_state_of(options):
    """The class of plain states that the flags ask for, or None: the fast machine."""
    # A command that generates nothing has no --rounds.
    if getattr(options, "rounds", "ours") == "paper":
        return PaperPrefix
    return Prefix if options.plain else None


def load(options):
    """The Machine of --checkpoint, on --device. Raises BadInput where either is missing."""
    path = checkpoint.find(options.checkpoint)
    machine = fast.load.load(path, choose_device(options.device), plain_state_of(options))
    if options.threshold is not None:
        machine.patcher.config.threshold = options.threshold
    settle_threads(machine)
    return machine


# ---- what is said of one generation


def as_json(mode, prompt, made):
    """What --json prints of one Generation (what its keys mean stands above); prompt: bytes.

    Text that is no UTF-8 is replaced; output_hex has the very bytes.
    """
    output = decode(made.ids)
    counters = made.counters
    return {
        "mode": mode,
        "prompt": prompt.decode("utf-8", "replace"),
        "output": output.decode("utf-8", "replace"),
        "output_hex": output.hex(),
        **cost_of(made),
        "prefill_nfes": counters.prefill,
        "paper_encoder_global_nfes": paper_calls(mode, made),
        "rounds": counters.rounds,
        "drafted": counters.drafted,
        "accepted": counters.accepted,
        "acceptance": acceptance(made),
        "accepted_lengths": {str(n): rounds for n, rounds in sorted(counters.lengths.items())},
        "mean_patch": mean_patch(made),
        "bandwidth_gb_with_patcher": gigabytes_with_patcher(made),
    }


def paper_calls(mode, made):
    """Encoder/global calls by the paper's count: two a verified round, one a block of BLT-D.

    Its tables count so (BLT-D: L / K for L bytes); plain BLT's are those really made.
    """
    if MODES[mode].paper_calls:
        return made.counters.rounds * MODES[mode].paper_calls
    return made.counters.encoder_global


def summary(mode, made, speed):
    """The lines under a text: bytes that rounds accepted; speed and cost. speed: more of it."""
    counters = made.counters
    parts = [f"{made.new_bytes} bytes"]
    if made.bytes_per_second is not None:
        parts.append(f"{made.bytes_per_second:.0f} bytes/s{speed}")
    if mean_patch(made) is not None:
        parts.append(f"mean patch {mean_patch(made):.2f}")
    calls = f"encoder/global {counters.encoder_global}"
    if counters.rounds:
        parts.append(f"{counters.rounds} rounds")
        calls += f" (the paper's count: {paper_calls(mode, made)})"
    if counters.drafted:
        accepted = f"{acceptance(made):.0%} of {counters.drafted} drafted bytes accepted"
        parts.append(accepted)
    passes = f"decoder {counters.decoder}, {calls}, patcher {counters.entropy}"
    parts.append(f"NFEs: {passes}; {gigabytes_of(made):.2f} GB by Eq. 8")
    line = f"[{mode}: {', '.join(parts)}]"
    lengths = ", ".join(f"{n} in {rounds}" for n, rounds in sorted(counters.lengths.items()))
    if lengths:
        return f"[bytes accepted a round: {lengths} rounds]\n{line}"
    return line


# ---- speed beside plain BLT's

WARM_UP = 8  # bytes that both write first, untimed
MOST_TIMED = 512  # bytes


class Bar(Watch):
    """Shows how far a silent generation is, where it takes long."""

    def __init__(self, bar):
        self.bar = bar

    def bytes(self, ids):
        self.bar.update(len(ids))


def warm_beside_plain(mode, machine, prompt, size, drafting, options):
    """A mode and plain BLT write `size` bytes behind the same prompt -> their two Generations.

    Neither is printed, and both are warm: each has written a few bytes before. What would end them
    is ignored, so that both write as many bytes.
    """

    def write(mode, length, drafting, watch=None):
        sampling = Sampling(options.temperature, options.top_p, True, options.seed)
        state = machine.state()
        return run_mode(mode, state, prompt, length, drafting, sampling=sampling, watch=watch)

    write(mode, WARM_UP, drafting)
    write("blt", WARM_UP, Drafting())
    with tqdm(total=2 * size, desc="timing", unit="B", delay=2, leave=False) as bar:
        ours = write(mode, size, drafting, Bar(bar))
        plain = write("blt", size, Drafting(), Bar(bar))
    return ours, plain


def speed_beside(mode, machine, prompt, made, drafting, options):
    """How fast a mode is beside plain BLT, in words that follow its bytes a second; may be none.

    prompt: ids; made: what it wrote behind it. Plain BLT is beside nothing.
    """
    if not is_fast(machine):
        return " on the plain machine"
    if mode == "blt" or made.new_bytes < 2:  # of which plain BLT has the first from the prompt
        return ""
    size = min(made.new_bytes, MOST_TIMED)
    ours, plain = warm_beside_plain(mode, machine, prompt, size, drafting, options)
    return f", {ours.bytes_per_second / plain.bytes_per_second:.2f} times plain BLT"


# ---- one mode, or all of them


def sample(machine, prompt, drafting, options):
    """Generate after one prompt (bytes) and print it as the flags say.

    Plain text streams as it is made. A trace prints lines of its own instead, and --json nothing
    until the end.
    """
    mode = options.mode
    ids = encode(prompt)
    if options.json:
        watch = Watch()
    elif options.trace:
        print(paint(for_terminal(prompt.decode("utf-8", "replace")), 2))
        watch = Trace()
    else:
        watch = Printer()
        watch.prompt(prompt)
    sampling = sampling_of(options)
    made = run_mode(
        mode, machine.state(), ids, options.bytes, drafting, sampling=sampling, watch=watch
    )
    if options.json:
        print_rows([as_json(mode, prompt, made)])
        return
    if not options.trace:
        watch.finish()
    # The text is there, so nobody waits for it while its speed is measured.
    speed = speed_beside(mode, machine, ids, made, drafting, options)
    print(paint("\n\n" + summary(mode, made, speed), 2))


def compare_modes(machine, prompts, draftings, options):
    """Every mode on the same prompts (bytes): JSON rows, or a table and who wrote BLT's bytes.

    draftings: of each mode, plain BLT first.
    """
    settings = [Setting(mode, "", drafting) for mode, drafting in draftings.items()]
    ids = [encode(prompt) for prompt in prompts]
    made = measure(machine, ids, options.bytes, settings, lambda: sampling_of(options))
    verdicts = {mode: [] for mode in draftings}
    for i, prompt in enumerate(prompts):
        for mode, outputs in zip(draftings, made):
            same = identical(mode, machine, ids[i], made[0][i], outputs[i], options)
            verdicts[mode].append(same)
            if options.json:
                print_rows([as_json(mode, prompt, outputs[i]) | {"identical_to_blt": same}])
    if options.json:
        return
    rows, times = compare(machine, ids, settings, made)
    print_measured(rows, times)
    if options.temperature:
        return
    words = {True: "yes", False: "no", "tie": "tie"}
    said = []
    for mode, of_prompts in verdicts.items():
        said.append(f"{mode} {', '.join(words[same] for same in of_prompts)}")
    print(f"identical to plain BLT: {'; '.join(said)}")


# ---- the command


def options_from(argv):
    """The command line: which model, how it writes, and what is shown of it."""
    parser = Parser(prog="sample.py", description="Generate bytes from a checkpoint.")
    parser.epilog = __doc__[__doc__.index("JSON keys") :]
    add_checkpoint(parser)
    add_mode(parser, MODES, RULES)
    add_sampling(parser)
    add = parser.add_argument
    help_ = "text to go on with (default: how text begins that the model knows, or nothing)"
    add("--prompt", help=help_)
    add("--prompt-file", nargs="+", metavar="FILE", help="instead: files, a generation each")
    add("--trace", action="store_true", help="show drafts and unmasking as they happen")
    add("--compare", action="store_true", help="every mode on the same prompts, in one table")
    add("--json", action="store_true", help="print JSON objects, a line each, and nothing else")
    options = parser.parse_args(argv)
    if options.trace and (options.compare or options.json):
        other = "--compare" if options.compare else "--json"
        raise BadInput(f"{other} shows no --trace: leave one of them out")
    return options


def main(argv=None):
    """Bad flags, prompts and checkpoints end in one line before anything is generated."""
    options = options_from(argv)
    # Any bytes are a prompt, none at all and invalid UTF-8 too.
    prompts = [os.fsencode(options.prompt or "")]
    if options.prompt_file:
        prompts = [read_file(path, "the prompt file") for path in options.prompt_file]
    machine = load(options)
    if options.prompt is None and not options.prompt_file:
        prompts = [beginning(machine.openings, "")]
    drafting = drafting_of(options)
    # Which flags are read depends on the model too: one with a chained head drafts by that.
    if options.compare:
        draftings = check_compared(machine.model, drafting)
        compare_modes(machine, prompts, draftings, options)
        return
    check_drafting(options.mode, machine.model, drafting, options.rounds)
    for prompt in prompts:
        sample(machine, prompt, drafting, options)


if __name__ == "__main__":
    run(main)
