"""The Byte Latent Transformer (BLT §3; Fast BLT §2.1): encoder, global model, decoder; presets.

What does a byte read inside a patch? The latent of the last patch that is closed at that byte
(`latent_read`): its own patch's latent if the byte closes it, else the one before. An unfinished
patch is never read, so the model is causal byte by byte, and its global part needs to run only
when a patch closes: see stream.py. Run it for the sizes of every preset:

    python model.py

Letters in shape comments: B batch, N byte positions, R decoder rows (N clean ones, then P of
blocks), M patches of all rows, k vectors a patch, D local width, G global width, V vocabulary, H
heads, C head width.
"""

import functools
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from data import VOCAB
from layers import ChainedHead, CrossAttention, PackedView, Stack, WholeView, mask_of, rotary, sees
from patcher import PatcherConfig, patcher_from
from support import checkpoint
from support.lean import make_lean
from support.presets import SIZES, TrainingSettings
from support.terminal import BadInput, Parser, run, table

NGRAMS = range(3, 9)  # lengths of the hashed byte n-grams
LEAD = max(NGRAMS) - 1  # how many ids before a byte its longest n-gram holds
HASH_PRIME = 1_000_000_007
ROUND = 64  # patches of a training batch come in multiples of it
GATHERED = 2**15  # most bytes of patches, padded to one length, that the encoder gathers at once

# ---- configurations and presets


@dataclass
class BLTConfig:
    width: int = 128  # D, of encoder and decoder
    heads: int = 2  # of encoder, decoder and their cross-attentions
    hidden: int = 384  # inside their SwiGLU
    encoder_layers: int = 1
    decoder_layers: int = 2
    window: int = 256  # bytes that a local layer sees, itself included
    ngram_table_size: int = 4096  # entries of each of the six n-gram tables
    patch_vectors: int = 2  # k, vectors of local width that make up a patch
    global_width: int = 256  # G
    global_heads: int = 4
    global_hidden: int = 704
    global_layers: int = 4
    global_window: int = 128  # patches that a global layer sees
    max_patch: int = 8  # longest patch in bytes; 0: any length, with byte_states only
    rope_base: float = 500000.0
    block_size: int = 0  # K that the decoder was trained to fill by diffusion; 0: plain BLT
    chain_width: int = 0  # state of the head that chains the cells of a block; 0: there is none
    # Where the original BLT differs: its weights need these (scripts/convert.py).
    byte_states: bool = False  # the decoder starts from the encoder's states, not an embedding
    double_residual: bool = False  # both cross-attentions add their input twice
    global_norm: bool = True  # is there a norm behind the global model?


class Preset(NamedTuple):
    """Everything that a size of model brings along."""

    model: BLTConfig
    training: TrainingSettings
    patcher: PatcherConfig
    patcher_training: TrainingSettings


PRESETS = {
    name: Preset(*(kind(**size[part]) for part, kind in Preset.__annotations__.items()))
    for name, size in SIZES.items()
}

# ---- bytes and patches


def latent_read(closes):
    """Which latent each byte reads: closes (B, N) bool -> index (B, N) among the patches of all B.

    A byte that closes its patch reads that patch; all others read the one before. Position 0 must
    close its own (BOS does), so that no row reads another's.
    """
    return closes.long().flatten().cumsum(0).view_as(closes) - 1


def bytes_of_patches(closes, max_patch):
    """closes (B, N) -> the bytes of each patch of all B rows, last byte first, (M, max_patch).

    A byte is its index among all B N of them; -1 where a patch is shorter. 0: the longest one's.
    """
    N, flat = closes.shape[1], closes.flatten()
    last = flat.nonzero()[:, 0]
    max_patch = max_patch or int(last.diff(prepend=last.new_tensor([-1])).max())
    found = last[:, None] - torch.arange(max_patch, device=closes.device)
    # (B N,): how many patches closed before a byte, which is the number of its own
    own = flat.long().cumsum(0) - flat.long()
    in_row = found >= (last - last % N)[:, None]
    return torch.where(in_row & (own[found.clamp(min=0)] == own[last, None]), found, -1)


