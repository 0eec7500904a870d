"""speculate.py: greedy output is plain BLT's byte for byte, sampled output has its distribution.

And drafts leave nothing behind.
"""

import math
import random
from collections import Counter

import pytest
import torch
from conftest import count_passes, make_models, random_ids

import speculate as speculating
from data import BOS, EOS, MASK, PAD, encode
from diffusion import Unmask
from generate import Sampling, distribution, generate, generate_uncached
from speculate import (
    MODES,
    Drafting,
    check_mode,
    draft_lookup,
    generate_bltdv,
    generate_blts,
    generate_lookup,
    run_mode,
    speculate,
    verify,
)
from stream import Stream
from support.quality import near_tie
from support.show import Trace
from support.terminal import BadInput

RULES = [Unmask("one-step", None), Unmask("confidence", 0.3), Unmask("entropy", 1.5)]
RULES.append(Unmask("chained", 0.01))
ENDLESS = Sampling(ignore_eos=True)


def every_lossless_mode(
    model, patcher, prompt, n, draft_sizes=(1, 2, 4, 8, 16), block_sizes=(1, 3, 8), **options
):
    """Each verified mode with several sizes and rules -> (name, Generation) in turn."""
    for k in draft_sizes:
        made = generate_blts(model, patcher, prompt, n, draft_size=k, **options)
        yield f"blts {k}", made
    for K in block_sizes:
        for rule in RULES:
            drafting = {"block_size": K, "unmask": rule}
            made = generate_bltdv(model, patcher, prompt, n, **drafting, **options)
            yield f"bltdv {K} {rule.rule}", made
    drafting = {"block_size": block_sizes[-1], "unmask": RULES[3], "copy": 11}
    yield "bltdv copy", generate_bltdv(model, patcher, prompt, n, **drafting, **options)
    yield "lookup", generate_lookup(model, patcher, prompt, n, draft_size=6, **options)


# ---- greedy bytes

SHAPES = [(0, 8, 3, 16), (1, 4, 2, 9), (2, 1, 1, 24), (3, 8, 7, 30)]
FEW = {"draft_sizes": (3, 8), "block_sizes": (8,)}


def check_greedy_bytes(seed, max_patch, mean, window, rounds, **sizes):
    """Every lossless mode against repeated full forwards, and its encoder/global calls."""
    shape = {
        "window": window,
        "max_patch": max_patch,
        "mean": mean,
        "block_size": 8,
        "chain_width": 6,
    }
    model, patcher = make_models(seed, **shape)
    for prompt in ([], random_ids(30, seed)[1:].tolist()):
        plain = generate_uncached(model, patcher, prompt, 50, ENDLESS)
        how = {"rounds": rounds, "sampling": ENDLESS, **sizes}
        for name, made in every_lossless_mode(model, patcher, prompt, 50, **how):
            assert made.ids == plain, name
            c = made.counters
            if rounds == "paper":
                assert c.encoder_global == 2 * c.rounds, name
            else:
                assert c.encoder_global <= c.rounds, name


@pytest.mark.parametrize("seed, max_patch, mean, window", SHAPES)
def test_greedy_bytes_are_plain_blts_on_random_weights(seed, max_patch, mean, window):
    """Random float64 weights have tiny margins: a patch that a draft closed too early shows."""
    check_greedy_bytes(seed, max_patch, mean, window, "ours")


@pytest.mark.parametrize("seed, max_patch, mean, window", SHAPES)
def test_the_papers_rounds_write_the_same_bytes_at_two_calls_each(seed, max_patch, mean, window):
    """They draft from the open patch's latent: other drafts, the same bytes.

    And exactly two encoder/global calls a round.
    """
    check_greedy_bytes(seed, max_patch, mean, window, "paper")


def test_the_papers_drafts_differ_from_ours():
    """The open patch's latent matters: else the paper's rounds would show nothing."""
    model, patcher = make_models(3, mean=7.0, block_size=8, chain_width=6)
    accepted = []
    for rounds in ("ours", "paper"):
        how = {"rounds": rounds, "sampling": ENDLESS, **FEW}
        made = every_lossless_mode(model, patcher, [], 60, **how)
        accepted.append([m.counters.lengths for _, m in made])
    assert accepted[0][:-1] != accepted[1][:-1]
    assert accepted[0][-1] == accepted[1][-1]  # lookup reads no latent


