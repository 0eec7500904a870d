"""stream.py: whatever the split into calls and the rollbacks, the cached model is the full one."""

import random

import pytest
import torch
from conftest import count_passes, make_models, random_ids

import stream as streaming
from data import BOS, EOS, MASK, OFFSET, encode
from diffusion import Blocks
from patcher import NEWLINE, entropy
from stream import Counters, Stream


@torch.no_grad()
def in_full(model, patcher, ids, provisional=(), block=(), open_patch=False):
    """The slow twin of everything a Stream decodes: logits of all rows, by one full forward.

    provisional: ids that no patch holds yet; block: cells of a block behind them; open_patch: the
    patch still open is encoded as if it ended here.
    """
    closes = patcher.closes(ids)
    if open_patch:
        closes[-1] = True
    text = torch.cat([ids, torch.tensor(list(provisional), dtype=ids.dtype)])
    closes = torch.cat([closes, closes.new_zeros(len(provisional))])
    blocks = None
    if block:
        n, K = len(text), len(block)
        starts = torch.full((1, K), n)
        blocks = Blocks(torch.tensor([list(block)]), n + torch.arange(K)[None], starts)
    return model(text[None], closes[None], blocks)[0]


class Walk:
    """Feeds a text to a Stream in random pieces, with drafts and steps back between.

    Everything that it decodes on the way is compared with `in_full`.
    """

    def __init__(self, model, patcher, ids, seed, max_rollback=12, max_rows=40):
        self.model, self.patcher, self.ids = model, patcher, ids
        self.rng = random.Random(seed)
        self.stream = Stream(model, patcher, max_rollback, max_rows)
        # Logits of the sequence itself, as they were decoded last
        self.logits = torch.full((len(ids), 260), float("nan"), dtype=torch.float64)

    def run(self):
        """-> logits (N, V) of the whole text."""
        s, rng, longest = self.stream, self.rng, self.stream.max_rows - 16
        while s.length < len(self.ids):
            n = min(rng.choice([1, 1, 1, 2, 3, 7, longest]), len(self.ids) - s.length)
            piece = self.ids[s.length : s.length + n].tolist()
            if rng.random() < 0.3:
                self.keep(s.extend(piece))
            else:
                s.advance(piece, encode_open=rng.random() < 0.5)
                self.draft()
            if rng.random() < 0.3 or s.length - s.decoded > 7:
                self.catch_up()
            if rng.random() < 0.4 and s.length < len(self.ids):
                low = max(1, s.furthest - s.max_rollback)
                s.rollback(rng.randrange(low, s.length + 1))
                if rng.random() < 0.5:
                    self.draft()
        self.catch_up()
        return self.logits

    def keep(self, got):
        """Remember the logits of the sequence's own last rows."""
        self.logits[self.stream.length - len(got) : self.stream.length] = got

    def catch_up(self):
        """Decode what is still owed; no open patch is read any more."""
        self.stream.forget_open()
        if self.stream.decoded < self.stream.length:
            self.keep(self.stream.decode())

    def draft(self):
        """Up to three passes with provisional rows and a block, which must leave no trace."""
        s, rng, provisional = self.stream, self.rng, []
        for _ in range(rng.randrange(4)):
            more = [OFFSET + rng.randrange(256) for _ in range(rng.randrange(4))]
            cells = [rng.choice([MASK, 104, 107]) for _ in range(rng.randrange(5))]
            if self.model.config.byte_states:
                cells = []  # no block: a hidden cell has no state
            owed, open_patch = s.length - s.decoded, s.open_latent
            if not owed + len(more) + len(cells):
                continue
            got = s.decode(more, cells)
            provisional += more
            text = self.ids[: s.length]
            full = in_full(self.model, self.patcher, text, provisional, cells, open_patch)
            assert len(got) == owed + len(more) + len(cells)
            assert torch.allclose(got, full[-len(got) :], atol=1e-9), "a draft's rows differ"
            # A row that read the latent of an open patch is decoded again when that is forgotten.
            own = range(s.length - owed, s.length - open_patch)
            self.logits[own.start : own.stop] = got[: len(own)]


