"""Which voices a folder keeps, and under which names."""

from __future__ import annotations

import pytest

from resgen.checkpoints.voices import Voice, check_voice, voice_entries
from resgen.errors import ConfigError

ANN = Voice(b"sound", "a cab")


def test_voices_are_looked_at_when_they_are_saved() -> None:
    assert voice_entries({"ann": ANN, "ben": ANN}) == {
        name: {"file": f"{name}.flac", "text": "a cab"} for name in ("ann", "ben")
    }
    assert voice_entries({"ann": ANN._replace(prepared=True)})["ann"]["prepared"] is True
    with pytest.raises(ConfigError, match="must be a name"):
        voice_entries({"ann": ANN, "../ben": ANN})  # it would be written beside the folder
    with pytest.raises(ConfigError, match="differs from 'Ann' in upper and lower case only"):
        voice_entries({"ann": ANN, "Ann": ANN})


def test_names_that_differ_in_case_only_are_one_name() -> None:
    check_voice("ann", ANN, {"ann": ANN})
    with pytest.raises(ConfigError, match="'Ann' differs from 'ann' in upper and lower case only; choose another name"):
        check_voice("Ann", ANN, {"ann": ANN})
    with pytest.raises(ConfigError, match="not 'default'"):
        check_voice("Default", ANN, {})


def test_what_is_too_long_is_told_with_its_length() -> None:
    with pytest.raises(ConfigError, match="has 5 bytes, its text 1200 characters; at most 1048576 and 1000 are kept"):
        check_voice("ann", ANN._replace(text="a cab " * 200), {})
