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

from torch._subclasses import FakeTensorMode
from tqdm import tqdm

from model import BLT, BLTConfig
from patcher import Patcher, PatcherConfig
from support import checkpoint
from support.terminal import BadInput, Parser, package, read_file, run

# Our names of sizes -> theirs, in each part of config.json
SIZES = {
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "layers": "num_hidden_layers",
    "rope_base": "rope_theta",
}
# Options of theirs that we have in one way only
FIXED = {
    "vocab_size": 260,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_type": "default",
    "patching_mode": "entropy",
    "encoder_hash_byte_group_nb_functions": 1,
    "encoder_hash_byte_group_size": [3, 4, 5, 6, 7, 8],
}
# Our modules -> theirs, where the names of what is inside of them begin otherwise
MODULES = {
    "encoder": "model.local_encoder",
    "encoder.hashes": "model.encoder_hash_tok_embedding",
    "encoder.cross": "model.local_encoder.cross_attn_layers.0",
    "encoder.to_global": "model.global_transformer.token_embedding_projection",
    "globe": "model.global_transformer",
    "decoder": "model.local_decoder",
    "decoder.crosses": "model.local_decoder.cross_attn_layers",
    "decoder.head": "lm_head",
    "model": "model.patcher",  # what our Patcher calls its entropy model
}
# The last part of our names of matrices -> theirs, which lie below each other in ours
MATRICES = {
    "embed": ["embed_tokens"],
    "head": ["lm_head"],
    "query": ["patch_embedding_projection"],
    "split": ["patch_embedding_projection"],
    "attention_norm": ["input_layernorm"],
    "ffn_norm": ["post_attention_layernorm"],
    "query_norm": ["q_norm"],
    "source_norm": ["k_norm"],
    "q": ["q_proj"],
    "kv": ["k_proj", "v_proj"],
    "qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "out": ["self_attn.o_proj"],
    "gate_up": ["mlp.gate_proj", "mlp.up_proj"],
    "down": ["mlp.down_proj"],
}
LONGEST = "max_position_embeddings"
PARTS = ("encoder_config", "decoder_config", "global_config", "patcher_config")

# ---- config.json -> our configurations


