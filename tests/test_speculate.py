"""speculate.py: greedy output is plain BLT's byte for byte, sampled output has its distribution, and nothing is left behind."""
import random
from collections import Counter

import pytest
import torch

from conftest import make_models, random_ids
from data import BOS, EOS, MASK, PAD, encode
from diffusion import Unmask
from speculate import draft_lookup, generate_bltdv, generate_blts, generate_lookup, near_tie, speculate, verify
from stream import Sampling, Stream, distribution, generate, generate_uncached

RULES = [Unmask("one-step", None), Unmask("confidence", 0.3), Unmask("entropy", 1.5)]
GREEDY = dict(sampling=Sampling(ignore_eos=True))


def every_lossless_mode(model, patcher, prompt, n, block_sizes=(1, 3, 8), **options):
    for k in (1, 2, 4, 8, 16):
        yield f"blts {k}", generate_blts(model, patcher, prompt, n, k, **options)
    for K in block_sizes:
        for rule in RULES:
            yield f"bltdv {K} {rule.rule}", generate_bltdv(model, patcher, prompt, n, K, rule, **options)
    yield "lookup", generate_lookup(model, patcher, prompt, n, 6, **options)


@pytest.mark.parametrize("seed, max_patch, mean, window", [(0, 8, 3, 16), (1, 4, 2, 9), (2, 1, 1, 24), (3, 8, 7, 30)])
def test_greedy_bytes_are_plain_blts_on_random_weights(seed, max_patch, mean, window):
    """Random float64 weights have tiny margins: a patch that a draft closed too early shows at the second byte."""
    model, patcher = make_models(seed, window=window, max_patch=max_patch, mean=mean, block_size=8)
    for prompt in ([], random_ids(30, seed)[1:].tolist()):
        plain = generate_uncached(model, patcher, prompt, 50, Sampling(ignore_eos=True))
        for paper in (False, True):
            for name, made in every_lossless_mode(model, patcher, prompt, 50, paper_rounds=paper, **GREEDY):
                assert made.ids == plain, (name, paper)
                assert made.counters.encoder_global <= made.counters.rounds * (2 if paper else 1)


def test_greedy_bytes_are_plain_blts_on_a_trained_model(trained):
    model, patcher = trained
    for prompt in (b"", b"        self.", b"\xff\xfe"):
        plain = generate(model, patcher, encode(prompt), 80, Sampling()).ids
        for name, made in every_lossless_mode(model, patcher, encode(prompt), 80, (4, 8)):
            assert made.ids == plain, name


def test_near_ties_are_told_from_real_differences():
    model, patcher = make_models(0)
    plain = generate(model, patcher, [], 20, Sampling(ignore_eos=True)).ids
    other = plain[:10] + [(plain[10] - 4 + 1) % 256 + 4]
    patcher.config.theta = -9.0  # so that no entropy is near it
    assert not near_tie(model, patcher, [BOS], plain, other, tolerance=1e-9)
    assert near_tie(model, patcher, [BOS], plain, other, tolerance=1e9)


def test_counters_equal_passes_really_run():
    model, patcher = make_models(1, block_size=8)
    modules = {"decoder": model.decoder, "encoder": model.encoder, "globe": model.globe, "entropy": patcher.model}
    ran = Counter()
    for name, module in modules.items():
        module.register_forward_hook(lambda *_, name=name: ran.update([name]))
    for name, made in every_lossless_mode(model, patcher, [100, 101, 102], 40, **GREEDY):
        c = made.counters
        assert ran["decoder"] == c.decoder + c.prefill["decoder"] and ran["entropy"] == c.entropy + c.prefill["entropy"], name
        assert ran["encoder"] == ran["globe"] == c.encoder_global + c.prefill["encoder_global"], name
        assert sum(c.lengths.values()) == c.rounds and sum(k * n for k, n in c.lengths.items()) == c.accepted
        assert len(made.ids) == 40 == 1 + c.accepted + c.rounds and c.accepted <= c.drafted
        ran.clear()


def test_drafts_of_any_bytes_change_nothing_and_leave_the_stream_as_new(trained):
    """Random, all wrong, all right, with EOS and special ids, across patch boundaries."""
    model, patcher = trained
    plain = generate(model, patcher, [104], 60, Sampling(ignore_eos=True)).ids
    right = {i: plain[i:] for i in range(60)}
    rng = random.Random(0)

    def adversary(kind):
        def draft(stream, text, count, sampling):
            following = right[len(text) - 2]
            ids = {"random": [rng.randrange(260) for _ in range(count)], "wrong": [(x - 4 + 1) % 256 + 4 for x in following],
                   "right": following, "special": [EOS, MASK, PAD, BOS] * 4, "half": following[:2] + [MASK, EOS, BOS]}[kind]
            return ids[:count], None
        return draft

    for kind in ("random", "wrong", "right", "special", "half"):
        streams = []
        draft = adversary(kind)

        def spy(stream, *rest):
            streams.append(stream)
            return draft(stream, *rest)
        made = speculate(model, patcher, [104], 60, spy, 7, **GREEDY)
        assert made.ids == plain, kind
        assert made.counters.accepted == {"right": made.counters.drafted, "wrong": 0, "special": 0}.get(kind, made.counters.accepted)
        fresh, used = Stream(model, patcher), streams[-1]
        fresh.extend([BOS, 104, *plain[:-1]])
        for stream in (fresh, used):
            stream.rollback(used.length if stream is used else used.length)
        assert torch.allclose(fresh.extend(plain[-1:]), used.extend(plain[-1:]), atol=1e-9)


