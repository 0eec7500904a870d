"""generate.py: from logits to bytes, the plain state, plain BLT on both machines, and its costs."""

import math
from collections import Counter

import pytest
import torch
from conftest import (
    FAST,
    count_passes,
    fast_of,
    make_models,
    plain_of,
    random_ids,
    seen_by_hooks,
    tensor_of,
)

from bandwidth import (
    acceptance,
    cost_of,
    gigabytes,
    gigabytes_of,
    gigabytes_with_patcher,
    mean_patch,
    total,
)
from data import BOS, EOS, MASK, PAD, decode, encode
from fast.load import load
from generate import Output, Prefix, Sampling, ban, distribution, draw
from generate import generate as plain_blt
from measure import ideas
from measure.quality import bits_per_byte, distinct_4grams, output_bits
from support.generation import Counters, Generation, Watch

ENDLESS = Sampling(ignore_eos=True)

# ---- how the next byte is chosen


def test_special_ids_are_never_generated_and_eos_only_ends():
    p = distribution(torch.zeros(1, 260), Sampling(temperature=1.0))[0]
    assert p[[PAD, BOS, MASK]].sum() == 0
    assert p[EOS] > 0 and p.sum() == pytest.approx(1.0)
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
    state = fast_of(model, patcher).state()
    made = plain_blt(state, [], 400, sampling=Sampling(temperature=1.0, seed=3))
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
    logits[0, 77] = logits[1, 99] = 5.0
    assert draw(distribution(logits, Sampling()), Sampling()) == [77, 99]
    p = torch.zeros(2, 260)
    p[0, 50] = p[1, 60] = 1.0
    assert draw(p, Sampling(temperature=1.0)) == [50, 60]


def test_drawn_ids_are_distributed_as_p_says():
    """Chi-square over five ids, with probabilities that differ from row to row."""
    p = torch.zeros(2, 260)
    p[0, 50:55] = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])
    p[1, 50:55] = torch.tensor([0.05, 0.1, 0.15, 0.3, 0.4])
    sampling = Sampling(temperature=1.0, seed=4)
    counts = [Counter(), Counter()]
    for _ in range(2000):
        for counted, id_ in zip(counts, draw(p, sampling)):
            counted[id_] += 1
    for row, counted in zip(p, counts):
        expected = 2000 * row[50:55]
        seen = torch.tensor([counted[id_] for id_ in range(50, 55)])
        assert seen.sum() == 2000
        assert ((seen - expected) ** 2 / expected).sum() < 4 + 4 * 8**0.5


def test_sampling_is_reproducible_and_varied():
    machine = fast_of(*make_models(0))
    made = [
        plain_blt(machine.state(), [], 40, sampling=Sampling(1.0, 0.9, True, seed)).ids
        for seed in (1, 1, 2)
    ]
    assert made[0] == made[1] != made[2]


# ---- what ends an output


def written(ids, sampling, max_bytes=9):
    """What Output keeps of new ids, and whether more may follow."""
    out = Output(None, [99], max_bytes, sampling, Watch())
    more = out.write(ids)
    return out.text[2:], more


def test_output_ends_at_eos_at_stops_and_at_its_budget():
    assert written([5, 6, EOS, 7], Sampling()) == ([5, 6], False)
    assert written([5, 6, 7], Sampling()) == ([5, 6, 7], True)
    assert written([5, 6, 7, EOS], Sampling(stop=(6, 9))) == ([5], False)
    assert written([EOS], Sampling()) == ([], False)
    assert written([], Sampling()) == ([], True)
    assert written([5, 6, 7], Sampling(), max_bytes=3) == ([5, 6, 7], False)
    assert written([5, 6, 7], Sampling(), max_bytes=2) == ([5, 6], False)
    # What stands behind the budget ends nothing: it is not looked at.
    assert written([5, 6, EOS], Sampling(), max_bytes=2) == ([5, 6], False)


def test_a_stop_ends_plain_blt_where_it_first_stands():
    machine = fast_of(*make_models(0))
    whole = plain_blt(machine.state(), [], 30, sampling=ENDLESS).ids
    last = whole[20]
    stopping = Sampling(ignore_eos=True, stop=(last,))
    cut = plain_blt(machine.state(), [], 30, sampling=stopping).ids
    assert cut == whole[: whole.index(last)]


@pytest.mark.parametrize("prompt", [[], [104]])
def test_a_budget_of_one_byte_and_an_empty_prompt(prompt):
    for machine in (plain_of(*make_models(2)), fast_of(*make_models(2))):
        made = plain_blt(machine.state(), prompt, 1, sampling=ENDLESS)
        assert made.ids == plain_blt(machine.state(), prompt, 9, sampling=ENDLESS).ids[:1]
        passes = {"decoder": 1, "encoder_global": 1, "entropy": 1}
        assert made.counters == Counters(prefill=Counter(passes))


