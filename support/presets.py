"""The sizes that a model can have, its patcher's too, how they are trained, and recipes of BLT-D.

A new size is a new entry of SIZES. What its numbers mean stands at model.BLTConfig,
patcher.PatcherConfig and TrainingSettings, whose defaults are those of `tiny`.
"""

from dataclasses import dataclass, replace

from support.terminal import BadInput


@dataclass
class TrainingSettings:
    """How one model is trained (Fast BLT §A.2 where nothing else is said)."""

    length: int = 256  # N, bytes in a crop
    batch: int = 16  # crops in one forward pass
    accumulate: int = 1  # forward passes in one step
    optimizer: str = "muon"  # of training/optim.py: muon | adamw
    lr: float = 1e-2  # peak, after the warm-up; falls to zero along a cosine
    adamw_lr: float = 2e-3  # that peak where AdamW takes Muon's place
    warmup: int = 50  # steps
    weight_decay: float = 0.1  # on the matrices of linear maps only
    clip: float = 1.0  # global gradient norm

    def __post_init__(self):
        if min(self.length, self.batch, self.accumulate, self.warmup) < 1:
            raise BadInput(f"length, batch, accumulate and warmup are at least 1: {self}")

    def trained_by(self, optimizer):
        """The same for another optimiser, or None for this one's own."""
        if optimizer == "adamw" and self.optimizer == "muon":
            return replace(self, optimizer=optimizer, lr=self.adamw_lr)
        return replace(self, optimizer=optimizer or self.optimizer)


@dataclass
class Recipe:
    """How BLT-D is trained: where blocks start, what is hidden in them, what that weighs."""

    block_size: int = 8  # K
    starts: str = "any"  # any: blocks start anywhere, as drafts do | patch: at patch starts
    cells_per_byte: float = 0.5  # cells of blocks a byte of text; 0: a block at every patch start
    noise: str = "sequence"  # one noise level t for all blocks of a crop | block: one for each
    full_share: float = 0.5  # share of blocks masked whole: the state every draft starts from
    t_min: float = 0.1  # t is uniform on (t_min, 1): a cell's weight 1/t stays below 1 / t_min
    mask_weight: float = 1.0  # λ of the loss
    draft_weight: float = 0.0  # μ, of draft rows (diffusion.make_blocks); 0: there are none
    draft_rows_per_byte: float = 0.5  # rows of blocks of draft rows alone, a byte of text
    after: float = 0.6  # share of the steps before blocks join
    chain_width: int = 0  # state of the chained head; 0: there is none
    chain_only: bool = False  # train the chained head alone, onto a model that stays as it is

    def __post_init__(self):
        if self.block_size and self.starts == "any" and not self.cells_per_byte:
            advice = "give it with --block-starts patch, or a number above 0"
            raise BadInput(f"--cells-per-byte 0 puts a block at every start there may be: {advice}")


BLOCK_SIZES = (4, 8, 16, 32)  # K that a model may be trained with
# What differs from the defaults, which are ours. The paper: blocks at every patch start from the
# first step on, one t ~ U(0, 1) a sequence. Its 1/t has no bound; here it stays below 1000, and a
# cell's expected weight 1.
RECIPES = {
    "ours": {},
    "paper": dict(
        starts="patch",
        cells_per_byte=0.0,
        noise="sequence",
        full_share=0.0,
        t_min=0.001,
        mask_weight=1.0,
        after=0.0,
    ),
    # The chained head alone, onto a finished model: blocks as every draft begins, many of them.
    "chain": dict(cells_per_byte=1.0, full_share=1.0, after=0.0, chain_width=96, chain_only=True),
}

# Of each size the fields of its model.Preset, as far as they differ from the defaults
SIZES = {
    # Trains in seconds on two CPU cores.
    "nano": {
        "model": dict(
            width=64,
            heads=2,
            hidden=128,
            window=64,
            ngram_table_size=512,
            global_width=128,
            global_heads=2,
            global_hidden=256,
            global_layers=2,
            global_window=32,
        ),
        "training": dict(length=128, lr=0.02, adamw_lr=0.003, warmup=10),
        "patcher": dict(width=32, heads=1, hidden=64, window=32),
        "patcher_training": dict(batch=16, lr=0.02, adamw_lr=0.004, warmup=20),
    },
    # Trains in minutes on two CPU cores. The defaults are its own.
    "tiny": {
        "model": dict(),
        "training": dict(),
        "patcher": dict(),
        "patcher_training": dict(batch=16, lr=0.02, adamw_lr=0.004, warmup=20),
    },
    # Trains in hours on two CPU cores. A small model's pass costs its layers' overhead, not its
    # arithmetic; and more of these are the decoder's, which drafts.
    "reference": {
        "model": dict(decoder_layers=4, global_layers=3),
        "training": dict(),
        "patcher": dict(),
        "patcher_training": dict(batch=16, lr=0.02, adamw_lr=0.004, warmup=20),
    },
    # For a laptop GPU.
    "small": {
        "model": dict(
            width=384,
            heads=6,
            hidden=1024,
            decoder_layers=4,
            window=512,
            ngram_table_size=16384,
            global_width=768,
            global_heads=12,
            global_hidden=2048,
            global_layers=5,
        ),
        "training": dict(length=512, batch=16, accumulate=2, adamw_lr=0.001, warmup=200),
        "patcher": dict(width=256, layers=4, heads=4, hidden=768, window=128),
        "patcher_training": dict(length=512, batch=16, lr=0.01, warmup=100),
    },
    # The paper's. A batch is 2^19 tokens, about 2 MB of text a step (Fast BLT §A.2). The patcher is
    # the official BLT's entropy model, of 99.5 M parameters.
    "blt-1b": {
        "model": dict(
            width=1024,
            heads=16,
            hidden=2816,
            decoder_layers=9,
            window=512,
            ngram_table_size=500002,
            global_width=2048,
            global_heads=16,
            global_hidden=5632,
            global_layers=25,
            global_window=512,
        ),
        "training": dict(
            optimizer="adamw", lr=0.0004, length=4096, batch=1, accumulate=512, warmup=2000
        ),
        "patcher": dict(width=768, layers=14, heads=12, hidden=2048, window=512),
        "patcher_training": dict(
            optimizer="adamw", lr=0.0004, length=4096, batch=1, accumulate=64, warmup=2000
        ),
    },
    # The paper's, with batches of 2^20 tokens, about 4 MB of text. The widths of its global model
    # are ours: the paper gives its parameter count alone. The patcher is that of blt-1b.
    "blt-3b": {
        "model": dict(
            width=1024,
            heads=16,
            hidden=2816,
            decoder_layers=9,
            window=512,
            ngram_table_size=500002,
            global_width=3072,
            global_heads=24,
            global_hidden=8192,
            global_layers=25,
            global_window=512,
        ),
        "training": dict(
            optimizer="adamw", lr=0.0004, length=4096, batch=1, accumulate=1024, warmup=4000
        ),
        "patcher": dict(width=768, layers=14, heads=12, hidden=2048, window=512),
        "patcher_training": dict(
            optimizer="adamw", lr=0.0004, length=4096, batch=1, accumulate=64, warmup=2000
        ),
    },
}
