"""What this machine can do, measured where it matters: device, number format, matrix products, memory."""
import ctypes
import statistics
import sys
import time

import torch


def median_seconds(work, repeats=30):
    """Wall-clock of work() after a warm-up -> (median, spread: the middle half's width over the median)."""
    times = []
    for _ in range(repeats + 3):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    low, middle, high = statistics.quantiles(times[3:], n=4)
    return middle, (high - low) / middle


def product_speed(dtype, device, n=1024):
    """Measured speed of matrix products in operations a second."""
    a, b = torch.randn(4 * n, n, device=device).to(dtype), torch.randn(n, n, device=device).to(dtype)
    return 8 * n ** 3 / median_seconds(lambda: (a @ b).sum().item(), 5)[0]


def choose_dtype(name, device):
    """auto: bfloat16 where its matrix products are measured at least twice as fast as float32's."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    return torch.bfloat16 if product_speed(torch.bfloat16, device) > 2 * product_speed(torch.float32, device) else torch.float32


def choose_device(name):
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def memory_bandwidth(device, size=1 << 28):
    """Bytes a second that a sum over float32 numbers reads, measured."""
    x = torch.zeros(size // 4, device=device)
    return size / median_seconds(lambda: x.sum().item(), 5)[0]


def free_memory():
    """Bytes of memory that can be had, or None where the system does not say."""
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None


def keep_memory():
    """Let glibc keep freed buffers of up to 32 MB instead of handing them back: on a CPU, fresh pages cost a step a sixth of its time."""
    if sys.platform == "linux":
        try:
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(-3, 1 << 25)        # M_MMAP_THRESHOLD
            libc.mallopt(-1, 2 ** 31 - 1)    # M_TRIM_THRESHOLD
        except (OSError, AttributeError):
            pass  # another libc: only slower
