"""Likelihoods against a slow sum, scores of known answers, every task of evaluate.py as a user runs it."""
import json
import lzma
import math
import sys

import pytest
import torch
from conftest import make_models
from test_scripts import refused

import evaluate
import miniature
import train
from answers import code_score, standard_error, translation_score
from data import BOS, document_ids, encode
from diffusion import Unmask, generate_bltd
from items import Choice, Pair, Program, as_bytes
from likelihood import choice_log_likelihoods, cloze
from speculate import generate_bltdv, generate_blts, generate_lookup
from stream import Sampling, generate, generate_uncached
from terminal import BadInput


def test_likelihood_is_the_slow_sum():
    """One query pass and rollbacks give what a full forward over query + choice gives, byte by byte; plain BLT and BLT-D alike."""
    item = Choice("a query of abcabc" * 3, [" ab", " abcabd" * 9, "", "\udcff"], 0)
    for seed, K in ((0, 0), (1, 8)):
        model, patcher = make_models(seed, block_size=K)
        sums, counters = choice_log_likelihoods(model, patcher, item)
        for choice, got in zip(item.choices, sums):
            ids, total = [BOS, *encode(as_bytes(item.query))], 0.0
            for id_ in encode(as_bytes(choice)):
                prefix = torch.tensor(ids)
                total += model(prefix[None], patcher.closes(prefix)[None])[0, -1].log_softmax(-1)[id_].item()
                ids.append(id_)
            assert got == pytest.approx(total, abs=1e-9)
        assert counters.decoder >= 1 and counters.entropy >= 1


def test_cloze_hides_the_true_continuation_among_others():
    texts = [bytes(range(256)) * 8, b"0123456789" * 90, b"too short"]
    items = [item for item, _ in zip(cloze(texts), range(30))]
    assert items == [item for item, _ in zip(cloze(texts), range(30))] and {item.gold for item in items} == {0, 1, 2, 3}
    for item in items:
        whole = as_bytes(item.query + item.choices[item.gold])
        assert len(item.choices) == 4 and all(len(as_bytes(c)) == 32 for c in item.choices) and any(whole in text for text in texts)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_stop_ends_every_mode_where_it_ends_plain_blt(seed):
    """The stopping id is neither counted nor made; lossless modes stop at the very same byte."""
    model, patcher = make_models(seed, block_size=8)
    free = generate_uncached(model, patcher, [100, 101], 40, Sampling(ignore_eos=True))
    sampling = Sampling(ignore_eos=True, stop=(free[25], 300))
    plain = generate_uncached(model, patcher, [100, 101], 40, sampling)
    assert plain == free[:free.index(free[25])]
    args = model, patcher, [100, 101], 40
    for made in (generate(*args, sampling), generate_blts(*args, 5, sampling=sampling), generate_lookup(*args, 5, sampling=sampling),
                 generate_bltdv(*args, 8, Unmask("confidence", 0.3), sampling=sampling)):
        assert made.ids == plain
    assert free[25] not in generate_bltd(*args, 8, Unmask("one-step", None), sampling).ids


def test_scores_of_known_answers():
    pairs = [Pair("", "the cat sat on the mat"), Pair("", "three black dogs are here now")]
    perfect = translation_score([" the cat sat on the mat\n", "three black dogs are here now"], pairs)
    assert perfect["exact"] == 100 and perfect["bleu"] == pytest.approx(100) and perfect["chrf"] == pytest.approx(100) and perfect["bleu_se"] == 0
    half = translation_score(["the cat sat on the mat", "quatre"], pairs)
    assert half["exact"] == 50 and 0 < half["bleu"] < 100 and half["exact_se"] == pytest.approx(50) and half["bleu_se"] > 0
    item = Program("", "def f(x): return", " x\n", "\nassert f(3) == 3\n", ("\n",))
    assert code_score([" x", " x + 1", " 1 /"], [item] * 3) == {"pass@1": pytest.approx(100 / 3), "pass@1_se": pytest.approx(100 / 3)}
    assert standard_error([0, 0, 1, 1]) == pytest.approx(math.sqrt(0.25 * 4 / 3 / 4)) and standard_error([1]) == 0


def test_bpb_is_the_training_script_s_number_beside_xz(trained_file, corpus_file, tmp_path, capsys):
    evaluate.main(["bpb", "--checkpoint", str(trained_file), "--data", str(corpus_file), "--json"])
    row = json.loads(capsys.readouterr().out)
    data = corpus_file.read_bytes()
    assert row["bytes"] == len(data) and row["xz_bits_per_byte"] == pytest.approx(8 * len(lzma.compress(data, preset=6)) / len(data))
    model, patcher = evaluate.load_model(trained_file)
    ids = document_ids(data)
    with torch.no_grad():
        logits = model(ids[None, :800], patcher.closes(ids[:800])[None])[0].float()
    nats = torch.nn.functional.cross_entropy(logits, ids[1:801])
    (tmp_path / "start").write_bytes(data[:800])
    evaluate.main(["bpb", "--checkpoint", str(trained_file), "--data", str(tmp_path / "start"), "--json"])
    start = json.loads(capsys.readouterr().out)
    assert start["bits_per_byte"] == pytest.approx(nats.item() / math.log(2), rel=0.02)     # one byte more, and EOS
    assert len(row["masked_bits_by_position"]) == 8 == len(row["masked_accuracy_by_position"]) and row["masked_bits_by_position"][0] < 8
    evaluate.main(["bpb", "--checkpoint", str(trained_file), "--limit", "1"])
    out = capsys.readouterr().out
    assert "validation split" in out and "xz -6" in out and "position in a wholly masked block" in out


