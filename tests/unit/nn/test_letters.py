"""Letters to sounds: shapes, padding, and how frames become phonemes."""

from __future__ import annotations

import pytest
import torch

from resgen.nn.letters import BLANK, FRAMES_PER_LETTER, LetterToSound


@pytest.fixture
def model() -> LetterToSound:
    torch.manual_seed(0)
    return LetterToSound("abc'", "xyz", width=32, num_layers=1).eval()


def test_two_frames_a_letter_and_padding_changes_nothing(model: LetterToSound) -> None:
    words = model.encode(["ab", "cab'a"])
    assert words.tolist() == [[1, 2, 0, 0, 0], [3, 1, 2, 4, 1]]
    logits = model(words)
    assert logits.shape == (2, 5 * FRAMES_PER_LETTER, 1 + 3)
    torch.testing.assert_close(logits[0, : 2 * FRAMES_PER_LETTER], model(model.encode(["ab"]))[0])
    with pytest.raises(KeyError):
        model.encode(["abd"])


def test_repetitions_and_blanks_are_left_out(model: LetterToSound, monkeypatch: pytest.MonkeyPatch) -> None:
    path = torch.tensor([1, 1, BLANK, 1, 3, 3, BLANK, 2])
    logits = torch.nn.functional.one_hot(path, 4).float()[None]
    monkeypatch.setattr(model, "forward", lambda words: logits)
    assert model.pronounce(["ab", "ca"]) == ["xxzy"] * 2
