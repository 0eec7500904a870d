"""scripts/gpu.py: runs here in small; and says what to do where there is no GPU."""

import pytest
import torch

from model import BLT
from scripts import gpu
from support.terminal import BadInput
from training.optim import OPTIMIZERS, make_optimizer
from training.presets import PRESETS


def test_it_fills_its_table_on_a_cpu(trained_file, capsys):
    known = ["--device", "cpu", "--presets", "nano", "--steps", "1", "--bytes", "8"]
    gpu.main([*known, "--checkpoint", str(trained_file)])
    said = capsys.readouterr().out
    assert "cached = plain, float64" in said and "train nano, 4 x 128 bytes, K = 8" in said
    assert said.count("bytes/s") > 5 and "WRONG" not in said


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_training_holds_is_what_there_is_behind_a_step(optimizer):
    """Every tensor of weights, gradients and the optimiser, counts of its steps apart."""
    preset = PRESETS["nano"]
    settings = preset.training.trained_by(optimizer)
    model = BLT(preset.model).init_weights()
    trained = make_optimizer(model, settings)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    trained.step()
    kept = []
    for part in getattr(trained, "parts", {"": trained}).values():
        kept += [x for state in part.state.values() for x in state.values() if x.ndim]
    weights = list(model.parameters())
    expected = [
        sum(x.nbytes for x in tensors) for tensors in (weights, [p.grad for p in weights], kept)
    ]
    assert list(gpu.held(model, settings)) == expected
    with torch.device("meta"):
        assert gpu.held(BLT(preset.model), settings) == gpu.held(model, settings)


def test_memory_of_all_presets_is_told_anywhere(capsys):
    gpu.main(["--memory"])
    said = capsys.readouterr().out
    assert all(f"train {name}, adamw" in said for name in PRESETS)
    assert "train nano, muon" in said and said.count("GB held: weights") == 10
    assert said.count("not counted") == 2 and said.count("MB a crop of 512 bytes") == 4


def test_activations_are_what_the_backward_pass_keeps():
    """A crop of `nano` keeps at least the inputs of its layers, and grows with its blocks."""
    without, with_blocks = (gpu.kept_by_a_crop("nano", K) for K in (0, 8))
    c = PRESETS["nano"].model
    rows = gpu.SHAPES["nano"][1] * (c.encoder_layers + c.decoder_layers)
    # Of float32. A layer keeps ten rows of its width at least: its input, two norms' results, q, k,
    # v turned and not, what attention made; and what its SwiGLU has inside; patches and logits come
    # on top. A whole batch of four would be beyond the bound.
    row = 4 * rows * c.width
    assert 10 * row < without < with_blocks < 100 * row
    assert with_blocks < 2 * without


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    with pytest.raises(BadInput, match="there is no GPU here: --device cpu runs"):
        gpu.main([])
