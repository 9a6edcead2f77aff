"""Corpora: frozen values that read real text and split it into training and held-out documents.

A document is `bytes`. Line ends are normalised to a line feed, so that a checkout on any system gives the same bytes.
"""

import gzip
import hashlib
import os
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from jaxlm.data.errors import DataError

Split = Literal["train", "held_out"]
SPLITS = ("train", "held_out")

HELD_OUT = 0.05  # share of the files that is held out where the split is by file
TAIL = 0.1  # share of each file that is held out where the split is by place
FEW = 20  # fewer files than this are split by place: a hash would hold out none or half of them

# Tests repeat each other and other people's data; site packages and build files differ from machine to machine.
_SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"})
_SKIPPED_PREFIXES = ("_sysconfigdata", "sitecustomize", "usercustomize")
_SKIPPED_FILES = frozenset({"pydoc_data/topics.py"})  # read as topics below: the source is the same text once more


class Corpus(Protocol):
    """A frozen value that gives documents: hashable, equal by value, holding no text itself."""

    def documents(self, split: Split) -> list[bytes]:
        """The documents of one split, in a fixed order; none is empty."""
        ...


@dataclass(frozen=True)
class StandardLibrary:
    """The user's own Python standard library: its sources, and the reference text of `pydoc_data.topics` if it ships.

    Ordered by name (path below the library, '/' between folders; topics are 'topics/NAME') and split by a hash of the
    name, about 5% held out: a file is on the same side on every machine, and whatever else is installed. Left out, as
    the split would put the same lines on both sides: tests, the generated tables of `encodings` (80 near-copies of one
    file), and topics whose text is mostly part of a longer topic.
    """

    def documents(self, split: Split) -> list[bytes]:
        """The documents of 'train' or 'held_out', ordered by name."""
        return [text for _, text in self.named(split)]

    def named(self, split: Split) -> list[tuple[str, bytes]]:
        """The documents of a split beside their names."""
        _check_split(split)
        root = Path(sysconfig.get_path("stdlib"))
        side = split == "held_out"
        named = {name: read(root / name) for name in _sources(root) if held_out(name) == side}
        named |= {name: text for name, text in _topics().items() if held_out(name) == side}
        found = [(name, named[name]) for name in sorted(named) if named[name] and not _is_table(name, named[name])]
        if not found:
            raise DataError(f"StandardLibrary: no *.py for {split!r} in {str(root)!r}; expected Python sources there")
        return found


@dataclass(frozen=True)
class TextFiles:
    """Any text: files, folders (all below them but hidden and binary files) or gzip files (*.gz).

    paths     one path or several
    held_out  paths of held-out text; without any, the last 10% of each file is held out, or, from 20 files on,
              whole files by a hash of their names (about 5%)
    """

    paths: tuple[str, ...]
    held_out: tuple[str, ...] = ()

    def __post_init__(self):
        for field in ("paths", "held_out"):
            value = getattr(self, field)
            value = (value,) if isinstance(value, str | os.PathLike) else value
            object.__setattr__(self, field, tuple(os.fspath(path) for path in value))
        if not self.paths:
            raise DataError("paths=(): expected at least one text file, folder or .gz")

    def documents(self, split: Split) -> list[bytes]:
        """The documents of 'train' or 'held_out', in the order of the paths, folders by name."""
        _check_split(split)
        side = split == "held_out"
        if self.held_out:
            field, paths = ("held_out", self.held_out) if side else ("paths", self.paths)
            return [text for _, text in _read_all(field, paths)]
        texts = list(_read_all("paths", self.paths))
        if len(texts) < FEW:
            found = [_cut(text)[side] for _, text in texts]
        else:
            chosen = {name for name, _ in texts if held_out(name)} or {min((n for n, _ in texts), key=_hash)}
            found = [text for name, text in texts if (name in chosen) == side]
        found = [text for text in found if text]
        if not found:
            raise DataError(f"paths={self.paths!r}: no text left for {split!r}; expected a longer text")
        return found


def read(path: str | os.PathLike) -> bytes:
    """The text of a file, unpacked where its name ends in .gz, line ends normalised."""
    try:
        with gzip.open(path) if str(path).endswith(".gz") else open(path, "rb") as file:
            data = file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"paths: {str(path)!r} is no readable gzip file ({error}); expected a whole .gz") from error
    except OSError as error:
        raise DataError(f"paths: {str(path)!r} cannot be read ({error.strerror}); expected readable text") from error
    return data.replace(b"\r\n", b"\n")


def held_out(name: str) -> bool:
    """Whether a document of this name is held out: a fixed rule on the name alone."""
    return _hash(name) < HELD_OUT


def _hash(name: str) -> float:
    """A fixed number in [0, 1) for a name, the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:6], "big") / 2**48


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise DataError(f"split={split!r}: expected one of {SPLITS}")


def _sources(root: Path) -> Iterator[str]:
    """Names of the library's sources, '/' between folders."""
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f not in _SKIPPED_FOLDERS and not f.startswith("config-")]
        for file in files:
            name = (Path(folder) / file).relative_to(root).as_posix()
            if name.endswith(".py") and not file.startswith(_SKIPPED_PREFIXES) and name not in _SKIPPED_FILES:
                yield name


def _is_table(name: str, text: bytes) -> bool:
    """Whether a source is a generated table of a character set."""
    return name.startswith("encodings/") and (b"\ndecoding_table = " in text or b"\ndecoding_map = " in text)


def _topics() -> dict[str, bytes]:
    """Python's reference text by topic, without topics that longer ones mostly contain; empty if it is not shipped."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return {}
    kept, seen = {}, set()
    for topic, text in sorted(topics.items(), key=lambda item: (-len(item[1]), item[0])):
        paragraphs = [p for p in map(str.strip, text.split("\n\n")) if p]
        repeated = sum(len(p) for p in paragraphs if p in seen)
        if 2 * repeated <= sum(map(len, paragraphs)):
            kept[f"topics/{topic}"] = text.encode()
            seen.update(paragraphs)
    return kept


def _read_all(field: str, paths: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """(name, text) of every file that the paths stand for; a folder's names are relative to it."""
    for path in paths:
        if os.path.isdir(path):
            named = ((name, read(os.path.join(path, name))) for name in _below(path))
            found = [(name, text) for name, text in named if text and b"\0" not in text]
            if not found:
                raise DataError(f"{field}: folder {path!r} holds no text; expected text files or .gz in it")
            yield from found
        elif not os.path.exists(path):
            raise DataError(f"{field}: {path!r} does not exist; expected a text file, a folder or a .gz")
        else:
            text = read(path)
            if not text:
                raise DataError(f"{field}: {path!r} is empty; expected text")
            if b"\0" in text:
                raise DataError(f"{field}: {path!r} has a NUL byte at {text.index(0)}; expected text, which has none")
            yield os.path.basename(path), text


def _below(folder: str) -> list[str]:
    """Names of all files below a folder but hidden ones, sorted, '/' between folders."""
    names = []
    for where, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".")]
        names += [(Path(where) / f).relative_to(folder).as_posix() for f in files if not f.startswith(".")]
    return sorted(names)


def _cut(text: bytes) -> tuple[bytes, bytes]:
    """A text's first 90% and last 10%, never inside a UTF-8 character."""
    cut = int(len(text) * (1 - TAIL))
    while cut and text[cut] & 0xC0 == 0x80:
        cut -= 1
    return text[:cut], text[cut:]
