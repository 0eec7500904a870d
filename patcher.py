"""Where patches end: a small byte LM, its entropies, and the rules that turn them into boundaries (BLT §2.3).

Run it to see a text in its patches:  python patcher.py --text "def main():"

`closes[i]` says that position i is the last of its patch, i.e. that position i + 1 opens one. It depends on positions <= i
alone, so a prefix has one patching and never another; nothing else in this project decides where a patch ends.
Letters in shape comments: B batch, N byte positions, V vocabulary, D width.
"""
import math
import sys
from collections import Counter
from dataclasses import asdict, dataclass

import torch
from torch import nn

import checkpoint
from data import BOS, OFFSET, VOCAB, encode
from layers import Cache, Layer, rotary, run_layers
from terminal import BadInput, Parser, number, run, show_patches, visible

KINDS = ("entropy", "monotonic", "stride", "space")


@dataclass
class PatcherConfig:
    kind: str = "entropy"  # entropy: H_i > theta | monotonic: H_i - H_{i-1} > theta | stride: every max_patch bytes | space: after a word
    theta: float = 1.0      # threshold in nats; calibrated by train.py to a mean patch of 4 bytes
    max_patch: int = 8      # bytes a patch holds at most, whatever the kind
    width: int = 64         # of the entropy model
    layers: int = 1
    heads: int = 2
    hidden: int = 192       # width inside its SwiGLU
    window: int = 64        # bytes that one of its layers sees
    rope_theta: float = 10000.0