def test_eos_and_the_byte_budget_hold_to_the_byte():
    model, patcher = make_models(4, block_size=8)
    with torch.no_grad():
        model.decoder.head.weight[EOS] = model.decoder.head.weight[104] * 1.3
    ended = []
    for prompt in range(100, 106):
        plain = generate(model, patcher, [prompt], 60, Sampling())
        ended.append(len(plain.ids) < 60)
        for n in (1, 2, 9, 60):
            for name, made in every_lossless_mode(model, patcher, [prompt], n, (8,)):
                assert made.ids == plain.ids[:n], name
    assert any(ended) and not all(ended)


@pytest.mark.parametrize("drafted_by", ["distribution", "bytes"])
@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.7, 0.9)])
def test_verify_keeps_the_distribution(drafted_by, temperature, top_p):
    """Two symbols of a vocabulary of five, against the enumerated distribution; chi-square with 24 degrees of freedom."""
    ids = torch.arange(97, 102)
    generator = torch.Generator().manual_seed(5)

    def some(*shape):
        logits = torch.full((*shape, 260), -torch.inf)
        logits[..., ids] = 1.5 * torch.randn(*shape, 5, generator=generator)
        return distribution(logits.view(-1, 260), Sampling(temperature, top_p)).view(*shape, 260)

    first, then, last = some(1)[0], some(5), some(1)       # p of byte 1, of byte 2 after each byte 1, of a free byte
    q = some(2)
    sampling, counts, trials = Sampling(temperature, top_p, seed=1), Counter(), 3000
    for _ in range(trials):
        drafted = torch.multinomial(q, 1, generator=sampling.generator)[:, 0].tolist() if drafted_by == "distribution" else [98, 99]
        p = torch.stack([first, then[drafted[0] - 97], last[0]])
        accepted, following = verify(p, drafted, q if drafted_by == "distribution" else None, sampling)
        out = drafted[:accepted] + [following]
        if len(out) == 1:
            out += torch.multinomial(then[out[0] - 97], 1, generator=sampling.generator).tolist()
        counts[tuple(out[:2])] += 1
    chi_square = cells = 0
    for a in range(97, 102):
        for b in range(97, 102):
            expected = (first[a] * then[a - 97][b]).item() * trials
            assert expected > 0 or not counts[a, b]
            if expected > 0:
                chi_square, cells = chi_square + (counts[a, b] - expected) ** 2 / expected, cells + 1
    assert chi_square < cells + 4 * (2 * cells) ** 0.5, "beyond four standard deviations of chi-square"


@pytest.mark.parametrize("mode", ["blts", "one-step", "confidence", "lookup"])
def test_sampling_end_to_end_has_plain_blts_distribution(mode):
    """A nano model at low top-p: the first bytes of many runs, pooled in bins, against plain sampling's exact probabilities."""
    model, patcher = make_models(7, block_size=4)
    prompt, trials = [100, 104, 100, 104, 100], 300
    make = lambda seed: dict(sampling=Sampling(1.2, 0.35, True, seed))
    sampling, exact = Sampling(1.2, 0.35, True), Counter()

    def enumerate_(ids, mass):
        if len(ids) == 3:
            exact[tuple(ids)] += mass
            return
        stream = Stream(model, patcher)
        p = distribution(stream.prefill([BOS, *prompt, *ids])[None].float(), sampling)[0]
        for x in p.nonzero()[:, 0].tolist():
            enumerate_(ids + [x], mass * p[x].item())
    enumerate_([], 1.0)
    run = {"blts": lambda o: generate_blts(model, patcher, prompt, 3, 2, **o),
           "one-step": lambda o: generate_bltdv(model, patcher, prompt, 3, 4, RULES[0], **o),
           "confidence": lambda o: generate_bltdv(model, patcher, prompt, 3, 4, RULES[1], **o),
           "lookup": lambda o: generate_lookup(model, patcher, prompt, 3, 2, **o)}[mode]
    counts = Counter(tuple(run(make(seed)).ids) for seed in range(trials))
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
    assert draft_lookup(None, text, 4, Sampling()) == (encode(b"at s"), None)
    assert draft_lookup(None, [BOS, *encode(b"abc")], 4, Sampling()) == ([], None)
