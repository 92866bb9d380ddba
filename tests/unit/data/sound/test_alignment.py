"""Images of alignments."""

from __future__ import annotations

import torch
from PIL import Image

from resgen.data.sound.alignment import alignment_picture


def test_alignment_picture_shows_both_durations() -> None:
    mel = Image.new("RGB", (40, 10), "black")
    picture = alignment_picture(mel, ["|", "a", "|"], torch.tensor([2, 5, 1]), torch.tensor([4, 5, 1]))
    assert picture.height == 10 + 6 + 3 * 11 and picture.width == 20 + 50
    row = 10 + 6 + 11 + 5  # the letter: found in frames 2..6, predicted in 4..8
    colours = [picture.getpixel((20 + 5 * frame + 2, row)) for frame in range(10)]
    assert len(set(colours[2:4])) == len(set(colours[4:7])) == len(set(colours[7:9])) == 1
    assert len({colours[0], colours[2], colours[4], colours[7]}) == 4 and colours[9] == colours[0] == (255, 255, 255)
