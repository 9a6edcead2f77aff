"""Memories that are read by content: memory networks, associative memories, consolidated memories."""

from jaxlm.memory.memnn import MemNN
from jaxlm.memory.memnn_rnn import RNNResponse
from jaxlm.memory.segmenter import Segmenter

__all__ = ["MemNN", "RNNResponse", "Segmenter"]
