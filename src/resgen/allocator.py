"""Memory reuse: a process keeps freed memory instead of returning it to the system."""

from __future__ import annotations

import ctypes

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # options of glibc's mallopt
NEVER = -1


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees for its next need; False where the C library has no such setting.

    glibc hands large blocks back to the system when they are freed. A step of training or sampling asks for the same
    tensors again, and the system clears every page anew (docs/results/performance.md has what that costs). The process
    stays as large as it was at its largest moment.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(MMAP_MAX, 0)) and bool(mallopt(TRIM_THRESHOLD, NEVER))
