"""The paper's rounds, counted: what encoding the open patch before each draft costs."""

import torch

from generate import Prefix


class PaperPrefix(Prefix):
    """The plain state as the paper's algorithms have it: the open patch is encoded too.

    Before each block or draft everything decided is encoded, the open patch as if it ended there,
    and what is drafted reads that latent. So an encoder/global call comes before each draft, and
    another with each verification (Algorithms 1 and 2). The other states draft from the last closed
    patch's latent, which is there already. Passes are counted exactly; as the whole text runs each
    time, seconds say nothing.
    """

    encoded = False  # is all that is decided encoded, the open patch too?

    def advance(self, ids):
        calls = self.counters.encoder_global
        super().advance(ids)
        # Calls are counted where they belong: before a draft, and when one is verified.
        self.counters.encoder_global = calls
        self.encoded = False

    def extend(self, ids):
        """Take a prompt in, or verify: the first of `ids` is decided, a draft follows."""
        if self.ids:
            # A draft that asked nothing, as a copy does, comes behind that encoding all the same.
            self.encode_decided(ids[:1])
        self.counters.encoder_global += 1
        return super().extend(ids)

    def rollback(self, length):
        super().rollback(length)
        self.encoded = False

    def peek(self, ids=(), block=()):
        """The first of `ids` is decided, and encoded with the text; what follows is a draft."""
        self.encode_decided(ids[:1])
        decided = [*self.ids, *ids[:1]]
        text = torch.tensor(decided, device=self.model.device)
        closes = self.patcher.closes(text).tolist()
        closes[-1] = True  # the patch that is open ends here
        return self.rows(decided, closes, drafted=ids[1:], cells=block)[self.length :]

    def encode_decided(self, new):
        """Count the call that encodes all that is decided; new: ids the text does not hold yet."""
        if self.encoded:
            return
        self.encoded = True
        self.counters.encoder_global += 1
        if new:  # whose boundaries the patcher has to find
            self.counters.entropy += int(self.patcher.needs_entropy)
