"""fast/stream.py: however a text is taken in and asked about, a Stream answers as Prefix does.

With the same counters. A difference of more than rounding is named: what the Stream was asked, and
what of the plain machine it does not follow.
"""

import gc
import random
import weakref

import pytest
import torch
import torch.nn.functional as F
from conftest import (
    FAST,
    count_passes,
    fast_of,
    fixed_of,
    make_models,
    plain_of,
    random_ids,
    seen_by_hooks,
    tensor_of,
)

from data import BOS, EOS, MASK, OFFSET, encode
from fast import __main__ as way
from fast.cache import Cache
from fast.fixed import FixedStream
from fast.load import forced
from fast.stream import Stream
from generate import Prefix, Sampling
from layers import CLEAN, Rows, mask_of

CLOSE = 1e-9  # in nats and in numbers of rows; logits of these models are of size one to ten
ORIGINAL = dict(byte_states=True, double_residual=True, global_norm=False, encoder_layers=2)


def apart(got, expected):
    """The largest difference, infinite where shapes differ or a number is none."""
    if got.shape != expected.shape or not got.isfinite().all():
        return float("inf")
    return float((got - expected).abs().max()) if got.numel() else 0.0


@torch.inference_mode()
def poison(stream):
    """Make NaN of all rows that a Stream has to write before it may read them.

    One of fixed shapes reads all, and gives some no share; no share of NaN is NaN. What it has
    foreseen is written.
    """
    if getattr(stream, "foreseen", None):
        return
    poison = 1e6 if isinstance(stream, FixedStream) else float("nan")
    length = stream.length
    last = stream.known[-1]
    each = stream.model.decoder.latent_shape[1]
    ahead = max(stream.decoded, length) + len(stream.peeked)
    for cache, first in (
        (stream.entropy_cache, length),
        (stream.encoder_cache, ahead if stream.model.config.byte_states else last.open_start),
        (stream.global_cache, last.patches_closed),
        (stream.decoder_cache, stream.decoded + len(stream.peeked)),
        (stream.latent_cache, last.patches_closed * each),
    ):
        cache.rows[..., max(0, first - cache.base) :, :] = poison


@torch.inference_mode()
def answer(state, call, *given):
    """What a state answers; of ids that are drawn one by one the logits, each with its id."""
    answered = getattr(state, call)(*given)
    if call in ("alone", "chained"):
        answered = torch.cat([F.pad(logits, (0, 1), value=id_) for id_, logits in answered])
    return answered if answered is None else answered.cpu()


