"""What this machine can do: device, number format, threads, memory."""

import ctypes
import functools
import importlib
import statistics
import sys
import time

import torch

from support.terminal import BadInput


def synchronize(device):
    """Wait until a device (a name, or torch's) has done all that it was given; the CPU has."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)


def median_seconds_in_turn(works, repeats, device="cpu"):
    """Wall-clock of functions (a dict), run in turn after a warm-up -> (medians, largest spread).

    A spread is the width of the middle half of the times over their median.
    """
    times = {name: [] for name in works}
    for i in range(repeats + 3):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            synchronize(device)
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


def has_bfloat16(device):
    """Does the hardware multiply bfloat16 matrices? A stopwatch would say what else it does."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu":
        return bool({"avx512_bf16", "amx_bf16", "bf16"} & processor_flags())
    return False


def processor_flags(path="/proc/cpuinfo"):
    """What the CPU can do, by its names; empty where the system does not say."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.partition(":") for line in file]
    except OSError:
        return set()
    return {
        flag
        for name, _, flags in lines
        if name.strip() in ("flags", "Features")
        for flag in flags.split()
    }


def choose_dtype(name, device):
    """A number format by name; auto: bfloat16 where the hardware has it."""
    if name == "auto":
        name = "bfloat16" if has_bfloat16(device) else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def choose_device(name):
    """A device name, or auto for the best there is. Raises BadInput for one that isn't here."""
    if name != "auto":
        try:
            torch.zeros(1, device=name).item()  # meta has no numbers
        except (RuntimeError, AssertionError, NotImplementedError):
            problem = f"there is no device '{name}' here: give cpu, or leave --device out"
            raise BadInput(problem) from None
    elif torch.cuda.is_available():
        name = "cuda"
    else:
        name = "mps" if torch.backends.mps.is_available() else "cpu"
    if name.startswith("cuda"):
        # cuDNN's attention builds a plan for every shape, and here each batch has another.
        torch.backends.cuda.enable_cudnn_sdp(False)
    return name


def sent(x, device):
    """A tensor of the CPU on a device; of GPUs, CUDA's take it while the host goes on."""
    if torch.device(device).type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


@functools.cache
def flexible(name):
    """A function of FlexAttention as kernels of a GPU. Its import takes seconds, so it waits."""
    module = importlib.import_module("torch.nn.attention.flex_attention")
    return torch.compile(getattr(module, name), dynamic=True)


def block_mask(rule, B, N, device):
    """A BlockMask of FlexAttention: rule(b, h, query, key) -> bool, of B x N rows by themselves."""
    return flexible("create_block_mask")(rule, B, None, N, N, device)


def keep_memory():
    """Let glibc keep freed buffers: on a CPU fresh pages cost a sixth of a training step's time."""
    if sys.platform == "linux":
        try:
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        except (OSError, AttributeError):
            pass  # another libc: only slower
