"""Text -> entropy model -> θ -> BLT, in one go and one checkpoint file.

    python train.py                      # the default corpus, ten minutes on two CPU cores
    python train.py --data my_notes/     # anyone's bytes
    python train.py --block-size 0       # plain BLT instead of BLT-D

Both models are trained by the same `fit`. Ctrl-C saves; `--resume FILE` ends bit for bit where the uninterrupted run does.
"""
import math
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from tqdm import tqdm

import checkpoint
import miniature
from data import Crops, decode, default_corpus, document_ids, encode, read_corpus
from diffusion import SIZES, Recipe, blt_d_logits, make_blocks, masked_accuracy, masked_loss
from machine import choose_device, choose_dtype, keep_memory, product_speed
from model import BLT, PRESETS, BLTConfig, preset
from patcher import Patcher, PatcherConfig, calibrate, mean_patch
from stream import bits_per_byte, generate
from terminal import BadInput, Parser, number, run, visible


@dataclass
class Settings:
    """How one model is trained (Fast BLT §A.2 where nothing else is said)."""
    length: int = 256           # N, bytes in a crop
    batch: int = 8              # crops in one forward pass
    accumulate: int = 1         # forward passes in one step
    lr: float = 2e-3            # peak, after the warm-up; falls to zero along a cosine
    warmup: int = 50            # steps
    weight_decay: float = 0.1   # on the matrices of linear maps only
    clip: float = 1.0           # global gradient norm


SETTINGS = {
    "nano": Settings(length=128, batch=8, lr=3e-3, warmup=10),
    "tiny": Settings(),
    "reference": Settings(),
    "small": Settings(length=512, batch=16, accumulate=2, lr=1e-3, warmup=200),
    "blt-1b": Settings(length=4096, batch=1, accumulate=128, lr=4e-4, warmup=2000),
    "blt-3b": Settings(length=4096, batch=1, accumulate=256, lr=4e-4, warmup=2000),
}
PATCHERS = {
    "nano": PatcherConfig(width=32, layers=1, heads=1, hidden=64, window=32),
    "tiny": PatcherConfig(),
    "reference": PatcherConfig(),
    "small": PatcherConfig(width=256, layers=4, heads=4, hidden=768, window=128),
    "blt-1b": PatcherConfig(width=768, layers=14, heads=12, hidden=2048, window=512),
    "blt-3b": PatcherConfig(width=768, layers=14, heads=12, hidden=2048, window=512),
}
PATCHER_SETTINGS = Settings(batch=16, lr=4e-3, warmup=20)
PATCHER_SHARE = 0.07            # of the minutes; the boundaries of the whole corpus take about as long again
RESERVE = 0.10                  # of the minutes, for the final validation and a sample
TIMED_SHARE = 0.08              # of a stage's seconds, after which --minutes becomes a number of steps


class Interrupt:
    """Ctrl-C asks the loop to stop after the step at hand; a second one stops at once."""
    asked = False

    def __enter__(self):
        self.previous = signal.signal(signal.SIGINT, self.ask)
        return self

    def ask(self, *_):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_):
        signal.signal(signal.SIGINT, self.previous)


def make_optimizer(model, settings):
    """AdamW 0.9 / 0.95; only matrices that multiply decay, so neither norms nor any table that rows are looked up in."""
    matrices = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    chosen = set(map(id, matrices))
    others = [p for p in model.parameters() if id(p) not in chosen]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.95), eps=1e-8, fused=matrices[0].device.type in ("cpu", "cuda"))


def learning_rate(step, steps, settings):
    """Linear warm-up, then cosine to zero; while the number of steps is not known yet, the warm-up alone."""
    warm = min(1.0, (step + 1) / settings.warmup)
    return settings.lr * warm * (0.5 * (1 + math.cos(math.pi * step / steps)) if steps else 1.0)


