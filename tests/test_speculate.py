"""speculate.py: greedy output is plain BLT's byte for byte, sampled output has its distribution.

Drafts leave nothing behind, and both machines do the same, round for round.
"""

import functools
import itertools
import math
import random
import statistics
from collections import Counter
from dataclasses import replace

import pytest
import torch
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

import speculate as speculating
from data import BOS, EOS, MASK, OFFSET, PAD, encode
from diffusion import Unmask
from generate import Prefix, Sampling, distribution, generate
from measure import ideas
from measure.quality import near_tie
from speculate import (
    MODES,
    BlockDrafter,
    Draft,
    Drafting,
    LookupDrafter,
    SelfDrafter,
    generate_bltdv,
    generate_blts,
    generate_lookup,
    run_mode,
    settled,
    speculate,
    verify,
)
from support.generation import Watch
from support.ngrams import LastPlaces
from support.terminal import BadInput

ONE_STEP = Unmask("one-step", None)
CONFIDENCE = Unmask("confidence", 0.3)
ENTROPY = Unmask("entropy", 1.5)
CHAINED = Unmask("chained", 0.01)
ENDLESS = Sampling(ignore_eos=True)


class Recorder(Watch):
    """Remembers all that it is told, and which of the bytes taken in for good close a patch."""

    def __init__(self):
        self.told = []

    def begin(self, state):
        self.told.append(("begin", state.length))

    def bytes(self, ids):
        self.told.append(("bytes", ids))

    def step(self, ids, masked):
        self.told.append(("step", ids, masked))

    def draft(self, ids):
        self.told.append(("draft", ids))

    def round(self, state, drafted, accepted, following):
        closes = [state.closes(i) for i in range(state.length - accepted - 1, state.length)]
        self.told.append(("round", closes, drafted, accepted, following))

    def all_of(self, kind):
        """All of one kind that it was told."""
        return [told[1:] for told in self.told if told[0] == kind]


def verified_modes(draft_sizes, block_sizes):
    """Each verified mode with several sizes and rules: {name: a sampler to call}."""
    samplers = {}
    for k in draft_sizes:
        samplers[f"blts {k}"] = functools.partial(generate_blts, draft_size=k)
    samplers["blts until unsure"] = functools.partial(generate_blts, draft_size=12, alpha=0.1)
    for K in block_sizes:
        for rule in (ONE_STEP, CONFIDENCE, ENTROPY, CHAINED):
            sampler = functools.partial(generate_bltdv, block_size=K, unmask=rule)
            samplers[f"bltdv {K} {rule.rule}"] = sampler
    copy = functools.partial(generate_bltdv, block_size=K, unmask=CHAINED, copy=11)
    samplers["bltdv copy"] = copy
    samplers["lookup"] = functools.partial(generate_lookup, draft_size=6)
    return samplers


FEW = verified_modes((4,), (8,))
MANY = verified_modes((1, 2, 4, 8, 16), (1, 3, 8))


FOLDED = {"folded": fast_of}


def check_both_machines(models, prompt, n, samplers, sampling=ENDLESS, plain=None, fast=FOLDED):
    """Every mode does the same on all machines, round for round.

    plain: what it has to write. fast: the machines beside the plain one.
    """
    for name, sampler in samplers.items():
        expected = Recorder()
        # A Sampling of its own for each run: its generator moves on.
        on_prefix = sampler(Prefix(*models), prompt, n, sampling=replace(sampling), watch=expected)
        spent = on_prefix.counters
        assert plain is None or on_prefix.ids == plain, f"{name} does not follow plain BLT"
        assert spent.encoder_global <= spent.rounds, name
        for folded, make in fast.items():
            state = make(*models).state()
            watch = Recorder()
            made = sampler(state, prompt, n, sampling=replace(sampling), watch=watch)
            said = f"{name} on fast.stream ({folded}) does not follow that on generate.Prefix"
            assert made.ids == on_prefix.ids, said
            assert watch.told == expected.told, said
            assert made.counters == spent, said


# ---- greedy bytes

SHAPES = [(0, 8, 3, 16), (1, 4, 2, 9), (2, 1, 1, 24), (3, 8, 7, 30)]


def models_of(seed, max_patch, mean, window):
    """Random models that can draft in every way."""
    shape = {"window": window, "max_patch": max_patch, "mean": mean}
    return make_models(seed, **shape, block_size=8, chain_width=6)


