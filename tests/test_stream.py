"""stream.py: whatever the split into calls and the rollbacks, the cached model is the full one."""
import random

import pytest
import torch

from conftest import make_models, random_ids
from data import BOS, EOS, MASK, PAD
from stream import Sampling, Stream, ban, bits_per_byte, distribution, generate, generate_uncached


def walk(model, patcher, ids, seed, reach=12, room=40, longest=50):
    """Feed ids in random pieces with random rollbacks between -> logits (N, V) as last seen at each position, and the stream."""
    rng, stream, i = random.Random(seed), Stream(model, patcher, reach=reach, room=room), 0
    logits = torch.full((len(ids), 260), float("nan"), dtype=torch.float64)
    while i < len(ids):
        n = min(rng.choice([1, 1, 1, 2, 3, 7, longest]), len(ids) - i)
        if rng.random() < 0.3 and n <= room:  # the two halves of extend, and a draft that must leave no trace
            stream.advance(ids[i:i + n].tolist())
            logits[i:i + n] = stream.decode()
            stream.draft([4 + rng.randrange(256) for _ in range(rng.randrange(1, 5))], [MASK] * rng.randrange(4))
        else:
            logits[i:i + n] = stream.extend(ids[i:i + n].tolist())
        i += n
        if rng.random() < 0.4 and i < len(ids):
            i = max(1, i - rng.randrange(reach + 1))
            stream.rollback(i)
    return logits, stream


