"""What a generation costs: in the paper's currency, bytes of parameters read (Fast BLT §4.2, Eq. 8), and in seconds.

    python bandwidth.py --paper                     # the paper's Tables 3-10 recomputed, row by row
    python bandwidth.py --checkpoint checkpoint.pt  # every mode and setting of a model of ours, measured
    python bandwidth.py --preset blt-1b --measure   # seconds of single passes at the paper's shapes, random weights
"""
import argparse
import csv
import json
import math
import os
import statistics
import sys
from dataclasses import dataclass, replace

import numpy as np
import torch
from tqdm import tqdm

import checkpoint
from data import BOS, default_corpus, encode
from diffusion import SIZES, Unmask, generate_bltd
from machine import choose_device, free_memory, memory_bandwidth
from model import BLT, PRESETS, load_model
from patcher import Patcher, PatcherConfig
from speculate import generate_bltdv, generate_blts, generate_lookup
from stream import Sampling, Stream, generate
from terminal import BadInput, Parser, number, run, table
from timing import pass_seconds, predicted_seconds

PAPER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "paper", "tables.csv")
PAPER_GLOBAL = {"1B": 1.28e9, "3B": 2.82e9}
PAPER_SIZES = {"1B": (160e6, 19e6 + 1.28e9), "3B": (160e6, 26e6 + 2.82e9)}   # decoder; encoder and global, run together

# ---- Eq. 8


def gigabytes(decoder_nfes, encoder_global_nfes, decoder_parameters, encoder_global_parameters, bits=16):
    """Eq. 8: every forward pass (NFE) reads each parameter of its part once, at `bits` per parameter -> GB (1e9 bytes).

    The n-gram tables are not among the parameters: a pass reads a few of their rows, looked up one by one.
    """
    return bits / 8 * (decoder_nfes * decoder_parameters + encoder_global_nfes * encoder_global_parameters) / 1e9


def generation_gigabytes(counters, model, patcher, bits=16):
    """-> (GB by Eq. 8, GB with the patcher's passes, which the paper leaves out) for the Counters of one generation."""
    sizes = model.sizes()
    paper = gigabytes(counters.decoder, counters.encoder_global, sizes["decoder"], sizes["encoder"] + sizes["global"],
                      bits)
    entropy_parameters = sum(p.numel() for p in patcher.parameters())
    return paper, paper + bits / 8 * counters.entropy * entropy_parameters / 1e9


# ---- the paper's tables


