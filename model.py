"""The Byte Latent Transformer (BLT §3; Fast BLT §2.1): encoder, global model, decoder.

What does a byte read inside a patch? The latent of the last patch that is closed at that byte
(`latent_read`): its own patch's latent if the byte closes it, else the one before. An unfinished
patch is never read, so the model is causal byte by byte, and its global part needs to run only
when a patch closes. Here everything runs over whole texts; fast/ runs the same from caches. Run
it for the sizes of every preset:

    python model.py

Letters in shape comments: B batch, N byte positions, P rows of blocks, R = N + P decoder rows,
M patches, L bytes of the longest patch, k vectors a patch, D local width, G global width,
V vocabulary.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from data import VOCAB
from layers import ChainedHead, CrossAttention, Rows, Stack, View

NGRAMS = range(3, 9)  # lengths of the hashed byte n-grams
LEAD = max(NGRAMS) - 1  # how many ids before a byte its longest n-gram holds
HASH_PRIME = 1_000_000_007


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


class Blocks(NamedTuple):
    """Rows laid beside a text for the decoder, (B, P) each: block after block.

    A block is drafted bytes, read from left to right, then cells to fill, or one kind alone.
    """

    ids: torch.Tensor  # the byte of a row, or MASK
    positions: torch.Tensor  # where in the text it stands
    starts: torch.Tensor  # first position of its block
    draft: torch.Tensor  # bool: a drafted byte, no cell

    @classmethod
    def behind(cls, length, drafted, cells, device):
        """One block behind a text of `length` bytes: lists of ids, drafted ones, then cells."""
        ids = torch.tensor([[*drafted, *cells]], device=device)
        positions = torch.arange(length, length + ids.shape[1], device=device)[None]
        starts = torch.full_like(positions, length)
        return cls(ids, positions, starts, positions < length + len(drafted))


def latent_read(closes):
    """Which latent each byte reads: closes (B, N) bool -> number (B, N) of a patch of its row.

    A byte that closes its patch reads that patch; all others read the one before. Position 0 must
    close its own (BOS does), so that there is always one to read.
    """
    return closes.long().cumsum(1) - 1


def bytes_of_patches(closes, longest, M=None):
    """The positions of each closed patch: closes (B, N) -> (B, M, L), -1 where it is shorter.

    longest: L, or 0 for that of the longest patch here. M: or as many patches as the row of the
    batch with most has, rounded up to a multiple of 16, as libraries of CPUs keep a program for
    every shape of a product.
    """
    B, N = closes.shape
    position = torch.arange(N, device=closes.device).expand(B, N)
    # The patch of each byte: how many have closed before it
    patch = closes.long().cumsum(1) - closes.long()
    # Where it starts: behind the last byte that closed one
    opened = torch.where(closes, position + 1, 0).cummax(1).values
    start = F.pad(opened, (1, 0))[:, :-1]
    place = position - start
    if M is None:
        M = int(closes.sum(1).max())
        M += -M % 16 if B > 1 else 0
    L = longest or int(torch.where(closes, place, 0).max()) + 1
    # Bytes of the open patch, which may be of any length, fall into one more, which is cut off.
    patch = torch.where(patch == closes.sum(1, keepdim=True), M, patch)
    found = torch.full((B, M + 1, L), -1, device=closes.device)
    row = torch.arange(B, device=closes.device)[:, None]
    found[row, patch, place.clamp(max=L - 1)] = position
    return found[:, :M]


def ngram_entries(ids, table_size):
    """Rolling hashes of the last 3..8 ids (BLT §3.2.1): ids (B, LEAD + N) -> (B, N, 6) entries of
    the six n-gram tables, which stand below each other.
    """
    # (8, 6): the power of each id in each table's hash, 0 for those before the n-gram
    powers = hash_powers(ids.device)
    # (B, N, 8, 1): a byte and the seven before it
    grams = ids.unfold(1, LEAD + 1, 1)[..., None]
    first = table_size * torch.arange(len(NGRAMS), device=ids.device)
    return (grams * powers).sum(-2) % table_size + first


@functools.cache
def hash_powers(device):
    """Powers of HASH_PRIME by place in n-grams, in int64 that wraps around -> (8, 6)."""
    powers = torch.zeros(LEAD + 1, len(NGRAMS), dtype=torch.long)
    for i, n in enumerate(NGRAMS):
        powers[-n:, i] = torch.tensor(HASH_PRIME) ** torch.arange(n)
    return powers.to(device)


class LocalEncoder(nn.Module):
    """Bytes -> patch vectors (BLT §3.2). An open patch has no vector yet."""

    def __init__(self, c):
        super().__init__()
        self.config = c
        self.embed = nn.Embedding(VOCAB, c.width)
        self.hashes = nn.Embedding(len(NGRAMS) * c.ngram_table_size, c.width)  # the six tables
        self.layers = Stack(c.encoder_layers, c.width, c.heads, c.hidden)
        self.query = nn.Linear(c.width, c.patch_vectors * c.width, bias=False)
        self.cross = CrossAttention(c.width, c.heads, 1 + c.double_residual)
        joint = c.patch_vectors * c.width
        self.to_global = nn.Identity()
        if joint != c.global_width:
            self.to_global = nn.Linear(joint, c.global_width, bias=False)

    def states(self, ids, view):
        """ids (B, LEAD + N), PAD before the start of a text -> states of its bytes (B, N, D)."""
        entries = ngram_entries(ids, self.config.ngram_table_size)
        # (B, N, 6) -> (B N, 6) -> (B N, D) -> (B, N, D)
        grams = F.embedding_bag(entries.flatten(0, 1), self.hashes.weight, mode="sum")
        x = self.embed(ids[:, LEAD:]) + grams.view(*entries.shape[:2], -1)
        return self.layers(x, view)

    def forward(self, states, closes):
        """states (B, N, D), closes (B, N) -> patch vectors (B, M, G)."""
        return self.vectors(states, bytes_of_patches(closes, self.config.max_patch))

    def vectors(self, states, places):
        """states (B, N, D), places (B, M, L) of each patch's bytes -> patch vectors (B, M, G)."""
        c = self.config
        B, M, L = places.shape
        there = places >= 0
        there[..., 0] = True  # a row with fewer patches has some more, which nobody reads
        there = there.view(B * M, L)
        # (B M, L): the bytes of each patch, as numbers among the B N of all rows
        row = torch.arange(B, device=places.device)[:, None, None]
        byte = (states.shape[1] * row + places.clamp(min=0)).view(B * M, L)
        members = F.embedding(byte, states.flatten(0, 1))
        kv = F.embedding(byte, self.cross.project(states).flatten(0, 1))
        # (B M, L, D) -> (B M, D): of each number the largest among the patch's bytes
        pooled = members.masked_fill(~there[..., None], -torch.inf).amax(1)
        # (B M, D) -> (B M, k, D): k vectors, which read the patch's own bytes and no others
        queries = self.query(pooled).to(members.dtype).view(B * M, c.patch_vectors, -1)
        vectors = self.cross(queries, kv, there)
        # (B M, k, D) -> (B, M, k D) -> (B, M, G)
        return self.to_global(vectors.view(B, M, -1)).to(members.dtype)


