"""The paper's evaluations (Fast BLT §4.2, §5.4, §6), on the real items and in miniature.

    python evaluate.py bpb                                   # bits per byte beside xz
    python evaluate.py likelihood --set arc-easy --items DIR # multiple choice; without --set a cloze on held-out text
    python evaluate.py translate --mode bltdv                # number phrases; with --set and --items FLORES, NTREX
    python evaluate.py code --allow-code-execution           # one-line functions; with --set and --items HumanEval, MBPP
    python evaluate.py diversity                             # more passes, more diverse samples?
    python evaluate.py miniature --checkpoints A.pt B.pt     # the paper's Figure 7 in small

Every task ends with a line of its score, with its standard error, and its cost.
"""
import json
import lzma
import math
import statistics
import sys
import time
from itertools import islice

import numpy as np
import torch
from tqdm import tqdm

import checkpoint
from answers import Runner, answer_all, code_score, cost_of, standard_error, translation_score
from bandwidth import draw_points, plot_path
from data import decode, document_ids
from diffusion import Unmask, check_block_size, generate_bltd, masked_accuracy
from items import CHOICES, PROGRAMS, TRANSLATIONS, as_bytes
from likelihood import choice_log_likelihoods, cloze
from machine import choose_device
from miniature import TASKS, test_items
from model import load_model
from sample import add_generation, check_mode
from stream import Generation, Sampling, bits_per_byte
from terminal import BadInput, Parser, number, run, table
from train import corpus_of

# ---- what every task ends with


def report(score, cost, options, **known):
    """The final line: score, a dict with `<name>` and `<name>_se` pairs, and cost; or both as one JSON object."""
    if options.json:
        return print(json.dumps({"task": options.task, **known, **score, **cost}))
    scores = [
        f"{name} {value:.4g}" + (f" ± {score[name + '_se']:.2g}" if name + "_se" in score else "")
        for name, value in score.items() if not name.endswith("_se")
    ]
    made = f"{cost['new_bytes']:,} bytes at {cost['bytes_per_second']:.0f} bytes/s" if cost[
        "new_bytes"] else "no bytes made"
    print(f"{', '.join(map(str, known.values()))} items: {', '.join(scores)}; {made}, {cost['seconds']:.1f} s, NFEs: "
          f"decoder {cost['decoder_nfes']:,}, encoder/global {cost['encoder_global_nfes']:,}, patcher "
          f"{cost['entropy_nfes']:,}; {cost['bandwidth_gb']:.3g} GB by Eq. 8")


def taken(items, options):
    """The first --limit items, as a list; at least one."""
    items = list(islice(items, options.limit))
    if not items:
        raise BadInput("there are no items to evaluate on")
    return items


# ---- bits per byte


def evaluate_bpb(model, patcher, options):
    """Every byte is predicted once, from all that the model's windows hold before it, in patches of its own patcher."""
    texts, name = held_out_texts(options)
    texts = texts[:options.limit]
    documents, size = [document_ids(text) for text in texts], sum(map(len, texts))
    began = time.perf_counter()
    with tqdm(desc="bits per byte", unit="B", unit_scale=True, leave=False, total=size + len(texts)) as bar:
        bits = bits_per_byte(model, patcher, documents, bar.update)
    score = {"bits_per_byte": bits, "xz_bits_per_byte": 8 * len(lzma.compress(b"".join(texts), preset=6)) / size}
    seconds = time.perf_counter() - began
    if model.config.block_size:
        accuracy, nats = masked_accuracy(model, patcher, [d[:4000] for d in documents[:20]], model.config.block_size)
        score |= {"masked_bits_by_position": [n / math.log(2) for n in nats], "masked_accuracy_by_position": accuracy}
    if options.json:
        return print(json.dumps({"task": "bpb", "text": name, "bytes": size, "seconds": seconds, **score}))
    if model.config.block_size:
        print(table(["position in a wholly masked block", *range(1, len(nats) + 1)], [
            ["bits per byte", *(f"{n / math.log(2):.2f}" for n in nats)], ["right", *(f"{a:.0%}" for a in accuracy)]
        ]) + "\n")
    print(f"{name}: {bits:.3f} bits per byte on {size:,} bytes in {len(texts)} documents, {seconds:.1f} s, "
          f"{size / seconds:.0f} bytes/s; xz -6 of the same bytes, packed as one: {score['xz_bits_per_byte']:.3f}")


