"""scripts/gpu.py: runs here in small; and says what to do where there is no GPU."""

import pytest
import torch

from scripts import gpu
from support.terminal import BadInput


def test_it_fills_its_table_on_a_cpu(trained_file, capsys):
    known = ["--device", "cpu", "--presets", "nano", "--steps", "1", "--bytes", "8"]
    gpu.main([*known, "--checkpoint", str(trained_file)])
    said = capsys.readouterr().out
    assert "cached = plain, float64" in said and "train nano, 4 x 128 bytes, K = 8" in said
    assert said.count("bytes/s") > 5 and "WRONG" not in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    with pytest.raises(BadInput, match="there is no GPU here: --device cpu runs"):
        gpu.main([])
