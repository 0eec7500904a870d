"""support/hardware.py: what is chosen by measuring."""

import pytest
import torch

from support import hardware


@pytest.mark.parametrize("shared, alone, left", [(1.0, 0.2, 1), (1.0, 1.05, 1), (1.0, 1.5, 2)])
def test_the_quicker_number_of_threads_is_kept(monkeypatch, shared, alone, left):
    """With one core busy, two threads once wrote 8 bytes a second where one wrote 300."""
    before, seconds = torch.get_num_threads(), {2: shared, 1: alone}
    monkeypatch.setattr(hardware, "median_seconds", lambda *_: seconds[torch.get_num_threads()])
    try:
        torch.set_num_threads(2)
        hardware.choose_threads(lambda: None)
        assert torch.get_num_threads() == left
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "cpuinfo, dtype",
    [
        ("flags\t\t: fpu avx512_bf16 amx_bf16\n", torch.bfloat16),
        ("Features\t: fp asimd bf16\n", torch.bfloat16),
        ("flags\t\t: fpu avx2\n", torch.float32),
        ("", torch.float32),
    ],
)
def test_the_number_format_is_the_hardwares(monkeypatch, tmp_path, cpuinfo, dtype):
    """A stopwatch once chose float32 on an H100, and Muon by how busy a CPU was."""
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)
    flags = hardware.processor_flags(path)
    monkeypatch.setattr(hardware, "processor_flags", lambda: flags)
    assert hardware.choose_dtype("auto", "cpu") == dtype


@pytest.mark.parametrize("has", [True, False])
def test_a_gpu_is_asked_for_its_number_formats(monkeypatch, has):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    expected = torch.bfloat16 if has else torch.float32
    assert hardware.choose_dtype("auto", "cuda") == expected
    assert hardware.choose_dtype("float32", "cuda") == torch.float32
    assert hardware.processor_flags("/no/such/file") == set()


@pytest.mark.parametrize("device, times", [("cpu", 0), ("mps", 10), ("cuda", 10)])
def test_what_is_timed_has_ended(device, times, monkeypatch):
    """Guards: an accelerator other than CUDA, of which only the launches were timed."""
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    hardware.median_seconds_in_turn({"a": lambda: None, "b": lambda: None}, 2, device)
    assert waited == [device] * times


def test_cudnn_attends_nowhere(monkeypatch):
    """It builds a plan for every shape, and here each batch has another."""
    asked = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", asked.append)
    assert hardware.choose_device("cpu") == "cpu" and not asked
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert hardware.choose_device("auto") == "cuda" and asked == [False]
