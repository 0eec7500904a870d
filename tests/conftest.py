"""Small models: random in float64 with nothing left at zero, and one that was really trained, for a few seconds."""
import os
import pathlib
from dataclasses import replace

import pytest
import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent
os.environ["NO_COLOR"] = "1"
torch.set_num_threads(2)

import train
from data import BOS
from model import BLT, PRESETS, load_model
from patcher import Patcher, PatcherConfig, calibrate

MICRO = replace(PRESETS["nano"], width=32, heads=2, hidden=48, decoder_layers=2, hash_rows=64, global_width=64, global_heads=2,
                global_hidden=64, global_layers=2)


def random_ids(n, seed=0, alphabet=12):
    """BOS and n - 1 bytes out of a few, so that n-grams and patches repeat."""
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([torch.tensor([BOS]), torch.randint(97, 97 + alphabet, (n - 1,), generator=generator) + 4])


def make_models(seed=0, window=24, global_window=8, max_patch=8, mean=3.0, kind="entropy", patcher_window=12, **changes):
    """A random BLT and patcher in float64 with sharp logits; θ is set to a mean patch of `mean` on random text."""
    torch.manual_seed(seed)
    model = BLT(replace(MICRO, window=window, global_window=global_window, max_patch=max_patch, **changes)).init_weights()
    patcher = Patcher(PatcherConfig(kind=kind, max_patch=max_patch, width=16, heads=1, hidden=24, window=patcher_window))
    for module in (model, patcher):
        for p in module.parameters():
            torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.3 if p.ndim == 1 else 1.5 * p.shape[1] ** -0.5)
    calibrate(patcher.double(), [random_ids(400, seed=9)], mean)
    return model.double().eval(), patcher.eval()


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory):
    """A few real source files of the running Python, as one text."""
    import argparse, heapq, textwrap
    path = tmp_path_factory.mktemp("corpus") / "text.py"
    path.write_bytes(b"".join(pathlib.Path(m.__file__).read_bytes() for m in (argparse, heapq, textwrap)))
    return path


@pytest.fixture(scope="session")
def trained_file(corpus_file, tmp_path_factory):
    """A nano checkpoint trained for a few seconds: low margins between bytes, as real models have."""
    path = tmp_path_factory.mktemp("trained") / "nano.pt"
    train.main(["--preset", "nano", "--data", str(corpus_file), "--steps", "150", "--dtype", "float32", "--out", str(path)])
    return path


@pytest.fixture(scope="session")
def trained(trained_file):
    """The same, as (model, patcher) in float64."""
    model, patcher = load_model(trained_file)
    return model.double(), patcher.double()
