"""patcher.py and fast/patching.py: boundaries are causal, final, the same however text is cut."""

import math
import os
import random

import pytest
import torch
from conftest import make_models, random_ids

from data import BOS, EOS, decode, document_ids, encode
from fast import patching
from fast.load import patcher_from
from fast.patching import calibrate, closes_between, closes_of, entropies_of, mean_patch
from measure import ideas
from patcher import KINDS, PIECE, Patcher, PatcherConfig, entropy, fill_patches
from support import checkpoint
from support.terminal import BadInput


def slow_closes(signals, max_patch):
    """The rule of the paper, byte by byte."""
    closes = []
    held = 0
    for i, signal in enumerate(signals):
        held += 1
        closes.append(i == 0 or bool(signal) or held == max_patch)
        if closes[-1]:
            held = 0
    return closes


def patches_of(patcher, text):
    """Bytes -> list of the patches that close, bytes each, BOS left out."""
    ids = torch.tensor([BOS] + encode(text))
    patches = []
    held = b""
    for id_, closes in zip(ids[1:], patcher.closes(ids)[1:].tolist()):
        held += decode([id_])
        if closes:
            patches.append(held)
            held = b""
    return patches


# ---- boundaries


@pytest.mark.parametrize("max_patch", [0, 1, 2, 4, 8])
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
    ids = random_ids(3 * PIECE + 164, 2)
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
    assert patcher.closes(ids).tolist() == slow_closes(signals, 8)
    assert 20 < sum(signals) < 180


@pytest.mark.parametrize("kind", KINDS)
def test_signals_of_pieces_are_those_of_the_whole(kind):
    """What stands in front of a piece, `before`, is all that a stream has to keep of it."""
    _, patcher = make_models(2, kind=kind)
    ids = random_ids(90, 3, alphabet=60)
    H = patcher.entropies(ids)
    whole = patcher.signals(ids, H)
    for cut in (1, 2, 40, 89):
        before = (ids[cut - 1].item(), H[cut - 1].item())
        pieces = [patcher.signals(ids[:cut], H[:cut]), patcher.signals(ids[cut:], H[cut:], before)]
        assert torch.equal(torch.cat(pieces), whole), cut


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
    ids = torch.cat(documents)
    packed = torch.cat(closes)
    patch = packed.long().cumsum(0) - packed.long()
    document = (ids == BOS).long().cumsum(0)
    for number in range(int(patch.max()) + 1):
        assert len(set(document[patch == number].tolist())) == 1, number


def test_half_precision_never_reaches_the_patcher():
    _, patcher = make_models(0)
    assert next(patcher.bfloat16().parameters()).dtype == torch.float32
    saved = {"patcher_config": {"width": 16, "heads": 1, "hidden": 24, "window": 12}}
    saved["patcher"] = {name: x.half() for name, x in make_models(0)[1].state_dict().items()}
    assert next(patcher_from(saved).parameters()).dtype == torch.float32


def test_unknown_kinds_are_refused():
    with pytest.raises(BadInput, match="unknown patcher 'moon'"):
        make_models(0, kind="moon")


# ---- many documents at once (fast/patching.py): Patcher, document by document, is the slow twin

LENGTHS = (1, 2, 63, 64, 65, 127, 500, 800, 802, 1023, 1024, 1025, 1088, 2400)


def new_patcher(kind="entropy", seed=0, **shape):
    """A random Patcher in float64 whose boundaries are neither everywhere nor nowhere."""
    torch.manual_seed(seed)
    shape = {"width": 16, "heads": 2, "hidden": 24, "window": 12, **shape}
    patcher = Patcher(PatcherConfig(kind=kind, **shape)).double().eval()
    for p in patcher.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.4)
    ids = random_ids(600, 5, alphabet=60)
    if patcher.needs_entropy:
        scores = patcher.scores(patcher.entropies(ids))[1:]
        patcher.config.threshold = scores.quantile(0.75).item()
    return patcher


def documents_of(lengths, alphabet=60):
    """A document of each length, in int16 as corpora have them; every second ends with EOS."""
    documents = [random_ids(n, n, alphabet).to(torch.int16) for n in lengths]
    for ids in documents[1::2]:
        if len(ids) > 1:
            ids[-1] = EOS
    return documents


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window, layers", [(1, 1), (12, 1), (64, 2), (100, 1), (300, 2)])
def test_documents_together_equal_each_alone(kind, window, layers):
    """Short and long ones, with windows below, at and above a chunk; those that need lead too."""
    patcher = new_patcher(kind, window=window, layers=layers)
    documents = documents_of(LENGTHS)
    together = entropies_of(patcher, documents)
    closes = closes_of(patcher, documents)
    for ids, H, closed in zip(documents, together, closes):
        alone = patcher.entropies(ids)
        assert H.dtype == alone.dtype and H.shape == alone.shape
        assert torch.allclose(H, alone, atol=1e-11), len(ids)
        assert torch.equal(closed, patcher.closes(ids)), len(ids)
    closing = torch.cat(closes).float().mean()
    assert 1 / 8 <= closing < 0.9