# ---- the plain state


@torch.no_grad()
def in_full(model, patcher, ids):
    """Logits (N, V) of a text, by one pass over the whole of it."""
    return model(ids[None], patcher.closes(ids)[None])[0]


@pytest.mark.parametrize("max_patch, mean", [(1, 1), (8, 4), (8, 7.5)])
def test_the_plain_state_gives_the_logits_of_a_pass_over_the_whole_text(max_patch, mean):
    """However it is cut: later bytes change nothing, neither logits nor patches."""
    models = make_models(0, window=12, global_window=4, max_patch=max_patch, mean=mean)
    ids = random_ids(60, 1)
    state = Prefix(*models)
    logits = [state.extend(ids[:7].tolist())]
    for i in range(7, 60, 3):
        if i % 2:
            state.advance(ids[i : i + 3].tolist())
            state.rollback(i)
        state.peek([104, 105])
        logits.append(state.extend(ids[i : i + 3].tolist()))
    whole = in_full(*models, ids)
    assert torch.allclose(torch.cat(logits), whole[: state.length], atol=1e-9)
    assert state.closed == models[1].closes(ids).tolist()[: state.length]
    assert state.counters.patches_closed == sum(state.closed)
    assert state.counters.bytes_advanced == state.length


@pytest.mark.parametrize("kind", ["plain", *FAST])
def test_a_byte_moves_no_earlier_logit(kind):
    """Guards: a causality that holds for whole texts alone, as patches move."""
    models = make_models(1, window=24)
    make = {"plain": plain_of, **FAST}[kind]
    ids = random_ids(60, 4)
    before = make(*models).state().extend(ids.tolist())
    for change in (1, 13, 30, 59):
        changed = ids.clone()
        changed[change] = 200
        moved = (make(*models).state().extend(changed.tolist()) - before).abs().amax(-1) > 1e-9
        assert not moved[:change].any(), f"{kind}: the byte at {change} moved an earlier logit"
        assert moved[change]


# ---- plain BLT


def repeated_forwards(model, patcher, prompt, n):
    """Greedy plain BLT without any state: the whole text anew for each byte."""
    text = [BOS, *prompt]
    for _ in range(n):
        logits = in_full(model, patcher, tensor_of(text))[-1]
        logits[[PAD, BOS, EOS, MASK]] = -math.inf
        text.append(int(logits.argmax()))
    return text[1 + len(prompt) :]


@pytest.mark.parametrize("seed, max_patch, mean", [(0, 8, 3), (1, 1, 1), (2, 4, 3), (3, 8, 7.5)])
def test_fast_plain_blt_writes_what_repeated_forwards_do(seed, max_patch, mean):
    """With the same counters. Random weights have small margins: any difference shows soon."""
    models = make_models(seed, window=16, global_window=4, max_patch=max_patch, mean=mean)
    for prompt in ([], [100, 101]):
        slow = repeated_forwards(*models, prompt, 40)
        plain = plain_blt(plain_of(*models).state(), prompt, 40, sampling=ENDLESS)
        assert plain.ids == slow, "generate.generate on Prefix does not follow model.BLT.forward"
        for name, make in FAST.items():
            made = plain_blt(make(*models).state(), prompt, 40, sampling=ENDLESS)
            said = f"generate.generate on fast.stream ({name}) does not follow that on Prefix"
            assert made.ids == plain.ids, said
            assert made.counters == plain.counters, said
            assert made.sizes == plain.sizes, said


def test_fast_plain_blt_writes_what_repeated_forwards_do_past_the_turn_of_buffers():
    """Guards: a cached generate that differs once buffers are full."""
    models = make_models(0, window=16, global_window=4)
    machine = fast_of(*models)
    stream = machine.kind(machine.model, machine.patcher, max_rollback=8, max_rows=16)
    assert stream.decoder_cache.capacity < 90
    made = plain_blt(stream, [104], 200, sampling=ENDLESS)
    assert made.ids == repeated_forwards(*models, [104], 200)


def test_fast_plain_blt_writes_what_repeated_forwards_do_on_a_trained_model(trained):
    prompt = [104, 105, 106, 36]
    slow = repeated_forwards(*trained, prompt, 80)
    for make in (plain_of, *FAST.values()):
        made = plain_blt(make(*trained).state(), prompt, 80, sampling=ENDLESS)
        assert made.ids == slow, make.__name__