def test_greedy_bytes_are_plain_blts_on_a_trained_model(trained):
    model, patcher = trained
    for prompt in (b"", b"        self.", b"\xff\xfe"):
        prompt = encode(prompt)
        plain = generate(model, patcher, prompt, 80).ids
        for name, made in every_lossless_mode(model, patcher, prompt, 80, block_sizes=(4, 8)):
            assert made.ids == plain, name
        for name, made in every_lossless_mode(model, patcher, prompt, 40, rounds="paper", **FEW):
            assert made.ids == plain[:40], name


def test_eos_and_the_byte_budget_hold_to_the_byte():
    model, patcher = make_models(4, block_size=8, chain_width=6)
    with torch.no_grad():
        model.decoder.head.weight[EOS] = model.decoder.head.weight[104] * 1.3
    ended = []
    for prompt in range(100, 106):
        plain = generate(model, patcher, [prompt], 60).ids
        ended.append(len(plain) < 60)
        for n in (1, 2, 9, 60):
            for rounds in ("ours", "paper") if prompt < 102 else ("ours",):
                how = {"block_sizes": (8,), "rounds": rounds}
                for name, made in every_lossless_mode(model, patcher, [prompt], n, **how):
                    assert made.ids == plain[:n], name
    assert any(ended) and not all(ended)


# ---- what counts, and what is left behind


@pytest.mark.parametrize("rounds", ["ours", "paper"])
def test_counters_equal_passes_really_run(rounds):
    model, patcher = make_models(1, block_size=8, chain_width=6)
    ran = count_passes(model, patcher)
    how = {"rounds": rounds, "sampling": ENDLESS}
    for name, made in every_lossless_mode(model, patcher, [100, 101, 102], 40, **how):
        c, prefill = made.counters, made.counters.prefill
        assert ran["decoder"] == c.decoder + prefill["decoder"], name
        assert ran["entropy"] == c.entropy + prefill["entropy"], name
        assert ran["encoder"] == c.encoder_global + prefill["encoder_global"], name
        assert ran["globe"] == ran["encoder"], name
        assert sum(c.lengths.values()) == c.rounds, name
        assert sum(k * n for k, n in c.lengths.items()) == c.accepted <= c.drafted, name
        assert len(made.ids) == 40 == 1 + c.accepted + c.rounds, name
        ran.update(dict.fromkeys(ran, 0))


def adversary(kind, plain, rng):
    """A drafter of bytes that are random, all wrong, all right, special, or right for a while."""

    def draft(stream, text, decided, count, sampling):
        following = plain[len(text) - 2 :]
        drafts = {
            "random": [rng.randrange(260) for _ in range(count)],
            "wrong": [(x - 4 + 1) % 256 + 4 for x in following],
            "right": following,
            "special": [EOS, MASK, PAD, BOS] * 4,
            "half": following[:2] + [MASK, EOS, BOS],
        }
        return drafts[kind][:count], None

    return draft


@pytest.mark.parametrize("rounds", ["ours", "paper"])
@pytest.mark.parametrize("kind", ["random", "wrong", "right", "special", "half"])
def test_drafts_of_any_bytes_change_nothing_and_leave_the_stream_as_new(trained, kind, rounds):
    """Across patch boundaries, and with EOS and special ids among them."""
    model, patcher = trained
    plain = generate(model, patcher, [104], 60, sampling=ENDLESS).ids
    streams, draft = [], adversary(kind, plain, random.Random(0))

    def spy(stream, *rest):
        streams.append(stream)
        return draft(stream, *rest)

    how = {"rounds": rounds, "sampling": ENDLESS}
    made = speculate(model, patcher, [104], 60, spy, 7, **how)
    assert made.ids == plain
    expected = {"right": made.counters.drafted, "wrong": 0, "special": 0}
    assert made.counters.accepted == expected.get(kind, made.counters.accepted)
    used, fresh = streams[-1], Stream(model, patcher)
    fresh.extend([BOS, 104, *plain[:-1]])
    assert used.length == fresh.length and used.known[-1] == fresh.known[-1]._replace(
        entropy=used.known[-1].entropy
    )
    assert torch.allclose(fresh.extend(plain[-1:]), used.extend(plain[-1:]), atol=1e-9)


