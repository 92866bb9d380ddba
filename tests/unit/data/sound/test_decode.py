"""Sounds in and out: formats, rates, levels, silence, and files that are no sounds or not whole."""

from __future__ import annotations

import errno
import io
import math
import os
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from resgen.data.sound import decode as sound
from resgen.data.sound.decode import (
    check_prompt,
    loudness_db,
    loudness_gain,
    normalise_loudness,
    read_sound,
    resample,
    sounding_span,
    trim_silence,
    wav_stream,
    write_sound,
)
from resgen.errors import ConfigError, DataError, WriteError
from resgen.extras import MissingExtraError
from resgen.ops.random import generator

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")


def sine(hz: float, seconds: float, rate: int, level: float = 0.5) -> Tensor:
    return level * torch.sin(2 * math.pi * hz * torch.arange(round(seconds * rate)) / rate)


def noise(count: int, level: float = 0.1) -> Tensor:
    return level * torch.randn(count, generator=generator("noise"))


def encode(
    samples: Tensor | np.ndarray, kind: str = "WAV", subtype: str | None = None, rate: int = 16000, **more: Any
) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.asarray(samples), rate, format=kind, subtype=subtype, **more)
    return file.getvalue()


def peak_hz(samples: Tensor, rate: int) -> float:
    spectrum = torch.fft.rfft(samples * torch.hann_window(len(samples))).abs()
    return int(spectrum.argmax()) * rate / len(samples)


