"""patcher.py: boundaries are causal, final, and the same however the text is cut."""

import math
import os

import pytest
import torch
from conftest import make_models, random_ids

import patcher as patching
from data import BOS, EOS, decode, document_ids, encode
from patcher import (
    KINDS,
    calibrate,
    entropy,
    fill_patches,
    mean_patch,
    patcher_from,
)
from support import checkpoint
from support.terminal import BadInput


def slow_closes(signals, max_patch):
    """The rule of the paper, byte by byte."""
    closes, held = [], 0
    for i, signal in enumerate(signals):
        held += 1
        closes.append(i == 0 or bool(signal) or held == max_patch)
        if closes[-1]:
            held = 0
    return closes


def patches_of(patcher, text):
    """Bytes -> list of the patches that close, bytes each, BOS left out."""
    ids = torch.tensor([BOS] + encode(text))
    patches, held = [], b""
    for id_, closes in zip(ids[1:], patcher.closes(ids)[1:].tolist()):
        held += decode([id_])
        if closes:
            patches.append(held)
            held = b""
    return patches


# ---- boundaries


@pytest.mark.parametrize("max_patch", [1, 2, 4, 8])
def test_fill_patches_equals_the_rule_byte_by_byte(max_patch):
    for seed in range(5):
        signals = torch.rand(200, generator=torch.Generator().manual_seed(seed)) < 0.15
        assert fill_patches(signals, max_patch).tolist() == slow_closes(signals, max_patch)


def test_entropy_of_known_distributions():
    assert entropy(torch.zeros(1, 260)).item() == pytest.approx(math.log(260))
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
    """Guards: batch rows sharing one entropy stream, so that neighbours decide a row's patches."""
    _, patcher = make_models(3)
    rows = torch.stack([random_ids(80, s) for s in range(4)])
    together = entropy(patcher.model(rows))
    for row, H in zip(rows, together):
        assert torch.allclose(patcher.entropies(row), H, atol=1e-12)


def test_stride_and_space_patches():
    _, stride = make_models(0, kind="stride", max_patch=3)
    assert stride.closes(random_ids(10)).tolist() == [True] + [False, False, True] * 3
    _, space = make_models(0, kind="space")
    # A patch ends behind the first byte that is no letter; the spaces that follow open the next.
    assert patches_of(space, b"ab  cd_1 (e") == [b"ab ", b" cd_1 "]


def test_monotonic_boundaries_are_differences_of_entropies():
    """A loop over the entropies: H_i - H_{i-1} above the threshold, or a full patch."""
    _, patcher = make_models(2, kind="monotonic")
    ids = random_ids(200, 3, alphabet=60)
    H = patcher.entropies(ids).tolist()
    threshold = patcher.config.threshold
    signals = [False] + [b - a > threshold for a, b in zip(H, H[1:])]
    assert patcher.closes(ids).tolist() == slow_closes(signals, 8) and 20 < sum(signals) < 180


@pytest.mark.parametrize("kind", KINDS)
def test_eos_closes_its_patch(kind):
    """Guards: patches that span two documents, because EOS almost never closed its own."""
    _, patcher = make_models(0, kind=kind)
    for n in range(1, 12):
        ids = torch.cat([random_ids(n, n), torch.tensor([EOS])])
        assert patcher.closes(ids)[-1], n


@pytest.mark.parametrize("kind", KINDS)
def test_no_patch_of_packed_documents_spans_two(kind):
    """Whichever document follows whichever: what is open at its end closes with its EOS."""
    _, patcher = make_models(1, kind=kind)
    documents = [document_ids(text) for text in (b"", b"a", b"some text, and more", b"\xff" * 9)]
    closes = [patcher.closes(ids) for ids in documents]
    assert [len(c) for c in closes] == [len(d) for d in documents]
    ids, packed = torch.cat(documents), torch.cat(closes)
    patch = packed.long().cumsum(0) - packed.long()
    document = (ids == BOS).long().cumsum(0)
    for number in range(int(patch.max()) + 1):
        assert len(set(document[patch == number].tolist())) == 1, number


# ---- calibration


@pytest.mark.parametrize("kind", ["entropy", "monotonic"])
@pytest.mark.parametrize("target", [1.5, 4.0, 6.0])
def test_calibration_meets_its_target(kind, target):
    _, patcher = make_models(4, kind=kind)
    documents = [random_ids(3000, s, alphabet=60) for s in range(3)]
    assert calibrate(patcher, documents, target) == pytest.approx(target, abs=0.1)
    assert mean_patch([patcher.closes(d) for d in documents]) == pytest.approx(target, abs=0.1)


def test_half_precision_never_reaches_the_patcher():
    _, patcher = make_models(0)
    assert next(patcher.bfloat16().parameters()).dtype == torch.float32
    saved = {"patcher_config": {"width": 16, "heads": 1, "hidden": 24, "window": 12}}
    saved["patcher"] = {name: x.half() for name, x in make_models(0)[1].state_dict().items()}
    assert next(patcher_from(saved).parameters()).dtype == torch.float32


# ---- run


def test_report_prints_patches_mean_and_histogram(capsys):
    patching.main(["--text", os.fsdecode(b"def main():\n    return \xff")])
    out = capsys.readouterr().out
    assert "|" in out.splitlines()[0] and "mean" in out and "bytes" in out and "\x1b" not in out


TEXT = "def main(argv=None):\n    return [line.strip() for line in sys.stdin]\n" * 3


def shown_mean(capsys, *arguments):
    """The mean patch that `python patcher.py ...` prints."""
    patching.main(["--text", TEXT, *map(str, arguments)])
    out = capsys.readouterr().out
    return float(out.split(" patches, mean ")[1].split()[0])


def test_another_kind_is_calibrated_on_the_text_shown(trained_file, capsys):
    """Guards: the entropy rule's threshold of some nats used for a difference of entropies.

    No boundary ever opened: every patch was full.
    """
    shown = shown_mean(capsys, "--checkpoint", trained_file, "--kind", "monotonic")
    assert shown == pytest.approx(4.0, abs=0.6)
    trained = checkpoint.load(trained_file)["patcher_config"]["threshold"]
    same = shown_mean(capsys, "--checkpoint", trained_file, "--kind", "entropy")
    assert same == shown_mean(capsys, "--checkpoint", trained_file)
    assert same == shown_mean(capsys, "--checkpoint", trained_file, "--threshold", trained)


def test_a_threshold_that_is_given_is_used(trained_file, capsys):
    given = ["--checkpoint", trained_file, "--kind", "monotonic", "--threshold"]
    assert shown_mean(capsys, *given, 99) == pytest.approx(8, abs=0.2)  # never: patches are full
    assert shown_mean(capsys, *given, -99) == 1.0  # always
    assert shown_mean(capsys, *given, 99, "--max-patch", 5) == pytest.approx(5, abs=0.1)


def test_unknown_kinds_are_refused():
    with pytest.raises(BadInput, match="unknown patcher 'moon'"):
        make_models(0, kind="moon")
