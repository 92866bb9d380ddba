"""Summaries of the times of several runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TypeVar

Name = TypeVar("Name")


def medians(times: Mapping[Name, Sequence[float]]) -> dict[Name, float]:
    """Median of every run."""
    return {name: statistics.median(values) for name, values in times.items()}


def spread(times: Mapping[Name, Sequence[float]]) -> dict[Name, list[float]]:
    """Shortest and longest time of every run."""
    return {name: [min(values), max(values)] for name, values in times.items()}
