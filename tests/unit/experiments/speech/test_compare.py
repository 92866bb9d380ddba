"""What a comparison of voices refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from resgen.data.sound.decode import write_sound
from resgen.errors import ConfigError, DataError
from resgen.experiments.speech.compare import SpeechComparison, _search_split


def test_a_kind_that_is_not_there_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ConfigError, match="unknown kind 'nonsense'"):
        SpeechComparison(tokenizer="t", text="x", data="d", kinds=("resgen", "nonsense"))


def test_data_without_a_held_out_split(tmp_path: Path) -> None:
    write_sound(torch.linspace(-0.5, 0.5, 800), 8000, tmp_path / "a.wav")
    (tmp_path / "metadata.csv").write_text("a.wav|one|ann")
    with pytest.raises(DataError, match="has the splits train; a comparison needs one of test_seen_speaker"):
        _search_split(str(tmp_path))