@pytest.mark.parametrize("rows", [1, 1 << 10, 1 << 17])
def test_no_grouping_changes_a_document(rows, monkeypatch):
    """Any order, any company, any number of rows a pass."""
    monkeypatch.setitem(patching.ROWS, "cpu", rows)
    patcher = new_patcher()
    documents = documents_of([random.Random(1).choice(LENGTHS) for _ in range(12)])
    expected = [patcher.entropies(ids) for ids in documents]
    for seed in range(3):
        order = random.Random(seed).sample(range(12), 12 - 4 * seed)
        got = entropies_of(patcher, [documents[i] for i in order])
        assert all(torch.allclose(H, expected[i], atol=1e-11) for i, H in zip(order, got))


@pytest.mark.parametrize("lead", [0, 33, 500])
def test_long_documents_are_cut_where_nothing_sees_it(lead):
    """Pieces give each position once, and read in front of it all that it can see."""
    for length in (1, 1023, 1024, 1025, 5000):
        kept = []
        for n, pieces in patching.pieces_of([torch.zeros(length)], lead).items():
            assert n % patching.CHUNK == 0
            for piece in pieces:
                assert piece.first == max(0, piece.start - lead)
                assert n - patching.CHUNK < piece.stop - piece.first <= n
                kept += range(piece.start, piece.stop)
        assert sorted(kept) == list(range(length))


def test_nothing_to_find():
    """No documents at all, and kinds whose entropies nobody needs."""
    assert entropies_of(new_patcher(), []) == [] and closes_of(new_patcher(), []) == []
    (H,) = entropies_of(new_patcher("stride"), [random_ids(50)])
    assert torch.equal(H, torch.zeros(50, dtype=torch.float64))


def test_what_is_found_may_be_trained_with():
    """Guards: tensors of inference mode, which no backward pass can keep."""
    (closes,) = closes_of(new_patcher(), [random_ids(50)])
    weight = torch.randn(50, requires_grad=True)
    (weight * closes).sum().backward()
    assert torch.equal(weight.grad, closes.float())


@pytest.mark.parametrize("max_patch", [0, 5, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_a_part_of_a_long_document_is_that_of_the_whole(kind, max_patch):
    """However far back the last signal lies that patches are counted off from."""
    patcher = new_patcher(kind, max_patch=max_patch)
    text = random_ids(700, 6, alphabet=60)
    quiet = text.clone()
    quiet[100:500] = 104  # the letter d: hardly a signal
    for ids in (text, quiet):
        whole = patcher.closes(ids)
        for start, stop in ((0, 700), (0, 5), (1, 2), (13, 300), (480, 700), (699, 700)):
            for back in (1, 64, 1 << 14):

                def read(first, last, ids=ids):
                    return ids[first:last]

                got = closes_between(patcher, read, start, stop, back)
                assert torch.equal(got, whole[start:stop]), (start, stop, back)


@pytest.mark.parametrize("kind", KINDS)
def test_no_more_of_a_long_document_is_read_than_is_needed(kind):
    patcher = new_patcher(kind)
    text = random_ids(700, 6, alphabet=60)
    starts = []

    def read(start, stop):
        starts.append(start)
        return text[start:stop]

    closes_between(patcher, read, 601, 700, back=64)
    in_front = 1 if kind == "stride" else 64 + patcher.model.receptive_field + 1
    assert starts == [601 - in_front]


# ---- calibration


def test_mean_patch_leaves_out_bos_and_its_patch():
    closes = [torch.tensor([1, 0, 0, 1, 0, 1]).bool(), torch.tensor([1, 1]).bool()]
    assert mean_patch(closes) == 6 / 3
    assert mean_patch([torch.tensor([1, 0, 0]).bool()]) is None
    assert mean_patch([torch.tensor([True])]) is None and mean_patch([]) is None


@pytest.mark.parametrize("kind", ["entropy", "monotonic"])
@pytest.mark.parametrize("target", [1.5, 4.0, 6.0])
def test_calibration_meets_its_target(kind, target):
    _, patcher = make_models(4, kind=kind)
    documents = [random_ids(3000, s, alphabet=60) for s in range(3)]
    assert calibrate(patcher, documents, target) == pytest.approx(target, abs=0.1)
    assert mean_patch([patcher.closes(d) for d in documents]) == pytest.approx(target, abs=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_calibration_returns_the_mean_of_what_it_set(kind):
    """Exactly that of each document alone, though it looks at all of them as one row."""
    patcher = new_patcher(kind)
    documents = documents_of((700, 30, 2, 1, 1500))
    before = patcher.config.threshold
    mean = calibrate(patcher, documents, 3.0)
    assert mean == mean_patch([patcher.closes(ids) for ids in documents])
    assert (patcher.config.threshold != before) == patcher.needs_entropy


@pytest.mark.parametrize("kind", KINDS)
def test_no_patch_has_no_mean(kind):
    """Guards: a mean patch of 0 bytes, and a division by zero."""
    patcher = new_patcher(kind)
    assert calibrate(patcher, [torch.tensor([BOS])]) is None


# ---- run


def test_report_prints_patches_mean_and_histogram(capsys):
    ideas.patcher(["--text", os.fsdecode(b"def main():\n    return \xff")])
    out = capsys.readouterr().out
    assert "|" in out.splitlines()[0] and "mean" in out and "bytes" in out and "\x1b" not in out


TEXT = "def main(argv=None):\n    return [line.strip() for line in sys.stdin]\n" * 3


def shown_mean(capsys, *arguments):
    """The mean patch that `python patcher.py ...` prints."""
    ideas.patcher(["--text", TEXT, *map(str, arguments)])
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
