"""Updates from several micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from resgen.quantizers.base import Quantization


def concatenate(parts: Sequence[Quantization]) -> Quantization:
    """What the micro-batches of a step give `Quantizer.update` together; codes and latents are those of the first."""
    return replace(
        parts[0],
        quantized=parts[0].quantized.detach(),
        commitment=parts[0].commitment.detach(),
        residuals=torch.cat([part.residuals for part in parts], dim=1),
        valid_codes=torch.cat([part.valid_codes for part in parts]),
    )
