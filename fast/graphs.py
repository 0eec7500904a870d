"""Passes as CUDA graphs: a GPU repeats hundreds of kernels for one call of the host.

A pass of a few rows costs a GPU its launches, not its arithmetic. A graph is captured once and
replayed with whatever then lies in the memory that it reads. So a pass must be a function of
tensors alone: what changes from call to call (ids, positions) is written as integers into one
tensor of the device, and nothing in the function may look at it from the host.
"""

import torch


class Graphs:
    """Functions of integers on the device, each captured once for every number of integers."""

    def __init__(self, device):
        self.device = device
        self.captures = device.type == "cuda"
        self.kept = {}

    def run(self, name, function, ints):
        """function(tensor of ints) -> what it returns, which lasts until the next call.

        Without CUDA it is simply called.
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
        # What is pinned is copied without a wait. Two in turn: the host may write the next integers
        # while the device has still to read these.
        self.pinned = [torch.tensor(ints).pin_memory() for _ in range(2)]
        self.ints = self.pinned[0].to(device, non_blocking=True)
        self.made, self.again = captured(lambda: function(self.ints))

    def replay(self, ints):
        self.pinned.reverse()
        self.pinned[0].copy_(torch.tensor(ints))
        self.ints.copy_(self.pinned[0], non_blocking=True)
        return self.again()


def captured(function):
    """function() -> (what it made, a function that does it again).

    In the same memory, and for one call of the host.
    """
    # Libraries prepare themselves at the first call, which can't be captured.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = function()

    def replay():
        graph.replay()
        return made

    # What is captured has not run yet.
    return replay(), replay
