"""The Byte Latent Transformer (BLT §3; Fast BLT §2.1): local encoder, global model over patches, local decoder.

What does a byte read inside a patch? The latent of the last patch that is closed at that byte (`latent_read`): its own
patch's latent if the byte closes it, else the one before. An unfinished patch is never read, so the model is causal byte by
byte, and its global part needs to run only when a patch closes: see stream.py.

Letters in shape comments: B batch, N byte positions, R decoder rows (N clean ones, then those of blocks), M patches,
k vectors a patch (`patch_vectors`), D local width, G global width, V vocabulary, H heads, C head width.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

import checkpoint
from data import VOCAB
from layers import CrossAttention, Layer, rotary, run_layers, sees
from patcher import Patcher, PatcherConfig
from terminal import BadInput

NGRAMS = range(3, 9)           # lengths of the hashed byte n-grams
LEAD = max(NGRAMS) - 1         # how many ids before a byte its longest n-gram holds
HASH_PRIME = 1_000_000_007


@dataclass
class BLTConfig:
    width: int = 128            # D, of encoder and decoder
    heads: int = 2              # of encoder, decoder and their cross-attentions
    hidden: int = 384           # inside their SwiGLU
    encoder_layers: int = 1
    decoder_layers: int = 2
    window: int = 256           # bytes that a local layer sees, itself included
    hash_rows: int = 4096       # rows of each of the six n-gram tables
    patch_vectors: int = 2      # k, vectors of local width that make up a patch
    global_width: int = 256     # G
    global_heads: int = 4
    global_hidden: int = 704
    global_layers: int = 4
    global_window: int = 128    # patches that a global layer sees: at most what a training sequence holds
    max_patch: int = 8          # longest patch in bytes
    rope_theta: float = 500000.0
    block_size: int = 0         # K that the decoder was trained to fill by diffusion; 0: plain BLT


PRESETS = {
    "nano": BLTConfig(width=64, heads=2, hidden=128, decoder_layers=2, window=64, hash_rows=512, global_width=128, global_heads=2,
                      global_hidden=256, global_layers=2, global_window=32),
    "tiny": BLTConfig(),
    # A small model's pass costs its layers' overhead, not its arithmetic: more decoder, which drafts, and less global model.
    "reference": BLTConfig(decoder_layers=4, global_layers=3),
    "small": BLTConfig(width=384, heads=6, hidden=1024, decoder_layers=4, window=512, hash_rows=16384, global_width=768,
                       global_heads=12, global_hidden=2048, global_layers=5),
    "blt-1b": BLTConfig(width=1024, heads=16, hidden=2816, decoder_layers=9, window=512, hash_rows=500002, global_width=2048,
                        global_heads=16, global_hidden=5632, global_layers=25, global_window=512),
    "blt-3b": BLTConfig(width=1024, heads=16, hidden=2816, decoder_layers=9, window=512, hash_rows=500002, global_width=3072,
                        global_heads=24, global_hidden=8192, global_layers=25, global_window=512),
}


def preset(name):
    if name not in PRESETS:
        raise BadInput(f"unknown preset '{name}': choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def latent_read(closes):
    """Which latent each byte reads: closes (B, N) bool -> index (B, N) of the last patch closed at that byte.

    A byte that closes its patch reads that patch; all others read the one before. Position 0 must close its own (BOS does).
    """
    return closes.long().cumsum(1) - 1


def ngram_rows(ids, rows):
    """Rolling polynomial hashes of the last 3..8 ids (BLT §3.2.1): ids (B, LEAD + N) -> (B, N, 6) rows of one joint table."""
    powers = [1]
    for _ in range(LEAD):  # int64 arithmetic that wraps around
        powers.append((powers[-1] * HASH_PRIME + 2 ** 63) % 2 ** 64 - 2 ** 63)
    grams = ids.unfold(1, LEAD + 1, 1)                                     # (B, N, 8) a byte and the seven before it
    powers = torch.tensor(powers, device=ids.device)
    hashes = [(grams[..., LEAD + 1 - n:] * powers[:n]).sum(-1) % rows + i * rows for i, n in enumerate(NGRAMS)]
    return torch.stack(hashes, -1)


class LocalEncoder(nn.Module):
    """Bytes -> patch vectors (BLT §3.2). Reads nothing of a patch before it is closed: an open one has no vector yet."""

    def __init__(self, c):
        super().__init__()
        self.config = c
        self.embed = nn.Embedding(VOCAB, c.width)
        self.hashes = nn.Embedding(len(NGRAMS) * c.hash_rows, c.width)     # the six tables below each other
        self.layers = nn.ModuleList(Layer(c.width, c.heads, c.hidden, c.window) for _ in range(c.encoder_layers))
        self.query = nn.Linear(c.width, c.patch_vectors * c.width, bias=False)
        self.cross = CrossAttention(c.width, c.heads)
        joint = c.patch_vectors * c.width
        self.to_global = nn.Identity() if joint == c.global_width else nn.Linear(joint, c.global_width, bias=False)

    def forward(self, ids, closes, view=None):
        """ids (B, LEAD + N) with the ids before the first byte in front (PAD at the start of a text), closes (B, N)
        -> patch vectors (B, M, G) of the closed patches; in a row that closes fewer than M, the last ones mean nothing.
        view: what Cache.view gave for these rows, or None.
        """
        c, (B, N) = self.config, closes.shape
        if view is None:
            positions = torch.arange(N, device=ids.device)
            view = rotary(positions, c.width // c.heads, c.rope_theta, self.query.weight.dtype), None, None
        grams = ngram_rows(ids, c.hash_rows).view(B * N, -1)
        x = self.embed(ids[:, LEAD:])                                      # (B, N, D)
        x = x + F.embedding_bag(grams, self.hashes.weight, mode="sum").view(B, N, -1)
        x = run_layers(self.layers, x, *view)

        own = closes.long().cumsum(1) - closes.long()                      # (B, N) the patch that a byte belongs to
        M = int(closes.sum(1).max())
        last = closes.int().argsort(dim=1, descending=True, stable=True)[:, :M]  # (B, M) a patch's last byte
        pooled = running_max(x, own, c.max_patch).gather(1, last[..., None].expand(-1, -1, c.width))  # (B, M, D)
        queries = self.query(pooled).to(x.dtype).view(B, M * c.patch_vectors, c.width)       # (B, M k, D)
        mine = own.gather(1, last)[..., None] == own[:, None]  # (B, M, N) only its own bytes
        mine = mine.repeat_interleave(c.patch_vectors, 1)[:, None]                           # (B, 1, M k, N)
        vectors = self.cross(queries, self.cross.project(x), mine)                           # (B, M k, D)
        return self.to_global(vectors.view(B, M, -1)).to(x.dtype)                            # (B, M, G)


def running_max(x, own, longest):
    """Max over the bytes of the same patch so far: x (B, N, D), own (B, N) -> (B, N, D). Doubling steps, no gathers."""
    shift = 1
    while shift < longest:
        same = (own[:, shift:] == own[:, :-shift])[..., None]
        x = torch.cat([x[:, :shift], torch.where(same, torch.maximum(x[:, shift:], x[:, :-shift]), x[:, shift:])], 1)
        shift *= 2
    return x


class GlobalModel(nn.Module):
    """A plain causal Transformer over patch vectors: most of the parameters, run once a patch."""

    def __init__(self, c):
        super().__init__()
        self.config = c
        shape = c.global_width, c.global_heads, c.global_hidden, c.global_window
        self.layers = nn.ModuleList(Layer(*shape) for _ in range(c.global_layers))
        self.norm = nn.RMSNorm(c.global_width, eps=1e-5)

    def forward(self, patches, view=None):
        """patch vectors (B, M, G) -> latents (B, M, G)."""
        if view is None:
            c, M = self.config, patches.shape[1]
            positions = torch.arange(M, device=patches.device)
            view = rotary(positions, c.global_width // c.global_heads, c.rope_theta, self.norm.weight.dtype), None, None
        return self.norm(run_layers(self.layers, patches, *view))


class LocalDecoder(nn.Module):
    """Bytes and latents -> logits. Starts from an embedding lookup (Fast BLT §2.1.2); each byte reads one latent per layer."""

    def __init__(self, c):
        super().__init__()
        self.config = c
        self.embed = nn.Embedding(VOCAB, c.width)
        self.split = nn.Linear(c.global_width, c.patch_vectors * c.width, bias=False)
        self.crosses = nn.ModuleList(CrossAttention(c.width, c.heads) for _ in range(c.decoder_layers))
        self.layers = nn.ModuleList(Layer(c.width, c.heads, c.hidden, c.window) for _ in range(c.decoder_layers))
        self.norm = nn.RMSNorm(c.width, eps=1e-5)
        self.head = nn.Linear(c.width, VOCAB, bias=False)

    def latent_keys(self, latents):
        """What the cross-attentions read of latents (B, M, G): a list, a layer each, of keys and values (2, B, H, M k, C)."""
        B, M, _ = latents.shape
        vectors = self.split(latents).to(latents.dtype).view(B, -1, self.config.width)  # (B, M k, D)
        return [cross.project(vectors) for cross in self.crosses]

    def forward(self, ids, latent_keys, reads, rope, mask=None, past=None):
        """ids (B, R), latent_keys of M latents, reads: which of them a row reads, (B, R), or None if there is but one
        -> logits (B, R, V). rope, mask, past: as Layer takes them.
        """
        x, latent_mask = self.embed(ids), None                                                               # (B, R, D)
        if reads is not None:
            held = torch.arange(latent_keys[0].shape[3], device=ids.device) // self.config.patch_vectors     # (M k,)
            latent_mask = (reads[..., None] == held)[:, None]  # (B, 1, R, M k)
        for i, (cross, layer) in enumerate(zip(self.crosses, self.layers)):
            x = cross(x, latent_keys[i], latent_mask)
            x = layer(x, rope, mask, None if past is None else past[i])
        return self.head(self.norm(x))


class BLT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.encoder = LocalEncoder(config)
        self.globe = GlobalModel(config)
        self.decoder = LocalDecoder(config)

    def init_weights(self):
        """Small normal weights, smaller where a residual branch ends; norms stay one, and the n-gram tables start at zero, so
        that an n-gram never seen in training adds no noise. Draws from torch's global generator.
        """
        for name, p in self.named_parameters():
            if p.ndim < 2:
                continue
            depth = len(self.globe.layers) if name.startswith("globe") else len(self.decoder.layers)
            ends_branch = name.endswith((".out.weight", ".down.weight"))
            nn.init.normal_(p, std=p.shape[1] ** -0.5 * ((2 * depth) ** -0.5 if ends_branch else 1.0))
        nn.init.zeros_(self.encoder.hashes.weight)
        return self

    def latents(self, ids, closes):
        """ids, closes (B, N) -> latents (B, M, G) of the patches closed.

        Rows close very different numbers of patches, so the global model gets the patches of all rows in one sequence, without
        padding, and a mask that keeps the rows apart.
        """
        c, vectors = self.config, self.encoder(F.pad(ids, (LEAD, 0)), closes)  # (B, M, G)
        B, M, G = vectors.shape
        real = torch.arange(M, device=ids.device) < closes.sum(1)[:, None]                                    # (B, M)
        if bool(real.all()):
            return self.globe(vectors)
        row, patch = real.nonzero().unbind(1)  # (S,) each
        clean = torch.full_like(patch, -1)
        mask = sees(patch[:, None], clean[:, None], patch[None], clean[None], c.global_window) & (row[:, None] == row[None])
        rope = rotary(patch, c.global_width // c.global_heads, c.rope_theta, vectors.dtype)
        packed = self.globe(vectors[row, patch][None], (rope, mask[None, None], None))  # (1, S, G)
        return torch.zeros_like(vectors).index_put((row, patch), packed[0])

    def forward(self, ids, closes, block_ids=None, block_positions=None, block_starts=None):
        """ids (B, N) and where patches close, (B, N) bool with closes[:, 0] set -> logits of each next byte (B, N, V).

        With blocks (diffusion.py builds them; Fast BLT §3.2), their rows are laid beside the clean ones and logits are
        (B, N + P, V): block_ids, block_positions (B, P) are ids and byte positions of the rows, block_starts (B, P) the
        first position of the row's block. A block's rows read what is known before its start, and each other.
        """
        (B, N), c = ids.shape, self.config
        reads = latent_read(closes)
        keys = self.decoder.latent_keys(self.latents(ids, closes))
        positions, mask = torch.arange(N, device=ids.device), None
        if block_ids is not None:
            reads = torch.cat([reads, reads.gather(1, block_starts - 1)], 1)  # (B, N + P)
            starts = torch.cat([positions.new_full((B, N), -1), block_starts], 1)  # (B, N + P)
            positions = torch.cat([positions.expand(B, N), block_positions], 1)  # (B, N + P)
            ids = torch.cat([ids, block_ids], 1)
            mask = sees(block_positions[..., None], block_starts[..., None], positions[:, None], starts[:, None], c.window)
            mask = mask[:, None]  # (B, 1, P, N + P)
        rope = rotary(positions, c.width // c.heads, c.rope_theta, self.decoder.head.weight.dtype)
        return self.decoder(ids, keys, reads, rope, mask)

    def sizes(self):
        """Parameters by part, a dict. The n-gram tables stand alone: a pass looks up six rows of them a byte, no more."""
        count = lambda module: sum(p.numel() for p in module.parameters())
        hashes = count(self.encoder.hashes)
        return {"encoder": count(self.encoder) - hashes, "global": count(self.globe), "decoder": count(self.decoder),
                "hash_tables": hashes}

    def flops_per_byte(self, mean_patch=4.0, block_rows=0.0):
        """Matrix-product operations to train on one byte, forward and backward; attention scores and look-ups left out.

        block_rows: decoder rows of diffusion blocks beside each clean one.
        """
        c, size = self.config, self.sizes()
        size["encoder"] -= self.encoder.embed.weight.numel()
        size["decoder"] -= self.decoder.embed.weight.numel()
        latent_side = sum(cross.kv.weight.numel() for cross in self.decoder.crosses) * c.patch_vectors
        rows = (size["decoder"] - latent_side) * (1 + block_rows)
        return 6 * (size["encoder"] + rows + (size["global"] + latent_side) / mean_patch)


def load_model(path):
    """The BLT of a checkpoint file and its patcher, ready to generate."""
    saved = checkpoint.load(path)
    if not saved["model"]:
        raise BadInput(f"{path} holds a patcher but no model yet: go on with `python train.py --resume {path}`")
    model, patcher = BLT(BLTConfig(**saved["config"])), Patcher(PatcherConfig(**saved["patcher_config"]))
    model.load_state_dict({name: tensor.float() for name, tensor in saved["model"].items()})
    patcher.load_state_dict({name: tensor.float() for name, tensor in saved["patcher"].items()})
    for linear in (m for part in (model, patcher) for m in part.modules() if isinstance(m, nn.Linear)):
        # The same numbers, laid out column by column: on a CPU, products with a single row are quicker that way.
        linear.weight.data = linear.weight.data.t().contiguous().t()
    return model.eval(), patcher.eval()
