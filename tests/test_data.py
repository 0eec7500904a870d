"""data.py: ids, corpora, splits, crops."""
import pytest
import torch

from data import BOS, EOS, Corpus, Crops, decode, default_corpus, document_ids, encode, read_corpus
from terminal import BadInput


def test_any_bytes_survive_the_round_trip():
    everything = bytes(range(256))
    assert decode(encode(everything)) == everything
    ids = document_ids(everything)
    assert ids[0] == BOS and ids[-1] == EOS and decode(ids.tolist()) == everything


def test_default_corpus_is_code_and_prose_without_tests():
    corpus = default_corpus()
    names = [name for name, _ in corpus.documents]
    assert 4e6 < corpus.size < 12e6
    assert "argparse.py" in names and "json/decoder.py" in names
    assert not any(part in ("test", "idlelib", "site-packages") for name in names for part in name.split("/"))
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
    corpus = read_corpus([tmp_path])
    assert corpus.documents == [("b.txt", b"text"), ("sub/a.bin", b"\xff\x00\xfe")]
    assert corpus.sha256 != read_corpus([tmp_path / "b.txt"]).sha256


def test_bad_corpora_are_refused(tmp_path):
    (tmp_path / "one").write_bytes(b"x")
    for path in (tmp_path / "missing", tmp_path / "one"):
        with pytest.raises(BadInput, match=path.name):
            read_corpus([path])


def test_crops_visit_every_window_once_an_epoch_and_depend_on_the_index_alone():
    ids = torch.arange(1000).short() % 250
    closes = torch.zeros(1000, dtype=torch.bool)
    crops = Crops(ids, closes, 16, seed=3)
    starts = [crops.start(i) for i in range(crops.per_epoch)]
    assert sorted(starts) == list(range(min(starts), min(starts) + 16 * crops.per_epoch, 16))
    assert [crops.start(i) for i in range(crops.per_epoch)] != [crops.start(i + crops.per_epoch) for i in range(crops.per_epoch)]
    again = Crops(ids, closes, 16, seed=3)
    assert [again.start(i) for i in (70, 5, 130)] == [crops.start(i) for i in (70, 5, 130)]
    batch, batch_closes = crops.batch(4, 2)
    assert batch.shape == (2, 17) and batch_closes.shape == (2, 16) and batch_closes[:, 0].all() and not batch_closes[:, 1:].any()


def test_text_shorter_than_two_windows_is_refused():
    with pytest.raises(BadInput, match="less than two windows"):
        Crops(torch.zeros(30), torch.zeros(30), 16, seed=0)
