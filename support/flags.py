"""Flags that several commands share, and those of train.py: what they are called and mean.

Choices come from the files that know them, so this one imports nothing of the method.
"""

from support import checkpoint
from support.openings import beginning_of_file
from support.pictures import to_write
from support.terminal import BadInput, Parser, number

# What a file shows its idea on if no text is given, and what it goes on with if it writes; where
# the checkpoint keeps openings of its own kind of text, the words that the first begins with
TEXT = "def main():"
PROMPT = "def "

COUNT = number(int, 1, 1 << 31)
LAYERS = number(int, 1, 1000)
SHARE = number(float, 0, 1)
WEIGHT = number(float, 0, 1e6)
POSITIVE = number(float, 0, 1e6, above=True)


def temperature_of(text):
    """An argparse type: 0, or what float32 logits can be divided by."""
    return number(float, 0 if float(text) == 0 else 1e-4, 1e4)(text)


def add_texts(parser):
    """How a corpus of files is taken apart, and what is held out of it."""
    help_ = "what stands between documents in a file (default: nothing, but in a file that holds "
    help_ += "<|endoftext|> more than a hundred times that)"
    parser.add_argument("--separator", metavar="TEXT", help=help_)
    help_ = "files, folders to validate on, which the corpus brings along; all else is trained on"
    parser.add_argument("--held-out", nargs="+", metavar="PATH", help=help_)


class Only:
    """A parser that takes, of flags added in bulk, those named: a command has none it ignores."""

    def __init__(self, parser, names):
        """names: of flags, without the dashes in front."""
        self.parser = parser
        self.names = set(names)

    def add_argument(self, flag, **options):
        """As argparse's; a flag that is not among those named is left out."""
        if flag.removeprefix("--") in self.names:
            self.parser.add_argument(flag, **options)


def idea_options(prog, description, bytes=None, plot=False):
    """What parses the flags of a file that shows its idea on a line of text -> a function.

    bytes: how many to write, if it writes; plot: can it draw?
    """

    def options_from(argv):
        parser = Parser(prog=prog, description=description)
        add = parser.add_argument
        help_ = "the text (default: the beginning of text that the model knows)"
        if bytes:
            add("--prompt", dest="text", help=help_)
        else:
            add("--text", help=help_)
        add("--checkpoint", help="whose model to use (default: the newest there is)")
        if bytes:
            add("--bytes", type=number(int, 1, 200), default=bytes, help="to write")
        if plot:
            add("--plot", metavar="FILE", type=to_write(".png", ".svg"), help="draw it too")
        options = parser.parse_args(argv)
        if options.text is None:
            options.text = text_for(options.checkpoint, PROMPT if bytes else TEXT)
        return options

    return options_from


def text_for(path, otherwise):
    """What a file shows its idea on where no text is given: the checkpoint's own kind of text."""
    return beginning_of_file(checkpoint.find(path), otherwise)


def add_checkpoint(parser):
    """Which model, and where it runs."""
    add = parser.add_argument
    default = f"{checkpoint.DEFAULT}, else the project's own"
    add("--checkpoint", help=f"file that train.py wrote (default: {default})")
    add("--device", default="cpu", help="cpu, cuda or mps")
    add("--threshold", type=number(float, -100, 100), help="nats, instead of the patcher's own")
    help_ = "use the files of the root alone, which keep nothing: the same bytes, many times slower"
    add("--plain", action="store_true", help=help_)


def add_sampling(parser, bytes=256):
    """--bytes, and the flags of generate.Sampling."""
    add = parser.add_argument
    add("--bytes", type=number(int, 1, 1 << 24), default=bytes, help="most bytes to generate")
    add("--temperature", type=temperature_of, default=0.0, help="0 is greedy")
    help_ = "draw from the fewest bytes that hold this much probability"
    add("--top-p", type=number(float, 1e-6, 1), default=1.0, help=help_)
    add("--seed", type=number(int, 0, 2**63 - 1), default=0, help="of the draws")
    add("--ignore-eos", action="store_true", help="never end before the byte budget")


def add_mode(parser, modes, rules):
    """--mode, the flags of speculate.Drafting, and --rounds. rules: names of the unmasking rules.

    A field of Drafting that is not given is None: which default it has, the mode says. What a mode
    does not read is refused by measure.modes.check_drafting.
    """
    add = parser.add_argument
    add("--mode", default="blt", choices=modes, help="how to generate")
    help_ = "k of blts and lookup, bytes of a draft (default: 8)"
    add("--draft-size", type=number(int, 1, 64), help=help_)
    add("--block-size", type=int, help="K, bytes of a block of bltd, bltdv (default: as trained)")
    help_ = "how a block is filled (default: confidence for bltd, chained or one-step for bltdv)"
    add("--unmask", choices=rules, help=help_)
    help_ = "threshold of confidence (bltd 0.7, bltdv 0.3), of chained and of blts' drafts (0)"
    add("--alpha", type=SHARE, help=help_)
    help_ = "nats that a step of the rule entropy may unmask (default: 1.0 for bltd, 1.5 for bltdv)"
    add("--gamma", type=WEIGHT, help=help_)
    help_ = "paper: encode everything decided before each draft or block, the open patch too. This "
    help_ += "runs on the plain machine: passes are counted exactly, seconds mean nothing"
    add("--rounds", choices=("ours", "paper"), default="ours", help=help_)
    help_ = "bytes that bltdv drafts by lookup instead where the text repeats (default: 16 beside "
    help_ += "chained drafts, else 0: none)"
    add("--copy", type=number(int, 0, 64), help=help_)


