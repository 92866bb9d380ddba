"""A text that a recording should say, compared with what it says: which words are replaced, and with what."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from resgen.data.spoken import Spoken
from resgen.models.text import TextModel
from resgen.pipelines.speech.edit import changed_words
from resgen.pipelines.speech.pipeline import SpeechPipeline
from speech_parts import save_parts, voice

TEXT = "ab ca bac"


@pytest.mark.parametrize(
    ("text", "span", "words"),
    [
        ("ab cab bac", (1, 2), "cab"),
        ("ab, cab. bac!", (1, 2), "cab."),
        ("ab ca", (1, 3), "ca"),
        ("ab bac", (1, 3), "bac"),
        ("c ab ca bac", (0, 0), "c"),
        ("ab ca ca bac", (2, 2), "ca"),
        ("ab ca bac c.", (3, 3), "c."),
        ("c", (0, 3), "c"),
    ],
)
def test_the_words_that_a_text_changes(text: str, span: tuple[int, int], words: str) -> None:
    found, new = changed_words(Spoken(TEXT, TEXT.encode()), Spoken(text, text.upper().encode()))
    assert (found.start, found.stop) == span and new == Spoken(words, words.upper().encode())


def test_a_word_comes_after_the_last_one_even_if_that_ends_with_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def match(self: TextModel, hidden: Tensor, valid: Tensor, target: Tensor, frames: Tensor) -> Tensor:
        ends = torch.linspace(0, float(frames[0]) - 1, hidden.shape[1]).round().long()
        return torch.cat([ends, frames[:1].cpu()]).diff().expand(len(hidden), -1)  # one frame for the end of the text

    monkeypatch.setattr(TextModel, "match", match)
    pipe = SpeechPipeline.from_pretrained(save_parts(tmp_path / "model"), device="cpu", dtype="float32")
    recording = voice(1.21)
    assert pipe.words(recording, TEXT)[-1].end_s == pytest.approx(1.21), "what follows lies in the padding"
    (result,) = pipe.edit(recording, input_text=TEXT, text=f"{TEXT} c")
    assert result.plan.text == f"{TEXT} c" and result.plan.replaced == []
    assert result.plan.text.split()[result.plan.new_words] == ["c"]
