"""Answers that a model generates, and their scores: by sacrebleu, or by running programs.

Several ways to generate take turns at every item, so that what else the machine does hits all of
them alike.
"""

import argparse
import statistics
from dataclasses import dataclass

import torch
from tqdm import tqdm

from data import decode, encode
from evaluation.benchmarks import read_items
from evaluation.execute import run_program
from evaluation.items import as_bytes
from evaluation.miniature import TASKS, test_items
from evaluation.report import mean, package, report, taken
from generate import Generation
from sample import sampling_of
from speculate import check_mode, run_mode
from support.terminal import BadInput

RESAMPLES = 50  # of the items, for standard errors of scores that are no means


@dataclass
class Runner:
    """A model with a way to generate."""

    name: str
    model: torch.nn.Module
    patcher: torch.nn.Module
    mode: str
    options: argparse.Namespace  # the flags of sampling and drafting, and --no-stop

    def answer(self, question):
        """-> (text up to the first of the question's stops, Generation)."""
        o, stops = self.options, question.stops
        # Generation itself can end at a single byte only; longer stops are looked for afterwards.
        single = [encode(as_bytes(stop))[0] for stop in stops if len(stop) == 1]
        sampling = sampling_of(o, stop=tuple(single))
        if o.no_stop:
            sampling.stop, sampling.ignore_eos = (), True
        prompt = encode(as_bytes(question.context + question.prompt))
        made = run_mode(self.mode, self.model, self.patcher, prompt, o.bytes, o, sampling=sampling)
        text = decode(made.ids).decode("utf-8", "replace")
        places = [text.find(stop) for stop in stops if stop in text]
        return text[: min(places, default=None)], made


def answer_all(runners, questions):
    """For each Runner a list of (text, Generation), in the order of the Questions."""
    made = [[] for _ in runners]
    for question in tqdm(questions, desc="answers", leave=False):
        for runner, answers in zip(runners, made):
            answers.append(runner.answer(question))
    return made


# ---- scores


def translation_score(texts, questions):
    """Exact matches in percent, BLEU (sacrebleu's, 13a tokens) and chrF, with standard errors.

    Those of BLEU and chrF are by bootstrap; sacrebleu's own fails where a resample scores zero.
    """
    sacrebleu = package("sacrebleu", "scoring translations")
    texts = [text.strip() for text in texts]
    targets = [question.solution.strip() for question in questions]
    score = mean("exact", [100 * (text == target) for text, target in zip(texts, targets)])
    generator, n = torch.Generator().manual_seed(0), len(targets)
    resampled = torch.randint(n, (RESAMPLES, n), generator=generator).tolist()
    for name, metric in (("bleu", sacrebleu.BLEU()), ("chrf", sacrebleu.CHRF())):

        def score_of(chosen):
            answers, right = [texts[i] for i in chosen], [targets[i] for i in chosen]
            return float(metric.corpus_score(answers, [right]).score)

        score[name], score[f"{name}_se"] = score_of(range(n)), None
        if n > 1:
            score[f"{name}_se"] = statistics.stdev(map(score_of, resampled))
    return score


def code_score(texts, questions):
    """pass@1 in percent: each program runs once, with its tests, in a process of its own."""
    passed = []
    for text, question in zip(texts, tqdm(questions, desc="running", leave=False)):
        program = question.prompt + text + question.tests
        passed.append(100 * (run_program(program) == "passed"))
    return mean("pass@1", passed)


# ---- the tasks; what their docstrings say is their help


def evaluate_translation(model, patcher, options):
    """Translation into English behind four worked examples, greedy unless told otherwise.

    An answer has at most 512 bytes, or 256 for fr-en and de-en, number phrases that are made here.
    Stand-ins: NTREX (ntrex-fr-en) for the paper's FLORES fr-en, and BLEU of 13a tokens for its
    SentencePiece BLEU.
    """
    score_answers(model, patcher, options, translation_score)


def evaluate_code(model, patcher, options):
    """pass@1 of programs that the model completes.

    An answer has at most 512 bytes, or 256 for mbpp and for code, one-line functions that are made
    here. Programs run in a process of their own, with limits on time, memory, files and processes.
    That ends accidents; it is NO SECURITY SANDBOX. Run models that you do not trust in a container
    or virtual machine.
    """
    if not options.allow_code_execution:
        warning = "read the warning in `python -m evaluation code --help`"
        consent = "then say --allow-code-execution"
        raise BadInput(f"this runs programs that a model wrote: {warning}, {consent}")
    score_answers(model, patcher, options, code_score)


def score_answers(model, patcher, options, score):
    """Answer the items of --set in the mode asked for and report score(texts, questions)."""
    name, mode = options.set, options.mode
    check_mode(mode, model, options)
    if name in TASKS:
        questions = test_items(name, options.limit)
    else:
        questions = taken(read_items(name, options.items), options.limit)
    (answers,) = answer_all([Runner(mode, model, patcher, mode, options)], questions)
    texts, made = zip(*answers)
    cost, count = Generation.total(made).cost(), len(questions)
    report(score(texts, questions), cost, options, set=name, mode=mode, items=count)
