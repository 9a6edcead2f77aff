"""The data directory: real data sets, used in place."""

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxlm.data.errors import DataError


@dataclass(frozen=True)
class DataFolder:
    """Files below one directory, one folder a data set; None: no directory was given.

    Every method raises DataError, in one line that says what belongs where, for a file that is not there.
    """

    root: Path | None

    def has(self, name: str) -> bool:
        return self.root is not None and (self.root / name).exists()

    def file(self, name: str) -> Path:
        """The path of a file or folder, e.g. 'mnist/mnist_5k.npz'."""
        if self.root is None:
            raise DataError(f"data = None: expected a directory that holds {name} (--data DIR or JAXLM_DATA)")
        if not self.has(name):
            raise DataError(f"data = {str(self.root)!r}: no {name} there: put the {name.split('/')[0]} data set at it")
        return self.root / name

    def open(self, name: str) -> bytes:
        """The bytes of a file, unpacked if its name ends with .gz."""
        raw = self.file(name).read_bytes()
        try:
            return gzip.decompress(raw) if name.endswith(".gz") else raw
        except (OSError, EOFError) as error:
            raise DataError(f"{self.file(name)}: damaged, expected a gzip file: {error}") from error

    def text(self, name: str) -> str:
        """The text of a UTF-8 file, unpacked if its name ends with .gz."""
        return self.open(name).decode("utf-8")

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of an .npz file."""
        with np.load(self.file(name), allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