class GlobalModel(nn.Module):
    """A plain causal Transformer over patch vectors: most of the parameters, run once a patch."""

    def __init__(self, c):
        super().__init__()
        self.config = c
        self.layers = Stack(c.global_layers, c.global_width, c.global_heads, c.global_hidden)
        self.norm = nn.RMSNorm(c.global_width, eps=1e-5) if c.global_norm else nn.Identity()

    def forward(self, patches, view):
        """patch vectors (B, M, G) -> latents (B, M, G)."""
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
        self.layers = Stack(c.decoder_layers, c.width, c.heads, c.hidden)
        self.norm = nn.RMSNorm(c.width, eps=1e-5)
        self.head = nn.Linear(c.width, VOCAB, bias=False)
        self.chain = ChainedHead(VOCAB, c.width, c.chain_width) if c.chain_width else None

    def latent_keys(self, latents):
        """What the cross-attentions read of latents (B, M, G) -> for each layer (B, M, k, 2 D)."""
        B, M, _ = latents.shape
        # (B, M, G) -> (B, M, k, D): a linear map splits a latent into k vectors of local width
        vectors = self.split(latents).to(latents.dtype).view(B, M, self.config.patch_vectors, -1)
        return [cross.project(vectors) for cross in self.crosses]

    def forward(self, ids, latent_keys, reads, view, states=None):
        """ids (B, R) -> last rows (B, R, D), which `head` makes logits of.

        latent_keys: of M latents, as above. reads (B, R): which of them a row reads. states
        (B, R, D): the encoder's, where rows start from them.
        """
        B, R = ids.shape
        x = self.embed(ids) if self.embed else states
        # (B, R): the latent that each row reads, as a number among the B M of all rows
        number = latent_keys[0].shape[1] * torch.arange(B, device=ids.device)[:, None] + reads
        for cross, layer, keys in zip(self.crosses, self.layers, latent_keys):
            # (B, M, k, 2 D) -> (B R, k, 2 D): each row reads the vectors of one latent
            kv = F.embedding(number, keys.flatten(0, 1).flatten(1)).view(B * R, *keys.shape[2:])
            # (B, R, D) -> (B R, 1, D) -> (B, R, D)
            x = cross(x.view(B * R, 1, -1), kv).view(B, R, -1)
            x = layer(x, view)
        return self.norm(x)

    def chained(self, rows, before, noise, sampling):
        """The chained head at work from left to right: yields each cell's id and logits (1, V).

        rows (K, D): the decoder's, of a block. before: the id in front of it. noise (K, V) and
        sampling: by which an id is picked (generate.Sampling); the next cells know it.
        """
        state = None
        for row, its_noise in zip(rows, noise):
            # (D,) -> (1, 1, D): a block of one cell, behind what the state knows
            before = torch.tensor([[before]], device=row.device)
            row, state = self.chain(row[None, None], before, state)
            logits = self.head(row)[0]
            before = sampling.pick(logits, its_noise)
            yield before, logits


