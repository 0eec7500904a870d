"""A table of bad inputs over all commands: one line, exit code 2, nothing written or destroyed."""

import gzip
import importlib
import os
import pathlib

import pytest
import torch

from measure import ideas
from support import terminal

pytestmark = pytest.mark.more  # minutes together: .ci/run has them

# ---- checkpoints that are well-formed and wrong, by what was done to one that was right


def put(path, value):
    """An edit that puts a value, or what a function makes of the old one, at a/b/c."""
    *way, last = path.split("/")

    def edit(saved):
        place = saved
        for key in way:
            place = place[int(key) if key.isdigit() else key]
        place[last] = value(place[last]) if callable(value) else value

    return edit


def drop(path):
    """An edit that removes a/b/c."""
    *way, last = path.split("/")

    def edit(saved):
        place = saved
        for key in way:
            place = place[int(key) if key.isdigit() else key]
        del place[last]

    return edit


def with_number(x, value):
    """A tensor with one other number."""
    x = x.clone()
    x.view(-1)[0] = value
    return x


HEAD, NAN, INF = "model/decoder.head.weight", float("nan"), float("inf")
# name -> (edit, words of the complaint): of what every command reads
DAMAGED = {
    "no-config": (drop("config"), "config is missing"),
    "no-patcher": (drop("patcher"), "patcher is missing"),
    "no-patcher-config": (drop("patcher_config"), "patcher_config is missing"),
    "no-results": (drop("results"), "results is missing"),
    "no-model": (drop("model"), "no model yet"),
    "config-list": (put("config", [1]), "config is missing or of another"),
    "config-none": (put("config", None), "config is missing or of another"),
    "extra-field": (put("config/depth", 3), "config.depth is unknown here"),
    "other-field": (put("patcher_config/theta", 3.0), "patcher_config.theta is unknown"),
    "width-zero": (put("config/width", 0), "config.width is 0"),
    "width-negative": (put("config/width", -64), "config.width is -64"),
    "width-text": (put("config/width", "64"), "config.width is '64'"),
    "width-float": (put("config/width", 64.0), "config.width is 64.0"),
    "width-bool": (put("config/width", True), "config.width is True"),
    "width-odd": (put("config/width", 66), "config.width 66 is not even for"),
    "width-huge": (put("config/width", 1 << 30), "model"),
    "width-other": (put("config/width", 128), "model.encoder"),
    "heads-zero": (put("config/heads", 0), "config.heads is 0"),
    "layers-million": (put("config/decoder_layers", 10**6), "config.decoder_layers is 1000000"),
    "layers-more": (put("config/decoder_layers", 4), "decoder.crosses"),
    "window-zero": (put("config/window", 0), "config.window is 0"),
    "block-negative": (put("config/block_size", -1), "config.block_size is -1"),
    "block-huge": (put("config/block_size", 10**9), "config.block_size is 1000000000"),
    "patch-shorter": (put("config/max_patch", 4), "takes patches of 4 bytes at most"),
    "rope-nan": (put("config/rope_base", NAN), "config.rope_base is nan"),
    "rope-zero": (put("config/rope_base", 0.0), "config.rope_base is 0"),
    "threshold-nan": (put("patcher_config/threshold", NAN), "patcher_config.threshold is nan"),
    "threshold-inf": (put("patcher_config/threshold", INF), "patcher_config.threshold is inf"),
    "threshold-text": (put("patcher_config/threshold", "1"), "patcher_config.threshold is '1'"),
    "threshold-far": (
        put("patcher_config/threshold", 1e9),
        "patcher_config.threshold is 1000000000",
    ),
    "kind-unknown": (put("patcher_config/kind", "magic"), "unknown patcher 'magic'"),
    "kind-number": (put("patcher_config/kind", 3), "patcher_config.kind is 3"),
    "reset-number": (put("patcher_config/reset_at_newline", 1), "needs reset_at_newline, which is"),
    "patcher-width": (put("patcher_config/width", 96), "patcher.model.embed.weight"),
    "weights-nan": (put(HEAD, lambda x: with_number(x, NAN)), "decoder.head.weight"),
    "weights-inf": (put(HEAD, lambda x: with_number(x, -INF)), "not finite"),
    "weights-whole": (put(HEAD, lambda x: x.long()), "decoder.head.weight"),
    "weights-complex": (put(HEAD, lambda x: x.to(torch.complex64)), "decoder.head.weight"),
    "weights-flat": (put(HEAD, lambda x: x.flatten()), "decoder.head.weight holds no real"),
    "weights-list": (put(HEAD, [1.0]), "decoder.head.weight holds no real"),
    "weights-none": (put(HEAD, None), "decoder.head.weight holds no real"),
    "weights-sparse": (put(HEAD, lambda x: x.to_sparse()), "decoder.head.weight"),
    "weights-missing": (drop(HEAD), "model.decoder.head.weight is missing"),
    "weights-extra": (put("model/more", torch.zeros(1)), "model.more is unknown here"),
    "weights-number": (put("model", 3), "model is missing or of another"),
    "patcher-nan": (
        put("patcher/model.head.weight", lambda x: with_number(x, NAN)),
        "patcher.model.head.weight",
    ),
    "version-text": (put("version", "2"), "version 2"),
    "version-list": (put("version", [2]), "version [2]"),
    "format-other": (put("format", "other"), "another program"),
}

