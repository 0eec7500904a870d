"""Where patches end: a small byte LM, its entropies, and the rules that make boundaries of them.

Run it to see a text in its patches (BLT §2.3):

    python patcher.py --text "def main():"

`closes[i]` says that position i is the last of its patch, so that position i + 1 opens one. It
depends on positions <= i alone: a prefix has one patching and never another. Nothing else in this
project decides where a patch ends.

Letters in shape comments: B batch, N byte positions, V vocabulary, D width.
"""

import math
import os
from dataclasses import asdict, dataclass

import torch
from torch import nn

from data import BOS, EOS, OFFSET, VOCAB, encode
from layers import Cache, Stack, WholeView, causal
from support import checkpoint
from support.show import show_patching
from support.terminal import BadInput, Parser, number, read_file, run

NEWLINE = OFFSET + 10

# What decides that a patch ends behind position i, besides its being full:
#   entropy    H_i > threshold               stride   nothing else
#   monotonic  H_i - H_{i-1} > threshold     space    a word has ended
KINDS = ("entropy", "monotonic", "stride", "space")


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
    reset_at_newline: bool = False  # the entropy model forgets all that stands before a newline


# ---- the entropy model


class EntropyModel(nn.Module):
    """A small causal byte LM with a bounded window, so that long and short contexts agree."""

    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.embed = nn.Embedding(VOCAB, c.width)
        self.layers = Stack(c.layers, c.width, c.heads, c.hidden, c.window)
        self.norm = nn.RMSNorm(c.width, eps=1e-5)
        self.head = nn.Linear(c.width, VOCAB, bias=False)

    def forward(self, ids, view=None):
        """ids (B, N) -> logits of the next byte (B, N, V). view: these rows in a Cache, or None."""
        if view is None:
            c = self.config
            head_width = c.width // c.heads
            view = WholeView.causal(ids.shape[1], head_width, c.rope_base, self.head.weight)
            if c.reset_at_newline:
                # (B, N) -> (B, 1, N, N): rows see their own line
                line, position = (ids == NEWLINE).cumsum(1), torch.arange(ids.shape[1])
                seen = causal(position[:, None], position[None], c.window).to(ids.device)
                seen = seen & (line[..., None] == line[:, None])
                view = view._replace(mask=seen[:, None])
        return self.head(self.norm(self.layers(self.embed(ids), view)))

    def init_weights(self):
        """Normal weights of variance 1 / inputs. Draws from torch's global generator."""
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=p.shape[1] ** -0.5)
        return self

    def cache(self, max_rollback, max_rows):
        """A Cache for one stream through this model."""
        c = self.config
        shape = c.layers, c.heads, c.width // c.heads, c.window
        return Cache(*shape, max_rollback, max_rows, c.rope_base, self.head.weight)

    @property
    def receptive_field(self):
        """How many bytes back a prediction can see."""
        return self.config.layers * (self.config.window - 1)


def entropy(logits):
    """Entropy in nats over the last axis. All 260 ids count here, as nowhere else."""
    x = logits - logits.amax(-1, keepdim=True)
    e = x.exp()  # one exponential each: this runs on whole corpora
    Z = e.sum(-1)
    return Z.log() - x.mul_(e).sum(-1) / Z


# ---- from entropies to boundaries


class Patcher(nn.Module):
    """Ids -> where patches close, by one of KINDS. Holds the entropy model, always in float32."""

    def __init__(self, config):
        super().__init__()
        if config.kind not in KINDS:
            raise BadInput(f"unknown patcher '{config.kind}': choose one of {', '.join(KINDS)}")
        self.config = config
        self.model = EntropyModel(config)

    @property
    def needs_entropy(self):
        """Does this kind run the entropy model at all?"""
        return self.config.kind in ("entropy", "monotonic")

    def _apply(self, fn, recurse=True):
        """As nn.Module does it, but half precision never reaches the patcher.

        A rounded entropy would move boundaries.
        """
        super()._apply(fn, recurse)
        if self.model.head.weight.dtype in (torch.bfloat16, torch.float16):
            super()._apply(lambda x: x.float() if x.is_floating_point() else x, recurse)
        return self

    @torch.no_grad()
    def entropies(self, ids, batch=4):
        """H_i, the entropy of the prediction for position i + 1: ids (N,) -> (N,) in nats.

        Long documents go in pieces, each with the whole receptive field in front of what it gives.
        Kinds that need no entropies get zeros.
        """
        lead, N, ids = self.model.receptive_field, len(ids), ids.long()
        H = torch.zeros(N, dtype=self.model.head.weight.dtype, device=ids.device)
        if not self.needs_entropy:
            return H
        piece = lead + max(512, 2 * lead)
        if N <= piece:
            return entropy(self.model(ids[None]))[0]
        starts = [*range(0, N - piece, piece - lead), N - piece]
        for i in range(0, len(starts), batch):
            group = starts[i : i + batch]
            # (group, piece)
            values = entropy(self.model(torch.stack([ids[s : s + piece] for s in group])))
            for s, row in zip(group, values):
                skip = lead if s else 0
                H[s + skip : s + piece] = row[skip:]
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

    def step(self, ids, first, cache, before, context):
        """The next n ids of a stream, from position `first` on -> signals (n,), entropies (n,).

        cache: of the entropy model; before: (id, entropy) of the byte in front, or None; context:
        ids in front of them, all that may be seen, for a model that resets and so has no cache.
        """
        H = torch.zeros(len(ids))
        if self.needs_entropy and self.config.reset_at_newline:
            H = self.entropies(torch.cat([ids.new_tensor(context), ids]))[-len(ids) :]
        elif self.needs_entropy:
            H = entropy(self.model(ids[None], cache.view(first, len(ids))))[0]
        return self.signals(ids, H, before), H

    @torch.no_grad()
    def closes(self, ids):
        """ids (N,) of one document, BOS first -> closes (N,) bool. Rows of a batch never meet."""
        return fill_patches(self.signals(ids, self.entropies(ids)), self.config.max_patch)

    @torch.no_grad()
    def closes_between(self, read, start, stop, device="cpu", back=1 << 14):
        """As closes, of positions start..stop-1 of a long document; read(start, stop) -> its ids.

        Patches are counted off from the last signal, looked for in `back` positions, then in more.
        """
        stride, lead = self.config.kind == "stride", self.model.receptive_field + 1
        while True:
            first = max(0, start - lead - back)
            if stride:  # without signals
                first = start - start % self.config.max_patch
            ids = read(first, stop).to(device)
            signals = self.signals(ids, self.entropies(ids))
            # The first of them did not have all that stands in front
            skip = lead if first and not stride else 0
            if skip == 0 or signals[skip : start - first].any():
                return fill_patches(signals[skip:], self.config.max_patch)[start - first - skip :]
            back *= 2


