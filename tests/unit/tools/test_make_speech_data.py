"""The corpus tool: names of voices, and sentences."""

from __future__ import annotations

import pytest
from make_speech_data import _varied, _voices
from sentence_grammar import make_texts

from resgen.errors import DataError


def test_varied_voices_of_other_seeds_have_other_names_and_each_has_two_utterances() -> None:
    try:
        voices = _voices()
    except DataError as error:
        pytest.skip(str(error))
    names = [[voice.speaker_id for voice, _ in _varied(voices, 100, seed, altered=True)] for seed in (0, 1, 2)]
    assert all(len(set(of_seed)) == 50 and of_seed[::2] == of_seed[1::2] for of_seed in names)
    assert len(set(sum(names, []))) == 150
    plain = {voice.speaker_id for voice, _ in _varied(voices, 100, 0, altered=False)}
    assert plain.isdisjoint(names[0]), "an altered voice is another one"


def test_sentences_are_different_lower_case_and_repeatable() -> None:
    texts = make_texts(300, seed=4)
    assert len(set(texts)) == 300 and texts == make_texts(300, seed=4) != make_texts(300, seed=5)
    assert all(3 <= len(text.split()) <= 12 and text.replace(" ", "").isalpha() and text.islower() for text in texts)
