"""The optimiser and its learning rate (Fast BLT §A.2)."""

import math

import torch


def make_optimizer(model, settings):
    """AdamW 0.9 / 0.95. Matrices that multiply decay; norms and looked-up tables do not."""
    matrices = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    chosen = set(map(id, matrices))
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": [p for p in model.parameters() if id(p) not in chosen], "weight_decay": 0.0},
    ]
    fused = matrices[0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.95), eps=1e-8, fused=fused)


def learning_rate(step, steps, settings):
    """Linear warm-up, then a cosine to zero at the last step."""
    warm = min(1.0, (step + 1) / settings.warmup)
    return settings.lr * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
