"""The sizes that a model can have, its patcher's too, how they are trained, and recipes of BLT-D.

What the numbers mean stands at model.BLTConfig, patcher.PatcherConfig, TrainingSettings and Recipe.
Their defaults are those of `tiny`. A new size is a new entry here.
"""

from dataclasses import dataclass, replace

from support.terminal import BadInput


@dataclass
class TrainingSettings:
    """How one model is trained (Fast BLT §A.2 where nothing else is said)."""

    length: int = 256  # N, bytes in a crop
    batch: int = 16  # crops in one forward pass
    accumulate: int = 1  # forward passes in one step
    optimizer: str = "muon"  # of support/optim.py: muon | adamw
    lr: float = 1e-2  # peak, after the warm-up; falls to zero along a cosine
    adamw_lr: float = 2e-3  # that peak where AdamW takes Muon's place
    warmup: int = 50  # steps
    weight_decay: float = 0.1  # on the matrices of linear maps only
    clip: float = 1.0  # global gradient norm

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
    after: float = 0.6  # share of the steps before blocks join
    chain_width: int = 0  # state of the chained head; 0: there is none
    chain_only: bool = False  # train the chained head alone, onto a model that stays as it is

    def __post_init__(self):
        if self.block_size and self.starts == "any" and not self.cells_per_byte:
            raise BadInput(
                "--cells-per-byte 0 puts a block at every start there may be: give it with "
                "--block-starts patch, or a number above 0"
            )

    def cells(self, mean_patch):
        """Cells of blocks beside each byte of text, on average over a run."""
        each = self.cells_per_byte or self.block_size / mean_patch
        return each * (1 - self.after) if self.block_size else 0.0


# What differs from the defaults, which are ours. The paper: blocks at every patch start from the
# first step on, one t ~ U(0, 1) a sequence. Its 1/t has no bound; here it stays below 1000, and a
# cell's expected weight 1.
RECIPES = {
    "ours": {},
    "paper": dict(starts="patch", cells_per_byte=0.0, noise="sequence", full_share=0.0)
    | dict(t_min=0.001, mask_weight=1.0, after=0.0),
    # The chained head alone, onto a finished model: blocks as every draft begins, many of them.
    "chain": dict(cells_per_byte=1.0, full_share=1.0, after=0.0, chain_width=96, chain_only=True),
}

# `nano` trains in seconds, `tiny` in minutes and `reference` in hours on two CPU cores, `small` on
# a laptop GPU; the others are the paper's.

SMALL_PATCHER_TRAINING = {"batch": 16, "lr": 2e-2, "adamw_lr": 4e-3, "warmup": 20}
PAPER = {"optimizer": "adamw", "lr": 4e-4}

# Of each model the local parts stand first, then the global one.
NANO = {
    "model": dict(width=64, heads=2, hidden=128, window=64, ngram_table_size=512)
    | dict(global_width=128, global_heads=2, global_hidden=256, global_layers=2, global_window=32),
    "training": dict(length=128, lr=2e-2, adamw_lr=3e-3, warmup=10),
    "patcher": dict(width=32, heads=1, hidden=64, window=32),
    "patcher_training": SMALL_PATCHER_TRAINING,
}

TINY = {"model": {}, "training": {}, "patcher": {}, "patcher_training": SMALL_PATCHER_TRAINING}

# A small model's pass costs its layers' overhead, not its arithmetic: more decoder, it drafts.
REFERENCE = {**TINY, "model": dict(decoder_layers=4, global_layers=3)}

SMALL = {
    "model": dict(width=384, heads=6, hidden=1024, decoder_layers=4, window=512)
    | dict(ngram_table_size=16384)
    | dict(global_width=768, global_heads=12, global_hidden=2048, global_layers=5),
    "training": dict(length=512, batch=16, accumulate=2, adamw_lr=1e-3, warmup=200),
    "patcher": dict(width=256, layers=4, heads=4, hidden=768, window=128),
    "patcher_training": dict(length=512, batch=16, lr=1e-2, warmup=100),
}

# Batches of 2^19 and 2^20 tokens, about 2 and 4 MB of text a step (Fast BLT §A.2). The widths of
# the 3B global model are ours: the paper gives its parameter count alone. The patcher is the
# official BLT's entropy model, of 99.5 M parameters.
BLT_1B = {
    "model": dict(width=1024, heads=16, hidden=2816, decoder_layers=9, window=512)
    | dict(ngram_table_size=500002, global_layers=25, global_window=512)
    | dict(global_width=2048, global_heads=16, global_hidden=5632),
    "training": dict(length=4096, batch=1, accumulate=512, warmup=2000) | PAPER,
    "patcher": dict(width=768, layers=14, heads=12, hidden=2048, window=512),
    "patcher_training": dict(length=4096, batch=1, accumulate=64, warmup=2000) | PAPER,
}

BLT_3B = {
    **BLT_1B,
    "model": BLT_1B["model"] | dict(global_width=3072, global_heads=24, global_hidden=8192),
    "training": dict(length=4096, batch=1, accumulate=1024, warmup=4000) | PAPER,
}

SIZES = dict(nano=NANO, tiny=TINY, reference=REFERENCE, small=SMALL)
SIZES |= {"blt-1b": BLT_1B, "blt-3b": BLT_3B}
