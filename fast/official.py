"""What a Stream needs for official BLT weights: their decoder starts from the encoder's states."""

import torch

from fast.stream import Stream
from model import LEAD


class ByteStateStream(Stream):
    """A Stream whose encoder runs at every byte, as the decoder's rows start from its states."""

    def __init__(self, model, patcher, **bounds):
        super().__init__(model, patcher, **bounds)
        self.states = []  # of the bytes in self.known, (D,) each

    def encoder_ahead(self):
        """It runs ahead of the text as the decoder does."""
        return self.max_rollback

    def states_behind(self, behind, ids):
        """States of n ids that stand behind the text and the ids `behind` it: list of (D,)."""
        context = [self.at(i).id for i in range(self.length - LEAD, self.length)] + behind
        return list(self.encode(self.length + len(behind), context[-LEAD:] + ids))

    def advance_piece(self, ids):
        self.states += self.states_behind([], ids)
        super().advance_piece(ids)

    def states_between(self, low, high):
        return torch.stack(self.states[low - self.forgotten : high - self.forgotten])

    def states_of_pass(self, ids, same):
        states = self.states[self.decoded - self.forgotten :]
        if ids[same:]:
            states = states + self.states_behind(ids[:same], ids[same:])
        return torch.stack(states)[None]

    def rollback(self, length):
        super().rollback(length)
        del self.states[length - self.forgotten :]

    def let_go(self):
        before = self.forgotten
        super().let_go()
        del self.states[: self.forgotten - before]
