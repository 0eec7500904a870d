"""A model for generation: the same function in fewer operations.

A pass over few rows on a CPU costs its operations, not its arithmetic. So the gains of norms are
folded into the matrices behind them, residuals are added by the products, and matrices lie as
products with few rows read them fastest. Letters in shape comments: those of model.py; L layers,
S rows of latents, H heads, C head width.
"""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fast.cache import CachedView
from layers import Layer, rotate
from patcher import Patcher


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
        self.heads = layer.heads
        self.depth = layer.depth
        self.register_buffer("floor", floor_of(layer.attention_norm), persistent=False)
        self.qkv = turned(layer.qkv.weight, gain_of(layer.attention_norm))
        self.gate_up = turned(layer.gate_up.weight, gain_of(layer.ffn_norm))
        self.out = turned(layer.out.weight)
        self.down = turned(layer.down.weight)

    def forward(self, x, view):
        """As layers.Layer, of one text: x (1, N, D) -> (1, N, D)."""
        _, N, D = x.shape
        x = x[0]
        qkv = torch.mm(unit(x, self.floor), self.qkv).view(N, 3, self.heads, -1)
        qkv[:, :2] = rotate(qkv[:, :2], view.rope)
        # (N, 3, H, C) -> q (1, H, N, C), keys and values (2, 1, H, N, C)
        qkv = qkv.permute(1, 2, 0, 3)[:, None]
        if isinstance(view, CachedView):
            y = view.attend_kept(qkv[0], qkv[1:], self.depth)
        else:
            y = view.attend(*qkv, self.depth)
        # (1, H, N, C) -> (N, D)
        x = torch.addmm(x, y[0].transpose(0, 1).reshape(N, D), self.out)
        gate, up = torch.mm(unit(x, self.floor), self.gate_up).chunk(2, -1)
        return torch.addmm(x, F.silu(gate).mul_(up), self.down)[None]


# ---- decoders whose latents a Buffer keeps
#
# latent_shape: (kinds, rows a latent, their width) of what is kept of latents for each layer.
# latent_rows(latents (1, M, G)) -> (L, kinds, M rows, width); forward takes those of S rows.


