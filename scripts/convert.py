"""Official BLT weights as Hugging Face transformers keeps them -> a checkpoint of ours.

    python -m scripts.convert FOLDER blt-1b.pt
    python sample.py --checkpoint blt-1b.pt --mode blts --prompt "Bytes are "

Most tensors are ours by another name; some lie below each other in one of ours. Rows of q and k
change their order: RoPE turns neighbours there and halves here. All is copied from mapped files
into a mapped one, in its own number format, so that size does not matter.
"""

import functools
import json
import os
from dataclasses import asdict
from pathlib import Path

from torch._subclasses import FakeTensorMode
from tqdm import tqdm

from model import BLT, BLTConfig
from patcher import Patcher, PatcherConfig
from support import checkpoint
from support.terminal import BadInput, Parser, package, read_file, run

# Our names -> theirs: of sizes; of parts, where "model" is what our Patcher calls its entropy
# model; and of matrices, each with those that lie below each other in it. FIXED: options of theirs
# that we have in one way only.
SIZES, FIXED, PLACES, PIECES = json.loads(Path(__file__).with_suffix(".json").read_text()).values()
LONGEST = "max_position_embeddings"

# ---- config.json -> our configurations


class Options(dict):
    """An object of config.json, which says what it lacks."""

    def __getitem__(self, name):
        if self.get(name) is None:
            raise BadInput(f"config.json says nothing of {name}")
        return self.get(name)


def read_json(path):
    """-> Options. Raises BadInput for anything else."""
    try:
        found = json.loads(read_file(path, "the weights:"), object_hook=Options)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise BadInput(f"{path} is damaged: download it again")
    return found


def sizes_of(name, known):
    """SIZES of a part of config.json. Raises BadInput, with its name, for what we don't have."""
    rope = known[name].get("rope_parameters") or known[name].get("rope_scaling") or {}
    part = Options({**known, **known[name], **rope})
    fixed = dict(FIXED, cross_attn_k=known["cross_attn_k"])
    fixed["num_key_value_heads"] = part["num_attention_heads"]
    if part["num_hidden_layers"] > 1:  # else all layers are one
        fixed["cross_attn_all_layers"] = name == "decoder_config"
    for option, value in fixed.items():
        if part.get(option, value) not in (value, None):
            problem = f"config.json: {name} has {option} {part[option]}"
            raise BadInput(f"{problem}, this project can do {value} only")
    return {ours: part[theirs] for ours, theirs in SIZES.items()}


def configurations(folder):
    """config.json -> (BLTConfig, PatcherConfig)."""
    known = read_json(os.path.join(folder, "config.json"))
    parts = ("encoder_config", "decoder_config", "global_config", "patcher_config")
    if known.get("model_type") != "blt" or not all(isinstance(known[p], dict) for p in parts):
        raise BadInput(f"the config.json in {folder} is of no BLT: give the folder of one")
    local, decoder, globe, patcher = (sizes_of(name, known) for name in parts)
    layers = {"encoder_layers": local.pop("layers"), "decoder_layers": decoder.pop("layers")}
    if local != decoder or globe.pop("rope_base") != local["rope_base"]:
        raise BadInput("config.json: encoder, decoder and global model differ where ours do not")
    # Older files have no windows: the weights were published with 512. null is all there may be.
    local["window"] = known.get("local_attention_window_len", 512) or known[parts[0]][LONGEST]
    patcher["window"] = known[parts[3]].get("sliding_window", 512) or known[parts[3]][LONGEST]
    globe["window"] = known[parts[2]][LONGEST]  # it has none
    local["max_patch"] = patcher["max_patch"] = known.get("max_patch_length") or 0
    return BLTConfig(
        **(local | layers),
        **{f"global_{name}": size for name, size in globe.items()},
        ngram_table_size=known["encoder_hash_byte_group_vocab"],
        patch_vectors=known["cross_attn_k"],
        byte_states=True,
        double_residual=True,
        global_norm=False,
    ), PatcherConfig(threshold=known["patching_threshold"], **patcher)


# ---- their tensors under our names


