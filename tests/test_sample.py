"""sample.py: what a user sees of a generation, in numbers worked out by hand."""

import json
import re
from dataclasses import fields

import pytest
import torch
from conftest import fast_of, make_models, plain_of, random_ids

import sample
from data import BOS, MASK, PAD, encode
from fast import __main__ as way
from fast.load import Machine, load
from generate import Prefix, Sampling, generate
from measure.modes import check_compared, check_drafting, state_for
from measure.quality import identical, masked_accuracy
from measure.rounds import PaperPrefix
from measure.show import Printer
from sample import (
    as_json,
    drafting_of,
    options_from,
    paper_calls,
    sampling_of,
    speed_beside,
    summary,
    warm_beside_plain,
)
from speculate import MODES, Drafting, run_mode, settled
from support.generation import Counters, Generation, Watch
from support.terminal import BadInput

SIZES = {"encoder": 30, "global": 400, "decoder": 50, "chain": 2}
SIZES |= {"ngram_tables": 10**9, "patcher": 7}


def made_up(ids=(101, 103), **counted):
    """A Generation of numbers that are easy to check."""
    given = {"decoder": 40, "encoder_global": 5, "entropy": 9, "rounds": 7, "drafted": 20}
    given |= {"accepted": 6, "lengths": {3: 1, 0: 4}, "prefill": {"decoder": 1}}
    given |= {"bytes_advanced": 12, "patches_closed": 5}
    return Generation(list(ids), Counters(**given | counted), 0.5, SIZES)


# ---- one generation in words and in JSON

# Calls that the paper counts for seven rounds (blocks of bltd) with five of our own
PAPER_CALLS = {"blt": 5, "blts": 14, "bltd": 7, "bltdv": 14, "lookup": 14}


@pytest.mark.parametrize("mode", PAPER_CALLS)
def test_calls_are_counted_as_the_paper_does(mode):
    """Two a round where drafts are verified, one a block of BLT-D, and those made by plain BLT."""
    assert paper_calls(mode, made_up()) == PAPER_CALLS[mode]
    row = as_json(mode, b"x", made_up())
    assert row["paper_encoder_global_nfes"] == PAPER_CALLS[mode]
    assert row["encoder_global_nfes"] == 5


def test_json_of_a_generation_by_hand():
    row = as_json("blts", b"a\xff", made_up(encode(b"\xffb")))
    gigabytes = 2 * (40 * 50 + 5 * 430) / 1e9
    with_patcher = gigabytes + 2 * 9 * 7 / 1e9
    assert row == {
        "mode": "blts",
        "prompt": "a\ufffd",
        "output": "\ufffdb",
        "output_hex": "ff62",
        "new_bytes": 2,
        "seconds": 0.5,
        "bytes_per_second": 4.0,
        "decoder_nfes": 40,
        "encoder_global_nfes": 5,
        "entropy_nfes": 9,
        "bandwidth_gb": pytest.approx(gigabytes),
        "prefill_nfes": {"decoder": 1},
        "paper_encoder_global_nfes": 14,
        "rounds": 7,
        "drafted": 20,
        "accepted": 6,
        "acceptance": 0.3,
        "accepted_lengths": {"0": 4, "3": 1},
        "mean_patch": 2.4,
        "bandwidth_gb_with_patcher": pytest.approx(with_patcher),
    }
    assert json.loads(json.dumps(row)) == row


def test_averages_over_nothing_are_null():
    nothing = dict(drafted=0, accepted=0, bytes_advanced=0, patches_closed=0)
    row = as_json("blts", b"", made_up((), **nothing))
    assert row["acceptance"] is None and row["mean_patch"] is None


def test_summary_says_what_was_counted():
    text = summary("blts", made_up(), ", 2.00 times plain BLT")
    assert text.splitlines()[0] == "[bytes accepted a round: 0 in 4, 3 in 1 rounds]"
    assert text.splitlines()[-1].startswith("[blts: 2 bytes, 4 bytes/s, 2.00 times plain BLT")
    assert "2 bytes" in text and "4 bytes/s" in text and "mean patch 2.40" in text
    assert "7 rounds" in text and "30% of 20" in text and "the paper's count: 14" in text
    plain = summary("blt", made_up(rounds=0, drafted=0, lengths={}), "")
    assert (
        "times" not in plain
        and "rounds" not in plain
        and "paper" not in plain
        and "decoder 40" in plain
    )


