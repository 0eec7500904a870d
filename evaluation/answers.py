"""Answers that a model generates, and their scores: by sacrebleu, or by running programs."""

import statistics

import torch
from tqdm import tqdm

from data import decode, encode
from evaluation.benchmarks import read_items
from evaluation.execute import run_program
from evaluation.tasks import as_bytes, mean, report
from sample import sampling_of
from speculate import check_mode, run_mode
from support.terminal import BadInput, package

RESAMPLES = 50  # of the items, for standard errors of scores that are no means

# ---- answers


def answer(question, mode, model, patcher, options):
    """-> (text up to the first of the question's stops, Generation).

    options: the flags of sampling and drafting, and --no-stop.
    """
    o, stops = options, question.stops
    # Generation itself can end at a single byte only; longer stops are looked for afterwards.
    single = [encode(as_bytes(stop))[0] for stop in stops if len(stop) == 1]
    sampling = sampling_of(o, stop=tuple(single))
    if o.no_stop:
        sampling.stop, sampling.ignore_eos = (), True
    prompt = encode(as_bytes(question.context + question.prompt))
    made = run_mode(mode, model, patcher, prompt, o.bytes, o, sampling=sampling)
    text = decode(made.ids).decode("utf-8", "replace")
    return text[: min((text.find(s) for s in stops if s in text), default=None)], made


def translation_score(texts, questions):
    """Exact matches in percent, BLEU (sacrebleu's, 13a tokens) and chrF, with standard errors.

    Those of BLEU and chrF are by bootstrap; sacrebleu's own fails where a resample scores zero.
    """
    sacrebleu = package("sacrebleu", "scoring translations")
    pairs = [(text.strip(), asked.solution.strip()) for text, asked in zip(texts, questions)]
    score = mean("exact", [100 * (text == target) for text, target in pairs])
    generator, n = torch.Generator().manual_seed(0), len(pairs)
    resampled = torch.randint(n, (RESAMPLES, n), generator=generator).tolist()
    for name, metric in (("bleu", sacrebleu.BLEU()), ("chrf", sacrebleu.CHRF())):
        scores = []
        for chosen in (range(n), *resampled):
            answers, right = zip(*(pairs[i] for i in chosen))
            scores.append(float(metric.corpus_score(answers, [right]).score))
        score[name] = scores[0]
        score[f"{name}_se"] = statistics.stdev(scores[1:]) if n > 1 else None
    return score


def code_score(texts, questions):
    """pass@1 in percent: each program runs once, with its tests, in a process of its own."""
    programs = [asked.prompt + text + asked.tests for text, asked in zip(texts, questions)]
    verdicts = map(run_program, tqdm(programs, desc="running", leave=False))
    return mean("pass@1", [100 * (verdict == "passed") for verdict in verdicts])


# ---- one model in one mode


def evaluate_translation(model, patcher, options):
    """Translation into English behind four worked examples, greedy unless told otherwise.

    An answer has at most 512 bytes, or 256 for fr-en and de-en, number phrases.
    Stand-ins: NTREX (ntrex-fr-en) for the paper's FLORES fr-en, and BLEU of 13a tokens for its
    SentencePiece BLEU.
    """
    score_answers(model, patcher, options, translation_score)


def evaluate_code(model, patcher, options):
    """pass@1 of programs that the model completes.

    An answer has at most 512 bytes, or 256 for mbpp and for code, one-line functions. Programs run
    in a process of their own, with limits on time, memory, files and processes. That ends
    accidents; it is NO SECURITY SANDBOX. Still possible: to read whatever you may read, to use up 5
    seconds and 1 GB, to write through C code that asks Python nothing (readline, shared memory),
    and to pass untested by looking for the harness in frames (sys, inspect, gc) or by redefining
    what the tests call. Run models that you do not trust in a container.
    """
    if not options.allow_code_execution:
        advice = "read the warning in `python -m evaluation code --help`, then say"
        raise BadInput(f"this runs programs that a model wrote: {advice} --allow-code-execution")
    score_answers(model, patcher, options, code_score)


def score_answers(model, patcher, options, score):
    """Answer the items of --set in the mode asked for and report score and cost."""
    name, mode, limit = options.set, options.mode, options.limit
    check_mode(mode, model, options)
    asked = read_items(name, options.items, limit)
    turns = tqdm(asked, desc="answers", leave=False)
    texts, made = zip(*(answer(question, mode, model, patcher, options) for question in turns))
    report(score(texts, asked), made, options, set=name, mode=mode)
