"""Documents in one file: behind marks, in lines of JSON, packed; and what a corpus brings along."""

import bz2
import gzip
import json
import lzma
import tracemalloc
import zipfile

import pytest
import torch

import bandwidth
import data
import train
from data import LargeFile, corpus_of, openings_of
from evaluation import __main__ as evaluation
from measure.passes import context_of
from scripts import export
from support import checkpoint, formats
from support.formats import MARK, documents_between
from support.openings import beginning, known_openings
from support.terminal import BadInput

STORIES = [f"Once there was a cat number {i}.\nIt was happy.".encode() for i in range(120)]


def contents(corpus):
    """The documents of a corpus -> list of bytes."""
    return [bytes(text) for _, text in corpus.documents]


# ---- marks


def between(text, mark=b"<>"):
    """What documents_between finds -> (list of bytes, how many marks)."""
    bounds, marks = documents_between(mark, text, len(text))
    return [text[start:stop] for start, stop in bounds.tolist()], marks


CUT = {
    b"": ([], 0),
    b"a": ([b"a"], 0),
    b"a\n": ([b"a\n"], 0),
    b"<>": ([], 1),
    b"a<>b": ([b"a", b"b"], 1),
    b"a\n<>\nb\n<>\n": ([b"a", b"b"], 2),
    b"a\r\n<>\r\nb": ([b"a", b"b"], 1),
    b"a\n\n<>\n\nb": ([b"a\n", b"\nb"], 1),  # one newline goes with it, no more
    b"\n<>\n<>\n\n<><>\na": ([b"a"], 4),
    b"a<<>>b<": ([b"a<", b">b<"], 1),
}


@pytest.mark.parametrize("text", CUT)
@pytest.mark.parametrize("piece", [1, 2, 3, 5, 1 << 24])
def test_marks_divide_a_text_whatever_pieces_it_is_read_in(text, piece, monkeypatch):
    """Marks and newlines lie across the ends of pieces."""
    monkeypatch.setattr(formats, "PIECE", piece)
    assert between(text) == CUT[text]


def test_marks_that_overlap_are_found_from_the_left(monkeypatch):
    for piece in (1, 2, 3, 4, 100):
        monkeypatch.setattr(formats, "PIECE", piece)
        assert between(b"xaaaay", b"aa") == ([b"x", b"y"], 2)
        assert between(b"xaaay", b"aa") == ([b"x", b"ay"], 1)


@pytest.fixture
def stories(tmp_path):
    """A file of 120 stories as TinyStories comes."""
    path = tmp_path / "stories.txt"
    path.write_bytes(f"\n{MARK}\n".encode().join(STORIES) + f"\n{MARK}\n".encode())
    return path


def test_a_file_with_many_marks_is_split_and_that_is_said(stories, capsys):
    corpus = corpus_of([stories])
    said = capsys.readouterr().err
    assert contents(corpus) == STORIES
    assert f"stories.txt holds {MARK} 120 times" in said and said.count("\n") == 1
    assert corpus.documents[7][0] == "stories.txt/00000007"
    # Their names decide, as those of files do.
    training, held_out = corpus.split()
    assert len(training) + len(held_out) == 120 and 0 < len(held_out) < 25
    assert set(map(bytes, training)).isdisjoint(map(bytes, held_out))
    assert contents(corpus_of([stories], separator=MARK)) == STORIES
    assert capsys.readouterr().err == ""
    # Not asked for: a file is a document as it is.
    assert contents(corpus_of([stories], separator="")) == [stories.read_bytes()]
    (stories.parent / "few.txt").write_bytes(f"a{MARK}b".encode() * 50)
    assert len(corpus_of([stories.parent / "few.txt"]).documents) == 1
    assert capsys.readouterr().err == ""


def test_any_separator_will_do_where_it_occurs(tmp_path):
    (tmp_path / "a.txt").write_bytes("one\n§\ntwo".encode())
    (tmp_path / "b.txt").write_bytes(b"three")
    corpus = corpus_of([tmp_path], separator="§")
    assert contents(corpus) == [b"one", b"two", b"three"]
    # One that a file does not have leaves it whole; one that none has is a mistake.
    with pytest.raises(BadInput, match="'%%' does not occur in .*a.txt, .*b.txt"):
        corpus_of([tmp_path], separator="%%")


def test_the_documents_of_a_large_file_are_slices_of_it(stories, monkeypatch):
    whole = corpus_of([stories])
    monkeypatch.setattr(data, "IN_MEMORY", 100)
    monkeypatch.setattr(formats, "PIECE", 1000)
    some = corpus_of([stories])
    assert {type(text.source) for _, text in some.documents} == {LargeFile}
    assert contents(some) == contents(whole) == STORIES and some.sha256 == whole.sha256


