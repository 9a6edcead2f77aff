"""Whole models: they take tokens or vectors and give logits or readouts."""

from jaxlm.models.lm import LM
from jaxlm.models.ngram_lm import NGramLM
from jaxlm.models.sequence import SequenceModel

__all__ = ["LM", "NGramLM", "SequenceModel"]
