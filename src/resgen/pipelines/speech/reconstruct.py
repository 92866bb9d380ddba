"""Recordings through a sound tokenizer, level by level."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from resgen.checkpoints.speech import VOCODER, VoiceConfig, load_sound_tokenizer, load_vocoder
from resgen.config import config_from_dict
from resgen.data.pictures.grid import save_picture
from resgen.data.sound.decode import normalise_loudness, read_sound, trim_silence, write_sound
from resgen.data.sound.sources import available_splits, open_speech
from resgen.data.sound.spectrogram import spectrogram_sheet
from resgen.errors import ConfigError, DataError
from resgen.ops.mel import MelConfig, log_mel
from resgen.progress import show_progress
from resgen.tokenizers.base import level_counts
from resgen.tokenizers.mel import MelTokenizer
from resgen.tokenizers.sound import SoundCodec

MAX_UTTERANCES = 8
SHEET = "levels.png"
FRAMES_PER_SECOND = 80  # of the spectrograms of waveform tokenizers

Intelligibility = Callable[[Tensor, Tensor, int], float | None]
"""(original, reconstruction, rate in Hz) to a number; None where there is no answer."""


class Utterance(NamedTuple):
    """A recording as the tokenizer takes it.

    Attributes:
        name: name of the file, or of the utterance in the data.
        text: what is said; empty for a file.
        samples: float32, trimmed and at the tokenizer's loudness.
    """

    name: str
    text: str
    samples: Float[Tensor, " S"]


class LevelMeasures(NamedTuple):
    """Means over the utterances, decoded from the first `num_levels` levels.

    Attributes:
        num_levels: 1, 2, 4, ..., all.
        mel_distance: mean absolute difference to the original's natural-log mel, in nats.
        intelligibility: as measured by what was given for that; None where nothing was, or it had no answer.
    """

    num_levels: int
    mel_distance: float
    intelligibility: float | None


@dataclass(frozen=True, kw_only=True)
class SoundReconstruction:
    """The result of `reconstruct_sound`, with the files that it wrote.

    Attributes:
        levels: by number of decoded levels, coarse to fine.
        files: per utterance, the sounds of all numbers of levels and last the original as it was encoded.
        sheet: the spectrograms.
        duration_s: length of all utterances.
        seconds: for encoding and decoding.
    """

    levels: list[LevelMeasures]
    files: list[list[Path]]
    sheet: Path
    duration_s: float
    seconds: float


def open_codec(tokenizer: str | Path, vocoder: str | Path | None = None) -> tuple[SoundCodec, VoiceConfig]:
    """A sound tokenizer, with a vocoder if there is one, and how recordings are prepared for it.

    Args:
        tokenizer: folder of a sound tokenizer or speech pipeline, or a bundled name.
        vocoder: folder of a vocoder (or speech pipeline) in place of the pipeline's own.

    Raises:
        CheckpointError: nothing there, damaged, or of another kind.
        ConfigError: a vocoder for a tokenizer of waveforms, or one of other mels than the tokenizer's.
    """
    loaded, folder = load_sound_tokenizer(tokenizer)
    voice = config_from_dict(VoiceConfig, folder.extra.get("voice", {}), where="voice.")
    source = tokenizer if vocoder is None and VOCODER in folder.components else vocoder
    if source is None:
        return SoundCodec(loaded), voice
    return SoundCodec(loaded, load_vocoder(source)[0]), voice


def read_utterances(
    path: str | Path, sample_rate_hz: int, *, num: int = 4, loudness_db: float | None = -23.0
) -> list[Utterance]:
    """A sound file, or utterances spread evenly over the test split of speech data, without silence at their ends.

    Args:
        path: a sound, as `read_sound` takes it, or data, as `open_speech` takes it (the split `test`, else the first
            whose name begins so, else the first).
        sample_rate_hz: rate of the samples.
        num: the most utterances, 1..8.
        loudness_db: LUFS that each is brought to; None leaves them.

    Raises:
        ConfigError: `num` out of range.
        DataError: nothing there, it cannot be read, or there is nothing but digital silence in it.
    """
    if not 1 <= num <= MAX_UTTERANCES:
        raise ConfigError(f"num={num} must lie in 1..{MAX_UTTERANCES}")
    path = Path(path)
    if path.is_file() and path.suffix.lower() != ".parquet":
        utterances = [Utterance(path.stem, "", read_sound(path, sample_rate_hz))]
    else:
        splits = available_splits(path)
        tests = sorted((name for name in splits if name.startswith("test")), key=lambda name: (name != "test", name))
        source = open_speech(path, [*tests, *splits][0])
        rows = torch.linspace(0, len(source) - 1, min(num, len(source))).long().tolist()
        utterances = [Utterance(source.ids[row], source.texts[row], source.read(row, sample_rate_hz)) for row in rows]
    prepared = []
    for one in utterances:
        if not one.samples.any():
            raise DataError(f"'{one.name}' of '{path}' holds nothing but digital silence")
        samples = trim_silence(one.samples, sample_rate_hz)
        if loudness_db is not None:
            samples = normalise_loudness(samples, sample_rate_hz, loudness_db)
        prepared.append(one._replace(samples=samples))
    return prepared


@torch.inference_mode()
def reconstruct_sound(
    codec: SoundCodec,
    utterances: Sequence[Utterance],
    out: str | Path,
    *,
    intelligibility: Intelligibility | None = None,
) -> SoundReconstruction:
    """Encode and decode utterances, and write them decoded from 1, 2, 4, ... and all levels.

    The folder gets a WAV file per utterance and number of levels (`01_levels_04.wav`), the original as it was encoded
    (`01_original.wav`), and `levels.png`: a row per utterance, a column per number of levels, the original last.
    Spectrograms and distances are of the sounds, so that with a mel tokenizer the vocoder has its part in them.

    Args:
        codec: what `open_codec` returned.
        utterances: what `read_utterances` returned, at the codec's rate.
        out: folder, which is made if it is missing.
        intelligibility: measures each sound against its original as well.

    Raises:
        DataError: an utterance longer than the tokenizer takes, or the folder cannot be written.
    """
    unit, rate = codec.samples_per_position, codec.sample_rate_hz
    most = codec.spec.num_positions * unit
    for one in utterances:
        if len(one.samples) > most:
            raise DataError(
                f"'{one.name}' has {len(one.samples) / rate:.1f} s of speech; "
                f"the tokenizer takes {most / rate:.1f} s at most"
            )
    out, mel = Path(out), spectrogram_of(codec)
    originals = [one.samples for one in utterances]
    lengths = torch.tensor([len(samples) for samples in originals])
    padded = pad_sequence(originals, batch_first=True)
    begin = time.perf_counter()
    codes, valid = codec.encode(F.pad(padded, (0, -padded.shape[1] % unit)), lengths)
    counts = level_counts(codec.spec.depth)
    decoded: list[list[Tensor]] = []
    for count in show_progress(((1, count) for count in counts), len(counts), "reconstructing"):
        sounds = codec.decode(codes, valid, count)
        decoded.append([sound[:length] for sound, length in zip(sounds, lengths.tolist(), strict=True)])
    seconds = time.perf_counter() - begin
    targets = [_mel_of(samples, mel) for samples in originals]
    levels, columns = [], []
    for count, row in zip(counts, decoded, strict=True):
        mels = [_mel_of(samples, mel) for samples in row]
        distances = [float((one - other).abs().mean()) for one, other in zip(mels, targets, strict=True)]
        scores: list[float | None] = []
        if intelligibility is not None:
            scores = [intelligibility(one, sound, rate) for one, sound in zip(originals, row, strict=True)]
        known = [value for value in scores if value is not None]
        levels.append(LevelMeasures(count, sum(distances) / len(distances), sum(known) / len(known) if known else None))
        columns.append(mels)
    names = [*(f"levels_{count:02d}" for count in counts), "original"]
    files = []
    for number, sounds_of in enumerate(zip(*decoded, originals, strict=True), start=1):
        places = [out / f"{number:02d}_{name}.wav" for name in names]
        for place, samples in zip(places, sounds_of, strict=True):
            write_sound(samples, rate, place)
        files.append(places)
    sheet = spectrogram_sheet(
        list(zip(*columns, targets, strict=True)),
        labels=[*map(str, counts), "original"],
        row_labels=[(one.text or one.name)[:40] for one in utterances],
    )
    save_picture(sheet, out / SHEET)
    return SoundReconstruction(
        levels=levels, files=files, sheet=out / SHEET, duration_s=int(lengths.sum()) / rate, seconds=seconds
    )


def spectrogram_of(codec: SoundCodec) -> MelConfig:
    """The mels that sounds are compared in: the tokenizer's own or, for one of waveforms, 80 frames per second."""
    if isinstance(codec.tokenizer, MelTokenizer):
        return codec.tokenizer.config.mel
    rate = codec.sample_rate_hz
    hop = max(1, rate // FRAMES_PER_SECOND)
    return MelConfig(
        sample_rate_hz=rate,
        fft_size=1 << (4 * hop - 1).bit_length(),
        window_size=4 * hop,
        hop_size=hop,
        max_hz=min(8000.0, rate / 2),
    )


def _mel_of(samples: Float[Tensor, " S"], mel: MelConfig) -> Float[Tensor, "F T"]:
    """Frames of the whole sound, the last one filled up with silence."""
    return log_mel(F.pad(samples, (0, -len(samples) % mel.hop_size))[None], mel)[0]
