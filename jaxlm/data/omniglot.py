"""Drawings for few-shot learning: Omniglot's small background sets, split by character, and digits of MNIST."""

import numpy as np

from jaxlm.data.errors import DataError
from jaxlm.data.folder import DataFolder

OMNIGLOT, MNIST = "omniglot/omniglot_background_small_28.npz", "mnist/mnist_5k.npz"


def omniglot(folder: DataFolder, valid: int = 20, test: int = 40, seed: int = 0) -> dict[str, np.ndarray]:
    """Drawings by split, no character in two of them.

    valid, test  number of characters; the rest is for training
    seed         of the shuffle of the characters
    ->           'train', 'valid', 'test': (characters, 20, 28, 28) uint8, ink 255 on 0
    """
    drawings = by_class(folder, OMNIGLOT, "character")
    if not 0 <= valid + test < len(drawings):
        raise DataError(f"valid + test = {valid + test}: expected fewer than the {len(drawings)} characters")
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(drawings))
    names, cuts = ("test", "valid", "train"), (test, test + valid)
    return {name: drawings[part] for name, part in zip(names, np.split(order, cuts), strict=True)}


def digits(folder: DataFolder, test: int = 100) -> dict[str, np.ndarray]:
    """Digits of MNIST, the same ten classes in both splits, no image in both.

    test    images of each digit, the last of its 500
    ->      'train', 'test': (10, images, 28, 28) uint8
    """
    images = by_class(folder, MNIST, "labels")
    if not 0 < test < images.shape[1]:
        raise DataError(f"test = {test}: expected a number of images below {images.shape[1]}")
    return {"train": images[:, :-test], "test": images[:, -test:]}


def by_class(folder: DataFolder, file: str, label: str) -> np.ndarray:
    """Images of an .npz file in the order of their label, as many of each.   (classes, images, 28, 28) uint8"""
    arrays = folder.arrays(file)
    images, labels = arrays["images"], arrays[label]
    counts = np.bincount(labels)
    if counts.min() != counts.max():
        raise DataError(f"{file}: {label} has {counts.min()} to {counts.max()} images a class, expected equally many")
    return images[np.argsort(labels, kind="stable")].reshape(len(counts), -1, *images.shape[1:])


def quarter_turns(drawings: np.ndarray) -> np.ndarray:
    """Each class turned by 0, 90, 180 and 270 degrees as a class of its own.   (c, n, 28, 28) -> (4 c, n, 28, 28)"""
    return np.concatenate([np.rot90(drawings, turns, axes=(2, 3)) for turns in range(4)])
