"""Readers on made-up items of the same form; the generated tasks; the executor's limits."""

import bz2
import gzip
import json
import os
from itertools import islice

import pytest

from data import Corpus, read_corpus
from evaluation import miniature
from evaluation.benchmarks import CHOICES, PROGRAMS, TRANSLATIONS
from evaluation.execute import run_program
from evaluation.items import Choice, Pair, as_example, as_question
from support.terminal import BadInput

HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": "def one():\n",
    "entry_point": "one",
    "canonical_solution": "    return 1\n",
    "test": "def check(candidate):\n    assert candidate() == 1\n",
}
TEXTS = {
    "piqa_valid-labels.lst": "1\n",
    "mmlu/dev/sums_dev.csv": "".join(f"{n} + 0?,0,1,{n},9,C\n" for n in range(20, 27)),
    "mmlu/test/sums_test.csv": '"1, then ""2""?\nand more",1,2,3,4,D\n',
    "flores101/dev.deu": "a\nb\nc\nd\ne\n",
    "flores101/dev.eng": "A\nB\nC\nD\nE\n",
    "flores101/devtest.deu": "f\u2028g\n",
    "flores101/devtest.eng": "F\n",
    "ntrex/fra.txt": "1\n2\n3\n4\nfin\n",
    "ntrex/eng.txt": "1\n2\n3\n4\nend\n",
}


def as_lines(*objects):
    return "".join(json.dumps(o) + "\n" for o in objects)


def mbpp_task(i):
    return {
        "task_id": i,
        "text": f"Return {i}.",
        "code": f"def f():\r\n  return n - n + {i}",
        "test_setup_code": "n = f and 5",
        "test_list": [f"assert f() == {i}"],
    }


