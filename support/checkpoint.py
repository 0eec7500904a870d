"""One file holds a run: configurations, entropy model, threshold, weights, optimiser, step.

Written atomically, loaded as plain data, and checked before anything is made of it.
"""

import contextlib
import mmap
import os
import shlex
import zipfile
from dataclasses import fields

import torch
from torch.overrides import TorchFunctionMode
from torch.serialization import set_default_mmap_options, skip_data

from support.terminal import BadInput, Interrupt, check_regular, check_writable

FORMAT, VERSION = "fast-blt", 2
DEFAULT = "checkpoint.pt"
SHIPPED = "stories.pt"  # the project's own, in checkpoints/
# What every file has; the model is None while the patcher is trained.
FORM = dict.fromkeys(("config", "patcher_config", "patcher", "results"), dict)
FORM["model"] = dict | type(None)
# What numbers of configurations lie between, where that is not 1 and 2^31
BOUNDS = dict.fromkeys(("layers", "encoder_layers", "decoder_layers", "global_layers"), (1, 1000))
BOUNDS |= {"block_size": (0, 64), "chain_width": (0, 1 << 16), "max_patch": (0, 1 << 20)}
BOUNDS |= {"threshold": (-100, 100), "rope_base": (1, 1e12)}
LARGE = 1 << 30
GONE = ("reset_at_newline",)  # settings of older files, which have to be off


def save(path, contents, fill=None):
    """Write a dict of tensors and plain values, through a symlink to what it names.

    A crash at any moment leaves the old file or the new one, never half of one; signals wait for
    it. fill: a function that is given the contents as they lie in the file, to write tensors that
    have no memory yet. Raises BadInput where it can't be written; an old file is kept.
    """
    check_target(path)
    path = os.path.realpath(path)
    part = f"{path}.part"
    leave_out = skip_data(materialize_fake_tensors=True) if fill else contextlib.nullcontext()
    try:
        with Interrupt(whole=True), open(part, "wb") as file:
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
    except BaseException as problem:
        with contextlib.suppress(OSError):
            os.remove(part)
        # torch says only that a write failed, and keeps why
        while problem and not isinstance(problem, OSError):
            problem = problem.__context__
        if not problem:
            raise
        raise BadInput(f"can't write {path}: {problem.strerror}") from None


def check_target(path, inputs=()):
    """Raises BadInput where `save` may not or can't write. inputs: files and folders that are read.

    Nothing but a checkpoint is ever written over, and nothing that the new one is made of.
    """
    path = os.path.realpath(path)
    for given in map(os.path.realpath, filter(None, inputs)):
        if os.path.commonpath([given, path]) == given:
            raise BadInput(f"can't write {path}: it is among what is read; give another name")
    if os.path.exists(path):
        read(path, "nothing else is written over, give another name")
    check_writable(path)


def read(path, advice="give a file that train.py wrote"):
    """-> what is in a checkpoint, mapped from it. Raises BadInput and advises for another file."""
    check_regular(path, "the checkpoint")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # a damaged file can make it fail in any way
        raise BadInput(f"{path} is not a checkpoint or is damaged: {advice}") from None
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise BadInput(f"{path} is a checkpoint of another program: {advice}")
    return contents


def load(path):
    """-> the dict that `save` was given, and its path. Raises BadInput where it is not whole."""
    if not os.path.lexists(path):
        command = "python train.py"
        if path != DEFAULT:  # which it writes
            command += f" --out {shlex.quote(str(path))}"
        raise BadInput(f"no checkpoint at {path}: train one with `{command}`")
    contents = {**read(path), "path": str(path)}
    version = contents.get("version")
    if version != VERSION:
        reads = f"this code reads version {VERSION}: train it again"
        raise BadInput(f"{path} has checkpoint version {version}, {reads}")
    for key, kind in FORM.items():
        if not isinstance(contents.setdefault(key), kind):
            raise damaged(contents, f"{key} is missing or of another type")
    # torch writes a CRC-32 behind each record, and compares none. It has none of what `fill` wrote,
    # in files that are mapped and never read whole.
    if not contents.get("as_stored"):
        try:
            with zipfile.ZipFile(path) as file:
                bad = file.testzip()
        except Exception:  # as above
            bad = "its directory"
        if bad:
            raise damaged(contents, f"{bad} has changed; take a copy that is whole")
    return contents


