"""Residual quantizers behind one contract."""

from collections.abc import Callable

from resgen.quantizers.base import Quantization, Quantizer, QuantizerConfig
from resgen.quantizers.ema import EMAQuantizer
from resgen.quantizers.probabilistic import ProbabilisticQuantizer
from resgen.quantizers.rfsq import RFSQuantizer

__all__ = [
    "EMAQuantizer",
    "ProbabilisticQuantizer",
    "Quantization",
    "Quantizer",
    "QuantizerConfig",
    "RFSQuantizer",
    "make_quantizer",
]

_KINDS: dict[str, Callable[[QuantizerConfig, int], Quantizer]] = {
    "probabilistic": ProbabilisticQuantizer,
    "ema": EMAQuantizer,
    "rfsq": RFSQuantizer,
}


def make_quantizer(config: QuantizerConfig, code_dim: int) -> Quantizer:
    """The quantizer that `config.kind` names."""
    return _KINDS[config.kind](config, code_dim)