def test_a_trace_sees_every_round():
    """What was taken in for good, what of it was drafted, and the model's own byte behind it."""
    model, patcher = make_models(1, block_size=8, chain_width=6)
    seen, steps, begun, drafts = [], [], [], []

    class Spy(Trace):
        def begin(self, stream):
            begun.append(stream.taken(0))

        def draft(self, ids):
            drafts.append(ids)

        def round(self, processed, drafted, accepted, following):
            seen.append((processed, drafted, accepted, following))

        def step(self, ids, masked):
            steps.append(masked)

    made = generate_bltdv(
        model, patcher, [104], 40, block_size=8, unmask=RULES[0], sampling=ENDLESS, trace=Spy()
    )
    closes = patcher.closes(torch.tensor([BOS, 104, *made.ids])).tolist()
    text = made.ids[:1]
    assert begun == [[(BOS, True), (104, closes[1])]]
    assert drafts == [drafted for _, drafted, _, _ in seen]
    assert len(seen) == made.counters.rounds >= len(steps) > 0
    for processed, drafted, accepted, following in seen:
        at = len(text) - 1
        assert [id_ for id_, _ in processed] == text[-1:] + drafted[:accepted]
        assert [closed for _, closed in processed] == closes[2 + at : 3 + at + accepted]
        text += drafted[:accepted] + [following]
    assert text == made.ids


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
    given = (model, patcher, *parted(at=10), ENDLESS)
    assert not near_tie(*given, tolerance=1e-9) and near_tie(*given, tolerance=1e9)


def test_a_near_tie_of_two_bytes_is_seen_where_they_part():
    """The two best logits there decide, and those nowhere else."""
    model, patcher = make_models(0)
    far(patcher)
    ties, head = [], model.decoder.head.weight
    for at in (10, 11, 30):
        prompt, plain, other = parted(at, prompt=3)
        text = torch.tensor([BOS, *prompt, *plain])
        logits = model(text[None], patcher.closes(text)[None])[0, len(prompt) + at]
        best, second = logits.topk(2).indices
        given = (model, patcher, prompt, plain, other, ENDLESS)
        before, kept = near_tie(*given), head[second].clone()
        with torch.no_grad():
            head[second] = head[best]
            ties.append((before, near_tie(*given)))
            head[second] = kept
    assert ties == [(False, True)] * 3
    # One output may be shorter: what ended it stands against the other's next byte.
    assert not near_tie(model, patcher, [], plain, plain[:20], ENDLESS)


def test_banned_ids_make_no_near_tie():
    """Guards: PAD, BOS and MASK ranked beside the best byte, though none can be written.

    EOS counts unless it is ignored.
    """
    model, patcher = make_models(0)
    far(patcher)
    _, plain, other = parted(at=10)
    text = torch.tensor([BOS, *plain[:10]])
    best = model(text[None], patcher.closes(text)[None])[0, -1].argmax()
    head = model.decoder.head.weight
    with torch.no_grad():
        head[[PAD, BOS, MASK]] = head[best].clone()
    assert not near_tie(model, patcher, [], plain, other, ENDLESS)
    with torch.no_grad():
        head[EOS] = head[best]
    assert not near_tie(model, patcher, [], plain, other, ENDLESS)
    assert near_tie(model, patcher, [], plain, other, Sampling())


@pytest.mark.parametrize("kind", ["entropy", "monotonic"])
@pytest.mark.parametrize("length", [0, 5])
def test_a_boundary_that_rounding_decides_is_seen_however_far_back(kind, length):
    """Guards: only the last 16 bytes looked at, and H compared with θ for differences too.

    A boundary moved by rounding changes everything behind it; one behind the difference nothing.
    """
    model, patcher = make_models(1, kind=kind)
    prompt, plain, other = parted(at=60, n=80, prompt=length)
    H = patcher.entropies(torch.tensor([BOS, *prompt, *plain])).tolist()
    scores = H
    if kind == "monotonic":
        scores = [math.inf] + [b - a for a, b in zip(H, H[1:])]
    first, part = 1 + length, 1 + length + 60

    def tie_at(score):
        patcher.config.threshold = score + 5e-7
        return near_tie(model, patcher, prompt, plain, other, ENDLESS, tolerance=1e-6)

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
    model, patcher = make_models(1, kind="stride")
    assert not near_tie(model, patcher, *parted(at=10), ENDLESS, tolerance=1e-9)


# ---- sampling


