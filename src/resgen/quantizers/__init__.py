"""Residual quantizers behind one contract."""

from resgen.quantizers.base import Quantization, Quantizer, QuantizerConfig
from resgen.quantizers.ema import EMAQuantizer
from resgen.quantizers.probabilistic import ProbabilisticQuantizer

__all__ = ["EMAQuantizer", "ProbabilisticQuantizer", "Quantization", "Quantizer", "QuantizerConfig", "make_quantizer"]


def make_quantizer(config: QuantizerConfig, code_dim: int) -> Quantizer:
    """The quantizer that `config.kind` names."""
    return (ProbabilisticQuantizer if config.kind == "probabilistic" else EMAQuantizer)(config, code_dim)
