"""How many rows to compute at once."""

from __future__ import annotations

import torch

CPU_BLOCK = 1 << 20
DEVICE_BLOCK = 1 << 25


def rows_per_block(elements: int, device: torch.device) -> int:
    """Rows of `elements` numbers each that stay in a processor's cache, or small against a device's memory."""
    return max(1, (CPU_BLOCK if device.type == "cpu" else DEVICE_BLOCK) // max(1, elements))
