"""Recipes: presets of everything that a training run needs, as functions."""
