"""Corpora: what is read, in which order, on which side of the split; and what cannot be read."""

import gzip
import sys

import pytest

from jaxlm.data import DataError, StandardLibrary, Text, TextFiles
from jaxlm.data import corpus as module


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A small standard library in a folder of its own, and a way to replace the topics."""
    monkeypatch.setattr(module.sysconfig, "get_path", lambda name: str(tmp_path) if name == "stdlib" else None)
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)

    def write(name, text="x = 1\n"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())

    return write


def everything(corpus):
    return {name: text for split in module.SPLITS for name, text in corpus.named(split)}


def test_the_default_corpus_is_the_library_beside_this_python():
    corpus = StandardLibrary()
    train, held = corpus.named("train"), corpus.named("held_out")
    names = [name for name, _ in train + held]
    assert len(set(names)) == len(names) and "dataclasses.py" in names and "json/decoder.py" in names
    assert not any({"test", "tests", "site-packages", "__pycache__"} & set(name.split("/")) for name in names)
    assert [n for n, _ in train] == sorted(n for n, _ in train) and [n for n, _ in held] == sorted(n for n, _ in held)
    assert sum(len(text) for _, text in train) > 5e6 and 0.01 < len(held) / len(names) < 0.1
    assert corpus.documents("held_out") == [text for _, text in held]
    assert not any(b"\r\n" in text or b"\0" in text for _, text in train + held)


def test_the_split_is_a_fixed_rule_on_the_name():
    assert [name for name in ("abc.py", "chunk.py", "json/decoder.py", "sched.py") if module.held_out(name)] == [
        "chunk.py",
        "sched.py",
    ]


def test_sources_that_repeat_others_are_left_out(library):
    for name in ("a.py", "b/c.py", "b/test/d.py", "tests/e.py", "site-packages/f.py", "_sysconfigdata_x.py", "g.txt"):
        library(name)
    library("config-3.11/h.py")
    library("encodings/cp1.py", "import codecs\ndecoding_table = (\n)\n")
    library("encodings/utf_8.py", "import codecs\n")
    library("pydoc_data/topics.py", "topics = {}\n")
    library("empty.py", "")
    library("windows.py", "x = 1\r\ny = 2\r\n")
    library("chunk.py")  # held out, so that both sides hold something
    found = everything(StandardLibrary())
    assert set(found) == {"a.py", "b/c.py", "chunk.py", "encodings/utf_8.py", "windows.py"}
    assert found["windows.py"] == b"x = 1\ny = 2\n"


def test_topics_come_once_and_may_be_missing(library, monkeypatch):
    library("a.py")
    library("chunk.py")
    assert set(everything(StandardLibrary())) == {"a.py", "chunk.py"}
    long = "The first paragraph, about loops.\n\nThe second paragraph, about branches, is longer."
    fake = type(sys)("pydoc_data.topics")
    fake.topics = {"for": "The first paragraph, about loops.", "flow": long, "with": "Another paragraph."}
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", fake)
    found = everything(StandardLibrary())
    assert set(found) == {"a.py", "chunk.py", "topics/flow", "topics/with"} and found["topics/flow"] == long.encode()


def test_a_library_without_sources_says_so(library):
    with pytest.raises(DataError, match=r"StandardLibrary: no \*\.py for 'train' in .*; expected Python sources"):
        StandardLibrary().documents("train")


def test_one_file_is_split_by_place(tmp_path):
    text = b"".join(b"line %d\n" % i for i in range(100))
    path = tmp_path / "a.txt"
    path.write_bytes(text)
    corpus = TextFiles((str(path),))
    (train,), (held,) = corpus.documents("train"), corpus.documents("held_out")
    assert train + held == text and len(train) == int(0.9 * len(text))
    assert corpus == TextFiles(str(path)) and hash(corpus) == hash(TextFiles(path))


def test_a_cut_never_splits_a_character(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("日本語" * 7, encoding="utf-8")  # 63 bytes: 10% from the end is inside a character
    pieces = [TextFiles(str(path)).documents(split)[0].decode() for split in module.SPLITS]
    assert "".join(pieces) == "日本語" * 7 and all(pieces)


def test_gzip_reads_like_the_text(tmp_path):
    text = b"some text\n" * 50
    (tmp_path / "a.txt").write_bytes(text)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text))
    plain, packed = TextFiles(str(tmp_path / "a.txt")), TextFiles(str(tmp_path / "a.txt.gz"))
    assert [plain.documents(s) for s in module.SPLITS] == [packed.documents(s) for s in module.SPLITS]


def test_a_folder_is_read_below_and_split_by_file_when_large(tmp_path):
    (tmp_path / "sub").mkdir()
    for i in range(60):
        (tmp_path / ("sub" if i % 2 else ".") / f"{i:02}.txt").write_text(f"document {i}\n")
    (tmp_path / ".hidden").write_text("hidden")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "more.gz").write_bytes(gzip.compress(b"packed"))
    corpus = TextFiles(str(tmp_path))
    train, held = corpus.documents("train"), corpus.documents("held_out")
    assert sorted(train + held) == sorted([b"packed"] + [b"document %d\n" % i for i in range(60)])
    assert 1 <= len(held) <= 9
    by_name = [b"document %d\n" % i for i in range(0, 60, 2)] + [b"packed"]  # 00.txt ... 58.txt, more.gz
    by_name += [b"document %d\n" % i for i in range(1, 60, 2)]  # sub/01.txt ... sub/59.txt
    assert train == [text for text in by_name if text in train] and held == [text for text in by_name if text in held]


def test_a_small_folder_is_split_by_place(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name * 20)
    assert TextFiles(str(tmp_path)).documents("held_out") == [b"aa", b"bb"]


def test_held_out_files_may_be_named(tmp_path):
    for name in ("train.txt", "valid.txt"):
        (tmp_path / name).write_text(name)
    corpus = TextFiles((str(tmp_path / "train.txt"),), held_out=(str(tmp_path / "valid.txt"),))
    assert corpus.documents("train") == [b"train.txt"] and corpus.documents("held_out") == [b"valid.txt"]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("missing.txt", None, r"paths: '.*missing\.txt' does not exist; expected a text file, a folder or a \.gz"),
        ("empty.txt", b"", r"paths: '.*empty\.txt' is empty; expected text"),
        ("one.txt", b"a", r"paths=.*: no text left for 'train'; expected a longer text"),
        ("nul.txt", b"ab\0c", r"paths: '.*nul\.txt' has a NUL byte at 2; expected text"),
        ("plain.gz", b"not packed", r"paths: '.*plain\.gz' is no readable gzip file .*; expected a whole \.gz"),
        (
            "cut.gz",
            gzip.compress(b"text " * 99, mtime=0)[:-9],
            r"paths: '.*cut\.gz' is no readable gzip file .*; expected a whole",
        ),
        ("bad.gz", gzip.compress(b"text", mtime=0)[:10] + b"\xff" * 20, r"paths: '.*bad\.gz' is no readable gzip file"),
    ],
    ids=["missing", "empty", "one", "nul", "plain", "cut", "bad"],  # never the bytes: gzip writes the clock into them
)
def test_bad_files_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        TextFiles(str(tmp_path / name)).documents("train")
    assert "\n" not in str(error.value)


def test_bad_corpora_are_named(tmp_path):
    with pytest.raises(DataError, match=r"paths: folder '.*' holds no text"):
        TextFiles(str(tmp_path)).documents("train")
    with pytest.raises(DataError, match=r"paths=\(\): expected at least one"):
        TextFiles(())
    with pytest.raises(DataError, match="split='test': expected one of"):
        StandardLibrary().documents("test")
    (tmp_path / "short.txt").write_text("just one short line")
    with pytest.raises(DataError, match=r"length=64: the text has 18 tokens; expected at least 65"):
        Text(TextFiles(str(tmp_path)), length=64).training(seed=0)
    with pytest.raises(DataError, match="layout='packed': expected one of"):
        Text(layout="packed")
