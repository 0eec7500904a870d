"""Corpora that need not fit into memory: packed text, boundaries in a file, both against whole."""

import os

import pytest
import torch
from conftest import make_models, random_ids

import data
import train
from data import Corpus, Crops, corpus_of, document_ids
from fast.patching import calibrate, closes_between
from patcher import KINDS
from support.terminal import BadInput
from training import boundaries
from training.boundaries import MAGIC, Boundaries, Packed

TEXTS = [b"", b"a", b"some text, and more", bytes(range(256)) * 3, b"\xff" * 9]


def texts(seed=0):
    """A few documents of bytes that repeat."""
    return [bytes((random_ids(n, seed + n)[1:] - 4).tolist()) for n in (40, 700, 3, 90, 1500)]


# ---- packed


def test_a_slice_of_packed_documents_is_that_of_all():
    whole, packed = torch.cat([document_ids(text) for text in TEXTS]), Packed(TEXTS)
    assert len(packed) == len(whole)
    for start in range(0, len(whole), 7):
        for stop in (start + 1, start + 2, start + 40, len(whole)):
            piece = packed[start : min(stop, len(whole))]
            assert torch.equal(piece, whole[start:stop]) and piece.dtype == whole.dtype


@pytest.mark.parametrize("text", TEXTS)
def test_ids_of_part_of_a_document(text):
    whole = document_ids(text)
    for start in range(len(whole)):
        for stop in range(start + 1, min(start + 9, len(whole)) + 1):
            assert torch.equal(document_ids(text, start, stop), whole[start:stop])


def test_files_behind_the_limit_are_read_where_they_are_needed(tmp_path, monkeypatch):
    """The same hash, split and crops as of the same files in memory."""
    for number, text in enumerate(texts()):
        (tmp_path / f"{number}.txt").write_bytes(text)
    whole = corpus_of([tmp_path])
    monkeypatch.setattr(data, "IN_MEMORY", 800)
    some = corpus_of([tmp_path])
    assert {type(text.source) for _, text in some.documents} == {bytes, data.LargeFile}
    assert some.sha256 == whole.sha256 and some.size == whole.size
    for ours, theirs in zip(some.split(), whole.split(), strict=True):
        assert list(map(bytes, ours)) == list(map(bytes, theirs))
    crops = [Crops(Packed(corpus.split()[0]), None, 16, seed=1) for corpus in (some, whole)]
    for index in range(0, 40, 4):
        assert torch.equal(crops[0].batch(index, 4)[0], crops[1].batch(index, 4)[0])


def test_a_file_that_changes_while_it_is_read_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "IN_MEMORY", 0)
    (tmp_path / "a.txt").write_bytes(b"text " * 100)
    corpus = corpus_of([tmp_path])
    known = corpus.sha256
    (tmp_path / "a.txt").write_bytes(b"TEXT " * 100)
    os.utime(tmp_path / "a.txt", (1, 1))
    with pytest.raises(BadInput, match="has changed since it was first read"):
        bytes(corpus.documents[0][1])
    assert corpus_of([tmp_path]).sha256 != known


def test_of_much_held_out_text_some_is_enough(monkeypatch):
    corpus = Corpus([(str(i), bytes(200)) for i in range(2000)])
    train_part, held_out = corpus.split()
    monkeypatch.setattr(data, "VALIDATION_BYTES", 1000)
    assert list(corpus.split()[0]) == list(train_part) and sum(map(len, corpus.split()[1])) == 1000
    assert sum(map(len, held_out)) > 10_000


# ---- boundaries


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_pieces_of_a_document_close_as_the_whole(kind, seed):
    """Also where no signal stands near, so that patches are counted off from far in front."""
    _, patcher = make_models(seed, kind=kind)
    quiet = torch.cat([random_ids(300, seed), torch.full((500,), 101), random_ids(200, seed)[1:]])
    if patcher.needs_entropy:
        calibrate(patcher, [quiet], 7.0)
    whole = patcher.closes(quiet)
    for start, stop in [(0, 999), (1, 2), (250, 400), (790, 800), (333, 999), (640, 641)]:
        piece = closes_between(patcher, lambda a, b: quiet[a:b], start, stop, back=4)
        assert torch.equal(piece, whole[start:stop]), (start, stop)


