"""Where a training run comes from, all that it is, and the file it is kept in."""

import hashlib
import sys
import time
from dataclasses import asdict, dataclass, field, fields, replace

import torch
from tqdm import tqdm

from data import Corpus, corpus_of
from diffusion import SIZES, check_block_size
from model import BLT, PRESETS, BLTConfig, model_from
from patcher import KINDS, Patcher, PatcherConfig, patcher_from
from support import checkpoint
from support.boundaries import Boundaries
from support.distributed import join, processes, rank, same, whole
from support.flags import refuse_changes, training_parser
from support.machine import choose_device, choose_dtype
from support.optim import make_optimizer
from support.presets import RECIPES, Recipe, TrainingSettings
from support.terminal import BadInput

RETRY = 10  # seconds until a save that failed is tried again, where nothing else is to do
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
    save_every: float = 120.0  # seconds
    shard: bool = False  # the model, among processes
    recompute: bool = False  # activations, in the backward pass
    began: float = field(default_factory=time.perf_counter)
    saved: float = field(default_factory=time.perf_counter)

    @property
    def recipe(self):
        """The BLT-D recipe asked for."""
        return asked_of(Recipe, self.asked)

    @property
    def settings(self):
        """How the model is trained."""
        return asked_of(TrainingSettings, self.asked)

    @property
    def seconds(self):
        """That the run has taken, in all its processes."""
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
    dtype = same(choose_dtype(asked["dtype"], device))
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
    dtype = same(choose_dtype(asked["dtype"], device))
    run = Run(asked, out, device, corpus, patcher.to(device), model.to(device), dtype, "model")
    run.results["mean_patch_held_out"] = saved["results"]["mean_patch_held_out"]
    return run


def resumed(out, device, saved):
    """The interrupted run of a loaded checkpoint, where it was."""
    asked = saved["asked"]
    try:  # their bounds are those of a run that begins
        for action in PARSER._actions:
            if action.dest != "data" and type(asked.get(action.dest)) in (int, float, str):
                PARSER.parse_args([action.option_strings[0], str(asked[action.dest])])
        asked_of(TrainingSettings, asked)
    except BadInput as problem:
        raise checkpoint.damaged(saved, problem) from None
    corpus = corpus_of(asked["data"])
    if saved["corpus"]["sha256"] != corpus.sha256:
        raise BadInput("the corpus is not the one this run began with: its hash has changed")
    if saved["model"]:
        model = model_from(saved)
    else:  # it was still at its patcher
        model = new_model(checkpoint.config_from(BLTConfig, saved, "config"), asked["seed"])
    patcher, dtype = patcher_from(saved), same(choose_dtype(saved["dtype"], device))
    run = Run(asked, out, device, corpus, patcher.to(device), model.to(device), dtype)
    run.stage, run.step, run.steps = (saved["progress"][k] for k in ("stage", "step", "steps"))
    run.optimizer, run.results = saved["optimizer"], saved["results"]
    run.began -= saved["progress"].get("seconds", 0)
    if run.stage not in ("patcher", "model") or not 0 <= run.step <= (run.steps or 0):
        raise ValueError(f"progress is {saved['progress']}, which can't be")
    if run.optimizer:  # broken, it would fail later
        module = run.model if run.stage == "model" else run.patcher.model
        optimizer = make_optimizer(module, run.settings)
        optimizer.load_state_dict(run.optimizer)
        for part in getattr(optimizer, "parts", {"": optimizer}).values():
            for p, state in part.state.items():
                if not all(x.isfinite().all() and x.shape in ((), p.shape) for x in state.values()):
                    raise ValueError("the optimizer's state is not that of its model")
    torch.set_rng_state(saved["rng"])  # last: building modules draws from it
    return run


def whole_model(run):
    """The run's model with its shards put together, in the first process; None in others."""
    if not run.shard:
        return run.model
    weights = whole(run.model.state_dict())
    if rank():
        return None
    with torch.device("meta"):
        model = BLT(run.model.config)
    model.load_state_dict(weights, assign=True)
    return model.to(run.device)


def boundaries_of(run, text):
    """The Boundaries of a Packed text by the run's patcher, beside its checkpoint."""
    digest = hashlib.sha256(f"{run.corpus.sha256} {run.patcher.config}".encode())
    for name, weight in sorted(run.patcher.state_dict().items()):
        digest.update(name.encode() + weight.cpu().numpy().tobytes())
    return Boundaries(f"{run.out}.patches", text, digest.hexdigest().encode())


