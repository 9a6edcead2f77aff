"""Modules with weights and no time."""