# of what only --resume reads
NOT_RESUMED = {
    "no-asked": (drop("asked"), "can't be resumed"),
    "no-lr": (drop("asked/lr"), "lr"),
    "lr-text": (put("asked/lr", "fast"), "--lr"),
    "lr-negative": (put("asked/lr", -1.0), "--lr"),
    "lr-nan": (put("asked/lr", NAN), "--lr"),
    "preset-other": (put("asked/preset", "huge"), "--preset"),
    "batch-zero": (put("asked/batch", 0), "--batch"),
    "seed-negative": (put("asked/seed", -1), "--seed"),
    "no-progress": (drop("progress"), "progress"),
    "stage-other": (put("progress/stage", "dream"), "dream"),
    "step-negative": (put("progress/step", -3), "-3"),
    "step-text": (put("progress/step", "3"), "not supported"),
    "step-beyond": (put("progress/step", 10**9), "1000000000"),
    "steps-none": (put("progress/steps", None), "progress"),
    "dtype-other": (put("dtype", "int8"), "int8"),
    "dtype-number": (put("dtype", 8), "8"),
    "no-rng": (drop("rng"), "rng"),
    "rng-short": (put("rng", torch.zeros(3, dtype=torch.uint8)), "rng"),
    "rng-float": (put("rng", torch.zeros(5056)), "rng"),
    "rng-text": (put("rng", "dice"), "rng"),
    "no-optimizer": (drop("optimizer"), "optimizer"),
    "optimizer-list": (put("optimizer", [1]), "optimizer"),
    "optimizer-half": (drop("optimizer/adamw"), "optimizer"),
    "moment-short": (put("optimizer/adamw/state/0/exp_avg", torch.zeros(3)), "optimizer's state"),
    "moment-nan": (put("optimizer/adamw/state/0/step", torch.tensor(NAN)), "optimizer's state"),
    "warmup-zero": (put("asked/warmup", 0), "warmup"),
    "corpus-other": (put("corpus/sha256", "0" * 64), "its hash has changed"),
    "held-out-none": (put("asked/held_out", ["notes"]), "its hash has changed"),
}

# ---- everything else, by command. FILE: the good checkpoint; names are files in the folder.

