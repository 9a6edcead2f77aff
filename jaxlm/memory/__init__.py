"""Memories that are read by content: memory networks, associative memories, consolidated memories."""

from jaxlm.memory.memn2n import MemN2N
from jaxlm.memory.memnn import MemNN
from jaxlm.memory.memnn_rnn import RNNResponse
from jaxlm.memory.segmenter import Segmenter

__all__ = ["MemN2N", "MemNN", "RNNResponse", "Segmenter"]
