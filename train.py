"""Text -> entropy model -> threshold -> BLT, in one go and one checkpoint file.

    python train.py                      # the default corpus, under ten minutes on two CPU cores
    python train.py --data my_notes/     # anyone's bytes
    python train.py --data train.txt --held-out valid.txt   # a corpus that brings its own
    python train.py --block-size 0       # plain BLT instead of BLT-D
    python train.py --recipe paper       # BLT-D as the paper trains it

The loop is `fit`, which trains both models, one after the other. What happens in which order is in
`main` at the end: the entropy model, the patches, the model, what it can do. Ctrl-C saves;
`--resume FILE` ends bit for bit where the uninterrupted run does. Where a run comes from, how it is
kept, and what several processes do is in training/.

Letters in shape comments: B batch, N byte positions.
"""

import functools
import math
import time

import torch

from data import Crops, describe_rest, document_ids, openings_of
from diffusion import (
    chained_loss,
    losses_of,
    make_blocks,
    next_byte_nats,
    verifier,
    whole_blocks,
)
from fast.patching import calibrate, closes_of, mean_patch
from layers import CrossAttention, Layer
from measure.quality import written
from support.flags import PROMPT
from support.hardware import keep_memory
from support.openings import beginning
from support.terminal import BadInput, Interrupt, escaped, for_terminal, progress
from support.terminal import run as run_script
from training import distributed
from training.boundaries import Packed
from training.optim import learning_rate, make_optimizer
from training.presets import PRESETS
from training.runs import PARSER, begin, boundaries_of, save, say_saved, whole_model
from training.steps import Task, check_finite, check_length, count_steps
from training.validation import look, machine_of, validate

# Everything is done once: first the entropy model is trained, then the text is cut into patches,
# then the model is trained on these. Each stage is saved, so that a run can go on from any step.
PATCHER_SHARE = 0.07  # of the minutes, for the entropy model; finding patches takes as long again

# ---- the losses of the two models
#
# ids (B, N + 1), closes (B, N), a random generator for each row, and the share of the run that is
# done -> what is minimised and, of it, what clean bytes cost; both in nats a byte. The second is
# what the progress bar shows: it can be compared between plain BLT and BLT-D. Where the chained
# head alone is trained, it is what a drafted byte costs.


def patcher_loss(model, ids, closes, generators, done):
    """The entropy model's loss: next bytes alone. It has no use for the rest."""
    nats = next_byte_nats(model(ids[:, :-1]), ids) / closes.numel()
    return nats, nats


def chain_loss(model, ids, closes, corrupted, recipe):
    """The chained head's loss alone, all else being frozen, and of it the nats; both a cell."""
    K = recipe.block_size
    N = closes.shape[1]
    with torch.no_grad():
        rows = model.rows(ids[:, :-1], closes, corrupted.blocks)
        p = verifier(model.decoder.head(rows[:, :N]), corrupted)
    # Only blocks that are masked whole count, as every draft begins with one.
    cells = (K * whole_blocks(corrupted, K).sum()).clamp(min=1)
    loss, nats = chained_loss(model.decoder, p, rows[:, N:], ids, corrupted, K)
    return loss / cells, nats / cells


def model_loss(model, ids, closes, generators, done, recipe):
    """BLT's loss: next bytes, and once blocks join, hidden cells too.

    Blocks join late because next bytes are learned faster alone, and a model that can read learns
    to fill gaps faster (Fast BLT §3.2 has them from the start: recipe "paper").
    """
    count = closes.numel()
    if not recipe.block_size or done < recipe.after:
        nats = next_byte_nats(model(ids[:, :-1], closes), ids) / count
        return nats, nats
    corrupted = make_blocks(ids, closes, recipe, generators)
    if recipe.chain_only:  # a chained head alone, as all else stays as it is
        return chain_loss(model, ids, closes, corrupted, recipe)
    losses = losses_of(model, ids, closes, corrupted, recipe)
    return losses.total(recipe, count), losses.clean / count


# ---- the loop


def fit(run, task, looks=None):
    """Train one of the two models from run.step to run.steps -> bytes a second, None for no step.

    looks(): called behind each save but the last. Raises KeyboardInterrupt, once all is saved,
    where a signal asked for the end; BadInput for a loss that is not finite.
    """
    s = task.settings
    # cuDNN goes back through a GRU in training mode alone, and loaded models are in eval mode.
    task.model.train()
    optimizer = make_optimizer(task.model, s)
    if run.optimizer:
        distributed.load_optimizer(optimizer, run.optimizer)
    first = run.step
    if first == run.steps:  # a finished run that is resumed: nothing is left to do, or to time
        return None
    began = time.perf_counter()
    step_bytes = s.batch * s.accumulate * s.length
    smooth = None  # bits a byte that next bytes cost in training, as a running mean
    bar = progress(task.name, run.steps * step_bytes, first * step_bytes)
    with Interrupt() as interrupt, bar:
        while run.step < run.steps:
            # The learning rate of this step
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(run.step, run.steps, s)

            # Forward and backward, in as many parts as memory asks for. training/steps.py times
            # these lines: who changes them changes `trial_step` there.
            nats = 0.0
            for part in range(s.accumulate):
                ids, closes, generators = task.batch(run.step, part)
                with distributed.gradients_meet(task.loss, last=part == s.accumulate - 1):
                    with task.autocast():
                        loss, clean = task.loss(ids, closes, generators, run.step / run.steps)
                    (loss / s.accumulate).backward()
                nats += clean.detach() / s.accumulate

            # Clip, and see that all is finite. Here alone the step waits for the device.
            norm = distributed.clip_gradients(task.model, s.clip)
            nats, norm = torch.stack([nats, norm]).tolist()
            check_finite(norm, task, run.step)

            optimizer.step()
            optimizer.zero_grad()
            run.step += 1

            # Log
            bits = nats / math.log(2)
            smooth = bits if smooth is None else 0.95 * smooth + 0.05 * bits
            bar.set_postfix_str(f"{smooth:.3f} bits/byte", refresh=False)
            bar.update(step_bytes)

            # Save now and then, on a signal and at the end; validate behind a save
            interrupted = distributed.anywhere(interrupt.asked)
            ended = run.step == run.steps
            if interrupted or ended or distributed.anywhere(run.is_due):
                save(run, optimizer, wait=interrupted)
                if interrupted:
                    say_saved(run)
                    distributed.leave()
                    raise KeyboardInterrupt
                if looks and not ended:
                    looks()
    return (run.step - first) * step_bytes / max(1e-9, time.perf_counter() - began)


