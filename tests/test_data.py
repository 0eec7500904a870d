"""data.py: ids, corpora, splits, crops."""

import hashlib

import pytest
import torch

import data
from data import BOS, EOS, Corpus, Crops, corpus_of, decode, default_corpus, document_ids, encode
from support.terminal import BadInput

# ---- ids


def test_any_bytes_survive_the_round_trip():
    everything = bytes(range(256))
    assert decode(encode(everything)) == everything
    ids = document_ids(everything)
    assert ids[0] == BOS and ids[-1] == EOS and decode(ids.tolist()) == everything
    assert document_ids(b"").tolist() == [BOS, EOS]


def test_a_document_takes_two_bytes_an_id():
    """Guards: a corpus kept as int64, eight bytes for each of its own."""
    assert document_ids(b"abc").dtype == torch.int16
    assert torch.cat([document_ids(b"abc"), document_ids(b"\xff")]).dtype == torch.int16


# ---- corpora


def test_default_corpus_is_code_and_prose_without_tests():
    corpus = default_corpus()
    names = [name for name, _ in corpus.documents]
    parts = {part for name in names for part in name.split("/")}
    assert 4e6 < corpus.size < 12e6
    assert "argparse.py" in names and "json/decoder.py" in names
    assert not parts & {"test", "idlelib", "site-packages"}
    train, held_out = corpus.split()
    assert sum(map(len, train)) + sum(map(len, held_out)) == corpus.size
    assert 0.02 < sum(map(len, held_out)) / corpus.size < 0.2
    assert (train, held_out) == default_corpus().split()


def test_few_documents_hold_out_the_end_of_each():
    train, held_out = Corpus([("a", b"x" * 1000), ("b", b"y" * 100)]).split()
    assert list(map(len, train)) == [950, 95] and list(map(len, held_out)) == [50, 5]


def test_folders_files_and_hidden_files(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.bin").write_bytes(b"\xff\x00\xfe")
    (tmp_path / "b.txt").write_bytes(b"text")
    (tmp_path / ".hidden").write_bytes(b"no")
    corpus = corpus_of([tmp_path])
    assert corpus.documents == [("b.txt", b"text"), ("sub/a.bin", b"\xff\x00\xfe")]
    assert corpus.sha256 != corpus_of([tmp_path / "b.txt"]).sha256


def test_bad_corpora_are_refused(tmp_path):
    (tmp_path / "one").write_bytes(b"x")
    for path in (tmp_path / "missing", tmp_path / "one"):
        with pytest.raises(BadInput, match=path.name):
            corpus_of([path])


def test_a_corpus_is_hashed_once(monkeypatch):
    """Guards: the whole corpus hashed again at every save of a training run."""
    corpus, made = Corpus([("a", b"x"), ("b", b"y")]), []

    class Counted:
        @staticmethod
        def sha256(*given):
            made.append(given)
            return hashlib.sha256(*given)

    monkeypatch.setattr(data, "hashlib", Counted)
    first = corpus.sha256
    assert len(made) == 1
    assert corpus.sha256 == first and first[:16] in corpus.describe() and len(made) == 1
    # Worked out here: each name, a zero, the length in eight bytes, the bytes
    parts = b"a\0" + (1).to_bytes(8, "little") + b"x" + b"b\0" + (1).to_bytes(8, "little") + b"y"
    assert first == hashlib.sha256(parts).hexdigest()


# ---- crops


def crops_of(n=1000, length=16, seed=3):
    """Crops of a text in which every id says where it is, with no patch closing anywhere."""
    return Crops(torch.arange(n).short(), torch.zeros(n, dtype=torch.bool), length, seed)


def test_crops_visit_every_window_once_an_epoch_and_depend_on_the_index_alone():
    crops = crops_of()
    starts = [crops.start(i) for i in range(crops.per_epoch)]
    assert sorted(starts) == list(range(min(starts), min(starts) + 16 * crops.per_epoch, 16))
    assert starts != [crops.start(i + crops.per_epoch) for i in range(crops.per_epoch)]
    again = crops_of()
    assert [again.start(i) for i in (70, 5, 130)] == [crops.start(i) for i in (70, 5, 130)]


def test_a_batch_holds_its_crops_and_their_first_byte_closes_its_patch():
    crops = crops_of()
    ids, closes = crops.batch(4, 2)
    assert ids.shape == (2, 17) and closes.shape == (2, 16) and ids.dtype == torch.int64
    assert closes[:, 0].all() and not closes[:, 1:].any()
    for row, index in zip(ids, (4, 5)):
        start = crops.start(index)
        assert row.tolist() == list(range(start, start + 17))


def test_what_chance_does_to_a_crop_depends_on_seed_and_index_alone():
    """Guards: corruption drawn from a generator that moves on with the batches before."""

    def numbers(seed, first, size):
        generators = crops_of(seed=seed).generators(first, size)
        return [torch.rand(4, generator=generator).tolist() for generator in generators]

    alone = [numbers(3, i, 1)[0] for i in range(8)]
    assert numbers(3, 0, 8) == alone and numbers(3, 5, 3) == alone[5:]
    assert len(set(map(tuple, alone))) == 8 and numbers(4, 5, 1)[0] != alone[5]


def test_text_shorter_than_two_windows_is_refused():
    with pytest.raises(BadInput, match="less than two windows"):
        Crops(torch.zeros(30), torch.zeros(30), 16, seed=0)


# ---- run


def test_it_describes_what_would_be_trained_on(tmp_path, capsys):
    (tmp_path / "a").write_bytes(b"hello world\n" * 50)
    data.main([str(tmp_path)])
    out = capsys.readouterr().out
    assert "sha256" in out and "held out: 1 documents, 30 bytes" in out
    assert f"[{BOS}, " in out and f"{EOS}]" in out
