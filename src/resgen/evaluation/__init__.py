"""Measurements: speed and memory beside those of alternatives, and quality judged by networks."""
