"""Sequence models with memory, as pure functions."""
