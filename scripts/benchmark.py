"""Speed: a Stream beside transformers' BLT, whose own cache does not work, of the same weights.

    python -m scripts.benchmark

No test is timed; this is what is.
"""

import json
import tempfile
import time
from pathlib import Path

import torch

from data import BOS, default_corpus, encode
from model import load_model
from patcher import calibrate
from scripts import convert
from stream import Stream
from support import machine
from support.terminal import Parser, package, run, table_of

STREAM_COLUMNS = """
context d context, bytes | cached .2f cached, ms/byte | anew .1f anew, ms/byte |
faster .0f times faster | against .2f against the first
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
    transformers = package("transformers", "scripts.benchmark")
    sizes = json.loads(Path(__file__).with_name("official.json").read_text())
    theirs = transformers.BltForCausalLM(transformers.BltConfig(**sizes)).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        convert.main([folder, f"{folder}/ours.pt"])
        model, patcher = load_model(f"{folder}/ours.pt")
    calibrate(patcher, [torch.tensor(text)], 4.5)
    theirs.config.patching_threshold = patcher.config.threshold
    return theirs, model, patcher


def options_from(argv):
    parser = Parser(prog="scripts.benchmark", description="What caches save, on this machine.")
    return parser.parse_args(argv)


def main(argv=None):
    """Print what caches save at growing contexts."""
    options_from(argv)
    theirs, model, patcher = official(text_ids(2500))

    def anew(ids):
        theirs(torch.tensor([ids]), use_cache=False)

    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    rows = stream_against_prefix(model, patcher, anew, (64, 256, 512, 1024, 2048))
    print(table_of(rows, STREAM_COLUMNS))


if __name__ == "__main__":
    run(main, "scripts.benchmark")
