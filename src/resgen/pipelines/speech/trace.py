"""Traces of a speech sampler: after every step, the spectrogram decoded so far and the known levels."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from resgen.data.pictures.grid import stacked
from resgen.data.sound.spectrogram import spectrogram_picture
from resgen.ops.mel import log_mel
from resgen.pipelines.image.trace import StepTrace, level_colours
from resgen.pipelines.speech.pipeline import SpeechPipeline
from resgen.pipelines.speech.reconstruct import spectrogram_of
from resgen.tokenizers.codec import CodecTokenizer
from resgen.tokenizers.mel import MelTokenizer

MAX_SEQUENCES = 4
_GAP = 3
_SIDE = 8
"""Pixels of a map's cell in height, and at least in width."""


class SpeechTrace(StepTrace):
    """A trace of speech: a row per sequence, its spectrogram above and a map of known levels below, coarse at the
    bottom, prompts and given codes with them.

    The codes of EnCodec, DAC and Mimi cannot be decoded to so many levels at each position: they are shown as maps.

    Args:
        pipe: what is watched; decodes the mels.
        max_samples: how many sequences are shown.
    """

    def __init__(self, pipe: SpeechPipeline, *, max_samples: int = MAX_SEQUENCES) -> None:
        super().__init__(max_samples)
        self.pipe = pipe

    def draw(self, codes: list[Int[Tensor, "_ D"]], visible: list[Int[Tensor, " _"]]) -> Image.Image:
        """See `StepTrace.draw`."""
        tiles: list[Image.Image] = []
        for one, known in zip(codes, visible, strict=True):
            heat = level_columns(known, one.shape[-1])
            mel = self.mel(one, known)
            if mel is None:
                tiles.append(heat.resize((heat.width * _SIDE, heat.height * _SIDE), Image.Resampling.NEAREST))
                continue
            spectrogram = spectrogram_picture(mel, scale=2)
            tiles.append(spectrogram)
            tiles.append(heat.resize((spectrogram.width, heat.height * _SIDE // 2), Image.Resampling.NEAREST))
        return stacked(tiles, _GAP)

    @torch.inference_mode()
    def mel(self, codes: Int[Tensor, "L D"], visible: Int[Tensor, " L"]) -> Float[Tensor, "F T"] | None:
        """Log-mel of the known levels of a sequence; None for codes that cannot be decoded so."""
        tokenizer, device = self.pipe.codec.tokenizer, self.pipe.device
        if isinstance(tokenizer, CodecTokenizer):
            return None
        decoded = tokenizer.decode(codes[None].to(device), visible=visible[None].to(device))
        if isinstance(tokenizer, MelTokenizer):
            return decoded[0].cpu()
        return log_mel(decoded, spectrogram_of(self.pipe.codec))[0].cpu()


def level_columns(visible: Int[Tensor, " L"], depth: int) -> Image.Image:
    """The known levels of each position as a column from the bottom, a pixel per level: the colour says how many there
    are (dark: none, bright: all)."""
    known = visible.numpy()
    colours = np.broadcast_to(level_colours(known / depth), (depth, len(known), 3)).copy()
    colours[np.arange(depth)[::-1, None] >= known] = level_colours(np.zeros(1))[0]
    return Image.fromarray(colours)
