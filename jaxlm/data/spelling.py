"""Words as the characters that they are made of: bytes of UTF-8, between two marks."""

from collections.abc import Sequence

import numpy as np

from jaxlm.data.errors import DataError

NOTHING, BEGIN, END = 0, 257, 258  # what fills up a word, and what stands before and behind it; byte n is n + 1
CHARACTERS = 259


def spell(words: Sequence[str], room: int = 50) -> np.ndarray:
    """Ids of each word's characters, what is beyond the room left out.   (words, room) int32

    room    characters of a word with its two marks (the large LSTM language model of Jozefowicz et al. 2016: 50)
    """
    if room < 3:
        raise DataError(f"room = {room}: expected at least 3, one character between two marks")
    table = np.full((len(words), room), NOTHING, np.int32)
    for row, word in zip(table, words, strict=True):
        body = np.frombuffer(word.encode()[: room - 2], np.uint8)
        row[: len(body) + 2] = [BEGIN, *(body.astype(np.int32) + 1), END]
    return table
