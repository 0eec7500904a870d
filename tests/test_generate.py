"""generate.py: from logits to bytes, plain BLT against its slow twin, and what things cost."""

import math

import pytest
import torch
from conftest import count_passes, make_models, random_ids

import generate as generating
from data import BOS, EOS, MASK, PAD, encode
from generate import (
    Generation,
    Sampling,
    ban,
    bits_per_byte,
    distribution,
    draw,
    generate,
    generate_uncached,
    gigabytes,
    until_end,
)
from stream import Counters, Stream
from support.quality import distinct_4grams, output_bits
from support.show import Trace

ENDLESS = Sampling(ignore_eos=True)

# ---- how the next byte is chosen


def test_special_ids_are_never_generated_and_eos_only_ends():
    p = distribution(torch.zeros(1, 260), Sampling(temperature=1.0))[0]
    assert p[[PAD, BOS, MASK]].sum() == 0 and p[EOS] > 0 and p.sum() == pytest.approx(1.0)
    assert distribution(torch.zeros(1, 260), Sampling(1.0, ignore_eos=True))[0][EOS] == 0
    favour = torch.zeros(1, 260)
    favour[0, [PAD, BOS, MASK]] = 99.0
    assert distribution(favour, Sampling())[0].argmax() not in (PAD, BOS, MASK)
    assert favour[0, PAD] == 99.0, "ban must not change what it is given"
    assert ban(torch.zeros(3, 260), Sampling()).isinf().sum() == 9
    assert ban(torch.zeros(3, 260), ENDLESS).isinf().sum() == 12

    model, patcher = make_models(0)
    with torch.no_grad():
        model.decoder.head.weight[EOS] = model.decoder.head.weight[97 + 4] * 1.01
    made = generate(model, patcher, [], 400, sampling=Sampling(temperature=1.0, seed=3))
    assert len(made.ids) < 400 and not {PAD, BOS, EOS, MASK} & set(made.ids)


def test_top_p_keeps_the_fewest_ids_that_hold_it():
    logits = torch.full((1, 260), -30.0)
    logits[0, 10:14] = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    for top_p, kept in ((0.4, 1), (0.5, 1), (0.7, 2), (0.9, 3), (1.0, 4)):
        p = distribution(logits, Sampling(temperature=1.0, top_p=top_p))[0]
        assert (p > 1e-9).sum() == kept and p.sum() == pytest.approx(1.0)


def test_half_precision_is_drawn_from_in_single():
    for dtype in (torch.bfloat16, torch.float16):
        assert distribution(torch.zeros(1, 260, dtype=dtype), ENDLESS).dtype == torch.float32
    assert distribution(torch.zeros(1, 260).double(), ENDLESS).dtype == torch.float64


def test_greedy_draws_the_best_and_sampling_the_drawn():
    logits = torch.zeros(2, 260)
    logits[0, 77], logits[1, 99] = 5.0, 5.0
    assert draw(distribution(logits, Sampling()), Sampling()) == [77, 99]
    p = torch.zeros(2, 260)
    p[0, 50], p[1, 60] = 1.0, 1.0
    assert draw(p, Sampling(temperature=1.0)) == [50, 60]


def test_sampling_is_reproducible_and_varied():
    model, patcher = make_models(0)
    made = [
        generate(model, patcher, [], 40, sampling=Sampling(1.0, 0.9, True, seed)).ids
        for seed in (1, 1, 2)
    ]
    assert made[0] == made[1] != made[2]


def test_output_ends_at_eos_and_at_stops():
    assert until_end([5, 6, EOS, 7], Sampling()) == ([5, 6], True)
    assert until_end([5, 6, 7], Sampling()) == ([5, 6, 7], False)
    assert until_end([5, 6, 7, EOS], Sampling(stop=(6, 9))) == ([5], True)
    assert until_end([], Sampling()) == ([], False)
    model, patcher = make_models(0)
    whole = generate(model, patcher, [], 30, sampling=ENDLESS).ids
    last = whole[20]
    cut = generate(model, patcher, [], 30, sampling=Sampling(ignore_eos=True, stop=(last,))).ids
    assert cut == whole[: whole.index(last)]


# ---- plain BLT against its slow twin


def test_greedy_generation_equals_repeated_full_forwards_past_the_wrap_around(trained):
    """Guards: a cached generate that differs from the uncached one.

    From the second byte on, or once buffers are full.
    """
    small = make_models(0, window=16, global_window=4)
    assert Stream(*small).decoder_cache.capacity < 560, "the buffers should wrap"
    for (model, patcher), prompts, n in (
        (small, [[], [100, 101]], 700),
        (trained, [[], [104, 105, 106, 36]], 150),
    ):
        for prompt in prompts:
            budget = n if prompt else 40
            slow = generate_uncached(model, patcher, prompt, budget, ENDLESS)
            made = generate(model, patcher, prompt, budget, sampling=ENDLESS)
            assert made.ids == slow and len(slow) == budget


