"""Likelihoods against a slow sum, scores of known answers, every evaluation as a user runs it."""

import argparse
import json
import lzma
import math
import sys
import zipfile

import pytest
import torch
from conftest import ROOT, fast_of, make_models, plain_of, unfolded_of
from test_scripts import refused

import data
import train
from data import BOS, EOS, corpus_of, document_ids, encode
from diffusion import Unmask, generate_bltd
from evaluation import likelihood
from evaluation.__main__ import main, options_from
from evaluation.answers import answer, exact_score, translation_score
from evaluation.benchmarks import PROGRAMS, TRANSLATIONS
from evaluation.likelihood import choice_log_likelihoods, cloze, xz_size
from evaluation.tasks import Choice, Question, as_bytes, mean, show, translation
from fast.load import load_model
from generate import Sampling, generate
from speculate import generate_bltdv, generate_blts, generate_lookup
from support import checkpoint
from support.terminal import BadInput, Column

COST = {
    *("new_bytes", "seconds", "bytes_per_second", "bandwidth_gb"),
    *("decoder_nfes", "encoder_global_nfes", "entropy_nfes"),
}


def evaluated(capsys, *arguments):
    """What `python -m evaluation ARGUMENTS --json` prints -> list of objects."""
    main([*map(str, arguments), "--json"])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def printed(capsys, *arguments):
    """What `python -m evaluation ARGUMENTS` prints -> list of lines."""
    main([*map(str, arguments)])
    return capsys.readouterr().out.strip().splitlines()


# ---- likelihoods, stops and scores


@pytest.mark.parametrize("machine_of", [plain_of, fast_of, unfolded_of])
@pytest.mark.parametrize("seed, K", [(0, 0), (1, 8)])
def test_likelihood_is_the_slow_sum(seed, K, machine_of):
    """One query pass and rollbacks give what a full forward gives, byte by byte; BLT and BLT-D."""
    item = Choice("a query of abcabc" * 3, [" ab", " abcabd" * 15, "", "\udcff"], 0)
    model, patcher = make_models(seed, block_size=K)
    sums, cost = choice_log_likelihoods(machine_of(model, patcher), item)
    for choice, got in zip(item.choices, sums):
        ids, total = [BOS, *encode(as_bytes(item.query))], 0.0
        for id_ in encode(as_bytes(choice)):
            prefix = torch.tensor(ids)
            logits = model(prefix[None], patcher.closes(prefix)[None])[0, -1]
            total += logits.log_softmax(-1)[id_].item()
            ids.append(id_)
        assert got == pytest.approx(total, abs=1e-9)
    assert cost.counters.decoder >= 1 and cost.counters.entropy >= 1 and cost.ids == []


def test_cloze_hides_the_true_continuation_among_others():
    texts = [bytes(range(256)) * 8, b"0123456789" * 90, b"too short"]
    items = [item for item, _ in zip(cloze(texts), range(30))]
    assert items == [item for item, _ in zip(cloze(texts), range(30))]
    assert {item.gold for item in items} == {0, 1, 2, 3}
    for item in items:
        whole = as_bytes(item.query + item.choices[item.gold])
        assert any(whole in text for text in texts)
        assert [len(as_bytes(choice)) for choice in item.choices] == [32] * 4


def test_a_cloze_says_which_documents_it_leaves_out(capsys):
    """Those that are too short were skipped in silence."""
    next(cloze([bytes(600), b"short", b"shorter", bytes(500)]))
    assert "leaves out 2 of 4 documents: 464 bytes are too few" in capsys.readouterr().err
    next(cloze([bytes(600)]))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("machine_of", [plain_of, fast_of])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_stop_ends_every_mode_where_it_ends_plain_blt(seed, machine_of):
    """The stopping id is neither counted nor made; lossless modes stop at the very same byte."""
    model, patcher = make_models(seed, block_size=8)
    slow, machine = plain_of(model, patcher), machine_of(model, patcher)
    ask = [100, 101], 40
    free = generate(slow.state(), *ask, sampling=Sampling(ignore_eos=True)).ids
    sampling = Sampling(ignore_eos=True, stop=(free[25], 300))
    plain = generate(slow.state(), *ask, sampling=sampling).ids
    assert plain == free[: free.index(free[25])]
    confident, new = Unmask("confidence", 0.3), machine.state
    for made in (
        generate(new(), *ask, sampling=sampling),
        generate_blts(new(), *ask, draft_size=5, sampling=sampling),
        generate_lookup(new(), *ask, draft_size=5, sampling=sampling),
        generate_bltdv(new(), *ask, block_size=8, unmask=confident, sampling=sampling),
    ):
        assert made.ids == plain
    at_once = Unmask("one-step", None)
    made = generate_bltd(new(), *ask, block_size=8, unmask=at_once, sampling=sampling)
    assert free[25] not in made.ids


