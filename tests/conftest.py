"""Small models: random in float64 with nothing left at zero, and one really trained for seconds."""

import argparse
import heapq
import os
import pathlib
import signal
import textwrap
from dataclasses import replace

import pytest
import torch
from device import Device

import train
from data import BOS, OFFSET
from fast.fixed import FixedStream, fixed
from fast.lean import FastModel
from fast.load import Machine, load_model, prepared
from fast.official import ByteStateStream
from fast.patching import calibrate
from fast.stream import Stream
from generate import Prefix
from model import BLT
from patcher import Patcher, PatcherConfig
from training.presets import PRESETS

ROOT = pathlib.Path(__file__).resolve().parent.parent
os.environ["NO_COLOR"] = "1"
# Where random models lie: TEST_DEVICE=cuda runs the tests of layers, model, generate, diffusion,
# speculate and stream on a GPU; TEST_DEVICE=emulated on the one of tests/device.py.
DEVICE = os.environ.get("TEST_DEVICE", "cpu")
if DEVICE == "emulated":
    Device("cuda").__enter__()
    DEVICE = "cuda"
# What a shell starts in the background ignores the first, what nohup starts the second.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
torch.set_num_threads(1)  # models this small only lose by more, above all on a busy machine

MICRO = replace(
    PRESETS["nano"].model,
    width=32,
    hidden=48,
    ngram_table_size=64,
    global_width=64,
    global_hidden=64,
)


def random_ids(n, seed=0, alphabet=12):
    """BOS and n - 1 bytes out of a few, so that n-grams and patches repeat."""
    generator = torch.Generator().manual_seed(seed)
    some = torch.randint(97, 97 + alphabet, (n - 1,), generator=generator) + OFFSET
    return torch.cat([torch.tensor([BOS]), some]).to(DEVICE)


def make_models(
    seed=0,
    window=24,
    global_window=8,
    max_patch=8,
    mean=3.0,
    kind="entropy",
    patcher_window=12,
    **changes,
):
    """A random BLT and patcher in float64 with sharp logits, in eval mode.

    The threshold is set to a mean patch of `mean` bytes on random text.
    """
    torch.manual_seed(seed)
    shape = {"window": window, "global_window": global_window, "max_patch": max_patch}
    model = BLT(replace(MICRO, **shape, **changes)).init_weights()
    shape = {"width": 16, "heads": 1, "hidden": 24, "window": patcher_window}
    patcher = Patcher(PatcherConfig(kind=kind, max_patch=max_patch, **shape))
    for module in (model, patcher):
        for p in module.parameters():
            if p.ndim == 1:
                torch.nn.init.normal_(p, mean=1.0, std=0.3)
            else:
                torch.nn.init.normal_(p, std=1.5 * p.shape[1] ** -0.5)
    calibrate(patcher.double(), [random_ids(400, seed=9)], mean)
    return model.double().eval().to(DEVICE), patcher.eval().to(DEVICE)


# ---- the machines of a model: each has .model, .patcher and .state(), which is a new state


def plain_of(model, patcher):
    """The plain machine, which all others follow."""
    return Machine(model, patcher, Prefix)


def tensor_of(ids):
    """Ids as a tensor where random models lie."""
    return torch.tensor(ids, device=DEVICE)


def fast_of(model, patcher):
    """The fast machine as generation on a CPU takes it, its weights folded."""
    return prepared(model, patcher)


def unfolded_of(model, patcher):
    """A fast machine whose weights are as they are, and whose passes have as many rows as asked."""
    kind = ByteStateStream if model.config.byte_states else Stream
    return Machine(FastModel(model, fold=False), patcher, kind)


def fixed_of(model, patcher):
    """The fast machine of fixed shapes, as CUDA takes it; here its passes are no graphs."""
    return Machine(fixed(FastModel(model, fold=False)), patcher, FixedStream)


FAST = {"folded": fast_of, "unfolded": unfolded_of}
# Where passes are captured graphs, no hook sees them.
seen_by_hooks = pytest.mark.skipif(DEVICE.startswith("cuda"), reason="graphs run no hooks")


def count_passes(model, patcher):
    """A dict that counts, from now on, how often each part really runs."""
    ran = {"decoder": 0, "encoder": 0, "globe": 0, "entropy": 0}
    # Its cross-attention, since a Stream knows the patches that LocalEncoder.forward looks for
    encoder = model.encoder.cross
    parts = {"decoder": model.decoder, "encoder": encoder, "globe": model.globe}

    def watch(name, module):
        def one_more(*_):
            ran[name] += 1

        module.register_forward_hook(one_more)

    for name, module in (*parts.items(), ("entropy", patcher.model)):
        watch(name, module)
    return ran


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory):
    """A few real source files of the running Python, as one text."""
    path = tmp_path_factory.mktemp("corpus") / "text.py"
    modules = (argparse, heapq, textwrap)
    path.write_bytes(b"".join(pathlib.Path(m.__file__).read_bytes() for m in modules))
    return path


@pytest.fixture(scope="session")
def trained_file(corpus_file, tmp_path_factory):
    """A nano checkpoint trained for seconds: low margins between bytes, as real models have."""
    path = tmp_path_factory.mktemp("trained") / "nano.pt"
    options = ["--preset", "nano", "--steps", "150", "--dtype", "float32", "--chain-width", "16"]
    train.main([*options, "--data", str(corpus_file), "--out", str(path)])
    return path


@pytest.fixture(scope="session")
def trained(trained_file):
    """The same, as (model, patcher) in float64."""
    model, patcher = load_model(trained_file)
    return model.double().to(DEVICE), patcher.double().to(DEVICE)