# ---- text as it is made


def test_bytes_of_one_character_wait_for_each_other(capsys):
    printer = Printer()
    for byte in "é".encode():
        printer.bytes([byte + 4])
    assert capsys.readouterr().out == "é"
    printer.bytes([0xE2 + 4])
    printer.finish()
    assert capsys.readouterr().out == "\ufffd"


# Clears the screen, renames the window, goes back in the line, turns the direction of text
CONTROLS = "a\x1b[2J\x1b]0;b\x07\rc\x9bd\u202ee\n\tf é 👩\u200d🔬 \u00a0"


def test_control_characters_are_shown_on_a_terminal_alone(capsys, monkeypatch):
    """What a model writes, or a prompt holds, moved the cursor and renamed the window."""

    def printed():
        printer = Printer()
        printer.prompt(b"\x1b[31mp\n")
        printer.bytes(encode(CONTROLS.encode()))
        printer.finish()
        return capsys.readouterr().out

    assert printed() == "\x1b[31mp\n" + CONTROLS  # a pipe gets all as it is
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    shown = "a\\x1b[2J\\x1b]0;b\\x07\\x0dc\\x9bd\\x202ee\n\tf é 👩\u200d🔬 \u00a0"
    assert printed() == "\\x1b[31mp\n" + shown


