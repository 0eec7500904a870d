"""The optimisers and their learning rate: Muon and AdamW, or the paper's AdamW (Fast BLT §A.2)."""

import math

import torch

from support.checkpoint import check_form, damaged

OPTIMIZERS = ("muon", "adamw")
# Maps that hold several matrices below each other, by their names: Muon takes each alone.
FUSED = {"qkv": 3, "kv": 2, "gate_up": 2}


class MuonAndAdamW:
    """Muon on every matrix between hidden states, AdamW on all else, as one optimiser.

    Muon turns a matrix's momentum into the nearest one with orthogonal rows or columns, so that
    each direction learns alike (Jordan et al. 2024). Scaled to the size of AdamW's steps, it takes
    the same learning rate. Embeddings, n-gram tables, norms and the output head have no such
    directions.
    """

    def __init__(self, model, settings):
        self.pieces = []  # (weight, views of it: the matrices that it holds)
        for name, module in model.named_modules():
            name = name.rpartition(".")[2]
            if isinstance(module, torch.nn.Linear) and name != "head":
                views = module.weight.detach().chunk(FUSED.get(name, 1))
                self.pieces.append((module.weight, [torch.nn.Parameter(view) for view in views]))
        hidden = {id(weight) for weight, _ in self.pieces}
        rest = [p for p in model.parameters() if id(p) not in hidden]
        matrices = [matrix for _, views in self.pieces for matrix in views]
        how = {"weight_decay": settings.weight_decay, "adjust_lr_fn": "match_rms_adamw"}
        self.parts = {
            "muon": torch.optim.Muon(matrices, settings.lr, **how),
            "adamw": adamw([{"params": rest, "weight_decay": 0.0}], settings.lr),
        }

    @property
    def param_groups(self):
        """Those of both."""
        return [group for part in self.parts.values() for group in part.param_groups]

    def step(self):
        """Both take a step from the gradients that model's parameters have."""
        for weight, views in self.pieces:
            if weight.grad is not None:
                for view, gradient in zip(views, weight.grad.chunk(len(views))):
                    view.grad = gradient
        for part in self.parts.values():
            part.step()

    def zero_grad(self):
        """Forget all gradients."""
        for part in self.parts.values():
            part.zero_grad()
        for weight, _ in self.pieces:
            weight.grad = None

    def state_dict(self):
        """Of both, by name."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, saved):
        """Go on from a state_dict()."""
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])


def adamw(groups, lr):
    """AdamW as in the paper; groups bring their parameters and weight decay."""
    fused = groups[0]["params"][0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8, fused=fused)


def make_optimizer(model, settings):
    """Of what settings.optimizer names. Matrices that multiply decay; norms and tables do not."""
    if settings.optimizer == "muon":
        return MuonAndAdamW(model, settings)
    matrices = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    chosen = set(map(id, matrices))
    others = [p for p in model.parameters() if id(p) not in chosen]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return adamw(groups, settings.lr)


# What each keeps of a weight, by an example of a weight
KEPT = {
    "Muon": lambda p: {"momentum_buffer": p},
    "AdamW": lambda p: {"step": p.new_zeros(()), "exp_avg": p, "exp_avg_sq": p},
}


def restored(optimizer, saved):
    """An optimiser that goes on from the state of a loaded checkpoint of the same model.

    Raises BadInput where that is none, as torch would notice only later, or never.
    """
    parts = getattr(optimizer, "parts", {"": optimizer})
    form = [{**group, "params": []} for part in parts.values() for group in part.param_groups]
    try:
        optimizer.load_state_dict(saved["optimizer"])
    except Exception as problem:  # torch checks little before it uses it
        raise damaged(saved, f"optimizer: {type(problem).__name__} {problem}") from None
    for known, group in zip(form, optimizer.param_groups):
        check_form(saved, group, known, "optimizer", whole=True)
    for part in parts.values():
        for p, state in part.state.items():
            if state:  # a weight that is not trained has none
                check_form(saved, state, KEPT[type(part).__name__](p), "optimizer.state", True)
    return optimizer


def learning_rate(step, steps, settings):
    """Linear warm-up, then a cosine to zero at the last step."""
    warm = min(1.0, (step + 1) / settings.warmup)
    return settings.lr * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