def training_parser(presets, block_sizes, recipes, patchers, optimizers):
    """The parser of train.py. A flag that is not given is None: checkpoints bring settings too."""
    parser = Parser(prog="train.py", description="Train a Byte Latent Transformer on any text.")
    add = parser.add_argument
    add("--data", nargs="+", metavar="PATH", help="files, folders (default: Python's library)")
    add_texts(parser)
    add("--preset", choices=presets, help="size of the model (default: tiny)")
    add("--minutes", type=POSITIVE, help="for everything; fixes the number of steps (default: 8.5)")
    add("--steps", type=COUNT, help="of the model instead; the patcher is trained for half as many")
    help_ = "K, bytes that the decoder learns to fill at once; 0: plain BLT (default: 8)"
    add("--block-size", type=int, choices=block_sizes, help=help_)
    add("--recipe", choices=recipes, help="how blocks are trained (default: ours, measured best)")
    add("--block-starts", dest="starts", choices=("any", "patch"), help="where blocks start")
    help_ = "cells of blocks beside each byte of text; 0: a block at every patch start"
    add("--cells-per-byte", type=number(float, 0, 64), help=help_)
    add("--noise", choices=("block", "sequence"), help="what has a noise level t of its own")
    add("--full-share", type=SHARE, help="share of blocks that are masked whole")
    add("--mask-weight", type=WEIGHT, help="λ, weight of hidden cells in the loss")
    help_ = "μ, weight of draft rows in the loss, which teach self-drafts; 0: none (default)"
    add("--draft-weight", type=WEIGHT, help=help_)
    add("--draft-rows-per-byte", type=number(float, 0, 8), help="of blocks of draft rows alone")
    add("--block-after", dest="after", type=SHARE, help="share of the steps before blocks join")
    add("--chain-width", type=number(int, 0, 1 << 16), help="state of the chained head; 0: none")
    add("--patcher", choices=patchers, help="what decides where patches end (default: entropy)")
    add("--patch-size", type=number(float, 1, 64), help="mean bytes of a patch (default: 4)")
    add("--max-patch", type=number(int, 1, 64), help="most bytes of a patch (default: 8)")
    add("--decoder-layers", type=LAYERS, help="instead of the preset's")
    add("--global-layers", type=LAYERS, help="instead of the preset's")
    add("--ngram-table-size", type=COUNT, help="entries of a table, not the preset's")
    add("--optimizer", choices=optimizers, help="muon: for hidden matrices; adamw: as the paper")
    alone = "; the patcher keeps its preset's"
    add("--lr", type=number(float, 0, 10, above=True), help="learning rate, its peak" + alone)
    help_ = "crops in a forward pass of a process" + alone
    add("--batch", type=number(int, 1, 1 << 16), help=help_)
    add("--accumulate", type=COUNT, help="forward passes in a step" + alone)
    add("--length", type=number(int, 8, 1 << 20), help="bytes in a crop" + alone)
    add("--seed", type=number(int, 0, 2**31), help="of weights and of the order of the text")
    add(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        help="auto: bfloat16 if the hardware has it",
    )
    add("--device", default="auto", help="cpu, cuda or mps (default: the best there is)")
    add("--out", help=f"to write (default: the one resumed, or {checkpoint.DEFAULT})")
    help_ = "divide weights and optimiser among the processes of torchrun, a layer at a time"
    add("--shard", action="store_true", help=help_)
    add("--recompute", action="store_true", help="activations, when going backward: saves memory")
    help_ = "seconds between saves: what a kill or a crash may lose"
    add("--save-every", type=WEIGHT, default=120.0, metavar="SECONDS", help=help_)
    add = parser.add_mutually_exclusive_group().add_argument
    add("--init-from", metavar="FILE", help="begin with its weights, patcher and settings")
    add("--resume", metavar="FILE", help="go on with this interrupted run, all its settings")
    return parser


def typed(value):
    """The value of a flag as it was typed."""
    if value is None:
        return "none"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def refuse_changes(parser, given, known, why, advice=lambda name, value: "leave it out"):
    """Raises BadInput where a flag that was given says something else than a checkpoint does.

    why: words between the two; advice(name, value): what to do instead, in words.
    """
    flags = {action.dest: action.option_strings[0] for action in parser._actions if action.dest}
    for name, value in given.items():
        if name in known and value != known[name]:
            problem = f"{flags[name]} {typed(value)} {why} {typed(known[name])}"
            raise BadInput(f"{problem}; {advice(name, value)}")
