"""A tokenizer with fewer levels: residual quantization is coarse to fine, so the first levels are a tokenizer too."""

from __future__ import annotations

from dataclasses import replace

from resgen.checkpoints.tensors import load_state, module_tensors
from resgen.errors import ConfigError
from resgen.tokenizers.image import ImageTokenizer


def truncate_tokenizer(tokenizer: ImageTokenizer, depth: int) -> ImageTokenizer:
    """The same encoder and decoder with the first `depth` levels; its codes are the first `depth` of the full ones.

    The decoder was trained on sums of all levels, so this is a lower bound on what a tokenizer of that depth can do.

    Raises:
        ConfigError: `depth` is not in 1..D.
    """
    full = tokenizer.spec.depth
    if not 1 <= depth <= full:
        raise ConfigError(f"depth={depth} must lie in 1..{full}")
    config = replace(tokenizer.config, quantizer=replace(tokenizer.config.quantizer, depth=depth))
    shorter = ImageTokenizer(config)
    shapes = shorter.state_dict()
    tensors = {
        name: tensor[:depth] if shapes[name].shape != tensor.shape else tensor
        for name, tensor in module_tensors(tokenizer).items()
    }
    load_state(shorter, tensors, f"tokenizer of depth {full}")
    return shorter.eval().requires_grad_(False)