@pytest.mark.parametrize("seed, max_patch, mean, window", SHAPES)
def test_fast_verified_modes_write_what_plain_blt_does(seed, max_patch, mean, window):
    """Random float64 weights have tiny margins: a patch that a draft closed too early shows."""
    models = models_of(seed, max_patch, mean, window)
    prompt = random_ids(30, seed)[1:].tolist() if seed % 2 else []
    plain = generate(Prefix(*models), prompt, 14, sampling=ENDLESS).ids
    check_both_machines(models, prompt, 14, FEW, plain=plain)


@pytest.mark.more
@pytest.mark.parametrize("seed, max_patch, mean, window", SHAPES)
@pytest.mark.parametrize("length", [0, 30])
def test_fast_verified_modes_write_what_plain_blt_does_in_all_sizes(
    seed, max_patch, mean, window, length
):
    models = models_of(seed + 10, max_patch, mean, window)
    prompt = random_ids(1 + length, seed)[1:].tolist()
    plain = generate(Prefix(*models), prompt, 50, sampling=ENDLESS).ids
    every = {**FAST, "fixed": fixed_of}
    check_both_machines(models, prompt, 50, MANY, plain=plain, fast=every)


def test_fast_verified_modes_write_what_plain_blt_does_on_a_trained_model(trained):
    prompt = encode(b"        self.")
    plain = generate(fast_of(*trained).state(), prompt, 16).ids
    check_both_machines(trained, prompt, 16, FEW, Sampling(), plain)


@pytest.mark.more
@pytest.mark.parametrize("prompt", [b"", b"        self.", b"\xff\xfe"])
def test_fast_verified_modes_write_what_plain_blt_does_on_a_trained_model_in_all_sizes(
    trained, prompt
):
    prompt = encode(prompt)
    plain = generate(Prefix(*trained), prompt, 60).ids
    check_both_machines(trained, prompt, 60, MANY, Sampling(), plain, FAST)


@pytest.mark.parametrize(
    "temperature, top_p", [(0.7, 0.8), pytest.param(1.0, 1.0, marks=pytest.mark.more)]
)
def test_fast_verified_modes_sample_what_those_on_the_plain_state_do(temperature, top_p):
    """From one seed: every draw and every verification sees the same numbers."""
    sampling = Sampling(temperature, top_p, ignore_eos=True, seed=3)
    check_both_machines(models_of(5, 8, 3, 16), [104], 14, FEW, sampling)


def test_eos_and_the_byte_budget_hold_to_the_byte():
    models = make_models(4, block_size=8, chain_width=6)
    head = models[0].decoder.head.weight
    with torch.no_grad():
        head[EOS] = head[104] * 1.8
    machine = fast_of(*models)
    ended = []
    for prompt in range(100, 103):
        plain = generate(machine.state(), [prompt], 40).ids
        ended.append(len(plain) < 40)
        for n in (1, 2, 40):
            for name, sampler in FEW.items():
                assert sampler(machine.state(), [prompt], n).ids == plain[:n], name
    assert any(ended) and not all(ended)


def test_a_stop_inside_a_draft_ends_the_output_there():
    """As plain BLT ends: what was drafted and accepted behind it is not written."""
    models = make_models(0, block_size=8, chain_width=6)
    machine = fast_of(*models)
    whole = generate(machine.state(), [104], 40, sampling=ENDLESS).ids
    for last in {whole[3], whole[17], whole[30]}:
        sampling = Sampling(ignore_eos=True, stop=(last,))
        expected = whole[: whole.index(last)]
        assert generate(machine.state(), [104], 40, sampling=sampling).ids == expected
        for name, sampler in FEW.items():
            watch = Recorder()
            made = sampler(machine.state(), [104], 40, sampling=sampling, watch=watch)
            assert made.ids == expected, name
            assert sum((ids for (ids,) in watch.all_of("bytes")), []) == expected, name


# ---- what counts, and what is left behind


@seen_by_hooks
@pytest.mark.parametrize("make", FAST.values(), ids=FAST)
def test_counters_equal_passes_really_run(make):
    machine = make(*make_models(1, block_size=8, chain_width=6))
    ran = count_passes(machine.model, machine.patcher)
    for name, sampler in FEW.items():
        made = sampler(machine.state(), [100, 101, 102], 24, sampling=ENDLESS)
        spent = made.counters
        prefill = spent.prefill
        assert ran["decoder"] == spent.decoder + prefill["decoder"], name
        assert ran["entropy"] == spent.entropy + prefill["entropy"], name
        assert ran["encoder"] == spent.encoder_global + prefill["encoder_global"], name
        assert ran["globe"] == ran["encoder"], name
        assert sum(spent.lengths.values()) == spent.rounds, name
        assert sum(k * n for k, n in spent.lengths.items()) == spent.accepted <= spent.drafted, name
        assert len(made.ids) == 24 == 1 + spent.accepted + spent.rounds, name
        ran.update(dict.fromkeys(ran, 0))


