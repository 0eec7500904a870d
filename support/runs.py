"""Where a training run comes from, all that it is, and the file it is kept in."""

import sys
import time
from dataclasses import asdict, dataclass, field, fields, replace

import torch
from tqdm import tqdm

from data import VOCAB, Corpus, corpus_of
from diffusion import SIZES, check_block_size
from model import BLT, PRESETS, BLTConfig, model_from
from patcher import KINDS, Patcher, PatcherConfig, patcher_from
from support import checkpoint
from support.flags import refuse_changes, training_parser
from support.machine import bfloat16_gain, check_memory, choose_device, choose_dtype
from support.optim import make_optimizer, restored
from support.presets import RECIPES, Recipe, TrainingSettings
from support.terminal import BadInput

RETRY = 10  # seconds until a save that failed is tried again
# What flags may change of a preset's shape
SHAPE = ("max_patch", "decoder_layers", "global_layers", "ngram_table_size")


@dataclass
class Run:
    """All that one training run is: what was asked for, what it has made, and how far it is."""

    asked: dict  # settings by the names of their flags; they do not change on --resume
    out: str
    device: str
    corpus: Corpus
    patcher: Patcher
    model: BLT
    dtype: torch.dtype
    stage: str = "patcher"  # then "model"
    step: int = 0  # of the stage
    steps: int | None = None  # None: not known yet
    optimizer: dict | None = None  # its state when the run was last saved
    results: dict = field(default_factory=dict)
    save_every: float = 120.0  # seconds: what a kill or a crash may lose
    began: float = field(default_factory=time.perf_counter)
    saved: float = field(default_factory=time.perf_counter)

    @property
    def recipe(self):
        """The BLT-D recipe asked for."""
        return asked_of(Recipe, self.asked)

    @property
    def settings(self):
        """How the model of its stage is trained."""
        if self.stage == "patcher":
            preset = PRESETS[self.asked["preset"]]
            return preset.patcher_training.trained_by(self.asked["optimizer"])
        return asked_of(TrainingSettings, self.asked)

    @property
    def seconds(self):
        """Since this process took the run up."""
        return time.perf_counter() - self.began


def asked_of(kind, asked):
    """A dataclass of settings by what was asked for. Raises BadInput for what can't be."""
    return kind(**{field.name: asked[field.name] for field in fields(kind)})


def new_model(config, seed):
    """A BLT whose weights only its shape and the seed decide."""
    torch.manual_seed(seed)
    return BLT(config).init_weights()


def fresh(asked, out, device):
    """A run that begins with nothing."""
    preset, corpus = PRESETS[asked["preset"]], corpus_of(asked["data"])
    torch.manual_seed(asked["seed"])
    of_patcher = {name: asked[name] for name in ("max_patch", "reset_at_newline")}
    patcher = Patcher(replace(preset.patcher, kind=asked["patcher"], **of_patcher))
    patcher.model.init_weights()
    shape = {name: asked[name] for name in ("block_size", "chain_width", *SHAPE)}
    model = new_model(replace(preset.model, **shape), asked["seed"])
    dtype = choose_dtype(asked["dtype"], device)
    return Run(asked, out, device, corpus, patcher.to(device), model.to(device), dtype)


def initialised(asked, out, device, saved):
    """A run that begins with the weights and the patcher of a loaded checkpoint.

    The patcher stays as it is: other boundaries would make other patches of the same bytes.
    """
    torch.manual_seed(asked["seed"])
    model = model_from(saved, block_size=asked["block_size"], chain_width=asked["chain_width"])
    if asked["chain_only"]:
        check_block_size(model, asked["block_size"])
    corpus, patcher = corpus_of(asked["data"]), patcher_from(saved)
    dtype = choose_dtype(asked["dtype"], device)
    run = Run(asked, out, device, corpus, patcher.to(device), model.to(device), dtype, "model")
    checkpoint.check_form(saved, saved, {"results": {"mean_patch_held_out": 0.0}})
    run.results["mean_patch_held_out"] = saved["results"]["mean_patch_held_out"]
    return run