def ngram_entries(ids, table_size):
    """Rolling hashes of the last 3..8 ids (BLT §3.2.1): ids (B, LEAD + N) -> (B, N, 6) entries of
    the six n-gram tables, which stand below each other.
    """
    # (8, 6): the power of each id in each table's hash, 0 for those before the n-gram
    powers = hash_powers().to(ids.device)
    # (B, N, 8, 1): a byte and the seven before it
    grams = ids.unfold(1, LEAD + 1, 1)[..., None]
    first = table_size * torch.arange(len(NGRAMS), device=ids.device)
    return (grams * powers).sum(-2) % table_size + first


@functools.cache
def hash_powers():
    """Powers of HASH_PRIME by place in n-grams, in int64 that wraps around -> (8, 6)."""
    powers = torch.zeros(LEAD + 1, len(NGRAMS), dtype=torch.long)
    for i, n in enumerate(NGRAMS):
        powers[-n:, i] = torch.tensor(HASH_PRIME) ** torch.arange(n)
    return powers


# ---- the three parts


class LocalEncoder(nn.Module):
    """Bytes -> patch vectors (BLT §3.2). An open patch has no vector yet."""

    def __init__(self, c):
        super().__init__()
        self.config = c
        self.embed = nn.Embedding(VOCAB, c.width)
        self.hashes = nn.Embedding(len(NGRAMS) * c.ngram_table_size, c.width)  # the six tables
        self.layers = Stack(c.encoder_layers, c.width, c.heads, c.hidden, c.window)
        self.query = nn.Linear(c.width, c.patch_vectors * c.width, bias=False)
        self.cross = CrossAttention(c.width, c.heads, 1 + c.double_residual)
        joint = c.patch_vectors * c.width
        self.to_global = nn.Identity()
        if joint != c.global_width:
            self.to_global = nn.Linear(joint, c.global_width, bias=False)

    def states(self, ids, view=None):
        """ids (B, LEAD + N), PAD before the start of a text -> states of its bytes (B, N, D).

        view: of a Cache, or None.
        """
        c, B, N = self.config, ids.shape[0], ids.shape[1] - LEAD
        if view is None:
            view = WholeView.causal(N, c.width // c.heads, c.rope_base, self.query.weight)
        entries = ngram_entries(ids, c.ngram_table_size).view(B * N, -1)
        grams = F.embedding_bag(entries, self.hashes.weight, mode="sum").view(B, N, -1)
        return self.layers(self.embed(ids[:, LEAD:]) + grams, view)

    def forward(self, states, patches):
        """states (B, N, D), patches (M, max_patch) as bytes_of_patches -> vectors (1, M, G)."""
        # (B, N, D) -> (1, B N, D)
        x = states.reshape(1, -1, self.config.width)
        kv, vectors = self.cross.project(x), []
        for some in patches.split(max(1, GATHERED // patches.shape[1])):
            # (M, max_patch, D) -> (M, D): the largest number of its bytes
            pooled = F.embedding(some.clamp(min=0), x[0])
            pooled = pooled.masked_fill(some[..., None] < 0, -torch.inf).amax(1)
            # (M, D) -> (1, M k, D): a patch reads its own bytes only
            queries = self.query(pooled).to(x.dtype).view(1, -1, self.config.width)
            vectors.append(self.cross(queries, kv, some))
        # (1, M k, D) -> (1, M, G)
        return self.to_global(torch.cat(vectors, 1).view(1, len(patches), -1)).to(x.dtype)


class GlobalModel(nn.Module):
    """A plain causal Transformer over patch vectors: most of the parameters, run once a patch."""

    def __init__(self, c):
        super().__init__()
        self.config = c
        shape = c.global_width, c.global_heads, c.global_hidden, c.global_window
        self.layers = Stack(c.global_layers, *shape)
        self.norm = nn.RMSNorm(c.global_width, eps=1e-5) if c.global_norm else nn.Identity()

    def forward(self, patches, view):
        """patch vectors (1, M, G) -> latents (1, M, G)."""
        return self.norm(self.layers(patches, view))


class LocalDecoder(nn.Module):
    """Bytes and latents -> logits. Starts from an embedding lookup (Fast BLT §2.1.2)."""

    def __init__(self, c):
        super().__init__()
        self.config = c
        self.embed = None if c.byte_states else nn.Embedding(VOCAB, c.width)
        self.split = nn.Linear(c.global_width, c.patch_vectors * c.width, bias=False)
        self.crosses = nn.ModuleList(
            CrossAttention(c.width, c.heads, 1 + c.double_residual) for _ in range(c.decoder_layers)
        )
        self.layers = Stack(c.decoder_layers, c.width, c.heads, c.hidden, c.window)
        self.norm = nn.RMSNorm(c.width, eps=1e-5)
        self.head = nn.Linear(c.width, VOCAB, bias=False)
        self.chain = ChainedHead(VOCAB, c.width, c.chain_width) if c.chain_width else None
        # Of what cross-attentions keep of latents: heads, rows a latent, their width
        self.latent_shape = c.heads, c.patch_vectors, c.width // c.heads

    def latent_keys(self, latents):
        """What the cross-attentions read of latents (1, M, G).

        -> for each layer its keys and values (2, 1, H, M k, C)
        """
        # (1, M k, D)
        vectors = self.split(latents).to(latents.dtype).view(1, -1, self.config.width)
        return [cross.project(vectors) for cross in self.crosses]

    def forward(self, ids, latent_keys, reads, view, states=None):
        """ids (B, R) -> last rows (B, R, D), which `head` makes logits of.

        latent_keys: of M latents, as above. reads (B, R): which of the M a row reads, or None where
        there is but one. states (B, R, D): the encoder's, where rows start from them.
        """
        k = self.config.patch_vectors
        if reads is not None:  # (B, R) -> (B R, k)
            reads = k * reads.reshape(-1, 1) + torch.arange(k, device=ids.device)
        x = self.embed(ids) if self.embed else states
        for depth, (cross, layer) in enumerate(zip(self.crosses, self.layers)):
            x = layer(cross(x, latent_keys[depth], reads), view, depth)
        return self.norm(x)


# ---- the whole


class BLT(nn.Module):
    """Encoder, global model and decoder over whole sequences; stream.py runs the same, cached."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.encoder = LocalEncoder(config)
        self.globe = GlobalModel(config)
        self.decoder = LocalDecoder(config)

    def init_weights(self):
        """Small normal weights, smaller where a residual branch ends; norms stay one.

        The n-gram tables start at zero, so that an n-gram never seen in training adds no noise.
        Draws from torch's global generator.
        """
        for name, p in self.named_parameters():
            if p.ndim < 2:
                continue
            part = self.globe if name.startswith("globe") else self.decoder
            std = p.shape[1] ** -0.5
            if name.endswith((".out.weight", ".down.weight")):
                std *= (2 * len(part.layers)) ** -0.5
            nn.init.normal_(p, std=std)
        nn.init.zeros_(self.encoder.hashes.weight)
        if self.decoder.chain:  # it begins by changing nothing
            nn.init.zeros_(self.decoder.chain.out.weight)
        return self

    def latents(self, states, closes):
        """states (B, N, D) of the encoder, closes (B, N) -> latents (1, M, G) of all B rows.

        So none of them is padded. M is rounded up, by first patches once more that nobody reads:
        CPUs keep a program for every shape of a product that they have seen.
        """
        c = self.config
        patches = bytes_of_patches(closes, c.max_patch)
        row, byte = closes.nonzero().unbind(1)
        # (B, N) -> (M,): the number of a patch in its row
        place = (closes.long().cumsum(1) - 1)[row, byte]
        if len(closes) > 1:
            more = torch.arange(-len(row) % ROUND, device=row.device)
            patches = torch.cat([patches, patches[:1].expand(len(more), -1)])
            row = torch.cat([row, torch.full_like(more, len(closes))])
            place = torch.cat([place, more])
        vectors = self.encoder(states, patches)
        rope = rotary(place, c.global_width // c.global_heads, c.rope_base, vectors.dtype)
        return self.globe(vectors, PackedView(rope, row, place))

    def forward(self, ids, closes, blocks=None):
        """ids (B, N), closes (B, N) with closes[:, 0] set -> logits of each next byte (B, N, V)."""
        return self.decoder.head(self.last_rows(ids, closes, blocks))

    def last_rows(self, ids, closes, blocks=None):
        """As forward, but the decoder's last rows (B, N, D).

        With blocks (diffusion.Blocks; Fast BLT §3.2) their P rows are laid behind the clean ones:
        (B, N + P, D). A block's rows read what is known before its start, and each other.
        """
        (B, N), c = ids.shape, self.config
        head_width, like = c.width // c.heads, self.decoder.head.weight
        reads = latent_read(closes)
        states = self.encoder.states(F.pad(ids, (LEAD, 0)))
        keys = self.decoder.latent_keys(self.latents(states, closes))
        if blocks is None:
            view = WholeView.causal(N, head_width, c.rope_base, like)
            return self.decoder(ids, keys, reads, view, states)
        clean = torch.arange(N, device=ids.device).expand(B, N)
        # (B, N + P) each
        reads = torch.cat([reads, reads.gather(1, blocks.starts - 1)], 1)
        starts = torch.cat([torch.full_like(clean, -1), blocks.starts], 1)
        positions = torch.cat([clean, blocks.positions], 1)
        ids = torch.cat([ids, blocks.ids], 1)

        def rule(b, h, query, key):
            of_query, of_key = ((positions[b, i], starts[b, i]) for i in (N + query, key))
            return sees(*of_query, *of_key, c.window)

        # (B, 1, P, N + P)
        mask = mask_of(rule, B, blocks.ids.shape[1], ids.shape[1], ids.device)
        view = WholeView(rotary(positions, head_width, c.rope_base, like.dtype), mask)
        return self.decoder(ids, keys, reads, view)

    def sizes(self):
        """Parameters by part. Of the n-gram tables a pass looks up six entries a byte.

        Layers of the encoder that a decoder row starts from run as often: they count with it.
        """
        encoder, tables = self.encoder, self.encoder.hashes.weight.numel()
        bytewise = count_parameters(nn.ModuleList([encoder.embed, *encoder.layers]))
        bytewise *= self.config.byte_states
        chain = count_parameters(self.decoder.chain) if self.decoder.chain else 0
        return {
            "encoder": count_parameters(encoder) - tables - bytewise,
            "global": count_parameters(self.globe),
            "decoder": count_parameters(self.decoder) - chain + bytewise,
            "chain": chain,
            "ngram_tables": tables,
        }


def count_parameters(module):
    """How many numbers a module learns."""
    return sum(p.numel() for p in module.parameters())


# ---- from a checkpoint


def model_from(saved, **changes):
    """The BLT of a loaded checkpoint. changes: of its config, where it may change.

    In float32, or `as_stored`: in the number format and the memory of the file. A chained head that
    it has not yet is new.
    """
    known = checkpoint.config_from(BLTConfig, saved, "config")
    config = replace(known, **changes)
    if config.chain_width and not known.chain_width:
        saved = {**saved, "model": {**BLT(config).init_weights().state_dict(), **saved["model"]}}
    return checkpoint.build(BLT, config, saved, "model", saved.get("as_stored"))


def load_model(path):
    """The BLT of a checkpoint file and its patcher, ready to generate -> (model, patcher)."""
    saved = checkpoint.load(path)
    if not saved["model"]:
        advice = f"go on with `python train.py --resume {path}`"
        raise BadInput(f"{path} holds a patcher but no model yet: {advice}")
    model, patcher = model_from(saved), patcher_from(saved)
    longest = model.config.max_patch
    if longest and not 0 < patcher.config.max_patch <= longest:
        raise checkpoint.damaged(saved, f"its model takes patches of {longest} bytes at most")
    for part in (model, patcher):
        if next(part.parameters()).dtype == torch.float32:
            make_lean(part)
    return model, patcher


# ---- run: the sizes of the presets


def options_from(argv):
    return Parser(prog="model.py", description="Parameters of every preset.").parse_args(argv)


def main(argv=None):
    options_from(argv)
    rows = []
    for name, preset in PRESETS.items():
        with torch.device("meta"):  # shapes alone, no memory
            sizes = BLT(preset.model).sizes()
        rows.append([name, *(f"{n / 1e6:,.2f}" for n in sizes.values())])
    print("parameters in millions; the n-gram tables are looked up, not multiplied")
    print(table(["preset", *sizes], rows))


if __name__ == "__main__":
    run(main)
