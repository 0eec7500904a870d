"""The optimisers and their learning rate: Muon and AdamW, or the paper's AdamW (Fast BLT §A.2)."""

import math
from collections import defaultdict

import torch

from support.hardware import has_bfloat16

OPTIMIZERS = ("muon", "adamw")
# Maps that hold several matrices below each other, by their names: Muon takes each alone.
FUSED = {"qkv": 3, "kv": 2, "gate_up": 2}

# ---- Muon

MOMENTUM = 0.95
# One step of the iteration is x -> a x + b (x x^T) x + c (x x^T)^2 x.
NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
NEWTON_SCHULZ_STEPS = 5
RMS_OF_ADAMW = 0.2  # of what AdamW adds to a number, over the learning rate


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024), which takes all matrices of one shape in one product.

    It turns a matrix's momentum into the nearest one with orthogonal rows or columns, so that each
    direction learns alike. Scaled to the size of AdamW's steps, it takes the same learning rate.
    It is torch.optim.Muon with adjust_lr_fn="match_rms_adamw", number for number and with the same
    state; that one takes matrix after matrix, which keeps a GPU waiting.
    """

    def __init__(self, matrices, lr, weight_decay):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})
        device = matrices[0].device
        # Its products are rough in any number format.
        self.dtype = torch.bfloat16 if has_bfloat16(str(device)) else torch.float32

    @torch.no_grad()
    def step(self):
        """Move every matrix that has a gradient."""
        for group in self.param_groups:
            alike = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike[matrix.shape].append(matrix)
            for matrices in alike.values():
                self.move(matrices, group["lr"], group["weight_decay"])

    def move(self, matrices, lr, weight_decay):
        """Move n matrices of one shape (A, B)."""
        gradients = [matrix.grad for matrix in matrices]
        momenta = [self.momentum_of(matrix) for matrix in matrices]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        # (n, A, B): the momentum as the next gradient like this one would leave it (Nesterov)
        ahead = torch.stack(gradients).lerp(torch.stack(momenta), MOMENTUM)
        update = orthogonal(ahead.to(self.dtype)).to(ahead.dtype).contiguous()
        size = RMS_OF_ADAMW * math.sqrt(max(ahead.shape[1:]))
        torch._foreach_mul_(matrices, 1 - lr * weight_decay)
        torch._foreach_add_(matrices, list(update), alpha=-lr * size)

    def momentum_of(self, matrix):
        """What is remembered of a matrix's gradients: zero at first."""
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix.grad)
        return state["momentum_buffer"]


def orthogonal(matrices):
    """Matrices (n, A, B) with all of their singular values sent to about one."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    # No singular value is larger than the norm.
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return x.mT if tall else x


# ---- which optimiser takes what


class MuonAndAdamW:
    """Muon on every matrix between hidden states, AdamW on all else, as one optimiser.

    Embeddings, n-gram tables, norms and the output head have no directions that should learn alike.
    """

    def __init__(self, model, settings):
        self.pieces = []  # (weight, views of it: the matrices that it holds)
        for path, module in model.named_modules():
            name = path.rpartition(".")[2]
            if isinstance(module, torch.nn.Linear) and name != "head":
                views = module.weight.detach().chunk(FUSED.get(name, 1))
                self.pieces.append((module.weight, [torch.nn.Parameter(view) for view in views]))
        hidden = {id(weight) for weight, _ in self.pieces}
        rest = [p for p in model.parameters() if id(p) not in hidden]
        matrices = [matrix for _, views in self.pieces for matrix in views]
        self.parts = {
            "muon": Muon(matrices, settings.lr, settings.weight_decay),
            "adamw": adamw([{"params": rest, "weight_decay": 0.0}], settings.lr),
        }

    @property
    def param_groups(self):
        """Those of both."""
        return [group for part in self.parts.values() for group in part.param_groups]

    def step(self):
        """Both take a step from the gradients that the model's parameters have."""
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


# ---- the learning rate


def learning_rate(step, steps, settings):
    """Linear warm-up, then a cosine to zero at the last step."""
    warm = min(1.0, (step + 1) / settings.warmup)
    return settings.lr * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
