"""From a checkpoint to a machine that generates: the fast one if it follows the model, else the
plain one.

Whoever changes the method changes the root files. The fast machine folds weights and keeps caches
by rules of its own, so it is compared with the plain one on a few bytes before it is used.
"""

import contextlib
import math
import sys
from dataclasses import dataclass, field, replace

import torch

from data import BOS, MASK, VOCAB, encode
from fast.fixed import FixedStream, fixed
from fast.lean import FastModel, lean_patcher
from fast.official import ByteStateStream
from fast.stream import Stream
from generate import Prefix, Sampling
from model import BLT, BLTConfig
from patcher import Patcher, PatcherConfig
from support import checkpoint
from support.openings import known_openings
from support.terminal import BadInput

# What both machines are asked about: 64 bytes, of words and of code
PROBE = encode(b"Once there was a cat.\n\ndef main(x):\n  return {'a': [1, 2]}\n\n# an")
# Half of them is taken in as generation does it: byte by byte, and several that were drafted
PIECES = [1, 1, 1, 5] * 4
# Rows that layers see meanwhile, so that 64 bytes reach far beyond
SIGHT = 10
PATCHES = 4  # that global layers see
# Largest difference of two logits, over the largest logit, that is rounding
ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3}
ROUNDING_OF_HALF = 0.1


# ---- the plain model of a file


def patcher_from(saved):
    """The Patcher of a loaded checkpoint, in float32."""
    config = checkpoint.config_from(PatcherConfig, saved, "patcher_config")
    return checkpoint.build(Patcher, config, saved, "patcher")


def model_from(saved, **changes):
    """The BLT of a loaded checkpoint. changes: of its config, where it may change.

    In float32, or `as_stored`: in the number format and the memory of the file. A chained head that
    it has not yet is new.
    """
    known = checkpoint.config_from(BLTConfig, saved, "config")
    config = replace(known, **changes)
    if config.chain_width and not known.chain_width:
        saved = {**saved, "model": {**BLT(config).init_weights().state_dict(), **saved["model"]}}
    return checkpoint.build(BLT, config, saved, "model", saved.get("as_stored"))


def load_model(path):
    """The plain BLT of a checkpoint file and its patcher -> (model, patcher).

    Raises BadInput for a file that holds none, or two that do not fit together.
    """
    saved = checkpoint.load(path)
    if not saved["model"]:
        advice = f"go on with `python train.py --resume {path}`"
        raise BadInput(f"{path} holds a patcher but no model yet: {advice}")
    model, patcher = model_from(saved), patcher_from(saved)
    longest = model.config.max_patch
    if longest and not 0 < patcher.config.max_patch <= longest:
        raise checkpoint.damaged(saved, f"its model takes patches of {longest} bytes at most")
    return model, patcher


# ---- machines


@dataclass
class Machine:
    """A model ready to generate. Each generation takes a new state."""

    model: torch.nn.Module  # a BLT, or what fast.lean makes of one
    patcher: torch.nn.Module
    kind: type  # of its states
    openings: list = field(default_factory=list)  # that its checkpoint keeps: text of its kind

    def state(self, max_rollback=None):
        """A new state, which holds no text yet.

        max_rollback: how many bytes back it has to reach, if not as many as a draft has. A plain
        one reaches any.
        """
        if max_rollback is None or not issubclass(self.kind, Stream):
            return self.kind(self.model, self.patcher)
        # Few sizes: of each a GPU keeps buffers and graphs.
        max_rollback = max(72, 1 << (max_rollback - 1).bit_length())
        return self.kind(self.model, self.patcher, max_rollback=max_rollback)


def prepared(model, patcher):
    """The fast machine of a BLT and its Patcher, unchecked. On a CPU its weights are folded."""
    weight = model.decoder.head.weight
    # GPUs have RMSNorm as one kernel, and half precision would round what is folded twice.
    on_cpu = weight.device.type == "cpu"
    fold = on_cpu and weight.dtype in (torch.float32, torch.float64)
    if on_cpu:  # a patcher is never in half precision
        patcher = lean_patcher(patcher)
    fast = FastModel(model, fold)
    if model.config.byte_states:
        return Machine(fast, patcher, ByteStateStream)
    if weight.device.type == "cuda":
        return Machine(fixed(fast), patcher, FixedStream)
    return Machine(fast, patcher, Stream)


