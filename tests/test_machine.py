"""support/machine.py: what is chosen by measuring."""

import pytest
import torch

from support import machine


@pytest.mark.parametrize("shared, alone, left", [(1.0, 0.2, 1), (1.0, 1.05, 1), (1.0, 1.5, 2)])
def test_the_quicker_number_of_threads_is_kept(monkeypatch, shared, alone, left):
    """With one core busy, two threads once wrote 8 bytes a second where one wrote 300."""
    before, seconds = torch.get_num_threads(), {2: shared, 1: alone}
    monkeypatch.setattr(machine, "median_seconds", lambda *_: seconds[torch.get_num_threads()])
    try:
        torch.set_num_threads(2)
        machine.choose_threads(lambda: None)
        assert torch.get_num_threads() == left
    finally:
        torch.set_num_threads(before)