def refusal(source: str | Path | bytes, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_sound(source, 16000, **options)
    message = str(caught.value)
    assert "\n" not in message and "BytesIO" not in message
    return message


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".opus", ".mp3"])
def test_round_trips(tmp_path: Path, suffix: str, rate: int) -> None:
    samples = sine(440, 0.3, rate)
    path = tmp_path / "new" / f"tone{suffix}"
    if suffix == ".opus" and rate in (22050, 44100):
        with pytest.raises(DataError, match=f"at {rate} Hz.*Opus only supports"):
            write_sound(samples, rate, path)
        return
    write_sound(samples, rate, path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with soundfile.SoundFile(path) as file:
        kinds = {".ogg": ("OGG", "VORBIS"), ".opus": ("OGG", "OPUS"), ".mp3": ("MP3", "MPEG_LAYER_III")}
        assert (file.format, file.subtype) == kinds.get(suffix, (suffix[1:].upper(), "PCM_16"))
        assert (file.samplerate, file.channels) == (rate, 1)
    back = read_sound(path, rate)
    assert back.dtype == torch.float32 and back.shape == samples.shape
    if suffix == ".opus":  # which keeps the pitch, not the wave
        assert peak_hz(back, rate) == pytest.approx(440, abs=4) and 0.3 < back.std() / samples.std() < 1.5
    else:
        assert (back - samples).abs().max() < (0.05 if suffix in kinds else 1.01 / 65536)
    assert torch.equal(read_sound(str(path), rate), back) and torch.equal(read_sound(path.read_bytes(), rate), back)
    assert torch.equal(read_sound(memoryview(path.read_bytes()), rate), back)


@pytest.mark.parametrize("suffix", [".wav", ".FLAC"])
def test_16_bit_values_survive_exactly(tmp_path: Path, suffix: str) -> None:
    samples = torch.arange(-32768, 32768).float() / 32768
    write_sound(samples, 16000, tmp_path / f"all{suffix}")
    assert torch.equal(read_sound(tmp_path / f"all{suffix}", 16000), samples)


def test_writing_clips_and_rounds(tmp_path: Path) -> None:
    write_sound(torch.tensor([-2.0, 1.5, 0.6 / 32768, 0.4 / 32768]), 16000, tmp_path / "a.wav")
    assert (read_sound(tmp_path / "a.wav", 16000) * 32768).tolist() == [-32768, 32767, 1, 0]


def test_a_long_vorbis_file_can_be_written(tmp_path: Path) -> None:
    write_sound(torch.zeros(5_000_000), 48000, tmp_path / "long.ogg")
    assert soundfile.info(tmp_path / "long.ogg").frames == 5_000_000


@pytest.mark.parametrize("kind", ["MP3", "AIFF", "AU", "CAF", "W64", "RF64", "WAVEX", "NIST"])
def test_other_formats_are_read(kind: str) -> None:
    samples = sine(440, 0.5, 16000)
    back = read_sound(encode(samples, kind), 16000)
    assert len(back) == 8000 and (back - samples).abs().max() < 0.05


def test_float_and_24_bit_files() -> None:
    samples = sine(440, 0.1, 16000)
    assert torch.equal(read_sound(encode(samples, subtype="FLOAT"), 16000), samples)
    torch.testing.assert_close(read_sound(encode(samples, subtype="PCM_24"), 16000), samples, atol=1e-6, rtol=0)
    assert read_sound(encode(2 * samples, subtype="FLOAT"), 16000).abs().max() == 1


def test_channels_are_averaged() -> None:
    left, right = sine(440, 0.1, 16000), sine(700, 0.1, 16000)
    stereo = encode(torch.stack([left, right], dim=1), subtype="FLOAT")
    torch.testing.assert_close(read_sound(stereo, 16000), (left + right) / 2)
    six = encode(torch.stack([left] * 3 + [torch.zeros_like(left)] * 3, dim=1), subtype="FLOAT")
    torch.testing.assert_close(read_sound(six, 16000), left / 2)


@pytest.mark.parametrize(("from_hz", "to_hz"), [(44100, 16000), (16000, 22050), (48000, 16000), (8000, 44100)])
def test_resampling_keeps_frequency_level_and_length(from_hz: int, to_hz: int) -> None:
    samples = sine(1000, 1.0003, from_hz)
    result = resample(samples, from_hz, to_hz)
    assert result.dtype == torch.float32 and abs(len(result) - len(samples) * to_hz / from_hz) <= 1
    assert peak_hz(result, to_hz) == pytest.approx(1000, abs=2)
    expected = sine(1000, len(result) / to_hz, to_hz)
    inner = slice(to_hz // 20, -to_hz // 20)
    torch.testing.assert_close(result[inner], expected[: len(result)][inner], atol=1e-3, rtol=0)
    assert torch.equal(read_sound(encode(samples, subtype="FLOAT", rate=from_hz), to_hz), result.clamp(-1, 1))


def test_resampling_removes_what_the_new_rate_cannot_hold() -> None:
    assert resample(sine(7000, 0.5, 16000), 16000, 8000)[400:-400].abs().max() < 1e-3


def test_resampling_to_the_same_rate_and_of_little() -> None:
    samples = noise(100)
    assert torch.equal(resample(samples, 16000, 16000), samples)
    assert resample(torch.zeros(0), 16000, 8000).shape == (0,)
    assert [len(resample(torch.ones(n), 48000, 16000)) for n in (1, 2, 3, 4, 5, 100)] == [1, 1, 1, 1, 2, 33]


def test_full_scale_stays_in_range_after_resampling() -> None:
    square = sine(100, 0.2, 44100).sign()
    assert resample(square, 44100, 16000).abs().max() > 1
    assert read_sound(encode(square, subtype="FLOAT", rate=44100), 16000).abs().max() == 1


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.97])
def test_files_that_end_early(kind: str, part: float) -> None:
    content = encode(noise(48000), kind)
    assert len(read_sound(content, 16000)) == 48000
    assert refusal(content[: int(len(content) * part)]).startswith("the sound ")


def test_the_message_of_a_file_that_ends_early_has_numbers() -> None:
    content = encode(noise(1000))
    assert refusal(content[:-500]) == "the sound is cut short: 1500 of 2000 bytes of sound are there"
    assert "its last page is not complete" in refusal(encode(noise(20000), "OGG")[:-1])