class Walk:
    """Takes a text into Streams and a Prefix in random pieces, with questions and steps back.

    All are asked the same, and each answer, boundary and counter of a Stream is compared.
    """

    def __init__(self, models, ids, seed=0, counted=True, max_rollback=12, max_rows=40):
        """models: (model, patcher), plain; ids (N,): the text. counted: no call asks for more rows
        than a pass takes, so that counters must agree too.
        """
        self.rng = random.Random(seed)
        self.counted = counted
        self.longest = 8 if counted else 3 * max_rows
        self.ids = ids.tolist()
        self.plain = plain_of(*models).state()
        self.fast = {}
        for name, make in {**FAST, "fixed": fixed_of}.items():
            if name == "fixed" and models[0].config.byte_states:
                continue  # has no fixed shapes
            machine = make(*models)
            kind = machine.kind
            bounds = {"max_rollback": max_rollback, "max_rows": max_rows}
            self.fast[name] = kind(machine.model, machine.patcher, **bounds)
            machine.model.decoder.register_forward_pre_hook(self.count_rows)
        self.any = self.fast["folded"]  # the Streams differ in their numbers alone
        self.whole = plain_of(*models).state().extend(self.ids).cpu()  # (N, V)
        self.behind = []  # what was asked about behind the text,
        self.known = None  # and is known still: asked again it costs a Stream nothing

    def count_rows(self, _, given):
        """No decoder pass of a Stream has more rows than it takes."""
        assert given[0].shape[1] <= self.any.max_rows

    def run(self):
        while self.any.length < len(self.ids):
            self.take_in()
            for _ in range(self.rng.choice([0, 0, 1, 1, 2, 4])):
                self.rng.choice([*[self.peek] * 6, self.go_on, self.draft])()
            if self.rng.random() < 0.4:
                self.step_back()
                for _ in range(self.rng.choice([0, 1, 2])):
                    self.peek()
        return self

    def room(self):
        """How many rows the next decoder pass of a Stream takes beside those that it owes."""
        return self.any.max_rows - (self.any.length - self.any.decoded)

    def take_in(self):
        """The next piece of the text, with its logits or without."""
        s = self.any
        n = self.rng.choice([1, 1, 1, 2, 3, 7, s.max_rows, self.longest])
        n = min(n, len(self.ids) - s.length)
        if self.counted:
            n = min(n, self.room())
        piece = self.ids[s.length : s.length + n]
        self.known = None
        # Where nothing is free, there must be a pass of the decoder.
        full = self.counted and n == self.room()
        if full or self.rng.random() < 0.5:
            logits = self.ask("model.BLT.forward", "extend", piece)
            expected = self.whole[s.length - n : s.length]
            assert apart(logits, expected) < CLOSE, "generate.Prefix does not follow model.BLT"
        else:
            self.ask("generate.Prefix.advance", "advance", piece)

    def peek(self):
        """Ids behind the text, more of them than before, or others; a block behind those."""
        s = self.any
        rng = self.rng
        if rng.random() < 0.3:
            self.behind = self.behind[: rng.randrange(len(self.behind) + 1)]
        more = [OFFSET + rng.randrange(256) for _ in range(rng.randrange(4))]
        cells = [rng.choice([MASK, 104, 107]) for _ in range(rng.randrange(6))]
        if s.model.config.byte_states or rng.random() < 0.4:
            cells = []  # no block: a hidden cell has no state
        ids = self.behind + more
        if len(ids) > s.max_rollback:
            return
        if not cells and ids in ([], self.known):
            return
        if self.counted and len(ids) + len(cells) > self.room():
            return
        self.behind = self.known = ids
        self.ask("model.BLT.rows", "peek", ids, cells)

    def go_on(self):
        """The decoder alone, with every way to draw: by chance, by the best, from the top."""
        s = self.any
        rng = self.rng
        ids = [OFFSET + rng.randrange(256) for _ in range(rng.choice([1, 1, 1, 2]))]
        n = min(rng.choice([1, 2, 3, 5]), s.max_rollback - 2)
        if ids == self.known:
            return
        sampling = Sampling(rng.choice([0.0, 0.8]), rng.choice([1.0, 1.0, 0.7]), seed=n)
        self.ask_for_draft(ids, sampling.noise(n), sampling)

    def draft(self):
        """Bytes of the text itself are drafted, so that what is taken in next may be foreseen."""
        s = self.any
        n = self.rng.choice([1, 2, 3, s.max_rollback])
        ids, drafted = self.ids[s.length :][:1], self.ids[s.length + 1 :][:n]
        if not drafted or ids == self.known:
            return
        if self.rng.random() < 0.3:  # and the last of them may be another
            drafted[-1] = OFFSET
        self.ask_for_draft(ids, forced(drafted), Sampling())

    def ask_for_draft(self, ids, noise, sampling):
        """By the decoder alone, or by the chained head."""
        if self.counted and len(ids) + len(noise) > self.room():
            return
        self.behind = self.known = []
        if self.any.model.config.chain_width and self.rng.random() < 0.5:
            self.ask("generate.Prefix.chained", "chained", ids, ids[-1], noise, sampling)
        else:
            self.ask("generate.Prefix.alone", "alone", ids, noise, sampling)

    def step_back(self):
        s = self.any
        length = self.rng.randrange(max(1, s.furthest - s.max_rollback), s.length + 1)
        self.known = None
        self.ask("generate.Prefix.rollback", "rollback", length)

    def ask(self, follows, call, *given):
        """One call of all states -> what the plain one answers."""
        shown = ", ".join(map(str, given))
        question = f"{call}({shown}) at length {self.any.length}"
        expected = answer(self.plain, call, *given)
        for name, stream in self.fast.items():
            said = f"fast.stream ({name}) does not follow {follows}: {question}"
            got = answer(stream, call, *given)
            if expected is not None:
                assert apart(got, expected) < CLOSE, f"{said}: {apart(got, expected):.1e} apart"
            assert stream.length == self.plain.length, said
            held = range(stream.forgotten, stream.length)
            closes = [stream.closes(i) for i in held]
            assert closes == self.plain.closed[stream.forgotten :], f"{said}: other patches"
            if self.counted:
                assert stream.counters == self.plain.counters, f"{said}: other counters"
            poison(stream)
        return expected