class Adversary:
    """Drafts bytes that are random, all wrong, all right, special, or right for a while."""

    def __init__(self, kind, plain):
        """plain: what plain BLT writes."""
        self.kind = kind
        self.plain = plain
        self.rng = random.Random(0)

    def draft(self, state, text, limit):
        self.state = state
        following = self.plain[len(text) - 2 :]
        drafts = {
            "random": [self.rng.randrange(260) for _ in range(7)],
            "wrong": [(x - 4 + 1) % 256 + 4 for x in following],
            "right": following,
            "special": [EOS, MASK, PAD, BOS] * 2,
            "half": following[:2] + [MASK, EOS, BOS],
        }
        return Draft(drafts[self.kind][: min(7, limit)])


@pytest.mark.parametrize("kind", ["random", "wrong", "right", "special", "half"])
def test_drafts_of_any_bytes_change_nothing_and_leave_the_state_as_new(trained, kind):
    """Across patch boundaries, and with EOS and special ids among them."""
    for machine in (plain_of(*trained), fast_of(*trained)):
        plain = generate(machine.state(), [104], 40, sampling=ENDLESS).ids
        adversary = Adversary(kind, plain)
        made = speculate(machine.state(), [104], 40, adversary, ENDLESS, Watch())
        assert made.ids == plain
        expected = {"right": made.counters.drafted, "wrong": 0, "special": 0}
        assert made.counters.accepted == expected.get(kind, made.counters.accepted)
        used = adversary.state
        fresh = machine.state()
        fresh.extend([BOS, 104, *plain[:-1]])
        assert used.length == fresh.length == 41
        assert [used.closes(i) for i in range(41)] == [fresh.closes(i) for i in range(41)]
        assert torch.allclose(fresh.extend(plain[-1:]), used.extend(plain[-1:]), atol=1e-9)
        assert torch.allclose(fresh.peek([104, 105]), used.peek([104, 105]), atol=1e-9)


def test_a_watch_sees_every_round():
    """What was drafted, what of it was accepted, the model's own byte, and all bytes for good."""
    model, patcher = make_models(1, block_size=8, chain_width=6)
    watch = Recorder()
    how = {"block_size": 8, "unmask": ONE_STEP, "sampling": ENDLESS, "watch": watch}
    made = generate_bltdv(fast_of(model, patcher).state(), [104], 40, **how)
    closes = patcher.closes(tensor_of([BOS, 104, *made.ids])).tolist()
    rounds = watch.all_of("round")
    assert watch.told[0] == ("begin", 2)
    assert watch.told[1] == ("bytes", made.ids[:1])
    assert watch.all_of("draft") == [(drafted,) for _, drafted, _, _ in rounds]
    assert len(rounds) == made.counters.rounds >= len(watch.all_of("step")) > 0
    text = made.ids[:1]
    for closed, drafted, accepted, following in rounds:
        at = len(text) - 1  # the decided byte, which the round took in
        assert closed == closes[2 + at : 3 + at + accepted]
        text += [*drafted[:accepted], following]
    assert text == made.ids
    assert sum((ids for (ids,) in watch.all_of("bytes")), []) == made.ids


# ---- near ties


def parted(at, n=40, prompt=0):
    """A prompt and two outputs of n bytes that part at one place, as ids."""
    ids = random_ids(1 + prompt + n, seed=at)[1:].tolist()
    plain = ids[prompt:]
    other = plain[:at] + [(plain[at] - 4 + 1) % 256 + 4] + plain[at + 1 :]
    return ids[:prompt], plain, other


def far(patcher):
    """A threshold that no entropy, nor a difference of two, is near to."""
    patcher.config.threshold = -9.0


def test_near_ties_are_told_from_real_differences():
    model, patcher = make_models(0)
    far(patcher)
    for machine in (plain_of(model, patcher), fast_of(model, patcher)):
        given = (machine, *parted(at=10), ENDLESS)
        assert not near_tie(*given, tolerance=1e-9)
        assert near_tie(*given, tolerance=1e9)