@pytest.mark.parametrize("together", [1, 100, 1 << 20])
@pytest.mark.parametrize("longest", [8, 64, 1 << 22])
def test_boundaries_of_a_file_are_those_of_whole_documents(
    longest, together, tmp_path, monkeypatch
):
    monkeypatch.setattr(boundaries, "LONGEST", longest)
    monkeypatch.setattr(boundaries, "TOGETHER", together)
    _, patcher = make_models(1)
    documents = [document_ids(text) for text in texts()]
    whole = torch.cat([patcher.closes(ids) for ids in documents])
    packed = Packed(texts())
    found = Boundaries(str(tmp_path / "x.patches"), packed, b"key").find(patcher)
    assert torch.equal(found[0 : len(packed)], whole)
    for start in range(0, len(whole) - 50, 13):
        assert torch.equal(found[start : start + 50], whole[start : start + 50])
    closed = sum(int(patcher.closes(ids)[1:].sum()) for ids in documents)
    assert found.mean_patch() == pytest.approx(sum(len(d) - 1 for d in documents) / closed)
    pieces = len(packed) / longest
    assert os.path.getsize(tmp_path / "x.patches") < len(packed) / 8 + pieces + 100


def test_short_documents_are_found_many_a_pass(tmp_path):
    """Guards: one after the other, each a pass of its own."""
    _, patcher = make_models(1)
    packed = Packed([bytes((random_ids(80 + n, n)[1:] - 4).tolist()) for n in range(100)])
    passes = []
    patcher.model.register_forward_hook(lambda *_: passes.append(1))
    found = Boundaries(str(tmp_path / "x.patches"), packed, b"key").find(patcher)
    assert len(passes) <= 25
    whole = torch.cat([patcher.closes(document_ids(text)) for text in packed.documents])
    assert torch.equal(found[0 : len(packed)], whole)


def test_found_pieces_are_not_found_again(tmp_path, monkeypatch):
    """An interrupted search goes on; another text or patcher (another key) begins anew."""
    monkeypatch.setattr(boundaries, "LONGEST", 64)
    _, patcher = make_models(1)
    path, packed = str(tmp_path / "x.patches"), Packed(texts())
    searched = []  # pieces of each search
    ends = 5

    def watched(name):
        real = getattr(boundaries, name)

        def search(*given):
            if sum(searched) >= ends:
                raise KeyboardInterrupt
            # of many short documents, or one of a long one
            searched.append(len(given[1]) if name == "closes_of" else 1)
            return real(*given)

        monkeypatch.setattr(boundaries, name, search)

    watched("closes_of")
    watched("closes_between")
    with pytest.raises(KeyboardInterrupt):
        Boundaries(path, packed, b"key").find(patcher)
    assert sum(searched) == 5
    whole = torch.cat([patcher.closes(document_ids(text)) for text in texts()])
    pieces = len(Boundaries(path, packed, b"key").pieces)
    ends = 1 << 20
    for key, expected in ((b"key", pieces - 5), (b"key", 0), (b"yek", pieces)):
        searched.clear()
        found = Boundaries(path, packed, key).find(patcher)
        assert sum(searched) == expected and torch.equal(found[0 : len(packed)], whole)


def test_another_file_is_never_written_over(tmp_path):
    path = tmp_path / "x.patches"
    path.write_bytes(b"my patches for the garden")
    with pytest.raises(BadInput, match="can't write patches"):
        Boundaries(str(path), Packed(TEXTS), b"key").is_begun()
    assert path.read_bytes() == b"my patches for the garden"
    path.write_bytes(MAGIC + b"cut")  # ours, but broken: it is found anew
    assert not Boundaries(str(path), Packed(TEXTS), b"key").is_begun()


def test_a_second_training_finds_no_patches_again(tmp_path, monkeypatch, capsys):
    (tmp_path / "text").write_bytes(b"".join(texts()) * 4)
    known = ["--data", str(tmp_path / "text"), "--preset", "nano", "--steps", "2", "--length", "32"]
    known += ["--out", str(tmp_path / "x.pt"), "--patcher", "space"]
    train.main(known)
    kept = (tmp_path / "x.pt.patches").read_bytes()

    def never(*_):
        raise AssertionError("patches are found already")

    monkeypatch.setattr(boundaries, "closes_between", never)
    monkeypatch.setattr(boundaries, "closes_of", never)
    train.main(known)
    assert (tmp_path / "x.pt.patches").read_bytes() == kept
    (tmp_path / "y.pt.patches").write_bytes(b"mine")
    with pytest.raises(BadInput, match="can't write patches"):
        train.main([*known[:-4], "--out", str(tmp_path / "y.pt")])
    assert not (tmp_path / "y.pt").exists()