@seen_by_hooks
@pytest.mark.parametrize("make", FAST.values(), ids=FAST)
def test_counters_count_passes_that_really_ran(make):
    machine = make(*make_models(2))
    ran = count_passes(machine.model, machine.patcher)
    made = plain_blt(machine.state(), [104, 105], 90, sampling=ENDLESS)
    spent = made.counters
    prefill = spent.prefill
    assert ran["decoder"] == spent.decoder + prefill["decoder"]
    assert ran["entropy"] == spent.entropy + prefill["entropy"]
    assert ran["encoder"] == ran["globe"] == spent.encoder_global + prefill["encoder_global"]
    # The prefill gave the first byte.
    assert spent.decoder == spent.entropy == spent.bytes_advanced == 89
    # Plain decoding: one call for each patch closed, exactly.
    assert spent.encoder_global == spent.patches_closed > 5


class Spy(Watch):
    """Remembers all that it is told."""

    def __init__(self):
        self.told = []

    def begin(self, state):
        self.told.append(("begin", state.length))

    def bytes(self, ids):
        self.told.append(("bytes", ids))

    def round(self, state, drafted, accepted, following):
        self.told.append(("round", state.length, drafted, accepted, following))


def test_a_watch_is_told_each_byte_as_it_is_written():
    for machine in (plain_of(*make_models(0)), fast_of(*make_models(0))):
        spy = Spy()
        made = plain_blt(machine.state(), [104], 12, sampling=ENDLESS, watch=spy)
        expected = [("begin", 2)]
        for i, id_ in enumerate(made.ids):
            expected += [("round", 2 + i, [], 0, id_), ("bytes", [id_])]
        assert spy.told == expected


# ---- what a generation cost


def test_eq8_on_hand_worked_numbers():
    assert gigabytes(512, 250, 160e6, 1.299e9) == pytest.approx(813.34)  # the paper says 814.95
    assert gigabytes(1, 0, 1e9, 5e9) == 2.0
    assert gigabytes(1, 0, 1e9, 5e9, bits=4) == 0.5
    assert gigabytes(3, 2, 10, 100, bits=8) == pytest.approx(230e-9)


SIZES = {
    "encoder": 30,
    "global": 400,
    "decoder": 50,
    "chain": 2,
    "ngram_tables": 10**9,
    "patcher": 7,
}


def test_costs_of_a_generation_by_hand():
    """No n-gram table is read, and the patcher's passes stand apart."""
    counters = Counters(
        decoder=10,
        encoder_global=3,
        entropy=6,
        bytes_advanced=12,
        patches_closed=5,
        rounds=4,
        drafted=8,
        accepted=6,
    )
    made = Generation([100] * 11, counters, 2.0, SIZES)
    assert made.new_bytes == 11
    assert made.bytes_per_second == 5.5
    assert acceptance(made) == 0.75
    assert mean_patch(made) == 2.4
    # 10 x 50 + 3 x (30 + 400) = 1790 numbers of two bytes each
    assert gigabytes_of(made) == pytest.approx(3580e-9)
    assert gigabytes_of(made, bits=32) == pytest.approx(7160e-9)
    assert gigabytes_with_patcher(made) == pytest.approx((3580 + 2 * 42) * 1e-9)
    assert gigabytes_with_patcher(made, bits=8) == pytest.approx((1790 + 42) * 1e-9)
    assert cost_of(made) == {
        "new_bytes": 11,
        "seconds": 2.0,
        "bytes_per_second": 5.5,
        "decoder_nfes": 10,
        "encoder_global_nfes": 3,
        "entropy_nfes": 6,
        "bandwidth_gb": gigabytes_of(made),
    }
    nothing = Generation([], Counters(), 0.0, SIZES)
    assert acceptance(nothing) is None
    assert mean_patch(nothing) is None
    assert nothing.bytes_per_second is None and gigabytes_of(nothing) == 0
    counters.chain = 5  # cells of two numbers each
    assert gigabytes_of(made) == pytest.approx((3580 + 2 * 10) * 1e-9)