@pytest.mark.more
def test_a_large_file_of_many_documents_takes_little_memory(tmp_path, monkeypatch):
    """A list of names and Texts took 250 bytes a document: half of what stories are long."""
    path = tmp_path / "many.txt"
    path.write_bytes((b"s" * 40 + f"\n{MARK}\n".encode()) * 200_000)
    monkeypatch.setattr(data, "IN_MEMORY", 100)
    monkeypatch.setattr(formats, "PIECE", 1 << 20)
    tracemalloc.start()
    corpus = corpus_of([path], separator=MARK)
    training, held_out = corpus.split()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(corpus.documents) == 200_000 and len(training) > 150_000 and held_out
    assert most < 200_000 * 80 + (8 << 20)


# ---- lines of JSON


def test_lines_of_json_are_documents(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"text": "one"}, {"text": ""}, {"id": 3, "text": "zwei ü\n"}, {"text": "\ud800"}]
    path.write_text("\n\n".join(json.dumps(row) for row in rows) + "\n")
    corpus = corpus_of([path])
    assert contents(corpus) == [b"one", "zwei ü\n".encode(), b"\xed\xa0\x80"]
    assert corpus.documents[1][0] == "rows.jsonl/00000001"


BAD_LINES = {
    "no text": '{"title": "x"}',
    "no JSON": "{text: 1}",
    "has no text": '{"text": 3}',
    "has no text:": '["text"]',
    "is no JSON": "[" * 10**5,
}


@pytest.mark.parametrize("words", BAD_LINES)
def test_a_line_without_text_is_named(words, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "good"}\n\n' + BAD_LINES[words])
    with pytest.raises(BadInput, match=f"line 3 of .*rows.jsonl .*{words.split()[-1]}"):
        corpus_of([path])


# ---- packed files


def write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)


def write_packed(folder, text):
    """A text in every packing -> list of paths."""
    packers = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
    for ending, pack in packers.items():
        (folder / f"text.txt.{ending}").write_bytes(pack(text))
    write_zip(folder / "text.txt.zip", {"a/": b"", "a/text.txt": text})
    return [folder / f"text.txt.{ending}" for ending in (*packers, "zip")]


def test_packed_files_are_read_as_what_is_in_them(stories, tmp_path):
    for path in write_packed(tmp_path, stories.read_bytes()):
        assert contents(corpus_of([path])) == STORIES, path
    rows = tmp_path / "rows.jsonl.gz"
    rows.write_bytes(gzip.compress(b'{"text": "packed"}\n'))
    assert contents(corpus_of([rows])) == [b"packed"]