def resumed(out, device, saved):
    """The interrupted run of a loaded checkpoint, where it was."""
    check_run(saved)
    corpus, asked = corpus_of(saved["asked"]["data"]), saved["asked"]
    if saved["corpus"]["sha256"] != corpus.sha256:
        raise BadInput("the corpus is not the one this run began with: its hash has changed")
    if saved["model"]:
        model = model_from(saved)
    else:  # it was still at its patcher
        model = new_model(checkpoint.config_from(BLTConfig, saved, "config"), asked["seed"])
    patcher, dtype = patcher_from(saved), getattr(torch, saved["dtype"])
    run = Run(asked, out, device, corpus, patcher.to(device), model.to(device), dtype)
    run.stage, run.step, run.steps = (saved["progress"][k] for k in ("stage", "step", "steps"))
    run.optimizer, run.results = saved["optimizer"], saved["results"]
    if run.optimizer:
        module = run.model if run.stage == "model" else run.patcher.model
        restored(make_optimizer(module, run.settings), saved)
    torch.set_rng_state(saved["rng"])  # last: building modules draws from it
    return run


def check_run(saved):
    """Raises BadInput, which names the key, where a checkpoint holds no run that can go on."""
    asked, none = saved["asked"], {"data": None, "steps": None}  # unless they were given
    form = {"asked": defaults("nano", "ours", None), "dtype": ""}
    form["progress"] = {"stage": "", "step": 0}
    checkpoint.check_form(saved, {**saved, "asked": {**asked, **none}}, form)
    flags = []  # as they would be typed: their bounds are those of a run that begins
    for action in PARSER._actions:
        value = asked.get(action.dest)
        if value is not None and not isinstance(value, bool) and action.dest != "data":
            flags += [action.option_strings[0], str(value)]
    try:
        PARSER.parse_args(flags)
        torch.Generator().set_state(saved["rng"])
    except (BadInput, KeyError, RuntimeError, TypeError) as problem:
        raise checkpoint.damaged(saved, f"asked or rng: {problem}") from None
    stage, step, steps = (saved["progress"].get(key) for key in ("stage", "step", "steps"))
    counted = type(steps) is int and step <= steps or (step == 0 and steps is None)
    known = ("patcher", "model") if saved["model"] else ("patcher",)
    if stage not in known or not counted:
        raise checkpoint.damaged(saved, f"progress is {saved['progress']}, which can't be")
    if saved["dtype"] not in ("float32", "bfloat16"):
        raise checkpoint.damaged(saved, f"dtype is {saved['dtype']}, not float32 or bfloat16")
    if step and not isinstance(saved.get("optimizer"), dict):
        raise checkpoint.damaged(saved, "optimizer is missing")


def say(text):
    """A line on stderr, beside a progress bar."""
    tqdm.write(text, file=sys.stderr)


def try_to_save(run, optimizer=None, wait=False):
    """Save, or say why that failed: a disk may have room again later -> whether it is saved.

    wait: try until it is, as nothing else is left to do.
    """
    while True:
        try:
            save(run, optimizer)
            return True
        except BadInput as problem:
            say(f"{problem}; the file written last is kept, and it is tried again")
        if not wait:
            run.saved += min(RETRY, run.save_every) - run.save_every
            return False
        time.sleep(RETRY)


def save(run, optimizer=None):
    """Everything that --resume and generation need, in one file. optimizer: the one at work."""
    corpus, run.saved = run.corpus, time.perf_counter()
    if optimizer:
        run.optimizer = optimizer.state_dict()
    contents = {
        "asked": run.asked,
        "config": asdict(run.model.config),
        "patcher_config": asdict(run.patcher.config),
        "patcher": run.patcher.state_dict(),
        "model": run.model.state_dict() if run.stage == "model" else None,
        "optimizer": run.optimizer,
        "progress": {"stage": run.stage, "step": run.step, "steps": run.steps},
        "rng": torch.get_rng_state(),
        "dtype": str(run.dtype).removeprefix("torch."),
        "results": run.results,
        "corpus": {"origin": corpus.origin, "bytes": corpus.size, "sha256": corpus.sha256},
    }
    checkpoint.save(run.out, contents)


PARSER = training_parser(PRESETS, (0, *SIZES), RECIPES, KINDS)


