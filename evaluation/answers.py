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
from evaluation.execute import run_program
from evaluation.items import as_bytes, as_example, as_question
from evaluation.report import standard_error
from sample import sampling_of
from speculate import run_mode
from support.terminal import BadInput

RESAMPLES = 50  # of the items, for standard errors of scores that are no means


@dataclass
class Runner:
    """A model with a way to generate."""

    name: str
    model: torch.nn.Module
    patcher: torch.nn.Module
    mode: str
    options: argparse.Namespace  # the flags of sample.add_sampling and add_mode

    def answer(self, prompt, stops):
        """-> (text up to the first of `stops`, Generation)."""
        # Generation itself can end at a single byte only; longer stops are looked for afterwards.
        single = tuple(encode(as_bytes(stop))[0] for stop in stops if len(stop) == 1)
        made = run_mode(
            self.mode,
            self.model,
            self.patcher,
            encode(as_bytes(prompt)),
            self.options.bytes,
            self.options,
            sampling=sampling_of(self.options, stop=single),
        )
        text = decode(made.ids).decode("utf-8", "replace")
        places = [text.find(stop) for stop in stops if stop in text]
        return text[: min(places, default=None)], made


def answer_all(runners, language, examples, items):
    """Few-shot: worked examples, then an item -> for each runner a list of (text, Generation).

    Lists are in the order of the items. Pairs are answered on one line, Programs until the first
    of their stops. language: of the Pairs' sources, None for Programs.
    """
    context = "".join(as_example(example, language) for example in examples)
    made = [[] for _ in runners]
    for item in tqdm(items, desc="answers", leave=False):
        if language:
            prompt, stops = context + as_question(item, language), ("\n",)
        else:
            prompt, stops = context + item.context + item.prompt, item.stops
        for runner, answers in zip(runners, made):
            answers.append(runner.answer(prompt, stops))
    return made


def translation_score(texts, items):
    """Exact matches in percent, BLEU (sacrebleu's, 13a tokens) and chrF, with standard errors.

    Those of BLEU and chrF are by bootstrap; sacrebleu's own fails where a resample scores zero.
    """
    try:
        import sacrebleu
    except ImportError:
        raise BadInput(
            "scoring translations needs sacrebleu: pip install -r requirements-dev.txt"
        ) from None
    texts = [text.strip() for text in texts]
    exact = [100 * (text == item.target) for text, item in zip(texts, items)]
    score = {"exact": statistics.mean(exact), "exact_se": standard_error(exact)}
    generator = torch.Generator().manual_seed(0)
    resampled = torch.randint(len(items), (RESAMPLES, len(items)), generator=generator).tolist()
    for name, metric in (("bleu", sacrebleu.BLEU()), ("chrf", sacrebleu.CHRF())):

        def score_of(chosen):
            answers, targets = [texts[i] for i in chosen], [items[i].target for i in chosen]
            return float(metric.corpus_score(answers, [targets]).score)

        score[name], score[f"{name}_se"] = score_of(range(len(items))), None
        if len(items) > 1:
            score[f"{name}_se"] = statistics.stdev(score_of(chosen) for chosen in resampled)
    return score


def code_score(texts, items):
    """pass@1 in percent: each program runs once, with its tests, in a process of its own."""
    passed = []
    for text, item in zip(texts, tqdm(items, desc="running", leave=False)):
        passed.append(100 * (run_program(item.prompt + text + item.tests) == "passed"))
    return {"pass@1": statistics.mean(passed), "pass@1_se": standard_error(passed)}
