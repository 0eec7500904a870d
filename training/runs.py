"""Where a training run comes from, all that it is, and the file it is kept in."""

import functools
import hashlib
import os
import shlex
import sys
import time
from dataclasses import asdict, dataclass, field, fields, replace

import torch
from tqdm import tqdm

from data import Corpus, corpus_of
from fast.load import model_from, patcher_from
from model import BLT, BLTConfig
from patcher import KINDS, Patcher, PatcherConfig
from support import checkpoint
from support.flags import refuse_changes, training_parser
from support.hardware import choose_dtype
from support.presets import BLOCK_SIZES, RECIPES, Recipe, TrainingSettings
from support.terminal import BadInput, escaped
from training.boundaries import Boundaries
from training.distributed import join, processes, rank, same, whole
from training.optim import OPTIMIZERS, make_optimizer
from training.presets import PRESETS

RESERVE = 0.10  # of the minutes, for the final validation and a sample
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
    openings: list = field(default_factory=list)  # of held-out documents: data.openings_of
    save_every: float = 120.0  # seconds
    shard: bool = False  # the model, among processes
    recompute: bool = False  # activations, in the backward pass
    plain: bool = False  # fast/ does not follow the model: validation takes the plain machine
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

    def seconds_left(self, share=1.0):
        """For a stage that may use so much of the minutes, or of what is left of them."""
        total = self.asked["minutes"] * 60
        return max(0.0, min(share * total, total * (1 - RESERVE) - self.seconds))

    @property
    def is_due(self):
        """Is it time to save it?"""
        return time.perf_counter() - self.saved > self.save_every


def asked_of(kind, asked):
    """A dataclass of settings by what was asked for. Raises BadInput for what can't be."""
    return kind(**{field.name: asked[field.name] for field in fields(kind)})


def corpus_behind(asked):
    """The corpus that was asked for."""
    return corpus_of(asked["data"], asked["separator"], asked["held_out"])


def new_model(config, seed):
    """A BLT whose weights only its shape and the seed decide."""
    torch.manual_seed(seed)
    return BLT(config).init_weights()


def fresh(asked, out, device):
    """A run that begins with nothing."""
    preset = PRESETS[asked["preset"]]
    corpus = corpus_behind(asked)
    torch.manual_seed(asked["seed"])
    of_patcher = replace(preset.patcher, kind=asked["patcher"], max_patch=asked["max_patch"])
    patcher = Patcher(of_patcher)
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
        checkpoint.check_block_size(model, asked["block_size"])
    corpus = corpus_behind(asked)
    patcher = patcher_from(saved)
    dtype = same(choose_dtype(asked["dtype"], device))
    return Run(asked, out, device, corpus, patcher.to(device), model.to(device), dtype, "model")


def resumed(out, device, saved):
    """The interrupted run of a loaded checkpoint, where it was."""
    asked = saved["asked"]
    of_text = ("data", "separator", "held_out")
    try:  # their bounds are those of a run that begins
        for action in PARSER._actions:
            if action.dest not in of_text and type(asked.get(action.dest)) in (int, float, str):
                PARSER.parse_args([action.option_strings[0], str(asked[action.dest])])
        asked_of(TrainingSettings, asked)
    except BadInput as problem:
        raise checkpoint.damaged(saved, problem) from None
    corpus = corpus_behind(asked)
    if not corpus.is_that_of(saved["corpus"]):
        problem = "the corpus is not the one this run began with: its hash has changed"
        raise BadInput(f"{problem}; bring that text back, or {another_run(saved, {})}")
    if saved["model"]:
        model = model_from(saved)
    else:  # it was still at its patcher
        model = new_model(checkpoint.config_from(BLTConfig, saved, "config"), asked["seed"])
    patcher = patcher_from(saved)
    dtype = same(choose_dtype(saved["dtype"], device))
    run = Run(asked, out, device, corpus, patcher.to(device), model.to(device), dtype)
    progress = saved["progress"]
    run.stage = progress["stage"]
    run.step = progress["step"]
    run.steps = progress["steps"]
    run.began -= progress.get("seconds", 0)
    run.optimizer = saved["optimizer"]
    run.results = saved["results"]
    if run.stage not in ("patcher", "model") or not 0 <= run.step <= (run.steps or 0):
        raise ValueError(f"progress is {progress}, which can't be")
    if run.optimizer:
        check_optimizer(run)
    torch.set_rng_state(saved["rng"])  # last: building modules draws from it
    return run


