"""Speed: two fast paths beside their slow twins in one run, and single passes at a preset's shapes.

    python -m scripts.benchmark stream                   # a cached Stream, and the prefix anew
    python -m scripts.benchmark stream --official        # the same of transformers' BLT and ours
    python -m scripts.benchmark passes --preset blt-1b   # single passes beside the memory's speed

No test is timed; this is what is.
"""

import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from data import BOS, default_corpus, encode
from evaluation.tasks import package
from generate import generate_uncached
from model import BLT, PRESETS, load_model
from patcher import Patcher, PatcherConfig, calibrate
from scripts import convert
from stream import Stream
from support import checkpoint, machine
from support.passes import pass_seconds
from support.terminal import BadInput, Parser, print_rows, run, table_of

STREAM_COLUMNS = """
context d context, bytes | cached .2f cached, ms/byte | anew .1f anew, ms/byte |
faster .0f times faster | against .2f against the first
"""
PASS_COLUMNS = """
pass s pass | seconds .4f seconds | seconds_by_eq8 .4f Eq. 8 over memory speed | ratio .2f ratio
"""


def text_ids(n):
    """BOS and the first n - 1 bytes of the default corpus."""
    return [BOS, *encode(b"".join(data for _, data in default_corpus().documents)[: n - 1])]


@torch.inference_mode()
def stream_against_prefix(model, patcher, anew, contexts, bytes_each=128):
    """Milliseconds a byte of teacher-forced text, from caches and of anew(ids) -> dicts."""
    ids, rows = text_ids(max(contexts) + bytes_each), []
    for context in (contexts[0], *contexts):  # the first time warms up
        stream = Stream(model, patcher)
        stream.prefill(ids[:context])
        began = time.perf_counter()
        for i in range(context, context + bytes_each):
            stream.extend(ids[i : i + 1])
        cached = 1000 * (time.perf_counter() - began) / bytes_each
        whole = 1000 * machine.median_seconds(lambda: anew(ids[:context]), 5)
        row = {"context": context, "cached": cached, "anew": whole, "faster": whole / cached}
        rows.append(row)
    return [{**row, "against": row["cached"] / rows[1]["cached"]} for row in rows[1:]]


def official(text):
    """-> a random BLT of transformers with patches of 4.5 bytes in text (ids), and ours of it."""
    transformers = package("transformers", "scripts.benchmark stream --official")
    sizes = json.loads(Path(__file__).with_name("official.json").read_text())
    theirs = transformers.BltForCausalLM(transformers.BltConfig(**sizes)).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        convert.main([folder, f"{folder}/ours.pt"])
        model, patcher = load_model(f"{folder}/ours.pt")
    calibrate(patcher, [torch.tensor(text)], 4.5)
    theirs.config.patching_threshold = patcher.config.threshold
    return theirs, model, patcher


def benchmark_stream(options):
    """Print what caches save at growing contexts, over the same model without or transformers'."""
    if options.official:
        theirs, model, patcher = official(text_ids(2500))
        contexts = (64, 256, 512, 1024, 2048)
    else:
        model, patcher = load_model(checkpoint.find(options.checkpoint))
        contexts = (512, 2048, 8192)

    def anew(ids):
        if options.official:
            theirs(torch.tensor([ids]), use_cache=False)
        else:
            generate_uncached(model, patcher, ids[1:], 1)

    print(table_of(stream_against_prefix(model, patcher, anew, contexts), STREAM_COLUMNS))


def random_model(name, device):
    """A preset's BLT of random weights, its n-gram tables shrunk. Raises BadInput if too large."""
    with torch.device("meta"):
        model = BLT(replace(PRESETS[name].model, ngram_table_size=1000)).to(torch.bfloat16)
    need = 1.3 * 2 * sum(p.numel() for p in model.parameters())
    if device.startswith("cuda"):
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # all that there is
    if need > free:
        memory = f"{need / 1e9:.1f} GB of memory, there are {free / 1e9:.1f}"
        raise BadInput(f"{name} needs {memory}: choose a smaller preset")
    model = model.to_empty(device=device).eval()
    with torch.no_grad():
        for p in tqdm(list(model.parameters()), desc="random weights", leave=False):
            p.normal_(mean=float(p.ndim == 1), std=0.02)
    return model


def benchmark_passes(options):
    """Print single passes at a preset's shapes beside what Eq. 8's bytes take to be read."""
    device = machine.choose_device(options.device)
    model = random_model(options.preset, device)
    patcher = Patcher(PatcherConfig(kind="stride", max_patch=4)).to(device).eval()
    # Decoder rows of the paper's K and k: plain bytes, blocks, blocks behind a byte or a block
    times = pass_seconds(model, patcher, (1, 4, 5, 8, 9, 16, 17, 32), repeats=10)
    speed, size, rows = machine.memory_bandwidth(device), model.sizes(), []
    for name, timed, parameters in (
        ("decoder, {} rows", times.decoder, size["decoder"]),
        ("encoder+global, {} patches", times.encoder_global, size["encoder"] + size["global"]),
    ):
        read = 2 * parameters / speed
        for n, seconds in timed.items():
            row = {"preset": options.preset, "pass": name.format(n), "seconds": seconds}
            rows.append({**row, "seconds_by_eq8": read, "ratio": seconds / read})
    if options.json:
        return print_rows(rows)
    weights = f"random bfloat16 weights on {device}, memory read at {speed / 1e9:.1f} GB/s"
    print(f"{weights}, spread at most {times.spread:.0%}\n")
    print(table_of(rows, PASS_COLUMNS))


WORKS = {"stream": benchmark_stream, "passes": benchmark_passes}


def options_from(argv):
    parser = Parser(prog="scripts.benchmark", description="Speed, measured on this machine.")
    what = parser.add_subparsers(dest="what", required=True, metavar="|".join(WORKS))
    parsers = [what.add_parser(name, help=work.__doc__) for name, work in WORKS.items()]
    stream, passes = (parser.add_argument for parser in parsers)
    stream("--checkpoint", help="whose Stream (default: the newest model there is)")
    stream("--official", action="store_true", help="small random official weights instead")
    passes("--preset", default="blt-1b", choices=PRESETS, help="whose shapes")
    passes("--device", default="cpu", help="cpu, cuda, ... or auto")
    passes("--json", action="store_true", help="one JSON object a row and nothing else")
    return parser.parse_args(argv)


def main(argv=None):
    options = options_from(argv)
    if not getattr(options, "json", False):
        print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    WORKS[options.what](options)


if __name__ == "__main__":
    run(main, "scripts.benchmark")
