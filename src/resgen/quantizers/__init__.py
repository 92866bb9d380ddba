"""Residual quantizers behind one contract."""

from importlib import import_module

from resgen.quantizers.base import Quantization, Quantizer, QuantizerConfig

__all__ = ["Quantization", "Quantizer", "QuantizerConfig", "make_quantizer"]

_CLASSES = {"probabilistic": "ProbabilisticQuantizer", "ema": "EMAQuantizer", "rfsq": "RFSQuantizer"}


def make_quantizer(config: QuantizerConfig, code_dim: int) -> Quantizer:
    """The quantizer that `config.kind` names; the kind is the name of its module, and only that is imported."""
    module = import_module(f"resgen.quantizers.{config.kind}")
    quantizer: Quantizer = getattr(module, _CLASSES[config.kind])(config, code_dim)
    return quantizer
