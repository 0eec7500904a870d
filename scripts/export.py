"""A checkpoint to share: half precision, nothing that only training needs.

    python -m scripts.export checkpoint.pt checkpoints/mine.pt

Rounding moves entropies, and with them patches. So the patcher's threshold is calibrated again, on
the held-out text of the corpus that the model was trained on, before anything is measured.
"""

import os

from data import corpus_of, document_ids
from generate import bits_per_byte
from model import model_from
from patcher import calibrate, patcher_from
from support import checkpoint
from support.terminal import BadInput, Parser, run


def corpus_behind(saved, source):
    """The corpus that a checkpoint was trained on.

    Raises BadInput where it is another by now, and for a source that can't be exported.
    """
    finished = saved["model"] and "validation_bits_per_byte" in saved["results"]
    if not finished or not {"asked", "corpus"} <= saved.keys():
        problem = "is no finished training run: give a checkpoint that train.py wrote to its end"
        raise BadInput(f"{source} {problem}")
    corpus = corpus_of(saved["asked"]["data"])
    if corpus.sha256 != saved["corpus"]["sha256"]:
        problem = f"is not what {source} was trained on (other hash): θ can't be calibrated"
        raise BadInput(f"{corpus.origin} {problem}")
    return corpus


def measure_again(small, corpus, size):
    """Calibrate to patches of `size` bytes, validate the rounded weights, update `small`."""
    model, patcher = model_from(small), patcher_from(small)
    held_out = [document_ids(data) for data in corpus.split()[1]]
    if patcher.needs_entropy:
        small["results"]["mean_patch_held_out"] = calibrate(patcher, held_out, size)
        small["patcher_config"]["threshold"] = patcher.config.threshold
    small["results"]["validation_bits_per_byte"] = bits_per_byte(model, patcher, held_out)


def options_from(argv):
    help_ = "Write a checkpoint in half precision, without what only training needs."
    parser = Parser(prog="scripts.export", description=help_)
    parser.add_argument("source", help="checkpoint that train.py wrote")
    parser.add_argument("target", help="file to write")
    return parser.parse_args(argv)


def main(argv=None):
    options = options_from(argv)
    saved = checkpoint.load(options.source)
    checkpoint.check_target(options.target, [options.source])
    corpus = corpus_behind(saved, options.source)
    model_from(saved), patcher_from(saved)  # which refuse what is damaged
    small = {key: saved[key] for key in ("config", "patcher_config", "corpus", "results")}
    for part in ("model", "patcher"):
        small[part] = {name: tensor.half() for name, tensor in saved[part].items()}
    small["data"] = saved["asked"]["data"]
    before = small["patcher_config"]["threshold"]
    measure_again(small, corpus, saved["asked"]["patch_size"])
    checkpoint.save(options.target, small)
    after, bits = small["patcher_config"]["threshold"], small["results"]["validation_bits_per_byte"]
    patch, size = small["results"]["mean_patch_held_out"], os.path.getsize(options.target)
    print(f"θ {before:.4f} -> {after:.4f} nats, mean patch {patch:.2f} bytes, ", end="")
    print(f"{bits:.3f} bits per byte; {size:,} bytes in {options.target}")


if __name__ == "__main__":
    run(main, "scripts.export")