def test_mp3_files_without_a_table_are_read_to_their_end() -> None:
    content = encode(sine(440, 3, 16000), "MP3", bitrate_mode="CONSTANT", compression_level=0.5)
    second_frame = content.index(content[:2], content.index(b"Info"))
    bare = content[second_frame:] + b"APETAGEX" + bytes(900)  # libsndfile counts the tag as sound
    with soundfile.SoundFile(io.BytesIO(bare)) as file:
        assert file.frames > len(read_sound(bare, 16000)) >= 48000


@pytest.mark.parametrize("stated", [0xFFFFFFFF, 0x7FFFF000])
def test_streamed_wav_files_are_read_to_their_end(stated: int) -> None:
    samples = noise(1000)
    content = bytearray(encode(samples))
    place = content.index(b"data") + 4
    content[place : place + 4] = struct.pack("<I", stated)
    assert len(read_sound(bytes(content), 16000)) == 1000


def flac_claiming(count: int) -> bytes:
    """A FLAC file of 20,000 samples whose header (STREAMINFO, 36 bits at byte 21) says another number."""
    content = bytearray(encode(noise(20000), "FLAC"))
    word = int.from_bytes(content[18:26], "big") >> 36 << 36 | count
    content[18:26] = word.to_bytes(8, "big")
    return bytes(content)


def test_a_sound_is_written_part_by_part() -> None:
    parts = [torch.linspace(-1.5, 1.5, 50), torch.zeros(7), torch.tensor([0.25])]
    header, *contents = wav_stream(iter(parts), 8000)
    assert len(header) == 44 and [len(content) for content in contents] == [100, 14, 2]
    sound = read_sound(b"".join([header, *contents]), 8000)
    torch.testing.assert_close(sound, torch.cat(parts).clamp(-1, 1), atol=1e-4, rtol=0)


def test_headers_that_promise_too_much() -> None:
    content = bytearray(encode(noise(1000)))
    place = content.index(b"data") + 4
    content[place : place + 4] = struct.pack("<I", 0x70000000)
    assert "2000 of 1879048192 bytes" in refusal(bytes(content))
    assert refusal(flac_claiming(2**36 - 1)) == (
        "the sound is 4294967.3 s long; at most 600 s are read: cut it into pieces"
    )
    assert "cannot be decoded" in refusal(flac_claiming(30000))
    assert "does not say how long it is; convert it to WAV" in refusal(flac_claiming(0))
    assert len(read_sound(flac_claiming(20000), 16000)) == 20000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a sound of a known format (WAV,"),
        (b"Once upon a time there was a text.\n" * 100, "not a sound of a known format"),
        (bytes(5000), "not a sound of a known format"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "cannot be decoded"),
        (b"OggS" + bytes(60), "cannot be decoded"),
        (encode(np.zeros(0)), "holds no sound (0 samples)"),
        (encode(np.array([0.0, np.nan]), subtype="FLOAT"), "not finite"),
        (encode(np.array([0.0, -np.inf]), subtype="FLOAT"), "not finite"),
        (encode(np.array([0.0, 20000.0]), subtype="FLOAT"), "values up to 2e+04, but those of a sound lie in [-1, 1]"),
        (encode(np.zeros(100), rate=900), "has 900 samples per second; 1000 to 384000 are read"),
        (encode(np.zeros(100), rate=2_000_000_000), "has 2000000000 samples per second"),
        (encode(np.zeros(100), "VOC", "PCM_16"), "has format VOC; allowed: WAV, "),
    ],
    ids=lambda value: value if isinstance(value, str) else "bytes",  # a file's bytes may hold the time
)
def test_hostile_bytes(content: bytes, message: str) -> None:
    assert message in refusal(content)
    assert refusal(content, where="'train.parquet' row 3").startswith("'train.parquet' row 3 ")


