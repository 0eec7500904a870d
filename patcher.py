"""Where patches end: a small byte LM, its entropies, and the rules that make boundaries of them.

Run it to see a text in its patches (BLT §2.3):

    python patcher.py --text "def main():"

`closes[i]` says that position i is the last of its patch, so that position i + 1 opens one. It
depends on positions <= i alone: a prefix has one patching and never another, up to rounding.

Letters in shape comments: B batch, N byte positions, V vocabulary, D width.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from data import BOS, EOS, OFFSET, VOCAB
from layers import Rows, Stack, View
from support.terminal import BadInput

# What decides that a patch ends behind position i, besides its being full:
#   entropy    H_i > threshold               stride   nothing else
#   monotonic  H_i - H_{i-1} > threshold     space    a word has ended
KINDS = ("entropy", "monotonic", "stride", "space")
PIECE = 512  # positions of a long text that the entropy model takes at once


@dataclass
class PatcherConfig:
    kind: str = "entropy"
    threshold: float = 1.0  # nats; train.py calibrates it to a mean patch of 4 bytes
    max_patch: int = 8  # bytes that a patch holds at most, whatever the kind; 0: any number
    width: int = 64  # of the entropy model
    layers: int = 1
    heads: int = 2
    hidden: int = 192  # inside its SwiGLU
    window: int = 64  # bytes that one of its layers sees
    rope_base: float = 10000.0


class EntropyModel(nn.Module):
    """A small causal byte LM with a bounded window, so that long and short contexts agree."""

    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.embed = nn.Embedding(VOCAB, c.width)
        self.layers = Stack(c.layers, c.width, c.heads, c.hidden)
        self.norm = nn.RMSNorm(c.width, eps=1e-5)
        self.head = nn.Linear(c.width, VOCAB, bias=False)

    def forward(self, ids, view=None):
        """ids (B, N) -> logits of the next byte (B, N, V). view: None where nothing is kept."""
        if view is None:
            c = self.config
            rows = Rows.clean(ids.shape[1], ids.device)
            head_width = c.width // c.heads
            view = View.of(rows, c.window, head_width, c.rope_base, self.head.weight.dtype)
        return self.head(self.norm(self.layers(self.embed(ids), view)))

    def init_weights(self):
        """Normal weights of variance 1 / inputs. Draws from torch's global generator."""
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=p.shape[1] ** -0.5)
        return self

    @property
    def receptive_field(self):
        """How many bytes back a prediction can see."""
        return self.config.layers * (self.config.window - 1)


def entropy(logits):
    """Entropy in nats over the last axis. All 260 ids count: nothing is banned here."""
    x = logits - logits.amax(-1, keepdim=True)
    e = x.exp()  # one exponential each: this runs on whole corpora
    Z = e.sum(-1)
    return Z.log() - x.mul_(e).sum(-1) / Z


# ---- from entropies to boundaries


class Patcher(nn.Module):
    """Ids -> where patches close, by one of KINDS. Holds the entropy model, always in float32."""

    def __init__(self, config):
        """Raises BadInput for an unknown kind."""
        super().__init__()
        if config.kind not in KINDS:
            raise BadInput(f"unknown patcher '{config.kind}': choose one of {', '.join(KINDS)}")
        self.config = config
        self.model = EntropyModel(config)

    @property
    def needs_entropy(self):
        """Does this kind run the entropy model at all?"""
        return self.config.kind in ("entropy", "monotonic")

    def size(self):
        """Parameters of the entropy model, which its pass reads."""
        return sum(p.numel() for p in self.parameters())

    def _apply(self, fn, recurse=True):
        """As nn.Module does it, but half precision never reaches the patcher.

        A rounded entropy would move boundaries.
        """
        super()._apply(fn, recurse)
        if self.model.head.weight.dtype in (torch.bfloat16, torch.float16):
            super()._apply(lambda x: x.float() if x.is_floating_point() else x, recurse)
        return self

    @torch.no_grad()
    def entropies(self, ids):
        """H_i, the entropy of the prediction for position i + 1: ids (N,) -> (N,) in nats.

        Long texts go in pieces, each behind all that its first position can see. Kinds that need
        no entropies get zeros.
        """
        N = len(ids)
        H = torch.zeros(N, dtype=self.model.head.weight.dtype, device=ids.device)
        if not self.needs_entropy:
            return H
        for start in range(0, N, PIECE):
            first = max(0, start - self.model.receptive_field)
            # (1, piece, V)
            logits = self.model(ids[None, first : start + PIECE].long())
            H[start : start + PIECE] = entropy(logits[0, start - first :])
        return H

    def scores(self, H, before=None):
        """What is compared with the threshold: H (N,) -> (N,) nats, or None for other kinds.

        before: the entropy in front of the first, or None at the start of a document.
        """
        if self.config.kind == "entropy":
            return H
        if self.config.kind == "monotonic":
            previous = torch.cat([H.new_tensor([math.inf if before is None else before]), H[:-1]])
            return H - previous
        return None

    def signals(self, ids, H, before=None):
        """Does the text itself close a patch at position i? ids, H (N,) -> (N,) bool.

        EOS always does, so that no patch spans two documents. before: (id, entropy) of the
        position in front of the first, None at the start of a document.
        """
        id_before, entropy_before = before or (BOS, None)
        asked = ids == EOS
        scores = self.scores(H, entropy_before)
        if scores is not None:
            return asked | (scores > self.config.threshold)
        if self.config.kind == "space":
            previous = torch.cat([ids.new_tensor([id_before]), ids[:-1]])
            return asked | (is_space(ids) & ~is_space(previous))
        return asked

    @torch.no_grad()
    def closes(self, ids):
        """ids (N,) of one document, BOS first -> closes (N,) bool. Rows of a batch never meet."""
        return fill_patches(self.signals(ids, self.entropies(ids)), self.config.max_patch)


def is_space(ids):
    """True for bytes that separate words: ASCII other than letters, digits and underscore."""
    of_words = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"
    others = [byte + OFFSET for byte in range(128) if byte not in of_words]
    return torch.isin(ids, ids.new_tensor(others))


def fill_patches(signals, max_patch):
    """Signals (N,) -> closes (N,): where the text asks for it, where a patch is full, after BOS.

    After a signal patches are counted off in steps of max_patch until the next one: no loop.
    """
    position = torch.arange(len(signals), device=signals.device)
    asked = signals | (position == 0)
    # (N,) the start that the last signal up to i gives
    opened = torch.where(asked, position + 1, 0).cummax(0).values
    full = (position + 1 - opened) % (max_patch or len(signals) + 1) == 0
    return asked | full


if __name__ == "__main__":
    from measure import ideas

    ideas.show("patcher")
