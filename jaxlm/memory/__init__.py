"""Memories that are read by content: memory networks, associative memories, consolidated memories."""
