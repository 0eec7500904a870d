"""What a model can do on held-out text: a look now and then while it trains, all of it at the end.

Bits per byte count every byte once, with all of its document before it, as generation sees it.
"""

import sys

from tqdm import tqdm

from fast.load import Machine, checked
from generate import Prefix
from measure.quality import bits_per_byte, masked_accuracy, written
from support.flags import PROMPT
from support.openings import beginning
from support.terminal import progress, visible
from training.distributed import rank
from training.runs import whole_model

LOOK = 16  # documents that are looked at while a model trains
BEGINNING = 2048  # bytes that are read of each of them; of all, where the machine is the plain one


def machine_of(run, model):
    """A machine for a model of the run: the fast one as long as it follows the model.

    Once it did not, that is said and true for all of the run.
    """
    if run.plain:
        return Machine(model, run.patcher, Prefix)
    machine = checked(model, run.patcher)
    run.plain = machine.kind is Prefix
    return machine


def look(run, held_out):
    """Say how well the model reads some of the held-out text by now, and what it writes."""
    model = whole_model(run)
    if rank():
        return
    machine = machine_of(run, model)
    peek = [ids[:BEGINNING] for ids in held_out[:LOOK]]
    bits = bits_per_byte(machine.state, peek)
    run.results.setdefault("log", []).append((run.step, round(run.seconds), round(bits, 4)))
    on = f"on {sum(map(len, peek)):,} held-out bytes"
    said = visible(written(machine, 60, beginning(run.openings, PROMPT)))
    tqdm.write(f"step {run.step}: {bits:.3f} bits/byte {on}, sample: {said}", file=sys.stderr)


def validate(run, held_out):
    """Fill run.results with what run.model, which is whole, can do on all of the held-out text."""
    machine = machine_of(run, run.model)
    if run.plain:  # it reads a document as often as it has pieces
        held_out = [ids[:BEGINNING] for ids in held_out]
        print(f"the plain machine reads the first {BEGINNING:,} bytes of each document alone")
    total = sum(map(len, held_out))
    with progress("validation", total) as bar:
        bits = bits_per_byte(machine.state, held_out, bar.update)
    run.results["validation_bits_per_byte"] = bits
    print(f"validation: {bits:.3f} bits per byte on {total:,} held-out bytes")
    K = run.recipe.block_size
    if K:
        validate_blocks(run, machine, held_out, K)


def validate_blocks(run, machine, held_out, K):
    """Fill run.results with how well wholly masked blocks of K bytes are guessed."""
    accuracy, bits = masked_accuracy(machine, held_out, K)
    run.results["masked_accuracy"] = accuracy
    run.results["masked_bits_per_byte"] = None
    if accuracy is None:
        print(f"wholly masked blocks of {K}: no held-out document is long enough for one")
        return
    masked_bits = sum(bits) / K
    run.results["masked_bits_per_byte"] = masked_bits
    right = "right by position in the block: " + " ".join(f"{x:.0%}" for x in accuracy)
    print(f"wholly masked blocks of {K}: {masked_bits:.3f} bits per byte, {right}")
