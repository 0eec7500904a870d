"""What this machine can do, measured: device, number format, matrix products, memory."""

import ctypes
import functools
import importlib
import statistics
import sys
import time

import torch

from support.terminal import BadInput


def median_seconds_in_turn(works, repeats):
    """Wall-clock of functions (a dict), run in turn after a warm-up -> (medians, largest spread).

    A spread is the width of the middle half of the times over their median.
    """
    times = {name: [] for name in works}
    for i in range(repeats + 3):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if i >= 3:
                times[name].append(time.perf_counter() - began)
    quartiles = {name: statistics.quantiles(t, n=4) for name, t in times.items()}
    spread = max((q[2] - q[0]) / q[1] for q in quartiles.values())
    return {name: q[1] for name, q in quartiles.items()}, spread


def median_seconds(work, repeats=30):
    """Wall-clock of work() repeated alone, after a warm-up: its median."""
    return median_seconds_in_turn({0: work}, repeats)[0][0]


def choose_threads(work):
    """Let torch use one thread or all it has, whichever runs work() quicker.

    Passes of a small model gain little from a second thread, and lose everything where another
    program keeps that one's core busy.
    """
    everyone = torch.get_num_threads()
    if everyone > 1:
        shared = median_seconds(work, 5)
        torch.set_num_threads(1)
        if median_seconds(work, 5) > 1.1 * shared:
            torch.set_num_threads(everyone)


def product_speed(dtype, device, n):
    """Measured speed of matrix products in operations a second."""
    generator = torch.Generator().manual_seed(0)  # the global one belongs to training
    a, b = (torch.randn(m, n, generator=generator).to(device, dtype) for m in (4 * n, n))
    return 8 * n**3 / median_seconds(lambda: (a @ b).sum().item(), 5)


def bfloat16_gain(device):
    """How many times as fast products of bfloat16 matrices are as those of float32, measured."""
    # Small products: a CPU without bfloat16 arithmetic would take a minute over large ones.
    n = 256 if device == "cpu" else 1024
    return product_speed(torch.bfloat16, device, n) / product_speed(torch.float32, device, n)


def choose_dtype(name, device):
    """A number format by name; auto: bfloat16 where it pays."""
    if name == "auto":
        name = "bfloat16" if bfloat16_gain(device) > 1.5 else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def choose_device(name):
    """A device name, or auto for the best there is. Raises BadInput for one that isn't here."""
    if name != "auto":
        try:
            torch.zeros(1, device=name).item()  # meta has no numbers
        except (RuntimeError, AssertionError, NotImplementedError):
            problem = f"there is no device '{name}' here: give cpu, or leave --device out"
            raise BadInput(problem) from None
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


@functools.cache
def flexible(name):
    """A function of FlexAttention as kernels of a GPU. Its import takes seconds, so it waits."""
    module = importlib.import_module("torch.nn.attention.flex_attention")
    return torch.compile(getattr(module, name), dynamic=True)


def keep_memory():
    """Let glibc keep freed buffers: on a CPU fresh pages cost a sixth of a training step's time."""
    if sys.platform == "linux":
        try:
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        except (OSError, AttributeError):
            pass  # another libc: only slower