@contextlib.contextmanager
def many_ends(model, patcher):
    """Within it layers see few rows, and every fourth byte of PROBE asks for the end of its patch.

    So what is done at the end of a window or of a patch shows in a text this short.
    """
    c = model.config
    p = patcher.config
    kept = c.window, c.global_window, p.window, p.threshold
    c.window = min(SIGHT, c.window)
    c.global_window = min(PATCHES, c.global_window)
    p.window = min(SIGHT, p.window)
    try:
        scores = patcher.scores(patcher.entropies(torch.tensor([BOS, *PROBE], device=model.device)))
        if scores is not None:
            # Between two of them, so that rounding moves no boundary
            place = 3 * len(scores) // 4
            p.threshold = scores.sort().values[place : place + 2].mean().item()
        yield
    finally:
        c.window, c.global_window, p.window, p.threshold = kept


@torch.inference_mode()
def answers(machine, pieces):
    """Logits that a machine gives on PROBE, and behind each half of it.

    pieces: of how many bytes it takes the second half; to the plain machine that is all one.
    """
    state = machine.state()
    half = len(PROBE) // 2
    logits = [state.extend([BOS, *PROBE[:half]]), *answers_behind(state)]
    for ids in torch.tensor(PROBE[half:]).split(pieces):
        logits.append(state.extend(ids.tolist()))
    logits += answers_behind(state)
    return torch.cat([rows.cpu() for rows in logits]).double()  # MPS has no float64


def answers_behind(state):
    """Logits of drafts, of a block behind one, and of its chained cells: list of (n, V)."""
    decoder = state.model.decoder
    c = state.model.config
    K = c.block_size
    drafted = PROBE[:2]
    alone = state.alone(drafted[:1], forced(PROBE[2:5]), Sampling())
    logits = [of_one for _, of_one in alone]
    logits.append(decoder.head(state.peek(drafted[:1])))
    logits.append(decoder.head(state.peek(drafted, [MASK] * K)))
    if K and c.chain_width:
        given = forced((2 * PROBE)[2 : 2 + K])
        chained = state.chained(drafted, drafted[-1], given, Sampling())
        logits += [of_one for _, of_one in chained]
    return logits


def forced(ids):
    """Noise (n, V) by which these n ids are picked, whatever the logits."""
    noise = torch.zeros(len(ids), VOCAB)
    noise[range(len(ids)), ids] = math.inf
    return noise


def checked(model, patcher):
    """The fast machine of a BLT and its Patcher; the plain one where it does not follow them.

    That is said in one line on stderr.
    """
    plain = Machine(model, patcher, Prefix)
    rounding = ROUNDING.get(model.decoder.head.weight.dtype, ROUNDING_OF_HALF)
    try:
        fast = prepared(model, patcher)
        with many_ends(model, patcher):
            expected = answers(plain, [sum(PIECES)])
            apart = float((answers(fast, PIECES) - expected).abs().max() / expected.abs().max())
        fast.model.idle.clear()  # what was captured looks through other windows
        if apart <= rounding:
            return fast
        problem = f"logits differ by {apart:.1%}"
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        line, _, _ = str(error).partition("\n")
        problem = f"{type(error).__name__}: {line}"
    print(
        f"fast/ does not follow the changed model ({problem}): the plain machine is used, "
        "many times slower",
        file=sys.stderr,
    )
    return plain


def load(path, device="cpu", plain=None):
    """The machine of a checkpoint file. plain: a plain state's class, to take instead of the fast.

    Raises BadInput for a file that holds no model.
    """
    model, patcher = load_model(path)
    model = model.to(device)
    patcher = patcher.to(device)
    machine = Machine(model, patcher, plain) if plain else checked(model, patcher)
    machine.openings = known_openings(checkpoint.read(path))
    return machine
