"""MNIST as far as it is at hand: 5,000 images to learn from and the 10,000 of the published test set."""

import struct

import numpy as np

from jaxlm.data.errors import DataError
from jaxlm.data.folder import DataFolder

TRAIN = "mnist/mnist_5k.npz"
TEST_IMAGES, TEST_LABELS = "mnist/t10k-images-idx3-ubyte.gz", "mnist/t10k-labels-idx1-ubyte.gz"
FILES = (TRAIN, TEST_IMAGES, TEST_LABELS)


def mnist(folder: DataFolder) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Digits and their labels by split; no image is in both.

    ->   'train': images (5000, 28, 28), labels (5000,);  'test': images (10000, 28, 28), labels (10000,); uint8

    The train split is not the usual 60,000 images: say so beside every number.
    """
    train = folder.arrays(TRAIN)
    test = tuple(idx(folder.open(name), name) for name in (TEST_IMAGES, TEST_LABELS))
    out = {"train": (train["images"], train["labels"]), "test": (test[0], test[1])}
    for split, (images, labels) in out.items():
        if images.shape != (len(labels), 28, 28):
            got = f"images {images.shape}, labels {labels.shape}"
            raise DataError(f"mnist {split}: {got}, expected (n, 28, 28) and (n,)")
    return out


def idx(raw: bytes, name: str = "idx") -> np.ndarray:
    """The array of an IDX file: two zeros, 8 for bytes, the number of axes, their sizes big-endian, the data."""
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
        raise DataError(f"{name}: begins with {raw[:4]!r}, expected the head of an IDX file of unsigned bytes")
    head = 4 + 4 * raw[3]
    shape = struct.unpack(f">{raw[3]}I", raw[4:head])
    data = np.frombuffer(raw, np.uint8, offset=head)
    if data.size != np.prod(shape):
        raise DataError(f"{name}: {data.size} bytes of data, expected {' x '.join(map(str, shape))}")
    return data.reshape(shape)