def held_out_texts(options):
    """--data whole, or the validation split of the checkpoint's corpus -> (list of bytes, name)."""
    if options.data:
        corpus = corpus_of(options.data)
        return [data for _, data in corpus.documents], corpus.origin
    saved = checkpoint.load(checkpoint.find(options.checkpoint))
    corpus = corpus_of(saved["data"] if "data" in saved else saved["asked"]["data"])
    if corpus.sha256 != saved["corpus"]["sha256"]:
        print(f"note: {corpus.origin} differs from what this checkpoint was trained on; some of it may not be held out",
              file=sys.stderr)
    return corpus.split()[1], f"validation split of {corpus.origin}"


# ---- likelihood


def evaluate_likelihood(model, patcher, options):
    items = cloze(held_out_texts(options)[0]) if options.set == "cloze" else CHOICES[options.set](items_folder(options))
    right, right_by_byte, made = [], [], []
    for item in tqdm(taken(items, options), desc=options.set, leave=False):
        began = time.perf_counter()
        sums, counters = choice_log_likelihoods(model, patcher, item)
        made.append(Generation([], counters, time.perf_counter() - began))
        by_byte = [s / max(1, len(as_bytes(c))) for s, c in zip(sums, item.choices)]
        right.append(sums.index(max(sums)) == item.gold)
        right_by_byte.append(by_byte.index(max(by_byte)) == item.gold)
    score = {
        "accuracy": statistics.mean(right), "accuracy_se": standard_error(right),
        "accuracy_per_byte": statistics.mean(right_by_byte), "accuracy_per_byte_se": standard_error(right_by_byte)
    }
    report(score, cost_of(made, model, patcher), options, set=options.set, items=len(right))


def items_folder(options):
    if not options.items:
        raise BadInput(f"--set {options.set} needs --items DIR, the folder that holds its files")
    return options.items


# ---- generation: translation and code


def evaluate_generation(model, patcher, options):
    """The tasks `translate` and `code`."""
    if options.task == "code" and not options.allow_code_execution:
        raise BadInput(
            "this runs programs that a model wrote: read the warning in `python evaluate.py code --help`, "
            "then say --allow-code-execution")
    check_mode(options.mode, model, options)
    translating = options.task == "translate"
    if options.set in TASKS:
        language, examples, items = test_items(options.set, options.limit)
    elif translating:
        language, examples, items = TRANSLATIONS[options.set](items_folder(options))
    else:
        language, examples, items = None, [], PROGRAMS[options.set](items_folder(options))
    items, runners = taken(items, options), [Runner(options.mode, model, patcher, options.mode, options)]
    (answers,) = answer_all(runners, language, examples, items)
    texts, made = zip(*answers)
    score = (translation_score if translating else code_score)(texts, items)
    report(score, cost_of(made, model, patcher), options, set=options.set, mode=options.mode, items=len(items))


# ---- diversity


def evaluate_diversity(model, patcher, options):
    """Unconditional samples under entropy-bounded unmasking: word type-token ratio against decoder passes (§6)."""
    K = model.config.block_size if options.block_size is None else options.block_size
    check_block_size(model, K)
    rows = []
    grid = [(gamma, top_p) for gamma in (0.5, 0.8, 1.0, 1.2) for top_p in (0.8, 0.9, 1.0)]
    for gamma, top_p in tqdm(grid, desc="settings", leave=False):
        ratios, made = [], []
        for seed in range(options.limit):
            sampling = Sampling(options.temperature or 1.0, top_p, options.ignore_eos, options.seed + seed)
            made.append(generate_bltd(model, patcher, [], options.bytes, K, Unmask("entropy", gamma), sampling))
            words = decode(made[-1].ids).split()
            ratios.append(len(set(words)) / max(1, len(words)))
        cost = cost_of(made, model, patcher)
        rows.append({
            "task": "diversity", "gamma": gamma, "top_p": top_p, "type_token_ratio": statistics.mean(ratios),
            "type_token_ratio_se": standard_error(ratios),
            "decoder_nfes_per_byte": cost["decoder_nfes"] / max(1, cost["new_bytes"]), **cost
        })
    passes, ratios = ([row[key] for row in rows] for key in ("decoder_nfes_per_byte", "type_token_ratio"))
    constant = len(set(passes)) == 1 or len(set(ratios)) == 1
    correlation = None if constant else float(np.corrcoef(passes, ratios)[0, 1])
    if options.json:
        for row in rows:
            print(json.dumps(row))
        print(json.dumps({"task": "diversity", "correlation": correlation}))
    else:
        print_diversity(rows, correlation)
    if options.plot:
        points = {
            f"top-p {p}": [(r["decoder_nfes_per_byte"], r["type_token_ratio"], r["type_token_ratio_se"]) for r in rows
                           if r["top_p"] == p]
            for p in (0.8, 0.9, 1.0)
        }
        draw_points(options.plot, "word type-token ratio", {"decoder NFEs a byte": points})


