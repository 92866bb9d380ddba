"""Interleaved timing of several pieces of work, and what the times depend on.

All work runs interleaved in one process, so that a change of the machine's load affects all of it. Seconds are
medians over the repetitions; ratios are medians of the ratios within a repetition.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from resgen.devices import dtype_name
from resgen.progress import Advance, no_progress

Name = TypeVar("Name")
CPU = torch.device("cpu")


def timed(run: Callable[[], object], device: torch.device = CPU) -> float:
    """Seconds of `run`, until the device has done all of it."""
    _synchronize(device)
    begin = time.perf_counter()
    run()
    _synchronize(device)
    return time.perf_counter() - begin


def interleaved(
    runs: Mapping[Name, Callable[[], object]],
    repetitions: int,
    device: torch.device = CPU,
    advance: Advance = no_progress,
) -> dict[Name, list[float]]:
    """Seconds of every run, all of them once per repetition, in an order that turns round each time."""
    times: dict[Name, list[float]] = {name: [] for name in runs}
    names, total = list(runs), repetitions * len(runs)
    for repetition in range(repetitions):
        for number, name in enumerate(names):
            advance(repetition * len(runs) + number, total, "timed runs")
            times[name].append(timed(runs[name], device))
        names.reverse()
    advance(total, total, "timed runs")
    return times


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest of the ratios within a repetition."""
    ratios = [n / d for n, d in zip(numerator, denominator, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def machine_of(device: torch.device, *dtypes: torch.dtype) -> dict[str, Any]:
    """What the numbers depend on besides the settings."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "device": f"{device.type}: {name}",
        "dtype": ", ".join(dtype_name(dtype) for dtype in dtypes),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": load,
    }


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