def fit(name, model, optimizer, crops, loss_of, settings, progress, seconds, dtype, after_step):
    """Train until progress["step"] reaches progress["steps"], which is fixed from the first timed steps if it is None.

    crops: a Crops; loss_of(ids, closes) -> (loss to descend, bits per byte to show). after_step() runs between steps.
    Returns bytes trained per second. Raises BadInput when a loss or gradient is not finite, before it can reach the weights.
    """
    device = next(model.parameters()).device
    size = settings.batch * settings.accumulate
    step_bytes = size * settings.length
    bar = tqdm(desc=name, unit="B", unit_scale=True, total=progress["steps"] and progress["steps"] * step_bytes,
               initial=progress["step"] * step_bytes, mininterval=0.5 if sys.stderr.isatty() else 20, dynamic_ncols=True)
    began, first, smooth = time.perf_counter(), progress["step"], None
    with bar:
        while not progress["steps"] or progress["step"] < progress["steps"]:
            step = progress["step"]
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, progress["steps"], settings)
            bits = 0.0
            for part in range(settings.accumulate):
                ids, closes = crops.batch(step * size + part * settings.batch, settings.batch)
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    loss, part_bits = loss_of(ids.to(device), closes.to(device))
                (loss / settings.accumulate).backward()
                bits += part_bits.item() / settings.accumulate
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            if not math.isfinite(bits) or not torch.isfinite(norm):
                raise BadInput(f"the loss or its gradient is not finite at step {step} of the {name}: try a lower --lr; "
                               "the checkpoint written last is kept")
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            progress["step"] += 1
            now, timed_steps = time.perf_counter(), step - first - 2          # the first steps warm up
            if timed_steps == 0:
                timed = now
            if not progress["steps"] and timed_steps >= 4 and now - began > TIMED_SHARE * seconds:
                progress["steps"] = step + 1 + max(1, int((seconds - (now - began)) * timed_steps / (now - timed)))
                bar.total = progress["steps"] * step_bytes
            smooth = bits if smooth is None else 0.95 * smooth + 0.05 * bits
            bar.set_postfix_str(f"{smooth:.3f} bits/byte", refresh=False)
            bar.update(step_bytes)
            after_step()
    return (progress["step"] - first) * step_bytes / max(1e-9, time.perf_counter() - began)


def next_byte_loss(logits, ids):
    """Cross-entropy in nats of every next byte, the last position's too: logits (B, N, V), ids (B, N + 1)."""
    return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


def model_loss(model, recipe, progress):
    """Plain BLT: L_clean. BLT-D: L_clean + L_mask, from one forward over the text and its blocks (Fast BLT §3.2).

    While the number of steps is being timed, every other one has blocks.
    """
    def loss_of(ids, closes):
        step, steps = progress["step"], progress["steps"]
        if not recipe.block_size or (step < recipe.after * steps if steps else step % 2):
            loss = clean = next_byte_loss(model(ids[:, :-1], closes), ids)
        else:
            blocks = make_blocks(ids, closes, recipe)
            logits, block_logits = blt_d_logits(model, ids, closes, blocks)
            clean = next_byte_loss(logits, ids)
            loss = clean + masked_loss(block_logits, blocks)
        return loss, clean.detach() / math.log(2)
    return loss_of


def patcher_loss(patcher):
    """As model_loss, of the entropy model."""
    def loss_of(ids, closes):
        loss = next_byte_loss(patcher.model(ids[:, :-1]), ids)
        return loss, loss.detach() / math.log(2)
    return loss_of


def corpus_of(data):
    """The corpus that --data names: None the default one, ["miniature"] the generated tasks, else files and folders."""
    return default_corpus() if data is None else miniature.corpus() if data == ["miniature"] else read_corpus(data)


