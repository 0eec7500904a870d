"""A checkpoint to share: half precision, nothing that only training needs.

    python -m scripts.export checkpoint.pt checkpoints/mine.pt

Rounding moves entropies, and with them patches. So the patcher's threshold is calibrated again, on
the held-out text of the corpus that the model was trained on, before anything is measured.
"""

import os

from data import corpus_of, document_ids
from generate import bits_per_byte
from model import load_model
from patcher import calibrate
from support import checkpoint
from support.terminal import BadInput, Parser, run


def half(weights):
    """A state dict in half precision."""
    return {name: tensor.half() for name, tensor in weights.items()}


def refuse_unfit(saved, options):
    """Raises BadInput for a source that can't be exported, and a target that would replace it."""
    if os.path.exists(options.target) and os.path.samefile(options.source, options.target):
        problem = "would replace what it is made of: give another file to write"
        raise BadInput(f"{options.target} {problem}")
    if "asked" not in saved or "validation_bits_per_byte" not in saved["results"]:
        problem = "is no finished training run: give a checkpoint that train.py wrote to its end"
        raise BadInput(f"{options.source} {problem}")


def corpus_behind(saved, source):
    """The corpus that a checkpoint was trained on. Raises BadInput where it is another by now."""
    corpus = corpus_of(saved["asked"]["data"])
    if corpus.sha256 != saved["corpus"]["sha256"]:
        problem = f"is not what {source} was trained on (other hash): θ can't be calibrated"
        raise BadInput(f"{corpus.origin} {problem}")
    return corpus


def measure_again(small, target, corpus):
    """Calibrate and validate the rounded weights in `target`; `small`, its contents, is updated.

    -> (the patcher's threshold before, and after).
    """
    model, patcher = load_model(target)  # as everyone will have it
    held_out = [document_ids(data) for data in corpus.split()[1]]
    before = patcher.config.threshold
    if patcher.needs_entropy:
        small["results"]["mean_patch_held_out"] = calibrate(patcher, held_out)
        small["patcher_config"]["threshold"] = patcher.config.threshold
    small["results"]["validation_bits_per_byte"] = bits_per_byte(model, patcher, held_out)
    return before, patcher.config.threshold


def options_from(argv):
    help_ = "Write a checkpoint in half precision, without what only training needs."
    parser = Parser(prog="scripts.export", description=help_)
    parser.add_argument("source", help="checkpoint that train.py wrote")
    parser.add_argument("target", help="file to write")
    return parser.parse_args(argv)


def main(argv=None):
    options = options_from(argv)
    saved = checkpoint.load(options.source)
    refuse_unfit(saved, options)
    corpus = corpus_behind(saved, options.source)
    small = {key: saved[key] for key in ("config", "patcher_config", "corpus", "results")}
    small |= {"model": half(saved["model"]), "patcher": half(saved["patcher"])}
    small["data"] = saved["asked"]["data"]
    checkpoint.save(options.target, small)
    before, after = measure_again(small, options.target, corpus)
    checkpoint.save(options.target, small)
    results, size = small["results"], os.path.getsize(options.target)
    print(
        f"θ {before:.4f} -> {after:.4f} nats, "
        f"mean patch {results['mean_patch_held_out']:.2f} bytes, "
        f"{results['validation_bits_per_byte']:.3f} bits per byte; "
        f"{size:,} bytes in {options.target}"
    )


if __name__ == "__main__":
    run(main, "scripts.export")