@pytest.mark.parametrize("drafted_by", ["distribution", "bytes"])
@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.7, 0.9)])
def test_verify_keeps_the_distribution(drafted_by, temperature, top_p):
    """Two symbols of a vocabulary of five, against the enumerated distribution.

    Chi-square with 24 degrees of freedom.
    """
    ids = torch.arange(97, 102)
    generator = torch.Generator().manual_seed(5)

    def some(*shape):
        logits = torch.full((*shape, 260), -torch.inf)
        logits[..., ids] = 1.5 * torch.randn(*shape, 5, generator=generator)
        p = distribution(logits.view(-1, 260), Sampling(temperature, top_p))
        return p.view(*shape, 260)

    # p of byte 1, of byte 2 after each byte 1, of a free byte; what is drafted from
    first, then, last, q = some(1)[0], some(5), some(1), some(2)
    sampling, counts, trials = Sampling(temperature, top_p, seed=1), Counter(), 3000

    def drawn(p):
        return torch.multinomial(p, 1, generator=sampling.generator)[..., 0].tolist()

    for _ in range(trials):
        drafted, drafted_from = [98, 99], None
        if drafted_by == "distribution":
            drafted, drafted_from = drawn(q), q
        p = torch.stack([first, then[drafted[0] - 97], last[0]])
        accepted, following = verify(p, drafted, drafted_from, sampling)
        out = drafted[:accepted] + [following]
        if len(out) == 1:
            out.append(drawn(then[out[0] - 97]))
        counts[tuple(out[:2])] += 1
    chi_square = cells = 0
    for a in range(97, 102):
        for b in range(97, 102):
            expected = (first[a] * then[a - 97][b]).item() * trials
            assert expected > 0 or not counts[a, b]
            if expected > 0:
                chi_square += (counts[a, b] - expected) ** 2 / expected
                cells += 1
    assert chi_square < cells + 4 * (2 * cells) ** 0.5, "beyond four standard deviations"


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
    "blts": (generate_blts, {"draft_size": 2}),
    "one-step": (generate_bltdv, {"block_size": 4, "unmask": RULES[0]}),
    "confidence": (generate_bltdv, {"block_size": 4, "unmask": RULES[1]}),
    "chained": (generate_bltdv, {"block_size": 4, "unmask": RULES[3], "copy": 0}),
    "copy": (generate_bltdv, {"block_size": 4, "unmask": RULES[3], "copy": 4}),
    "lookup": (generate_lookup, {"draft_size": 2}),
}
MODES_AND_ROUNDS = [(mode, "ours") for mode in SAMPLERS] + [("blts", "paper")]


@pytest.mark.parametrize("mode, rounds", MODES_AND_ROUNDS)
def test_sampling_end_to_end_has_plain_blts_distribution(mode, rounds):
    """Low top-p: the first bytes of many runs, in bins, against plain sampling's probabilities."""
    model, patcher = make_models(7, block_size=4, chain_width=6)
    prompt, trials, exact = [100, 104, 100, 104, 100], 300, Counter()
    sampling = Sampling(1.2, 0.35, True)

    def enumerate_all(ids, mass):
        if len(ids) == 3:
            exact[tuple(ids)] += mass
            return
        logits = Stream(model, patcher).prefill([BOS, *prompt, *ids])
        p = distribution(logits[None].float(), sampling)[0]
        for x in p.nonzero()[:, 0].tolist():
            enumerate_all(ids + [x], mass * p[x].item())

    enumerate_all([], 1.0)
    sampler, drafting = SAMPLERS[mode]
    counts = Counter()
    for seed in range(trials):
        how = {"sampling": Sampling(1.2, 0.35, True, seed), "rounds": rounds}
        counts[tuple(sampler(model, patcher, prompt, 3, **drafting, **how).ids)] += 1
    assert set(counts) <= set(exact) and len(exact) > 4
    bins, pool = [], [0.0, 0]
    for key, mass in exact.most_common():
        pool = [pool[0] + mass * trials, pool[1] + counts[key]]
        if pool[0] >= 8:
            bins.append(pool)
            pool = [0.0, 0]
    bins[-1] = [bins[-1][0] + pool[0], bins[-1][1] + pool[1]]
    chi_square = sum((n - e) ** 2 / e for e, n in bins)
    assert len(bins) > 2 and chi_square < len(bins) + 4 * (2 * len(bins)) ** 0.5


def test_lookup_copies_what_followed():
    text = [BOS, *encode(b"the cat sat; the c")]
    assert draft_lookup(None, text, text[-1:], 4, Sampling()) == (encode(b"at s"), None)
    text = [BOS, *encode(b"the the the")]  # what follows is cut short, and goes round
    assert draft_lookup(None, text, text[-1:], 9, Sampling()) == (encode(b" the the "), None)
    text = [BOS, *encode(b"abc")]
    assert draft_lookup(None, text, text[-1:], 4, Sampling()) == ([], None)


