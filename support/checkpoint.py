"""One file holds a run: configurations, entropy model, threshold, weights, optimiser, step.

Written atomically, loaded as plain data.
"""

import contextlib
import glob
import mmap
import os
import pickle

import torch
from torch.serialization import set_default_mmap_options, skip_data

from support.terminal import BadInput

FORMAT, VERSION = "fast-blt", 2
DEFAULT = "checkpoint.pt"
# What version 1 called the fields of its configurations.
RENAMED = {"theta": "threshold", "rope_theta": "rope_base", "hash_rows": "ngram_table_size"}


def save(path, contents, fill=None):
    """Write a dict of tensors and plain values.

    A crash at any moment leaves the old file or the new one, never half of one. fill: a function
    that is given the contents as they lie in the file, to write tensors that have no memory yet.
    """
    if os.path.exists(path):
        load(path)  # nothing but a checkpoint is ever written over
    part = f"{path}.part"
    leave_out = skip_data(materialize_fake_tensors=True) if fill else contextlib.nullcontext()
    try:
        with open(part, "wb") as file:
            with leave_out:
                torch.save({"format": FORMAT, "version": VERSION, **contents}, file)
            file.flush()
            if fill:
                if hasattr(os, "posix_fallocate"):  # a full disk shows here
                    os.posix_fallocate(file.fileno(), 0, os.path.getsize(part))
                with set_default_mmap_options(mmap.MAP_SHARED):
                    fill(torch.load(part, mmap=True, weights_only=True))
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as problem:
        with contextlib.suppress(OSError):
            os.remove(part)
        raise BadInput(f"can't write {path}: {problem.strerror}") from None


def load(path):
    """-> the dict that `save` was given, its tensors in the file until they are used.

    Raises BadInput for anything else than a whole checkpoint of ours.
    """
    if not os.path.isfile(path):
        raise BadInput(f"no checkpoint at {path}: train one with `python train.py --out {path}`")
    advice = "give a file that train.py wrote"
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError):
        raise BadInput(f"{path} is not a checkpoint or is damaged: {advice}") from None
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise BadInput(f"{path} is a checkpoint of another program: {advice}")
    version = contents.get("version")
    if version not in (1, VERSION):
        reads = f"this code reads version {VERSION}: train it again"
        raise BadInput(f"{path} has checkpoint version {version}, {reads}")
    if version == 1:
        for name in ("config", "patcher_config"):
            config = contents.get(name, {})
            contents[name] = {RENAMED.get(key, key): value for key, value in config.items()}
    return contents


def build(kind, config, weights, as_stored=False):
    """A module of that kind with a checkpoint's weights, in float32 or as they lie in the file."""
    with torch.device("meta"):  # shapes alone
        module = kind(config)
    if not as_stored:
        weights = {name: x.to(torch.float32, copy=True) for name, x in weights.items()}
    module.load_state_dict(weights, assign=True)
    return module.eval()


def find(path=None):
    """The checkpoint to use: `path` if given, else checkpoint.pt here, else the project's own."""
    if path or os.path.exists(DEFAULT):
        return path or DEFAULT
    project = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    shipped = sorted(glob.glob(os.path.join(project, "checkpoints", "*.pt")))
    return shipped[0] if shipped else DEFAULT
