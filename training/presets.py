"""Every size of model with all that it brings along, from the numbers in support/presets.py."""

from typing import NamedTuple

from model import BLTConfig
from patcher import PatcherConfig
from support.presets import SIZES, TrainingSettings


class Preset(NamedTuple):
    """Everything that a size of model brings along."""

    model: BLTConfig
    training: TrainingSettings
    patcher: PatcherConfig
    patcher_training: TrainingSettings


PRESETS = {
    name: Preset(
        BLTConfig(**size["model"]),
        TrainingSettings(**size["training"]),
        PatcherConfig(**size["patcher"]),
        TrainingSettings(**size["patcher_training"]),
    )
    for name, size in SIZES.items()
}
