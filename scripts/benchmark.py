"""Speed: a Stream beside transformers' BLT, whose own cache does not work, of the same weights.

    python -m scripts.benchmark

No test is timed; this is what is.
"""

import tempfile
import time

import torch

from data import BOS, default_corpus, encode
from fast.load import load_model, prepared
from fast.patching import calibrate
from scripts import convert
from support import hardware
from support.terminal import Column, Parser, package, run, table_of

# The sizes of a BLT of transformers: those of the `reference` preset, but for its patcher
OFFICIAL = {
    "encoder_config": {
        "num_hidden_layers": 1,
        "hidden_size_global": 256,
        "hidden_size": 128,
        "num_attention_heads": 2,
        "intermediate_size": 384,
    },
    "decoder_config": {
        "num_hidden_layers": 4,
        "hidden_size_global": 256,
        "hidden_size": 128,
        "num_attention_heads": 2,
        "intermediate_size": 384,
    },
    "global_config": {
        "num_hidden_layers": 4,
        "hidden_size": 256,
        "num_attention_heads": 4,
        "intermediate_size": 704,
    },
    "patcher_config": {
        "num_hidden_layers": 2,
        "hidden_size": 128,
        "num_attention_heads": 2,
        "intermediate_size": 384,
    },
    "encoder_hash_byte_group_vocab": 4096,
}
STREAM_COLUMNS = [
    Column("context", "d", "context, bytes"),
    Column("cached", ".2f", "cached, ms/byte"),
    Column("anew", ".1f", "anew, ms/byte"),
    Column("faster", ".0f", "times faster"),
    Column("against", ".2f", "against the first"),
]


def text_ids(n):
    """BOS and the first n - 1 bytes of the default corpus."""
    ids = [BOS]
    for _, data in default_corpus().documents:
        ids += encode(data[: n - len(ids)])
    return ids


@torch.inference_mode()
def stream_against_prefix(machine, anew, contexts, bytes_each=128):
    """Milliseconds a byte of teacher-forced text, from caches and of anew(ids) -> dicts."""
    ids = text_ids(max(contexts) + bytes_each)

    def cached(context):
        stream = machine.state()
        stream.extend(ids[:context])
        began = time.perf_counter()
        for i in range(context, context + bytes_each):
            stream.extend(ids[i : i + 1])
        return 1000 * (time.perf_counter() - began) / bytes_each

    cached(contexts[0])  # the first time warms up
    rows = []
    for context in contexts:
        ours = cached(context)
        whole = 1000 * hardware.median_seconds(lambda: anew(ids[:context]), 5)
        rows.append({"context": context, "cached": ours, "anew": whole, "faster": whole / ours})
    for row in rows:
        row["against"] = row["cached"] / rows[0]["cached"]
    return rows


def official(text):
    """-> a random BLT of transformers with patches of 4.5 bytes in text (ids), and our machine."""
    transformers = package("transformers", "scripts.benchmark")
    theirs = transformers.BltForCausalLM(transformers.BltConfig(**OFFICIAL)).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        convert.main([folder, f"{folder}/ours.pt"])
        model, patcher = load_model(f"{folder}/ours.pt")
    calibrate(patcher, [torch.tensor(text)], 4.5)
    theirs.config.patching_threshold = patcher.config.threshold
    return theirs, prepared(model, patcher)


def options_from(argv):
    parser = Parser(prog="scripts.benchmark", description="What caches save, on this machine.")
    return parser.parse_args(argv)


def main(argv=None):
    """Print what caches save at growing contexts."""
    options_from(argv)
    theirs, machine = official(text_ids(2500))

    def anew(ids):
        theirs(torch.tensor([ids]), use_cache=False)

    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    rows = stream_against_prefix(machine, anew, (64, 256, 512, 1024, 2048))
    print(table_of(rows, STREAM_COLUMNS))


if __name__ == "__main__":
    run(main, "scripts.benchmark")
