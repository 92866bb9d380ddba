"""The corpus tool: names of voices, and sentences."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet
import pytest
from make_speech_data import Digits, Sentences, _varied, _voices, main
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


@pytest.mark.parametrize("kind", [Digits, Sentences])
def test_a_tiny_corpus_has_all_voices_and_needs_no_recordings(kind: type[Digits | Sentences], tmp_path: Path) -> None:
    try:
        voices = _voices()
    except DataError as error:
        pytest.skip(str(error))
    assert main(kind(tiny=True, out=tmp_path / "tiny")) == 0
    train, unseen = (
        pyarrow.parquet.read_table(tmp_path / "tiny" / f"{split}.parquet").to_pylist()
        for split in ("train", "test_unseen_synth")
    )
    assert {row["speaker_id"] for row in train} == {voice.speaker_id for voice in voices if not voice.held_out}
    assert {row["speaker_id"] for row in unseen} == {voice.speaker_id for voice in voices if voice.held_out}
    assert len(train) == 2 * len(set(row["speaker_id"] for row in train))
    assert {row["text"] for row in train}.isdisjoint(row["text"] for row in unseen)


def test_sentences_are_different_lower_case_and_repeatable() -> None:
    texts = make_texts(300, seed=4)
    assert len(set(texts)) == 300 and texts == make_texts(300, seed=4) != make_texts(300, seed=5)
    assert all(3 <= len(text.split()) <= 12 and text.replace(" ", "").isalpha() and text.islower() for text in texts)
