"""data.py: ids, corpora, splits, crops."""

import hashlib
import json
import os

import pytest
import torch

import data
import train
from bandwidth import read_prompts
from data import (
    BOS,
    EOS,
    Corpus,
    Crops,
    DocumentIds,
    LargeFile,
    Text,
    corpus_of,
    decode,
    default_corpus,
    document_ids,
    encode,
)
from evaluation import __main__ as evaluation
from scripts import export
from support import checkpoint
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


@pytest.mark.parametrize("text", [b"", b"a", b"some text"])
def test_a_slice_of_a_document_is_that_of_all_its_ids(text):
    """Whatever the slice: empty, from the end, longer than there is."""
    whole = document_ids(text)
    ids = DocumentIds(Text(text, 0, len(text)))
    assert len(ids) == len(whole)
    places = [None, *range(-len(whole) - 1, len(whole) + 2)]
    for start in places:
        for stop in places:
            assert ids[start:stop].tolist() == whole[start:stop].tolist(), (start, stop)


# ---- corpora


def contents(corpus):
    """The documents of a corpus -> list of (name, bytes)."""
    return [(name, bytes(text)) for name, text in corpus.documents]


def in_bytes(split):
    """A split -> two lists of bytes."""
    return [list(map(bytes, part)) for part in split]


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
    assert in_bytes((train, held_out)) == in_bytes(default_corpus().split())


def test_few_documents_hold_out_the_end_of_each():
    train, held_out = Corpus([("a", b"x" * 1000), ("b", b"y" * 100)]).split()
    assert list(map(len, train)) == [950, 95] and list(map(len, held_out)) == [50, 5]