def test_random_damage_is_an_error_or_a_sound() -> None:
    stream = np.random.default_rng(0)
    for kind in ("WAV", "FLAC", "OGG"):
        whole = encode(noise(3000), kind)
        for _ in range(30):
            content = bytearray(whole)
            for place in stream.integers(0, len(content), 5):
                content[place] = stream.integers(256)
            try:
                result = read_sound(bytes(content), 16000)
            except DataError as error:
                assert "\n" not in str(error)
            else:
                assert len(result) and result.isfinite().all()


def test_damage_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    content = encode(noise(3000), "AIFF").replace(b"SSND", b"none")  # libsndfile then seeks to -1
    assert "cannot be decoded" in refusal(content)
    assert capfd.readouterr() == ("", "")


def test_places_without_a_sound(tmp_path: Path) -> None:
    missing = tmp_path / "missing.wav"
    assert refusal(missing) == f"sound '{missing}' cannot be read: No such file or directory"
    assert refusal(tmp_path) == f"sound '{tmp_path}' cannot be read: it is a folder"
    assert "cannot be read: embedded null byte" in refusal("a\0b.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    assert "it is not a regular file" in refusal(tmp_path / "pipe.wav")


def test_a_suffix_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(encode(noise(100), "FLAC"))
    assert len(read_sound(tmp_path / "a.raw", 16000)) == 100


def test_long_sounds_are_refused_with_their_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode(np.zeros(24000))
    assert refusal(content, max_seconds=1.4) == "the sound is 1.5 s long; at most 1.4 s are read: cut it into pieces"
    assert len(read_sound(content, 16000, max_seconds=1.5)) == 24000
    assert "is 600.1 s long; at most 600 s" in refusal(encode(np.zeros(4_800_800), "FLAC", rate=8000))
    assert refusal(content, max_values=23_999) == "the sound has 24000 samples in 1 channels; at most 23999 are read"
    (tmp_path / "a.wav").write_bytes(content)
    monkeypatch.setattr(sound, "MAX_BYTES", 48_000)
    assert "it has 48044 bytes; at most 48000 are read" in refusal(tmp_path / "a.wav")


def test_rates_and_limits_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"sample_rate_hz=0 must lie in 1000\.\.384000"):
        read_sound(encode(noise(10)), 0)
    with pytest.raises(ConfigError, match="max_seconds=nan must be positive"):
        read_sound(encode(noise(10)), 16000, max_seconds=math.nan)
    for call in (
        lambda: resample(noise(10), 16000, -1),
        lambda: resample(noise(10), 10**9, 16000),
        lambda: write_sound(noise(10), 0, "never.wav"),
        lambda: loudness_db(noise(10), 0),
        lambda: trim_silence(noise(10), 0),
        lambda: check_prompt(noise(10), 0, where="it"),
    ):
        with pytest.raises(ConfigError, match="sample_rate_hz="):
            call()


@pytest.mark.parametrize("name", ["a.mp4", "a", "a.", "wav"])
def test_an_unknown_suffix_leaves_nothing_behind(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"unknown suffix '.*'; allowed: .wav, .flac, .ogg, .opus, .mp3"):
        write_sound(noise(10), 16000, tmp_path / "new" / name)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    for samples, message in ((torch.zeros(0), "no samples"), (torch.tensor([math.nan]), "not finite")):
        with pytest.raises(DataError, match=message):
            write_sound(samples, 16000, tmp_path / "a.wav")
    with pytest.raises(DataError, match="at 384000 Hz; Vorbis takes at most 200000"):
        write_sound(noise(10), 384_000, tmp_path / "a.ogg")
    with pytest.raises(DataError, match="at 200001 Hz: .*flac"):
        write_sound(noise(10), 200_001, tmp_path / "a.flac")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.wav"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(WriteError, match=f"cannot write '{path}': No space left on device"):
        write_sound(noise(10), 16000, path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"] and path.read_text() == "old"


def test_unwritable_places(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WriteError, match="cannot write"):
        write_sound(noise(10), 16000, tmp_path / "file" / "a.wav")
    (tmp_path / "b.wav").mkdir()
    with pytest.raises(WriteError, match="cannot write"):
        write_sound(noise(10), 16000, tmp_path / "b.wav")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.wav", "file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to the superuser")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match="Permission denied"):
        write_sound(noise(10), 16000, tmp_path / "a.wav")
    tmp_path.chmod(0o700)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["soundfile", "soxr", "pyloudnorm"])