def damaged(saved, problem):
    """The BadInput that says what is wrong with a loaded checkpoint."""
    return BadInput(f"{saved.get('path', 'the checkpoint')} is damaged: {problem}")


def config_from(kind, saved, name):
    """The configuration `name` of a loaded checkpoint, a dataclass of that kind, within bounds."""
    known = {field.name: field.default for field in fields(kind)}
    given = {**saved[name]}
    for field in GONE:
        if given.pop(field, False):
            raise BadInput(f"{saved.get('path')} needs {field}, which is gone: train it again")
    for field in given.keys() - known.keys():
        raise damaged(saved, f"{name}.{field} is unknown here")
    for field, default in known.items():
        value, numbers = given.get(field, default), {int: int, float: (int, float)}
        low, high = BOUNDS.get(field, (1, 1 << 31))
        fits = isinstance(value, numbers.get(type(default), type(default)))
        if type(default) in numbers:
            fits = fits and not isinstance(value, bool) and low <= value <= high
        if not fits:
            raise damaged(saved, f"{name}.{field} is {value!r:.60}, which can't be")
    config = kind(**given)
    for part in ("", "global_"):
        width, heads = getattr(config, part + "width", 2), getattr(config, part + "heads", 1)
        if width % (2 * heads):
            raise damaged(saved, f"{name}.{part}width {width} is not even for {heads} heads")
    return config


class NothingDrawn(TorchFunctionMode):
    """Within it new modules keep the weights that they happen to have.

    On the meta device, which has none, drawing them would import torch's compiler: a second or two
    before every start.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def build(kind, config, saved, part, as_stored=False):
    """A module of that kind with the weights `part` of a loaded checkpoint.

    In float32, or as they lie in the file. Raises BadInput, which names the key, for weights that
    are none of such a module or not finite. Those of LARGE bytes, tables of which a pass reads some
    rows, are not looked at.
    """
    try:
        with torch.device("meta"), NothingDrawn():  # shapes alone
            module = kind(config)
    except RuntimeError:  # products of sizes that no computer holds
        raise damaged(saved, f"the configuration of its {part} is too large") from None
    ours, weights = module.state_dict(), saved[part]
    for name in sorted(ours.keys() ^ weights.keys()):
        raise damaged(saved, f"{part}.{name} is {'missing' if name in ours else 'unknown here'}")
    for name, x in weights.items():
        real = isinstance(x, torch.Tensor) and x.is_floating_point() and x.layout == torch.strided
        if not real or x.shape != ours[name].shape:
            shape = list(ours[name].shape)
            raise damaged(saved, f"{part}.{name} holds no real numbers of shape {shape}")
        if x.nbytes < LARGE and not all(bound.isfinite() for bound in x.aminmax()):
            raise damaged(saved, f"{part}.{name} holds numbers that are not finite")
    if not as_stored:
        weights = {name: x.to(torch.float32, copy=True) for name, x in weights.items()}
    module.load_state_dict(weights, assign=True)
    return module.eval()


def find(path=None):
    """The checkpoint to use: `path` if given, else checkpoint.pt here, else the project's own."""
    if path or os.path.exists(DEFAULT):
        return path or DEFAULT
    project = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    shipped = os.path.join(project, "checkpoints", SHIPPED)
    return shipped if os.path.exists(shipped) else DEFAULT


def check_block_size(model, block_size, rule=None):
    """Raises BadInput where a model can't fill blocks of that size, or not by that rule."""
    trained = model.config.block_size
    if not trained:
        advice = "train a BLT-D with `python train.py --block-size 8`"
        raise BadInput(f"this checkpoint is a plain BLT (K = 0), it can't fill blocks: {advice}")
    if not 1 <= block_size <= trained:
        problem = f"was trained for blocks of up to {trained} bytes, not {block_size}"
        advice = "give a smaller --block-size or train with that one"
        raise BadInput(f"this checkpoint {problem}: {advice}")
    if rule == "chained" and not model.config.chain_width:
        advice = "train one with `python train.py --init-from FILE --recipe chain`"
        raise BadInput(f"this checkpoint has no chained head: give another --unmask, or {advice}")