def save(run, optimizer=None, wait=False):
    """Everything that --resume and generation need, in one file. optimizer: the one at work.

    Where it can't be written, training goes on until the next save; wait: until it can be. All
    processes call it, as each may hold a shard; the first writes.
    """
    corpus, run.saved = run.corpus, time.perf_counter()
    if optimizer:
        run.optimizer = whole(optimizer.state_dict())
    weights = whole(run.model.state_dict()) if run.stage == "model" else None
    if rank():
        return
    contents = {
        "asked": run.asked,
        "config": asdict(run.model.config),
        "patcher_config": asdict(run.patcher.config),
        "patcher": run.patcher.state_dict(),
        "model": weights,
        "optimizer": run.optimizer,
        "progress": {name: getattr(run, name) for name in ("stage", "step", "steps", "seconds")},
        "rng": torch.get_rng_state(),
        "dtype": str(run.dtype).removeprefix("torch."),
        "results": run.results,
        "corpus": {"origin": corpus.origin, "bytes": corpus.size, "sha256": corpus.sha256},
    }
    while True:
        try:
            return checkpoint.save(run.out, contents)
        except BadInput as problem:
            tqdm.write(f"{problem}; the old file is kept, and it is tried again", file=sys.stderr)
        if not wait:
            return
        time.sleep(RETRY)


PARSER = training_parser(PRESETS, (0, *SIZES), RECIPES, KINDS)


def defaults(preset, recipe, optimizer):
    """What is asked for where no flag says otherwise. optimizer: None for the preset's own."""
    return {
        "data": None,
        "preset": preset,
        "minutes": 8.5,
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
    config = asdict(checkpoint.config_from(BLTConfig, saved, "config"))
    patcher = asdict(checkpoint.config_from(PatcherConfig, saved, "patcher_config"))
    asked, known = saved.get("asked", {}), {name: config[name] for name in SHAPE}
    if config["chain_width"]:
        known["chain_width"] = config["chain_width"]
    known |= {"patcher": patcher["kind"], "max_patch": patcher["max_patch"]}
    known["reset_at_newline"] = patcher["reset_at_newline"]
    known["patch_size"] = asked.get("patch_size", 4.0)
    if "preset" in asked:
        return known | {"preset": asked["preset"]}
    shape = BLTConfig(**{**config, "block_size": 0, "chain_width": 0})
    for name, preset in PRESETS.items():
        if preset.model == shape:
            return known | {"preset": name}
    raise BadInput("this checkpoint has the shape of no preset: its training settings are unknown")


def check_shares(asked, shard):
    """Raises BadInput for what these processes can't share."""
    if asked["batch"] % processes():
        raise BadInput(f"{asked['batch']} crops a step can't be shared by {processes()} processes")
    if shard and asked["optimizer"] == "muon":
        raise BadInput("--shard needs --optimizer adamw: Muon takes whole matrices")


def begin(options):
    """The run that the flags ask for."""
    out = options.out or options.resume or checkpoint.DEFAULT
    device = join(choose_device(options.device), options.shard)
    # Refused now rather than after minutes
    checkpoint.check_target(out, [*(options.data or ()), options.init_from])
    kept_apart = ("out", "device", "resume", "init_from", "save_every", "shard", "recompute")
    given = {k: v for k, v in vars(options).items() if v is not None and k not in kept_apart}
    if "batch" in given:  # of one process
        given["batch"] *= processes()
    if options.resume:
        saved = checkpoint.load(options.resume)
        if "asked" not in saved or "optimizer" not in saved["asked"]:
            why = "it was exported, or begun by older code"
            raise BadInput(f"{options.resume} can't be resumed: {why}")
        why = "can't change on --resume: this run began with"
        refuse_changes(PARSER, given, saved["asked"], why)
        check_shares(saved["asked"], options.shard)
        try:
            return resumed(out, device, saved)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as problem:
            raise checkpoint.damaged(saved, f"{type(problem).__name__} {problem}") from None
    recipe, optimizer = given.get("recipe", "ours"), given.get("optimizer")
    if not optimizer and options.shard:
        optimizer = "adamw"  # Muon takes whole matrices
    known = {"preset": given.get("preset", "tiny")}
    if options.init_from:
        saved = checkpoint.load(options.init_from)
        if not saved["model"]:
            raise BadInput(f"{options.init_from} holds only a patcher: finish that run first")
        known = known_of(saved)
        if recipe == "chain":  # all else stays as it is
            known["block_size"] = saved["config"]["block_size"]
        refuse_changes(PARSER, given, known, f"contradicts {options.init_from}, which has")
    elif recipe == "chain":
        raise BadInput("--recipe chain adds to a finished model: name it with --init-from")
    asked = {**defaults(known["preset"], recipe, optimizer), **known, **given}
    if "batch" not in given:
        asked["batch"] *= processes()
    check_shares(asked, options.shard)
    asked_of(Recipe, asked)  # a bad one is refused before anything is read
    if options.init_from:
        return initialised(asked, out, device, saved)
    if asked["patch_size"] > asked["max_patch"]:
        mean = f"--patch-size {asked['patch_size']:g}"
        raise BadInput(f"{mean} can't be the mean of patches of at most {asked['max_patch']}")
    return fresh(asked, out, device)
