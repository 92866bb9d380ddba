"""Peak memory of one piece of work, measured in a process of its own, and extrapolated to larger ones."""

from __future__ import annotations

import math
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

Work = Callable[[], object]


def extra_peak_bytes(build: Callable[..., tuple[Work, Work]], **arguments: Any) -> int:
    """By how many bytes the resident memory of a fresh process rises at most while some work runs.

    A fresh process has no freed memory that the work could reuse unseen, and no earlier peak that hides it.

    Args:
        build: a function of a module; called there with `arguments`, it returns a small version of the work, run first
            so that libraries have set themselves up, and the work to measure.
        arguments: simple values.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(_measure, build, arguments, torch.get_num_threads()).result()


def largest_batch(points: Sequence[tuple[int, int]], weight_bytes: int, memory_bytes: float) -> dict[str, Any]:
    """The largest batch that fits, by a straight line through two measured (batch size, extra bytes).

    Returns:
        `bytes_per_image`, `batches` (the two) and `largest_batch`, which is None where memory does not grow.
    """
    (small, low), (large, high) = points[0], points[-1]
    slope = (high - low) / (large - small)
    fixed = low - slope * small
    fits = max(0, math.floor((memory_bytes - weight_bytes - fixed) / slope)) if slope > 0 else None
    return {"bytes_per_image": slope, "batches": [small, large], "largest_batch": fits}


def _measure(build: Callable[..., tuple[Work, Work]], arguments: dict[str, Any], num_threads: int) -> int:
    torch.set_num_threads(num_threads)
    warm_up, work = build(**arguments)
    warm_up()
    before = _reset_peak()
    result = work()  # kept until the peak is read
    peak = _peak_bytes()
    del result
    return max(0, peak - before)


def _reset_peak() -> int:
    """Let the peak start again at what is resident now, and return it; without Linux's /proc, the peak so far."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status_bytes("VmRSS")
    except OSError:
        return _peak_bytes()


def _peak_bytes() -> int:
    try:
        return _status_bytes("VmHWM")
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")
