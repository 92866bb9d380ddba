"""Recordings through a sound tokenizer, level by level, and what is inside speech models."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from resgen.checkpoints.artefacts import save_tokenizer
from resgen.checkpoints.speech import VoiceConfig, save_text_model, save_vocoder
from resgen.data.sound.decode import loudness_db, read_sound, write_sound
from resgen.errors import ConfigError, DataError
from resgen.modalities import of_model
from resgen.models.text import TextModel, TextModelConfig
from resgen.nn.seeding import seeded
from resgen.ops.mel import MelConfig, log_mel
from resgen.pipelines.describe import describe_artefact
from resgen.pipelines.speech.reconstruct import (
    Utterance,
    open_codec,
    read_utterances,
    reconstruct_sound,
    spectrogram_of,
)
from resgen.quantizers import QuantizerConfig
from resgen.tokenizers.mel import MelTokenizer, MelTokenizerConfig
from resgen.tokenizers.sound import SoundCodec
from resgen.tokenizers.vocoder import Vocoder, VocoderConfig
from resgen.tokenizers.waveform import WaveformTokenizer, WaveformTokenizerConfig

RATE = 8000
MEL = MelConfig(sample_rate_hz=RATE, fft_size=256, window_size=200, hop_size=50, num_bands=20, max_hz=4000.0)
QUANTIZER = QuantizerConfig(depth=6, codebook_size=5)


def tone(seconds: float, hz: float = 300.0, level: float = 0.5) -> torch.Tensor:
    time = torch.arange(int(seconds * RATE)) / RATE
    return level * torch.sin(2 * math.pi * hz * time) * (1 + torch.sin(2 * math.pi * 3 * time)) / 2


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `mel`, `waveform`, `vocoder`, `other_vocoder` and `text`, untrained."""
    folder = tmp_path_factory.mktemp("models")
    with seeded("tiny speech"):
        config = MelTokenizerConfig(
            mel=MEL, width=8, num_blocks=1, code_dim=4, max_positions=40, quantizer=QUANTIZER, strides=(2, 2, 2)
        )
        save_tokenizer(folder / "mel", MelTokenizer(config), history={"steps": 3})
        waveform = WaveformTokenizerConfig(
            sample_rate_hz=RATE,
            window_size=20,
            hop_size=10,
            widths=(8, 8),
            strides=(4, 10),
            num_blocks=1,
            code_dim=4,
            max_positions=40,
            quantizer=QUANTIZER,
        )
        save_tokenizer(folder / "waveform", WaveformTokenizer(waveform))
        save_vocoder(folder / "vocoder", Vocoder(VocoderConfig(mel=MEL, width=8, num_layers=1)))
        wide = MelConfig(sample_rate_hz=RATE, fft_size=256, window_size=256, hop_size=64, num_bands=20, max_hz=4000.0)
        save_vocoder(folder / "other_vocoder", Vocoder(VocoderConfig(mel=wide, width=8, num_layers=1)))
        text = TextModel(TextModelConfig(width=8, num_layers=1, num_heads=2, mlp_width=8, num_bands=20, max_tokens=64))
        save_text_model(folder / "text", text, alphabet=" enotw", history={"steps": 5})
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three splits of recordings, five of them in `test_seen_speaker`, each of another pitch and length."""
    folder = tmp_path / "data"
    for split, count in (("train", 1), ("test_seen_speaker", 5), ("val", 1)):
        lines = []
        for row in range(count):
            write_sound(tone(0.5 + 0.1 * row, 200.0 * (row + 1)), RATE, folder / split / f"{split}{row}.wav")
            lines.append(f"{split}{row}.wav|text {row}|speaker")
        (folder / split / "metadata.csv").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("name", ["mel", "waveform"])
def test_files_distances_and_sheet(name: str, models: Path, tmp_path: Path) -> None:
    codec, voice = open_codec(models / name, models / "vocoder" if name == "mel" else None)
    assert voice == VoiceConfig() and not codec.needs_vocoder
    utterances = [Utterance("long", "one", tone(1.03)), Utterance("short", "", tone(0.52, 700))]
    records = []

    def intelligibility(original: torch.Tensor, sound: torch.Tensor, rate: int) -> float | None:
        records.append((len(original), len(sound), rate))
        return float(len(records)) if len(original) > RATE else None

    result = reconstruct_sound(codec, utterances, tmp_path / "new" / "out", intelligibility=intelligibility)
    assert [row.num_levels for row in result.levels] == [1, 2, 4, 6]
    assert [row.intelligibility for row in result.levels] == [1, 3, 5, 7], "those without an answer are left out"
    assert set(records) == {(8240, 8240, RATE), (4160, 4160, RATE)}
    assert result.duration_s == pytest.approx(1.55)
    names = [f"0{row}_{part}.wav" for row in (1, 2) for part in ("levels_01", "levels_02", "levels_04", "levels_06")]
    names += ["01_original.wav", "02_original.wav", "levels.png"]
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == sorted(names)
    assert [file.name for file in result.files[1]][-2:] == ["02_levels_06.wav", "02_original.wav"]
    # The distance is that of the sounds, each alone and no longer than it is.
    mel, sounds = spectrogram_of(codec), []
    for one in utterances:
        unit = codec.samples_per_position
        samples = torch.nn.functional.pad(one.samples, (0, -len(one.samples) % unit))[None]
        codes, valid = codec.encode(samples, torch.tensor([len(one.samples)]))
        sounds.append(codec.decode(codes, valid, 2)[0, : len(one.samples)])
    distances = []
    for one, sound in zip(utterances, sounds, strict=True):
        pad = (0, -len(sound) % mel.hop_size)
        both = [log_mel(torch.nn.functional.pad(x, pad)[None], mel) for x in (one.samples, sound)]
        distances.append(float((both[0] - both[1]).abs().mean()))
    assert result.levels[1].mel_distance == pytest.approx(sum(distances) / 2, rel=1e-4)
    written = read_sound(result.files[1][1], RATE)
    assert len(written) == 4160 and (written - sounds[1]).abs().max() < 1e-3
    assert (read_sound(result.files[0][-1], RATE) - utterances[0].samples).abs().max() < 1e-4
    width, height = Image.open(result.sheet).size
    frames = math.ceil(8240 / mel.hop_size)
    assert width > 5 * frames and 2 * mel.num_bands < height < 3 * mel.num_bands + 30


def test_without_a_vocoder_there_is_griffin_lim(models: Path, tmp_path: Path) -> None:
    codec, _ = open_codec(models / "mel")
    assert codec.needs_vocoder
    result = reconstruct_sound(codec, [Utterance("a", "", tone(0.5))], tmp_path)
    assert all(math.isfinite(row.mel_distance) and row.intelligibility is None for row in result.levels)


def test_vocoders_that_do_not_fit(models: Path) -> None:
    with pytest.raises(ConfigError, match=r"hop_size=64.*hop_size=50"):
        open_codec(models / "mel", models / "other_vocoder")
    with pytest.raises(ConfigError, match="waveform tokenizer takes no vocoder"):
        open_codec(models / "waveform", models / "vocoder")


def test_utterances_of_data_are_spread_over_its_test_split(data: Path) -> None:
    utterances = read_utterances(data, RATE, num=3)
    assert [one.name for one in utterances] == [f"test_seen_speaker{row}.wav" for row in (0, 2, 4)]
    assert [one.text for one in utterances] == ["text 0", "text 2", "text 4"]
    assert loudness_db(utterances[1].samples, RATE) == pytest.approx(-23, abs=0.1)
    (data / "test_seen_speaker").rename(data / "test")
    assert len(read_utterances(data, RATE, num=8)) == 5
    assert loudness_db(read_utterances(data, RATE, num=1, loudness_db=None)[0].samples, RATE) > -20


def test_a_file_is_trimmed(tmp_path: Path) -> None:
    write_sound(torch.cat([torch.zeros(RATE), tone(0.5), torch.zeros(RATE)]), RATE, tmp_path / "me.wav")
    (utterances,) = read_utterances(tmp_path / "me.wav", RATE)
    assert (utterances.name, utterances.text) == ("me", "") and 0.4 * RATE < len(utterances.samples) < 0.75 * RATE


def test_input_that_cannot_be_used(models: Path, tmp_path: Path) -> None:
    write_sound(torch.zeros(RATE), RATE, tmp_path / "silent.wav")
    (tmp_path / "text.wav").write_text("no sound")
    write_sound(tone(2.1), RATE, tmp_path / "long.wav")
    with pytest.raises(DataError, match="'silent'.*silence"):
        read_utterances(tmp_path / "silent.wav", RATE)
    with pytest.raises(DataError, match=r"text\.wav"):
        read_utterances(tmp_path / "text.wav", RATE)
    with pytest.raises(DataError, match="nowhere"):
        read_utterances(tmp_path / "nowhere", RATE)
    with pytest.raises(ConfigError, match=r"num=9 must lie in 1\.\.8"):
        read_utterances(tmp_path / "long.wav", RATE, num=9)
    codec, _ = open_codec(models / "mel")
    with pytest.raises(DataError, match="'long' has 2.1 s of speech; the tokenizer takes 2.0 s at most"):
        reconstruct_sound(codec, read_utterances(tmp_path / "long.wav", RATE), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("rate", "hop", "fft", "highest"), [(8000, 100, 512, 4000), (44_100, 551, 4096, 8000)])
def test_waveform_tokenizers_are_compared_at_80_frames_per_second(rate: int, hop: int, fft: int, highest: int) -> None:
    config = WaveformTokenizerConfig(
        sample_rate_hz=rate, widths=(8,), strides=(8,), num_blocks=1, code_dim=4, quantizer=QUANTIZER
    )
    mel = spectrogram_of(SoundCodec(WaveformTokenizer(config)))
    assert (mel.hop_size, mel.fft_size, mel.max_hz) == (hop, fft, highest)
    assert (mel.window_size, mel.sample_rate_hz) == (4 * hop, rate)


def test_description_of_speech_models(models: Path) -> None:
    mel = describe_artefact(models / "mel")
    codes = {"positions_per_second": 20.0, "samples_per_position": 400, "max_seconds": 2.0, "sample_rate_hz": RATE}
    assert mel["speech"] == {"codes": {**codes, "depth": 6, "codebook_size": 5}}
    assert mel["history"] == {"tokenizer": {"steps": 3}}
    assert {"encoder", "decoder"} <= set(mel["components"]["tokenizer"]["numbers_by_part"])
    waveform = describe_artefact(models / "waveform")
    assert waveform["speech"] == mel["speech"]
    vocoder = describe_artefact(models / "vocoder")
    assert vocoder["speech"] == {"vocoder": {"sample_rate_hz": RATE, "frames_per_second": 160.0}}
    text = describe_artefact(models / "text")
    assert text["speech"] == {"text": {"alphabet_size": 6, "max_tokens": 64}} and text["history"]["text"]["steps"] == 5
    json.dumps([mel, waveform, vocoder, text])


def test_kind_of_tokenizer_is_read_from_the_configuration_alone(models: Path, model: Path, tmp_path: Path) -> None:
    import shutil

    assert of_model(model).name == "image" and "speech" not in describe_artefact(model)
    copy = Path(shutil.copytree(models / "waveform", tmp_path / "copy"))
    (copy / "tokenizer.safetensors").write_bytes(b"damaged")
    assert all(of_model(path).name == "speech" for path in (copy, models / "mel", models / "vocoder"))