def is_space(ids):
    """True for bytes that separate words: ASCII other than letters, digits and underscore."""
    byte = ids - OFFSET
    letter = ((byte >= 97) & (byte <= 122)) | ((byte >= 65) & (byte <= 90)) | (byte == 95)
    return (byte >= 0) & (byte < 128) & ~letter & ~((byte >= 48) & (byte <= 57))


def fill_patches(signals, max_patch):
    """Signals (N,) -> closes (N,): where the text asks for it, where a patch is full, after BOS.

    After a signal patches are counted off in steps of max_patch until the next one: no loop.
    """
    position = torch.arange(len(signals), device=signals.device)
    asked = signals | (position == 0)
    # (N,) the start that the last signal before i gives
    opened = torch.where(asked, position + 1, 0).cummax(0).values
    full = (position + 1 - opened) % (max_patch or len(signals) + 1) == 0
    return asked | full


def mean_patch(closes):
    """Bytes a patch over a list of closes (N,), BOS and its patch left out."""
    return sum(len(c) - 1 for c in closes) / max(1, sum(int(c[1:].sum()) for c in closes))


def calibrate(patcher, documents, target=4.0):
    """Set the threshold so that patches on `documents` hold `target` bytes on average -> that mean.

    documents: list of ids (N,). Bisection: the mean never falls when the threshold rises.
    """
    config = patcher.config
    if not patcher.needs_entropy:
        return mean_patch([patcher.closes(ids) for ids in documents])
    entropies = [patcher.entropies(ids) for ids in documents]

    def mean_at(threshold):
        config.threshold = threshold
        signals = (patcher.signals(ids, H) for ids, H in zip(documents, entropies))
        return mean_patch([fill_patches(s, config.max_patch) for s in signals])

    # Entropies, and their differences, lie between these.
    low, high = -math.log(VOCAB), math.log(VOCAB)
    for _ in range(40):
        middle = (low + high) / 2
        if mean_at(middle) < target:
            low = middle
        else:
            high = middle
    return mean_at(high)


def patcher_from(saved):
    """The Patcher of a loaded checkpoint, in float32."""
    config = checkpoint.config_from(PatcherConfig, saved, "patcher_config")
    return checkpoint.build(Patcher, config, saved, "patcher")


# ---- run: a text in its patches


def options_from(argv):
    parser = Parser(prog="patcher.py", description="Show a text in its patches.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", help="the text to show")
    source.add_argument("--file", help="a file to show instead")
    parser.add_argument("--checkpoint", help="whose entropy model and threshold to use")
    parser.add_argument("--kind", choices=KINDS, help="another rule than the checkpoint's")
    help_ = "nats; default: the checkpoint's, for another --kind what makes patches of 4 bytes here"
    parser.add_argument("--threshold", type=number(float, -100, 100), help=help_)
    parser.add_argument("--max-patch", type=number(int, 1, 1 << 20), help="another limit in bytes")
    return parser.parse_args(argv)


def main(argv=None):
    options = options_from(argv)
    data = os.fsencode(options.text or "")
    if options.file:
        data = read_file(options.file, "the text")
    if not data:
        raise BadInput("there is no text to show: it is empty")
    patcher = patcher_from(checkpoint.load(checkpoint.find(options.checkpoint)))
    trained, ids = patcher.config, torch.tensor([BOS] + encode(data))
    changes = {name: getattr(options, name) for name in ("kind", "threshold", "max_patch")}
    changes = {name: value for name, value in changes.items() if value is not None}
    patcher.config = PatcherConfig(**{**asdict(trained), **changes})
    if patcher.config.kind != trained.kind and options.threshold is None:
        # A threshold of entropies says nothing about their differences.
        calibrate(patcher, [ids])
    entropies = patcher.entropies(ids).tolist() if patcher.needs_entropy else None
    show_patching(data, patcher.closes(ids).tolist(), entropies, patcher.config)


if __name__ == "__main__":
    run(main)
