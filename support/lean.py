"""A model for generation: the same function in fewer operations.

A pass over few rows on a CPU costs its operations, not its arithmetic. So the gains of norms are
folded into the matrices behind them, residuals are added by the products, and matrices lie as
products with few rows read them fastest. Letters in shape comments: those of model.py; L layers,
S rows of latents.
"""

import torch
import torch.nn.functional as F
from torch import nn

from layers import Layer, rotate


def unit(x, floor):
    """RMSNorm without its gain and sqrt(D): x (..., D) -> (..., D) of length one.

    x / sqrt(mean(x^2) + eps) is sqrt(D) x / sqrt(|x|^2 + D eps); floor: sqrt(D eps).
    """
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot(floor)


def gain_of(norm):
    """What `unit` leaves out of a norm: (D,)."""
    return norm.weight * norm.weight.numel() ** 0.5


def floor_of(norm):
    """The floor of `unit` that makes it a norm's."""
    return (norm.weight.new_tensor(norm.weight.numel() * norm.eps)) ** 0.5


def turned(weight, gain=1.0):
    """The weight (out, in) of a linear map -> (in, out), to multiply with from the right.

    gain (in,): of the norm in front.
    """
    return nn.Parameter((weight * gain).t().contiguous())


class LeanNorm(nn.Module):
    """RMSNorm where no matrix can take its gain alone."""

    def __init__(self, norm):
        super().__init__()
        self.register_buffer("gain", gain_of(norm), persistent=False)
        self.register_buffer("floor", floor_of(norm), persistent=False)

    def forward(self, x):
        """x (..., D) -> (..., D)."""
        return unit(x, self.floor) * self.gain


class LeanLayer(nn.Module):
    """layers.Layer, folded."""

    def __init__(self, layer):
        super().__init__()
        self.heads, self.window = layer.heads, layer.window
        self.register_buffer("floor", floor_of(layer.attention_norm), persistent=False)
        self.qkv = turned(layer.qkv.weight, gain_of(layer.attention_norm))
        self.gate_up = turned(layer.gate_up.weight, gain_of(layer.ffn_norm))
        self.out, self.down = turned(layer.out.weight), turned(layer.down.weight)

    def forward(self, x, view, depth):
        """As layers.Layer: x (B, N, D) -> (B, N, D)."""
        B, N, D = x.shape
        x = x.view(-1, D)
        qkv = torch.mm(unit(x, self.floor), self.qkv).view(B, N, 3, self.heads, -1)
        # each (B, H, N, C)
        q, k = rotate(qkv[:, :, :2], view.rope).permute(2, 0, 3, 1, 4).unbind(0)
        y = view.attend(depth, q, k, qkv[:, :, 2].transpose(1, 2), self.window)
        # (B, H, N, C) -> (B N, D)
        x = torch.addmm(x, y.transpose(1, 2).reshape(-1, D), self.out)
        gate, up = torch.mm(unit(x, self.floor), self.gate_up).chunk(2, -1)
        return torch.addmm(x, F.silu(gate).mul_(up), self.down).view(B, N, D)


class LeanDecoder(nn.Module):
    """model.LocalDecoder, folded.

    A cross-attention scores (W_q x) · (W_k z) for a byte x and a vector z of a latent, which is
    x · (W_q^T W_k z): so W_q is multiplied to the latent, once a patch instead of once a byte. The
    same way W_out goes to the values. What is kept of a vector is then H keys of width D.
    """

    def __init__(self, decoder):
        super().__init__()
        self.config, crosses = decoder.config, decoder.crosses
        self.embed, self.split = decoder.embed, decoder.split
        self.head, self.chain, self.residual = decoder.head, decoder.chain, crosses[0].residual
        self.norm = LeanNorm(decoder.norm)
        self.layers = nn.ModuleList(map(LeanLayer, decoder.layers))
        self.register_buffer("floor", floor_of(decoder.norm), persistent=False)
        # (D, L 2 D): keys and values of all layers in one product
        kv = [turned(cross.kv.weight, gain_of(cross.source_norm)) for cross in crosses]
        self.kv = nn.Parameter(torch.cat(kv, 1))
        H, D = self.config.heads, self.config.width
        fold = []
        for cross in crosses:
            # (H, C, D) each, the scale of attention with the keys
            queries = cross.q.weight * gain_of(cross.query_norm) * (D // H) ** -0.5
            fold += [queries.view(H, -1, D), cross.out.weight.t().reshape(H, -1, D)]
        self.fold = nn.Parameter(torch.cat(fold).contiguous())  # (L 2 H, C, D)
        # Of what is kept of latents: heads, rows a latent, their width
        self.latent_shape = 1, self.config.patch_vectors * H, D

    def latent_keys(self, latents):
        """latents (1, M, G) -> for each layer keys and values, (L, 2, 1, 1, M k H, D)."""
        H, D = self.config.heads, self.config.width
        # (M k, D)
        vectors = self.split(latents).view(-1, D)
        # (M k, L 2 D) -> (L 2 H, M k, C)
        kv = torch.mm(unit(vectors, self.floor), self.kv)
        kv = kv.view(len(vectors), -1, D // H).transpose(0, 1)
        # (L 2 H, M k, D) -> (L, 2, M k, H, D)
        folded = torch.bmm(kv, self.fold).view(-1, 2, H, len(vectors), D).transpose(2, 3)
        return folded.reshape(-1, 2, 1, 1, H * len(vectors), D)

    def forward(self, ids, latent_keys, reads, view, states=None):
        """As model.LocalDecoder: ids (B, R), or states -> last rows (B, R, D)."""
        D, H, S = self.config.width, self.config.heads, latent_keys[0].shape[-2]
        x, hidden = self.embed(ids) if self.embed else states, None
        if reads is not None:
            # (B R, S): who reads which latent; a row reads all vectors and heads of one
            latent = torch.arange(S, device=ids.device) // self.latent_shape[1]
            hidden = latent != reads.view(-1, 1)
        for depth, layer in enumerate(self.layers):
            # (S, D) each
            keys, values = latent_keys[depth].view(2, S, D)
            x = x.view(-1, D)
            scores = torch.mm(unit(x, self.floor), keys.t())
            if hidden is not None:
                scores.masked_fill_(hidden, -torch.inf)
            # (B R, S): over all rows of one head
            shares = scores.view(-1, S // H, H).softmax(1).view(-1, S)
            x = torch.addmm(x, shares, values, beta=self.residual).view(*ids.shape, D)
            x = layer(x, view, depth)
        return self.norm(x)


@torch.no_grad()
def make_lean(module):
    """Put lean layers, norms and decoder in place of those of a BLT or Patcher."""
    for part in list(module.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, Layer):
                setattr(part, name, LeanLayer(child))
            elif name == "decoder":
                setattr(part, name, LeanDecoder(child))
            elif isinstance(child, nn.RMSNorm):
                setattr(part, name, LeanNorm(child))
    for linear in module.modules():
        if isinstance(linear, nn.Linear):
            linear.weight.data = linear.weight.data.t().contiguous().t()