def print_diversity(rows, correlation):
    print(
        table(["γ, top-p", "type-token ratio", "decoder NFEs/B", "bytes", "bytes/s"], [[
            f"{r['gamma']} {r['top_p']}", f"{r['type_token_ratio']:.3f} ± {r['type_token_ratio_se']:.3f}",
            f"{r['decoder_nfes_per_byte']:.3f}", r["new_bytes"], f"{r['bytes_per_second']:.0f}"
        ] for r in rows]))
    print("\ncorrelation of type-token ratio and decoder NFEs a byte over the settings: " +
          ("none, one of them is constant" if correlation is None else f"{correlation:.2f}"))


# ---- Figure 7 in small


def runners_of(paths, options):
    """Plain checkpoints as BLT and BLT-S, those trained for blocks as BLT-D-K and BLT-DV-K, the plain ones first."""
    runners = []
    for path in paths:
        model, patcher = (part.to(choose_device(options.device)) for part in load_model(path))
        K = model.config.block_size and (options.block_size or model.config.block_size)
        plain, blocks = {"blt": "BLT", "blts": f"BLT-S k={options.window}"}, {"bltd": f"BLT-D-{K}", "bltdv": f"BLT-DV-{K}"}
        runners += [Runner(name, model, patcher, mode, options) for mode, name in (blocks if K else plain).items()]
    names = [runner.name for runner in runners]
    if len(set(names)) < len(names) or "BLT" not in names:
        raise BadInput(f"--checkpoints makes {', '.join(names)}: give one plain BLT (K = 0) and one model for each block size")
    return sorted(runners, key=lambda r: r.model.config.block_size)


def evaluate_miniature(options):
    """Score and cost of every checkpoint and mode on the three generated tasks."""
    runners = runners_of(options.checkpoints, options)
    for runner in (r for r in runners if r.model.config.block_size):
        check_mode(runner.mode, runner.model, options)
    for runner in runners:
        runner.answer("warm-up", ("\n",))
    rows, made = [{"task": "miniature", "name": r.name, "mode": r.mode, "block_size": r.model.config.block_size}
                  for r in runners], [[] for _ in runners]
    for task in TASKS:
        language, examples, items = test_items(task, options.limit)
        answers = answer_all(runners, language, examples, items)
        for row, total, mine in zip(rows, made, answers):
            texts, generations = zip(*mine)
            total += generations
            if task != "code" or options.allow_code_execution:
                score = code_score(texts, items) if task == "code" else translation_score(texts, items)
                row |= {f"{task}_{name}": value for name, value in score.items()}
    for row, runner, total in zip(rows, runners, made):
        row |= cost_of(total, runner.model, runner.patcher)
        row["gb_per_kilobyte"] = 1000 * row["bandwidth_gb"] / max(1, row["new_bytes"])
        exact = [key for key in row if key.endswith(("_exact", "_pass@1"))]
        row["score"] = statistics.mean(row[key] for key in exact)
        row["score_se"] = math.sqrt(sum(row[key + "_se"] ** 2 for key in exact)) / len(exact)
        row["decrease"] = 1 - row["gb_per_kilobyte"] / rows[0]["gb_per_kilobyte"]
        row["ratio"] = row["bytes_per_second"] / rows[0]["bytes_per_second"]
    if options.json:
        for row in rows:
            print(json.dumps(row))
    else:
        print_miniature(rows, options)
    if options.plot:
        points = lambda key: {row["name"]: [(row[key], row["score"], row["score_se"])] for row in rows}
        draw_points(options.plot, "right answers, %",
                    {"MB a byte by Eq. 8": points("gb_per_kilobyte"), "bytes/s": points("bytes_per_second")})