def test_an_answer_ends_at_the_next_line_that_is_not_indented():
    """It went on behind while, try, with, async def and calls at the margin."""
    asked = Question("def f():\n", "", (), indented=True)
    body = "    x = 1\n\n  \n\tif x:\n\r\n        return x"
    ends = ("while x:", "try:", "with a:", "async def g():", "g()", "x = 2", "# so", "@g", "é", "}")
    for line in (*ends, "def g():", "class A:", "if x:", "print(x)", "import x", '"""', "return"):
        assert asked.answer_in(f"{body}\n{line}\n    y\nz") == body, line
    assert asked.answer_in(body) == body and asked.answer_in("") == ""
    # Others go on: only their stops end them, the first of those that is there.
    asked = Question("", "", ("\n", " b"))
    assert asked.answer_in("a b\nc") == "a" and asked.answer_in("a\nc b") == "a"
    assert asked.answer_in("abc") == "abc"


def test_accuracy_per_byte_is_that_of_the_harness(monkeypatch, capsys):
    """lm-evaluation-harness divides by the choice without the space in front of it."""
    assert Choice("", [" abc", " é", "", "x"], 0).sizes() == [3, 2, 0, 1]
    assert Choice("", [" abc", "é"], 0, separator="").sizes() == [4, 2]
    item = Choice("a query", [" ab", " abc"], 1)
    monkeypatch.setattr(likelihood, "read_items", lambda *_: [item])
    machine = plain_of(*make_models(0))
    _, cost = choice_log_likelihoods(machine, item)

    def accuracies(*sums):
        monkeypatch.setattr(likelihood, "choice_log_likelihoods", lambda *_: (list(sums), cost))
        known = argparse.Namespace(set="piqa", items="x", limit=None, json=True, task="likelihood")
        likelihood.evaluate_likelihood(machine, known)
        row = json.loads(capsys.readouterr().out)
        return row["accuracy"], row["accuracy_per_byte"]

    # With the space it is -2.2 / 3 > -3.2 / 4, without it -2.2 / 2 < -3.2 / 3.
    assert accuracies(-2.2, -3.2) == (0, 1)
    assert accuracies(-2.0, -3.2) == (0, 0)
    assert accuracies(-3.3, -3.2) == (1, 1)


def test_of_no_items_nothing_is_said(capsys):
    """A mean over nothing was a traceback, a number for each of no bytes the number of all."""
    assert mean("x", []) == {"x": None, "x_se": None}
    assert exact_score([], []) == {"exact": None, "exact_se": None}
    assert set(translation_score([], []).values()) == {None}
    show(mean("x", []), [Column("x", "s", "x")], argparse.Namespace(json=False))
    assert capsys.readouterr().out.split("\n")[2].strip() == ""


def test_scores_of_known_answers():
    targets = ["the cat sat on the mat", "three black dogs are here now"]
    pairs = [translation("French", "", target) for target in targets]
    perfect = translation_score([f" {targets[0]}\n", targets[1]], pairs)
    assert perfect["exact"] == 100 and perfect["bleu_se"] == 0
    assert perfect["bleu"] == pytest.approx(100) and perfect["chrf"] == pytest.approx(100)
    half = translation_score([targets[0], "quatre"], pairs)
    assert half["exact"] == 50 and half["exact_se"] == pytest.approx(50)
    assert 0 < half["bleu"] < 100 and half["bleu_se"] > 0
    item, third = Question("def f(x): return", " x\n", ("\n",)), pytest.approx(100 / 3)
    score = exact_score([" x", " x + 1", " 1 /"], [item] * 3)
    assert score == {"exact": third, "exact_se": third}


