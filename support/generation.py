"""What a generation counts, what it returns, and what it tells whoever watches it."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Counters:
    """Forward passes (NFEs) by part, the prefill's apart, and what speculation did."""

    decoder: int = 0
    encoder_global: int = 0  # encoder and global model always run together
    entropy: int = 0
    chain: int = 0  # cells that the chained head drew
    bytes_advanced: int = 0  # bytes taken in; rollbacks take theirs off again
    patches_closed: int = 0  # among these bytes
    prefill: Counter = field(default_factory=Counter)
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    # accepted bytes -> rounds that accepted so many
    lengths: Counter = field(default_factory=Counter)


@dataclass
class Generation:
    """What a sampler returns. What it cost in gigabytes is in bandwidth.py."""

    ids: list[int]  # generated, without the id that ended them
    counters: Counters
    seconds: float  # after the prefill
    sizes: dict  # parameters by part, the patcher among them

    @property
    def new_bytes(self):
        """Bytes generated; what ended them is not counted."""
        return len(self.ids)

    @property
    def bytes_per_second(self):
        """Speed after the prefill; None where nothing ran behind it: a first byte needs nothing."""
        if not self.counters.decoder:
            return None
        return self.new_bytes / max(self.seconds, 1e-9)


class Watch:
    """What a sampler tells as it happens. Subclasses show it; this one hears and says nothing."""

    def begin(self, state):
        """The state has taken the prompt in, and the clock starts."""

    def bytes(self, ids):
        """New bytes of the output, for good."""

    def step(self, ids, masked):
        """One unmasking step of a block: its ids, and which cells are masked still."""

    def draft(self, ids):
        """A whole draft, before it is verified."""

    def round(self, state, drafted, accepted, following):
        """One verification: of what was drafted so many ids are accepted, and one follows them."""
