"""Which frames of a recording belong to which letters or phonemes, as an image."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Int
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_ROW, _LEFT, _GAP = 11, 20, 6
_ALIGNED, _PREDICTED, _BOTH = (200, 60, 40), (90, 140, 230), (110, 40, 120)


def alignment_picture(
    mel: Image.Image, labels: Sequence[str], durations: Int[Tensor, " N"], predicted: Int[Tensor, " N"]
) -> Image.Image:
    """A mel over a chart with one row per token: frames that the alignment gives it, those predicted, and both.

    Args:
        mel: image whose width stands for all frames of `durations`.
        labels: labels of the tokens.
        durations: frames per token.
        predicted: frames per token.
    """
    scale = mel.width / int(durations.sum())
    width = _LEFT + max(mel.width, round(int(predicted.sum()) * scale))
    picture = Image.new("RGB", (width, mel.height + _GAP + _ROW * len(labels)), "white")
    picture.paste(mel.convert("RGB"), (_LEFT, 0))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=_ROW - 1)
    spans = [_spans(counts) for counts in (durations, predicted)]
    for row, label in enumerate(labels):
        top = mel.height + _GAP + row * _ROW
        draw.text((4, top - 1), label, fill="black", font=font)
        (begin, end), (early, late) = spans[0][row], spans[1][row]
        for first, last, colour in (
            (begin, end, _ALIGNED),
            (early, late, _PREDICTED),
            (max(begin, early), min(end, late), _BOTH),
        ):
            if last > first:
                box = (_LEFT + first * scale, top, _LEFT + last * scale - 1, top + _ROW - 2)
                draw.rectangle(tuple(map(round, box)), fill=colour)
    return picture


def _spans(durations: Tensor) -> list[tuple[int, int]]:
    ends = durations.cumsum(0).tolist()
    return list(zip([0, *ends], ends, strict=False))