def test_every_task_ends_with_score_and_cost(trained_file, tmp_path, capsys):
    shared = ["--checkpoint", str(trained_file), "--limit", "3", "--bytes", "12"]
    for arguments, keys in ((["likelihood", *shared], {"accuracy", "accuracy_se", "accuracy_per_byte"}),
                            (["translate", "--mode", "bltdv", *shared], {"exact", "bleu", "bleu_se", "chrf"}),
                            (["translate", "--set", "de-en", "--mode", "bltd", "--unmask", "entropy", *shared], {"exact", "bleu", "bleu_se", "chrf"}),
                            (["code", "--allow-code-execution", *shared], {"pass@1", "pass@1_se"})):
        evaluate.main([*arguments, "--json"])
        row = json.loads(capsys.readouterr().out)
        assert keys | {"decoder_nfes", "encoder_global_nfes", "entropy_nfes", "bandwidth_gb", "bytes_per_second", "items"} <= set(row) and row["items"] == 3
        evaluate.main(arguments)
        assert "3 items" in (line := capsys.readouterr().out.strip().splitlines()[-1]) and "NFEs" in line and "GB by Eq. 8" in line
    evaluate.main(["diversity", *shared[:2], "--limit", "1", "--bytes", "30", "--plot", str(tmp_path / "d.svg")])
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 16 and "correlation" in out and (tmp_path / "d.svg").exists()


def test_miniature_end_to_end(tmp_path, capsys, monkeypatch):
    """Train on the generated tasks, fork a BLT-D, and draw Figure 7 in small: lossless modes score what their model scores."""
    monkeypatch.setattr(miniature, "DOCUMENTS", {"fr-en": 10, "de-en": 10, "code": 20})
    small = ["--data", "miniature", "--preset", "nano", "--dtype", "float32", "--steps"]
    train.main([*small, "20", "--block-size", "0", "--out", str(tmp_path / "0.pt")])
    train.main([*small, "10", "--init-from", str(tmp_path / "0.pt"), "--block-after", "0", "--out", str(tmp_path / "8.pt")])
    capsys.readouterr()
    command = ["miniature", "--checkpoints", str(tmp_path / "8.pt"), str(tmp_path / "0.pt"), "--limit", "2", "--bytes", "16"]
    evaluate.main([*command, "--allow-code-execution", "--plot", str(tmp_path / "figure.png"), "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in rows] == ["BLT", "BLT-S k=8", "BLT-D-8", "BLT-DV-8"] and (tmp_path / "figure.png").exists()
    assert all(row["score"] == rows[0]["score"] and row["new_bytes"] == rows[0]["new_bytes"] for row in rows[:2])
    assert rows[0]["ratio"] == 1 and all({"fr-en_exact_se", "de-en_bleu", "code_pass@1", "score_se", "gb_per_kilobyte"} <= set(row) for row in rows)
    evaluate.main(command)
    out = capsys.readouterr().out
    assert "not run" in out and "--allow-code-execution" in out and "BLT-DV-8" in out


def test_bad_input_is_one_clear_line(trained_file, tmp_path):
    (tmp_path / "short").write_bytes(b"short text")
    known = ("--checkpoint", trained_file)
    expected = {
        ("evaluate.py",): "TASK", ("evaluate.py", "telepathy"): "telepathy", ("evaluate.py", "code", *known): "--allow-code-execution",
        ("evaluate.py", "likelihood", "--set", "piqa", *known): "--items DIR", ("evaluate.py", "translate", "--set", "piqa"): "piqa",
        ("evaluate.py", "likelihood", "--set", "piqa", "--items", tmp_path, *known): "can't read the items",
        ("evaluate.py", "likelihood", "--data", tmp_path / "short", *known): "held-out document of more than",
        ("evaluate.py", "bpb", "--checkpoint", "gone.pt"): "no checkpoint", ("evaluate.py", "bpb", "--data", "gone", *known): "no such file",
        ("evaluate.py", "miniature", "--checkpoints", "gone.pt"): "no checkpoint", ("evaluate.py", "diversity", "--plot", "x.gif", *known): ".png or .svg",
        ("evaluate.py", "miniature", "--checkpoints", trained_file, trained_file): "one plain BLT",
        ("evaluate.py", "diversity", "--plot", "no/folder.png", *known): "no folder no", ("evaluate.py", "translate", "--seed", "9" * 30, *known): "outside",
        ("export.py", trained_file, trained_file): "replace what it is made of",
        ("evaluate.py", "translate", "--mode", "bltd", "--block-size", "32", *known): "up to 8 bytes, not 32",
    }
    for arguments, words in expected.items():
        assert words in refused(*arguments, cwd=tmp_path), arguments


def test_optional_packages_are_asked_for_by_name(monkeypatch):
    """What only the evaluations need is no requirement of the rest."""
    monkeypatch.setitem(sys.modules, "num2words", None)
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(BadInput, match="needs? num2words: pip install -r requirements-dev.txt"):
        miniature.spell(123456, "fr")
    with pytest.raises(BadInput, match="sacrebleu: pip install -r requirements-dev.txt"):
        translation_score(["a"], [Pair("b", "c")])
