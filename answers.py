"""Answers that a model generates, what they cost, and their scores: translations by sacrebleu, programs by running them.

Several ways to generate take turns at every item, so that what else the machine does hits all of them alike.
"""
import argparse
import math
import statistics
from dataclasses import dataclass

import torch
from tqdm import tqdm

from bandwidth import generation_gigabytes
from data import decode, encode
from execute import run_program
from items import as_bytes, as_example, as_question
from sample import generate_mode
from terminal import BadInput

RESAMPLES = 50  # of the items, for standard errors of scores that are no means


@dataclass
class Runner:
    """A model with a way to generate."""
    name: str
    model: torch.nn.Module
    patcher: torch.nn.Module
    mode: str
    options: argparse.Namespace

    def answer(self, prompt, stops):
        """-> (text up to the first of `stops`, Generation)."""
        stop = tuple(encode(as_bytes(s))[0] for s in stops if len(s) == 1)
        made = generate_mode(self.mode, self.model, self.patcher, as_bytes(prompt), self.options, stop=stop)
        text = decode(made.ids).decode("utf-8", "replace")
        return text[:min((at for s in stops if (at := text.find(s)) >= 0), default=None)], made


def answer_all(runners, language, examples, items):
    """Few-shot: worked examples, then an item -> for each runner a list of (text, Generation), in the order of the items.

    Pairs are answered on one line, Programs until the first of their stops. language: of the Pairs' sources, or None.
    """
    context, made = "".join(as_example(example, language) for example in examples), [[] for _ in runners]
    for item in tqdm(items, desc="answers", leave=False):
        if language:
            prompt, stops = context + as_question(item, language), ("\n",)
        else:
            prompt, stops = context + item.context + item.prompt, item.stops
        for runner, answers in zip(runners, made):
            answers.append(runner.answer(prompt, stops))
    return made


def translation_score(texts, items):
    """Exact match in percent, BLEU (sacrebleu's, 13a tokens) and chrF, standard errors by bootstrap (sacrebleu's own fails
    where a resample scores zero)."""
    try:
        import sacrebleu
    except ImportError:
        raise BadInput("scoring translations needs sacrebleu: pip install -r requirements-dev.txt") from None
    texts = [text.strip() for text in texts]
    exact = [100 * (text == item.target) for text, item in zip(texts, items)]
    score = {"exact": statistics.mean(exact), "exact_se": standard_error(exact)}
    for name, metric in (("bleu", sacrebleu.BLEU()), ("chrf", sacrebleu.CHRF())):
        of = lambda chosen: metric.corpus_score([texts[i] for i in chosen], [[items[i].target for i in chosen]]).score
        resampled = torch.randint(len(items), (RESAMPLES, len(items)), generator=torch.Generator().manual_seed(0))
        score |= {name: float(of(range(len(items)))), name + "_se": statistics.stdev(float(of(r)) for r in resampled.tolist())}
    return score


def code_score(texts, items):
    """pass@1 in percent: each program runs once, with its tests, in a process of its own."""
    verdicts = [
        run_program(item.prompt + text + item.tests)
        for text, item in zip(texts, tqdm(items, desc="running", leave=False))
    ]
    passed = [100 * (verdict == "passed") for verdict in verdicts]
    return {"pass@1": statistics.mean(passed), "pass@1_se": standard_error(passed)}


def standard_error(values):
    """Of the mean of independent values."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def cost_of(made, model, patcher):
    """What several Generations cost together -> dict."""
    total = lambda key: sum(getattr(g.counters, key) for g in made)
    size, seconds = sum(len(g.ids) for g in made), sum(g.seconds for g in made)
    return {
        "new_bytes": size, "seconds": seconds, "bytes_per_second": size / max(seconds, 1e-9),
        "decoder_nfes": total("decoder"), "encoder_global_nfes": total("encoder_global"),
        "entropy_nfes": total("entropy"),
        "bandwidth_gb": sum(generation_gigabytes(g.counters, model, patcher)[0] for g in made)
    }
