"""Small codecs of `transformers` with random weights: 8 kHz, 4 levels of 16, latents of width 16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

RATE, LEVELS, SIZE, WIDTH = 8000, 4, 16, 16
UNITS = {"encodec": 20, "dac": 20, "mimi": 40}
FAMILIES = tuple(UNITS)


def make_codec(family: str, seed: int = 0, **changes: Any) -> Any:
    """A codec whose codebooks are not zero, as those of a new one are, and fit its latents."""
    import transformers

    shared = {"sampling_rate": RATE, "codebook_size": SIZE}
    seanet = {"num_filters": 4, "hidden_size": WIDTH, "upsampling_ratios": [5, 4]}
    torch.manual_seed(seed)
    if family == "encodec":  # 400 positions of 4 bits per second and level: 1.6 kbit/s
        settings = shared | seanet | {"num_lstm_layers": 1, "target_bandwidths": [1.6, 4.8, 6.4]}
        codec = transformers.EncodecModel(transformers.EncodecConfig(**settings | changes))
    elif family == "dac":
        settings = shared | {"encoder_hidden_size": 4, "decoder_hidden_size": 16, "n_codebooks": LEVELS}
        settings |= {"codebook_dim": 3, "downsampling_ratios": [4, 5]}
        codec = transformers.DacModel(transformers.DacConfig(**settings | changes))
    else:
        settings = shared | seanet | {"vector_quantization_hidden_dimension": 8, "codebook_dim": 8}
        settings |= {"num_quantizers": LEVELS, "num_semantic_quantizers": 1, "num_hidden_layers": 1}
        settings |= {"intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
        codec = transformers.MimiModel(transformers.MimiConfig(**settings | {"upsample_groups": 16} | changes))
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in codec.parameters():
            if family == "dac" and parameter.ndim == 3:  # their own start is so small that all sounds are alike
                fan = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=stream) * (0.7 / fan) ** 0.5)
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=stream))
        for module in codec.modules():
            if hasattr(module, "embed_sum"):
                module.embed_sum.copy_(torch.randn(module.embed_sum.shape, generator=stream))
                module.cluster_usage.copy_(1 + torch.rand(SIZE, generator=stream))
                module._embed = None
        if family == "encodec":  # its latents are all much alike: entries far apart would not tell them apart
            rows = codec.encoder(torch.randn(1, 1, 20 * SIZE, generator=stream))[0].T
            for level, layer in enumerate(codec.quantizer.layers):
                layer.codebook.embed.copy_(rows if level == 0 else 0.6**level * (rows - rows.mean(0)).roll(level, 0))
    return codec.eval().requires_grad_(False)


def save_codec(path: Path, family: str, seed: int = 0, **changes: Any) -> Path:
    """A folder as `transformers` writes it."""
    make_codec(family, seed, **changes).save_pretrained(path)
    return path