def test_counters_count_passes_that_really_ran():
    model, patcher = make_models(2)
    ran = count_passes(model, patcher)
    made = generate(model, patcher, [104, 105], 90, sampling=ENDLESS)
    c, prefill = made.counters, made.counters.prefill
    assert ran["decoder"] == c.decoder + prefill["decoder"]
    assert ran["entropy"] == c.entropy + prefill["entropy"]
    assert ran["encoder"] == ran["globe"] == c.encoder_global + prefill["encoder_global"]
    assert c.decoder == c.entropy == c.bytes_advanced == 89  # the prefill gave the first byte
    # Plain decoding: one call for each patch closed, exactly.
    assert c.encoder_global == c.patches_closed > 5


def test_what_is_emitted_and_traced_is_what_is_made():
    model, patcher = make_models(0)
    emitted, rounds = [], []

    class Spy(Trace):
        def round(self, processed, drafted, accepted, following):
            rounds.append((processed, drafted, accepted, following))

    made = generate(model, patcher, [104], 30, sampling=ENDLESS, emit=emitted.extend, trace=Spy())
    assert emitted == made.ids and len(rounds) == 29
    closes = patcher.closes(torch.tensor([BOS, 104, *made.ids])).tolist()
    for i, (processed, drafted, accepted, following) in enumerate(rounds):
        assert processed == [(made.ids[i], closes[i + 2])]
        assert (drafted, accepted, following) == ([], 0, made.ids[i + 1])


# ---- what a generation cost


def test_eq8_on_hand_worked_numbers():
    assert gigabytes(512, 250, 160e6, 1.299e9) == pytest.approx(813.34)  # the paper says 814.95
    assert gigabytes(1, 0, 1e9, 5e9) == 2.0 and gigabytes(1, 0, 1e9, 5e9, bits=4) == 0.5
    assert gigabytes(3, 2, 10, 100, bits=8) == pytest.approx(230e-9)


SIZES = {"encoder": 30, "global": 400, "decoder": 50, "chain": 2}
SIZES |= {"ngram_tables": 10**9, "patcher": 7}


def made_up(ids, seconds, **counted):
    return Generation(ids, Counters(**counted), seconds, SIZES)


def test_costs_of_a_generation_by_hand():
    """No n-gram table is read, and the patcher's passes stand apart."""
    nfes = {"decoder": 10, "encoder_global": 3, "entropy": 6}
    spoken = {"bytes_advanced": 12, "patches_closed": 5, "rounds": 4, "drafted": 8, "accepted": 6}
    made = made_up([100] * 11, 2.0, **nfes, **spoken)
    assert made.new_bytes == 11 and made.bytes_per_second == 5.5
    assert made.acceptance == 0.75 and made.mean_patch == 2.4
    # 10 x 50 + 3 x (30 + 400) = 1790 numbers of two bytes each
    assert made.gigabytes() == pytest.approx(3580e-9)
    assert made.gigabytes(bits=32) == pytest.approx(7160e-9)
    assert made.gigabytes_with_patcher() == pytest.approx((3580 + 2 * 42) * 1e-9)
    assert made.gigabytes_with_patcher(bits=8) == pytest.approx((1790 + 42) * 1e-9)
    assert made.cost() == {
        "new_bytes": 11,
        "seconds": 2.0,
        "bytes_per_second": 5.5,
        "decoder_nfes": 10,
        "encoder_global_nfes": 3,
        "entropy_nfes": 6,
        "bandwidth_gb": made.gigabytes(),
    }
    nothing = made_up([], 0.0)
    assert nothing.acceptance is None and nothing.mean_patch is None
    assert nothing.bytes_per_second == 0 == nothing.gigabytes()


