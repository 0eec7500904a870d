"""A text's way through the fast machine, byte by byte: python -m fast --text "def main():"."""

import os

from data import BOS, decode, encode
from fast.load import load_model, prepared
from generate import Sampling, ban
from support import checkpoint
from support.flags import idea_options
from support.show import rule_in_words
from support.terminal import SPACE, BadInput, run, table, visible

options_from = idea_options("python -m fast", "Show a text's way through the model.")


def main(argv=None):
    options = options_from(argv)
    data = os.fsencode(options.text)
    if len(data) > 200:
        raise BadInput(f"--text has {len(data)} bytes: this shows up to 200")
    machine = prepared(*load_model(checkpoint.find(options.checkpoint)))
    stream = machine.state()
    patcher = machine.patcher
    rows = []
    for id_ in [BOS, *encode(data)]:
        # What can be no output, PAD, BOS and MASK, is no guess.
        guess = ban(stream.extend([id_])[-1], Sampling()).argmax().item()
        known = stream.known[-1]
        counters = stream.counters
        byte = "BOS" if id_ == BOS else visible(decode([id_]), SPACE)
        after = f"{known.entropy:.2f}" if patcher.needs_entropy else ""
        closes = "closes" if stream.closes(stream.length - 1) else ""
        passes = [counters.entropy, counters.encoder_global, counters.decoder]
        guessed = visible(decode([guess]), SPACE) or "end"
        rows.append([byte, after, closes, known.patches_closed, *passes, guessed])
    config = patcher.config
    threshold = config.threshold if patcher.needs_entropy else None
    print(rule_in_words(config.kind, threshold, config.max_patch) + "\n")
    header = ["byte", "entropy after it", "its patch", "reads latent"]
    print(table([*header, "patcher", "encoder+global", "decoder", "guesses"], rows))


if __name__ == "__main__":
    run(main, "fast")
