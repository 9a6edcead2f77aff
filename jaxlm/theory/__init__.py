"""Experiments of theory papers as functions."""
