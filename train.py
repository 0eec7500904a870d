"""Text -> entropy model -> threshold -> BLT, in one go and one checkpoint file.

    python train.py                      # the default corpus, under ten minutes on two CPU cores
    python train.py --data my_notes/     # anyone's bytes
    python train.py --block-size 0       # plain BLT instead of BLT-D
    python train.py --recipe paper       # BLT-D as the paper trains it

Both models are trained by the same `fit`. Ctrl-C saves; `--resume FILE` ends bit for bit where the
uninterrupted run does. Read it from `main` at the end: where the run comes from, the entropy
model, the patches, the model, what it can do.
"""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from data import Crops, document_ids
from diffusion import chain_loss, diffusion_loss, make_blocks
from generate import bits_per_byte, next_byte_loss
from layers import Layer
from model import PRESETS
from patcher import calibrate
from support import distributed
from support.boundaries import Packed
from support.machine import keep_memory
from support.optim import learning_rate, make_optimizer
from support.presets import TrainingSettings
from support.quality import masked_accuracy, written
from support.runs import PARSER, begin, boundaries_of, save, whole_model
from support.terminal import BadInput, Interrupt, progress, visible
from support.terminal import run as run_script

PATCHER_SHARE = 0.07  # of the minutes, for the entropy model; finding patches takes as long again
RESERVE = 0.10  # of the minutes, for the final validation and a sample
TIMED_SHARE = 0.02  # of a stage's seconds, to find out how many steps fit into the rest

# ---- one step


@dataclass
class Task:
    """One of the two models and what it is trained on."""

    name: str
    model: torch.nn.Module
    # A distributed.Loss: (ids, closes, generators, share of the run that is done) -> (loss, nats a
    # byte); nats of clean bytes are what the bar shows.
    loss: Callable
    crops: Crops
    settings: TrainingSettings
    # Of the arithmetic; weights, gradients and the optimiser stay float32.
    dtype: torch.dtype


def patcher_loss(model, ids, closes, generators, done):
    """The entropy model's loss: next bytes alone, ids (B, N + 1). It has no use for the rest."""
    loss = next_byte_loss(model(ids[:, :-1]), ids)
    return loss, loss


def model_loss(recipe):
    """BLT's loss, as patcher_loss: next bytes, and once blocks join, hidden cells too.

    Blocks join late because next bytes are learned faster alone, and a model that can read learns
    to fill gaps faster (Fast BLT §3.2 has them from the start: recipe "paper"). A chained head
    alone has its own loss, as all else stays as it is.
    """

    def loss_of(model, ids, closes, generators, done):
        if not recipe.block_size or done < recipe.after:
            loss = next_byte_loss(model(ids[:, :-1], closes), ids)
            return loss, loss
        blocks = make_blocks(ids, closes, recipe, generators)
        of_blocks = chain_loss if recipe.chain_only else diffusion_loss
        return of_blocks(model, ids, closes, blocks, recipe)

    return loss_of


def train_step(task, optimizer, step, done):
    """One step of the optimiser over settings.accumulate batches -> bits a byte of this process.

    done: share of the run behind it. Raises BadInput when a loss or gradient is not finite, before
    it can reach the weights.
    """
    s, model = task.settings, task.model
    device = next(model.parameters()).device
    # The position in the data follows from the step, so nothing else needs to be kept of it. Each
    # process takes its share of every batch.
    nats, share = 0.0, s.batch // distributed.processes()
    first = step * s.batch * s.accumulate + distributed.rank() * share
    for part in range(s.accumulate):
        index = first + part * s.batch
        ids, closes = (x.to(device) for x in task.crops.batch(index, share))
        generators = task.crops.generators(index, share)
        with distributed.gradients_meet(task.loss, last=part == s.accumulate - 1):
            with torch.autocast(device.type, task.dtype, enabled=task.dtype != torch.float32):
                loss, clean = task.loss(ids, closes, generators, done)
            (loss / s.accumulate).backward()
        nats += clean.item() / s.accumulate
    norm = distributed.clip_gradients(model, s.clip)
    if not math.isfinite(norm):  # where a loss is not, its gradient is not
        where, advice = f"step {step} of the {task.name}", "try a lower --lr"
        kept = "the checkpoint written last is kept"
        raise BadInput(f"the loss or its gradient is not finite at {where}: {advice}; {kept}")
    optimizer.step()
    optimizer.zero_grad()
    return nats / math.log(2)


# ---- many steps