def test_a_near_tie_of_two_bytes_is_seen_where_they_part():
    """The two best logits there decide, and those nowhere else."""
    model, patcher = make_models(0)
    far(patcher)
    machine = plain_of(model, patcher)
    head = model.decoder.head.weight
    ties = []
    for at in (10, 11, 30):
        prompt, plain, other = parted(at, prompt=3)
        text = tensor_of([BOS, *prompt, *plain])
        logits = model(text[None], patcher.closes(text)[None])[0, len(prompt) + at]
        best, second = logits.topk(2).indices
        given = (machine, prompt, plain, other, ENDLESS)
        before = near_tie(*given)
        kept = head[second].clone()
        with torch.no_grad():
            head[second] = head[best]
            ties.append((before, near_tie(*given)))
            head[second] = kept
    assert ties == [(False, True)] * 3
    # One output may be shorter: what ended it stands against the other's next byte.
    assert not near_tie(machine, [], plain, plain[:20], ENDLESS)


def test_banned_ids_make_no_near_tie():
    """Guards: PAD, BOS and MASK ranked beside the best byte, though none can be written.

    EOS counts unless it is ignored.
    """
    model, patcher = make_models(0)
    far(patcher)
    machine = plain_of(model, patcher)
    _, plain, other = parted(at=10)
    text = tensor_of([BOS, *plain[:10]])
    best = model(text[None], patcher.closes(text)[None])[0, -1].argmax()
    head = model.decoder.head.weight
    with torch.no_grad():
        head[[PAD, BOS, MASK]] = head[best].clone()
    assert not near_tie(machine, [], plain, other, ENDLESS)
    with torch.no_grad():
        head[EOS] = head[best]
    assert not near_tie(machine, [], plain, other, ENDLESS)
    assert near_tie(machine, [], plain, other, Sampling())


@pytest.mark.parametrize("kind", ["entropy", "monotonic"])
@pytest.mark.parametrize("length", [0, 5])
def test_a_boundary_that_rounding_decides_is_seen_however_far_back(kind, length):
    """Guards: only the last 16 bytes looked at, and H compared with θ for differences too.

    A boundary moved by rounding changes everything behind it; one behind the difference nothing.
    """
    model, patcher = make_models(1, kind=kind)
    prompt, plain, other = parted(at=60, n=80, prompt=length)
    H = patcher.entropies(tensor_of([BOS, *prompt, *plain])).tolist()
    scores = H
    if kind == "monotonic":
        scores = [math.inf] + [b - a for a, b in zip(H, H[1:])]
    first = 1 + length
    part = first + 60
    machine = plain_of(model, patcher)

    def tie_at(score):
        patcher.config.threshold = score + 5e-7
        return near_tie(machine, prompt, plain, other, ENDLESS, tolerance=1e-6)

    def alone(score, others):
        return min(abs(score - other) for other in others) > 1e-5

    for i in (first, first + 3, part - 30, part - 17, part - 1):
        assert tie_at(scores[i]), i
    # From where they part on it is not the same text; within the prompt both had the same pass.
    elsewhere = [part, part + 7] + [2] * (length > 3)
    for i in elsewhere:
        assert alone(scores[i], scores[first:part]) and not tie_at(scores[i]), i
    if kind == "monotonic":
        entropies = [H[i] for i in (part - 1, part - 9, part - 20) if alone(H[i], scores)]
        assert entropies and not any(map(tie_at, entropies)), "an entropy is no difference"


def test_patchers_without_entropies_have_no_ties():
    machine = plain_of(*make_models(1, kind="stride"))
    assert not near_tie(machine, *parted(at=10), ENDLESS, tolerance=1e-9)


# ---- sampling


