"""Whole studies: comparisons, sweeps, the health of a run."""