def test_missing_packages_name_the_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode(noise(100), rate=8000)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"'{package}' is not installed.*\[speech\]"):
        loudness_db(noise(8000), 16000) if package == "pyloudnorm" else read_sound(content, 16000)


@pytest.mark.parametrize("rate", [16000, 48000])
def test_loudness_of_a_sine(rate: int) -> None:
    pytest.importorskip("pyloudnorm")
    # BS.1770: a full-scale sine of 997 Hz measures -3.01 LKFS in one front channel
    assert loudness_db(sine(997, 2, rate, 1.0), rate) == pytest.approx(-3.01, abs=0.1)
    assert loudness_db(sine(60, 2, rate, 1.0), rate) < -4, "the standard hears low tones less"
    assert loudness_db(sine(997, 2, rate, 0.1), rate) == pytest.approx(-23.01, abs=0.1)


def test_loudness_of_short_faint_and_silent_sounds() -> None:
    pytest.importorskip("pyloudnorm")
    assert loudness_db(sine(1000, 0.3999, 16000, 0.1), 16000) == pytest.approx(-23.01, abs=0.02)
    voice = sine(300, 1, 16000) + noise(16000)
    assert loudness_db(1e-4 * voice, 16000) == pytest.approx(loudness_db(voice, 16000) - 80, abs=0.01)
    assert loudness_db(torch.zeros(16000), 16000) == loudness_db(torch.zeros(0), 16000) == -math.inf


def test_loudness_counts_speech_not_pauses() -> None:
    pytest.importorskip("pyloudnorm")
    tone = sine(997, 2, 16000)
    with_pause = torch.cat([tone, torch.zeros(32000)])
    assert loudness_db(with_pause, 16000) == pytest.approx(loudness_db(tone, 16000), abs=0.5)


@pytest.mark.parametrize("seconds", [0.1, 0.39, 0.41, 2.0])
@pytest.mark.parametrize("level", [1e-5, 1e-3, 0.3])
@pytest.mark.parametrize("target_db", [-23.0, -16.0])
def test_normalised_sounds_have_the_wanted_loudness(seconds: float, level: float, target_db: float) -> None:
    pytest.importorskip("pyloudnorm")
    samples = sine(300, seconds, 16000, level) + sine(1200, seconds, 16000, level / 2)
    result = normalise_loudness(samples, 16000, target_db)
    assert loudness_db(result, 16000) == pytest.approx(target_db, abs=0.5)
    torch.testing.assert_close(result / result.abs().max(), samples / samples.abs().max())


def test_normalising_never_clips() -> None:
    pytest.importorskip("pyloudnorm")
    click = 1e-3 * noise(16000)
    click[8000] = 0.5
    result = normalise_loudness(click, 16000)
    assert result.abs().max() == pytest.approx(0.99, abs=1e-6) and loudness_db(result, 16000) < -23.5
    torch.testing.assert_close(result, click * (0.99 / 0.5))
    assert loudness_gain(click, 16000) == pytest.approx(0.99 / 0.5) and loudness_gain(torch.zeros(9), 16000) == 1.0
    assert torch.equal(normalise_loudness(torch.zeros(16000), 16000), torch.zeros(16000))
    assert normalise_loudness(torch.zeros(0), 16000).shape == (0,)
    with pytest.raises(ConfigError, match="target_db=inf must be finite"):
        normalise_loudness(click, 16000, math.inf)


