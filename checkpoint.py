"""One file holds a run: configurations, entropy model, θ, weights, optimiser, step. Written atomically, loaded as plain data."""
import glob
import os
import pickle

import torch

from terminal import BadInput

FORMAT, VERSION = "fast-blt", 1
DEFAULT = "checkpoint.pt"


def save(path, contents):
    """Write a dict of tensors and plain values; a crash at any moment leaves the old file or the new one, never half of one."""
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
    """-> the dict that `save` was given, tensors on the CPU. Raises BadInput for anything else than a whole checkpoint of ours."""
    if not os.path.isfile(path):
        raise BadInput(f"no checkpoint at {path}: train one with `python train.py --out {path}`")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError):
        raise BadInput(f"{path} is not a checkpoint or is damaged: give a file that train.py wrote") from None
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise BadInput(f"{path} is a checkpoint of another program: give a file that train.py wrote")
    if contents.get("version") != VERSION:
        raise BadInput(f"{path} has checkpoint version {contents.get('version')}, this code reads version {VERSION}: train it again")
    return contents


def find(path=None):
    """The checkpoint to use: `path` if given, else checkpoint.pt here, else the one that comes with the project."""
    shipped = sorted(glob.glob(os.path.join(os.path.dirname(os.path.abspath(__file__)), "checkpoints", "*.pt")))
    if path or os.path.exists(DEFAULT) or not shipped:
        return path or DEFAULT
    return shipped[0]