def test_a_total_is_the_sum_of_its_parts_by_hand():
    """Ids, passes, seconds, the prefill's passes and the accepted lengths; the parts stay."""
    first = Counters(
        decoder=10,
        encoder_global=3,
        entropy=6,
        chain=1,
        bytes_advanced=9,
        patches_closed=4,
        prefill=Counter(decoder=1, encoder_global=1, entropy=1),
        rounds=5,
        drafted=20,
        accepted=7,
        lengths=Counter({0: 2, 3: 3}),
    )
    second = Counters(
        decoder=1,
        encoder_global=2,
        entropy=3,
        chain=4,
        bytes_advanced=4,
        patches_closed=5,
        prefill=Counter(decoder=2, encoder_global=1, entropy=4),
        rounds=6,
        drafted=7,
        accepted=8,
        lengths=Counter({3: 1, 4: 5}),
    )
    one = Generation([100, 101], first, 1.5, SIZES)
    two = Generation([102], second, 0.5, SIZES)
    both = total([one, two])
    assert both.ids == [100, 101, 102]
    assert both.seconds == 2.0
    assert both.sizes == SIZES
    assert both.counters == Counters(
        decoder=11,
        encoder_global=5,
        entropy=9,
        chain=5,
        bytes_advanced=13,
        patches_closed=9,
        prefill=Counter(decoder=3, encoder_global=2, entropy=5),
        rounds=11,
        drafted=27,
        accepted=15,
        lengths=Counter({0: 2, 3: 4, 4: 5}),
    )
    assert gigabytes_of(both) == pytest.approx(gigabytes_of(one) + gigabytes_of(two))
    assert both.bytes_per_second == 1.5
    assert mean_patch(both) == 13 / 9
    assert one.counters.lengths == {0: 2, 3: 3}
    assert two.ids == [102]
    assert total([one]).counters == one.counters


@pytest.mark.parametrize("changes", [{}, {"block_size": 4, "chain_width": 6}])
def test_sizes_are_those_of_the_models_parts(changes):
    """Of the plain model, on a folded one too."""
    model, patcher = make_models(0, **changes)
    everything = sum(p.numel() for part in (model, patcher) for p in part.parameters())
    for machine in (plain_of(model, patcher), fast_of(model, patcher)):
        sizes = plain_blt(machine.state(), [], 2).sizes
        assert sum(sizes.values()) == everything
        assert sizes["patcher"] == sum(p.numel() for p in patcher.parameters())
        assert sizes["ngram_tables"] == model.encoder.hashes.weight.numel()


# ---- how likely bytes are


def test_bits_per_byte_equals_the_full_forwards_loss(trained):
    """A document longer than a pass takes; its EOS is predicted too, and counts as no byte."""
    ids = torch.cat([random_ids(600, 4), tensor_of([EOS])])
    logits = in_full(*trained, ids)[:-1]
    nats = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum").item()
    bits = nats / math.log(2) / (len(ids) - 2)
    for machine in (plain_of(*trained), fast_of(*trained)):
        shown = []
        told = bits_per_byte(machine.state, [ids.cpu()], shown.append)
        assert told == pytest.approx(bits, rel=1e-6)
        assert sum(shown) == len(ids) - 1
    assert bits_per_byte(machine.state, []) is None


def test_bits_of_an_output_are_those_behind_its_prompt():
    model, patcher = make_models(1)
    prompt = random_ids(9, 1)[1:].tolist()
    ids = random_ids(40, 2)[1:].tolist()
    log_p = in_full(model, patcher, tensor_of([BOS, *prompt, *ids])).log_softmax(-1)
    own = [log_p[len(prompt) + i, id_].item() for i, id_ in enumerate(ids)]
    for machine in (plain_of(model, patcher), fast_of(model, patcher)):
        bits = -sum(own) / len(own) / math.log(2)
        assert output_bits(machine, prompt, ids) == pytest.approx(bits, rel=1e-5)
        bits = -own[0] / math.log(2)
        assert output_bits(machine, prompt, ids[:1]) == pytest.approx(bits, rel=1e-5)
        assert output_bits(machine, prompt, []) is None


def test_distinct_4grams_by_hand():
    assert distinct_4grams([[1, 2, 3, 4, 5]]) == 1.0
    assert distinct_4grams([[1, 1, 1, 1, 1, 1]]) == pytest.approx(1 / 3)
    assert distinct_4grams([[1, 2, 3, 4], [1, 2, 3, 4]]) == 0.5  # none spans two outputs
    assert distinct_4grams([[1, 2, 3]]) is None


# ---- run


def test_it_watches_plain_blt_write(trained_file, capsys):
    ideas.generate(["--checkpoint", str(trained_file), "--prompt", "def ", "--bytes", "6"])
    lines = capsys.readouterr().out.splitlines()
    state = load(trained_file).state()
    text = decode(plain_blt(state, encode(b"def "), 6, sampling=ENDLESS).ids).decode()
    shown = [line.split()[0] for line in lines[2:] if not line.startswith(" ")]
    assert len(lines) == 8
    assert [word for word in shown if word.isalnum()] == [c for c in text if c.isalnum()]
