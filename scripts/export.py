"""A checkpoint to share: half precision, nothing that only training needs.

    python -m scripts.export checkpoint.pt checkpoints/mine.pt
    python -m scripts.export old.pt new.pt --openings held_out.txt    # tell it how its text begins

Rounding moves entropies, and with them patches. So the patcher's threshold is calibrated again, on
the held-out text of the corpus that the model was trained on, before anything is measured.
"""

import os

from data import corpus_of, document_ids, openings_of
from fast.load import checked, model_from, patcher_from
from fast.patching import calibrate
from measure.quality import bits_per_byte, masked_accuracy
from support import checkpoint
from support.flags import Only, add_texts
from support.openings import known_openings
from support.terminal import BadInput, Parser, run


def corpus_behind(saved, source):
    """The corpus that a checkpoint was trained on.

    Raises BadInput where it is another by now, and for a source that can't be exported.
    """
    finished = saved["model"] and "validation_bits_per_byte" in saved["results"]
    if not finished or not {"asked", "corpus"} <= saved.keys():
        problem = "is no finished training run: give a checkpoint that train.py wrote to its end"
        raise BadInput(f"{source} {problem}")
    asked = saved["asked"]
    # Files were never split before there was a separator.
    corpus = corpus_of(asked["data"], asked.get("separator", ""), asked.get("held_out"))
    if not corpus.is_that_of(saved["corpus"]):
        problem = f"is not what {source} was trained on (other hash): θ can't be calibrated"
        raise BadInput(f"{corpus.origin} {problem}")
    return corpus


def measure_again(small, corpus, size):
    """Calibrate to patches of `size` bytes, validate the rounded weights, update `small`.

    What is said of the weights as they were goes, but for what is said of their training.
    """
    model = model_from(small)
    patcher = patcher_from(small)
    results = small["results"]
    _, held_out = corpus.split()
    documents = [document_ids(data) for data in held_out]
    if patcher.needs_entropy:
        results["mean_patch_held_out"] = calibrate(patcher, documents, size)
        small["patcher_config"]["threshold"] = patcher.config.threshold
    machine = checked(model, patcher)
    results["validation_bits_per_byte"] = bits_per_byte(machine.state, documents)
    results.pop("mean_patch_train", None)  # by the old threshold
    K = model.config.block_size
    if K:
        accuracy, bits = masked_accuracy(machine, documents, K)
        results["masked_accuracy"] = accuracy
        results["masked_bits_per_byte"] = None if bits is None else sum(bits) / K


def openings_in(options):
    """The openings of the documents that --openings names."""
    corpus = corpus_of(options.openings, options.separator)
    openings = openings_of([data for _, data in corpus.documents])
    if not openings:
        raise BadInput(f"no document of {corpus.origin} is long enough: give longer texts")
    return openings


def smaller(saved, options):
    """What is kept of a finished training run -> (contents of the new file, what is said of it)."""
    corpus = corpus_behind(saved, options.source)
    # These refuse what is damaged.
    model_from(saved)
    patcher_from(saved)
    small = {key: saved[key] for key in ("config", "patcher_config", "corpus", "results")}
    for part in ("model", "patcher"):
        small[part] = {name: tensor.half() for name, tensor in saved[part].items()}
    small["data"] = saved["asked"]["data"]
    small["separator"] = saved["asked"].get("separator", "")
    small["held_out"] = saved["asked"].get("held_out")
    before = small["patcher_config"]["threshold"]
    # The patches that it was trained on: --patch-size is not theirs if its patcher was another's.
    size = saved["results"].get("mean_patch_held_out") or saved["asked"]["patch_size"]
    measure_again(small, corpus, size)
    after = small["patcher_config"]["threshold"]
    results = small["results"]
    patch = f"mean patch {results['mean_patch_held_out']:.2f} bytes"
    bits = f"{results['validation_bits_per_byte']:.3f} bits per byte"
    # A run of before there were openings has none in its file, and its text is at hand.
    _, held_out = corpus.split()
    small["openings"] = known_openings(saved) or openings_of(held_out)
    return small, f"θ {before:.4f} -> {after:.4f} nats, {patch}, {bits}; "


def options_from(argv):
    help_ = "Write a checkpoint in half precision, without what only training needs."
    parser = Parser(prog="scripts.export", description=help_)
    parser.add_argument("source", help="checkpoint that train.py wrote")
    parser.add_argument("target", help="file to write")
    help_ = "text whose documents' openings it keeps, not those of the run's held-out text; so may "
    help_ += "a checkpoint that is exported already, which stays as it is otherwise"
    parser.add_argument("--openings", nargs="+", metavar="PATH", help=help_)
    add_texts(Only(parser, ["separator"]))
    options = parser.parse_args(argv)
    if options.separator is not None and not options.openings:
        raise BadInput("--separator is of --openings here: a run knows its own")
    return options


def main(argv=None):
    options = options_from(argv)
    saved = checkpoint.load(options.source)
    checkpoint.check_target(options.target, [options.source, *(options.openings or ())])
    said = ""
    if options.openings and saved["model"] and "asked" not in saved:
        # It is exported already.
        small = {key: value for key, value in saved.items() if key != "path"}
    else:
        small, said = smaller(saved, options)
    if options.openings:
        small["openings"] = openings_in(options)
    checkpoint.save(options.target, small)
    kept = f"{len(small['openings'])} openings"
    print(f"{said}{kept}; {os.path.getsize(options.target):,} bytes in {options.target}")


if __name__ == "__main__":
    run(main, "scripts.export")