def count_steps(task, seconds, after=1.0):
    """How many steps fit into `seconds`, timed with an optimiser that changes nothing.

    after: share of the steps before blocks join, which then take longer.
    """
    began = time.perf_counter()
    trial = replace(task, settings=replace(task.settings, lr=0.0))
    optimizer = make_optimizer(trial.model, trial.settings)
    step_seconds = 0.0
    # Steps before blocks join and after, in proportion
    for share, done in ((after, 0.0), (1 - after, 1.0)):
        times, until = [], time.perf_counter() + TIMED_SHARE * seconds * share
        while share and distributed.anywhere(len(times) < 5 or time.perf_counter() < until):
            start = time.perf_counter()
            train_step(trial, optimizer, len(times), done)
            times.append(time.perf_counter() - start)
        if share:
            step_seconds += share * sum(times[2:]) / len(times[2:])  # the first steps warm up
    return distributed.same(max(1, int((seconds - (time.perf_counter() - began)) / step_seconds)))


def seconds_left(run, share=1.0):
    """Seconds for a stage that may use so much of the minutes, or of what is left of them."""
    total = run.asked["minutes"] * 60
    return max(0.0, min(share * total, total * (1 - RESERVE) - run.seconds))


def fit(task, optimizer, run, after_step):
    """Train from run.step to run.steps; after_step() runs behind each -> bytes a second.

    The bar shows a running mean of the bits a byte that next bytes cost in training.
    """
    s, first, smooth, began = task.settings, run.step, None, time.perf_counter()
    step_bytes = s.batch * s.accumulate * s.length
    with progress(task.name, run.steps * step_bytes, first * step_bytes) as bar:
        while run.step < run.steps:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(run.step, run.steps, s)
            bits = train_step(task, optimizer, run.step, run.step / run.steps)
            run.step += 1
            smooth = bits if smooth is None else 0.95 * smooth + 0.05 * bits
            bar.set_postfix_str(f"{smooth:.3f} bits/byte", refresh=False)
            bar.update(step_bytes)
            after_step()
    return (run.step - first) * step_bytes / max(1e-9, time.perf_counter() - began)


# ---- the stages


def train_stage(run, task, steps, share=1.0, after=1.0, validate=None):
    """Fit one of the two models, saving now and then and on Ctrl-C -> bytes a second.

    steps: how many, if they are not known from before an interrupt; None for as many as fit into
    that share of the minutes, blocks joining `after` a share of them. validate() looks at the model
    after each save. Raises KeyboardInterrupt, once all is saved, where Ctrl-C asked for it.
    """
    run.steps = run.steps or steps or count_steps(task, seconds_left(run, share), after)
    # cuDNN goes back through a GRU in training mode only, and loaded models are in eval mode.
    optimizer = make_optimizer(task.model.train(), task.settings)
    if run.optimizer:
        distributed.load_optimizer(optimizer, run.optimizer)

    def after_step():
        if run.step == run.steps:
            return  # what follows the last step saves anyway
        if distributed.anywhere(interrupt.asked):
            save(run, optimizer, wait=True)
            go_on = f"go on with: python train.py --resume {run.out}"
            tqdm.write(f"saved {run.out} at step {run.step}; {go_on}", file=sys.stderr)
            raise KeyboardInterrupt
        if distributed.anywhere(time.perf_counter() - run.saved > run.save_every):
            save(run, optimizer)
            if validate:
                validate()

    with Interrupt() as interrupt:
        speed = fit(task, optimizer, run, after_step)
        interrupted = distributed.anywhere(interrupt.asked)
        save(run, optimizer, wait=interrupted)
    if interrupted:  # during the last step
        raise KeyboardInterrupt
    return speed


