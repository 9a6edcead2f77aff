"""Experiments and the loop that runs them."""

from jaxlm.train.experiment import Experiment

__all__ = ["Experiment"]