def print_miniature(rows, options):
    scores = ("fr-en_exact", "fr-en_bleu", "de-en_exact", "de-en_bleu", "code_pass@1")
    shown = lambda row, key: f"{row[key]:.1f} ± {row[key + '_se']:.1f}" if key in row else "not run"
    header = ["", "fr-en exact", "BLEU", "de-en exact", "BLEU", "code pass@1", "dec/B", "enc+glob/B", "patcher/B", "MB/B",
              "saved", "bytes/s", f"x {rows[0]['name']}"]
    print(table(header, [[
        row["name"], *(shown(row, key) for key in scores),
        *(f"{row[part + '_nfes'] / max(1, row['new_bytes']):.3f}" for part in ("decoder", "encoder_global", "entropy")),
        f"{row['gb_per_kilobyte']:.2f}", f"{row['decrease']:.0%}", f"{row['bytes_per_second']:.0f}", f"{row['ratio']:.2f}"
    ] for row in rows]))
    print(f"\n{options.limit} held-out items a task; scores in percent with their standard error" +
          ("" if options.allow_code_execution else "; programs run only with --allow-code-execution"))


# ---- the command line


def options_from(argv):
    parser = Parser(prog="evaluate.py", description="Evaluate a checkpoint.")
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK",
                                  help="bpb, likelihood, translate, code, diversity or miniature")

    def add(name, limit, unit, text, **defaults):
        task = tasks.add_parser(name, help=text, description=text)
        task.add_argument("--limit", type=number(int, 1), default=limit, help=f"evaluate on the first so many {unit}")
        task.add_argument("--json", action="store_true", help="print JSON objects, one a line, and nothing else")
        add_generation(task)
        task.set_defaults(**defaults)
        return task

    sets = lambda *own_and_read: dict(choices=[name for group in own_and_read for name in group], help="which items")
    folder = dict(metavar="DIR", help="folder with the files of public benchmarks")
    allow = dict(action="store_true",
                 help="run programs that the model wrote; limits end accidents, but this is NO SECURITY SANDBOX")
    data = dict(nargs="+", metavar="PATH",
                help="files and folders to take whole (default: the validation split of the checkpoint's corpus)")
    plot = dict(metavar="FILE", type=plot_path, help="draw it, PNG or SVG")

    bpb = add("bpb", None, "documents",
              "Bits per byte under the causal mask, beside xz; of a BLT-D also the loss of masked blocks by position.")
    bpb.add_argument("--data", **data)
    task = add("likelihood", 1000, "items",
               "Multiple choice by the log-likelihood of each choice, as a sum and per byte.")
    task.add_argument("--set", default="cloze", **sets(["cloze"], CHOICES))
    task.add_argument("--items", **folder)
    task.add_argument("--data", **data)
    task = add("translate", 200, "items",
               "Translation into English, four worked examples, greedy unless told otherwise.", bytes=512)
    task.add_argument("--set", default="fr-en", **sets(TASKS[:2], TRANSLATIONS))
    task.add_argument("--items", **folder)
    task = add(
        "code", 200, "items",
        "pass@1 of programs that the model completes. They run in a process of their own, with limits on time, "
        "memory, files and processes. That ends accidents; it is NO SECURITY SANDBOX. Run models that you do not trust "
        "in a container or virtual machine.", bytes=1024)
    task.add_argument("--set", default="code", **sets(TASKS[2:], PROGRAMS))
    task.add_argument("--items", **folder)
    task.add_argument("--allow-code-execution", **allow)
    task = add("diversity", 4, "samples a setting",
               "Word type-token ratio of unconditional BLT-D samples against decoder passes, γ and top-p swept.",
               bytes=1000)
    task.add_argument("--plot", **plot)
    task = add(
        "miniature", 100, "items a task",
        "The paper's Figure 7 in small: score and cost of plain BLT, BLT-S, BLT-D-K and BLT-DV-K on generated tasks.")
    task.add_argument("--checkpoints", nargs="+", required=True, metavar="FILE",
                      help="models trained with `train.py --data miniature`, the plain BLT among them")
    task.add_argument("--allow-code-execution", **allow)
    task.add_argument("--plot", **plot)
    return parser.parse_args(argv)


def main(argv=None):
    options = options_from(argv)
    if options.task == "miniature":
        return evaluate_miniature(options)
    model, patcher = load_model(checkpoint.find(options.checkpoint))
    device = choose_device(options.device)
    tasks = {
        "bpb": evaluate_bpb, "likelihood": evaluate_likelihood, "translate": evaluate_generation,
        "code": evaluate_generation, "diversity": evaluate_diversity
    }
    tasks[options.task](model.to(device), patcher.to(device), options)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.stdout.reconfigure(errors="replace")
    run(main)