def test_a_single_item_has_no_standard_error(capsys):
    """It used to be 0, which says that the score is certain."""
    assert mean("x", [0, 0, 1, 1]) == {"x": 0.5, "x_se": math.sqrt(0.25 * 4 / 3 / 4)}
    assert mean("x", [1])["x_se"] is None and mean("x", [1, 1])["x_se"] == 0
    for values, shown in (([1], "1"), ([1, 1], "1 ± 0")):
        show(mean("x", values), [Column("x", "s", "x")], argparse.Namespace(json=False))
        assert capsys.readouterr().out.split("\n")[2] == shown
    score = translation_score(["a b c d"], [translation("French", "", "a b c d")])
    assert score["exact_se"] is score["bleu_se"] is score["chrf_se"] is None


# ---- the paper's budgets


def test_answers_have_the_paper_s_budgets_of_bytes():
    """512 for translations and HumanEval, 256 for MBPP, unless told otherwise."""
    budgets = {"humaneval": 512, "mbpp": 256, "code": 256, "fr-en": 256, "de-en": 256}
    budgets |= dict.fromkeys(TRANSLATIONS, 512)
    for name, budget in budgets.items():
        task = "code" if name in (*PROGRAMS, "code") else "translate"
        assert options_from([task, "--set", name]).bytes == budget
        assert options_from([task, "--set", name, "--bytes", "7"]).bytes == 7
    assert options_from(["translate"]).bytes == 256


@pytest.mark.parametrize("mode", ["blt", "blts", "bltd", "bltdv"])
def test_no_stop_generates_the_whole_budget_and_scores_what_stands_before_the_stop(mode):
    model, patcher = make_models(block_size=8)
    with torch.no_grad():
        model.decoder.head.weight[EOS] *= 50  # often what this model would like best
    machine = fast_of(model, patcher)

    def answered(stop, *flags):
        options = options_from(["translate", "--mode", mode, "--bytes", "60", *flags])
        question = Question("abcabd", "", (stop, "never this"))
        return answer(question, machine, options)

    free, made = answered("nor that", "--no-stop")
    assert made.new_bytes == 60
    stop = next(c for c in free[10:] if c.isascii())
    text, stopped = answered(stop, "--ignore-eos")
    whole, made = answered(stop, "--no-stop")
    assert whole == free[: free.index(stop)] and made.new_bytes == 60
    assert text == whole and stopped.new_bytes < 60
    assert stopped.counters.decoder < made.counters.decoder


@pytest.mark.more
def test_no_stop_pays_for_every_byte(trained_file, capsys):
    known = ["translate", "--checkpoint", trained_file, "--limit", 3, "--bytes", 12]
    (row,) = evaluated(capsys, *known, "--no-stop")
    assert row["new_bytes"] == 36


