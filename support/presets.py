"""The sizes that a model can have: its shape, its patcher's, and how both are trained.

Numbers alone; what they mean stands at model.BLTConfig, patcher.PatcherConfig and TrainingSettings,
whose defaults are those of `tiny`. A new size is a new entry here.
"""

from dataclasses import dataclass


@dataclass
class TrainingSettings:
    """How one model is trained (Fast BLT §A.2 where nothing else is said)."""

    length: int = 256  # N, bytes in a crop
    batch: int = 16  # crops in one forward pass
    accumulate: int = 1  # forward passes in one step
    optimizer: str = "muon"  # of support/optim.py: muon | adamw
    lr: float = 1e-2  # peak, after the warm-up; falls to zero along a cosine
    warmup: int = 50  # steps
    weight_decay: float = 0.1  # on the matrices of linear maps only
    clip: float = 1.0  # global gradient norm


# `nano` trains in seconds, `tiny` in minutes and `reference` in hours on two CPU cores, `small` on
# a laptop GPU; the others are the paper's.

SMALL_PATCHER_TRAINING = {"batch": 16, "optimizer": "adamw", "lr": 4e-3, "warmup": 20}
PAPER = {"optimizer": "adamw", "lr": 4e-4}
# Peaks for AdamW on presets that have Muon
ADAMW_RATES = {"nano": 3e-3, "tiny": 2e-3, "reference": 2e-3, "small": 1e-3}

# Of each model the local parts stand first, then the global one.
NANO = {
    "model": dict(width=64, heads=2, hidden=128, window=64, ngram_table_size=512)
    | dict(global_width=128, global_heads=2, global_hidden=256, global_layers=2, global_window=32),
    "training": dict(length=128, lr=2e-2, warmup=10),
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
    "training": dict(length=512, batch=16, accumulate=2, warmup=200),
    "patcher": dict(width=256, layers=4, heads=4, hidden=768, window=128),
    "patcher_training": SMALL_PATCHER_TRAINING | dict(length=512, lr=2e-3, warmup=100),
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
