"""A checkpoint to share:  python export.py checkpoint.pt checkpoints/mine.pt

Weights and entropy model in half precision, nothing that only training needs. Rounding moves entropies, and with them patches,
so θ is calibrated again, on the held-out text of the corpus that the model was trained on, before anything is measured.
"""
import os
import sys

import torch

import checkpoint
from data import document_ids
from model import load_model
from patcher import calibrate
from stream import bits_per_byte
from terminal import BadInput, Parser, run
from train import corpus_of


def main(argv=None):
    parser = Parser(prog="export.py", description="Write a checkpoint in half precision, without what only training needs.")
    parser.add_argument("source", help="checkpoint that train.py wrote")
    parser.add_argument("target", help="file to write")
    options = parser.parse_args(argv)
    saved = checkpoint.load(options.source)
    if os.path.exists(options.target) and os.path.samefile(options.source, options.target):
        raise BadInput(f"{options.target} would replace what it is made of: give another file to write")
    if "asked" not in saved or "validation_bits_per_byte" not in saved["results"]:
        raise BadInput(f"{options.source} is no finished training run: give a checkpoint that train.py wrote to its end")
    corpus = corpus_of(saved["asked"]["data"])
    if corpus.sha256 != saved["corpus"]["sha256"]:
        raise BadInput(f"{corpus.origin} is not what {options.source} was trained on (other hash): θ can't be calibrated")
    half = lambda weights: {name: tensor.half() for name, tensor in weights.items()}
    small = {key: saved[key] for key in ("config", "patcher_config", "corpus", "results")}
    small |= {"model": half(saved["model"]), "patcher": half(saved["patcher"]), "data": saved["asked"]["data"]}
    checkpoint.save(options.target, small)
    model, patcher = load_model(options.target)                            # as everyone will have it: rounded
    held_out = [document_ids(data) for data in corpus.split()[1]]
    before = patcher.config.theta
    if patcher.needs_entropy:
        small["results"]["mean_patch_held_out"] = calibrate(patcher, held_out)
        small["patcher_config"]["theta"] = patcher.config.theta
    small["results"]["validation_bits_per_byte"] = bits_per_byte(model, patcher, held_out)
    checkpoint.save(options.target, small)
    print(f"θ {before:.4f} -> {patcher.config.theta:.4f} nats, mean patch {small['results']['mean_patch_held_out']:.2f} bytes, "
          f"{small['results']['validation_bits_per_byte']:.3f} bits per byte; {os.path.getsize(options.target):,} bytes in {options.target}")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.stdout.reconfigure(errors="replace")
    run(main)