@pytest.fixture
def folder(tmp_path):
    """One or two items of every benchmark, written as they are published."""
    texts = {
        **TEXTS,
        "arc_easy.jsonl": as_lines(
            {"query": "Question: Up?", "choices": ["no", "no", "sky", "sea"], "gold": 2},
            {"query": "Question: A line\u2028in it?", "choices": ["a", "b"], "gold": 0},
        ),
        "arc_challenge.jsonl": as_lines(
            {"query": "Question: Is?", "choices": ["x", "y", "x"], "gold": 2}
        ),
        "piqa_valid.jsonl": as_lines({"goal": "open a door", "sol1": "push", "sol2": "sing"}),
        "mbpp.jsonl": as_lines(*map(mbpp_task, range(1, 520))),
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    scene = b"Cooking: A pan. she\n2\nflies.\nsings.\nfries.\nsleeps.\n"
    (tmp_path / "hellaswag_val_full.txt.bz2").write_bytes(bz2.compress(scene))
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(gzip.compress(as_lines(HUMANEVAL).encode()))
    return tmp_path


def test_choices(folder):
    def read(name):
        return list(CHOICES[name](folder))

    assert read("arc-easy") == [
        Choice("Question: Up?\nAnswer:", [" no", " sky", " sea"], 1),
        Choice("Question: A line\u2028in it?\nAnswer:", [" a", " b"], 0),
    ]
    assert read("arc-challenge") == [Choice("Question: Is?\nAnswer:", [" x", " y"], 0)]
    assert read("piqa") == [Choice("Question: open a door\nAnswer:", [" push", " sing"], 1)]
    endings = [" flies.", " sings.", " fries.", " sleeps."]
    assert read("hellaswag") == [Choice("Cooking: A pan. she", endings, 2)]
    (item,) = read("mmlu")
    assert item.gold == 3 and item.choices == [" A", " B", " C", " D"]
    assert item.query.endswith('1, then "2"?\nand more\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:')
    assert item.query.count("Answer: C") == 5
    assert "24 + 0?" in item.query and "25 + 0?" not in item.query


def test_mmlu_takes_from_its_subjects_in_turn(folder):
    """A limit used to see the first subjects alone, as they were read one after the other."""
    for subject, count in (("art", 3), ("biology", 1), ("chess", 2)):
        (folder / f"mmlu/dev/{subject}_dev.csv").write_text(f"{subject} example,1,2,3,4,A\n")
        rows = "".join(f"{subject} {i},1,2,3,4,B\n" for i in range(count))
        (folder / f"mmlu/test/{subject}_test.csv").write_text(rows)
    (folder / "mmlu/test/sums_test.csv").unlink()
    items = list(CHOICES["mmlu"](folder))
    asked = [item.query.splitlines()[-6] for item in items]
    assert asked == ["art 0", "biology 0", "chess 0", "art 1", "chess 1", "art 2"]
    for item, question in zip(items, asked):
        assert item.query.startswith(question.split()[0] + " example")
    first = islice(CHOICES["mmlu"](folder), 3)
    assert {item.query.split()[0] for item in first} == {"art", "biology", "chess"}


def test_translations(folder):
    language, examples, pairs = TRANSLATIONS["flores-de-en"](folder)
    assert language == "German" and list(pairs) == [Pair("f\u2028g", "F")]
    assert [pair.source for pair in examples] == ["a", "b", "c", "d"]
    language, examples, pairs = TRANSLATIONS["ntrex-fr-en"](folder)
    assert (language, len(examples), list(pairs)) == ("French", 4, [Pair("fin", "end")])
    pair = Pair("fin", "end")
    assert as_example(pair, "French") == "French: fin\nEnglish: end\n\n"
    assert as_example(pair, "French") == as_question(pair, "French") + " end\n\n"


def test_programs(folder):
    (item,) = PROGRAMS["humaneval"](folder)
    assert run_program(item.prompt + item.solution + item.tests) == "passed"
    assert run_program(item.prompt + "    return 2\n" + item.tests) == "failed"
    mbpp = list(PROGRAMS["mbpp"](folder))
    assert len(mbpp) == 500 and mbpp[0].name == "MBPP/11" and mbpp[-1].name == "MBPP/510"
    assert all(f"Return {i}." in mbpp[0].context for i in (2, 3, 4))
    assert "\r" not in mbpp[0].context
    assert run_program(mbpp[0].prompt + mbpp[0].solution + mbpp[0].tests) == "passed"
    assert run_program(mbpp[0].prompt + mbpp[1].solution + mbpp[0].tests) == "failed"


def damage(path):
    """Put something else of the same outer form into a file of items."""
    data = b'{"other": 1}\n'
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".bz2":
        data = bz2.compress(b"one line\n")
    elif path.name in ("devtest.eng", "eng.txt"):
        data += b"x\n"  # a line more than the other language has
    path.write_bytes(data)


@pytest.mark.parametrize("name", [*CHOICES, *TRANSLATIONS, *PROGRAMS])
def test_missing_or_foreign_items_are_one_clear_line(name, folder, tmp_path_factory):
    def read_all(folder):
        made = {**CHOICES, **TRANSLATIONS, **PROGRAMS}[name](folder)
        list(made[2] if name in TRANSLATIONS else made)

    with pytest.raises(BadInput, match="--items"):
        read_all(tmp_path_factory.mktemp("empty"))
    for path in folder.rglob("*"):
        if path.is_file():
            damage(path)
    with pytest.raises(BadInput):
        read_all(folder)


@pytest.mark.parametrize(
    "name, file, text",
    [
        ("arc-easy", "arc_easy.jsonl", '{"query": "\\ud800", "choices": ["a", "b"], "gold": 0}'),
        ("arc-easy", "arc_easy.jsonl", '{"query": "Q", "choices": ["a", "b"], "gold": -1}'),
        ("arc-challenge", "arc_challenge.jsonl", '{"query": "Q", "choices": [null], "gold": 0}'),
        ("piqa", "piqa_valid-labels.lst", "7"),
        ("mmlu", "mmlu/test/sums_test.csv", "x" * 200_000),
        ("mmlu", "mmlu/test/sums_test.csv", "a,b,c,d,e,F"),
    ],
)
def test_damaged_items_are_one_clear_line(name, file, text, folder):
    (folder / file).write_text(text + "\n")
    with pytest.raises(BadInput, match="another form"):
        list(CHOICES[name](folder))


# ---- the generated tasks


def parts_of(text):
    """All runs of words in a text."""
    words = text.split()
    ends = range(1, len(words) + 1)
    return {" ".join(words[i:j]) for j in ends for i in range(j)}


def test_miniature_tests_what_training_never_showed():
    """Numbers from 100 on and descriptions are apart; the same call makes the same items."""
    assert miniature.spell(1204, "fr") == "mille deux cent quatre"
    held = {miniature.spell(n, "en") for n in range(100, 1000) if miniature.is_held_out(n)}
    for task in ("fr-en", "de-en"):
        shown = {pair.target for pair in miniature.draw_items(task, 200, False, seed=3)}
        tested = {pair.target for pair in miniature.draw_items(task, 200, True, seed=3)}
        assert all(parts_of(text) & held for text in tested) and not shown & tested
    shown = {program.name for program in miniature.draw_items("code", 300, False, seed=3)}
    tested = {program.name for program in miniature.draw_items("code", 300, True, seed=3)}
    assert not shown & tested and len(tested) == 300
    assert miniature.test_items("de-en", 5) == miniature.test_items("de-en", 5)


def test_reference_bodies_pass_their_tests():
    language, examples, programs = miniature.test_items("code", 6)
    assert language is None and len(examples) == 4
    for item in programs:
        assert run_program(item.prompt + item.solution + item.tests) == "passed"
        wrong = item.solution.replace("x", "x and x") + "\n0/0"
        assert run_program(item.prompt + wrong + item.tests) == "failed"


def test_more_test_items_than_there_are_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(miniature, "FUNCTIONS", miniature.FUNCTIONS[:1])
    with pytest.raises(BadInput, match="smaller --limit"):
        miniature.draw_items("code", 20, held_out=True, seed=0)


def test_every_constant_of_a_generated_program_matters():
    """A body with a neighbouring constant fails the asserts; short lists could not tell."""
    for item in miniature.draw_items("code", 400, held_out=True, seed=5)[::40]:
        digits = [word for word in item.name.replace(",", " ").split() if word.isdigit()]
        wrong = item.solution.replace(digits[-1], str(int(digits[-1]) + 1), 1)
        assert run_program(item.prompt + wrong + item.tests) == "failed", (item.name, wrong)


def test_miniature_text_read_from_its_folder_is_the_text_in_memory(tmp_path, monkeypatch):
    """Same names, so the same hash and the same split, by document."""
    corpus = Corpus(miniature.training_documents(), "in memory")
    assert {name.split("/")[0] for name, _ in corpus.documents} == set(miniature.TASKS)
    train, held_out = corpus.split()
    assert 0.03 < len(held_out) / len(corpus.documents) < 0.07
    assert all(document.endswith(b"\n\n") for document in train)
    monkeypatch.setattr(miniature, "training_documents", lambda: corpus.documents)
    miniature.write(tmp_path / "new")
    written = read_corpus([tmp_path / "new"])
    assert written.documents == corpus.documents and written.sha256 == corpus.sha256
    assert written.split() == (train, held_out)


def test_miniature_text_goes_to_a_new_or_empty_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(miniature, "training_documents", lambda: [("fr-en/000000", b"text")])
    (tmp_path / "there").mkdir()
    miniature.write(tmp_path / "there")
    with pytest.raises(BadInput, match="not empty"):
        miniature.write(tmp_path / "there")
    with pytest.raises(BadInput, match="can't write"):
        miniature.write(tmp_path / "there/fr-en/000000")


# ---- running programs


@pytest.mark.parametrize(
    "source, verdict",
    [
        ("assert 1 + 1 == 2", "passed"),
        ("assert 1 == 2", "failed"),
        ("def f(:", "failed"),
        ("import sys; sys.exit(0)", "failed"),
        ("import os; os._exit(0)", "failed"),
        ("while True: pass", "timed out"),
        ("import time; time.sleep(60)", "timed out"),
        ("x = bytearray(3 << 30)", "failed"),
        ("import os; os.fork()", "failed"),
        ("import subprocess; subprocess.run(['true'])", "failed"),
        ("import os; os.system('true')", "failed"),
        ("import socket; socket.create_connection(('localhost', 9))", "failed"),
        ("open('own', 'w').write('x'); assert open('own').read() == 'x'", "passed"),
        ("open('big', 'wb').write(bytes(50 << 20))", "failed"),
        ("print('x' * 10 ** 6)", "passed"),
        ("def f(): return f()\nf()", "failed"),
        ("input()", "failed"),
        ("x = '\udc80'", "failed"),
    ],
)
def test_executor_limits(source, verdict):
    assert run_program(source, seconds=1.0 if "timed" in verdict else 5.0) == verdict


def test_executor_keeps_files_outside_as_they_are(tmp_path, monkeypatch):
    """Neither written, removed, renamed nor made; nothing of the program's folder stays."""
    mine, new = tmp_path / "mine", tmp_path / "new"
    mine.write_text("kept")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for attempt in (
        f"open({str(mine)!r}, 'w')",
        f"import os; os.remove({str(mine)!r})",
        f"import os; os.rename({str(mine)!r}, 'x')",
        f"import pathlib; pathlib.Path({str(new)!r}).write_text('x')",
        "open('../up', 'w')",
        f"import os; os.symlink({str(tmp_path)!r}, 'out'); open('out/new', 'w')",
        f"import shutil; shutil.rmtree({str(tmp_path)!r})",
    ):
        run_program(f"try:\n    {attempt}\nexcept Exception:\n    pass\n")
        assert run_program(attempt) == "failed", attempt
    assert mine.read_text() == "kept" and os.listdir(tmp_path) == ["mine"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_canonical_solutions_pass(name):
    """The harness' own test: FAST_BLT_ITEMS=DIR python -m pytest -m slow"""
    if "FAST_BLT_ITEMS" not in os.environ:
        pytest.skip("FAST_BLT_ITEMS names no folder with the published files")
    for item in PROGRAMS[name](os.environ["FAST_BLT_ITEMS"]):
        whole = item.prompt + item.solution + item.tests
        # one of them, MBPP/123, computes for seconds even on an idle machine
        assert run_program(whole, seconds=30.0) == "passed", item.name
