"""Readers on made-up items of the same form; the generated tasks; the executor's limits."""

import bz2
import gzip
import json
import os
import re
import zipfile
from dataclasses import replace
from itertools import islice

import miniature
import pytest

from data import corpus_of
from evaluation.answers import write_programs
from evaluation.benchmarks import MINIATURE, PROGRAMS, READERS, read_items
from evaluation.tasks import Choice, Question, as_example, behind, translation
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
        return list(read_items(name, folder))

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


def test_mmlu_begins_with_its_customary_line(folder):
    """Scores without it are not comparable; the subject stands there in words."""
    for part in ("dev", "test"):
        known = folder / f"mmlu/{part}/sums_{part}.csv"
        known.rename(folder / f"mmlu/{part}/sums_of_two_{part}.csv")
    (item,) = read_items("mmlu", folder)
    about = "multiple choice questions (with answers) about sums of two."
    assert item.query.startswith(f"The following are {about}\n\n20 + 0?\nA. 0\n")


def test_mmlu_takes_from_its_subjects_in_turn(folder):
    """A limit used to see the first subjects alone, as they were read one after the other."""
    for subject, count in (("art", 3), ("biology", 1), ("chess", 2)):
        (folder / f"mmlu/dev/{subject}_dev.csv").write_text(f"{subject} example,1,2,3,4,A\n")
        rows = "".join(f"{subject} {i},1,2,3,4,B\n" for i in range(count))
        (folder / f"mmlu/test/{subject}_test.csv").write_text(rows)
    (folder / "mmlu/test/sums_test.csv").unlink()
    items = list(read_items("mmlu", folder))
    asked = [item.query.splitlines()[-6] for item in items]
    assert asked == ["art 0", "biology 0", "chess 0", "art 1", "chess 1", "art 2"]
    for item, question in zip(items, asked):
        subject = question.split()[0]
        assert f"about {subject}.\n\n{subject} example" in item.query
    first = islice(read_items("mmlu", folder), 3)
    assert {item.query.splitlines()[-6].split()[0] for item in first} == {"art", "biology", "chess"}


def test_translations(folder):
    """Four worked examples in front; those of FLORES are from another part, those of NTREX not."""
    (item,) = read_items("flores-de-en", folder)
    assert item.prompt == "German: f\u2028g\nEnglish:" and item.solution == " F\n"
    assert item.context == "".join(f"German: {c}\nEnglish: {c.upper()}\n\n" for c in "abcd")
    (item,) = read_items("ntrex-fr-en", folder)
    assert item.prompt == "French: fin\nEnglish:" and item.stops == ("\n",)
    assert item.context == "".join(f"French: {i}\nEnglish: {i}\n\n" for i in range(1, 5))
    assert as_example(translation("French", "fin", "end")) == "French: fin\nEnglish: end\n\n"


def test_programs(folder):
    (item,) = read_items("humaneval", folder)
    assert item.indented and item.answer_in(item.solution + "\nwhile 1:\n  2") == item.solution
    assert passes(item.prompt + item.solution + item.tests)
    assert not passes(item.prompt + "    return 2\n" + item.tests)
    mbpp = list(read_items("mbpp", folder))
    assert len(mbpp) == 500 and "Return 11." in mbpp[0].prompt and "Return 510." in mbpp[-1].prompt
    for i in (2, 3, 4):
        asked = f'"""\nReturn {i}.\nassert f() == {i}\n"""'
        assert f"{asked}\ndef f():\n  return n - n + {i}\n\n" in mbpp[0].context
    assert passes(mbpp[0].prompt + mbpp[0].solution + mbpp[0].tests)
    assert not passes(mbpp[0].prompt + mbpp[1].solution + mbpp[0].tests)


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


@pytest.mark.parametrize("name", READERS)
def test_missing_or_foreign_items_are_one_clear_line(name, folder, tmp_path_factory):
    with pytest.raises(BadInput, match="--items"):
        list(read_items(name, tmp_path_factory.mktemp("empty")))
    for path in folder.rglob("*"):
        if path.is_file():
            damage(path)
    with pytest.raises(BadInput):
        list(read_items(name, folder))


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
        list(read_items(name, folder))


# ---- the generated tasks


def passes(program):
    """Does a program of these tests run to its end?"""
    try:
        exec(program, {})
    except Exception:
        return False
    return True


def parts_of(text):
    """All runs of words in a text."""
    words = text.split()
    ends = range(1, len(words) + 1)
    return {" ".join(words[i:j]) for j in ends for i in range(j)}