class Run:
    """One training run: what the command line asked for, what has been made so far, and the file it is kept in."""

    def __init__(self, options):
        self.out = options.out or options.resume or checkpoint.DEFAULT
        self.device = choose_device(options.device)
        self.began = time.perf_counter()
        saved = checkpoint.load(options.resume) if options.resume else None
        origin = checkpoint.load(options.init_from) if options.init_from and not saved else None
        if saved and "asked" not in saved:
            raise BadInput(f"{options.resume} was made for generating only: it holds no optimiser to resume")
        of_this_machine = ("out", "resume", "device")
        self.asked = asked = saved["asked"] if saved else {k: v for k, v in vars(options).items() if k not in of_this_machine}
        self.corpus = corpus_of(asked["data"])
        print(self.corpus.describe())
        if saved and saved["corpus"]["sha256"] != self.corpus.sha256:
            raise BadInput("the corpus is not the one this run began with: its hash has changed")
        changed = {k: asked[k] for k in ("lr", "batch", "length") if asked[k] is not None}
        self.settings = replace(SETTINGS[asked["preset"]], **changed)
        self.recipe = Recipe(*(asked[k] for k in ("block_size", "block_starts", "block_rows", "full_share", "block_after")))
        known = saved or origin
        config = BLTConfig(**known["config"]) if known else preset(asked["preset"])
        self.config = replace(config, block_size=asked["block_size"])
        torch.manual_seed(asked["seed"])
        patcher_config = PATCHERS[asked["preset"]]
        self.patcher = Patcher(PatcherConfig(**known["patcher_config"]) if known else replace(patcher_config, kind=asked["patcher"]))
        self.model = BLT(self.config).init_weights()
        self.dtype = choose_dtype(saved["dtype"] if saved else asked["dtype"], self.device)
        self.progress = saved["progress"] if saved else {"stage": "patcher", "step": 0, "steps": None}
        self.results = saved["results"] if saved else {}
        if known:
            self.patcher.load_state_dict(known["patcher"])
            self.model.load_state_dict(known["model"] or self.model.state_dict())
        if origin:  # its patcher stays as it is: other boundaries would make other patches of the same bytes
            if not origin["model"]:
                raise BadInput(f"{options.init_from} holds no model yet, only a patcher: finish that run first")
            self.progress["stage"] = "model"
            self.results["mean_patch_held_out"] = origin["results"]["mean_patch_held_out"]
        self.patcher.to(self.device)
        self.model.to(self.device)
        self.saved_optimizer = saved and saved["optimizer"]
        if saved:
            torch.set_rng_state(saved["rng"])
        train, held_out = self.corpus.split()
        self.train, self.held_out = [document_ids(d) for d in train], [document_ids(d) for d in held_out]
        if not self.train or not self.held_out:
            raise BadInput(f"the corpus is too small to train on and to validate with: {self.corpus.size} bytes")

    def save(self, optimizer=None):
        """Everything that `--resume` and generation need, in one file."""
        model = self.model if self.progress["stage"] != "patcher" else None
        checkpoint.save(self.out, {
            "asked": self.asked, "config": asdict(self.config), "patcher_config": asdict(self.patcher.config),
            "patcher": self.patcher.state_dict(), "model": model and model.state_dict(),
            "optimizer": optimizer and optimizer.state_dict(), "progress": self.progress, "rng": torch.get_rng_state(),
            "dtype": str(self.dtype).removeprefix("torch."), "results": self.results,
            "corpus": {"origin": self.corpus.origin, "bytes": self.corpus.size, "sha256": self.corpus.sha256}})

    def seconds_left(self, share):
        """Seconds for a stage that may use `share` of the minutes asked for, or of what is left of them."""
        total = self.asked["minutes"] * 60
        return min(share * total, total * (1 - RESERVE) - (time.perf_counter() - self.began))

    def stage(self, name, model, crops, loss_of, settings, share, dtype, validate=None):
        """Fit one of the two models, saving now and then and on Ctrl-C -> bytes a second."""
        optimizer = make_optimizer(model, settings)
        if self.saved_optimizer:
            optimizer.load_state_dict(self.saved_optimizer)
            self.saved_optimizer = None
        if self.asked["steps"] and not self.progress["steps"]:
            self.progress["steps"] = self.asked["steps"] if name == "model" else max(1, self.asked["steps"] // 2)
        last = time.perf_counter()

        with Interrupt() as interrupt:
            def after_step():
                nonlocal last
                done = self.progress["step"] == self.progress["steps"]
                if interrupt.asked and not done:
                    self.save(optimizer)
                    tqdm.write(f"saved {self.out} at step {self.progress['step']}; "
                               f"go on with: python train.py --resume {self.out}", file=sys.stderr)
                    raise KeyboardInterrupt
                if not done and time.perf_counter() - last > 120:
                    self.save(optimizer)
                    if validate:
                        validate()
                    last = time.perf_counter()

            speed = fit(name, model, optimizer, crops, loss_of, settings, self.progress, self.seconds_left(share), dtype,
                        after_step)
        self.optimizer = optimizer
        self.save(optimizer)
        return speed

    def train_patcher(self):
        """The entropy model, θ, and where the patches of the whole corpus close; its weights stay float32."""
        if self.progress["stage"] == "patcher":
            if self.patcher.needs_entropy:
                if not (self.progress["step"] or self.saved_optimizer):
                    for p in self.patcher.parameters():
                        if p.ndim > 1:
                            torch.nn.init.normal_(p, std=p.shape[1] ** -0.5)
                packed = torch.cat(self.train).short()
                crops = Crops(packed, torch.zeros_like(packed, dtype=torch.bool), PATCHER_SETTINGS.length, self.asked["seed"])
                self.stage("patcher", self.patcher, crops, patcher_loss(self.patcher), PATCHER_SETTINGS, PATCHER_SHARE,
                           torch.float32)
            self.patcher.eval()
            self.results["mean_patch_held_out"] = calibrate(self.patcher, [d.to(self.device) for d in self.held_out])
            self.progress = {"stage": "model", "step": 0, "steps": None}
            self.save()
        self.patcher.eval()
        bar = tqdm(self.train, desc="patching", unit="B", unit_scale=True, leave=False, total=sum(map(len, self.train)))
        closes = []
        with bar:
            for ids in self.train:
                closes.append(self.patcher.closes(ids.to(self.device)).cpu())
                bar.update(len(ids))
        self.results["mean_patch_train"] = mean_patch(closes)
        print(f"{self.patcher.config.kind} patcher: θ {self.patcher.config.theta:.4f} nats, mean patch "
              f"{self.results['mean_patch_held_out']:.2f} bytes held out, {self.results['mean_patch_train']:.2f} in training")
        return torch.cat(self.train).short(), torch.cat(closes)

    def train_model(self, ids, closes):
        sizes = self.model.sizes()
        print("model: " + ", ".join(f"{part} {count / 1e6:.2f} M" for part, count in sizes.items())
              + f"; {self.dtype} on {self.device}")
        crops = Crops(ids, closes, self.settings.length, self.asked["seed"])
        peek = [d[:2048] for d in self.held_out[:16]]

        def validate():
            bits = bits_per_byte(self.model.eval(), self.patcher, peek)
            self.model.train()
            tqdm.write(f"step {self.progress['step']}: {bits:.3f} bits/byte on {sum(map(len, peek)):,} held-out bytes, "
                       f"sample: {visible(self.sample(60))}", file=sys.stderr)

        speed = self.stage("model", self.model, crops, model_loss(self.model, self.recipe, self.progress), self.settings, 1.0,
                           self.dtype, validate)
        peak, s = product_speed(self.dtype, self.device), self.settings
        block_rows = self.recipe.rows * (1 - self.recipe.after) if self.recipe.block_size else 0.0
        work = self.model.flops_per_byte(self.results["mean_patch_train"], block_rows) * speed
        trained = self.progress["step"] * s.length * s.batch * s.accumulate
        self.results |= {"bytes_per_second": speed, "trained_bytes": trained}
        print(f"trained {self.progress['step']} steps on {trained:,} bytes at {speed:,.0f} bytes/s: {work / 1e9:.0f} GFLOP/s, "
              f"{work / peak:.0%} of the {peak / 1e9:.0f} measured for {self.dtype} matrix products")

    def sample(self, length=200, prompt=b"def "):
        """A greedy continuation, as bytes."""
        return prompt + decode(generate(self.model.eval(), self.patcher, encode(prompt), length).ids)

    def finish(self):
        """Validate on the whole held-out text, save, show a sample."""
        self.model.eval()
        with tqdm(desc="validation", unit="B", unit_scale=True, leave=False, total=sum(map(len, self.held_out))) as bar:
            self.results["validation_bits_per_byte"] = bits_per_byte(self.model, self.patcher, self.held_out, bar.update)
        if self.recipe.block_size:
            peek = [d[:4000] for d in self.held_out[:20]]
            accuracy, nats = masked_accuracy(self.model, self.patcher, peek, self.recipe.block_size)
            masked_bits = sum(nats) / len(nats) / math.log(2)
            self.results |= {"masked_accuracy": accuracy, "masked_bits_per_byte": masked_bits}
        self.save(self.optimizer)
        print(f"validation: {self.results['validation_bits_per_byte']:.3f} bits per byte "
              f"on {sum(map(len, self.held_out)):,} held-out bytes")
        if self.recipe.block_size:
            print(f"wholly masked blocks of {self.recipe.block_size}: {masked_bits:.3f} bits per byte, "
                  "right by position in the block: " + " ".join(f"{share:.0%}" for share in accuracy))
        print(f"\n{self.sample().decode('utf-8', 'replace')}\n")
        print(f"{(time.perf_counter() - self.began) / 60:.1f} minutes; wrote {self.out}")


def options_from(argv):
    parser = Parser(prog="train.py", description="Train a Byte Latent Transformer on any text.")
    parser.add_argument("--data", nargs="+", metavar="PATH",
                        help="files and folders to train on, or `miniature`: tasks of evaluate.py; default: Python's standard library")
    parser.add_argument("--preset", default="tiny", choices=PRESETS, help="size of the model")
    parser.add_argument("--minutes", type=number(float, 0, above=True), default=8.8,
                        help="time for everything, fixed as a number of steps from the first timed ones")
    parser.add_argument("--steps", type=number(int, 1),
                        help="train the model for so many steps instead, the patcher for half as many")
    parser.add_argument("--block-size", type=int, default=8, choices=(0, *SIZES),
                        help="K, bytes that the decoder learns to fill at once; 0: plain BLT")
    parser.add_argument("--block-starts", default=Recipe.starts, choices=("any", "patch"),
                        help="where training blocks start; the paper: patch")
    parser.add_argument("--block-rows", type=number(float, 0), default=Recipe.rows,
                        help="rows of blocks for each byte of text; 0: a block at every start, as in the paper")
    parser.add_argument("--full-share", type=number(float, 0, 1), default=Recipe.full,
                        help="share of blocks that are masked whole; the paper: 0")
    parser.add_argument("--block-after", type=number(float, 0, 1), default=Recipe.after,
                        help="share of the steps before blocks join; the paper: 0")
    parser.add_argument("--init-from", metavar="FILE", help="begin with the weights and patcher of this checkpoint")
    parser.add_argument("--patcher", default="entropy", choices=("entropy", "monotonic", "stride", "space"),
                        help="what decides where patches end")
    parser.add_argument("--lr", type=number(float, 0, above=True), help="peak learning rate instead of the preset's")
    parser.add_argument("--batch", type=number(int, 1), help="crops in a forward pass instead of the preset's")
    parser.add_argument("--length", type=number(int, 8), help="bytes in a crop instead of the preset's")
    parser.add_argument("--seed", type=int, default=0, help="of weights and of the order of the text")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"),
                        help="of the arithmetic; auto: bfloat16 where it is measured to pay")
    parser.add_argument("--device", default="auto", help="cpu, cuda or mps")
    parser.add_argument("--out", help=f"the checkpoint to write (default: the one resumed, or {checkpoint.DEFAULT})")
    parser.add_argument("--resume", metavar="FILE",
                        help="go on with an interrupted run; everything else comes from the file")
    options = parser.parse_args(argv)
    if options.resume:
        asked = checkpoint.load(options.resume).get("asked", {})
        for key, value in vars(options).items():
            if key in asked and value not in (parser.get_default(key), asked[key]):
                raise BadInput(f"--{key} can't change on --resume: this run began with {asked[key]}")
    folder = os.path.dirname(options.out or "")
    if folder and not os.path.isdir(folder):
        raise BadInput(f"there is no folder {folder} to write {options.out} in")
    return options


def main(argv=None):
    keep_memory()
    this = Run(options_from(argv))
    ids, closes = this.train_patcher()
    this.train_model(ids, closes)
    this.finish()


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")
    run(main)
