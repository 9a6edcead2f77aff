"""Corpora, tokenizers, layouts and baselines: numpy only, no model."""

from jaxlm.data.baselines import KneserNey, WittenBell, baselines, gzip_bits_per_byte
from jaxlm.data.corpus import Corpus, StandardLibrary, TextFiles
from jaxlm.data.errors import DataError
from jaxlm.data.folder import DataFolder
from jaxlm.data.rows import Evaluation, Lanes, Rows, Stream, pack
from jaxlm.data.sentencepiece import SentencePiece
from jaxlm.data.text import Text
from jaxlm.data.tokens import Bytes, GPT2Files, HuggingFace, Tokenizer, tokenizer_in

__all__ = [
    "Bytes",
    "Corpus",
    "DataError",
    "DataFolder",
    "Evaluation",
    "GPT2Files",
    "HuggingFace",
    "KneserNey",
    "Lanes",
    "Rows",
    "SentencePiece",
    "StandardLibrary",
    "Stream",
    "Text",
    "TextFiles",
    "Tokenizer",
    "WittenBell",
    "baselines",
    "gzip_bits_per_byte",
    "pack",
    "tokenizer_in",
]
