"""patcher.py: boundaries are causal, final, and the same however the text is cut."""
import pytest
import torch

import patcher as patching
from conftest import make_models, random_ids
from data import BOS, encode
from patcher import KINDS, calibrate, entropy, fill_patches, mean_patch


def slow_closes(signals, max_patch):
    """The rule of the paper, byte by byte."""
    closes, held = [], 0
    for i, signal in enumerate(signals):
        held += 1
        closes.append(i == 0 or bool(signal) or held == max_patch)
        if closes[-1]:
            held = 0
    return closes


@pytest.mark.parametrize("max_patch", [1, 2, 4, 8])
def test_fill_patches_equals_the_rule_byte_by_byte(max_patch):
    for seed in range(5):
        signals = torch.rand(200, generator=torch.Generator().manual_seed(seed)) < 0.15
        assert fill_patches(signals, max_patch).tolist() == slow_closes(signals, max_patch)


def test_entropy_of_known_distributions():
    assert entropy(torch.zeros(1, 260)).item() == pytest.approx(torch.log(torch.tensor(260.0)).item())
    certain = torch.full((1, 260), -50.0)
    certain[0, 7] = 50.0
    assert entropy(certain).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_has_one_patching_that_later_bytes_never_change(kind):
    """Guards: 'is this byte final?' must not be decided by where the buffer ends."""
    for seed in range(3):
        _, patcher = make_models(seed, kind=kind)
        ids = random_ids(120, seed, alphabet=60)
        whole = patcher.closes(ids)
        for n in (1, 2, 17, 64, 119):
            assert torch.equal(patcher.closes(ids[:n]), whole[:n])
            changed = ids.clone()
            changed[n:] = random_ids(120 - n + 1, seed + 50)[1:]
            assert torch.equal(patcher.closes(changed)[:n], whole[:n])


def test_entropies_of_long_documents_do_not_depend_on_the_pieces():
    _, patcher = make_models(1, patcher_window=12)
    ids = random_ids(1700, 2)
    whole = entropy(patcher.model(ids[None]))[0]
    assert torch.allclose(patcher.entropies(ids), whole, atol=1e-12)


def test_rows_of_a_batch_never_meet():
    """Guards: batch rows sharing one entropy stream, so that a row's patches depend on its neighbours."""
    _, patcher = make_models(3)
    rows = torch.stack([random_ids(80, s) for s in range(4)])
    together = entropy(patcher.model(rows))
    for row, H in zip(rows, together):
        assert torch.allclose(patcher.entropies(row), H, atol=1e-12)


@pytest.mark.parametrize("target", [1.5, 4.0, 6.0])
def test_calibration_meets_its_target(target):
    _, patcher = make_models(4)
    documents = [random_ids(3000, s, alphabet=60) for s in range(3)]
    assert calibrate(patcher, documents, target) == pytest.approx(target, abs=0.1)
    assert mean_patch([patcher.closes(d) for d in documents]) == pytest.approx(target, abs=0.1)


def test_stride_and_space_patches():
    _, stride = make_models(0, kind="stride", max_patch=3)
    assert stride.closes(random_ids(10)).tolist() == [True] + [False, False, True] * 3
    _, space = make_models(0, kind="space")
    ids = torch.tensor([BOS] + encode(b"ab  cd_1 (e"))
    patches, open_ = [], b""
    for i, closes in enumerate(space.closes(ids).tolist()[1:], 1):
        open_ += bytes([ids[i] - 4])
        if closes:
            patches, open_ = patches + [open_], b""
    assert patches == [b"ab ", b" cd_1 "] or patches == [b"ab ", b" cd_1 ", b"("]


def test_half_precision_never_reaches_the_patcher():
    _, patcher = make_models(0)
    assert next(patcher.bfloat16().parameters()).dtype == torch.float32


def test_report_prints_patches_mean_and_histogram(capsys):
    _, patcher = make_models(0)
    patching.report(patcher, b"def main():\n    return \xff")
    out = capsys.readouterr().out
    assert "|" in out.splitlines()[0] and "mean" in out and "bytes" in out and "\x1b" not in out
