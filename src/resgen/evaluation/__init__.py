"""Measurements: speed and memory against peers, and what a classifier makes of generated images."""