def sources(name):
    """Names of their tensors that lie below each other in ours of that name."""
    name = name.removesuffix(".weight")
    place = max((p for p in PLACES if f"{name}.".startswith(f"{p}.")), key=len)
    if place == name:
        return [f"{PLACES[place]}.weight"]
    before, _, last = (PLACES[place] + name.removeprefix(place)).rpartition(".")
    pieces = PIECES.get(last, [last])
    if "cross" in place:
        pieces = [piece.removeprefix("self_attn.") for piece in pieces]
    return [f"{before}.{piece}.weight" for piece in pieces]


def open_tensors(folder):
    """-> {name: tensor, mapped from its file}. Raises BadInput for a file that is not whole."""
    safetensors, tensors = package("safetensors", "scripts.convert"), {}
    index, files = os.path.join(folder, "model.safetensors.index.json"), ["model.safetensors"]
    if os.path.exists(index):
        files = sorted(set(read_json(index)["weight_map"].values()))
    for path in (os.path.join(folder, file) for file in files):
        try:
            shard = safetensors.safe_open(path, framework="pt")
        except (OSError, safetensors.SafetensorError) as problem:
            raise BadInput(f"{path} is missing or damaged, download it: {problem}") from None
        tensors |= {name: shard.get_tensor(name) for name in list(shard.keys())}
    return tensors


def check_tensors(theirs, ours):
    """Raises BadInput, with their names, for tensors that do not make up ours."""
    shapes = {}
    for name, tensor in ours.items():
        pieces = sources(name)
        shapes |= dict.fromkeys(pieces, (tensor.shape[0] // len(pieces), *tensor.shape[1:]))
    both = shapes.keys() & theirs.keys()
    model = {name: x.dtype for name, x in theirs.items() if not name.startswith("model.patcher.")}
    wrong = {
        "missing": shapes.keys() - both,
        "unexpected": theirs.keys() - both,
        "of another shape": {name for name in both if theirs[name].shape != shapes[name]},
        "of another number format": {x for x in model if model[x] != model.get("lm_head.weight")},
    }
    for what, names in wrong.items():
        if names:
            some = ", ".join(sorted(names)[:3])
            raise BadInput(f"{len(names)} tensors {what}, this is no whole BLT of ours: {some}")


def fill(theirs, heads, saved):
    """Copy their tensors to where ours lie in the file. heads: by our names of parts."""
    for name, tensor in tqdm({**saved["model"], **saved["patcher"]}.items(), leave=False):
        pieces = sources(name)
        for rows, piece in zip(tensor.chunk(len(pieces)), pieces):
            source = theirs[piece]
            if piece.endswith(("self_attn.q_proj.weight", "self_attn.k_proj.weight")):
                # (H C, D) -> (H, C / 2, 2, D) -> (H, 2, C / 2, D)
                source = source.view(heads[name.split(".")[0]], -1, 2, source.shape[1])
                source = source.transpose(1, 2).reshape(rows.shape)
            rows.copy_(source)


def options_from(argv):
    parser = Parser(prog="scripts.convert", description="Convert official BLT weights.")
    parser.add_argument("folder", help="config.json and safetensors, as transformers has them")
    parser.add_argument("target", help="checkpoint to write")
    return parser.parse_args(argv)


def main(argv=None):
    """Nothing is written before all is checked."""
    options = options_from(argv)
    config, patcher_config = configurations(options.folder)
    theirs = open_tensors(options.folder)
    with FakeTensorMode():  # shapes alone
        model, patcher = BLT(config).state_dict(), Patcher(patcher_config).state_dict()
    check_tensors(theirs, {**model, **patcher})
    dtype = theirs["lm_head.weight"].dtype
    model = {name: x.to(dtype) for name, x in model.items()}
    contents = {"config": asdict(config), "patcher_config": asdict(patcher_config), "results": {}}
    contents |= {"model": model, "patcher": patcher, "as_stored": True}
    heads = dict(encoder=config.heads, globe=config.global_heads, decoder=config.heads)
    heads["model"] = patcher_config.heads
    checkpoint.save(options.target, contents, functools.partial(fill, theirs, heads))
    print(f"{options.target}: {os.path.getsize(options.target):,} bytes, {dtype}")


if __name__ == "__main__":
    run(main, "scripts.convert")