def check_optimizer(run):
    """Raises ValueError where the saved state of the optimiser can't be its model's.

    It would fail later.
    """
    module = run.model if run.stage == "model" else run.patcher.model
    optimizer = make_optimizer(module, run.settings)
    optimizer.load_state_dict(run.optimizer)
    for part in getattr(optimizer, "parts", {"": optimizer}).values():
        for p, state in part.state.items():
            if not all(x.isfinite().all() and x.shape in ((), p.shape) for x in state.values()):
                raise ValueError("the optimizer's state is not that of its model")


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
    if run.corpus.held_out:  # then other parts of it are trained on
        digest.update(b"all of it")
    for name, weight in sorted(run.patcher.state_dict().items()):
        digest.update(name.encode() + weight.cpu().numpy().tobytes())
    return Boundaries(f"{run.out}.patches", text, digest.hexdigest().encode())


def save(run, optimizer=None, wait=False):
    """Everything that --resume and generation need, in one file. optimizer: the one at work.

    Where it can't be written, training goes on until the next save; wait: until it can be. All
    processes call it, as each may hold a shard; the first writes.
    """
    run.saved = time.perf_counter()
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
        "corpus": run.corpus.identity(),
        "openings": run.openings,
    }
    while True:
        try:
            return checkpoint.save(run.out, contents)
        except BadInput as problem:
            problem = escaped(str(problem))
            tqdm.write(f"{problem}; the old file is kept, and it is tried again", file=sys.stderr)
        if not wait:
            return
        time.sleep(RETRY)


def say_saved(run):
    """Tell whoever interrupted the run how to go on with it."""
    script = run.asked.get("script", "train.py")  # scripts/bytelm.py has runs of its own
    go_on = f"go on with: python {script} --resume {shlex.quote(run.out)}"
    line = escaped(f"saved {run.out} at step {run.step}; {go_on}")
    tqdm.write(line, file=sys.stderr)


# ---- what is asked for

PARSER = training_parser(PRESETS, (0, *BLOCK_SIZES), RECIPES, KINDS, OPTIMIZERS)