class EntropyModel(nn.Module):
    """A small causal byte LM with a bounded window: long and short contexts agree, so patches never depend on chunking."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(VOCAB, config.width)
        self.layers = nn.ModuleList(Layer(config.width, config.heads, config.hidden, config.window) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=1e-5)
        self.head = nn.Linear(config.width, VOCAB, bias=False)

    def forward(self, ids, view=None):
        """ids (B, N) -> logits of the next byte (B, N, V). view: what Cache.view gave for these rows, or None."""
        if view is None:
            N, c = ids.shape[1], self.config
            rope = rotary(torch.arange(N, device=ids.device), c.width // c.heads, c.rope_theta, self.head.weight.dtype)
            view = rope, None, None
        return self.head(self.norm(run_layers(self.layers, self.embed(ids), *view)))

    def cache(self, reach, room):
        c = self.config
        return Cache(c.layers, c.heads, c.width // c.heads, c.window, reach, room, c.rope_theta, self.head.weight)

    @property
    def receptive_field(self):
        """How many bytes back a prediction can see."""
        return self.config.layers * (self.config.window - 1)


def entropy(logits):
    """Entropy in nats over the last axis; all 260 ids count here, as nowhere else."""
    x = logits - logits.amax(-1, keepdim=True)
    e = x.exp()  # one exponential each: this runs on whole corpora
    Z = e.sum(-1)
    return Z.log() - x.mul_(e).sum(-1) / Z


class Patcher(nn.Module):
    """Ids -> where patches close, by any of KINDS. Holds the entropy model; runs in its own precision (float32)."""

    def __init__(self, config):
        super().__init__()
        if config.kind not in KINDS:
            raise BadInput(f"unknown patcher '{config.kind}': choose one of {', '.join(KINDS)}")
        self.config = config
        self.model = EntropyModel(config)

    @property
    def needs_entropy(self):
        return self.config.kind in ("entropy", "monotonic")

    def _apply(self, fn, recurse=True):
        """As nn.Module does it, but half precision never reaches the patcher: a rounded entropy moves boundaries."""
        super()._apply(fn, recurse)
        if self.model.head.weight.dtype in (torch.bfloat16, torch.float16):
            super()._apply(lambda t: t.float() if t.is_floating_point() else t, recurse)
        return self

    @torch.no_grad()
    def entropies(self, ids, batch=4):
        """H_i, the entropy of the prediction for position i + 1: ids (N,) of one document -> (N,) in nats.

        Long documents are cut into overlapping pieces, each with the whole receptive field in front of what it gives.
        """
        lead, N = self.model.receptive_field, len(ids)
        piece = lead + max(512, 2 * lead)
        if N <= piece:
            return entropy(self.model(ids[None]))[0]
        starts = [*range(0, N - piece, piece - lead), N - piece]
        H = torch.empty(N, dtype=self.model.head.weight.dtype, device=ids.device)
        for i in range(0, len(starts), batch):
            group = starts[i:i + batch]
            values = entropy(self.model(torch.stack([ids[s:s + piece] for s in group])))  # (group, piece)
            for s, row in zip(group, values):
                skip = lead if s else 0
                H[s + skip:s + piece] = row[skip:]
        return H

    def signals(self, ids, H, before=None):
        """Does the text itself ask for a boundary after position i? ids, H (N,) -> (N,) bool; max_patch comes on top.

        before: (id, entropy) of the position in front of the first, None at the start of a document.
        """
        kind, c = self.config.kind, self.config
        if kind == "entropy":
            return H > c.theta
        if kind == "monotonic":
            previous = torch.cat([H.new_tensor([before[1] if before else math.inf]), H[:-1]])
            return H - previous > c.theta
        if kind == "space":
            previous = torch.cat([ids.new_tensor([before[0] if before else BOS]), ids[:-1]])
            return is_space(ids) & ~is_space(previous)
        return torch.zeros_like(ids, dtype=torch.bool)

    def step(self, ids, first, cache, before):
        """The next n ids of a stream, from position `first` on -> signals (n,) bool and entropies (n,).

        cache: of the entropy model; before: what is known of the byte in front (.id, .entropy), or None at the start.
        """
        H = torch.zeros(len(ids))
        if self.needs_entropy:
            H = entropy(self.model(ids[None], cache.view(first, len(ids))))[0]
        return self.signals(ids, H, before and (before.id, before.entropy)), H

    @torch.no_grad()
    def closes(self, ids):
        """ids (N,) of one document, BOS first -> closes (N,) bool. Each document alone: rows of a batch never meet."""
        H = self.entropies(ids) if self.needs_entropy else torch.zeros(len(ids))
        return fill_patches(self.signals(ids, H), self.config.max_patch)


def is_space(ids):
    """True for bytes that separate words: ASCII other than letters, digits and underscore."""
    byte = ids - OFFSET
    letter = ((byte >= 97) & (byte <= 122)) | ((byte >= 65) & (byte <= 90)) | (byte == 95)
    return (byte >= 0) & (byte < 128) & ~letter & ~((byte >= 48) & (byte <= 57))


def fill_patches(signals, max_patch):
    """Signals (N,) -> closes (N,): where the text asks for it, where the patch is full, and after position 0 (BOS).

    After a signal patches are counted off in steps of max_patch until the next one, so no loop is needed.
    """
    position = torch.arange(len(signals), device=signals.device)
    asked = signals | (position == 0)
    opened = torch.where(asked, position + 1, 0).cummax(0).values            # (N,) start given by the last signal <= i
    full = (position + 1 - opened) % max_patch == 0
    return asked | full


def mean_patch(closes):
    """Bytes a patch over a list of closes (N,), BOS and its patch left out."""
    return sum(len(c) - 1 for c in closes) / max(1, sum(int(c[1:].sum()) for c in closes))


def calibrate(patcher, documents, target=4.0):
    """Set patcher.config.theta so that patches on `documents` (list of ids) hold `target` bytes on average -> that mean.

    Bisection: the mean never falls when θ rises. The result is as close as float thresholds allow.
    """
    if not patcher.needs_entropy:
        return mean_patch([patcher.closes(ids) for ids in documents])
    entropies = [patcher.entropies(ids) for ids in documents]

    def mean_at(theta):
        patcher.config.theta = theta
        return mean_patch([fill_patches(patcher.signals(ids, H), patcher.config.max_patch) for ids, H in zip(documents, entropies)])

    low, high = -math.log(VOCAB), math.log(VOCAB)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_at(middle) < target else (low, middle)
    return mean_at(high)


def load_patcher(path):
    """The patcher of a checkpoint file."""
    saved = checkpoint.load(path)
    patcher = Patcher(PatcherConfig(**saved["patcher_config"]))
    patcher.load_state_dict({name: tensor.float() for name, tensor in saved["patcher"].items()})
    return patcher.eval()


def report(patcher, data):
    """Print a text in patches, the entropy after each byte, the mean and the histogram of patch lengths."""
    ids = torch.tensor([BOS] + encode(data))
    H = patcher.entropies(ids).tolist() if patcher.needs_entropy else [float("nan")] * len(ids)
    closes = patcher.closes(ids).tolist()
    patches, rows = [b""], []
    for i in range(1, len(ids)):
        if i > 1 and closes[i - 1]:
            patches.append(b"")
        patches[-1] += bytes([ids[i] - OFFSET])
        rows.append((len(patches), visible(data[i - 1:i]), f"{H[i - 1]:.2f}", "opens" if closes[i - 1] else ""))
    print(show_patches(patches))
    if len(rows) <= 400:
        print(f"\n{'patch':>5}  {'byte':<6}  {'entropy before it':>17}")
        for patch, byte, h, opens in rows:
            print(f"{patch:5}  {byte:<6}  {h:>17}  {opens}".rstrip())
    lengths = Counter(map(len, patches))
    print(f"\n{patcher.config.kind} patcher, θ {patcher.config.theta:.3f} nats: {len(data)} bytes in {len(patches)} patches, "
          f"mean {len(data) / len(patches):.2f}")
    for length in range(1, patcher.config.max_patch + 1):
        print(f"{length:3} bytes  {lengths[length]:6}  {'█' * round(40 * lengths[length] / max(lengths.values()))}")


def main(argv=None):
    parser = Parser(prog="patcher.py", description="Show a text in its patches.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", help="the text to show")
    source.add_argument("--file", help="a file to show instead")
    parser.add_argument("--checkpoint", help="whose entropy model and θ to use (default: the newest model there is)")
    parser.add_argument("--kind", choices=KINDS, help="another rule than the checkpoint's")
    parser.add_argument("--theta", type=float, help="another threshold in nats than the calibrated one")
    parser.add_argument("--max-patch", type=number(int, 1), help="another limit than the checkpoint's")
    options = parser.parse_args(argv)
    if options.file:
        try:
            with open(options.file, "rb") as file:
                data = file.read()
        except OSError as problem:
            raise BadInput(f"can't read {options.file}: {problem.strerror}") from None
    else:
        data = options.text.encode("utf-8", "surrogateescape")
    if not data:
        raise BadInput("there is no text to show: it is empty")
    if options.kind in ("stride", "space") and not options.checkpoint:
        patcher = Patcher(PatcherConfig())  # needs no trained model
    else:
        patcher = load_patcher(checkpoint.find(options.checkpoint))
    changes = {"kind": options.kind, "theta": options.theta, "max_patch": options.max_patch}
    patcher.config = PatcherConfig(**asdict(patcher.config) | {k: v for k, v in changes.items() if v is not None})
    report(patcher, data)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")
    run(main)