SHAPES = [(1, 1), (4, 2.5), (8, 1.3), (8, 4), (8, 7.5)]  # max_patch, bytes of a mean one


def walk(seed, window, max_patch, mean, n=100, counted=True, **changes):
    shape = dict(window=window, global_window=7, max_patch=max_patch, patcher_window=window // 2)
    if not changes.get("byte_states"):
        shape.update(block_size=12, chain_width=6)  # of as many cells as a draft has at most
    models = make_models(seed, mean=mean, **shape, **changes)
    bounds = {} if counted else {"max_rollback": 3, "max_rows": 16}
    Walk(models, random_ids(n, seed), seed, counted, **bounds).run()


@pytest.mark.parametrize("max_patch, mean", SHAPES)
@pytest.mark.parametrize("window", [9, 24])
def test_fast_stream_follows_the_plain_state(window, max_patch, mean):
    """Any split into calls, any rollbacks, any peeks between, all of which leave no trace."""
    walk(0, window, max_patch, mean)


@pytest.mark.parametrize("max_patch, mean", [(1, 1), (8, 4)])
def test_fast_stream_follows_the_plain_state_in_calls_longer_than_a_pass(max_patch, mean):
    """Guards: latents let go that rows still owed had to read.

    Such a call takes several passes, and so do many bytes taken in without their logits.
    """
    for seed in range(2):
        walk(seed, 9, max_patch, mean, n=300, counted=False)


@pytest.mark.parametrize("max_patch, mean", [(1, 1), (8, 4)])
def test_rows_that_are_owed_read_the_latents_of_their_time(max_patch, mean):
    """Guards: latents let go that owed rows had to read, once the buffer was full.

    Many short pieces are taken in before the decoder runs again.
    """
    models = make_models(0, window=9, max_patch=max_patch, mean=mean)
    stream = stream_of(models, max_rollback=2, max_rows=16)
    ids = random_ids(241, 5).tolist()
    whole = Prefix(*models).extend(ids)
    stream.extend(ids[:1])
    for start in range(1, 240, 16):
        for low in range(start, start + 15, 3):
            stream.advance(ids[low : low + 3])
        end = start + 15
        got = stream.extend(ids[end : end + 1])
        assert apart(got, whole[end : end + 1]) < CLOSE
        assert stream.counters.decoder == 1 + end // 16


@pytest.mark.parametrize("max_patch, mean", [(0, 1.1), (0, 4), (0, 40), (0, 1000), (5, 4)])
def test_fast_official_follows_the_plain_state(max_patch, mean):
    """A decoder that starts from byte states, as the original BLT's.

    With patches of any length, far longer than what layers see.
    """
    walk(0, 9, max_patch, mean, **ORIGINAL)


@pytest.mark.more
@pytest.mark.parametrize("max_patch, mean", SHAPES)
@pytest.mark.parametrize("window", [9, 24])
@pytest.mark.parametrize("seed", range(1, 4))
def test_fast_stream_follows_the_plain_state_with_more_seeds(seed, window, max_patch, mean):
    walk(seed, window, max_patch, mean, n=160)
    walk(seed, window, max_patch, mean, n=300, counted=False)


@pytest.mark.more
@pytest.mark.parametrize("max_patch, mean", [(0, 1.1), (0, 4), (0, 40), (0, 1000), (5, 4)])
@pytest.mark.parametrize("window", [9, 24])
@pytest.mark.parametrize("seed", range(1, 3))
def test_fast_official_follows_the_plain_state_with_more_seeds(seed, window, max_patch, mean):
    walk(seed, window, max_patch, mean, n=160, **ORIGINAL)
    walk(seed, window, max_patch, mean, n=300, counted=False, **ORIGINAL)


def test_fast_stream_follows_the_plain_state_where_patches_are_shorter_than_they_may_be():
    model, patcher = make_models(0, max_patch=8, block_size=12, chain_width=6)
    for patcher.config.max_patch in (1, 3):
        Walk((model, patcher), random_ids(100), counted=True).run()


@pytest.mark.parametrize("draft", ["alone", "chained"])
def test_what_was_foreseen_is_of_one_text(draft):
    """A FixedStream has run the passes of a draft as if it came true. Something else does here."""
    models = make_models(0, mean=1.3, block_size=8, chain_width=6)
    states = [make(*models).state() for make in (plain_of, fixed_of)]

    def ask(call, *given):
        expected, got = (answer(state, call, *given) for state in states)
        assert expected is None or apart(got, expected) < CLOSE, (call, given)
        assert states[0].counters == states[1].counters

    decided = [104] if draft == "alone" else [104, 104]
    ask("extend", random_ids(20).tolist())
    for calls in (
        [("extend", [104] * 4)],
        [("extend", [104, 107, 104])],
        [("advance", [104] * 2), ("extend", [104] * 2)],
        [("rollback", 12), ("extend", [104] * 4)],
        [("peek", [104, 107]), ("extend", [104] * 3)],
        [("peek", [104], [MASK] * 4), ("extend", [104] * 3)],
        [("alone", [104], forced([107] * 30), Sampling()), ("extend", [104] * 3)],
    ):
        ask(draft, decided[:1], *decided[1:], forced([104] * 5), Sampling())
        assert states[1].foreseen.ids == [104] * 6
        for call, *given in calls:
            ask(call, *given)
        ask("extend", [110])


def test_buffers_that_are_used_again_may_come_from_inference_mode():
    """Guards: training on a GPU ended at its first look, which makes states in both modes."""
    machine = fixed_of(*make_models(0))
    ids = random_ids(20).tolist()
    with torch.inference_mode():
        expected = machine.state().extend(ids)
    again = machine.state()
    assert torch.equal(again.extend(ids), expected)
    [(_, logits)] = again.alone([104], forced([107]), Sampling())
    assert logits.isfinite().any()


def test_a_model_ends_with_what_was_captured_of_it():
    """Without a collection of garbage, which may come while another graph is captured."""
    machine = fixed_of(*make_models(0))
    machine.state().extend(random_ids(20).tolist())
    assert machine.model.idle
    known = weakref.ref(machine.model)
    gc.collect()
    gc.disable()
    try:
        del machine
        assert known() is None
    finally:
        gc.enable()


def test_a_long_rollback_takes_one_of_few_sizes():
    """Guards: buffers and graphs of a GPU for each length of an answer."""
    machine = fixed_of(*make_models(0))
    sizes = {machine.state(max_rollback=n).max_rollback for n in range(1, 200, 7)}
    assert sizes == {72, 128, 256} and machine.state().max_rollback == 72


def test_fast_stream_follows_the_plain_state_in_other_shapes():
    """More layers and vectors a patch than usual, or one of each."""
    more = dict(encoder_layers=2, decoder_layers=3, patch_vectors=3, heads=4, global_width=48)
    walk(1, 12, 6, 3, **more, global_heads=3)
    walk(2, 12, 6, 3, decoder_layers=1, global_layers=1, patch_vectors=1, global_width=32)


def test_fast_stream_follows_the_plain_state_past_several_turns_of_its_buffers():
    models = make_models(2, window=9, global_window=4, patcher_window=5)
    run = Walk(models, random_ids(300, 2), 2, max_rollback=5, max_rows=16).run()
    for name, cache in caches_of(run.any).items():
        assert cache.base > cache.capacity, f"{name} should have turned over, more than once"


@pytest.mark.parametrize("kind", ["monotonic", "stride", "space"])
def test_fast_stream_follows_the_plain_state_with_other_patchers(kind):
    ids = random_ids(100, 1, alphabet=150) - 60  # spaces and punctuation among them
    ids[0] = BOS
    Walk(make_models(1, kind=kind, max_patch=5), ids, 1).run()


def test_eos_in_the_middle_closes_its_patch_in_a_stream_too():
    """A model that goes on behind EOS sees the patches that it was trained on."""
    ids = random_ids(60, 3)
    ids[[7, 8, 21, 40]] = EOS
    run = Walk(make_models(3, max_patch=8, mean=7.5), ids, 3).run()
    assert all(run.any.closes(i) for i in (7, 8, 21, 40) if i >= run.any.forgotten)


def test_fast_stream_follows_the_plain_state_on_a_trained_model(trained, corpus_file):
    ids = tensor_of([BOS, *encode(corpus_file.read_bytes()[3000:3300])])
    Walk(trained, ids).run()


# ---- what a Stream runs, counts and holds


def caches_of(stream):
    """Its five Buffers by name."""
    return {name: cache for name, cache in vars(stream).items() if hasattr(cache, "capacity")}


def extended(stream, ids):
    """A Stream that has taken in ids (N,), in pieces of what a pass takes."""
    for piece in ids.split(stream.max_rows):
        stream.extend(piece.tolist())
    return stream


@seen_by_hooks
@pytest.mark.parametrize("make", FAST.values(), ids=FAST)
def test_counters_of_a_stream_are_passes_that_really_ran(make):
    """A growing draft runs a row at a time, and what was asked just before costs nothing."""
    machine = make(*make_models(1))
    ran = count_passes(machine.model, machine.patcher)
    rows = []
    machine.model.decoder.register_forward_hook(lambda _, given, __: rows.append(given[0].shape[1]))
    stream = machine.state()
    ids = random_ids(60, 1).tolist()
    stream.extend(ids[:20])
    stream.advance(ids[20:30])
    for n in range(1, 5):
        stream.peek(ids[30 : 30 + n])
        stream.peek(ids[30 : 30 + n])
    stream.peek(ids[30:33])
    stream.peek(ids[30:34], [MASK] * 3)
    stream.rollback(25)
    stream.extend(ids[25:40])
    # Owed and asked for together, one more each, other ids than before, one more and a block
    assert rows == [20, 11, 1, 1, 1, 3, 4, 15]
    counters = stream.counters
    assert ran["decoder"] == counters.decoder == len(rows)
    assert ran["entropy"] == counters.entropy == 3
    assert ran["encoder"] == ran["globe"] == counters.encoder_global == 3


def test_a_peek_of_nothing_is_empty():
    """Guards: a Stream that had not peeked before had no rows to cut none from."""
    machine = fast_of(*make_models(0))
    stream = extended(machine.state(), random_ids(9))
    assert stream.peek().shape == (0, 32)
    assert stream.counters.decoder == 1


def test_a_prefill_longer_than_a_pass_takes_several():
    machine = fast_of(*make_models(1))
    stream = Stream(machine.model, machine.patcher, max_rows=16)
    ids = random_ids(50)
    logits = stream.extend(ids.tolist())
    plain = Prefix(*make_models(1))
    assert apart(logits, plain.extend(ids.tolist())) < CLOSE
    assert stream.counters.decoder == stream.counters.entropy == 4
    assert 1 <= stream.counters.encoder_global <= 4
    assert plain.counters.decoder == plain.counters.entropy == plain.counters.encoder_global == 1
    assert stream.counters.bytes_advanced == plain.counters.bytes_advanced == 50
    assert stream.counters.patches_closed == plain.counters.patches_closed > 4


@pytest.mark.parametrize("original", [{}, ORIGINAL], ids=["ours", "official"])
def test_memory_stays_flat(original):
    machine = fast_of(*make_models(0, max_patch=8, **original))
    stream = machine.kind(machine.model, machine.patcher, max_rollback=8, max_rows=16)
    sizes = []
    held = []
    for _ in range(4):
        extended(stream, random_ids(800, 3))
        sizes.append([cache.rows.numel() for cache in caches_of(stream).values()])
        held.append(len(stream.known))
        assert len(getattr(stream, "states", stream.known)) == len(stream.known)
    assert len(sizes[0]) == 5
    assert all(size == sizes[0] for size in sizes)
    assert max(held) < 200
    assert stream.length == 3200


def test_masks_of_odd_sizes_do_not_pile_up():
    stream = fast_of(*make_models(0)).state()
    for n in range(1, 100):
        stream.entropy_cache.view(0, n)
    assert len(stream.entropy_cache.masks) <= 65


@pytest.mark.parametrize("start, drafted, cells, same", [(0, 5, 0, 0), (3, 4, 6, 0), (30, 6, 6, 4)])
@pytest.mark.parametrize("owed", [0, 1, 5])
def test_the_mask_of_a_cache_is_the_rule_of_the_whole_sequence(start, drafted, cells, same, owed):
    """fast.cache asks layers.sees about rows counted from the pass; the model about positions.

    A text of so many bytes, some of which are owed; drafted bytes, some of which are there.
    """
    window = 8
    owed = 0 if same else min(owed, start)
    last = start + drafted + cells
    first = start - owed + same
    cache = Cache(1, 1, 4, window, 4, 16, 10000.0, torch.zeros(1))
    view = cache.view(first, last - first, start, cells)
    position = torch.arange(last)
    behind = position >= start
    draft = behind & (position < start + drafted)
    rows = Rows(position, torch.where(behind, start, CLEAN), draft)
    whole = mask_of(rows, window)[first:]
    seen = view.past.shape[-2]
    assert not whole[:, : last - seen].any(), "the pass should hold all that its rows see"
    assert torch.equal(view.mask == 0, whole[:, last - seen :])


# ---- rollbacks


def stream_of(models, **bounds):
    """A Stream of the fast machine with other bounds than usual."""
    machine = fast_of(*models)
    return Stream(machine.model, machine.patcher, **bounds)


def test_rollback_beyond_reach_is_refused():
    stream = extended(stream_of(make_models(0), max_rollback=5), random_ids(30))
    for length in (24, 0, 31):
        with pytest.raises(ValueError, match="reaches 5 bytes"):
            stream.rollback(length)
    stream.rollback(25)
    assert stream.length == 25


def test_rollbacks_in_a_row_reach_no_further_than_one():
    """Guards: a limit measured from the present length.

    Rollbacks in a row then passed what the caches hold, and wrong entries were read silently.
    """
    models = make_models(0, window=9, global_window=4)
    ids = random_ids(200)
    stream = extended(stream_of(models, max_rollback=5, max_rows=16), ids)
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
    whole = Prefix(*models).extend(ids.tolist())
    assert apart(stream.extend(ids[195:].tolist()), whole[195:]) < CLOSE
    stream.extend(random_ids(9, 4)[1:].tolist())  # beyond the old furthest length: 208
    stream.rollback(203)
    with pytest.raises(ValueError, match=r"furthest.*208"):
        stream.rollback(202)


def test_drafts_take_nothing_from_what_a_rollback_may_reach():
    """A long self-draft turns the decoder's buffer over as real bytes do; then all goes back."""
    models = make_models(0, window=9, global_window=4)
    stream = stream_of(models, max_rollback=5, max_rows=8)
    ids = random_ids(200)
    whole = Prefix(*models).extend(ids.tolist())
    stream.extend(ids[:6].tolist())
    for i in range(6, 120):
        stream.extend(ids[i : i + 1].tolist())
        for n in range(1, 6):
            stream.peek([104] * n)
        stream.rollback(i - 4)
        got = stream.extend(ids[i - 4 : i + 1].tolist())
        assert apart(got, whole[i - 4 : i + 1]) < CLOSE, i


# ---- what is refused


@pytest.mark.parametrize("ids, block", [(6, 0), (0, 9), (5, 4)])
def test_a_peek_of_more_rows_than_a_pass_takes_is_refused(ids, block):
    stream = extended(stream_of(make_models(0), max_rollback=5, max_rows=8), random_ids(30))
    with pytest.raises(ValueError, match=f"{ids + block} decoder rows, this stream takes 8 at"):
        stream.peek([104] * ids, [MASK] * block)
    assert stream.peek([104] * 5, [MASK] * 3).shape == (8, 32)


def test_a_batch_is_refused():
    for batch in ([[BOS, 100], [BOS, 101]], [torch.tensor([BOS, 100])]):
        for call in ("extend", "advance"):
            with pytest.raises(ValueError, match="one sequence"):
                getattr(fast_of(*make_models(0)).state(), call)(batch)


def test_patches_longer_than_the_model_takes_are_refused():
    model, _ = make_models(0, max_patch=4)
    _, patcher = make_models(0, max_patch=8)
    with pytest.raises(ValueError, match="patches of 8 bytes, the model takes 4"):
        fast_of(model, patcher).state()


# ---- run


def test_it_shows_a_texts_way_through_the_model(trained_file, capsys):
    """A row for each byte: what closes, which latent it reads, passes so far of the three parts."""
    way.main(["--text", "def main():", "--checkpoint", str(trained_file)])
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line][-12:]
    assert rows[0].startswith("BOS") and "closes" in rows[0] and rows[1].startswith("d ")
    closed = 0
    for i, row in enumerate(rows, 1):
        closed += "closes" in row
        numbers = [int(word) for word in row.split() if word.isdigit()]
        assert numbers[:4] == [closed, i, closed, i], row
