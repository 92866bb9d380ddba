"""Recipes: presets of everything that a training needs, as functions."""