@pytest.mark.parametrize("level", [1.0, 1e-3])
def test_trimming_cuts_both_ends_and_keeps_pauses(level: float) -> None:
    rate = 16000
    tone = sine(300, 0.3, rate)
    quiet = [noise(round(s * rate), 1e-4) for s in (0.5, 0.4, 0.7)]
    samples = level * torch.cat([quiet[0], tone, quiet[1], tone, quiet[2]])
    result = trim_silence(samples, rate, margin_s=0.05)
    begin, end = round(0.45 * rate), round(1.55 * rate)
    assert torch.equal(result, samples[begin:end]) and sounding_span(samples, rate) == (begin, end)
    assert torch.equal(trim_silence(samples, rate, margin_s=0.0), samples[begin + 800 : end - 800])
    assert torch.equal(trim_silence(samples, rate, threshold_db=-90.0), samples)
    assert torch.equal(trim_silence(samples, rate, margin_s=5.0), samples)


@pytest.mark.parametrize("offset", [0.0005, -0.001, 0.02, 0.1])
def test_a_constant_offset_is_no_sound(offset: float) -> None:
    pytest.importorskip("pyloudnorm")
    rate = 16000
    samples = torch.cat([torch.zeros(rate), 0.05 * noise(rate), torch.zeros(rate + 7)])
    assert sounding_span(samples + offset, rate) == sounding_span(samples, rate) == (15200, 32800)
    assert sounding_span(torch.full((1007,), offset), rate) == (0, 1007)
    for part in (samples, samples[rate : rate + 3200]):
        assert loudness_db(part + offset, rate) == pytest.approx(loudness_db(part, rate), abs=0.3)


def test_trimming_of_silence_and_of_little() -> None:
    for samples in (torch.zeros(1000), torch.zeros(0), torch.ones(1)):
        assert torch.equal(trim_silence(samples, 16000), samples)
        assert sounding_span(samples, 16000) == (0, len(samples))
    late = torch.zeros(1005)
    late[1004] = 1  # in the last, incomplete frame
    assert torch.equal(trim_silence(late, 16000, margin_s=0.01), late[800:])
    assert sounding_span(late, 16000, margin_s=0.01) == (800, 1005), "no sample beyond the last"
    with pytest.raises(ConfigError, match="threshold_db=1.0 must be at most 0"):
        trim_silence(late, 16000, threshold_db=1.0)
    with pytest.raises(ConfigError, match="margin_s=-1.0"):
        trim_silence(late, 16000, margin_s=-1.0)


def test_prompts() -> None:
    good = sine(200, 0.5, 16000)
    check_prompt(good, 16000, where="the prompt")
    check_prompt(sine(200, 1, 16000, 0.002), 16000, where="the prompt")
    few = sine(200, 1, 16000)
    few[:160] = 1.0  # exactly 1 %
    check_prompt(few, 16000, where="the prompt")
    many = few.clone()
    many[160] = -1.0
    spoilt = good.clone()
    spoilt[7] = math.nan
    for samples, message in (
        (good[:-1], "the prompt is 0.50 s long; it takes at least 0.5 s of speech"),
        (torch.zeros(0), "the prompt is 0.00 s long"),
        (torch.zeros(16000), "the prompt is silent: -inf dB of full scale, at least -60 needed"),
        (sine(200, 1, 16000, 0.001), "the prompt is silent: -63 dB"),
        (torch.full((16000,), 0.5), "the prompt is silent"),
        (many, "the prompt is overdriven: 1.0% of its samples are clipped, at most 1% allowed"),
        ((3 * good).clamp(-1, 1), "the prompt is overdriven"),
        (spoilt, "the prompt holds values that are not finite"),
    ):
        with pytest.raises(DataError) as caught:
            check_prompt(samples, 16000, where="the prompt")
        assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
