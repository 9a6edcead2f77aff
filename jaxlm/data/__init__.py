"""Corpora, tokenizers, layouts and baselines: numpy only, no model."""

from jaxlm.data.baselines import WittenBell, baselines, gzip_bits_per_byte
from jaxlm.data.corpus import Corpus, StandardLibrary, TextFiles
from jaxlm.data.errors import DataError
from jaxlm.data.folder import DataFolder
from jaxlm.data.rows import Evaluation, Lanes, Rows, Stream, pack
from jaxlm.data.text import Text
from jaxlm.data.tokens import Bytes, HuggingFace, Tokenizer

__all__ = [
    "Bytes",
    "Corpus",
    "DataError",
    "DataFolder",
    "Evaluation",
    "HuggingFace",
    "Lanes",
    "Rows",
    "StandardLibrary",
    "Stream",
    "Text",
    "TextFiles",
    "Tokenizer",
    "WittenBell",
    "baselines",
    "gzip_bits_per_byte",
    "pack",
]