@pytest.mark.parametrize("max_patch, mean", [(1, 1), (4, 2.5), (8, 1.3), (8, 4), (8, 7.5)])
@pytest.mark.parametrize("window", [9, 24])
def test_any_split_with_rollbacks_equals_the_full_forward(max_patch, mean, window):
    for seed in range(3):
        options = dict(window=window, global_window=7, max_patch=max_patch, patcher_window=window // 2)
        model, patcher = make_models(seed, mean=mean, **options)
        ids = random_ids(160, seed)
        closes = patcher.closes(ids)
        with torch.no_grad():
            full = model(ids[None], closes[None])[0]
        logits, stream = walk(model, patcher, ids, seed)
        assert torch.allclose(logits, full, atol=1e-9), (logits - full).abs().max()
        held = range(stream.forgotten, len(ids))
        assert [stream.at(i).open_start == i + 1 for i in held] == closes[stream.forgotten:].tolist()
        assert (stream.counters.bytes_advanced, stream.counters.patches) == (len(ids), int(closes.sum()))


@pytest.mark.parametrize("kind", ["monotonic", "stride", "space"])
def test_other_patchers_stream_too(kind):
    model, patcher = make_models(1, kind=kind, max_patch=5)
    ids = random_ids(120, 1, alphabet=150) - 60  # spaces and punctuation among them
    ids[0] = BOS
    with torch.no_grad():
        full = model(ids[None], patcher.closes(ids)[None])[0]
    assert torch.allclose(walk(model, patcher, ids, 1)[0], full, atol=1e-9)


def test_a_trained_model_streams_as_it_runs_in_full(trained, corpus_file):
    model, patcher = trained
    ids = torch.tensor([BOS] + [b + 4 for b in corpus_file.read_bytes()[3000:3500]])
    with torch.no_grad():
        full = model(ids[None], patcher.closes(ids)[None])[0]
    assert torch.allclose(walk(model, patcher, ids, 0)[0], full, atol=1e-9)


def test_greedy_generation_equals_repeated_full_forwards_past_the_wrap_around(trained):
    """Guards: a cached generate that differs from the uncached one, from the second byte on or once buffers are full."""
    for (model, patcher), prompts in ((make_models(0, window=16, global_window=4), [[], [100, 101]]),
                                      (trained, [[], [104, 105, 106, 36]])):
        for prompt in prompts:
            n = 150 if model is trained[0] else 700
            slow = generate_uncached(model, patcher, prompt, n if prompt else 40, Sampling(ignore_eos=True))
            made = generate(model, patcher, prompt, n if prompt else 40, Sampling(ignore_eos=True))
            assert made.ids == slow and len(slow) == (n if prompt else 40)
    assert Stream(*make_models(0, window=16, global_window=4)).decoder_cache.capacity < 700, "the buffers should have wrapped"


def test_counters_count_passes_that_really_ran():
    model, patcher = make_models(2)
    ran = {"decoder": 0, "encoder": 0, "globe": 0, "entropy": 0}
    for name, module in (("decoder", model.decoder), ("encoder", model.encoder), ("globe", model.globe), ("entropy", patcher.model)):
        module.register_forward_hook(lambda *_, name=name: ran.__setitem__(name, ran[name] + 1))
    made = generate(model, patcher, [104, 105], 90, Sampling(ignore_eos=True))
    c = made.counters
    assert ran["decoder"] == c.decoder + c.prefill["decoder"] and ran["entropy"] == c.entropy + c.prefill["entropy"]
    assert ran["encoder"] == ran["globe"] == c.encoder_global + c.prefill["encoder_global"]
    assert c.decoder == c.entropy == 89  # the prefill gave the first byte
    assert c.encoder_global == c.patches > 5  # plain decoding: one call for each patch closed, exactly


def test_memory_stays_flat():
    model, patcher = make_models(0)
    stream = Stream(model, patcher, reach=8, room=16)
    sizes, held = [], []
    for _ in range(4):
        for piece in random_ids(1600, 3).split(16):
            stream.extend(piece.tolist())
        caches = (stream.entropy_cache, stream.encoder_cache, stream.global_cache, stream.decoder_cache, stream.latent_cache)
        sizes.append([c.rows.numel() for c in caches])
        held.append(len(stream.known))
    assert all(s == sizes[0] for s in sizes) and max(held) < 400 and stream.length == 6400


def test_rollback_beyond_reach_is_refused():
    stream = Stream(*make_models(0), reach=5)
    stream.extend(random_ids(30).tolist())
    for length in (24, 0, 31):
        with pytest.raises(ValueError, match="reaches 5 bytes"):
            stream.rollback(length)
    stream.rollback(25)
    assert stream.length == 25


def test_a_batch_is_refused():
    for batch in ([[BOS, 100], [BOS, 101]], [torch.tensor([BOS, 100])]):
        with pytest.raises(ValueError, match="one sequence"):
            Stream(*make_models(0)).extend(batch)


def test_special_ids_are_never_generated_and_eos_only_ends():
    sampling = Sampling(temperature=1.0)
    p = distribution(torch.zeros(1, 260), sampling)[0]
    assert p[[PAD, BOS, MASK]].sum() == 0 and p[EOS] > 0 and p.sum() == pytest.approx(1.0)
    assert distribution(torch.zeros(1, 260), Sampling(ignore_eos=True))[0][EOS] == 0
    favour = torch.zeros(1, 260)
    favour[0, [PAD, BOS, MASK]] = 99.0
    assert distribution(favour, Sampling())[0].argmax() not in (PAD, BOS, MASK)
    assert favour[0, PAD] == 99.0, "ban must not change what it is given"
    model, patcher = make_models(0)
    with torch.no_grad():
        model.decoder.head.weight[EOS] = model.decoder.head.weight[97 + 4] * 1.01
    made = generate(model, patcher, [], 400, Sampling(temperature=1.0, seed=1))
    assert len(made.ids) < 400 and not {PAD, BOS, EOS, MASK} & set(made.ids)
    assert ban(torch.zeros(3, 260), Sampling()).isinf().sum() == 9


def test_top_p_keeps_the_fewest_ids_that_hold_it():
    logits = torch.full((1, 260), -30.0)
    logits[0, 10:14] = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    for top_p, kept in ((0.4, 1), (0.5, 1), (0.7, 2), (0.9, 3), (1.0, 4)):
        p = distribution(logits, Sampling(temperature=1.0, top_p=top_p))[0]
        assert (p > 1e-9).sum() == kept and p.sum() == pytest.approx(1.0)


def test_sampling_is_reproducible_and_varied():
    model, patcher = make_models(0)
    one, same, other = (generate(model, patcher, [], 40, Sampling(1.0, 0.9, True, seed)).ids for seed in (1, 1, 2))
    assert one == same != other


def test_bits_per_byte_equals_the_full_forwards_loss(trained):
    model, patcher = trained
    ids = torch.cat([random_ids(900, 4), torch.tensor([EOS])])
    with torch.no_grad():
        logits = model(ids[None], patcher.closes(ids)[None])[0, :-1]
    bits = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum").item() / 0.6931471805599453 / (len(ids) - 2)
    assert bits_per_byte(model, patcher, [ids]) == pytest.approx(bits, rel=1e-6)
