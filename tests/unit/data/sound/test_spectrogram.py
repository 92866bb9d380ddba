"""Spectrogram images: orientation, colours, sheets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from resgen.data.pictures.grid import PAD
from resgen.data.sound.spectrogram import HIGHEST, LOWEST, spectrogram_colours, spectrogram_picture, spectrogram_sheet
from resgen.errors import ConfigError, DataError


def test_low_frequencies_lie_at_the_bottom() -> None:
    mel = torch.full((4, 3), LOWEST)
    mel[0, 2] = HIGHEST
    colours = spectrogram_colours(mel)
    bright = colours.sum(0)
    assert bright[3, 2] == bright.max() and (bright[:3] == bright[0, 0]).all() and bright[3, 0] == bright[0, 0]


def test_the_colour_map_grows_lighter_throughout() -> None:
    values = spectrogram_colours(torch.linspace(-11.5, 1.5, 200)[None])[:, 0].double()
    lightness = 0.2126 * values[0] + 0.7152 * values[1] + 0.0722 * values[2]
    assert (lightness.diff() > -0.5).all() and lightness[0] < 5 and lightness[-1] > 230
    assert values[:, 0].tolist() == [0, 0, 4] and values[:, -1].tolist() == [252, 253, 191]


def test_values_beyond_the_scale() -> None:
    colours = spectrogram_colours(torch.tensor([[-100.0, LOWEST, HIGHEST, 100.0, float("nan")]]))[:, 0]
    assert torch.equal(colours[:, 0], colours[:, 1]) and torch.equal(colours[:, 2], colours[:, 3])
    assert torch.equal(colours[:, 4], colours[:, 0])


def test_picture() -> None:
    mel = torch.randn(5, 7)
    picture = spectrogram_picture(mel, scale=3)
    assert picture.mode == "RGB" and picture.size == (21, 15)
    expected = spectrogram_colours(mel).permute(1, 2, 0).numpy()
    assert np.array_equal(np.asarray(picture)[1::3, 1::3], expected)


def test_sheet_places_mels_and_ends_short_ones_in_white() -> None:
    rows = [[torch.zeros(6, 10), torch.zeros(6, 4)], [torch.zeros(6, 8), torch.zeros(6, 10)]]
    array = np.asarray(spectrogram_sheet(rows))
    assert array.shape == (PAD + 2 * (6 + PAD), PAD + 2 * (10 + PAD), 3)
    colour = spectrogram_colours(torch.zeros(1, 1))[:, 0, 0].tolist()
    for row, column, width in ((0, 0, 10), (0, 1, 4), (1, 0, 8), (1, 1, 10)):
        top, left = PAD + row * (6 + PAD), PAD + column * (10 + PAD)
        assert (array[top : top + 6, left : left + width] == colour).all()
        assert (array[top : top + 6, left + width : left + 10] == 255).all()


def test_labels_take_their_own_room() -> None:
    rows = [[torch.zeros(40, 60)] * 2]
    plain, labelled = spectrogram_sheet(rows), spectrogram_sheet(rows, labels=["1", "real"], row_labels=["one"])
    assert labelled.width > plain.width and labelled.height > plain.height


@pytest.mark.parametrize(
    "rows",
    [[], [[]], [[torch.zeros(4, 3)], [torch.zeros(4, 3)] * 2], [[torch.zeros(4, 3), torch.zeros(5, 3)]]],
)
def test_rows_that_do_not_fit(rows: list) -> None:
    with pytest.raises(DataError, match="equally many mels"):
        spectrogram_sheet(rows)


def test_settings_out_of_range() -> None:
    with pytest.raises(ConfigError, match="scale=0"):
        spectrogram_picture(torch.zeros(2, 2), scale=0)
    with pytest.raises(DataError, match=r"\(2, 0\)"):
        spectrogram_colours(torch.zeros(2, 0))