def read_paper():
    """The rows of the paper's Tables 3-10 -> list of dicts, numbers as floats."""
    with open(PAPER, newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for key in ("score", "acceptance_percent", "decoder_nfes", "encoder_global_nfes", "bandwidth_gb",
                    "decrease_percent"):
            row[key] = float(row[key]) if row[key] else None
    return rows


def recompute(rows):
    """Add to each row: gb and decrease by Eq. 8, error against the published GB, whether +-0.5 of an NFE explains it, and for
    BLT-S and BLT-DV what one encoder/global call a round (half the table's, plus one) would make of it.
    """
    baseline = {(r["model_size"], r["task"]): r for r in rows if r["method"] == "BLT"}
    for r in rows:
        sizes = PAPER_SIZES[r["model_size"]]
        blt = baseline[r["model_size"], r["task"]]
        plain = gigabytes(blt["decoder_nfes"], blt["encoder_global_nfes"], *sizes)
        r["gb"] = gigabytes(r["decoder_nfes"], r["encoder_global_nfes"], *sizes)
        r["decrease"] = 100 * (1 - r["gb"] / plain)
        r["error"] = r["gb"] / r["bandwidth_gb"] - 1
        r["explained"] = abs(r["gb"] - r["bandwidth_gb"]) <= gigabytes(0.5, 0.5, *sizes) + 0.005
        r["one_call_gb"] = r["one_call_decrease"] = None
        if r["method"] in ("BLT-S", "BLT-DV"):
            r["one_call_gb"] = gigabytes(r["decoder_nfes"], r["encoder_global_nfes"] / 2 + 1, *sizes)
            r["one_call_decrease"] = 100 * (1 - r["one_call_gb"] / plain)
    return rows


def fit_sizes(rows, model_size):
    """Part sizes recovered from the table alone: least squares of GB on the two NFEs -> (P_dec, P_enc + P_glob)."""
    mine = [r for r in rows if r["model_size"] == model_size]
    nfes = np.array([[r["decoder_nfes"], r["encoder_global_nfes"]] for r in mine])
    return np.linalg.lstsq(nfes * 2 / 1e9, np.array([r["bandwidth_gb"] for r in mine]), rcond=None)[0]


def print_paper(rows, bytes_per_token):
    name = lambda r: f"{r['model_size']} {r['task']} {r['method']} {r['block_size']} {r['setting']}"
    cell = lambda value, digits=1: "" if value is None else f"{value:.{digits}f}"
    header = ["size task method K setting", "dec", "enc+glob", "GB published", "Eq. 8", "error %", "saved % published", "Eq. 8 %",
              "one call: GB", "saved %"]
    print(table(header, [[name(r), cell(r["decoder_nfes"], 0), cell(r["encoder_global_nfes"], 0), cell(r["bandwidth_gb"], 2),
                          cell(r["gb"], 2), cell(100 * r["error"]), cell(r["decrease_percent"]), cell(r["decrease"]),
                          cell(r["one_call_gb"], 2), cell(r["one_call_decrease"])] for r in rows]))
    worst = max(rows, key=lambda r: abs(r["error"]))
    print(f"\n{len(rows)} rows, the largest error {abs(100 * worst['error']):.2f} % ({name(worst)})")
    unexplained = [r for r in rows if not r["explained"]]
    print(f"{len(unexplained)} rows differ by more than half an NFE of each part explains:")
    for r in unexplained:
        print(f"  {name(r)}: {r['bandwidth_gb']:.2f} GB published, {r['gb']:.2f} by Eq. 8")
    for size in PAPER_SIZES:
        decoder, rest = fit_sizes(rows, size)
        print(f"{size}: least squares on the table alone: P_dec {decoder / 1e6:.0f} M, P_enc + P_glob {rest / 1e9:.3f} B")
        for task, length in (("fr-en, de-en, humaneval", 512), ("mbpp", 256)):
            tokens = length / bytes_per_token
            print(f"{size}: a BPE Transformer of the global model's size at {bytes_per_token} bytes a token, {task}: "
                  f"{gigabytes(0, tokens, 0, PAPER_GLOBAL[size]):.2f} GB for {tokens:.0f} passes")


# ---- every mode of a model of ours

@dataclass
class Setting:
    """One way to generate: sampler(model, patcher, prompt, max_bytes, **arguments, sampling=...) -> Generation."""
    mode: str
    name: str
    sampler: callable
    arguments: dict
    count: int = 0        # bytes drafted a round


def settings_of(model):
    """Every mode and setting of the paper's appendix that a model can run, plain BLT first."""
    settings = [Setting("blt", "", generate, {})]
    settings += [Setting("blts", f"k={k}", generate_blts, {"window": k}, k) for k in (4, 8, 16)]
    settings += [Setting("lookup", "k=8", generate_lookup, {"window": 8}, 8)]
    for K in [K for K in SIZES if K <= model.config.block_size]:
        for mode, sampler, alphas, gammas in (("bltd", generate_bltd, (0.5, 0.7), (0.8, 1.0)),
                                              ("bltdv", generate_bltdv, (0.3,), (1.5, 2.0))):
            rules = [Unmask("confidence", a) for a in alphas] + [Unmask("entropy", g) for g in gammas]
            for rule in [*rules, Unmask("one-step", None)]:
                name = f"K={K} {rule.rule}" + (f" {rule.threshold}" if rule.threshold else "")
                settings.append(Setting(mode, name, sampler, {"block_size": K, "unmask": rule}, K))
    return settings


@torch.inference_mode()
def output_bits(model, patcher, prompt, ids):
    """Bits per byte of an output under the model's own causal reading, given its prompt (ids without BOS)."""
    stream = Stream(model, patcher)
    first = stream.prefill([BOS, *prompt])[None]
    logits = torch.cat([first, stream.extend(ids[:-1])]) if len(ids) > 1 else first      # (n, V)
    return torch.nn.functional.cross_entropy(logits.float().cpu(), torch.tensor(ids)).item() / math.log(2)


def distinct_4grams(outputs):
    """Share of the 4-grams of several outputs that differ: greedy text of small models loops, and flatters acceptance."""
    grams = [tuple(o[i:i + 4]) for o in outputs for i in range(len(o) - 3)]
    return len(set(grams)) / max(1, len(grams))


def figures(setting, outputs, plain, prompts, model, patcher, times, memory_speed):
    """The row of one setting: outputs and plain BLT's are lists of Generations -> dict; sums are given a generation."""
    n, size, seconds = len(outputs), sum(len(g.ids) for g in outputs), sum(g.seconds for g in outputs)
    total = lambda key: sum(getattr(g.counters, key) for g in outputs)
    cost = lambda made, bits=16: [sum(gb) for gb in zip(*(generation_gigabytes(g.counters, model, patcher, bits) for g in made))]
    predicted = [predicted_seconds(setting.mode, g.counters, times, setting.count) for g in outputs]
    ideal, closing, patching = (sum(parts) for parts in zip(*predicted))
    gb = cost(outputs)[0]
    return {
        "mode": setting.mode,
        "setting": setting.name,
        "agreement": sum(a == b for g, h in zip(outputs, plain) for a, b in zip(g.ids, h.ids)) / size,
        "output_bits_per_byte": statistics.mean(output_bits(model, patcher, p, g.ids) for p, g in zip(prompts, outputs)),
        "distinct_4grams": distinct_4grams([g.ids for g in outputs]),
        "mean_patch": total("bytes_advanced") / max(1, total("patches")),
        "acceptance": total("accepted") / total("drafted") if total("drafted") else None,
        "decoder_nfes": total("decoder") / n,
        "encoder_global_nfes": total("encoder_global") / n,
        "entropy_nfes": total("entropy") / n,
        "bandwidth_gb": gb / n,
        "decrease": 1 - gb / cost(plain)[0],
        "bytes_per_second": size / seconds,
        "ratio": size / seconds * sum(g.seconds for g in plain) / sum(len(g.ids) for g in plain),
        "of_ceiling": ideal / seconds,
        "seconds_decoder": (ideal - closing - patching) / n,
        "seconds_encoder_global": closing / n,
        "seconds_patcher": patching / n,
        "memory_bandwidth_share": cost(outputs, 32)[1] * 1e9 / seconds / memory_speed}


def measure_checkpoint(model, patcher, prompts, length):
    """Every mode and setting on the same prompts (lists of ids), in turn -> rows of figures, and the PassSeconds."""
    settings, sampling = settings_of(model), Sampling(ignore_eos=True)
    rows = {n for K in (4, 8, 16, 32) for n in (K, K + 1, 2 * K)} | {1}
    times, made = pass_seconds(model, patcher, rows), [[] for _ in settings]
    for setting in settings[:2]:
        setting.sampler(model, patcher, prompts[0], length, **setting.arguments, sampling=sampling)  # warm-up
    for prompt in tqdm(prompts, desc="prompts", leave=False):
        for setting, outputs in zip(settings, made):
            outputs.append(setting.sampler(model, patcher, prompt, length, **setting.arguments, sampling=sampling))
    speed = memory_bandwidth("cpu")
    return [figures(s, outputs, made[0], prompts, model, patcher, times, speed) for s, outputs in zip(settings, made)], times


def print_measured(rows, times):
    percent = lambda value: "" if value is None else f"{value:.0%}"
    header = ["mode, setting", "agrees", "bits/B", "4-grams", "accepted", "dec", "enc+glob", "patcher", "GB", "saved",
              "bytes/s", "x blt", "of ceiling", "of memory speed"]
    cells = [[f"{r['mode']} {r['setting']}", percent(r["agreement"]), f"{r['output_bits_per_byte']:.2f}",
              percent(r["distinct_4grams"]), percent(r["acceptance"]), f"{r['decoder_nfes']:.0f}",
              f"{r['encoder_global_nfes']:.0f}", f"{r['entropy_nfes']:.0f}", f"{r['bandwidth_gb']:.2f}",
              percent(r["decrease"]), f"{r['bytes_per_second']:.0f}", f"{r['ratio']:.2f}", f"{r['of_ceiling']:.2f}",
              percent(r["memory_bandwidth_share"])] for r in rows]
    print(table(header, cells))
    print(f"\nmean patch on plain BLT's text: {rows[0]['mean_patch']:.2f} bytes. {times.describe((1, 9))}")


# ---- the paper's shapes


def measure_preset(name, device, as_json):
    """Seconds of single passes at a preset's shapes: random bfloat16 weights, the n-gram tables shrunk to 1000 rows."""
    config = replace(PRESETS[name], hash_rows=1000)
    with torch.device("meta"):
        need = 2 * sum(p.numel() for p in BLT(config).parameters())
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else free_memory()
    if free is not None and need * 1.3 > free:
        raise BadInput(
            f"{name} needs {need * 1.3 / 1e9:.1f} GB of memory, {free / 1e9:.1f} are free: choose a smaller preset")
    with torch.device("meta"):
        model = BLT(config).to(torch.bfloat16)
    model = model.to_empty(device=device).eval()
    with torch.no_grad():
        for p in tqdm(list(model.parameters()), desc="random weights", leave=False):
            p.normal_(std=0.02) if p.ndim > 1 else p.fill_(1.0)
    patcher = Patcher(PatcherConfig(kind="stride", max_patch=4)).to(device).eval()
    times = pass_seconds(model, patcher, (1, 9, 17), range(1, 9), repeats=10)
    speed, sizes = memory_bandwidth(device), model.sizes()
    ideal = {
        "decoder": 2 * sizes["decoder"] / speed, "encoder+global": 2 * (sizes["encoder"] + sizes["global"]) / speed
    }
    rows = [{"preset": name, "pass": f"decoder, {n} rows", "seconds": s, "seconds_by_eq8": ideal["decoder"]}
            for n, s in times.decoder.items()]
    rows += [{
        "preset": name, "pass": f"encoder+global, {m} patches", "seconds": s, "seconds_by_eq8": ideal["encoder+global"]
    } for m, s in times.encoder_global.items()]
    rows += [{
        "preset": name, "pass": f"verification of {n - 1} bytes (2 patches)",
        "seconds": times.decoder[n] + times.encoder_global[2], "seconds_by_eq8": sum(ideal.values())
    } for n in (9, 17)]
    walls = []
    size = {"blt-1b": "1B", "blt-3b": "3B"}.get(name)
    for r in [r for r in read_paper() if r["model_size"] == size]:
        walls.append({
            "preset": name, "row": f"{r['task']} {r['method']} {r['block_size']} {r['setting']}",
            "paper_decrease_percent": r["decrease_percent"],
            "seconds": r["decoder_nfes"] * times.decoder[9 if r["method"] in ("BLT-D", "BLT-DV") else 1] +
            r["encoder_global_nfes"] * times.encoder_global[1]
        })
    if as_json:
        return print_json(rows + walls)
    print(
        f"{name}, random bfloat16 weights on {device}, {torch.get_num_threads()} threads, memory read at {speed / 1e9:.1f} GB/s, spread at most {times.spread:.0%}\n"
    )
    print(
        table(["pass", "ms", "Eq. 8 over memory speed, ms", "ratio"], [[
            r["pass"], f"{1000 * r['seconds']:.1f}", f"{1000 * r['seconds_by_eq8']:.1f}",
            f"{r['seconds'] / r['seconds_by_eq8']:.2f}"
        ] for r in rows]))
    if walls:
        plain = {w["row"].split()[0]: w["seconds"] for w in walls if " BLT " in w["row"]}
        print(
            "\nwall-clock that follows from these passes; the weights are random and the NFEs are the paper's (its patcher not counted)"
        )
        print(
            table(["task, method", "seconds", "saved %", "saved % of GB, published"], [[
                w["row"], f"{w['seconds']:.1f}", f"{100 * (1 - w['seconds'] / plain[w['row'].split()[0]]):.1f}",
                w["paper_decrease_percent"] or ""
            ] for w in walls]))


def plot_path(path):
    """An argparse type: a file that matplotlib can be asked to write."""
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise argparse.ArgumentTypeError(f"there is no folder {os.path.dirname(path)} to write {path} in")
    if not path.endswith((".png", ".svg")):
        raise argparse.ArgumentTypeError(f"plots are written as .png or .svg, not {path}")
    return path


def draw_points(path, ylabel, panels):
    """Scatter plots beside each other, sharing their y axis. panels: x label -> {series: list of (x, y, error of y)}."""
    try:
        import matplotlib
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        raise BadInput("--plot needs matplotlib: pip install -r requirements-dev.txt") from None
    figure, axes = plt.subplots(1, len(panels), figsize=(5.5 * len(panels), 4.5), sharey=True, squeeze=False)
    for axis, (xlabel, series) in zip(axes[0], panels.items()):
        for name, points in series.items():
            x, y, error = zip(*points)
            axis.errorbar(x, y, error if any(error) else None, fmt="o", label=name, alpha=0.8)
        axis.set_xlabel(xlabel)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel(ylabel)
    axes[0][-1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def print_json(rows):
    for row in rows:
        print(json.dumps(row))


def options_from(argv):
    parser = Parser(prog="bandwidth.py", description="What a generation costs, in Eq. 8's gigabytes and in seconds.")
    parser.add_argument("--paper", action="store_true", help="recompute the paper's tables")
    parser.add_argument("--bytes-per-token", type=number(float, 0, above=True), default=4.4,
                        help="of the BPE Transformer that --paper compares with")
    parser.add_argument("--checkpoint", help="measure this model (default: the newest there is)")
    parser.add_argument("--prompts", metavar="FILE",
                        help="prompts for it, one a line (default: four held-out places of the default corpus)")
    parser.add_argument("--bytes", type=number(int, 2), default=256, help="to generate for each prompt")
    parser.add_argument("--preset", choices=PRESETS, help="with --measure: whose shapes to time")
    parser.add_argument("--measure", action="store_true",
                        help="time single passes at a preset's shapes, random weights")
    parser.add_argument("--device", default="cpu", help="with --measure: cpu or cuda")
    parser.add_argument("--plot", metavar="FILE", type=plot_path, help="draw quality against cost, PNG or SVG")
    parser.add_argument("--json", action="store_true", help="one JSON object a row and nothing else")
    return parser.parse_args(argv)


def read_prompts(path):
    """-> lists of ids: the lines of a file, or four places in the held-out text of the default corpus."""
    if not path:
        held_out = [d for d in default_corpus().split()[1] if len(d) > 3000]
        return [encode(d[1000:1200]) for d in held_out[:4]]
    try:
        with open(path, "rb") as file:
            prompts = [encode(line) for line in file.read().splitlines() if line]
    except OSError as problem:
        raise BadInput(f"can't read the prompts in {path}: {problem.strerror}") from None
    if not prompts:
        raise BadInput(f"there are no prompts in {path}: give one a line")
    return prompts


def main(argv=None):
    options = options_from(argv)
    if options.paper:
        rows = recompute(read_paper())
        return print_json(rows) if options.json else print_paper(rows, options.bytes_per_token)
    if options.measure:
        if not options.preset:
            raise BadInput("--measure needs --preset: whose shapes to time")
        return measure_preset(options.preset, choose_device(options.device), options.json)
    model, patcher = load_model(checkpoint.find(options.checkpoint))
    rows, times = measure_checkpoint(model, patcher, read_prompts(options.prompts), options.bytes)
    if options.plot:
        of_mode = lambda key: {mode: [(r[key], r["output_bits_per_byte"], 0.0) for r in rows if r["mode"] == mode]
                               for mode in dict.fromkeys(r["mode"] for r in rows)}
        draw_points(options.plot, "bits per byte of the output under plain BLT",
                    {"GB a generation by Eq. 8": of_mode("bandwidth_gb"), "bytes/s": of_mode("bytes_per_second")})
    return print_json(rows) if options.json else print_measured(rows, times)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.stdout.reconfigure(errors="replace")
    run(main)
