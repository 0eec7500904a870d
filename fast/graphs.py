"""Passes as CUDA graphs: a GPU repeats hundreds of kernels for one call of the host.

A pass of a few rows costs a GPU its launches, not its arithmetic. A graph is captured once and
replayed with whatever then lies in the memory that it reads. So a pass must be a function of
tensors alone: what changes from call to call (ids, positions) is written as integers into one
tensor of the device, and nothing in the function may look at it from the host.
"""

import contextlib
import functools
import gc

import torch


class Graphs:
    """Functions of integers on the device, each captured once for every number of integers."""

    def __init__(self, device):
        self.device = device
        self.captures = device.type == "cuda"
        self.kept = {}

    def run(self, name, function, ints):
        """function(tensor of ints) -> what it returns. That lasts until the next call of this name
        with so many integers. Without CUDA the function is simply called.
        """
        if not self.captures:
            return function(torch.tensor(ints, device=self.device))
        key = name, len(ints)
        if key not in self.kept:
            self.kept[key] = Graph(function, ints, self.device)
            return self.kept[key].made
        return self.kept[key].replay(ints)


class Graph:
    """One function for one number of integers."""

    def __init__(self, function, ints, device):
        self.ints = torch.tensor(ints).pin_memory().to(device, non_blocking=True)
        self.made, self.again = captured(lambda: function(self.ints), device)

    def replay(self, ints):
        # What is pinned is copied without a wait, and torch keeps it until the device has read it.
        self.ints.copy_(torch.tensor(ints).pin_memory(), non_blocking=True)
        return self.again()


@functools.cache
def side_stream(device):
    """One for all captures: libraries keep memory of their own for each stream."""
    return torch.cuda.Stream(device)


@contextlib.contextmanager
def garbage_kept():
    """Within it Python frees nothing by itself: a graph that dies spoils one that is captured."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def captured(function, device):
    """function() -> (what it made, a function that does it again).

    In the same memory, and for one call of the host.
    """
    side = side_stream(device)
    graph = torch.cuda.CUDAGraph()
    with garbage_kept(), torch.cuda.device(device):
        # Libraries prepare themselves at the first call, which can't be captured.
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            function()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph, stream=side):
            made = function()

    def replay():
        graph.replay()
        return made

    # What is captured has not run yet.
    return replay(), replay
