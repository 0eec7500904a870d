"""One file holds a run: configurations, entropy model, threshold, weights, optimiser, step.

Written atomically, loaded as plain data.
"""

import glob
import os
import pickle

import torch

from support.terminal import BadInput

FORMAT, VERSION = "fast-blt", 2
DEFAULT = "checkpoint.pt"
# What version 1 called the fields of its configurations.
RENAMED = {"theta": "threshold", "rope_theta": "rope_base", "hash_rows": "ngram_table_size"}


def save(path, contents):
    """Write a dict of tensors and plain values.

    A crash at any moment leaves the old file or the new one, never half of one.
    """
    part = f"{path}.part"
    try:
        with open(part, "wb") as file:
            torch.save({"format": FORMAT, "version": VERSION, **contents}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as problem:
        raise BadInput(f"can't write {path}: {problem.strerror}") from None


def load(path):
    """-> the dict that `save` was given, tensors on the CPU.

    Raises BadInput for anything else than a whole checkpoint of ours.
    """
    if not os.path.isfile(path):
        raise BadInput(f"no checkpoint at {path}: train one with `python train.py --out {path}`")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError):
        raise BadInput(
            f"{path} is not a checkpoint or is damaged: give a file that train.py wrote"
        ) from None
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise BadInput(
            f"{path} is a checkpoint of another program: give a file that train.py wrote"
        )
    version = contents.get("version")
    if version not in (1, VERSION):
        raise BadInput(
            f"{path} has checkpoint version {version}, this code reads version {VERSION}: "
            "train it again"
        )
    if version == 1:
        for name in ("config", "patcher_config"):
            config = contents.get(name, {})
            contents[name] = {RENAMED.get(key, key): value for key, value in config.items()}
    return contents


def find(path=None):
    """The checkpoint to use: `path` if given, else checkpoint.pt here, else the project's own."""
    if path or os.path.exists(DEFAULT):
        return path or DEFAULT
    project = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    shipped = sorted(glob.glob(os.path.join(project, "checkpoints", "*.pt")))
    return shipped[0] if shipped else DEFAULT