def test_stand_ins_are_named_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["translate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "NTREX (ntrex-fr-en) for the paper's FLORES fr-en" in text
    assert "BLEU of 13a tokens for its SentencePiece BLEU" in text
    assert "512 bytes" in text and "--no-stop" in text


# ---- every task


def test_bpb_is_the_training_script_s_number_beside_xz(trained_file, corpus_file, tmp_path, capsys):
    known = ("bpb", "--checkpoint", trained_file)
    text = corpus_file.read_bytes()[:800]
    (tmp_path / "start").write_bytes(text)
    (row,) = evaluated(capsys, *known, "--data", tmp_path / "start")
    xz = 8 * len(lzma.compress(text, preset=6)) / len(text)
    assert row["bytes"] == len(text) and row["xz_bits_per_byte"] == pytest.approx(xz)
    assert len(row["masked_bits_by_position"]) == 8 == len(row["masked_accuracy_by_position"])
    assert row["masked_bits_by_position"][0] < 8
    model, patcher = load_model(trained_file)
    ids = document_ids(text).long()
    with torch.no_grad():
        logits = model(ids[None, :-1], patcher.closes(ids[:-1])[None])[0].float()
    nats = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum").item()
    assert row["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(text), rel=1e-4)
    out = "\n".join(printed(capsys, *known, "--limit", "1"))
    assert "validation split" in out and "xz -6" in out
    assert "position in a wholly masked block" in out


def test_bpb_reads_a_piece_of_a_text_at_a_time(trained_file, tmp_path, capsys, monkeypatch):
    """All ids of all documents were made at once, and all texts joined for xz."""
    texts = [bytes(range(256)) * 3, b"some text, and more", b"x" * 700]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_bytes(text)
    known = ("bpb", "--checkpoint", trained_file, "--data", tmp_path)
    (whole,) = evaluated(capsys, *known)
    xz = len(lzma.compress(b"".join(texts), preset=6))
    monkeypatch.setattr(likelihood, "PIECE", 100)
    assert xz_size(texts) == xz
    sizes = []

    def counted(text, start=0, stop=None):
        sizes.append(stop - start)
        return document_ids(text, start, stop)

    monkeypatch.setattr(data, "document_ids", counted)
    monkeypatch.setattr(data, "IN_MEMORY", 100)
    (row,) = evaluated(capsys, *known)
    assert row | {"seconds": 0} == whole | {"seconds": 0}
    assert row["xz_bits_per_byte"] == 8 * xz / sum(map(len, texts))
    # Blocks are guessed in the first 4000 ids of a document, which are less than that here.
    assert sorted(sizes)[-3:] == [257, 702, 770]


@pytest.mark.parametrize(
    "arguments, keys",
    [
        ("likelihood", {"accuracy", "accuracy_se", "accuracy_per_byte"}),
        ("translate --mode bltdv --bytes 12", {"exact", "bleu", "bleu_se", "chrf"}),
        ("translate --set de-en --mode bltd --unmask entropy --bytes 12", {"exact", "chrf_se"}),
        ("code --bytes 12", {"exact", "exact_se"}),
    ],
)
def test_every_task_ends_with_score_and_cost(arguments, keys, trained_file, capsys):
    known = [*arguments.split(), "--checkpoint", trained_file, "--limit"]
    (row,) = evaluated(capsys, *known, 3)
    assert keys | COST | {"task", "set", "items"} <= set(row) and row["items"] == 3
    header, _, several = printed(capsys, *known, 2)
    assert "items" in header and "NFEs" in header and "GB by Eq. 8" in header
    assert "±" in several and "±" not in "".join(printed(capsys, *known, 1))


@pytest.mark.parametrize(
    "arguments",
    ["bpb --limit 1", "likelihood --limit 2", "translate --mode bltdv --limit 1 --bytes 9"],
)
def test_the_plain_machine_says_the_same(arguments, trained_file, tmp_path, capsys):
    """And counts the same; seconds are its own."""
    (tmp_path / "text").write_bytes(bytes(range(32, 127)) * 8)
    known = [*arguments.split(), "--checkpoint", trained_file]
    if "translate" not in arguments:
        known += ["--data", tmp_path / "text"]
    (fast,), (plain,) = evaluated(capsys, *known), evaluated(capsys, *known, "--plain")
    assert fast.keys() == plain.keys()
    for key, value in fast.items():
        if isinstance(value, str) or value is None:
            assert plain[key] == value, key
        elif key not in ("seconds", "bytes_per_second"):
            assert plain[key] == pytest.approx(value, rel=1e-4), key


@pytest.mark.more
def test_miniature_end_to_end(tmp_path, capsys):
    """Train on some of the text, fork a BLT-D, and ask both for others of the kind."""
    folder, plain, blocks = tmp_path / "text", tmp_path / "0.pt", tmp_path / "8.pt"
    with zipfile.ZipFile(ROOT / "evaluation" / "miniature.zip") as archive:
        archive.extractall(folder, archive.namelist()[::48])
    sha256 = corpus_of([folder]).sha256
    small = ["--data", str(folder), "--preset", "nano", "--dtype", "float32"]
    train.main([*small, "--block-size", "0", "--steps", "20", "--out", str(plain)])
    fork = ["--init-from", str(plain), "--block-size", "8", "--block-after", "0"]
    train.main([*small, *fork, "--steps", "10", "--out", str(blocks)])
    assert {checkpoint.load(path)["corpus"]["sha256"] for path in (plain, blocks)} == {sha256}
    capsys.readouterr()
    rows = {}
    for path, mode in ((plain, "blt"), (plain, "blts"), (blocks, "bltd"), (blocks, "bltdv")):
        known = ["--checkpoint", path, "--mode", mode, "--limit", 2, "--bytes", 16]
        (translated,) = evaluated(capsys, "translate", "--set", "de-en", *known)
        assert {"exact", "bleu_se"} | COST <= set(translated) and translated["mode"] == mode
        (written,) = evaluated(capsys, "code", "--write", tmp_path / "programs", *known)
        assert {"exact", "exact_se"} | COST <= set(written) and written["new_bytes"] > 0
        keys = ("exact", "bleu", "chrf", "new_bytes")
        rows[mode] = [translated[key] for key in keys] + [written["exact"], written["new_bytes"]]
    assert rows["blts"] == rows["blt"]  # a lossless mode scores what its model scores


# ---- the command line


@pytest.mark.parametrize(
    "arguments",
    [
        "bpb --mode blt",
        "bpb --bytes 9",
        "bpb --items x",
        "likelihood --temperature 1",
        "likelihood --draft-size 4",
        "translate --data x",
        "translate --plot x.png",
        "code --data x",
    ],
)
def test_flags_that_a_task_does_not_read_are_refused(arguments):
    """They were taken and did nothing."""
    task, *_, flag, _ = arguments.split()
    with pytest.raises(BadInput, match=f"{task} takes no {flag}"):
        options_from(arguments.split())


@pytest.mark.parametrize("task, flag", [("bpb", "--no-stop"), ("likelihood", "--ignore-eos")])
def test_switches_that_a_task_does_not_read_are_refused(task, flag):
    with pytest.raises(BadInput, match=f"{task} takes no {flag}"):
        options_from([task, flag])


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("likelihood --items x", "reads no --items"),
        ("likelihood --set piqa --items x --data y", "reads no --data"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(arguments, words):
    with pytest.raises(BadInput, match=words):
        options_from(arguments.split())


def test_bad_input_is_one_clear_line(trained_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short").write_bytes(b"short text")
    known = ("--checkpoint", trained_file)
    expected = {
        ("telepathy",): "telepathy",
        ("code", "--write", "short", "--limit", 1, "--bytes", 1, *known): "can't write programs",
        ("likelihood", "--set", "piqa", *known): "--items DIR",
        ("likelihood", "--set", "piqa", "--items", tmp_path, *known): "can't read the items",
        ("likelihood", "--data", "short", *known): "held-out document of more than",
        ("translate", "--set", "piqa"): "piqa",
        ("translate", "--seed", "9" * 30, *known): "outside",
        ("translate", "--mode", "bltd", "--block-size", "32", *known): "up to 8 bytes, not 32",
        ("translate", "--draft-size", 4, *known): "--mode blt reads no --draft-size",
        ("translate", "--rounds", "paper", *known): "reads no --rounds paper",
        ("bpb", "--checkpoint", "gone.pt"): "no checkpoint",
        ("bpb", "--data", "gone", *known): "no such file",
        ("bpb", "--device", "warp", *known): "no device 'warp'",
    }
    for arguments, words in expected.items():
        with pytest.raises(BadInput) as caught:
            main([*map(str, arguments)])
        line = str(caught.value)
        assert words in line and "\n" not in line, arguments


def test_the_program_refuses_in_one_line_that_names_it(trained_file, tmp_path):
    assert "invalid choice" in refused("-m", "evaluation", "everything", cwd=tmp_path)
    known = ("--checkpoint", trained_file)
    assert "--mode" in refused("-m", "evaluation", "bpb", *known, "--mode", "blt", cwd=tmp_path)
    assert "no such file" in refused("-m", "evaluation", "bpb", *known, "--data", "x", cwd=tmp_path)


def test_optional_packages_are_asked_for_by_name(monkeypatch, tmp_path):
    """What only the evaluations need is no requirement of the rest."""
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(BadInput, match="sacrebleu: pip install -r requirements-dev.txt"):
        translation_score(["a"], [translation("French", "b", "c")])
