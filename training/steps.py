"""What the loop of train.py asks for: its batches, whether a step went well, how many steps fit."""

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import torch

from data import Crops
from support.hardware import sent
from support.presets import TrainingSettings
from support.terminal import BadInput
from training import distributed
from training.optim import make_optimizer
from training.presets import PRESETS

TIMED_SHARE = 0.02  # of a stage's seconds, to find out how many steps fit into the rest


@dataclass
class Task:
    """One of the two models and what it is trained on."""

    name: str
    model: torch.nn.Module
    # A distributed.Loss: (ids, closes, generators, share of the run that is done) -> what is
    # minimised and, of it, what clean bytes cost; both in nats a byte.
    loss: Callable
    crops: Crops
    settings: TrainingSettings
    # Of the arithmetic; weights, gradients and the optimiser stay float32.
    dtype: torch.dtype
    ahead: "Ahead" = field(default_factory=lambda: Ahead())

    def batch(self, step, part):
        """Part `part` of a step's crops -> ids (B, N + 1), closes (B, N), a generator for each row.

        Where in the data they lie follows from the step, so nothing else needs to be kept of it.
        Each process takes its share of every batch.
        """
        device = next(self.model.parameters()).device
        number = step * self.settings.accumulate + part
        if device.type != "cuda":  # a CPU has no time to spare
            ids, closes, generators = self.prepared(number)
            return ids.to(device), closes.to(device), generators
        ids, closes, generators = self.ahead.take(self.prepared, number)
        return sent(ids, device), sent(closes, device), generators

    def prepared(self, number):
        """Part `number` of all that there are, on the CPU."""
        s = self.settings
        share = s.batch // distributed.processes()
        first = number * s.batch + distributed.rank() * share
        return *self.crops.batch(first, share), self.crops.generators(first, share)

    def autocast(self):
        """A context for forward passes, in the number format of the arithmetic."""
        device = next(self.model.parameters()).device
        return torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32)


def check_length(run, text):
    """Raises BadInput, with what would help, for packed documents that are too short for a run."""
    longest = (len(text) - 1) // 2  # of two crops that fit
    # --length takes no less.
    advice = f", or --length {longest}" if longest >= 8 else ""
    Crops(text, None, run.settings.length, 0, advice)
    if run.stage == "patcher" and run.patcher.needs_entropy:
        # No flag shortens the crops of the entropy model.
        length = PRESETS[run.asked["preset"]].patcher_training.length
        Crops(text, None, length, 0, ", or --patcher space, which is not trained")


class Ahead:
    """Makes what will be asked for next while the last of it is worked on: in a thread."""

    def __init__(self):
        self.thread = None
        self.number = None  # of what is being made,
        self.made = None  # a Future

    def take(self, make, number):
        """make(number), which should be there; the next number is begun."""
        if self.thread is None:
            self.thread = ThreadPoolExecutor(1)
        if number != self.number:
            self.made = self.thread.submit(make, number)
        taken = self.made.result()
        self.number = number + 1
        self.made = self.thread.submit(make, self.number)
        return taken


def check_finite(norm, task, step):
    """Raises BadInput where the norm of a step's gradient is not finite.

    Where a loss is not, its gradient is not. It is said before it can reach the weights.
    """
    if not math.isfinite(norm):
        where = f"step {step} of the {task.name}"
        advice = "begin anew with a lower --lr"
        if task.name == "patcher":  # which no --lr reaches
            advice = "begin anew with --optimizer adamw, or --patcher space, which learns nothing"
        kept = "the checkpoint written last is kept"
        raise BadInput(f"the loss or its gradient is not finite at {where}: {advice}; {kept}")


# ---- how many steps fit into the minutes


def count_steps(task, seconds, after=1.0):
    """How many steps fit into `seconds`, timed with an optimiser that changes nothing.

    after: share of the steps before blocks join, which then take longer.
    """
    began = time.perf_counter()
    trial = replace(task, settings=replace(task.settings, lr=0.0))
    # cuDNN goes back through a GRU in training mode alone, and loaded models are in eval mode.
    trial.model.train()
    optimizer = make_optimizer(trial.model, trial.settings)
    step_seconds = 0.0
    # Steps before blocks join and after, in proportion
    for share, done in ((after, 0.0), (1 - after, 1.0)):
        if share:
            budget = TIMED_SHARE * seconds * share
            step_seconds += share * seconds_a_step(trial, optimizer, done, budget)
    left = seconds - (time.perf_counter() - began)
    return distributed.same(max(1, int(left / step_seconds)))


def seconds_a_step(trial, optimizer, done, budget):
    """The mean of some steps, five at least, for as long as the budget of seconds lasts."""
    until = time.perf_counter() + budget
    times = []
    while distributed.anywhere(len(times) < 5 or time.perf_counter() < until):
        start = time.perf_counter()
        trial_step(trial, optimizer, len(times), done)
        times.append(time.perf_counter() - start)
    # The first ones warm up.
    return sum(times[2:]) / len(times[2:])


def trial_step(task, optimizer, step, done):
    """What the loop of train.py does in a step, from the batch to the optimiser."""
    s = task.settings
    for part in range(s.accumulate):
        ids, closes, generators = task.batch(step, part)
        with distributed.gradients_meet(task.loss, last=part == s.accumulate - 1):
            with task.autocast():
                loss, _ = task.loss(ids, closes, generators, done)
            (loss / s.accumulate).backward()
    norm = distributed.clip_gradients(task.model, s.clip)
    check_finite(norm.item(), task, step)
    optimizer.step()
    optimizer.zero_grad()
