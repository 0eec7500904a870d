"""A model for generation: the same function in fewer operations."""

import torch
from torch import nn

# Which matrix comes next behind a norm, and takes its gain
NEXT = {"attention_norm": "qkv", "ffn_norm": "gate_up", "query_norm": "q", "source_norm": "kv"}


class LeanNorm(nn.Module):
    """RMSNorm in a few quick operations; a gain only where no matrix could take it."""

    def __init__(self, norm, gain=None):
        super().__init__()
        width = norm.weight.numel()
        self.register_buffer("gain", gain, persistent=False)
        # x / sqrt(mean(x^2) + eps) is x / sqrt(|x|^2 + width eps), times sqrt(width)
        self.register_buffer("floor", torch.tensor((width * norm.eps) ** 0.5), persistent=False)

    def forward(self, x):
        """x (..., D) -> (..., D), of length one, times the gain."""
        x = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot(self.floor.to(x.dtype))
        return x if self.gain is None else x * self.gain


@torch.no_grad()
def make_lean(module):
    """Fold the gains of norms into the matrices that follow, and lay these out by column.

    For passes over few rows on a CPU, which cost their operations, not their arithmetic; products
    with a single row read weights laid out by column faster. Changes the module.
    """
    for part in list(module.modules()):
        for name, norm in list(part.named_children()):
            if isinstance(norm, nn.RMSNorm):
                gain = norm.weight * norm.weight.numel() ** 0.5
                if name in NEXT:
                    getattr(part, NEXT[name]).weight *= gain
                    gain = None
                setattr(part, name, LeanNorm(norm, gain))
    for linear in module.modules():
        if isinstance(linear, nn.Linear):
            linear.weight.data = linear.weight.data.t().contiguous().t()
