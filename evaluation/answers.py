"""Answers that a model generates, and their scores: by sacrebleu, or by running programs.

From one model in one mode, or, for the paper's Figure 7 in small, from several side by side.
"""

import math
import statistics

import torch
from tqdm import tqdm

from data import corpus_of, decode, encode
from evaluation.benchmarks import read_items
from evaluation.execute import run_program
from evaluation.miniature import TASKS, test_items, write
from evaluation.tasks import Question, as_bytes, cost_of, mean, report, show
from model import load_model
from sample import sampling_of
from speculate import check_mode, run_mode, size_of_blocks
from support.machine import choose_device
from support.plots import METHODS, Mark, draw
from support.terminal import BadInput, package

RESAMPLES = 50  # of the items, for standard errors of scores that are no means
COLUMNS = """
name s | fr-en_exact s fr-en exact | fr-en_bleu s BLEU | de-en_exact s de-en exact |
de-en_bleu s BLEU | code_pass@1 s code pass@1 | decoder_nfes_per_byte .3f dec/B |
encoder_global_nfes_per_byte .3f enc+glob/B | entropy_nfes_per_byte .3f patcher/B |
gb_per_kilobyte .2f MB/B | decrease .0% saved | bytes_per_second .0f bytes/s | ratio .2f x BLT
"""

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


def answer_all(models, questions, score, options):
    """Every model answers all Questions -> for each (score(texts, questions), Generations).

    models: (mode, model, patcher) each. They take turns at every item, so that what else the
    machine does hits all of them alike.
    """
    asked = tqdm(questions, desc="answers", leave=False)
    turns = [[answer(question, *known, options) for known in models] for question in asked]
    answers = [zip(*column) for column in zip(*turns)]
    return [(score(texts, questions), made) for texts, made in answers]


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

    An answer has at most 512 bytes, or 256 for fr-en and de-en, number phrases that are made here.
    Stand-ins: NTREX (ntrex-fr-en) for the paper's FLORES fr-en, and BLEU of 13a tokens for its
    SentencePiece BLEU.
    """
    score_answers(model, patcher, options, translation_score)


def evaluate_code(model, patcher, options):
    """pass@1 of programs that the model completes.

    An answer has at most 512 bytes, or 256 for mbpp and for code, one-line functions that are made
    here. Programs run in a process of their own, with limits on time, memory, files and processes.
    That ends accidents; it is NO SECURITY SANDBOX. Still possible: to read whatever you may read,
    to use up 5 seconds and 1 GB, and to pass untested by looking for the harness in frames (sys,
    inspect, gc) or by redefining what the tests call. Run models that you do not trust in a
    container or virtual machine.
    """
    check_allowed(options)
    score_answers(model, patcher, options, code_score)


def check_allowed(options):
    """Raises BadInput unless the user lets programs of the model run."""
    if not options.allow_code_execution:
        advice = "read the warning in `python -m evaluation code --help`, then say"
        raise BadInput(f"this runs programs that a model wrote: {advice} --allow-code-execution")


def score_answers(model, patcher, options, score):
    """Answer the items of --set in the mode asked for and report score and cost."""
    name, mode, limit = options.set, options.mode, options.limit
    check_mode(mode, model, options)
    made_here = name in TASKS
    asked = test_items(name, limit) if made_here else read_items(name, options.items, limit)
    ((scores, made),) = answer_all([(mode, model, patcher)], asked, score, options)
    report(scores, made, options, set=name, mode=mode)


# ---- several, side by side


def evaluate_miniature(options):
    """The paper's Figure 7 in small.

    Score and cost of plain BLT, BLT-S, BLT-D-K and BLT-DV-K on generated tasks.
    """
    if options.write:
        write(options.write)
        described = corpus_of([options.write]).describe()
        return print(f"{described}\ntrain on it: python train.py --data {options.write}")
    rows = figure7(models_of(options), options)
    scores = "scores in percent and, of several items, their standard error"
    show(rows, COLUMNS, options, f"\n\n{options.limit} held-out items a task; {scores}")
    if options.plot:
        panels = {"MB a byte by Eq. 8": [], "bytes/s": []}
        for row in rows:
            mark = row["score"], METHODS[row["mode"]], row["name"]
            for marks, key in zip(panels.values(), ("gb_per_kilobyte", "bytes_per_second")):
                marks.append(Mark(row[key], *mark, error=row["score_se"]))
        draw(options.plot, "The paper's Figure 7 in small", "right answers, %", panels)


def models_of(options):
    """Plain --checkpoints as BLT and BLT-S, others as BLT-D and BLT-DV, by name, plain BLT first.

    -> {name with the bytes drafted at once: (mode, model, patcher)}
    """
    device, models = choose_device(options.device), {}
    for path in options.checkpoints:
        model, patcher = (part.to(device) for part in load_model(path))
        modes = {"BLT": "blt", f"BLT-S-{options.draft_size}": "blts"}
        if model.config.block_size:
            check_mode("bltd", model, options)
            K = size_of_blocks(model, options)
            modes = {f"BLT-D-{K}": "bltd", f"BLT-DV-{K}": "bltdv"}
        models |= {name: (mode, model, patcher) for name, mode in modes.items()}
    if len(models) < 2 * len(options.checkpoints) or "BLT" not in models:
        advice = "give one plain BLT (K = 0) and one model for each block size"
        raise BadInput(f"--checkpoints makes {', '.join(models)}: {advice}")
    return dict(sorted(models.items(), key=lambda known: known[1][1].config.block_size))


def figure7(models, options):
    """What each of models_of(options) scores and costs -> rows of the JSON keys.

    The score is the mean over the tasks of right answers, in percent; BLEU does not count. decrease
    and ratio are against the first row, plain BLT.
    """
    check_allowed(options)
    # The first generation of a process is slow and would count against plain BLT.
    runs = list(models.values())
    answer_all(runs, [Question("warm-up", "", ("\n",))], lambda *_: None, options)
    answered, rows = [], []
    for task in TASKS:
        score = code_score if task == "code" else translation_score
        answered.append(answer_all(runs, test_items(task, options.limit), score, options))
    for (name, (mode, model, _)), of_tasks in zip(models.items(), zip(*answered)):
        row = {"name": name, "mode": mode, "block_size": model.config.block_size}
        for task, (score, _) in zip(TASKS, of_tasks):
            row |= {f"{task}_{key}": value for key, value in score.items()}
        row |= cost_of([one for _, made in of_tasks for one in made])
        row["gb_per_kilobyte"] = 1000 * row["bandwidth_gb"] / max(1, row["new_bytes"])
        right = ("fr-en_exact", "de-en_exact", "code_pass@1")
        row["score"] = statistics.mean(row[key] for key in right)
        # Tasks are independent: their errors add as squares.
        errors = [row[key + "_se"] for key in right]
        row["score_se"] = None if None in errors else math.hypot(*errors) / len(errors)
        rows.append(row)
        row["decrease"] = 1 - row["gb_per_kilobyte"] / rows[0]["gb_per_kilobyte"]
        row["ratio"] = row["bytes_per_second"] / rows[0]["bytes_per_second"]
    return rows
