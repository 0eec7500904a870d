"""Readers on made-up items of the same form; the generated tasks; the executor's limits."""
import bz2
import gzip
import json
import os
from itertools import islice

import pytest

import miniature
from execute import run_program
from items import CHOICES, PROGRAMS, TRANSLATIONS, Choice, Pair, as_example, as_question
from terminal import BadInput


@pytest.fixture
def folder(tmp_path):
    """One or two items of every benchmark, written as they are published."""
    lines = lambda name, *objects: (tmp_path / name).write_text("".join(json.dumps(o) + "\n" for o in objects))
    lines("arc_easy.jsonl", {"query": "Question: Up?", "choices": ["no", "no", "sky", "sea"], "gold": 2},
          {"query": "Question: A line\u2028in it?", "choices": ["a", "b"], "gold": 0})
    lines("arc_challenge.jsonl", {"query": "Question: Is?", "choices": ["x", "y", "x"], "gold": 2})
    lines("piqa_valid.jsonl", {"goal": "open a door", "sol1": "push", "sol2": "sing"})
    (tmp_path / "piqa_valid-labels.lst").write_text("1\n")
    (tmp_path / "hellaswag_val_full.txt.bz2").write_bytes(bz2.compress("Cooking: A pan. she\n2\nflies.\nsings.\nfries.\nsleeps.\n".encode()))
    for part in ("dev", "test"):
        (tmp_path / "mmlu" / part).mkdir(parents=True)
    (tmp_path / "mmlu/dev/sums_dev.csv").write_text("".join(f"{n} + 0?,0,1,{n},9,C\n" for n in range(20, 27)))
    (tmp_path / "mmlu/test/sums_test.csv").write_text('"1, then ""2""?\nand more",1,2,3,4,D\n')
    for name, text in {"flores101/dev.deu": "a\nb\nc\nd\ne\n", "flores101/dev.eng": "A\nB\nC\nD\nE\n", "flores101/devtest.deu": "f\u2028g\n",
                       "flores101/devtest.eng": "F\n", "ntrex/fra.txt": "1\n2\n3\n4\nfin\n", "ntrex/eng.txt": "1\n2\n3\n4\nend\n"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with gzip.open(tmp_path / "HumanEval.jsonl.gz", "wt") as file:
        file.write(json.dumps({"task_id": "HumanEval/0", "prompt": "def one():\n", "entry_point": "one", "canonical_solution": "    return 1\n",
                               "test": "def check(candidate):\n    assert candidate() == 1\n"}))
    lines("mbpp.jsonl", *({"task_id": i, "text": f"Return {i}.", "code": f"def f():\r\n  return n - n + {i}", "test_setup_code": "n = f and 5",
                           "test_list": [f"assert f() == {i}"]} for i in range(1, 520)))
    return tmp_path


def test_choices(folder):
    read = lambda name: list(CHOICES[name](folder))
    assert read("arc-easy") == [Choice("Question: Up?\nAnswer:", [" no", " sky", " sea"], 1), Choice("Question: A line\u2028in it?\nAnswer:", [" a", " b"], 0)]
    assert read("arc-challenge") == [Choice("Question: Is?\nAnswer:", [" x", " y"], 0)]
    assert read("piqa") == [Choice("Question: open a door\nAnswer:", [" push", " sing"], 1)]
    assert read("hellaswag") == [Choice("Cooking: A pan. she", [" flies.", " sings.", " fries.", " sleeps."], 2)]
    (item,) = read("mmlu")
    assert item.gold == 3 and item.choices == [" A", " B", " C", " D"] and item.query.endswith('1, then "2"?\nand more\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:')
    assert item.query.count("Answer: C") == 5 and "24 + 0?" in item.query and "25 + 0?" not in item.query


def test_translations(folder):
    language, examples, pairs = TRANSLATIONS["flores-de-en"](folder)
    assert (language, [p.source for p in examples], list(pairs)) == ("German", ["a", "b", "c", "d"], [Pair("f\u2028g", "F")])
    language, examples, pairs = TRANSLATIONS["ntrex-fr-en"](folder)
    assert (language, len(examples), list(pairs)) == ("French", 4, [Pair("fin", "end")])
    assert as_example(Pair("fin", "end"), "French") == as_question(Pair("fin", "end"), "French") + " end\n\n" == "French: fin\nEnglish: end\n\n"


def test_programs(folder):
    (item,) = PROGRAMS["humaneval"](folder)
    assert run_program(item.prompt + item.solution + item.tests) == "passed" and run_program(item.prompt + "    return 2\n" + item.tests) == "failed"
    mbpp = list(PROGRAMS["mbpp"](folder))
    assert len(mbpp) == 500 and mbpp[0].name == "MBPP/11" and mbpp[-1].name == "MBPP/510"
    assert all(f"Return {i}." in mbpp[0].context for i in (2, 3, 4)) and "\r" not in mbpp[0].context
    assert run_program(mbpp[0].prompt + mbpp[0].solution + mbpp[0].tests) == "passed"
    assert run_program(mbpp[0].prompt + mbpp[1].solution + mbpp[0].tests) == "failed"


@pytest.mark.parametrize("name", [*CHOICES, *TRANSLATIONS, *PROGRAMS])
def test_missing_or_foreign_items_are_one_clear_line(name, folder, tmp_path_factory):
    reader = {**CHOICES, **TRANSLATIONS, **PROGRAMS}[name]
    everything = lambda made: list(made[2] if name in TRANSLATIONS else made)
    with pytest.raises(BadInput, match="--items"):
        everything(reader(tmp_path_factory.mktemp("empty")))
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(gzip.compress(b'{"other": 1}\n') if path.suffix == ".gz" else bz2.compress(b"one line\n") if path.suffix == ".bz2"
                             else b'{"other": 1}\nx\n' if "devtest.eng" in path.name or path.name == "eng.txt" else b'{"other": 1}\n')
    with pytest.raises(BadInput):
        everything(reader(folder))


@pytest.mark.parametrize("name, file, text", [
    ("arc-easy", "arc_easy.jsonl", '{"query": "Q \\ud800?", "choices": ["a", "b"], "gold": 0}'), ("piqa", "piqa_valid-labels.lst", "7"),
    ("arc-challenge", "arc_challenge.jsonl", '{"query": "Q", "choices": ["a", null], "gold": 0}'), ("mmlu", "mmlu/test/sums_test.csv", "x" * 200_000),
    ("mmlu", "mmlu/test/sums_test.csv", "a,b,c,d,e,F"), ("arc-easy", "arc_easy.jsonl", '{"query": "Q", "choices": ["a", "b"], "gold": -1}')])
def test_damaged_items_are_one_clear_line(name, file, text, folder):
    (folder / file).write_text(text + "\n")
    with pytest.raises(BadInput, match="another form"):
        list(CHOICES[name](folder))


def test_miniature_tests_what_training_never_showed():
    """Numbers from 100 on and descriptions are apart; the same call makes the same items; reference bodies pass their tests."""
    assert miniature.spell(1204, "fr") == "mille deux cent quatre"
    for task in ("fr-en", "de-en"):
        shown, tested = ({pair.target for pair in miniature.draw_items(task, 200, held_out, seed=3)} for held_out in (False, True))
        numbers = {miniature.spell(n, "en") for n in range(100, 1000) if miniature.is_held_out(n)}
        held = lambda text: any(n in numbers for n in (" ".join(text.split()[i:j]) for i in range(8) for j in range(i + 1, 14)))
        assert all(held(text) for text in tested) and not shown & tested
    shown, tested = ({p.name for p in miniature.draw_items("code", 300, held_out, seed=3)} for held_out in (False, True))
    assert not shown & tested and len(tested) == 300
    assert miniature.test_items("de-en", 5) == miniature.test_items("de-en", 5)
    language, examples, programs = miniature.test_items("code", 6)
    assert language is None and len(examples) == 4
    for item in programs:
        assert run_program(item.prompt + item.solution + item.tests) == "passed"
        assert run_program(item.prompt + item.solution.replace("x", "x and x") + "\n0/0" + item.tests) == "failed"


def test_more_test_items_than_there_are_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(miniature, "FUNCTIONS", miniature.FUNCTIONS[:1])
    with pytest.raises(BadInput, match="smaller --limit"):
        miniature.draw_items("code", 90, held_out=True, seed=0)


def test_every_constant_of_a_generated_program_matters():
    """A body with a neighbouring constant fails the asserts (those of one body can't be told by short lists)."""
    for item in miniature.draw_items("code", 400, held_out=True, seed=5)[::40]:
        digits = [w for w in item.name.replace(",", " ").split() if w.isdigit()]
        wrong = item.solution.replace(digits[-1], str(int(digits[-1]) + 1), 1)
        assert run_program(item.prompt + wrong + item.tests) == "failed", (item.name, wrong)


def test_miniature_corpus_is_generated_alike_and_split_by_document():
    corpus = miniature.corpus()
    assert corpus.sha256 == miniature.corpus().sha256 and {name.split("/")[0] for name, _ in corpus.documents} == set(miniature.TASKS)
    train, held_out = corpus.split()
    assert 0.03 < len(held_out) / len(corpus.documents) < 0.07 and all(d.endswith(b"\n\n") for d in train)


@pytest.mark.parametrize("source, verdict", [
    ("assert 1 + 1 == 2", "passed"), ("assert 1 == 2", "failed"), ("def f(:", "failed"), ("import sys; sys.exit(0)", "failed"),
    ("import os; os._exit(0)", "failed"), ("while True: pass", "timed out"), ("import time; time.sleep(60)", "timed out"),
    ("x = bytearray(3 << 30)", "failed"), ("import os; os.fork()", "failed"), ("import subprocess; subprocess.run(['true'])", "failed"),
    ("import os; os.system('true')", "failed"), ("import socket; socket.create_connection(('localhost', 9))", "failed"),
    ("open('own', 'w').write('x'); assert open('own').read() == 'x'", "passed"), ("open('big', 'wb').write(bytes(50 << 20))", "failed"),
    ("print('x' * 10 ** 6)", "passed"), ("def f(): return f()\nf()", "failed"), ("input()", "failed"), ("x = '\udc80'", "failed"),
])
def test_executor_limits(source, verdict):
    assert run_program(source, seconds=1.0 if "timed" in verdict else 5.0) == verdict


def test_executor_keeps_files_outside_as_they_are(tmp_path, monkeypatch):
    """Neither written, removed, renamed nor made, by whatever way it is tried; nothing of the program's folder stays."""
    mine = tmp_path / "mine"
    mine.write_text("kept")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for attempt in (f"open({str(mine)!r}, 'w')", f"import os; os.remove({str(mine)!r})", f"import os; os.rename({str(mine)!r}, 'x')",
                    f"import pathlib; pathlib.Path({str(tmp_path / 'new')!r}).write_text('x')", "open('../up', 'w')",
                    f"import os; os.symlink({str(tmp_path)!r}, 'out'); open('out/new', 'w')", f"import shutil; shutil.rmtree({str(tmp_path)!r})"):
        run_program(f"try:\n    {attempt}\nexcept Exception:\n    pass\n")
        assert run_program(attempt) == "failed", attempt
    assert mine.read_text() == "kept" and os.listdir(tmp_path) == ["mine"]


@pytest.mark.slow
@pytest.mark.parametrize("name, count", [("humaneval", 164), ("mbpp", 500)])
def test_canonical_solutions_pass(name, count):
    """The harness' own test: FAST_BLT_ITEMS=DIR python -m pytest -m slow"""
    if "FAST_BLT_ITEMS" not in os.environ:
        pytest.skip("FAST_BLT_ITEMS names no folder with the published files")
    failed = [p.name for p in islice(PROGRAMS[name](os.environ["FAST_BLT_ITEMS"]), None) if run_program(p.prompt + p.solution + p.tests) != "passed"]
    assert not failed