KNOWN = "--checkpoint FILE"
TRAIN = "train.py --preset nano --steps 2"
CODE = "evaluation code --checkpoint FILE --set humaneval --items"
LINES = {
    # commands of scripts/
    "bandwidth.py --plot x.txt": ".png or .svg",
    "bandwidth.py --plot gone/x.png": "can't write gone/x.png: No such file",
    "bandwidth.py --paper --bytes 9": "--paper measures nothing and reads no --bytes",
    "bandwidth.py --paper --checkpoint FILE": "reads no --checkpoint",
    "bandwidth.py --bytes 1 --plot x.svg": "give --bytes 2",
    "bandwidth.py --plot /proc/x.png": "can't write /proc/x.png",
    "diffusion.py --plot gone/x.png": "can't write gone/x.png: No such file",
    "scripts.race": "--out",
    "scripts.race --out x.txt": ".html",
    "tests.fuzzing --minutes 0": "is outside",
    "tests.fuzzing --seed -1": "is outside",
    # files that are written
    f"{TRAIN} --data text --out text": "among what is read",
    f"{TRAIN} --data folder --out folder/new.pt": "among what is read",
    f"{TRAIN} --data text --out link-to-text": "among what is read",
    f"{TRAIN} --data text --out notes": "not a checkpoint",
    f"{TRAIN} --data text --out empty": "not a checkpoint",
    f"{TRAIN} --data text --out foreign.pt": "another program",
    f"{TRAIN} --data text --out cut.pt": "not a checkpoint",
    f"{TRAIN} --data text --out folder": "it is a folder",
    f"{TRAIN} --data text --out pipe": "it is a pipe or a device",
    f"{TRAIN} --data text --out /dev/null": "it is a pipe or a device",
    f"{TRAIN} --data text --out no/such/x.pt": "No such file",
    f"{TRAIN} --data folder --out text/x.pt": "Not a directory",
    f"{TRAIN} --data text --out {'x' * 254}.pt": "too long",
    f"{TRAIN} --data text --out /proc/x.pt": "can't write /proc/x.pt",
    f"{TRAIN} --data text --out /sys/x.pt": "can't write /sys/x.pt",
    f"{TRAIN} --data text --out dangling-link": "No such file",
    f"{TRAIN} --init-from FILE --data text --out FILE": "among what is read",
    "scripts.export FILE FILE": "among what is read",
    "scripts.export FILE notes": "not a checkpoint",
    "scripts.export FILE text": "not a checkpoint",
    "scripts.export FILE pipe": "it is a pipe or a device",
    "scripts.export FILE folder": "it is a folder",
    "scripts.export FILE no/such/x.pt": "No such file",
    "scripts.export weights-nan.pt new.pt": "not finite",
    "scripts.export weights-list.pt new.pt": "decoder.head.weight",
    "scripts.export no-model.pt new.pt": "no finished training run",
    "scripts.export gone.pt new.pt": "no checkpoint at gone.pt",
    "scripts.export cut.pt new.pt": "damaged",
    # files that are read
    "sample.py --checkpoint pipe": "it is a pipe or a device",
    "sample.py --checkpoint folder": "it is a folder",
    "sample.py --checkpoint /dev/zero": "it is a pipe or a device",
    "sample.py --checkpoint dangling-link": "can't read the checkpoint dangling-link",
    "sample.py --checkpoint /dev/nothing": "no checkpoint at /dev/nothing",
    "sample.py --checkpoint text": "not a checkpoint",
    "sample.py --checkpoint empty": "not a checkpoint",
    "sample.py --checkpoint rotten.pt": "has changed",
    "train.py --resume rotten.pt": "has changed",
    "train.py --init-from rotten.pt": "has changed",
    "train.py --resume pipe": "it is a pipe or a device",
    "train.py --init-from folder": "it is a folder",
    f"sample.py {KNOWN} --prompt-file pipe": "it is a pipe or a device",
    f"sample.py {KNOWN} --prompt-file /dev/zero": "it is a pipe or a device",
    f"sample.py {KNOWN} --prompt-file folder": "it is a folder",
    f"sample.py {KNOWN} --prompt-file a%0Ab": "a⏎b: No such file",
    f"sample.py {KNOWN} --prompt-file endless": "longer than",
    f"sample.py {KNOWN} --prompt-file /proc/self/mem": "can't read the prompt file /proc/self/mem",
    f"bandwidth.py {KNOWN} --prompts pipe": "it is a pipe or a device",
    f"bandwidth.py {KNOWN} --prompts folder": "it is a folder",
    "patcher.py --kind space --file pipe": "it is a pipe or a device",
    "patcher.py --kind space --file /dev/zero": "it is a pipe or a device",
    "patcher.py --kind space --file endless": "longer than",
    f"{TRAIN} --data pipe": "nothing to train on",
    f"{TRAIN} --data /dev/zero": "nothing to train on",
    f"{TRAIN} --data /proc/self/mem": "can't read the text /proc/self/mem",
    f"{TRAIN} --data gone": "no such file or folder",
    f"{TRAIN} --data text --separator %%%": "'%%%' does not occur in text",
    f"{TRAIN} --data text --held-out gone": "no such file or folder: gone",
    f"{TRAIN} --data text --held-out empty": "nothing to train on in empty: 0 bytes",
    f"{TRAIN} --data folder --held-out text --out text": "among what is read",
    f"{TRAIN} --data no-text.jsonl": "line 2 of no-text.jsonl has no text",
    f"{TRAIN} --data cut.gz": "can't unpack cut.gz",
    "data.py cut.gz": "can't unpack cut.gz",
    "data.py text --separator %%%": "'%%%' does not occur in text",
    f"evaluation bpb {KNOWN} --data cut.gz": "can't unpack cut.gz",
    f"evaluation bpb {KNOWN} --data text --separator %%%": "does not occur in text",
    f"evaluation bpb {KNOWN} --separator %%%": "--separator is of --data",
    "scripts.export FILE new.pt --separator %%%": "--separator is of --openings",
    "scripts.export FILE new.pt --openings notes": "no document of notes is long enough",
    "train.py --resume FILE --held-out notes": "--held-out notes can't change",
    "train.py --resume FILE --separator %%%": "--separator %%% can't change",
    f"{TRAIN} --data text --length 65536": "less than two windows of 65536",
    "data.py pipe": "nothing to train on",
    "data.py empty": "0 bytes",
    f"evaluation bpb {KNOWN} --data pipe": "nothing to train on",
    f"{CODE} gone": "can't read the items",
    f"{CODE} text": "can't read the items",
    f"{CODE} items-pipe": "it is a pipe or a device",
    f"evaluation likelihood {KNOWN} --set arc-easy --items items-deep": "have another form",
    f"evaluation likelihood {KNOWN} --set arc-easy --items items-folder": "it is a folder",
    f"evaluation likelihood {KNOWN} --set arc-easy --items items-list": "another form",
    # flags
    f"sample.py {KNOWN} --temperature 1e-30": "--temperature",
    f"sample.py {KNOWN} --temperature 1e30": "--temperature",
    f"sample.py {KNOWN} --temperature inf": "--temperature",
    f"sample.py {KNOWN} --temperature nan": "--temperature",
    f"sample.py {KNOWN} --temperature -1": "--temperature",
    f"sample.py {KNOWN} --top-p 1e-300": "--top-p",
    f"sample.py {KNOWN} --top-p nan": "--top-p",
    f"sample.py {KNOWN} --seed -1": "--seed",
    f"sample.py {KNOWN} --seed 1e3": "--seed",
    f"sample.py {KNOWN} --seed 99999999999999999999": "--seed",
    f"sample.py {KNOWN} --bytes 0": "--bytes",
    f"sample.py {KNOWN} --bytes 999999999999": "--bytes",
    f"sample.py {KNOWN} --threshold nan": "--threshold",
    f"sample.py {KNOWN} --threshold 1e9": "--threshold",
    f"sample.py {KNOWN} --alpha inf": "--alpha",
    f"sample.py {KNOWN} --mode blts --alpha 2": "--alpha: 2 is outside [0, 1]",
    f"sample.py {KNOWN} --gamma -1": "--gamma",
    f"sample.py {KNOWN} --draft-size 9999": "--draft-size",
    f"sample.py {KNOWN} --copy 9999": "--copy",
    f"sample.py {KNOWN} --mode bltd --block-size 0": "--block-size",
    f"sample.py {KNOWN} --mode bltdv --block-size -4": "--block-size",
    f"sample.py {KNOWN} --mode bltdv --block-size 9999999999": "--block-size",
    f"fast {KNOWN} --text {'x' * 201}": "this shows up to 200",
    # flags that are not read
    f"sample.py {KNOWN} --mode bltd --draft-size 4": "reads no --draft-size",
    f"sample.py {KNOWN} --mode blt --unmask entropy --copy 3": "reads no --unmask",
    f"sample.py {KNOWN} --mode bltd --gamma 0.01": "with --unmask confidence reads no --gamma",
    f"sample.py {KNOWN} --mode bltd --unmask one-step --alpha 0.5": "one-step reads no --alpha",
    f"sample.py {KNOWN} --mode bltdv --gamma 2": "with --unmask chained reads no --gamma",
    f"sample.py {KNOWN} --mode bltdv --draft-size 4": "reads no --draft-size",
    f"sample.py {KNOWN} --mode blts --block-size 4": "reads no --block-size",
    f"sample.py {KNOWN} --mode lookup --copy 4": "reads no --copy",
    f"sample.py {KNOWN} --draft-size 4": "--mode blt reads no --draft-size",
    f"sample.py {KNOWN} --mode blt --rounds paper": "reads no --rounds paper",
    f"sample.py {KNOWN} --compare --gamma 2": "--compare reads no --gamma here",
    f"sample.py {KNOWN} --compare --unmask one-step --gamma 0.5": "--compare reads no --gamma here",
    f"sample.py {KNOWN} --compare --trace": "--compare shows no --trace",
    f"sample.py {KNOWN} --trace --json": "--json shows no --trace",
    f"sample.py {KNOWN} --compare --block-size 99": "not 99",
    f"evaluation code {KNOWN} --mode bltd --draft-size 4": "reads no --draft-size",
    f"evaluation translate {KNOWN} --rounds paper": "reads no --rounds paper",
    f"scripts.race {KNOWN} --gamma 2 --out race.html": "--compare reads no --gamma here",
    # devices
    f"sample.py {KNOWN} --device meta": "no device 'meta'",
    f"bandwidth.py {KNOWN} --device meta": "no device 'meta'",
    f"sample.py {KNOWN} --device cuda:99": "no device 'cuda:99'",
    f"evaluation bpb {KNOWN} --device meta": "no device 'meta'",
    f"evaluation translate {KNOWN} --temperature 1e99": "--temperature",
    f"{TRAIN} --device meta": "no device 'meta'",
    f"{TRAIN} --lr nan": "--lr",
    f"{TRAIN} --lr inf": "--lr",
    f"{TRAIN} --lr 1e30": "--lr",
    f"{TRAIN} --lr 0": "--lr",
    f"{TRAIN} --batch 0": "--batch",
    f"{TRAIN} --batch 999999999999": "--batch",
    f"{TRAIN} --global-layers 0": "--global-layers",
    f"{TRAIN} --global-layers 99999999": "--global-layers",
    f"{TRAIN} --max-patch 0": "--max-patch",
    f"{TRAIN} --max-patch 99999999999999999999": "--max-patch",
    f"{TRAIN} --patch-size nan": "--patch-size",
    f"{TRAIN} --seed 99999999999999999999": "--seed",
    f"{TRAIN} --minutes inf": "--minutes",
    f"{TRAIN} --minutes 1e300": "--minutes",
    f"{TRAIN} --steps 99999999999999999999": "--steps",
    f"{TRAIN} --cells-per-byte inf": "--cells-per-byte",
    f"{TRAIN} --mask-weight inf": "--mask-weight",
    f"{TRAIN} --chain-width 99999999": "--chain-width",
    f"{TRAIN} --save-every -1": "--save-every",
    f"{TRAIN} --save-every nan": "--save-every",
    "train.py --resume FILE --max-patch 6": "--max-patch 6 can't change",
    "train.py --resume FILE --reset-at-newline": "--reset-at-newline",
    "train.py --resume FILE --data notes": "--data notes can't change",
    "train.py --init-from FILE --max-patch 6": "--max-patch 6 contradicts",
    "patcher.py --text x --kind space --max-patch 99999999999999999999": "--max-patch",
    "patcher.py --text x --kind space --threshold nan": "--threshold",
    "bandwidth.py --bytes-per-token inf": "--bytes-per-token",
}


