"""A text's way through the cached model, byte by byte:  python walk.py --text "def main():"

After each byte: the entropy that decides whether it closes its patch, which latent its decoder row reads, and the passes run so far.
"""
import os
import sys

import torch

import checkpoint
from data import BOS, encode
from model import load_model
from stream import Stream
from terminal import BadInput, Parser, run, table, visible


def main(argv=None):
    parser = Parser(prog="walk.py", description="Show a text's way through patcher, encoder, global model and decoder.")
    parser.add_argument("--text", default="def main():", help="the text")
    parser.add_argument("--checkpoint", help="whose model to use (default: the newest there is)")
    options = parser.parse_args(argv)
    data = os.fsencode(options.text)
    if len(data) > 200:
        raise BadInput(f"--text has {len(data)} bytes: this shows up to 200")
    model, patcher = load_model(checkpoint.find(options.checkpoint))
    stream, rows = Stream(model, patcher), []
    for id_ in [BOS, *encode(data)]:
        guess = stream.extend([id_])[-1].argmax().item()
        known, c = stream.known[-1], stream.counters
        closes = known.open_start == stream.length
        rows.append([
            "BOS" if id_ == BOS else visible(bytes([id_ - 4])), f"{known.entropy:.2f}", "closes" if closes else "",
            known.patches, c.entropy, c.encoder_global, c.decoder,
            visible(bytes([guess - 4])) if guess >= 4 else "end"
        ])
    print(f"θ = {patcher.config.theta:.2f} nats, at most {patcher.config.max_patch} bytes a patch\n")
    print(
        table(["byte", "entropy after", "its patch", "reads latent", "patcher", "encoder+global", "decoder", "guesses"],
              rows))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.stdout.reconfigure(errors="replace")
    run(main)