def defaults(preset, recipe, optimizer):
    """What is asked for where no flag says otherwise. optimizer: None for the preset's own."""
    return {
        "data": None,
        "separator": None,
        "held_out": None,
        "preset": preset,
        "minutes": 8.5,
        "steps": None,
        "recipe": recipe,
        "patcher": "entropy",
        "patch_size": 4.0,
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
    asked = saved.get("asked", {})
    known = {name: config[name] for name in SHAPE}
    if config["chain_width"]:
        known["chain_width"] = config["chain_width"]
    known["patcher"] = patcher["kind"]
    known["max_patch"] = patcher["max_patch"]
    known["patch_size"] = asked.get("patch_size", 4.0)
    if "preset" in asked:
        return known | {"preset": asked["preset"]}
    shape = BLTConfig(**{**config, "block_size": 0, "chain_width": 0})
    for name, preset in PRESETS.items():
        if preset.model == shape:
            return known | {"preset": name}
    problem = "this checkpoint has the shape of no preset, and does not say how it was trained"
    raise BadInput(f"{problem}: give the file that train.py wrote")


def another_run(saved, changes):
    """Advice: the command of a run from a checkpoint's weights that is asked for what its own was.

    changes: what it is asked for instead, by the names of the settings.
    """
    path = saved["path"]
    if not saved["model"]:
        return "begin anew: it holds no model yet"
    asked = {**saved["asked"], **changes}
    asked["batch"] //= processes()
    # What a run from this checkpoint does without a flag
    usual = defaults(asked["preset"], asked["recipe"], asked["optimizer"])
    usual |= {**known_of(saved), "recipe": "ours"}
    usual["optimizer"] = PRESETS[asked["preset"]].training.optimizer
    words = ["python", "train.py", "--init-from", path]
    for action in PARSER._actions:
        value = asked.get(action.dest)
        if value is not None and value != usual.get(action.dest):
            words.append(action.option_strings[0])
            words += map(str, value if isinstance(value, list) else [value])
    words += ["--out", f"{os.path.splitext(path)[0]}-further.pt"]
    return f"train its weights further: {shlex.join(words)}"


def check_shares(asked, shard, resumes=False):
    """Raises BadInput for what these processes can't share. resumes: flags can't change it."""
    batch = asked["batch"]
    if batch % processes():
        fitting = [str(n) for n in range(1, batch + 1) if batch % n == 0]
        problem = f"{batch} crops a step can't be shared by {processes()} processes"
        raise BadInput(f"{problem}: start {', '.join(fitting[:-1])} or {fitting[-1]}")
    if shard and asked["optimizer"] == "muon":
        if resumes:
            raise BadInput("this run has Muon, which takes whole matrices: leave --shard out")
        raise BadInput("--shard needs --optimizer adamw: Muon takes whole matrices")


def begin(options):
    """The run that the flags ask for."""
    out = options.out or options.resume or checkpoint.DEFAULT
    device = join(options.device, options.shard)
    # Refused now rather than after minutes
    texts = [*(options.data or ()), *(options.held_out or ())]
    checkpoint.check_target(out, [*texts, options.init_from])
    kept_apart = ("out", "device", "resume", "init_from", "save_every", "shard", "recompute")
    given = {k: v for k, v in vars(options).items() if v is not None and k not in kept_apart}
    if "batch" in given:  # of one process
        given["batch"] *= processes()
    if options.resume:
        run = resume(options, given, out, device)
    else:
        run = begin_anew(options, given, out, device)
    # Of these processes, no part of the run
    run.save_every = options.save_every
    run.shard = options.shard
    run.recompute = options.recompute
    return run


def resume(options, given, out, device):
    """The run of --resume. given: other flags, which may say again what it began with."""
    saved = checkpoint.load(options.resume)
    if "asked" not in saved or "optimizer" not in saved["asked"]:
        why = "it was exported, or begun by older code"
        advice = f"train it further with --init-from {shlex.quote(options.resume)}"
        raise BadInput(f"{options.resume} can't be resumed: {why}; {advice}")
    if "script" in saved["asked"]:
        script = saved["asked"]["script"]
        raise BadInput(f"{options.resume} is no run of train.py: go on with `python {script}`")
    # Files were never split before there was a separator.
    saved["asked"].setdefault("separator", "")
    saved["asked"].setdefault("held_out", None)
    why = "can't change on --resume: this run began with"
    refuse_changes(PARSER, given, saved["asked"], why, functools.partial(advice_for, saved))
    check_shares(saved["asked"], options.shard, resumes=True)
    try:
        return resumed(out, device, saved)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as problem:
        raise checkpoint.damaged(saved, f"{type(problem).__name__} {problem}") from None


def advice_for(saved, name, value):
    """What to do where a setting that a run began with is to be another on --resume -> words."""
    if name in ("steps", "minutes") and saved["model"]:
        # The learning rate has fallen along with the steps that there were.
        changes = {name: value}
        if name == "minutes":  # which steps would override
            changes["steps"] = None
        return another_run(saved, changes)
    return "leave it out"


def begin_anew(options, given, out, device):
    """The run of all other flags. given: those that shape it."""
    recipe = given.get("recipe", "ours")
    optimizer = given.get("optimizer")
    if not optimizer and options.shard:
        optimizer = "adamw"  # Muon takes whole matrices
    known = {"preset": given.get("preset", "tiny")}
    if options.init_from:
        saved = checkpoint.load(options.init_from)
        if not saved["model"]:
            advice = f"finish that run with --resume {shlex.quote(options.init_from)}"
            raise BadInput(f"{options.init_from} holds only a patcher: {advice}")
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
        problem = f"can't be the mean of patches of at most {asked['max_patch']}"
        raise BadInput(f"{mean} {problem}: give a smaller one, or a larger --max-patch")
    return fresh(asked, out, device)