class BLT(nn.Module):
    """Encoder, global model and decoder over whole texts."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.encoder = LocalEncoder(config)
        self.globe = GlobalModel(config)
        self.decoder = LocalDecoder(config)

    @property
    def device(self):
        """Where the weights lie."""
        return self.decoder.head.weight.device

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

    def forward(self, ids, closes, blocks=None):
        """ids (B, N), closes (B, N) with closes[:, 0] set -> logits of each next byte (B, N, V).

        With Blocks, the logits of their P rows follow: (B, N + P, V).
        """
        return self.decoder.head(self.rows(ids, closes, blocks))

    def rows(self, ids, closes, blocks=None):
        """As forward, but the decoder's last rows (B, R, D).

        The rows of blocks are laid behind the clean ones (Fast BLT §3.2). They read what is known
        before their block starts, and each other: see layers.sees.
        """
        c = self.config
        B, N = ids.shape
        rows = Rows.clean(N, ids.device)
        local = functools.partial(self.view, window=c.window, head_width=c.width // c.heads)
        states = self.encoder.states(F.pad(ids, (LEAD, 0)), local(rows))
        patches = self.encoder(states, closes)
        numbers = Rows.clean(patches.shape[1], ids.device)
        width = c.global_width // c.global_heads
        latents = self.globe(patches, self.view(numbers, c.global_window, width))
        reads = latent_read(closes)
        if blocks is not None:
            # (B, N) and (B, P) -> (B, R)
            ids = torch.cat([ids, blocks.ids], 1)
            # A block reads the latent of the last patch closed before it starts.
            reads = torch.cat([reads, reads.gather(1, blocks.starts - 1)], 1)
            of_blocks = Rows(blocks.positions, blocks.starts, blocks.draft)
            both = zip(rows, of_blocks)
            rows = Rows(*(torch.cat([x.expand(B, N), y], 1) for x, y in both))
            if c.byte_states:  # drafted bytes behind the text have states too
                states = self.encoder.states(F.pad(ids, (LEAD, 0)), local(rows))
        return self.decoder(ids, self.decoder.latent_keys(latents), reads, local(rows), states)

    def view(self, rows, window, head_width):
        """How a stack sees rows of bytes or patches."""
        dtype = self.decoder.head.weight.dtype
        return View.of(rows, window, head_width, self.config.rope_base, dtype)

    def sizes(self):
        """Parameters by part. Of the n-gram tables a pass looks up six entries a byte.

        Layers of the encoder that a decoder row starts from run as often: they count with it.
        """
        encoder = self.encoder
        tables = encoder.hashes.weight.numel()
        bytewise = 0
        if self.config.byte_states:
            bytewise = count_parameters(nn.ModuleList([encoder.embed, *encoder.layers]))
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


if __name__ == "__main__":
    from measure import ideas

    ideas.show("model")
