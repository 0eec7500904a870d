"""One file holds a run: configurations, entropy model, threshold, weights, optimiser, step.

Written atomically, loaded as plain data, and checked before anything is made of it: every record
against its CRC-32, every value against what its configuration says.
"""

import glob
import math
import os
import zipfile
from dataclasses import asdict

import torch

from support import terminal
from support.terminal import BadInput, Interrupt, check_name, reason, refuse_special

FORMAT, VERSION = "fast-blt", 2
DEFAULT = "checkpoint.pt"
# What version 1 called the fields of its configurations.
RENAMED = {"theta": "threshold", "rope_theta": "rope_base", "hash_rows": "ngram_table_size"}
# Above so many bytes a file is memory-mapped, and read whole only where `whole` asks for it.
LARGE = 1 << 30

# ---- writing


def save(path, contents):
    """Write a dict of tensors and plain values, through a symlink to what it names.

    A crash at any moment leaves the old file or the new one, never half of one; signals wait.
    Raises BadInput where it can't be written; the old file is kept then.
    """
    path = os.path.realpath(path)
    part = f"{path}.part"
    with Interrupt(whole=True):
        try:
            if os.path.isfile(part):
                os.remove(part)  # what a kill left
            with open(part, "xb") as file:
                torch.save({"format": FORMAT, "version": VERSION, **contents}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException as problem:
            if os.path.isfile(part):
                os.remove(part)  # half a file would only fill the disk
            # torch says that a write failed, and keeps why
            while problem and not isinstance(problem, OSError):
                problem = problem.__context__
            if not problem:
                raise
            raise BadInput(f"can't write {path}: {reason(problem)}") from None


def check_target(path, inputs=()):
    """Raises BadInput where `save` may not or can't write: see terminal.check_target."""
    terminal.check_target(path, "checkpoint", is_ours, [p for p in inputs if p])


def is_ours(path):
    """Is a file a checkpoint that `save` wrote? Reads no weights."""
    try:
        return read(path, mmap=True).get("format") == FORMAT
    except (BadInput, AttributeError):
        return False


# ---- reading


def read(path, mmap):
    """What torch finds in a file, as plain data. Raises BadInput where that is nothing whole."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception:  # a damaged file can make it fail in any way
        raise BadInput(
            f"{path} is not a checkpoint or is damaged: give a file that train.py wrote"
        ) from None


def load(path, whole=False):
    """-> the dict that `save` was given, tensors on the CPU.

    Raises BadInput for anything else than a whole checkpoint of ours. torch writes a CRC-32 behind
    every record, which is compared here (a second for 1.7 GB); a file above LARGE bytes is
    memory-mapped instead, as not all of it may be needed, unless `whole` asks for the comparison.
    """
    check_name(path, f"can't read the checkpoint {path}")
    if not os.path.lexists(path):
        advice = f": train one with `python train.py --out {path}`"
        raise BadInput(f"no checkpoint at {path}" + advice * str(path).endswith(".pt"))
    refuse_special(path, f"can't read the checkpoint {path}")
    large = os.path.getsize(path) > LARGE
    contents = read(path, mmap=large)
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise BadInput(
            f"{path} is a checkpoint of another program: give a file that train.py wrote"
        )
    version = contents.get("version")
    if type(version) is not int or version not in (1, VERSION):
        raise BadInput(
            f"{path} has checkpoint version {version}, this code reads version {VERSION}: "
            "train it again"
        )
    if whole or not large:
        verify(path)
    if version == 1:
        for name in ("config", "patcher_config"):
            config = contents.get(name)
            if isinstance(config, dict):
                contents[name] = {RENAMED.get(key, key): value for key, value in config.items()}
    contents["path"] = str(path)  # for what is said of it
    check_form(contents, contents, FORM)
    for key, value in contents["results"].items():
        for x in value if isinstance(value, list) else [value]:
            check_form(contents, x, 0.0, f"results.{key}")
    if contents.setdefault("model") is not None:
        check_form(contents, contents["model"], {}, "model")
    # An exported checkpoint keeps only where its text came from, one of training all it was asked.
    data = contents.setdefault("data", dict(contents.get("asked") or ()).get("data"))
    if data is not None and not (isinstance(data, list) and all(isinstance(p, str) for p in data)):
        raise damaged(contents, f"data is {repr(data)[:60]}, not a list of paths")
    return contents


def verify(path):
    """Raises BadInput where a record of the file is not what was written."""
    try:
        with zipfile.ZipFile(path) as file:
            bad = file.testzip()
    except Exception:
        bad = "its directory"
    if bad:
        raise BadInput(f"{path} is damaged ({bad} has changed): take a copy that is whole")


def find(path=None):
    """The checkpoint to use: `path` if given, else checkpoint.pt here, else the project's own."""
    if path or os.path.exists(DEFAULT):
        return path or DEFAULT
    project = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    shipped = sorted(glob.glob(os.path.join(project, "checkpoints", "*.pt")))
    return shipped[0] if shipped else DEFAULT


# ---- what is in it: all of these raise BadInput, which names the key that is wrong

# What every file has, by examples; the model is None while the patcher is trained.
FORM = {"config": {}, "patcher_config": {}, "patcher": {}, "results": {}}
FORM |= {"corpus": {"origin": "", "bytes": 0, "sha256": ""}}
# What numbers lie between, where whole ones are not from 1 on and others from 0
BOUNDS = dict.fromkeys(("layers", "encoder_layers", "decoder_layers", "global_layers"), (1, 1000))
BOUNDS |= {"block_size": (0, 64), "chain_width": (0, 1 << 16), "threshold": (-100, 100)}
BOUNDS |= {"max_patch": (1, 1 << 20), "patch_vectors": (1, 1000), "rope_base": (1, 1e12)}
BOUNDS |= {"t_min": (1e-6, 1), "clip": (1e-6, 1e6), "seed": (0, 1 << 31), "step": (0, 1 << 31)}
BOUNDS |= dict.fromkeys(("width", "global_width", "ngram_table_size"), (1, 1 << 31))


def damaged(saved, problem):
    """The BadInput that says what is wrong with a checkpoint."""
    return BadInput(f"{saved.get('path', 'the checkpoint')} is damaged: {problem}")


def check_form(saved, value, form, name="", whole=False):
    """Is a value of a checkpoint of the kind of `form`, with its keys (and no others if `whole`)?

    Numbers must be finite and in BOUNDS, and tensors have the shape of that of `form`. To see that
    theirs are finite takes a second for 3 to 10 GB; what is larger than LARGE is not looked at.
    """
    tensor = isinstance(form, torch.Tensor)  # or a Parameter
    kind, fits = type(form).__name__, isinstance(value, torch.Tensor if tensor else type(form))
    if isinstance(form, dict) and fits:
        for key in dict.fromkeys([*form, *(value if whole else ())]):
            where = f"{name}.{key}".strip(".")
            if key not in value or key not in form:
                raise damaged(saved, f"{where} is {'missing' if key in form else 'unknown here'}")
            check_form(saved, value[key], form[key], where, whole)
    elif tensor and fits:
        kind = f"real numbers in shape {list(form.shape)}"
        fits = value.is_floating_point() and value.layout == torch.strided
        fits = fits and value.shape == form.shape and value.device.type != "meta"
        if fits and value.nbytes < LARGE:
            fits = all(x.isfinite() for x in value.aminmax())
            kind += ", all of them finite"
    elif isinstance(form, (int, float)) and not isinstance(form, bool):
        kind = "a finite number" if isinstance(form, float) else "a whole number"
        kinds = (int, float) if isinstance(form, float) else int
        fits = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
        low, high = BOUNDS.get(name.rpartition(".")[2], (int(kinds is int), 1 << 63))
        if fits and not low <= value <= high:
            raise damaged(saved, f"{name} {value} is outside [{low:g}, {high:g}]")
    if not fits:
        shown = f"of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
        raise damaged(saved, f"{name} is {shown[:60]}, not {kind}")


def config_from(cls, saved, name):
    """The configuration `name` of a loaded checkpoint, of the dataclass `cls`."""
    known = asdict(cls())
    check_form(saved, {**known, **saved[name]}, known, name, whole=True)
    config = cls(**saved[name])
    for part in ("", "global_"):
        width, heads = getattr(config, part + "width", 2), getattr(config, part + "heads", 1)
        if width % (2 * heads):
            raise damaged(saved, f"{name}.{part}width {width} is not even for {heads} heads")
    return config


class NoDraws(torch.overrides.TorchFunctionMode):
    """Leaves new weights as they are: to draw into tensors without numbers, torch loads a lot."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", "") == torch.nn.init.__name__:
            return None  # what is drawn is drawn in place
        return function(*args, **kwargs or {})


def module_from(saved, part, build):
    """The module that build() makes, with the tensors of `part` of a loaded checkpoint, float32.

    They are compared with it while it has shapes alone.
    """
    try:
        with torch.device("meta"), NoDraws():
            module = build()
    except RuntimeError:  # sizes whose product is too large
        raise damaged(saved, f"the configuration of its {part} is of no possible size") from None
    check_form(saved, saved[part], dict(module.state_dict()), part, whole=True)
    module.load_state_dict({name: x.float() for name, x in saved[part].items()}, assign=True)
    return module.eval()