def read_json(path):
    """A JSON file that holds an object -> dict. Raises BadInput for anything else."""
    try:
        found = json.loads(read_file(path, "the weights:"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BadInput(f"{path} is damaged: download it again")
    return found


def option_of(known, name):
    """What config.json, or a part of it, says of an option. Raises BadInput if that is nothing."""
    if known.get(name) is None:
        raise BadInput(f"config.json says nothing of {name}")
    return known[name]


def sizes_of(name, known):
    """SIZES of a part of config.json. Raises BadInput, with its name, for what we don't have."""
    part = {**known, **known[name]}
    # Newer files keep what belongs to RoPE by itself.
    part.update(known[name].get("rope_parameters") or known[name].get("rope_scaling") or {})
    vectors = option_of(known, "cross_attn_k")
    fixed = {**FIXED, "cross_attn_k": vectors}
    fixed["num_key_value_heads"] = option_of(part, "num_attention_heads")
    if option_of(part, "num_hidden_layers") > 1:  # else all layers are one
        fixed["cross_attn_all_layers"] = name == "decoder_config"
    for option, value in fixed.items():
        if part.get(option, value) not in (value, None):
            problem = f"config.json: {name} has {option} {part[option]}"
            raise BadInput(f"{problem}, this project can do {value} only")
    return {ours: option_of(part, theirs) for ours, theirs in SIZES.items()}


def configurations(folder):
    """config.json -> (BLTConfig, PatcherConfig)."""
    known = read_json(os.path.join(folder, "config.json"))
    if known.get("model_type") != "blt":
        raise BadInput(f"the config.json in {folder} is of no BLT: give the folder of one")
    for name in PARTS:
        if not isinstance(option_of(known, name), dict):
            raise BadInput(f"the config.json in {folder} is of no BLT: give the folder of one")
    local, decoder, globe, patcher = (sizes_of(name, known) for name in PARTS)
    encoder_layers = local.pop("layers")
    decoder_layers = decoder.pop("layers")
    if local != decoder or globe.pop("rope_base") != local["rope_base"]:
        raise BadInput("config.json: encoder, decoder and global model differ where ours do not")
    # Older files have no windows: the weights were published with 512. null is all there may be.
    window = known.get("local_attention_window_len", 512)
    sight = known["patcher_config"].get("sliding_window", 512)
    longest_patch = known.get("max_patch_length") or 0
    config = BLTConfig(
        **local,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        window=window or option_of(known["encoder_config"], LONGEST),
        **{f"global_{name}": size for name, size in globe.items()},
        global_window=option_of(known["global_config"], LONGEST),  # it has no window
        max_patch=longest_patch,
        ngram_table_size=option_of(known, "encoder_hash_byte_group_vocab"),
        patch_vectors=option_of(known, "cross_attn_k"),
        byte_states=True,
        double_residual=True,
        global_norm=False,
    )
    patcher_config = PatcherConfig(
        **patcher,
        threshold=option_of(known, "patching_threshold"),
        window=sight or option_of(known["patcher_config"], LONGEST),
        max_patch=longest_patch,
    )
    return config, patcher_config


# ---- their tensors under our names


def sources(name):
    """Names of their tensors that lie below each other in ours of that name."""
    name = name.removesuffix(".weight")
    module = max((m for m in MODULES if f"{name}.".startswith(f"{m}.")), key=len)
    if module == name:
        return [f"{MODULES[module]}.weight"]
    before, _, last = (MODULES[module] + name.removeprefix(module)).rpartition(".")
    matrices = MATRICES.get(last, [last])
    if "cross" in module:  # it is one attention, they do not say so again
        matrices = [matrix.removeprefix("self_attn.") for matrix in matrices]
    return [f"{before}.{matrix}.weight" for matrix in matrices]


def open_tensors(folder):
    """-> {name: tensor, mapped from its file}. Raises BadInput for a file that is not whole."""
    safetensors = package("safetensors", "scripts.convert")
    index = os.path.join(folder, "model.safetensors.index.json")
    files = ["model.safetensors"]
    if os.path.exists(index):
        files = sorted(set(option_of(read_json(index), "weight_map").values()))
    tensors = {}
    for file in files:
        path = os.path.join(folder, file)
        try:
            shard = safetensors.safe_open(path, framework="pt")
        except (OSError, safetensors.SafetensorError) as problem:
            raise BadInput(f"{path} is missing or damaged, download it: {problem}") from None
        for name in list(shard.keys()):
            tensors[name] = shard.get_tensor(name)
    return tensors


def check_tensors(theirs, ours):
    """Raises BadInput, with their names, for tensors that do not make up ours."""
    shapes = {}  # that theirs should have
    for name, tensor in ours.items():
        pieces = sources(name)
        for piece in pieces:
            shapes[piece] = (tensor.shape[0] // len(pieces), *tensor.shape[1:])
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
        model = BLT(config).state_dict()
        patcher = Patcher(patcher_config).state_dict()
    check_tensors(theirs, {**model, **patcher})
    dtype = theirs["lm_head.weight"].dtype
    contents = {
        "config": asdict(config),
        "patcher_config": asdict(patcher_config),
        "results": {},
        "model": {name: x.to(dtype) for name, x in model.items()},
        "patcher": patcher,
        "as_stored": True,
    }
    heads = {
        "encoder": config.heads,
        "globe": config.global_heads,
        "decoder": config.heads,
        "model": patcher_config.heads,
    }
    checkpoint.save(options.target, contents, functools.partial(fill, theirs, heads))
    print(f"{options.target}: {os.path.getsize(options.target):,} bytes, {dtype}")


if __name__ == "__main__":
    run(main, "scripts.convert")