def test_a_traced_prompt_is_shown_too(trained_file, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    known = ["--checkpoint", str(trained_file), "--bytes", "3", "--mode", "lookup", "--trace"]
    sample.main([*known, "--prompt", "a\x1b[2J"])
    said = capsys.readouterr().out
    assert "a\\x1b[2J" in said and "\x1b[2J" not in said


def test_prompt_and_output_are_one_text(tmp_path, trained_file, monkeypatch, capsys):
    """A prompt that ended inside a character once printed two U+FFFD."""
    (tmp_path / "prompt").write_bytes(b"caf\xc3")

    def write(mode, state, prompt, max_bytes, drafting, *, sampling, watch=None):
        if watch:
            watch.bytes(encode(b"\xa9!"))
        return made_up(encode(b"\xa9!"))

    monkeypatch.setattr(sample, "run_mode", write)
    arguments = ["--checkpoint", str(trained_file), "--prompt-file", str(tmp_path / "prompt")]
    sample.main(arguments)
    assert capsys.readouterr().out.startswith("café!\n\n[")


# ---- the speed that is printed


def test_speeds_are_of_as_many_bytes_by_warm_machines(trained_file, monkeypatch, capsys):
    """Guards: 256 bytes of a cold mode were once divided by 128 of a warm plain BLT.

    What ends the text ends neither of the two, and nothing of them is printed.
    """
    calls = []

    def write(mode, state, prompt, max_bytes, drafting, *, sampling, watch=None):
        # A text that may end is one of seven bytes.
        made = made_up(range(50, 50 + (max_bytes if sampling.ignore_eos else 7)))
        calls.append((mode, max_bytes, made.new_bytes, list(prompt), sampling.seed))
        made.seconds = {"blt": 3.0}.get(mode, 2.0)
        return made

    monkeypatch.setattr(sample, "run_mode", write)
    known = ["--checkpoint", str(trained_file), "--prompt", "ab", "--bytes", "90", "--seed", "5"]
    sample.main(["--mode", "lookup", *known])
    ids = encode(b"ab")
    warm_up = [("lookup", 8, 8, ids, 5), ("blt", 8, 8, ids, 5)]
    timed = [("lookup", 7, 7, ids, 5), ("blt", 7, 7, ids, 5)]
    assert calls == [("lookup", 90, 7, ids, 5), *warm_up, *timed]
    assert "7 bytes, 4 bytes/s, 1.50 times plain BLT" in capsys.readouterr().out
    calls.clear()
    sample.main(["--mode", "blt", *known])
    assert len(calls) == 1 and "times" not in capsys.readouterr().out
    # JSON has nothing of it, and the plain machine's seconds say nothing of the method.
    sample.main(["--mode", "lookup", "--json", *known])
    sample.main(["--mode", "lookup", "--plain", *known])
    assert len(calls) == 3
    out = capsys.readouterr().out
    assert "bytes/s on the plain machine" in out and "times" not in out


def test_no_more_is_timed_than_is_quick(monkeypatch):
    sizes = []

    def beside(mode, machine, prompt, size, drafting, options):
        sizes.append(size)
        return made_up(range(10, 10 + size)), made_up(range(10, 10 + size))

    monkeypatch.setattr(sample, "warm_beside_plain", beside)
    machine = fast_of(*make_models(0))
    for n in (2, 300, 5000):
        made = made_up(range(n))
        words = speed_beside("blts", machine, [], made, Drafting(), options_from([]))
        assert words == ", 1.00 times plain BLT"
    assert sizes == [2, 300, 512]
    for n in (0, 1):  # plain BLT has the first byte from the prompt alone
        made = made_up(range(n))
        assert speed_beside("blts", machine, [], made, Drafting(), options_from([])) == ""


@pytest.mark.parametrize("mode", ["blts", "bltd", "bltdv"])
def test_both_that_are_timed_write_as_many_bytes(mode, trained_file):
    options = options_from(["--temperature", "2", "--seed", "4"])
    machine = load(trained_file)
    ours, plain = warm_beside_plain(mode, machine, encode(b"x"), 30, Drafting(), options)
    assert ours.new_bytes == plain.new_bytes == 30
    # the modes that they should be: plain BLT has no rounds
    assert ours.counters.rounds > 0 == plain.counters.rounds


# ---- every mode from a checkpoint


def json_of(capsys, *arguments):
    sample.main(["--json", *arguments])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rounds", ["ours", "paper"])
def test_every_mode_from_a_checkpoint(mode, rounds, trained_file, capsys):
    """In the paper's rounds the calls made are those that the paper counts."""
    known = ["--checkpoint", str(trained_file), "--ignore-eos", "--bytes", "20"]
    asked = ["--mode", mode, "--rounds", rounds, "--prompt", "def ", *known]
    if mode == "blt" and rounds == "paper":
        with pytest.raises(BadInput, match="--mode blt has no rounds"):
            sample.main(asked)
        return
    (row,) = json_of(capsys, *asked)
    assert set(row) == set(as_json("blt", b"", made_up())) and row["mode"] == mode
    assert row["new_bytes"] == 20 == len(bytes.fromhex(row["output_hex"]))
    if rounds == "paper" or mode == "blt":
        assert row["encoder_global_nfes"] == row["paper_encoder_global_nfes"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", [[], ["--temperature", "0.9", "--seed", "3", "--top-p", "0.95"]])
def test_the_plain_machine_prints_the_same(mode, how, trained_file, capsys):
    """All but the seconds, and to the last pass."""
    known = ["--checkpoint", str(trained_file), "--mode", mode, "--prompt", "def f(", *how]
    (fast,) = json_of(capsys, *known, "--bytes", "40")
    (plain,) = json_of(capsys, *known, "--bytes", "40", "--plain")
    for row in (fast, plain):
        del row["seconds"], row["bytes_per_second"]
    assert fast == plain and fast["new_bytes"] > 20


def test_all_modes_beside_each_other(trained_file, capsys):
    """Each gets the flags that it reads; plain BLT has no rounds to make like the paper's."""
    known = ["--checkpoint", str(trained_file), "--compare", "--prompt", "def ", "--bytes", "16"]
    given = ["--draft-size", "3", "--block-size", "4", "--rounds", "paper", "--ignore-eos"]
    rows = json_of(capsys, *known, *given)
    assert [row["mode"] for row in rows] == list(MODES)
    for row in rows:
        assert row["encoder_global_nfes"] == row["paper_encoder_global_nfes"]
        verified = row["mode"] == "blt" or MODES[row["mode"]].verified
        assert row["identical_to_blt"] in ((True, "tie") if verified else (True, False))
    (alone,) = json_of(capsys, *known[:2], *known[3:], "--ignore-eos", "--mode", "blt")
    assert rows[0]["encoder_global_nfes"] == alone["encoder_global_nfes"]
    sample.main([*known, *given])
    out = capsys.readouterr().out
    assert "Seconds are those of the plain machine" in out and "identical to plain BLT: " in out
    sample.main([*known, "--plain"])
    assert "Seconds are those of the plain machine" in capsys.readouterr().out
    sample.main(known)
    out = capsys.readouterr().out
    assert "One pass, ms: decoder of 1 " in out and len(re.findall("^blt", out, re.M)) == 4


# ---- the paper's rounds


class Calls(Watch):
    """Notes the encoder/global calls of each round, and how much was drafted in it."""

    def begin(self, state):
        self.rounds = []
        self.before = 0

    def round(self, state, drafted, accepted, following):
        calls = state.counters.encoder_global
        self.rounds.append((calls - self.before, len(drafted)))
        self.before = calls


def paper_machine(model, patcher):
    return Machine(model, patcher, PaperPrefix)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "mode, drafting",
    [
        ("blts", Drafting(draft_size=3)),
        ("bltdv", Drafting(unmask="one-step")),
        ("bltdv", Drafting(unmask="confidence", alpha=0.9)),
        ("bltdv", Drafting(unmask="chained", copy=5)),
        ("lookup", Drafting(draft_size=4)),
    ],
)
def test_the_papers_rounds_cost_two_calls(mode, drafting, seed):
    """One before the draft and one with its verification; the bytes are plain BLT's."""
    models = make_models(seed, block_size=8, chain_width=6)
    prompt = random_ids(14, seed)[1:].tolist()
    expected = generate(plain_of(*models).state(), prompt, 30).ids
    calls = Calls()
    state = state_for(mode, paper_machine(*models))
    made = run_mode(mode, state, prompt, 30, drafting, watch=calls)
    assert made.ids == expected
    assert calls.rounds and all(count == 2 for count, drafted in calls.rounds)
    assert any(drafted for _, drafted in calls.rounds) or mode == "lookup"
    assert made.counters.encoder_global == 2 * made.counters.rounds == paper_calls(mode, made)


@pytest.mark.parametrize("rule", ["confidence", "one-step", "entropy", "chained"])
def test_a_block_of_the_papers_costs_one_call(rule):
    models = make_models(1, block_size=8, chain_width=6)
    state = state_for("bltd", paper_machine(*models))
    prompt = random_ids(14, 1)[1:].tolist()
    sampling = Sampling(ignore_eos=True)
    made = run_mode("bltd", state, prompt, 30, Drafting(unmask=rule), sampling=sampling)
    # 30 bytes are four blocks of 8; the last of them is not taken in.
    assert made.counters.rounds == 4 == made.counters.encoder_global
    assert made.counters.entropy == 3


def test_a_draft_of_the_papers_reads_the_open_patch():
    """A block reads the latent of all that is decided, not that of the last closed patch."""
    model, patcher = make_models(2, block_size=8)
    text = random_ids(23, 2).tolist()
    closes = patcher.closes(torch.tensor(text))
    assert not closes[-1], "this text ends inside a patch"
    ours = Prefix(model, patcher)
    papers = PaperPrefix(model, patcher)
    for state in (ours, papers):
        state.extend(text[:-1])
    got = papers.peek(text[-1:], [MASK] * 8)
    closes[-1] = True
    expected = ours.rows(text, closes.tolist(), cells=[MASK] * 8)[-9:]
    assert torch.equal(got, expected)
    assert not torch.allclose(got, ours.peek(text[-1:], [MASK] * 8))
    # It leaves no trace: the draft is verified against what plain BLT would write.
    following = [104, 105]
    assert torch.equal(papers.extend(following), ours.extend(following))


def test_plain_blt_has_no_rounds_beside_the_papers():
    machine = paper_machine(*make_models(0))
    assert type(state_for("blt", machine)) is Prefix
    assert type(state_for("lookup", machine)) is PaperPrefix


# ---- flags


def test_flags_become_a_sampling():
    given = ["--temperature", "0.5", "--top-p", "0.9", "--seed", "3", "--ignore-eos"]
    expected = Sampling(0.5, 0.9, ignore_eos=True, seed=3, stop=(14,))
    made = sampling_of(options_from(given), stop=(14,))
    names = ("temperature", "top_p", "ignore_eos", "seed", "stop")
    assert [getattr(made, n) for n in names] == [getattr(expected, n) for n in names]


def test_flags_become_a_drafting():
    """Every field has a flag of its name, and is None where that is not given."""
    assert drafting_of(options_from([])) == Drafting()
    given = Drafting(3, 4, "entropy", 0.25, 1.5, 6)
    flags = []
    for field in fields(Drafting):
        flags += ["--" + field.name.replace("_", "-"), str(getattr(given, field.name))]
    assert drafting_of(options_from(flags)) == given


# What is not read: the mode, what is drafted by, words of the complaint and of its advice
UNREAD = [
    ("blt", Drafting(draft_size=4), "--mode blt reads no --draft-size", "--mode blts or lookup"),
    ("blt", Drafting(unmask="entropy", copy=3), "blt reads no --unmask", "--mode bltd or bltdv"),
    ("blt", Drafting(copy=3), "--mode blt reads no --copy", "give --mode bltdv"),
    ("blts", Drafting(block_size=4), "--mode blts reads no --block-size", "--mode bltd or bltdv"),
    ("bltd", Drafting(draft_size=4), "--mode bltd reads no --draft-size", "--mode blts or lookup"),
    ("bltd", Drafting(gamma=0.1), "with --unmask confidence reads no --gamma", "--unmask entropy"),
    ("bltd", Drafting(copy=4), "--mode bltd reads no --copy", "give --mode bltdv"),
    ("bltd", Drafting(unmask="entropy", alpha=0.1), "entropy reads no --alpha", "confidence or"),
    ("bltdv", Drafting(unmask="one-step", alpha=0.1), "one-step reads no --alpha", "confidence or"),
    ("bltdv", Drafting(gamma=0.0), "with --unmask chained reads no --gamma", "--unmask entropy"),
    ("bltdv", Drafting(draft_size=1), "bltdv reads no --draft-size", "--mode blts or lookup"),
    ("lookup", Drafting(copy=0), "--mode lookup reads no --copy", "give --mode bltdv"),
]


@pytest.mark.parametrize("mode, drafting, complaint, advice", UNREAD)
def test_what_a_mode_does_not_read_is_refused(mode, drafting, complaint, advice):
    model, _ = make_models(0, block_size=8, chain_width=6)
    with pytest.raises(BadInput, match=complaint) as problem:
        check_drafting(mode, model, drafting)
    assert "leave it out, or give" in str(problem.value) and advice in str(problem.value)


# What is read, and what each mode reads of it where several are compared
READ = {
    "blt": [Drafting()],
    "blts": [Drafting(draft_size=4)],
    "bltd": [Drafting(block_size=4, alpha=0.0), Drafting(unmask="one-step")],
    "bltdv": [Drafting(block_size=2, copy=9), Drafting(unmask="entropy", gamma=2.0, copy=0)],
    "lookup": [Drafting(draft_size=64)],
}


@pytest.mark.parametrize("mode", READ)
def test_what_a_mode_reads_is_taken(mode):
    model, _ = make_models(0, block_size=8, chain_width=6)
    for drafting in READ[mode]:
        check_drafting(mode, model, drafting)
        check_drafting(mode, model, drafting, "paper" if mode != "blt" else "ours")
        assert check_compared(model, drafting)[mode] == drafting


def test_what_is_not_given_is_as_the_help_says():
    """Guards: blocks of BLT-D that the chained head ended early, by the threshold of confidence."""
    model, _ = make_models(0, block_size=8, chain_width=6)

    def default(mode, name, **given):
        return settled(mode, model, Drafting(**given))[name]

    assert default("blts", "draft_size") == 8 == default("lookup", "draft_size")
    assert default("bltd", "unmask") == "confidence" and default("bltdv", "unmask") == "chained"
    assert default("bltd", "alpha") == 0.7 and default("bltd", "alpha", unmask="chained") == 0
    assert default("bltdv", "alpha", unmask="confidence") == 0.3
    assert default("bltdv", "alpha") == 0 and default("bltdv", "alpha", alpha=0.1) == 0.1
    assert default("bltd", "gamma") == 1.0 and default("bltdv", "gamma") == 1.5
    assert default("bltdv", "copy") == 16 and default("bltdv", "copy", unmask="one-step") == 0
    assert default("bltd", "block_size") == 8 == default("bltdv", "block_size")
    without, _ = make_models(0, block_size=8)
    assert settled("bltdv", without, Drafting())["unmask"] == "one-step"


def test_of_several_modes_each_gets_what_it_reads():
    model, _ = make_models(0, block_size=8, chain_width=6)
    given = Drafting(draft_size=3, block_size=4, alpha=0.5, copy=2)
    assert check_compared(model, given) == {
        "blt": Drafting(),
        "blts": Drafting(draft_size=3, alpha=0.5),
        "bltd": Drafting(block_size=4, alpha=0.5),
        "bltdv": Drafting(block_size=4, alpha=0.5, copy=2),
        "lookup": Drafting(draft_size=3),
    }
    with pytest.raises(BadInput, match="--compare reads no --gamma here: .* --unmask entropy"):
        check_compared(model, Drafting(gamma=1.0))
    with pytest.raises(BadInput, match="up to 8 bytes, not 16"):
        check_compared(model, Drafting(block_size=16))
    plain, _ = make_models(0)
    assert list(check_compared(plain, Drafting(draft_size=3))) == ["blt", "blts", "lookup"]
    with pytest.raises(BadInput, match="this checkpoint is a plain BLT"):
        check_compared(plain, Drafting(block_size=4))


def test_advice_is_of_what_the_model_can():
    """A plain BLT has no other mode that reads --copy, and no chained head to give a threshold."""
    plain, _ = make_models(0)
    with pytest.raises(BadInput, match="reads no --copy: leave it out$"):
        check_drafting("lookup", plain, Drafting(copy=4))
    with pytest.raises(BadInput, match="this checkpoint is a plain BLT"):
        check_drafting("bltdv", plain, Drafting())
    blocks, _ = make_models(0, block_size=8)
    with pytest.raises(BadInput, match="one-step reads no --alpha.* --unmask confidence$"):
        check_drafting("bltdv", blocks, Drafting(alpha=0.5))
    with pytest.raises(BadInput, match="no chained head"):
        check_drafting("bltdv", blocks, Drafting(unmask="chained"))
    for size in (0, 9):
        with pytest.raises(BadInput, match=f"of up to 8 bytes, not {size}"):
            check_drafting("bltd", blocks, Drafting(block_size=size))


# ---- what is called identical, and what is no guess


def test_what_is_called_identical():
    """Only greedy output of a lossless mode can be a tie; anything else is true or false."""
    machine = plain_of(*make_models(0))
    patcher = machine.patcher
    plain = made_up(random_ids(31)[1:].tolist())
    other = made_up(plain.ids[:10] + [(plain.ids[10] - 4 + 1) % 256 + 4] + plain.ids[11:])
    greedy, sampled = options_from([]), options_from(["--temperature", "1"])

    def verdict(mode, made, options=greedy):
        return identical(mode, machine, [], plain, made, options)

    patcher.config.threshold = -9.0  # which no entropy is near
    assert verdict("blts", plain) is True and verdict("bltd", other) is False
    assert verdict("blts", other) is False and verdict("blts", plain, sampled) is None
    text = torch.tensor([BOS, *plain.ids])
    H = patcher.entropies(text)
    patcher.config.threshold = H[4].item() + 1e-6
    assert verdict("blts", other) == "tie" and verdict("bltd", other) is False


def shout(head):
    """Let PAD or MASK have the best logit everywhere: head (V, D) is changed."""
    head[PAD] = 1000 * head[70]
    head[MASK] = -1000 * head[70]


def test_what_is_no_output_is_no_guess_of_a_block(trained):
    """Guards: accuracy once took the best of all 260 logits, and generation never does."""
    model, patcher = trained
    text = torch.tensor([BOS, *encode(b"def f(self, x):\n    return self.x\n" * 12)])
    expected, _ = masked_accuracy(plain_of(model, patcher), [text], 8)
    head = model.decoder.head.weight.data
    before = head.clone()
    shout(head)
    found, _ = masked_accuracy(plain_of(model, patcher), [text], 8)
    best = model(text[None], patcher.closes(text)[None]).argmax(-1)
    head.copy_(before)
    assert set(best.flatten().tolist()) <= {PAD, MASK}
    assert found == expected and sum(found) > 0
    by_fast, bits = masked_accuracy(fast_of(model, patcher), [text], 8)
    assert by_fast == expected and len(bits) == 8


def test_accuracy_over_no_blocks_is_none():
    machine = plain_of(*make_models(0, block_size=8))
    assert masked_accuracy(machine, [random_ids(60)], 8) == (None, None)
    assert masked_accuracy(machine, [], 8) == (None, None)


def test_what_is_no_output_is_no_guess_on_the_way(trained_file, tmp_path, capsys):
    """The same of python -m fast."""
    saved = torch.load(trained_file, weights_only=True)
    shout(saved["model"]["decoder.head.weight"])
    torch.save(saved, tmp_path / "shouts.pt")
    shown = []
    for path in (trained_file, tmp_path / "shouts.pt"):
        way.main(["--checkpoint", str(path), "--text", "def f(self):"])
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] and "guesses" in shown[0]
