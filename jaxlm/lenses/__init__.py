"""Lenses: what a trained model holds, read off its weights and activations."""