@pytest.mark.parametrize("drafted_by", ["distribution", "distribution that may stop", "bytes"])
@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.7, 0.9)])
def test_verify_keeps_the_distribution(drafted_by, temperature, top_p):
    """Two symbols of a vocabulary of five, against the enumerated distribution.

    Chi-square with 24 degrees of freedom. How long a draft is may depend on its bytes.
    """
    ids = torch.arange(97, 102)
    generator = torch.Generator().manual_seed(5)

    def some(*shape):
        logits = torch.full((*shape, 260), -torch.inf)
        logits[..., ids] = 1.5 * torch.randn(*shape, 5, generator=generator)
        p = distribution(logits.view(-1, 260), Sampling(temperature, top_p))
        return p.view(*shape, 260)

    # p of byte 1, of byte 2 after each byte 1, of a free byte; what is drafted from
    first = some(1)[0]
    then = some(5)
    last = some(1)
    q = some(2)
    sampling = Sampling(temperature, top_p, seed=1)
    counts = Counter()
    trials = 3000

    def drawn(p):
        return torch.multinomial(p, 1, generator=sampling.generator)[..., 0].tolist()

    for _ in range(trials):
        drafted = [98, 99]
        drafted_from = None
        if drafted_by != "bytes":
            drafted = drawn(q)
            drafted_from = q
        p = torch.stack([first, then[drafted[0] - 97], last[0]])
        if drafted_by == "distribution that may stop" and drafted[0] in (97, 99):
            p, drafted, drafted_from = p[:2], drafted[:1], q[:1]
        accepted, following = verify(p, drafted, drafted_from, sampling)
        out = drafted[:accepted] + [following]
        if len(out) == 1:
            out.append(drawn(then[out[0] - 97]))
        counts[tuple(out[:2])] += 1
    chi_square = 0
    cells = 0
    for a in range(97, 102):
        for b in range(97, 102):
            expected = (first[a] * then[a - 97][b]).item() * trials
            assert expected > 0 or not counts[a, b]
            if expected > 0:
                chi_square += (counts[a, b] - expected) ** 2 / expected
                cells += 1
    assert chi_square < cells + 4 * (2 * cells) ** 0.5, "beyond four standard deviations"


def test_verify_keeps_more_than_byte_by_byte():
    """Three bytes of a vocabulary of three: how far drafts are kept, against what is worked out.

    Byte by byte (Algorithm 2) a draft is kept to its byte j with the product of min(1, p/q).
    """
    generator = torch.Generator().manual_seed(2)
    # Of the bytes after each prefix of 0 to 3 others, what the model says and what is drafted from
    p = {prefix: torch.rand(3, generator=generator) for prefix in prefixes(3)}
    p = {prefix: row / row.sum() for prefix, row in p.items()}
    q = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.2, 0.7], [0.3, 0.4, 0.3]])
    whole = alone = 0.0  # expected bytes that are kept
    for draft in itertools.product(range(3), repeat=3):
        chance = math.prod(q[j, x].item() for j, x in enumerate(draft))
        keep = one = 1.0
        for j, x in enumerate(draft):
            ratio = (p[draft[:j]][x] / q[j, x]).item()
            keep = min(1.0, keep * ratio)
            one *= min(1.0, ratio)
            whole += chance * keep
            alone += chance * one
    assert whole > 1.05 * alone
    sampling = Sampling(1.0, seed=3)
    trials = 4000
    kept = []
    for _ in range(trials):
        draft = torch.multinomial(q, 1, generator=sampling.generator)[:, 0].tolist()
        rows = torch.stack([p[tuple(draft[:j])] for j in range(4)])
        kept.append(verify(rows, draft, q, sampling)[0])
    spread = statistics.stdev(kept) / trials**0.5
    assert abs(statistics.mean(kept) - whole) < 4 * spread
    assert statistics.mean(kept) > alone + 4 * spread


def prefixes(longest):
    """All sequences of up to so many of three symbols."""
    for length in range(longest + 1):
        yield from itertools.product(range(3), repeat=length)


def test_greedy_verification_asks_no_q():
    """The model's own bytes are accepted, and no others, whatever they were drawn from."""
    own = [100, 101, 102]
    p = torch.zeros(3, 260).scatter_(1, torch.tensor(own)[:, None], 5.0)
    for q in (None, torch.full((2, 260), 1 / 260), torch.zeros(2, 260)):
        for drafted, expected in (
            ([100, 101], (2, 102)),
            ([100, 7], (1, 101)),
            ([7, 101], (0, 100)),
        ):
            assert verify(p, drafted, q, Sampling()) == expected


SAMPLERS = {
    "blts": functools.partial(generate_blts, draft_size=2),
    "one-step": functools.partial(generate_bltdv, block_size=4, unmask=ONE_STEP),
    "chained": functools.partial(generate_bltdv, block_size=4, unmask=CHAINED, copy=0),
    "confidence": functools.partial(generate_bltdv, block_size=4, unmask=CONFIDENCE),
    "copy": functools.partial(generate_bltdv, block_size=4, unmask=CHAINED, copy=4),
    "lookup": functools.partial(generate_lookup, draft_size=2),
}
LONGER = ("one-step", "confidence", "copy", "lookup")


