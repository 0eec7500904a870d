"""The sizes that a model can have, its patcher's too, how they are trained, and recipes of BLT-D.

A new size is a new entry of presets.json. What its numbers mean stands at model.BLTConfig,
patcher.PatcherConfig and TrainingSettings, whose defaults are those of `tiny`.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

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
    after: float = 0.6  # share of the steps before blocks join
    chain_width: int = 0  # state of the chained head; 0: there is none
    chain_only: bool = False  # train the chained head alone, onto a model that stays as it is

    def __post_init__(self):
        if self.block_size and self.starts == "any" and not self.cells_per_byte:
            advice = "give it with --block-starts patch, or a number above 0"
            raise BadInput(f"--cells-per-byte 0 puts a block at every start there may be: {advice}")


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

# Of each size the fields of its model.Preset, as far as they differ from the defaults
SIZES = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