@pytest.mark.parametrize("max_patch, mean", [(1, 1), (4, 2.5), (8, 1.3), (8, 4), (8, 7.5)])
@pytest.mark.parametrize("window", [9, 24])
def test_any_split_with_rollbacks_equals_the_full_forward(max_patch, mean, window):
    """With drafts, blocks and latents of open patches between, all forgotten again."""
    shape = dict(window=window, global_window=7, max_patch=max_patch, patcher_window=window // 2)
    for seed in range(3):
        model, patcher = make_models(seed, mean=mean, **shape)
        ids = random_ids(160, seed)
        walk, closes = Walk(model, patcher, ids, seed), patcher.closes(ids)
        logits, full = walk.run(), in_full(model, patcher, ids)
        assert torch.allclose(logits, full, atol=1e-9), (logits - full).abs().max()
        stream, counters = walk.stream, walk.stream.counters
        held = range(stream.forgotten, len(ids))
        assert [stream.closes(i) for i in held] == closes[stream.forgotten :].tolist()
        known = counters.bytes_advanced, counters.patches_closed
        assert known == (len(ids), int(closes.sum()))


@pytest.mark.parametrize("max_patch, mean", [(0, 1.1), (0, 4), (0, 40), (0, 1000), (5, 4)])
@pytest.mark.parametrize("window", [9, 24])
def test_a_decoder_that_starts_from_byte_states_streams_too(max_patch, mean, window):
    """As the original BLT, with patches of any length, far longer than what layers see."""
    original = dict(byte_states=True, double_residual=True, global_norm=False, encoder_layers=2)
    shape = dict(window=window, global_window=7, max_patch=max_patch, patcher_window=window // 2)
    for seed in range(2):
        model, patcher = make_models(seed, mean=mean, **shape, **original)
        ids = random_ids(160, seed)
        walk, closes = Walk(model, patcher, ids, seed), patcher.closes(ids)
        logits, full = walk.run(), in_full(model, patcher, ids)
        assert torch.allclose(logits, full, atol=1e-9), (logits - full).abs().max()
        held = range(walk.stream.forgotten, len(ids))
        assert [walk.stream.closes(i) for i in held] == closes[walk.stream.forgotten :].tolist()


@pytest.mark.parametrize("kind", ["monotonic", "stride", "space"])
def test_other_patchers_stream_too(kind):
    model, patcher = make_models(1, kind=kind, max_patch=5)
    ids = random_ids(120, 1, alphabet=150) - 60  # spaces and punctuation among them
    ids[0] = BOS
    logits = Walk(model, patcher, ids, 1).run()
    assert torch.allclose(logits, in_full(model, patcher, ids), atol=1e-9)


def test_eos_in_the_middle_closes_its_patch_in_a_stream_too():
    """A model that goes on behind EOS sees the patches that it was trained on."""
    model, patcher = make_models(3, max_patch=8, mean=7.5)
    ids = random_ids(60, 3)
    ids[[7, 8, 21, 40]] = EOS
    walk = Walk(model, patcher, ids, 3)
    assert torch.allclose(walk.run(), in_full(model, patcher, ids), atol=1e-9)
    assert all(walk.stream.closes(i) for i in (7, 8, 21, 40))


def test_a_trained_model_streams_as_it_runs_in_full(trained, corpus_file):
    model, patcher = trained
    ids = torch.tensor([BOS, *encode(corpus_file.read_bytes()[3000:3500])])
    logits = Walk(model, patcher, ids, 0).run()
    assert torch.allclose(logits, in_full(model, patcher, ids), atol=1e-9)


# ---- the patch still open


@pytest.mark.parametrize("seed, max_patch, mean", [(0, 8, 3), (1, 4, 2), (2, 8, 7.5), (3, 1, 1)])
def test_an_open_patch_is_read_as_if_it_ended_here(seed, max_patch, mean):
    """Algorithm 1: before a draft everything decided is encoded, at any length of any text.

    The last row and a block read that latent; the rows before read what they always read.
    """
    model, patcher = make_models(seed, window=16, max_patch=max_patch, mean=mean)
    ids, cells, open_ones = random_ids(70, seed), [MASK, 105, MASK, MASK], 0
    for n in range(1, 60, 3):
        stream, text = Stream(model, patcher, max_rows=40), ids[:n]
        stream.prefill(text[: n // 2].tolist())
        stream.advance(text[n // 2 :].tolist(), encode_open=True)
        assert stream.counters.encoder_global == 1
        got = stream.decode(block=cells)
        forced = in_full(model, patcher, text, block=cells, open_patch=True)
        assert torch.allclose(got, forced[-len(got) :], atol=1e-9), n
        open_ones += stream.open_latent

        # Forgotten, the last row and a block read the last closed patch again.
        stream.forget_open()
        got = stream.decode(block=cells)
        plain = in_full(model, patcher, text, block=cells)
        assert torch.allclose(got, plain[-len(got) :], atol=1e-9), n
        following = ids[n : n + 5].tolist()
        longer = in_full(model, patcher, ids[: n + 5])
        assert torch.allclose(stream.extend(following), longer[-5:], atol=1e-9), n
    assert open_ones > 3 or max_patch == 1


def test_every_byte_with_its_open_patch_costs_one_call():
    """Exactly one encoder/global call an advance, whether its last byte closes a patch or not."""
    model, patcher = make_models(0)
    ran, stream, ids = count_passes(model, patcher), Stream(model, patcher), random_ids(40, 1)
    for i, id_ in enumerate(ids.tolist(), 1):
        stream.advance([id_], encode_open=True)
        assert ran["encoder"] == ran["globe"] == stream.counters.encoder_global == i
        assert stream.open_latent != stream.closes(i - 1)
    assert stream.counters.patches_closed == int(patcher.closes(ids).sum())


# ---- what it counts and holds


def test_a_prefill_is_counted_apart():
    """Longer than a pass takes, and the empty one."""
    model, patcher = make_models(1)
    stream, ids = Stream(model, patcher, max_rows=16), random_ids(50)
    logits = stream.prefill(ids.tolist())
    closed = int(patcher.closes(ids).sum())
    assert torch.allclose(logits, in_full(model, patcher, ids)[-1], atol=1e-9)
    prefill = stream.counters.prefill
    assert prefill["decoder"] == prefill["entropy"] == 4  # pieces of 16
    assert 1 <= prefill["encoder_global"] <= min(4, closed)
    assert stream.counters == Counters(prefill=prefill)
    assert Stream(model, patcher).prefill([]) is None


def test_memory_stays_flat():
    model, patcher = make_models(0)
    stream = Stream(model, patcher, max_rollback=8, max_rows=16)
    sizes, held = [], []
    for _ in range(4):
        for piece in random_ids(1600, 3).split(16):
            stream.extend(piece.tolist())
        caches = [cache for cache in vars(stream).values() if hasattr(cache, "rows")]
        sizes.append([cache.rows.numel() for cache in caches])
        held.append(len(stream.known))
    assert len(sizes[0]) == 5 and all(s == sizes[0] for s in sizes)
    assert max(held) < 400 and stream.length == 6400


def test_more_rows_than_a_pass_takes_are_refused():
    """Advance takes any length, in pieces; a decoder pass that owes them all does not."""
    stream = Stream(*make_models(0), max_rows=16)
    stream.advance(random_ids(40).tolist())
    with pytest.raises(ValueError, match="40 decoder rows"):
        stream.decode()


# ---- rollbacks


def test_rollback_beyond_reach_is_refused():
    stream = Stream(*make_models(0), max_rollback=5)
    stream.extend(random_ids(30).tolist())
    for length in (24, 0, 31):
        with pytest.raises(ValueError, match="reaches 5 bytes"):
            stream.rollback(length)
    stream.rollback(25)
    assert stream.length == 25


def test_rollbacks_in_a_row_reach_no_further_than_one():
    """Guards: a limit measured from the present length.

    Rollbacks in a row then passed what the caches hold, and wrong entries were read silently.
    """
    model, patcher = make_models(0, window=9, global_window=4)
    stream, ids = Stream(model, patcher, max_rollback=5, max_rows=16), random_ids(200)
    for piece in ids.split(16):
        stream.extend(piece.tolist())
    for length in (198, 197, 195):
        stream.rollback(length)
    for length in (194, 190, 1):
        with pytest.raises(ValueError, match="reaches 5 bytes"):
            stream.rollback(length)
    # One byte more is no way further back: what was let go at length 200 is gone.
    stream.extend(ids[195:196].tolist())
    with pytest.raises(ValueError, match="reaches 5 bytes"):
        stream.rollback(194)
    stream.rollback(195)
    full = in_full(model, patcher, ids)
    assert torch.allclose(stream.extend(ids[195:].tolist()), full[195:], atol=1e-9)
    stream.extend(random_ids(9, 4)[1:].tolist())  # beyond the old furthest length: 208
    stream.rollback(203)
    with pytest.raises(ValueError, match=r"furthest.*208"):
        stream.rollback(202)


def test_provisional_rows_take_nothing_from_what_a_rollback_may_reach():
    """A long self-draft turns the decoder's buffer over as real bytes do; then all goes back."""
    model, patcher = make_models(0, window=9, global_window=4)
    stream, ids = Stream(model, patcher, max_rollback=5, max_rows=8), random_ids(200)
    full = in_full(model, patcher, ids)
    stream.extend(ids[:6].tolist())
    for i in range(6, 195):
        stream.extend(ids[i : i + 1].tolist())
        for _ in range(5):
            stream.decode([104])
        stream.rollback(i - 4)
        got = stream.extend(ids[i - 4 : i + 1].tolist())
        assert torch.allclose(got, full[i - 4 : i + 1], atol=1e-9), i


# ---- what is refused


def test_a_batch_is_refused():
    for batch in ([[BOS, 100], [BOS, 101]], [torch.tensor([BOS, 100])]):
        with pytest.raises(ValueError, match="one sequence"):
            Stream(*make_models(0)).extend(batch)


def test_patches_longer_than_the_model_takes_are_refused():
    model, _ = make_models(0, max_patch=4)
    _, patcher = make_models(0, max_patch=8)
    with pytest.raises(ValueError, match="patches of 8 bytes, the model takes 4"):
        Stream(model, patcher)


# ---- run


def test_it_shows_a_texts_way_through_the_model(trained_file, capsys):
    """A row for each byte: what closes, which latent it reads, passes so far of the three parts."""
    streaming.main(["--text", "def main():", "--checkpoint", str(trained_file)])
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line][-12:]
    assert rows[0].startswith("BOS") and "closes" in rows[0] and rows[1].startswith("d ")
    closed = 0
    for i, row in enumerate(rows, 1):
        closed += "closes" in row
        numbers = [int(word) for word in row.split() if word.isdigit()]
        assert numbers[:4] == [closed, i, closed, i], row


# ---- a patcher that forgets at newlines


@pytest.mark.parametrize("kind", ["entropy", "monotonic"])
def test_a_patcher_that_resets_streams_as_it_runs_in_full(kind):
    """Its context begins at the last newline, however the text is cut and rolled back."""
    model, patcher = make_models(2, kind=kind)
    patcher.config.reset_at_newline = patcher.model.config.reset_at_newline = True
    ids = random_ids(700, 4)
    ids[5::17] = NEWLINE
    H = patcher.entropies(ids)
    for i in (3, 5, 30, 31, 699):
        start = max([0, *(j for j in range(i + 1) if ids[j] == NEWLINE)])
        alone = entropy(patcher.model(ids[None, start : i + 1]))[0, -1]
        assert H[i] == pytest.approx(alone.item(), abs=1e-12), i
    full = in_full(model, patcher, ids)
    for seed in range(3):
        walk = Walk(model, patcher, ids[:150], seed)
        assert torch.allclose(walk.run(), full[:150], atol=1e-9)
    stream = Stream(model, patcher, max_rollback=8, max_rows=16)
    logits = [stream.extend(piece.tolist()) for piece in ids.split(5)]
    assert torch.allclose(torch.cat(logits), full, atol=1e-9)
    assert len(stream.known) < 400, "known bytes should have been let go"