@pytest.fixture(scope="module")
def folder(trained_file, corpus_file, tmp_path_factory):
    """Files of every bad kind, and one good checkpoint with its text."""
    folder = tmp_path_factory.mktemp("bad")
    text = pathlib.Path(corpus_file).read_bytes()
    for name, data in (("text", text[:9000]), ("notes", b"dear diary"), ("empty", b"")):
        (folder / name).write_bytes(data)
    (folder / "notes.svg").write_bytes(b"dear diary")
    (folder / "no-text.jsonl").write_text('{"text": "good"}\n{"title": "bad"}\n')
    (folder / "cut.gz").write_bytes(gzip.compress(text)[:2000])
    (folder / "link-to-text").symlink_to("text")
    (folder / "dangling-link").symlink_to("no/such/file")
    for name in ("folder", "items-pipe", "items-deep", "items-list", "items-folder/arc_easy.jsonl"):
        (folder / name).mkdir(parents=True)
    (folder / "folder/text").write_bytes(text[:9000])
    (folder / "items-deep/arc_easy.jsonl").write_text("[" * 10**5)
    (folder / "items-list/arc_easy.jsonl").write_text("[1, 2]\n")
    os.mkfifo(folder / "pipe")
    os.mkfifo(folder / "items-pipe/HumanEval.jsonl.gz")
    for name, size in (("endless", 1 << 34), ("vast", 1 << 40)):
        with open(folder / name, "wb") as file:
            file.truncate(size)  # holes, which take no room
    good = trained_file.read_bytes()
    (folder / "FILE").write_bytes(good)
    (folder / "cut.pt").write_bytes(good[:9000])
    place = good.index(b"decoder.head") + len(good) // 2
    (folder / "rotten.pt").write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
    torch.save({"weights": torch.zeros(3)}, folder / "foreign.pt")
    for name, (edit, _) in {**DAMAGED, **NOT_RESUMED}.items():
        saved = torch.load(trained_file, weights_only=True)
        edit(saved)
        torch.save(saved, folder / f"{name}.pt")
    return folder


