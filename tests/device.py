"""A device that is not there: tensors that say they lie on `cuda` and hold tensors of the CPU.

What it is for: a test on any machine fails where the code would mix devices on a GPU, and it counts
what a GPU spends its time on, kernels and waits of the host. Numbers come out as on the CPU.

    with Device("cuda") as device:
        model.to("cuda")(ids.to("cuda"), ...)
    device.kernels, device.waits, device.lines

How it works. `Held` is a tensor subclass: each of its operations comes to `Device.operation`, below
autograd. To torch's C++ it is a tensor of the CPU, so whatever names a device (`to`, `cpu`,
`device=`) is caught before it gets there, in `Device.__torch_function__`.
"""

import collections
import contextlib
import os
import sys
import unittest.mock
import warnings

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

import fast.graphs
import layers
import model

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
T = torch.Tensor
# One kernel on a GPU, several here. (In training they count as several; so do their gradients.)
ONE_KERNEL = (F.rms_norm, F.scaled_dot_product_attention)
# Results of these have a shape, or are a number, that the host has to wait for.
WAITING = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal"}
WAITING |= {"bincount", "_local_scalar_dense", "is_nonzero", "repeat_interleave"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
# Beside those that work number by number, these take numbers of the other device.
TAKE_NUMBERS = {"where", "masked_fill", "masked_fill_", "fill_", "lerp", "lerp_", "index_fill_"}
NO_KERNEL = {"_unsafe_view", "empty", "empty_like", "new_empty", "empty_strided", "lift_fresh"}


class Mixed(RuntimeError):
    """Tensors of two devices in one operation, or what the device can't do."""


def leaves(x):
    """All that a nest of lists and tuples holds, in order."""
    if not isinstance(x, list | tuple):
        return [x]
    return [leaf for part in x for leaf in leaves(part)]


def mapped(function, x):
    """The same nest of what function makes of each."""
    if isinstance(x, dict):
        return {name: mapped(function, part) for name, part in x.items()}
    if isinstance(x, list | tuple):
        return type(x)([mapped(function, part) for part in x])
    return function(x)


class Held(torch.Tensor):
    """A tensor that says it lies on the device."""

    @staticmethod
    def __new__(cls, elem, device):
        held = T._make_wrapper_subclass(
            cls,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            device="cpu",
        )
        held.elem = elem
        held.place_of = device
        return held

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        held = (x for x in leaves((args, tuple(kwargs.values()))) if isinstance(x, Held))
        return next(held).place_of.operation(func, args, kwargs)

    device = property(lambda self: self.place_of.place)

    def __reduce_ex__(self, protocol):
        """torch.save writes the numbers."""
        return self.elem.detach().__reduce_ex__(protocol)

    def __deepcopy__(self, memo):
        raise Mixed("a tensor of the device is copied deeply")

    def __repr__(self):
        return f"Held({self.elem!r})"


def line_of_the_project():
    """Which line of the project, tests left out, is at work."""
    frame = sys._getframe(1)
    while frame:
        name = frame.f_code.co_filename
        if name.startswith(ROOT + os.sep):
            name = os.path.relpath(name, ROOT)
            # An environment may lie in the project, whatever it is called.
            if not name.startswith("tests" + os.sep) and "site-packages" not in name:
                return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return "no line of the project"


def is_pinned(x):
    return getattr(x, "lies_pinned", False)


class Device(TorchFunctionMode):
    """Within it, there is such a device, of the type "cuda" or "mps"."""

    def __init__(self, kind="cuda"):
        super().__init__()
        self.place = torch.device(kind, 0)
        self.trace = None  # of a captured function: its operations
        self.one_kernel = False
        self.reset()

    def reset(self):
        """Count from here on."""
        self.kernels = 0
        self.launches = 0  # kernels, but a replayed graph is one
        self.operations = collections.Counter()
        self.lines = collections.Counter()  # (line, kind of wait) -> how often

    @property
    def waits(self):
        """How often the host waited."""
        return self.lines.total()

    def wait(self, kind):
        line = line_of_the_project()
        if self.trace is not None:
            raise Mixed(f"{line} waits ({kind}) in a graph that is captured")
        self.lines[line, kind] += 1

    # ---- what names a device

    def is_here(self, device):
        if device is None or isinstance(device, int):
            return False
        return torch.device(device).type == self.place.type

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (T.to, T.cpu, T.cuda):
            return self.move(func, *args, **kwargs)
        if func in (T.tolist, T.numpy) and isinstance(args[0], Held):
            if func is T.numpy:
                raise Mixed("a tensor of the device is no array")
            self.wait("copy to the host")
            return args[0].elem.tolist()
        if func is T.pin_memory or kwargs.pop("pin_memory", False):
            made = args[0].clone() if func is T.pin_memory else func(*args, **kwargs)
            made.lies_pinned = True
            return made
        if func is T.new_tensor and isinstance(args[0], Held):
            return self.here(torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype)))
        if self.is_here(kwargs.get("device")):
            return self.create(func, args, kwargs)
        if func is F.embedding_bag and isinstance(args[0], Held):
            # Where torch would ask for a tensor of the device itself
            ids = args[0]
            if ids.ndim == 2:
                offsets = torch.arange(0, ids.numel(), ids.shape[1])
                kwargs["offsets"] = self.created(func, args[:0], offsets)
                args = (ids.reshape(-1), *args[1:])
        if func is torch.gru and isinstance(args[0], Held):
            return self.gru(func, args)
        if func in ONE_KERNEL and not torch.is_grad_enabled() and isinstance(args[0], Held):
            self.kernels += 1
            self.launches += self.trace is None
            with unittest.mock.patch.object(self, "one_kernel", True):
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def move(self, func, x, *args, **kwargs):
        """x.to(...), x.cpu(), x.cuda()."""
        device = {T.cpu: torch.device("cpu"), T.cuda: self.place}.get(func)
        dtype = x.dtype
        blocking = not kwargs.get("non_blocking", False)
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, T):
                device = value.device
                dtype = value.dtype
            elif isinstance(value, str | torch.device):
                device = torch.device(value)
        if args[2:] and args[2] is True:  # to(device, dtype, non_blocking), as nn.Module says it
            blocking = False
        here = isinstance(x, Held)
        if device is None or self.is_here(device) == here:
            if dtype == x.dtype:
                return x.clone() if kwargs.get("copy") else x
            with torch._C.DisableTorchFunction():
                return T.to(x, dtype)
        if here:
            if device.type != "cpu":
                return T.to(x.elem.detach(), device, dtype)
            self.wait("copy to the host")
            return x.elem.detach().to(dtype, copy=True)
        if self.is_here(device):
            if blocking or not is_pinned(x):
                self.wait("copy to the device")
            self.kernels += 1
            self.launches += 1
            return self.held(x.detach().to(dtype, copy=True))
        return func(x, *args, **kwargs)

    def here(self, made):
        """What the host made, as a tensor of the device."""
        self.wait("copy to the device")
        return self.held(made)

    def create(self, func, args, kwargs):
        """A function that makes a new tensor there."""
        if isinstance(kwargs.get("generator"), torch.Generator):
            raise Mixed("random numbers come from the CPU's generators")
        del kwargs["device"]
        made = func(*args, **kwargs)
        if isinstance(made, Held):
            return made
        if func in (torch.tensor, torch.as_tensor):
            return self.here(made)
        if not func.__name__.startswith("empty"):
            self.count(func.__name__)
        return self.created(func, args, made)

    def created(self, func, args, made):
        if self.trace is not None:
            self.trace.append((func.__name__, str(args)))
            self.made_inside.add(made.untyped_storage().data_ptr())
        return self.held(made)

    def gru(self, func, args):
        """cuDNN's rule; and with batch_first torch would turn the result in place."""
        rows, state, weights, bias, layers, dropout, training, both_ways, batch_first = args
        if torch.is_grad_enabled() and not training:
            raise Mixed("cudnn RNN backward can only be called in training mode")
        if torch.is_autocast_enabled("cpu"):
            raise Mixed("under autocast cuDNN's GRU runs in float16")
        if batch_first:
            rows = rows.transpose(0, 1)
        how = (bias, layers, dropout, training, both_ways, False)
        states, state = func(rows, state, weights, *how)
        return states.transpose(0, 1) if batch_first else states, state

    # ---- what is done there

    def held(self, x):
        if self.place.type == "mps" and x.dtype == torch.float64:
            raise Mixed(f"{line_of_the_project()}: MPS has no float64")
        return Held(x, self)

    def count(self, name):
        if not self.one_kernel:
            self.kernels += 1
            self.launches += self.trace is None
            self.operations[name] += 1

    def operation(self, func, args, kwargs):
        """One aten operation with tensors of the device among its arguments."""
        name = func.overloadpacket.__name__
        flat = leaves((args, tuple(kwargs.values())))
        host = [x for x in flat if isinstance(x, T) and not isinstance(x, Held)]
        if host:
            self.check_mixing(func, name, args, host)
        if name in INDEXING:
            indices = [x for x in leaves(args[1]) if isinstance(x, Held)]
            fills = name != "index" and args[2].ndim == 0  # x[mask] = 1 is masked_fill
            if not fills and any(x.dtype in (torch.bool, torch.uint8) for x in indices):
                self.wait("nonzero")
        elif name in WAITING:
            self.wait(name)
        originals = {}

        def unwrap(x):
            if isinstance(x, Held):
                originals[id(x.elem)] = x
                return x.elem
            return x

        if self.trace is not None:
            self.note(name, flat)
        kwargs = mapped(unwrap, kwargs)
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        made = func(*mapped(unwrap, args), **kwargs)
        is_view = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        if not is_view and name not in NO_KERNEL:
            self.count(name)

        def wrap(x):
            if not isinstance(x, T):
                return x
            if self.trace is not None and not is_view and id(x) not in originals:
                self.made_inside.add(x.untyped_storage().data_ptr())
            return originals[id(x)] if id(x) in originals else self.held(x)

        return mapped(wrap, made)

    def check_mixing(self, func, name, args, host):
        """As CUDA does it: numbers of no dimension may come from the host, and so may indices."""
        if name == "copy_":
            if is_pinned(args[1]) and args[2:] and args[2]:
                return
            if not (isinstance(args[0], Held) and args[1].ndim == 0):  # else it is filled there
                self.wait("copy")
            return
        if name in INDEXING:
            indices = set(map(id, leaves(args[1])))
            wrong = [x for x in host if id(x) not in indices and x.ndim]
            if not wrong:
                self.wait("index")
                return
        elif torch.Tag.pointwise in func.tags or name in TAKE_NUMBERS:
            wrong = [x for x in host if x.ndim]
        else:
            wrong = host
        if wrong:
            shapes = ", ".join(str(tuple(x.shape)) for x in wrong)
            raise Mixed(f"{line_of_the_project()}: {func} of the device gets {shapes} of the host")

    # ---- graphs

    def note(self, name, flat):
        """Keep of an operation all that a graph would keep of it."""
        kept = [name]
        for x in flat:
            if not isinstance(x, Held):
                kept.append(str(x))
                continue
            address = x.elem.untyped_storage().data_ptr()
            # What the function made itself may lie elsewhere the next time, for it is replayed too.
            place = "inside" if address in self.made_inside else address
            kept.append((place, x.elem.storage_offset(), tuple(x.shape), x.elem.stride()))
        self.trace.append(tuple(kept))

    def captured(self, function, device=None):
        """In place of fast.graphs.captured: called again, and each time it must do the same."""

        function()  # to warm up

        def call():
            self.trace = []
            self.made_inside = set()
            try:
                return function(), self.trace
            finally:
                self.trace = None

        made, first = call()

        def replay():
            self.launches += 1
            again, trace = call()
            for one, other in zip(first, trace, strict=True):
                if one != other:
                    raise Mixed(f"a graph would repeat {one}, and this time it is {other}")
            # What a graph has made lies where it lay the first time.
            kept = leaves(made)
            for x, y in zip(kept, leaves(again), strict=True):
                if isinstance(x, Held):
                    x.elem.copy_(y.elem)
            return made

        return made, replay

    # ---- what torch has of a device besides tensors

    def __enter__(self):
        self.patches = contextlib.ExitStack()
        change = unittest.mock.patch.object
        place = self.place
        group = torch._C._group_tensors_by_device_and_dtype
        autocast = torch.autocast

        def grouped(lists, *more):
            found = group(lists, *more).items()
            here = any(isinstance(x, Held) for x in lists[0])
            return {(place if here else device, dtype): x for (device, dtype), x in found}

        for patch in (
            change(torch._C, "_group_tensors_by_device_and_dtype", grouped),
            change(torch, "autocast", lambda kind, *a, **k: autocast("cpu", *a, **k)),
            change(torch.cuda, "is_bf16_supported", lambda *_, **__: True),
            change(torch.accelerator, "synchronize", lambda *_: None),
            # Inference tensors have no version, and a subclass wants one.
            change(torch.inference_mode, "__enter__", lambda self: no_gradients(self)),
            change(torch.inference_mode, "__exit__", lambda self, *_: self.kept.__exit__(*_)),
            change(layers, "flexible", dense_attention),
            change(layers, "block_mask", DenseMask),
            change(fast.graphs, "captured", self.captured),
        ):
            self.patches.enter_context(patch)
        model.hash_powers.cache_clear()
        self.overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        self.patches.enter_context(warnings.catch_warnings())
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        torch.__future__.set_overwrite_module_params_on_conversion(self.overwrites)
        model.hash_powers.cache_clear()
        self.patches.close()


def no_gradients(mode):
    mode.kept = torch.no_grad()
    mode.kept.__enter__()
    return mode


class DenseMask:
    """In place of a BlockMask of FlexAttention: the rule, asked about all pairs."""

    def __init__(self, rule, B, N, device):
        b = torch.arange(B, device=device)[:, None, None]
        n = torch.arange(N, device=device)
        self.mask = rule(b, 0, n[:, None], n)[:, None]


def dense_attention(_):
    def attention(q, k, v, block_mask):
        assert q.dtype == k.dtype == v.dtype, "FlexAttention takes one number format"
        with torch.autocast(q.device.type, enabled=False):
            return F.scaled_dot_product_attention(q, k, v, block_mask.mask)

    return attention