# ---- the stages


def train_patcher(run, text, held_out):
    """The entropy model, and the threshold that gives held-out text patches of --patch-size bytes.

    Its arithmetic stays float32: rounded entropies would move boundaries.
    """
    asked = run.asked
    if run.patcher.needs_entropy:
        settings = PRESETS[asked["preset"]].patcher_training.trained_by(asked["optimizer"])
        # All processes take alike, in small batches a little more.
        settings.batch += -settings.batch % distributed.processes()
        crops = Crops(text, None, settings.length, asked["seed"])  # there are no patches yet
        model = run.patcher.model
        loss = distributed.spread(model, patcher_loss)
        task = Task("patcher", model, loss, crops, settings, torch.float32)
        if not run.steps and asked["steps"]:
            run.steps = max(1, asked["steps"] // 2)
        run.steps = run.steps or count_steps(task, run.seconds_left(PATCHER_SHARE))
        fit(run, task)
    # Calibrated on text that the entropy model has not seen, as all text will be.
    run.results["mean_patch_held_out"] = calibrate(run.patcher, held_out, asked["patch_size"])
    run.patcher.config.threshold = distributed.same(run.patcher.config.threshold)
    run.stage = "model"
    run.step = 0
    run.steps = None
    run.optimizer = None
    save(run)


def train_model(run, text, closes, held_out):
    """BLT or BLT-D on packed documents: text, closes (total,) -> fills run.model and run.results.

    held_out: list of ids; some of it is looked at while training.
    """
    s = run.settings
    recipe = run.recipe
    crops = Crops(text, closes, s.length, run.asked["seed"])
    if recipe.chain_only:
        run.model.requires_grad_(False)
        run.model.decoder.chain.requires_grad_(True)
    if run.recompute:
        distributed.recompute(run.model, (Layer, CrossAttention))
    loss = distributed.spread(
        run.model,
        functools.partial(model_loss, recipe=recipe),
        kind=Layer if run.shard else None,
        idle=recipe.chain_width > 0,  # until blocks join
    )
    task = Task("model", run.model, loss, crops, s, run.dtype)
    after = recipe.after if recipe.block_size else 1.0
    run.steps = run.steps or run.asked["steps"] or count_steps(task, run.seconds_left(), after)
    speed = fit(run, task, functools.partial(look, run, held_out))
    trained = run.step * s.length * s.batch * s.accumulate
    run.results["trained_bytes"] = trained
    said = f"trained {run.step} steps on {trained:,} bytes"
    if speed is not None:
        run.results["bytes_per_second"] = speed
        said += f" at {speed:,.0f} bytes/s"
    print(said)


def finish(run, held_out):
    """Validate on the whole held-out text, save, show a sample."""
    run.model = whole_model(run)
    if distributed.rank():
        return
    validate(run, held_out)
    save(run, wait=True)
    prompt = beginning(run.openings, PROMPT)
    sample = written(machine_of(run, run.model), 200, prompt)
    print(f"\n{for_terminal(sample.decode('utf-8', 'replace'))}\n")
    print(f"{run.seconds / 60:.1f} minutes; wrote {escaped(run.out)}")


def options_from(argv):
    return PARSER.parse_args(argv)


def main(argv=None):
    """All of a training, in the order in which it happens."""
    keep_memory()
    run = begin(options_from(argv))
    print(run.corpus.describe())
    if run.corpus.held_out:
        print(f"held out: {run.corpus.held_out.describe()}")
    documents, held_out = run.corpus.split()
    if not len(documents) or not held_out:
        problem = f"{run.corpus.size} bytes are too few to train on and to validate with"
        raise BadInput(f"{problem}: give more text")
    if rest := describe_rest(run.corpus, (documents, held_out)):
        print(rest)
    run.openings = openings_of(held_out)
    text = Packed(documents)
    held_out = [document_ids(data) for data in held_out]
    check_length(run, text)  # too little is refused now
    boundaries_of(run, text).is_begun()  # and a file in its way
    if run.stage == "patcher":
        train_patcher(run, text, held_out)
    elif "mean_patch_held_out" not in run.results:  # the patcher is from another run
        run.results["mean_patch_held_out"] = mean_patch(closes_of(run.patcher, held_out))
    closes = boundaries_of(run, text).find(run.patcher)
    run.results["mean_patch_train"] = closes.mean_patch()
    config = run.patcher.config
    unseen = run.results["mean_patch_held_out"]
    means = f"{unseen:.2f} bytes held out, {closes.mean_patch():.2f} trained"
    print(f"{config.kind} patcher: θ {config.threshold:.4f} nats, mean patch {means}")
    sizes = ", ".join(f"{part} {count / 1e6:.2f} M" for part, count in run.model.sizes().items())
    print(f"model: {sizes}; {run.dtype} on {run.device}, {run.settings.optimizer}")
    train_model(run, text, closes, held_out)
    finish(run, held_out)
    distributed.leave()


if __name__ == "__main__":
    run_script(main)