def test_miniature_tests_what_training_never_showed():
    """Numbers from 100 on and descriptions are apart."""
    assert miniature.spell(1204, "fr") == "mille deux cent quatre"
    held = {miniature.spell(n, "en") for n in range(100, 1000) if miniature.is_held_out(n)}
    for task in ("fr-en", "de-en"):
        shown = {pair.solution for pair in miniature.draw_items(task, 200, False, seed=3)}
        tested = {pair.solution for pair in miniature.draw_items(task, 200, True, seed=3)}
        assert all(parts_of(text) & held for text in tested) and not shown & tested
    shown = {program.prompt for program in miniature.draw_items("code", 300, False, seed=3)}
    tested = {program.prompt for program in miniature.draw_items("code", 300, True, seed=3)}
    assert not shown & tested and len(tested) == 300


def test_reference_bodies_pass_their_tests():
    for item in read_items("code", None, 6):
        assert item.context.count("def f(x): return") == 4
        assert passes(item.prompt + item.solution + item.tests)
        wrong = item.solution.replace("x", "x and x") + "\n0/0"
        assert not passes(item.prompt + wrong + item.tests)


def test_every_constant_of_a_generated_program_matters():
    """A body with a neighbouring constant fails the asserts; short lists could not tell.

    But for "is x between seven and three", which nothing is.
    """
    items = miniature.draw_items("code", 400, held_out=True, seed=5)
    for item in [item for item in items if "<=" not in item.solution][::40]:
        before, last, behind = re.fullmatch(r"(.*?)(\d+)(\D*)", item.solution, re.DOTALL).groups()
        wrong = f"{before}{int(last) + 1}{behind}"
        assert not passes(item.prompt + wrong + item.tests), (item.prompt, wrong)


@pytest.mark.more
def test_the_archive_and_the_items_are_what_the_generator_makes(tmp_path):
    """The same names and bytes, so the same hash and the same split by document."""
    with zipfile.ZipFile(miniature.TARGET.with_suffix(".zip")) as archive:
        archive.extractall(tmp_path / "text")
    corpus = corpus_of([tmp_path / "text"])
    documents = [(name, bytes(text)) for name, text in corpus.documents]
    assert documents == miniature.training_documents()
    assert {name.split("/")[0] for name, _ in corpus.documents} == set(miniature.TASKS)
    train, held_out = corpus.split()
    assert 0.03 < len(held_out) / len(corpus.documents) < 0.07
    assert all(bytes(document).endswith(b"\n\n") for document in train)
    made = {task: [] for task in MINIATURE}
    for task, item in miniature.all_items():
        made[task].append(replace(item, stops=list(item.stops)))
    for task, items in made.items():
        examples, asked = items[: miniature.SHOTS], items[miniature.SHOTS :]
        assert read_items(task, None) == list(behind(examples, asked))
    shipped = miniature.TARGET.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
    assert shipped == [miniature.as_line(task, item) for task, item in miniature.all_items()]


# ---- programs for the harness


def test_written_programs_are_what_the_harness_runs(tmp_path):
    """It runs prompt + completion + tests and calls check(entry point) behind them."""
    item = Question("def f(x): return", " x\n", ("\n",), "\nassert f(3) == 3\n")
    write_programs(tmp_path / "new", [" x", " x + 1", " 1 /", " \udcff"], [item] * 4)
    problems, samples = (
        [json.loads(line) for line in (tmp_path / "new" / f"{name}.jsonl").open()]
        for name in ("problems", "samples")
    )
    right = []
    for problem, sample in zip(problems, samples, strict=True):
        assert problem["task_id"] == sample["task_id"]
        program = problem["prompt"] + sample["completion"] + "\n" + problem["test"]
        right.append(passes(f"{program}\ncheck({problem['entry_point']})"))
    assert right == [True, False, False, False]
    with pytest.raises(BadInput, match="can't write programs to"):
        write_programs(tmp_path / "new" / "samples.jsonl", [], [])


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_canonical_solutions_pass(name):
    """The harness' own test: FAST_BLT_ITEMS=DIR python -m pytest -m slow"""
    if "FAST_BLT_ITEMS" not in os.environ:
        pytest.skip("FAST_BLT_ITEMS names no folder with the published files")
    for item in read_items(name, os.environ["FAST_BLT_ITEMS"]):
        whole = item.prompt + item.solution + item.tests
        # one of them, MBPP/123, computes for seconds even on an idle machine
        assert passes(whole), item.prompt