def defaults(preset, recipe, optimizer):
    """What is asked for where no flag says otherwise. optimizer: None for the preset's own."""
    return {
        "data": None,
        "preset": preset,
        "minutes": 8.0,
        "steps": None,
        "recipe": recipe,
        "patcher": "entropy",
        "patch_size": 4.0,
        "reset_at_newline": False,
        **{name: getattr(PRESETS[preset].model, name) for name in SHAPE},
        "seed": 0,
        "dtype": "auto",
        **asdict(PRESETS[preset].training.trained_by(optimizer)),
        **asdict(Recipe(**RECIPES[recipe])),
    }


def known_of(saved):
    """What a loaded checkpoint says of the flags that shape it. Raises BadInput for no preset's."""
    config = checkpoint.config_from(BLTConfig, saved, "config")
    patcher = checkpoint.config_from(PatcherConfig, saved, "patcher_config")
    known, asked = {name: getattr(config, name) for name in SHAPE}, saved.get("asked") or {}
    if config.chain_width:
        known["chain_width"] = config.chain_width
    known |= {"patcher": patcher.kind, "max_patch": patcher.max_patch}
    known["reset_at_newline"] = patcher.reset_at_newline
    known["patch_size"] = asked.get("patch_size", 4.0)
    checkpoint.check_form(saved, known["patch_size"], 4.0, "asked.patch_size")
    if str(asked.get("preset")) in PRESETS:
        return known | {"preset": asked["preset"]}
    shape = replace(config, block_size=0, chain_width=0)
    for name, preset in PRESETS.items():
        if preset.model == shape:
            return known | {"preset": name}
    raise BadInput("this checkpoint has the shape of no preset: its training settings are unknown")


def check_asked(asked, device):
    """Raises BadInput for a recipe that can't be, and for a step that memory can't hold.

    The least that it needs: of weights, their gradients and two moments; of rows, logits, their
    gradients, and what layers keep.
    """
    asked_of(Recipe, asked)
    preset = PRESETS[asked["preset"]]
    c = replace(preset.model, **{name: asked[name] for name in SHAPE})
    with torch.device("meta"), checkpoint.NoDraws():
        count = sum(p.numel() for p in BLT(c).parameters())
    layers = (c.encoder_layers + c.decoder_layers) * (8 * c.width + 3 * c.hidden)
    rows = asked["batch"] * asked["length"]
    check_memory(4 * (4 * count + rows * (2 * VOCAB + layers)), device, "training this")


def begin(options):
    """The run that the flags ask for."""
    out, device = options.out or options.resume or checkpoint.DEFAULT, choose_device(options.device)
    kept_apart = ("out", "device", "resume", "init_from", "save_every")
    given = {k: v for k, v in vars(options).items() if v is not None and k not in kept_apart}
    if options.resume:
        saved = checkpoint.load(options.resume, whole=True)
        if "optimizer" not in saved.get("asked", {}):
            why = "it was exported, or begun by older code"
            raise BadInput(f"{options.resume} can't be resumed: {why}")
        why = "can't change on --resume: this run began with"
        refuse_changes(PARSER, given, saved["asked"], why)
        checkpoint.check_target(out, saved["data"] or ())
        return resumed(out, device, saved)
    checkpoint.check_target(out, [*given.get("data", ()), options.init_from])
    recipe, optimizer = given.get("recipe", "ours"), given.get("optimizer")
    if not optimizer and bfloat16_gain(device) < 0.5:
        optimizer = "adamw"  # Muon's products are of bfloat16
    known = {"preset": given.get("preset", "tiny")}
    if options.init_from:
        saved = checkpoint.load(options.init_from, whole=True)
        if not saved["model"]:
            raise BadInput(f"{options.init_from} holds only a patcher: finish that run first")
        known = known_of(saved)
        if recipe == "chain":  # all else stays as it is
            known["block_size"] = saved["config"]["block_size"]
        refuse_changes(PARSER, given, known, f"contradicts {options.init_from}, which has")
    elif recipe == "chain":
        raise BadInput("--recipe chain adds to a finished model: name it with --init-from")
    asked = {**defaults(known["preset"], recipe, optimizer), **known, **given}
    check_asked(asked, device)  # before anything is read
    if options.init_from:
        return initialised(asked, out, device, saved)
    if asked["patch_size"] > asked["max_patch"]:
        mean = f"--patch-size {asked['patch_size']:g}"
        raise BadInput(f"{mean} can't be the mean of patches of at most {asked['max_patch']}")
    return fresh(asked, out, device)
