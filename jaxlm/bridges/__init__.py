"""Weights to and from the files of other libraries."""