@pytest.mark.parametrize(
    "mode", [pytest.param(m, marks=pytest.mark.more) if m in LONGER else m for m in SAMPLERS]
)
def test_sampling_end_to_end_has_plain_blts_distribution(mode):
    """Low top-p: the first bytes of many runs, in bins, against plain sampling's probabilities."""
    models = make_models(7, block_size=4, chain_width=6)
    machine = fast_of(*models)
    prompt = [100, 104, 100, 104, 100]
    trials = 900
    sampling = Sampling(1.2, 0.35, True)
    exact = Counter()

    def enumerate_all(ids, mass):
        if len(ids) == 3:
            exact[tuple(ids)] += mass
            return
        logits = machine.state().extend([BOS, *prompt, *ids])[-1:]
        p = distribution(logits, sampling)[0]
        for x in p.nonzero()[:, 0].tolist():
            enumerate_all(ids + [x], mass * p[x].item())

    enumerate_all([], 1.0)
    counts = Counter()
    for seed in range(trials):
        of_run = replace(sampling, seed=seed)
        made = SAMPLERS[mode](machine.state(), prompt, 3, sampling=of_run)
        counts[tuple(made.ids)] += 1
    assert set(counts) <= set(exact) and len(exact) > 4
    bins = []
    expected = seen = 0.0
    for key, mass in exact.most_common():
        expected += mass * trials
        seen += counts[key]
        if expected >= 8:
            bins.append((expected, seen))
            expected = seen = 0.0
    last = bins.pop()
    bins.append((last[0] + expected, last[1] + seen))
    chi_square = sum((n - e) ** 2 / e for e, n in bins)
    assert len(bins) > 2
    assert chi_square < len(bins) + 4 * (2 * len(bins)) ** 0.5


@pytest.mark.parametrize("rule", [ONE_STEP, CHAINED], ids=["one-step", "chained"])
@torch.inference_mode()
def test_drafts_and_verification_draw_from_one_stream_of_chance(rule):
    """Guards: a generator of its own for drafts, begun again at the same seed every round.

    Drafts and verification would then see the same numbers, and the text's distribution moves.
    """
    state = fast_of(*make_models(0, block_size=4, chain_width=6)).state()
    state.extend([BOS])
    sampling = Sampling(2.0, 0.9, seed=5)
    drafter = BlockDrafter(4, rule, sampling)
    drafts = set()
    for _ in range(6):
        before = sampling.generator.get_state()
        drafts.add(tuple(drafter.draft(state, [BOS, 104], 4).ids))
        assert not torch.equal(before, sampling.generator.get_state())
    assert len(drafts) > 1


# ---- drafters


def test_lookup_copies_what_followed():
    def copied(text, size):
        return LookupDrafter(size).draft(None, [BOS, *encode(text)], 99)

    assert copied(b"the cat sat; the c", 4) == Draft(encode(b"at s"), None)
    # What follows is cut short, and goes round.
    assert copied(b"the the the", 9) == Draft(encode(b" the the "), None)
    assert copied(b"abc", 4) == Draft([], None)


def searched(text, size, longest, shortest):
    """What a LookupDrafter drafts, searched for in a string of the whole text."""
    data = "".join(map(chr, text))
    for n in range(min(longest, len(data) - 1), shortest - 1, -1):
        found = data.rfind(data[-n:], 0, len(data) - 1)
        if found >= 0:
            return (text[found + n :] * size)[:size]
    return []


@pytest.mark.parametrize("letters", [1, 2, 3, 5, 255])
def test_the_index_of_a_lookup_finds_what_a_search_would(letters):
    """Each round made a string of the whole text: 25 ms for a million bytes."""
    chance = random.Random(letters)
    for _ in range(150):
        shortest = chance.randint(1, 6)
        longest = shortest + chance.randint(0, 10)
        drafter = LookupDrafter(9, longest, shortest)
        text = [BOS]
        while len(text) < 120:
            drafted = drafter.draft(None, text, 9).ids
            assert drafted == searched(text, 9, longest, shortest), (text, longest, shortest)
            # Some of it is accepted, and other bytes follow.
            text += drafted[: chance.randint(0, 9)]
            text += [OFFSET + chance.randint(0, letters) for _ in range(chance.randint(1, 4))]