def train_patcher(run, text, held_out):
    """The entropy model, and the threshold that gives held-out text patches of --patch-size bytes.

    Its arithmetic stays float32: rounded entropies would move boundaries.
    """
    if run.patcher.needs_entropy:
        settings = PRESETS[run.asked["preset"]].patcher_training
        settings = settings.trained_by(run.asked["optimizer"])
        # All take alike, in small batches a little more
        settings.batch += -settings.batch % distributed.processes()
        crops = Crops(text, None, settings.length, run.asked["seed"])  # there are no patches yet
        entropy_model = run.patcher.model
        loss = distributed.spread(entropy_model, patcher_loss)
        task = Task("patcher", entropy_model, loss, crops, settings, torch.float32)
        steps = run.asked["steps"] and max(1, run.asked["steps"] // 2)
        train_stage(run, task, steps, PATCHER_SHARE)
    # Calibrated on text that the entropy model has not seen, as all text will be.
    unseen, size = [ids.to(run.device) for ids in held_out], run.asked["patch_size"]
    run.results["mean_patch_held_out"] = calibrate(run.patcher, unseen, size)
    run.patcher.config.threshold = distributed.same(run.patcher.config.threshold)
    run.stage, run.step, run.steps, run.optimizer = "model", 0, None, None
    save(run)


def train_model(run, text, closes, held_out):
    """BLT or BLT-D on packed documents: text, closes (total,) -> fills run.model and run.results.

    held_out: list of ids; some of it is looked at while training.
    """
    sizes = ", ".join(f"{part} {count / 1e6:.2f} M" for part, count in run.model.sizes().items())
    print(f"model: {sizes}; {run.dtype} on {run.device}, {run.settings.optimizer}")
    s, recipe = run.settings, run.recipe
    crops = Crops(text, closes, s.length, run.asked["seed"])
    if recipe.chain_only:
        run.model.requires_grad_(False)
        run.model.decoder.chain.requires_grad_(True)
    if run.recompute:
        distributed.recompute(run.model, Layer)
    kind, idle = Layer if run.shard else None, recipe.chain_width > 0  # until blocks join
    loss = distributed.spread(run.model, model_loss(recipe), kind, idle)
    task = Task("model", run.model, loss, crops, s, run.dtype)
    peek = [d[:2048] for d in held_out[:16]]

    def validate():
        model = whole_model(run)
        if distributed.rank():
            return
        bits = bits_per_byte(model, run.patcher, peek)
        run.results.setdefault("log", []).append((run.step, round(run.seconds), round(bits, 4)))
        on = f"on {sum(map(len, peek)):,} held-out bytes"
        said = visible(written(model, run.patcher, 60))
        tqdm.write(f"step {run.step}: {bits:.3f} bits/byte {on}, sample: {said}", file=sys.stderr)

    after = recipe.after if recipe.block_size else 1.0
    speed = train_stage(run, task, run.asked["steps"], after=after, validate=validate)
    trained = run.step * s.length * s.batch * s.accumulate
    run.results |= {"bytes_per_second": speed, "trained_bytes": trained}
    print(f"trained {run.step} steps on {trained:,} bytes at {speed:,.0f} bytes/s")


def finish(run, held_out):
    """Validate on the whole held-out text, save, show a sample.

    Bits per byte count every byte once, with all of its document before it, as generation sees it.
    """
    total, K, run.model = sum(map(len, held_out)), run.recipe.block_size, whole_model(run)
    if distributed.rank():
        return
    with progress("validation", total) as bar:
        bits = bits_per_byte(run.model, run.patcher, held_out, bar.update)
    run.results["validation_bits_per_byte"] = bits
    print(f"validation: {bits:.3f} bits per byte on {total:,} held-out bytes")
    if K:
        accuracy, masked = masked_accuracy(run.model, run.patcher, held_out, K)
        masked_bits = sum(masked) / K
        run.results |= {"masked_accuracy": accuracy, "masked_bits_per_byte": masked_bits}
        right = "right by position in the block: " + " ".join(f"{x:.0%}" for x in accuracy)
        print(f"wholly masked blocks of {K}: {masked_bits:.3f} bits per byte, {right}")
    save(run, wait=True)
    print(f"\n{written(run.model, run.patcher, 200).decode('utf-8', 'replace')}\n")
    print(f"{run.seconds / 60:.1f} minutes; wrote {run.out}")


def options_from(argv):
    return PARSER.parse_args(argv)


def main(argv=None):
    """All of a training, in the order in which it happens."""
    keep_memory()
    options = options_from(argv)
    run = begin(options)
    for name in ("save_every", "shard", "recompute"):  # of these processes, no part of the run
        setattr(run, name, getattr(options, name))
    print(run.corpus.describe())
    train, held_out = run.corpus.split()
    if not train or not held_out:
        raise BadInput(f"{run.corpus.size} bytes are too few to train on and to validate with")
    text, held_out = Packed(train), [document_ids(data) for data in held_out]
    Crops(text, None, run.settings.length, 0)  # too little is refused now
    boundaries_of(run, text).is_begun()  # and a file in its way
    if run.stage == "patcher":
        train_patcher(run, text, held_out)
    closes = boundaries_of(run, text).find(run.patcher, run.device)
    run.results["mean_patch_train"] = closes.mean_patch()
    c, r = run.patcher.config, run.results
    means = f"{r['mean_patch_held_out']:.2f} bytes held out, {r['mean_patch_train']:.2f} trained"
    print(f"{c.kind} patcher: θ {c.threshold:.4f} nats, mean patch {means}")
    train_model(run, text, closes, held_out)
    finish(run, held_out)


if __name__ == "__main__":
    run_script(main)