def seen(folder):
    """All that is there: kinds, sizes, times and link targets of files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        found[str(path)] = about.st_mode, about.st_size, about.st_mtime_ns, about.st_ino
    return found


def main_of(name):
    """What a command runs; the files of the method run functions of measure/ideas.py."""
    module = name.removesuffix(".py")
    if hasattr(ideas, module) and name.endswith(".py"):
        return getattr(ideas, module)
    if name in ("evaluation", "fast"):
        module += ".__main__"
    return importlib.import_module(module).main


def refused(line, folder, monkeypatch, capsys):
    """Run a command line as a script does -> the one line that it says."""
    name, *arguments = line.replace("%0A", "\n").split(" ")
    main = main_of(name)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(terminal, "take_signals", lambda handler: {})
    before, threads = seen(folder), torch.get_num_threads()
    with pytest.raises(SystemExit) as end:
        terminal.run(lambda: main(arguments), name)
    torch.set_num_threads(threads)
    said = capsys.readouterr().err
    assert end.value.code == 2, said
    assert said.startswith(f"{name}: ") and said.count("\n") == 1, said
    assert seen(folder) == before
    return said


@pytest.mark.parametrize("line", LINES)
def test_a_bad_line_is_refused_in_one(line, folder, monkeypatch, capsys):
    assert LINES[line] in refused(line, folder, monkeypatch, capsys)


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_checkpoint_is_refused_by_the_key(name, folder, monkeypatch, capsys):
    said = refused(f"sample.py --checkpoint {name}.pt --bytes 4", folder, monkeypatch, capsys)
    assert DAMAGED[name][1] in said and f"{name}.pt" in said or "unknown patcher" in said


@pytest.mark.parametrize("name", NOT_RESUMED)
def test_a_run_that_cannot_go_on_is_refused_by_the_key(name, folder, monkeypatch, capsys):
    said = refused(f"train.py --resume {name}.pt", folder, monkeypatch, capsys)
    assert NOT_RESUMED[name][1] in said and (f"{name}.pt" in said or "hash" in said)


def test_the_table_is_long_enough_and_over_all_commands():
    assert len(LINES) + len(DAMAGED) + len(NOT_RESUMED) >= 170
    scripts = {line.split()[0] for line in LINES}
    assert scripts >= {"train.py", "sample.py", "data.py", "patcher.py", "bandwidth.py"}
    assert scripts >= {"evaluation", "scripts.export", "scripts.race", "tests.fuzzing", "fast"}