def test_folders_files_and_hidden_files(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.bin").write_bytes(b"\xff\x00\xfe")
    (tmp_path / "b.txt").write_bytes(b"text")
    (tmp_path / ".hidden").write_bytes(b"no")
    corpus = corpus_of([tmp_path])
    assert contents(corpus) == [("b.txt", b"text"), ("sub/a.bin", b"\xff\x00\xfe")]
    assert corpus.sha256 != corpus_of([tmp_path / "b.txt"]).sha256


def test_linked_folders_are_followed_each_real_one_once(tmp_path):
    """They were left out without a word. A link back up would never end."""
    top = tmp_path / "top"
    other = tmp_path / "other"
    (top / "sub" / "deep").mkdir(parents=True)
    (other / "in").mkdir(parents=True)
    (top / "sub" / "a.txt").write_bytes(b"a")
    (top / "sub" / "deep" / "b.txt").write_bytes(b"b")
    (other / "in" / "c.txt").write_bytes(b"c")
    (top / "again").symlink_to(top / "sub")  # a real folder beside it keeps its own name
    (top / "elsewhere").symlink_to(other)
    (top / "elsewhere too").symlink_to(other)
    (top / "sub" / "deep" / "in a circle").symlink_to(top)
    (other / "in" / "back").symlink_to(top / "sub" / "deep")
    (top / "gone").symlink_to(tmp_path / "nothing")
    (top / "file.txt").symlink_to(other / "in" / "c.txt")
    # The link to a file comes first, and that file is taken once.
    names = ["file.txt", "sub/a.txt", "sub/deep/b.txt"]
    assert contents(corpus_of([top])) == list(zip(names, [b"c", b"a", b"b"]))
    # The folder that is named may be a link itself. What leads out of it is followed too.
    names = [name for name, _ in corpus_of([top / "elsewhere"]).documents]
    circle = "in/back/in a circle"
    assert names == ["in/back/b.txt", f"{circle}/sub/a.txt", "in/c.txt"]


def test_what_is_left_out_of_a_folder_is_said(tmp_path, capsys):
    """Pipes, broken links and hidden files were skipped in silence."""
    for name in ("a.txt", ".hidden", ".git/x", "sub/b.txt", "sub/.more"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "sub/gone").symlink_to("nowhere")
    corpus = corpus_of([tmp_path])
    assert [name for name, _ in corpus.documents] == ["a.txt", "sub/b.txt"]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "3 hidden, 2 no regular file" in said
    corpus_of([tmp_path / "a.txt"])
    assert capsys.readouterr().err == ""


def test_each_real_file_is_taken_once(tmp_path, capsys):
    """One under two names could be trained on and held out."""
    for name in ("a/one.txt", "a/b/two.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "a/again.txt").hardlink_to(tmp_path / "a/one.txt")  # another file, if alike
    (tmp_path / "a/link.txt").symlink_to("one.txt")
    corpus = corpus_of([tmp_path / "a", tmp_path / "a/b", tmp_path / "a/one.txt"])
    assert [name for name, _ in corpus.documents] == ["again.txt", "b/two.txt", "link.txt"]
    assert "3 taken already" in capsys.readouterr().err


def test_what_is_held_out_is_not_trained_on(tmp_path, capsys):
    """With --held-out a file below --data it was in both parts."""
    for name in ("one.txt", "two.txt"):
        (tmp_path / name).write_text(name * 9)
    train, held_out = corpus_of([tmp_path], held_out=[tmp_path / "two.txt"]).split()
    assert [bytes(data) for data in train] == [b"one.txt" * 9]
    assert [bytes(data) for data in held_out] == [b"two.txt" * 9]
    assert "1 taken already" in capsys.readouterr().err


def test_names_with_control_characters_are_shown_escaped(tmp_path, capsys):
    (tmp_path / "a\x1b[2Jb").write_bytes(b"some text, and some more of it" * 9)
    data.main([str(tmp_path / "a\x1b[2Jb")])
    said = capsys.readouterr().out
    assert "\x1b" not in said and "a\\x1b[2Jb begins" in said


def test_a_folder_that_can_not_be_read_is_said(tmp_path, monkeypatch):
    """As one of its files is."""
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.txt").write_bytes(b"text")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(BadInput, match="can't read the folder .*closed: Permission denied"):
        corpus_of([tmp_path])


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


# ---- corpora that need not fit into memory

TEXTS = [b"a", b"some text, and more", bytes(range(256)) * 3, b"\xff" * 9, b"\r\n" * 400]


@pytest.fixture
def folder(tmp_path):
    """A few files, some of them longer than a hundred bytes."""
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_bytes(text)
    return tmp_path


def test_files_behind_the_limit_are_the_same_where_they_are_read(folder, monkeypatch):
    """One type of document, whatever its size: hash, split and slices are those of memory."""
    whole = corpus_of([folder])
    monkeypatch.setattr(data, "IN_MEMORY", 100)
    some = corpus_of([folder])
    assert {type(text) for _, text in (*some.documents, *whole.documents)} == {Text}
    kinds = [type(text.source) for _, text in some.documents]
    assert kinds == [bytes, bytes, LargeFile, LargeFile, LargeFile]
    assert contents(some) == contents(whole) == [(f"{i}.txt", t) for i, t in enumerate(TEXTS)]
    assert some.sha256 == whole.sha256 and in_bytes(some.split()) == in_bytes(whole.split())
    for text, (_, ours) in zip(TEXTS, some.documents):
        assert encode(ours) == encode(text)
        for part in (slice(3), slice(-3, None), slice(2, -2), slice(5, 2), slice(700, 9999)):
            assert bytes(ours[part]) == text[part] and len(ours[part]) == len(text[part])
            assert bytes(ours[part][1:][:2]) == text[part][1:][:2]


def test_memory_is_that_of_all_paths_together(folder, monkeypatch):
    """`--data *.txt` once filled it anew for each of them."""
    monkeypatch.setattr(data, "IN_MEMORY", 800)
    corpus = corpus_of([folder / f"{i}.txt" for i in range(5)])
    kinds = [type(text.source) for _, text in corpus.documents]
    assert kinds == [bytes, bytes, bytes, bytes, LargeFile]


def test_a_file_that_changes_or_goes_is_one_clear_line(folder, monkeypatch):
    monkeypatch.setattr(data, "IN_MEMORY", 0)
    corpus = corpus_of([folder])
    name, text = corpus.documents[2]
    (folder / name).write_bytes(TEXTS[2].upper())
    os.utime(folder / name, (1, 1))
    with pytest.raises(BadInput, match="2.txt has changed since it was first read"):
        bytes(text[:9])
    (folder / name).unlink()
    with pytest.raises(BadInput, match="can't read the text .*2.txt: No such file"):
        bytes(text[:9])


# ---- every command that reads a corpus reads it as well where it is not in memory


@pytest.fixture
def source(corpus_file, tmp_path):
    """A folder of three files, each longer than a hundred bytes."""
    text = corpus_file.read_bytes()
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(3):
        part = text[number * 9000 : (number + 1) * 9000 - number]
        (folder / f"{number}.py").write_bytes(part)
    return folder


def in_memory_and_not(monkeypatch, work):
    """Run work() twice, the second time with next to nothing in memory -> what both returned."""
    whole = work()
    monkeypatch.setattr(data, "IN_MEMORY", 100)
    return whole, work()


def rows_of(text):
    """JSON objects, one a line, without what a clock says."""
    timed = ("seconds", "bytes_per_second")
    rows = [json.loads(line) for line in text.splitlines()]
    return [{key: value for key, value in row.items() if key not in timed} for row in rows]


def test_data_describes_the_same(source, monkeypatch, capsys):
    def described():
        data.main([str(source)])
        return capsys.readouterr().out

    whole, some = in_memory_and_not(monkeypatch, described)
    assert some == whole and "3 documents" in some


def test_train_makes_the_same_model_and_export_the_same_file(source, tmp_path, monkeypatch):
    def trained():
        out, small = tmp_path / "run.pt", tmp_path / "small.pt"
        for path in (out, small):
            path.unlink(missing_ok=True)
        known = ["--preset", "nano", "--steps", "2", "--dtype", "float32"]
        train.main([*known, "--data", str(source), "--out", str(out)])
        export.main([str(out), str(small)])
        return checkpoint.load(out), checkpoint.load(small)

    whole, some = in_memory_and_not(monkeypatch, trained)
    for ours, theirs in zip(some, whole):
        assert ours["corpus"] == theirs["corpus"]
        for part in ("model", "patcher"):
            assert ours[part].keys() == theirs[part].keys()
            assert all(torch.equal(ours[part][name], theirs[part][name]) for name in ours[part])
        for name in ("validation_bits_per_byte", "masked_accuracy", "mean_patch_held_out"):
            assert ours["results"][name] == theirs["results"][name]


@pytest.mark.parametrize("task", ["bpb", "likelihood --limit 3"])
def test_evaluations_find_the_same(task, source, trained_file, monkeypatch, capsys):
    """Both crashed on corpora beyond the limit, which had documents of two types."""
    known = ["--json", "--checkpoint", str(trained_file), "--data", str(source)]

    def evaluated():
        evaluation.main([*task.split(), *known])
        return rows_of(capsys.readouterr().out)

    whole, some = in_memory_and_not(monkeypatch, evaluated)
    assert some == whole and len(some) == 1


def test_the_prompts_of_bandwidth_are_the_same(monkeypatch):
    """They are cut out of the default corpus."""
    whole, some = in_memory_and_not(monkeypatch, lambda: read_prompts(None))
    assert some == whole and len(some) == 8 and {len(ids) for ids in some} == {200}


# ---- run


def test_it_describes_what_would_be_trained_on(tmp_path, capsys):
    (tmp_path / "a").write_bytes(b"hello world\n" * 50)
    data.main([str(tmp_path)])
    out = capsys.readouterr().out
    assert "sha256" in out and "held out: 1 documents, 30 bytes" in out
    assert f"[{BOS}, " in out and f"{EOS}]" in out


def test_it_describes_a_large_corpus_in_little_memory(tmp_path, monkeypatch, capsys):
    """All ids of the first document were made to show ten: twelve times its size in memory."""
    (tmp_path / "a").write_bytes(b"hello world\n" * 50)
    data.main([str(tmp_path)])
    shown = capsys.readouterr().out
    sizes = []

    def counted(text, start=0, stop=None):
        sizes.append(stop - start)
        return document_ids(text, start, stop)

    monkeypatch.setattr(data, "document_ids", counted)
    monkeypatch.setattr(data, "IN_MEMORY", 100)
    data.main([str(tmp_path)])
    assert capsys.readouterr().out == shown
    assert sizes == [8, 2]