# ---- the table of modes


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_runs_as_its_table_says(mode):
    """run_mode passes on exactly what the sampler takes; defaults are the mode's own."""
    model, patcher = make_models(2, block_size=4, chain_width=6)
    plain = generate(model, patcher, [104], 30, sampling=ENDLESS).ids
    for drafting in (Drafting(), Drafting(5, 3, "entropy", gamma=0.5, rounds="paper")):
        check_mode(mode, model, drafting)
        made = run_mode(mode, model, patcher, [104], 30, drafting, sampling=ENDLESS)
        assert len(made.ids) == 30
        if MODES[mode].verified or mode == "blt":
            assert made.ids == plain
        if MODES[mode].paper_calls and drafting.rounds == "paper":
            c = made.counters
            assert c.encoder_global == MODES[mode].paper_calls * c.rounds


def test_thresholds_of_modes_are_their_own_unless_given():
    """Confidence takes α, entropy γ; each mode has its own defaults."""
    model, _ = make_models(0, block_size=4, chain_width=6)

    def unmask(mode, **given):
        return speculating.arguments_of(mode, model, Drafting(**given))["unmask"]

    without, _ = make_models(0, block_size=4)
    assert speculating.rule_of("bltdv", without, Drafting()) == "one-step"

    assert unmask("bltd") == Unmask("confidence", 0.7)
    assert unmask("bltd", unmask="entropy") == Unmask("entropy", 1.0)
    assert unmask("bltd", alpha=0.2, gamma=9) == Unmask("confidence", 0.2)
    assert unmask("bltd", alpha=0.0) == Unmask("confidence", 0.0)
    assert unmask("bltdv") == Unmask("chained", 0.05)
    assert unmask("bltdv", alpha=0.3) == Unmask("chained", 0.3)
    assert unmask("bltd", unmask="chained") == Unmask("chained", None), "its blocks stay whole"
    assert unmask("bltdv", unmask="confidence") == Unmask("confidence", 0.3)
    assert unmask("bltdv", unmask="entropy") == Unmask("entropy", 1.5)
    assert unmask("bltdv", unmask="entropy", gamma=0.4, alpha=9) == Unmask("entropy", 0.4)


def test_modes_that_a_model_cannot_run_are_refused():
    plain, _ = make_models(0)
    small, _ = make_models(0, block_size=4, chain_width=6)
    for mode, model, drafting in (
        ("bltd", plain, Drafting()),
        ("bltdv", plain, Drafting()),
        ("bltd", small, Drafting(block_size=8)),
        ("bltdv", small, Drafting(block_size=0)),
    ):
        with pytest.raises(BadInput, match="block-size|blocks of up to"):
            check_mode(mode, model, drafting)
    without, _ = make_models(0, block_size=4)
    check_mode("bltdv", without, Drafting())
    with pytest.raises(BadInput, match="no chained head"):
        check_mode("bltdv", without, Drafting(unmask="chained"))
    for mode in ("blt", "blts", "lookup"):
        check_mode(mode, plain, Drafting())


# ---- run


def test_it_watches_drafts_verified(trained_file, capsys):
    speculating.main(["--checkpoint", str(trained_file), "--prompt", "def ", "--bytes", "12"])
    out = capsys.readouterr().out
    assert "blts" in out and "bltdv" in out and "round   1" in out and "step  1" in out


@pytest.mark.parametrize("rule", [RULES[0], RULES[3]], ids=["one-step", "chained"])
def test_drafts_and_verification_draw_from_one_stream_of_chance(rule):
    """Guards: a generator of its own for drafts, begun again at the same seed every round.

    Drafts and verification would then see the same numbers, and the text's distribution moves.
    """
    model, patcher = make_models(0, block_size=4, chain_width=6)
    stream, sampling = Stream(model, patcher), Sampling(2.0, 0.9, seed=5)
    stream.prefill([BOS])
    draft = speculating.diffusion_drafter(model, 4, rule)
    drafts = []
    for _ in range(6):
        before = sampling.generator.get_state()
        drafts.append(draft(stream, [BOS], [], 4, sampling)[0])
        assert not torch.equal(before, sampling.generator.get_state())
    assert len(set(map(tuple, drafts))) > 1


def test_copies_stand_beside_chained_drafts_unless_told_otherwise():
    model, _ = make_models(0, block_size=4, chain_width=6)
    for given, copied in (({}, 16), ({"copy": 0}, 0), ({"unmask": "one-step"}, 0)):
        assert speculating.arguments_of("bltdv", model, Drafting(**given))["copy"] == copied