def test_packed_files_that_are_not_whole_are_refused_by_name(tmp_path):
    for path in write_packed(tmp_path, bytes(range(256)) * 200):
        packed = path.read_bytes()
        for bad in (packed[: len(packed) // 2], b"no such format", b""):
            path.write_bytes(bad)
            if path.suffix in (".bz2", ".gz") and not bad:
                continue  # nothing packed is nothing
            with pytest.raises(BadInput, match=f"can't unpack .*{path.name}"):
                corpus_of([path])
    write_zip(tmp_path / "two.zip", {"a": b"one", "b": b"two"})
    with pytest.raises(BadInput, match="two.zip holds 2 files, not one: unpack it with"):
        corpus_of([tmp_path / "two.zip"])


def test_what_has_to_fit_into_memory_and_does_not_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "IN_MEMORY", 100)
    paths = write_packed(tmp_path, b"x" * 101)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": "y" * 101}))
    for path in (*paths, rows):
        with pytest.raises(BadInput, match=f"{path.name} holds more than the 100 bytes"):
            corpus_of([path])


# ---- text that is held out by itself, and what a checkpoint keeps


def test_with_text_held_out_by_itself_all_else_is_trained_on(stories, tmp_path):
    valid = tmp_path / "valid.txt"
    valid.write_bytes(b"held out")
    training, held_out = corpus_of([stories], held_out=[valid]).split()
    assert list(map(bytes, training)) == STORIES
    assert list(map(bytes, held_out)) == [b"held out"]
    corpus = corpus_of([stories], held_out=[valid])
    known = corpus.identity()
    assert corpus.is_that_of(known)
    valid.write_bytes(b"another one")
    assert not corpus_of([stories], held_out=[valid]).is_that_of(known)
    assert corpus_of([stories]).is_that_of(known)


def test_openings_are_beginnings_or_places_spread_over_few_documents():
    short = [b"x" * 300] * 3
    long = [bytes([65 + i]) * 500 for i in range(9)]
    assert openings_of(short + long) == [bytes([65 + i]) * 200 for i in range(8)]
    one = b"".join(b"line %04d of one long text\n" % i for i in range(400))
    openings = openings_of([one])
    assert len(openings) == 8 and len(set(openings)) == 8
    assert all(len(text) == 200 and text in one for text in openings)
    assert openings[0] == one[:200] and openings_of(short) == [] == openings_of([])
    of_two = openings_of([b"a" * 500, b"b" * 500, b"c" * 500])
    assert len(of_two) == 8 and {text[:1] for text in of_two} == {b"a", b"b", b"c"}


def test_a_beginning_ends_with_a_word():
    assert beginning([b"Once upon a time, there was"], "def ", 20) == b"Once upon a time,"
    assert beginning([b"Once upon"], "def ", 20) == b"Once upon"
    assert beginning([b"x" * 50], "def ", 20) == b"x" * 20
    assert beginning([], "def ") == b"def "
    with pytest.raises(BadInput, match="openings are no list of bytes"):
        known_openings({"openings": ["text"]})


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A nano checkpoint of stories, trained for two steps, the folder of its text around it."""
    folder = tmp_path_factory.mktemp("told")
    separator = f"\n{MARK}\n".encode()
    long = [story * 12 for story in STORIES]
    (folder / "train.txt").write_bytes(separator.join(long[:100]))
    (folder / "valid.txt").write_bytes(separator.join(long[100:]))
    known = ["--preset", "nano", "--steps", "2", "--dtype", "float32", "--out", f"{folder}/run.pt"]
    texts = ["--data", f"{folder}/train.txt", "--held-out", f"{folder}/valid.txt"]
    train.main([*known, *texts, "--separator", MARK])
    return folder


def test_a_checkpoint_keeps_its_text_and_resumes_no_other(told, capsys):
    saved = checkpoint.load(told / "run.pt")
    assert saved["asked"]["separator"] == MARK
    assert saved["asked"]["held_out"] == [f"{told}/valid.txt"]
    assert saved["corpus"]["held_out"]["bytes"] == sum(len(s) * 12 for s in STORIES[100:])
    assert saved["openings"] == [(story * 12)[:200] for story in STORIES[100:108]]
    for flag in (["--separator", "x"], ["--held-out", f"{told}/train.txt"]):
        with pytest.raises(BadInput, match=f"{flag[0]} .* can't change on --resume"):
            train.main(["--resume", f"{told}/run.pt", *flag])
    train.main(["--resume", f"{told}/run.pt", "--out", f"{told}/again.pt"])
    # The sample that it prints goes on with text of its own kind.
    assert "\nOnce there was a cat" in capsys.readouterr().out


def test_export_keeps_the_openings_and_can_add_some(told, tmp_path, capsys):
    small = tmp_path / "small.pt"
    export.main([f"{told}/run.pt", str(small)])
    saved = checkpoint.load(small)
    assert saved["openings"] == [(story * 12)[:200] for story in STORIES[100:108]]
    assert saved["held_out"] == [f"{told}/valid.txt"] and saved["separator"] == MARK
    more = tmp_path / "more.pt"
    ask = ["--openings", f"{told}/train.txt", "--separator", MARK]
    export.main([str(small), str(more), *ask])
    again = checkpoint.load(more)
    assert again["openings"] == [(story * 12)[:200] for story in STORIES[:8]]
    for part in ("model", "patcher"):
        assert all(torch.equal(again[part][name], saved[part][name]) for name in saved[part])
    assert "8 openings" in capsys.readouterr().out
    # What is exported knows its held-out text, and evaluations find it.
    evaluation.main(["bpb", "--checkpoint", str(small), "--json"])
    row = json.loads(capsys.readouterr().out)
    assert row["text"] == f"{told}/valid.txt"
    assert row["bytes"] == saved["corpus"]["held_out"]["bytes"]


def test_prompts_and_contexts_come_from_the_checkpoint(told):
    machine = bandwidth.load(told / "run.pt")
    prompts = bandwidth.read_prompts(None, machine.openings)
    assert [data.decode(ids) for ids in prompts] == machine.openings
    assert context_of(machine).startswith(STORIES[100])
    machine.openings = []  # an older checkpoint
    assert context_of(machine) == context_of(machine) and b"import" in context_of(machine)