def test_a_round_of_a_lookup_costs_what_is_new():
    """However long the text: what was read once is not read again."""

    class Counted(list):
        seen = 0

        def __getitem__(self, part):
            found = super().__getitem__(part)
            Counted.seen += len(found) if isinstance(part, slice) else 1
            return found

        def __iter__(self):
            raise AssertionError("it reads the whole text")

    text = Counted(random_ids(20_000).tolist())
    drafter = LookupDrafter(8, longest=16, shortest=6)
    drafter.draft(None, text, 0)
    Counted.seen = 0
    for _ in range(10):
        text += random_ids(4).tolist()
        drafter.draft(None, text, 8)
    assert Counted.seen < 10 * 150


def test_an_index_takes_most_of_a_text_once():
    """A table for each length held every place of the text, 11 times a byte."""
    chance = random.Random(0)
    text = [chance.randint(4, 259) for _ in range(5000)]
    places = LastPlaces(6, 16)
    assert places.behind(text) == len(text)
    assert sum(map(len, places.tables)) < 1.1 * len(text)


@pytest.mark.parametrize("limit", [0, 1, 3])
@torch.inference_mode()
def test_no_drafter_drafts_more_than_it_may(limit):
    """A byte is left for the model's own: with a budget of one nothing is drafted."""
    text = [BOS, *encode(b"the the the the ")]
    state = fast_of(*make_models(0, block_size=8, chain_width=6)).state()
    state.extend(text[:-1])
    drafters = [SelfDrafter(8, 0.0, ENDLESS), LookupDrafter(8)]
    drafters += [BlockDrafter(8, rule, ENDLESS) for rule in (ONE_STEP, CONFIDENCE, CHAINED)]
    drafters.append(speculating.CopyOrBlock(LookupDrafter(8), drafters[-1]))
    for drafter in drafters:
        assert len(drafter.draft(state, text, limit).ids) <= limit, drafter


@pytest.mark.parametrize("sampling", [ENDLESS, Sampling(0.8, 0.9, ignore_eos=True, seed=3)])
@torch.inference_mode()
def test_a_self_draft_stops_where_it_is_unsure(sampling):
    """Behind the first byte with which all of them are less probable than the threshold."""
    text = [BOS, *encode(b"once upon")]

    def drafted(threshold):
        state = fast_of(*make_models(0)).state()
        state.extend(text[:-1])
        again = replace(sampling)  # with the same draws
        return SelfDrafter(12, threshold, again).draft(state, text, 99)

    ids, q = drafted(0.0)
    assert len(ids) == 12
    p = q if sampling.temperature else q.softmax(-1)
    together = p[range(12), ids].cumprod(0)
    for threshold in (1.0, *(together * 1.01).tolist()[:-1]):
        shorter, of_them = drafted(threshold)
        assert len(shorter) == 1 + int((together >= threshold).sum()) == len(of_them)
        assert shorter == ids[: len(shorter)]


@pytest.mark.parametrize("rule", [None, ONE_STEP, CONFIDENCE, CHAINED])
@torch.inference_mode()
def test_a_draft_ends_at_its_eos(rule):
    """EOS may be drafted; what stands behind it never can be part of the output."""
    model, patcher = make_models(0, block_size=8, chain_width=6)
    text = random_ids(20, 2).tolist()

    def drafted():
        state = fast_of(model, patcher).state()
        state.extend(text[:-1])
        drafter = SelfDrafter(8, 0.0, Sampling())
        if rule:
            drafter = BlockDrafter(8, rule._replace(threshold=0.0), Sampling())
        return drafter.draft(state, text, 99).ids

    ids = drafted()
    assert len(ids) == 8 and EOS not in ids
    first = ids.index(ids[3])
    head = model.decoder.head.weight
    head[EOS] = 1.001 * head[ids[3]]
    assert drafted() == ids[:first] + [EOS]


# ---- the table of modes


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_runs_as_its_table_says(mode):
    """run_mode passes on exactly what the sampler takes; defaults are the mode's own."""
    machine = fast_of(*make_models(2, block_size=4, chain_width=6))
    plain = generate(machine.state(), [104], 30, sampling=ENDLESS).ids
    given = Drafting(draft_size=5, block_size=3, unmask="entropy", gamma=0.5)
    for drafting in (None, Drafting(), given):
        made = run_mode(mode, machine.state(), [104], 30, drafting, sampling=ENDLESS)
        assert len(made.ids) == 30
        if MODES[mode].verified or mode == "blt":
            assert made.ids == plain


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_runs_on_the_plain_state_too(mode):
    models = make_models(2, block_size=4, chain_width=6)
    on_prefix = run_mode(mode, Prefix(*models), [104], 20, sampling=ENDLESS)
    made = run_mode(mode, fast_of(*models).state(), [104], 20, sampling=ENDLESS)
    assert (made.ids, made.counters, made.new_bytes) == (on_prefix.ids, on_prefix.counters, 20)