class PlainDecoder(nn.Module):
    """model.LocalDecoder as it is."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder
        self.head = decoder.head
        self.chain = decoder.chain
        config = decoder.config
        self.latent_shape = 1, config.patch_vectors, 2 * config.width

    def latent_rows(self, latents):
        """latents (1, M, G) -> (L, 1, M k, 2 D)."""
        return torch.stack(self.decoder.latent_keys(latents)).flatten(2, 3)

    def forward(self, ids, latents, reads, view, states=None):
        """ids (1, R); latents (L, 1, S, 2 D); reads (1, R) or None -> last rows (1, R, D)."""
        # (L, 1, S, 2 D) -> (L, 1, M, k, 2 D)
        keys = latents.unflatten(2, (-1, self.latent_shape[1]))
        if reads is None:  # there is but one
            reads = torch.zeros_like(ids)
        return self.decoder(ids, keys, reads, view, states)

    def chained(self, *given):
        """As model.LocalDecoder."""
        return self.decoder.chained(*given)


class LeanDecoder(nn.Module):
    """model.LocalDecoder, folded.

    A cross-attention scores (W_q x) · (W_k z) for a byte x and a vector z of a latent, which is
    x · (W_q^T W_k z): so W_q is multiplied to the latent, once a patch instead of once a byte. The
    same way W_out goes to the values. What is kept of a vector is then H keys of width D.
    """

    def __init__(self, decoder):
        super().__init__()
        self.config = decoder.config
        crosses = decoder.crosses
        self.embed = decoder.embed
        self.split = lean(decoder.split)
        self.head = lean(decoder.head)
        self.residual = crosses[0].residual
        self.norm = LeanNorm(decoder.norm)
        self.layers = nn.ModuleList(map(LeanLayer, decoder.layers))
        self.register_buffer("floor", floor_of(decoder.norm), persistent=False)
        # (D, L 2 D): keys and values of all layers in one product
        kv = [turned(cross.kv.weight, gain_of(cross.source_norm)) for cross in crosses]
        self.kv = nn.Parameter(torch.cat(kv, 1))
        H = self.config.heads
        D = self.config.width
        fold = []
        for cross in crosses:
            # (H, C, D) each, the scale of attention with the keys
            queries = cross.q.weight * gain_of(cross.query_norm) * (D // H) ** -0.5
            fold += [queries.view(H, -1, D), cross.out.weight.t().reshape(H, -1, D)]
        self.fold = nn.Parameter(torch.cat(fold).contiguous())  # (L 2 H, C, D)
        self.latent_shape = 2, self.config.patch_vectors * H, D
        self.chain = LeanChain(decoder) if decoder.chain else None

    def latent_rows(self, latents):
        """latents (1, M, G) -> keys and values (L, 2, M k H, D)."""
        H = self.config.heads
        D = self.config.width
        # (M k, D)
        vectors = self.split(latents).view(-1, D)
        # (M k, L 2 D) -> (L 2 H, M k, C)
        kv = torch.mm(unit(vectors, self.floor), self.kv)
        kv = kv.view(len(vectors), -1, D // H).transpose(0, 1)
        # (L 2 H, M k, D) -> (L, 2, M k, H, D)
        folded = torch.bmm(kv, self.fold).view(-1, 2, H, len(vectors), D).transpose(2, 3)
        return folded.reshape(-1, 2, H * len(vectors), D)

    def forward(self, ids, latents, reads, view, states=None):
        """ids (1, R), or states; latents (L, 2, S, D); reads (1, R) or None -> last rows (1, R, D).

        reads: which latent each row reads; None: there is but one.
        """
        D = self.config.width
        H = self.config.heads
        S = latents.shape[2]
        x = self.embed(ids) if self.embed else states
        hidden = None
        if reads is not None:
            # (R, S): who reads which latent; a row reads all vectors and heads of one
            latent = torch.arange(S, device=ids.device) // self.latent_shape[1]
            hidden = latent != reads.view(-1, 1)
        for layer, (keys, values) in zip(self.layers, latents):
            x = x.view(-1, D)
            # (R, S)
            scores = torch.mm(unit(x, self.floor), keys.t())
            if hidden is not None:
                scores.masked_fill_(hidden, -torch.inf)
            # (R, S): over all rows of one head
            shares = scores.view(-1, S // H, H).softmax(1).view(-1, S)
            x = torch.addmm(x, shares, values, beta=self.residual).view(*ids.shape, D)
            x = layer(x, view)
        return self.norm(x)

    def chained(self, *given):
        """As model.LocalDecoder."""
        return self.chain.cells(*given)


class LeanChain(nn.Module):
    """layers.ChainedHead with the decoder's head, folded: a cell costs one small product."""

    def __init__(self, decoder):
        super().__init__()
        chain = decoder.chain
        self.size = chain.out.in_features  # S, of its state
        of_row, of_byte = chain.gru.weight_ih_l0.chunk(2, 1)  # (3 S, D) each
        self.of_row = turned(of_row)  # (D, 3 S)
        self.of_byte = nn.Parameter(chain.embed.weight @ of_byte.T)  # (V, 3 S)
        self.head = decoder.head
        to_logits = decoder.head.weight @ chain.out.weight  # (V, S)
        # (3 S + V, S): what the next cell reads of a state, and its logits
        self.of_state = nn.Parameter(torch.cat([chain.gru.weight_hh_l0, to_logits]))

    def cells(self, rows, before, noise, sampling):
        """As model.LocalDecoder.chained. What depends on no byte is multiplied out once a block.

        Sums of so few numbers are left to NumPy: torch takes three times as long to begin one.
        """
        S = self.size
        of_byte = self.of_byte.numpy()
        of_state = self.of_state
        # (V,) and (3 S,) of each cell
        of_rows = zip(self.head(rows).numpy(), (rows @ self.of_row).numpy(), noise)
        h = rows.new_zeros(3 * S).numpy()
        state = h[:S]
        for plain, x, its_noise in of_rows:
            x = x + of_byte[before]
            # As nn.GRU: gates reset and update, then the new state, (S,) each
            gates = 0.5 + 0.5 * np.tanh(0.5 * (x[: 2 * S] + h[: 2 * S]))  # sigmoid
            new = np.tanh(x[2 * S :] + gates[:S] * h[2 * S :])
            state = new + gates[S:] * (state - new)
            product = torch.mv(of_state, torch.from_numpy(state)).numpy()
            h = product[: 3 * S]
            logits = torch.from_numpy(plain + product[3 * S :])[None]
            before = sampling.pick(logits, its_noise)
            yield before, logits


# ---- modules for generation


def lean(module):
    """A module with lean layers and norms in place of its own, and its own embeddings."""
    kept = {id(m): m for m in module.modules() if isinstance(m, nn.Embedding)}
    module = copy.deepcopy(module, kept)
    for part in list(module.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, Layer):
                setattr(part, name, LeanLayer(child))
            elif isinstance(child, nn.RMSNorm):
                setattr(part, name, LeanNorm(child))
    for linear in module.modules():
        if isinstance(linear, nn.Linear):
            linear.weight.data = linear.weight.data.t().contiguous().t()
    return module


class FastModel(nn.Module):
    """The parts of a BLT as a Stream calls them; folded, or as they are."""

    @torch.no_grad()
    def __init__(self, model, fold):
        super().__init__()
        self.config = model.config
        self.encoder = lean(model.encoder) if fold else model.encoder
        self.globe = lean(model.globe) if fold else model.globe
        self.decoder = LeanDecoder(model.decoder) if fold else PlainDecoder(model.decoder)
        self.plain_sizes = model.sizes()
        self.idle = {}  # what fast/fixed.py has captured of it

    @property
    def device(self):
        """Where the weights lie."""
        return self.decoder.head.weight.device

    def sizes(self):
        """Parameters by part, those of the model that was folded: Eq. 8 is about that one."""
        return self.plain_sizes


class LeanPatcher(Patcher):
    """A folded Patcher, whose configuration is that of the other."""

    def __init__(self, patcher):
        super().__init__(patcher.config)
        self.model = lean(patcher.model)
        self.plain_size = patcher.size()

    def size(self):
        """That of the patcher that was folded: Eq. 8 is about that one."""
        return self.plain_size


@torch.no_grad()
def lean_patcher(patcher):
    """A Patcher, folded."""
    return LeanPatcher(patcher).eval()
