"""Several processes that train one model: torchrun starts them, torch's wrappers share the work.

A process of its own is the first of one, and nothing here changes what it does.
"""

import contextlib
import os
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.algorithms._checkpoint import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from support.hardware import choose_device
from support.terminal import BadInput


def rank():
    """The number of this process; the first prints and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes():
    """How many train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def join(name, shard):
    """Meet the processes that torchrun started -> the device of this one, of that name or "auto".

    Raises BadInput where there are none to shard a model among, and for a device that all share.
    """
    if not dist.is_torchelastic_launched():
        if shard:
            raise BadInput("--shard divides a model among processes: start them with torchrun")
        return choose_device(name)
    if ":" in name:
        advice = "give --device cuda, and each takes one of its own"
        raise BadInput(f"--device {name} would hold all processes of torchrun: {advice}")
    number = int(os.environ["LOCAL_RANK"])
    if name in ("auto", "cuda") and torch.cuda.is_available():
        # First of all: whatever touches a GPU before would touch the first one in every process.
        if number >= torch.cuda.device_count():
            advice = f"start {torch.cuda.device_count()} here, or give --device cpu"
            raise BadInput(f"there are fewer GPUs than processes: {advice}")
        torch.cuda.set_device(number)
    device = choose_device(name)
    # What is agreed on lies on the CPU, gradients where the model is. torchrun sees who dies;
    # others may have to wait for long, while patches are found.
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    gpu = torch.device("cuda", number) if device == "cuda" else None
    dist.init_process_group(backend, timeout=timedelta(days=1), device_id=gpu)
    if rank():
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return device


def leave():
    """Part from the other processes, in all of them: whoever is first waits for the last.

    Threads of a group that still stands abort a process at its end, now and then; and a group is
    not taken down well while one of its processes is busy.
    """
    if dist.is_initialized():
        anywhere(False)
        # gloo's thread needs the interpreter to let go of what it has just reduced. A wrapper that
        # an interrupt leaves behind would take the group down, and wait for that thread, without
        # giving it up.
        time.sleep(0.2)
        dist.destroy_process_group()


# ---- what all of them know


def anywhere(flag):
    """Is it so in any of them?"""
    told = torch.tensor(float(bool(flag)))
    if dist.is_initialized():
        dist.all_reduce(told, dist.ReduceOp.MAX)
    return bool(told)


def same(value):
    """What the first has, in all."""
    told = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(told)
    return told[0]


# ---- a model on all of them


class Loss(torch.nn.Module):
    """A model and its loss as one module: all that a wrapper must see of a forward pass."""

    def __init__(self, model, loss_of):
        super().__init__()
        self.model = model
        self.loss_of = loss_of

    def forward(self, *inputs):
        return self.loss_of(self.model, *inputs)


def recompute(model, kind):
    """Let modules of that kind keep no activations: the backward pass computes them again."""
    checkpoint_wrapper.apply_activation_checkpointing(model, check_fn=lambda x: isinstance(x, kind))


def spread(model, loss_of, kind=None, idle=False):
    """-> the Loss of a model whose gradients are the mean over all processes.

    kind: None, or of modules that are sharded each for itself, as what is left is together. idle:
    are there steps that not every weight has a part in?
    """
    loss = Loss(model, loss_of)
    if kind:
        mesh = init_device_mesh(next(model.parameters()).device.type, (processes(),))
        for module in list(model.modules()):
            if isinstance(module, kind):
                fully_shard(module, mesh=mesh)
        return fully_shard(loss, mesh=mesh)
    if processes() > 1:
        return DistributedDataParallel(loss, find_unused_parameters=idle)
    return loss


def clip_gradients(model, limit):
    """Scale gradients down to a global norm of `limit` -> their norm before, a tensor of one."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def gradients_meet(loss, last):
    """A context for a backward pass: gradients of several meet other processes' in the last."""
    if isinstance(loss, FSDPModule):
        loss.set_requires_gradient_sync(last)
    elif isinstance(loss, DistributedDataParallel) and not last:
        return loss.no_sync()
    return contextlib.nullcontext()


# ---- what is saved of it: the same for any number of processes


def whole(state):
    """A state_dict with its shards put together one by one in the first process, None in others."""
    if isinstance(state, dict):
        return {name: whole(part) for name, part in state.items()}
    if isinstance(state, DTensor):
        state = state.full_tensor()
        return None if rank() else state.cpu()
    return state


def load_optimizer(optimizer, saved):
    """Go on from a whole state_dict, of which each process takes its shards."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for i, state in saved.get("state", {}).items():
        p = params[i]
        for name, x in state.items():
            if isinstance(p, DTensor) and x.ndim:
                state[name] = distribute_tensor(x, p.device_mesh, p.placements)
    optimizer.load_state_dict(saved)