@pytest.fixture
def given_to(monkeypatch):
    """A function (mode, model, **drafting) -> what run_mode gives the sampler of that mode."""

    def given(mode, model, **drafting):
        seen = {}
        spy = replace(MODES[mode], sampler=lambda state, *_, **chosen: seen.update(chosen))
        monkeypatch.setitem(MODES, mode, spy)
        state = fast_of(model, make_models(0)[1]).state()
        run_mode(mode, state, [], 9, Drafting(**drafting))
        return seen

    return given


def test_thresholds_of_modes_are_their_own_unless_given(given_to):
    """Confidence takes α, entropy γ; each mode has its own defaults."""
    model, _ = make_models(0, block_size=4, chain_width=6)
    without, _ = make_models(0, block_size=4)

    def unmask(mode, **given):
        return given_to(mode, model, **given)["unmask"]

    assert given_to("bltdv", without)["unmask"].rule == "one-step"
    assert unmask("bltd") == Unmask("confidence", 0.7)
    assert unmask("bltd", unmask="entropy") == Unmask("entropy", 1.0)
    assert unmask("bltd", alpha=0.2, gamma=9) == Unmask("confidence", 0.2)
    assert unmask("bltd", alpha=0.0) == Unmask("confidence", 0.0)
    assert unmask("bltdv") == Unmask("chained", 0.0)
    assert unmask("bltdv", alpha=0.3) == Unmask("chained", 0.3)
    assert not unmask("bltd", unmask="chained").threshold, "its blocks stay whole"
    assert unmask("bltd", unmask="chained", alpha=0.4) == Unmask("chained", 0.4)
    assert unmask("bltdv", unmask="confidence") == Unmask("confidence", 0.3)
    assert unmask("bltdv", unmask="entropy") == Unmask("entropy", 1.5)
    assert unmask("bltdv", unmask="entropy", gamma=0.4, alpha=9) == Unmask("entropy", 0.4)


def test_sizes_of_modes_are_their_own_unless_given(given_to):
    model, _ = make_models(0, block_size=4, chain_width=6)
    assert given_to("blt", model, draft_size=3) == {"sampling": None, "watch": None}
    assert given_to("blts", model)["draft_size"] == 8
    assert given_to("lookup", model, draft_size=3)["draft_size"] == 3
    assert given_to("bltd", model)["block_size"] == 4, "that of the model"
    assert given_to("bltdv", model, block_size=2)["block_size"] == 2
    assert "copy" not in given_to("bltd", model)


def test_copies_stand_beside_chained_drafts_unless_told_otherwise():
    model, _ = make_models(0, block_size=4, chain_width=6)
    for given, copied in (({}, 16), ({"copy": 0}, 0), ({"unmask": "one-step"}, 0)):
        assert settled("bltdv", model, Drafting(**given))["copy"] == copied


def test_modes_that_a_model_cannot_run_are_refused():
    """Before anything has run."""
    plain = make_models(0)
    small = make_models(0, block_size=4, chain_width=6)
    without = make_models(0, block_size=4)
    for mode, models, drafting, message in (
        ("bltd", plain, Drafting(), "plain BLT .*--block-size"),
        ("bltdv", plain, Drafting(), "plain BLT .*--block-size"),
        ("bltd", small, Drafting(block_size=8), "blocks of up to 4"),
        ("bltdv", small, Drafting(block_size=0), "blocks of up to 4"),
        ("bltdv", without, Drafting(unmask="chained"), "no chained head"),
    ):
        for state in (Prefix(*models), fast_of(*models).state()):
            with pytest.raises(BadInput, match=message):
                run_mode(mode, state, [104], 9, drafting)
            assert state.length == 0
    assert run_mode("bltdv", fast_of(*without).state(), [104], 9).counters.rounds
    for mode in ("blt", "blts", "lookup"):
        assert run_mode(mode, fast_of(*plain).state(), [104], 9).new_bytes <= 9


# ---- run


def test_it_watches_drafts_verified(trained_file, capsys):
    ideas.speculate(["--checkpoint", str(trained_file), "--prompt", "def ", "--bytes", "12"])
    out = capsys.readouterr().out
    assert "blts" in out and "bltdv" in out and "round   1" in out and "step  1" in out
