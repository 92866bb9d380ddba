"""Recordings to train on, and recordings to validate on."""

from __future__ import annotations

from pathlib import Path

from resgen.data.announce import announce
from resgen.data.sound.sources import SpeechSource, available_splits, open_speech
from resgen.data.splits import held_out_split, training_split
from resgen.errors import DataError

HELD_OUT_EVERY = 20


def open_speech_splits(data: str | Path) -> tuple[SpeechSource, SpeechSource]:
    """Training and held-out recordings: the data's own splits or, where none is held out, every 20th speaker or, of
    fewer than 20 speakers, every 20th utterance.

    Raises:
        DataError: the data has no split `train`, or only one utterance.
    """
    splits = available_splits(data)
    train = open_speech(data, training_split(splits, data))
    if name := held_out_split(splits):
        return train, open_speech(data, name)
    speakers = sorted(set(train.speakers))
    held_out_speakers = set(speakers[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY])
    held_out = [row for row, speaker in enumerate(train.speakers) if speaker in held_out_speakers]
    every = min(HELD_OUT_EVERY, len(train))
    held_out = held_out or list(range(every - 1, len(train), every))
    if len(train) < 2:
        raise DataError(f"'{data}' holds 1 utterance; training needs at least 2, one for validation")
    what = f"{len(held_out_speakers)} speakers" if held_out_speakers else f"every {every}th utterance"
    announce(f"data '{train.name}' has no held-out split: {len(held_out)} utterances ({what}) are held out")
    rows = sorted(set(range(len(train))) - set(held_out))
    return train.subset(rows), train.subset(held_out, "held_out")