def test_a_total_is_the_sum_of_its_parts_by_hand():
    """Ids, passes, seconds, the prefill's passes and the accepted lengths; the parts stay."""
    one = made_up(
        [100, 101],
        1.5,
        decoder=10,
        encoder_global=3,
        entropy=6,
        bytes_advanced=9,
        patches_closed=4,
        prefill={"decoder": 1, "encoder_global": 1, "entropy": 1},
        rounds=5,
        drafted=20,
        accepted=7,
        lengths={0: 2, 3: 3},
    )
    two = made_up(
        [102],
        0.5,
        decoder=1,
        encoder_global=2,
        entropy=3,
        bytes_advanced=4,
        patches_closed=5,
        prefill={"decoder": 2, "encoder_global": 1, "entropy": 4},
        rounds=6,
        drafted=7,
        accepted=8,
        lengths={3: 1, 4: 5},
    )
    total = Generation.total([one, two])
    assert total.ids == [100, 101, 102] and total.seconds == 2.0 and total.sizes == SIZES
    assert total.counters == Counters(
        decoder=11,
        encoder_global=5,
        entropy=9,
        bytes_advanced=13,
        patches_closed=9,
        prefill={"decoder": 3, "encoder_global": 2, "entropy": 5},
        rounds=11,
        drafted=27,
        accepted=15,
        lengths={0: 2, 3: 4, 4: 5},
    )
    assert total.gigabytes() == pytest.approx(one.gigabytes() + two.gigabytes())
    assert total.bytes_per_second == 1.5 and total.mean_patch == 13 / 9
    assert one.counters.lengths == {0: 2, 3: 3} and two.ids == [102]
    assert Generation.total([one]).counters == one.counters


def test_sizes_are_those_of_the_models_parts():
    model, patcher = make_models(0)
    sizes = generate(model, patcher, [], 2).sizes
    everything = sum(p.numel() for part in (model, patcher) for p in part.parameters())
    assert sum(sizes.values()) == everything
    assert sizes["patcher"] == sum(p.numel() for p in patcher.parameters())
    assert sizes["ngram_tables"] == model.encoder.hashes.weight.numel()


# ---- how likely bytes are


def test_every_target_position_has_a_loss():
    """Guards: the last row of every window was never supervised."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 9, 260, generator=generator, requires_grad=True)
    ids = torch.randint(4, 260, (2, 10), generator=generator)
    before = generating.next_byte_loss(logits, ids)
    before.backward()
    assert (logits.grad.abs().sum(-1) > 0).all()
    for position in range(1, 10):
        changed = ids.clone()
        changed[0, position] = (ids[0, position] + 1 - 4) % 256 + 4
        assert generating.next_byte_loss(logits, changed) != before


def test_bits_per_byte_equals_the_full_forwards_loss(trained):
    """A document longer than a pass takes; its EOS is predicted too, and counts as no byte."""
    model, patcher = trained
    ids, shown = torch.cat([random_ids(900, 4), torch.tensor([EOS])]), []
    with torch.no_grad():
        logits = model(ids[None], patcher.closes(ids)[None])[0, :-1]
    nats = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum").item()
    bits = nats / math.log(2) / (len(ids) - 2)
    assert bits_per_byte(model, patcher, [ids], shown.append) == pytest.approx(bits, rel=1e-6)
    assert sum(shown) == len(ids) - 1


def test_bits_of_an_output_are_those_behind_its_prompt():
    model, patcher = make_models(1)
    prompt, ids = random_ids(9, 1)[1:].tolist(), random_ids(40, 2)[1:].tolist()
    text = torch.tensor([BOS, *prompt, *ids])
    with torch.no_grad():
        log_p = model(text[None], patcher.closes(text)[None])[0].log_softmax(-1)
    own = [log_p[len(prompt) + i, id_].item() for i, id_ in enumerate(ids)]
    bits = -sum(own) / len(own) / math.log(2)
    assert output_bits(model, patcher, prompt, ids) == pytest.approx(bits, rel=1e-5)
    bits = -own[0] / math.log(2)
    assert output_bits(model, patcher, prompt, ids[:1]) == pytest.approx(bits, rel=1e-5)


def test_distinct_4grams_by_hand():
    assert distinct_4grams([[1, 2, 3, 4, 5]]) == 1.0
    assert distinct_4grams([[1, 1, 1, 1, 1, 1]]) == pytest.approx(1 / 3)
    assert distinct_4grams([[1, 2, 3, 4], [1, 2, 3, 4]]) == 0.5  # none spans two outputs
    assert distinct_4grams([[1, 2, 3]]) == 0.0


# ---- run


def test_it_watches_plain_blt_write(trained_file, capsys):
    given = ["--checkpoint", str(trained_file), "--prompt", "def ", "--bytes", "6"]
    generating.main(given)
    lines = capsys.readouterr().out.splitlines()
    model, patcher = generating.load_model(trained_file)
    ids = generate(model, patcher, encode(b"def "), 6, sampling=ENDLESS).ids
    shown = [line.split()[0] for line in lines[2:] if not line.startswith(" ")]
    assert len(lines) == 8
    written = [chr(id_ - 4) for id_ in ids if chr(id_ - 4).isalnum()]
    assert [word for word in shown if word.isalnum()] == written
