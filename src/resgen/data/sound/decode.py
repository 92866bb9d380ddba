"""One sound: bytes or a file in, mono samples at the requested rate out; every failure is named; levels and silence."""

from __future__ import annotations

import io
import math
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from resgen.errors import ConfigError, DataError
from resgen.extras import import_extra
from resgen.files import atomic_path

MAX_SECONDS = 600.0
MAX_BYTES = 1 << 30
MAX_VALUES = 1 << 28  # samples times channels, 1 GiB when decoded
MAX_PEAK = 4.0  # of a file of floats; more than 12 dB above full scale is another unit, 16-bit numbers for example
PEAK = 0.99  # the highest that `normalise_loudness` makes
MIN_PROMPT_SECONDS = 0.5
_RATES_HZ = (1_000, 384_000)
_READ_FORMATS = ("WAV", "WAVEX", "RF64", "W64", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "NIST")
_WRITE_FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
# what libsndfile's log says of a file that ends before its header does: bytes of sound announced, bytes there
_CUT_SHORT = re.compile(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN_BYTES = 0x7FFF_F000  # programs that write to a pipe put this (SoX) or 0xFFFFFFFF (FFmpeg) for a length
_MAX_VORBIS_HZ = 200_000  # above it libsndfile 1.2 crashes instead of refusing
_WRITE_BLOCK = 1 << 16  # frames; libsndfile's Vorbis encoder overflows its stack on long blocks
_BLOCK_S = 0.4  # of BS.1770
_FRAME_S = 0.01  # of `trim_silence`
_SILENT_DB = -60.0  # of a prompt
_CLIPPED = 0.99
_MAX_CLIPPED = 0.01


def read_sound(
    source: str | Path | bytes | memoryview,
    sample_rate_hz: int,
    *,
    where: str | None = None,
    max_seconds: float = MAX_SECONDS,
    max_values: int = MAX_VALUES,
) -> Float[Tensor, " S"]:
    """Decode a sound, average its channels and resample it; values beyond [-1, 1] are clipped.

    Args:
        source: a file, or its content: WAV, FLAC, OGG (Vorbis, Opus), MP3, AIFF, AU, CAF or NIST Sphere.
        sample_rate_hz: samples per second of the result.
        where: what to call it in an error; the file's name if left out.
        max_seconds: refuse longer ones, before they are decoded.
        max_values: refuse those with more samples times channels, likewise.

    Returns:
        float32 in [-1, 1], at least one sample.

    Raises:
        ConfigError: a rate outside 1,000..384,000 Hz, or a `max_seconds` that is not positive.
        DataError: missing, not a sound of these formats, damaged, cut short, empty, too long, values that are not
            finite or far outside [-1, 1], a rate outside 1,000..384,000 Hz.
        MissingExtraError: soundfile or soxr is not installed.
    """
    _check_rate(sample_rate_hz)
    if not max_seconds > 0:
        raise ConfigError(f"max_seconds={max_seconds} must be positive")
    encoded = isinstance(source, bytes | memoryview)
    where = where or ("the sound" if encoded else f"sound '{source!s}'")
    samples, rate = _decode(source, where, max_seconds, max_values)
    peak = float(np.abs(samples).max())
    if not math.isfinite(peak):
        raise DataError(f"{where} holds values that are not finite (NaN or infinity)")
    if peak > MAX_PEAK:
        raise DataError(f"{where} holds values up to {peak:.4g}, but those of a sound lie in [-1, 1]; scale them")
    return resample(torch.from_numpy(samples.mean(axis=1)), rate, sample_rate_hz).clamp(-1, 1)


def write_sound(samples: Float[Tensor, " S"], sample_rate_hz: int, path: str | Path) -> None:
    """Write a sound atomically; missing folders are made.

    Args:
        samples: clipped to [-1, 1] and rounded to 16 bits; read again, a WAV or FLAC file gives the rounded values.
        sample_rate_hz: samples per second.
        path: a `.wav`, `.flac`, `.ogg` (Vorbis), `.opus` or `.mp3` file; the last three lose a little.

    Raises:
        DataError: unknown suffix; further errors are those of `encode_sound`.
        WriteError: the place cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _WRITE_FORMATS:
        raise DataError(f"cannot write '{path}': unknown suffix '{path.suffix}'; allowed: {', '.join(_WRITE_FORMATS)}")
    content = encode_sound(samples, sample_rate_hz, suffix, where=f"'{path}'")
    with atomic_path(path, sync=False) as temporary:
        temporary.write_bytes(content)


def wav_stream(parts: Iterable[Float[Tensor, " _"]], sample_rate_hz: int) -> Iterator[bytes]:
    """A WAV file of 16 bits whose length is not known yet: its header, and each part as soon as it is there.

    Args:
        parts: samples, clipped to [-1, 1].
        sample_rate_hz: samples per second.
    """
    yield wav_header(sample_rate_hz)
    for part in parts:
        yield pcm_bytes(part)


def wav_header(sample_rate_hz: int) -> bytes:
    """The header that precedes the samples of a `wav_stream`."""
    unknown_size = 0xFFFFFFFF
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, sample_rate_hz, 2 * sample_rate_hz, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", unknown_size, b"WAVE") + form + struct.pack("<4sI", b"data", unknown_size)


def pcm_bytes(samples: Float[Tensor, " S"]) -> bytes:
    """Samples, clipped to [-1, 1], in 16 bits each, the low byte first."""
    return _whole_numbers(samples).astype("<i2").tobytes()


def _whole_numbers(samples: Float[Tensor, " S"]) -> np.ndarray:
    """16-bit samples. Rounded here: libsndfile multiplies by 32,767 in writing and divides by 32,768 in reading."""
    return (samples.detach().cpu().double() * 32768).round().clamp(-32768, 32767).to(torch.int16).numpy()


def encode_sound(
    samples: Float[Tensor, " S"], sample_rate_hz: int, suffix: str = ".wav", *, where: str = "the sound"
) -> bytes:
    """The content of a sound file.

    Args:
        samples: clipped to [-1, 1] and rounded to 16 bits.
        sample_rate_hz: samples per second.
        suffix: what kind of file, as for `write_sound`.
        where: what to call it in an error.

    Raises:
        ConfigError: a rate outside 1,000..384,000 Hz.
        DataError: no samples, values that are not finite, or a rate that the format lacks.
        MissingExtraError: soundfile is not installed.
    """
    _check_rate(sample_rate_hz)
    kind = _WRITE_FORMATS[suffix]
    if kind[1] == "VORBIS" and sample_rate_hz > _MAX_VORBIS_HZ:
        raise DataError(f"cannot write {where} at {sample_rate_hz} Hz; Vorbis takes at most {_MAX_VORBIS_HZ}")
    if not len(samples):
        raise DataError(f"cannot write {where}: the sound has no samples")
    if not samples.isfinite().all():
        raise DataError(f"cannot write {where}: the sound holds values that are not finite (NaN or infinity)")
    whole = _whole_numbers(samples)
    soundfile = import_extra("soundfile", "speech")
    content = io.BytesIO()
    try:
        with soundfile.SoundFile(content, "w", sample_rate_hz, 1, kind[1], format=kind[0]) as file:
            for start in range(0, len(whole), _WRITE_BLOCK):
                file.write(whole[start : start + _WRITE_BLOCK])
    except soundfile.LibsndfileError as error:
        raise DataError(f"cannot write {where} at {sample_rate_hz} Hz: {error.error_string}") from error
    return content.getvalue()


def resample(samples: Float[Tensor, " S"], from_hz: int, to_hz: int) -> Float[Tensor, " R"]:
    """Another rate, by soxr (high quality): R = S * to_hz / from_hz, rounded, at least 1 for S > 0. No gradient.

    Raises:
        ConfigError: a rate outside 1,000..384,000 Hz.
        MissingExtraError: soxr is not installed and the rates differ.
    """
    _check_rate(from_hz)
    _check_rate(to_hz)
    if from_hz == to_hz or not len(samples):
        return samples
    soxr = import_extra("soxr", "speech")
    result = torch.from_numpy(soxr.resample(samples.detach().cpu().float().numpy(), from_hz, to_hz))
    length = max(1, round(len(samples) * to_hz / from_hz))
    padded = torch.nn.functional.pad(result, (0, max(0, length - len(result))))  # soxr rounds down at times
    return padded[:length].to(samples)


def loudness_db(samples: Float[Tensor, " S"], sample_rate_hz: int) -> float:
    """Integrated loudness in dB relative to full scale (LUFS): ITU-R BS.1770-4 through pyloudnorm.

    Two additions, for the standard has no answer there: a sound shorter than its block of 0.4 s is measured by its root
    mean square around its mean, and one that lies below its gate of -70 throughout as if it were amplified. `-inf` for
    digital silence or no samples.

    Raises:
        ConfigError: a rate outside 1,000..384,000 Hz.
        MissingExtraError: pyloudnorm is not installed.
    """
    _check_rate(sample_rate_hz)
    values = samples.detach().cpu().double().numpy()
    peak = float(np.abs(values).max(initial=0))
    if not peak > 0:
        return -math.inf
    if len(values) < _BLOCK_S * sample_rate_hz:
        return _power_db(float(values.var()))  # around the mean: a constant is silence too
    pyloudnorm = import_extra("pyloudnorm", "speech")
    meter = pyloudnorm.Meter(sample_rate_hz, block_size=_BLOCK_S)
    loudness = float(meter.integrated_loudness(values))
    if not math.isfinite(loudness):
        loudness = float(meter.integrated_loudness(values / peak)) + 20 * math.log10(peak)
    return loudness


def normalise_loudness(
    samples: Float[Tensor, " S"], sample_rate_hz: int, target_db: float = -23.0
) -> Float[Tensor, " S"]:
    """Scale a sound by its `loudness_gain`, whose errors it raises; silence stays."""
    return samples * loudness_gain(samples, sample_rate_hz, target_db)


def loudness_gain(samples: Float[Tensor, " S"], sample_rate_hz: int, target_db: float = -23.0) -> float:
    """The factor that brings a sound to a loudness (see `loudness_db`), or as near to it as a peak of 0.99 allows; 1
    for silence.

    Raises:
        ConfigError: a rate outside 1,000..384,000 Hz, or a target that is not finite.
        MissingExtraError: pyloudnorm is not installed.
    """
    if not math.isfinite(target_db):
        raise ConfigError(f"target_db={target_db} must be finite")
    loudness = loudness_db(samples, sample_rate_hz)
    if not math.isfinite(loudness):
        return 1.0
    return min(10 ** ((target_db - loudness) / 20), PEAK / float(samples.abs().max()))


def trim_silence(
    samples: Float[Tensor, " S"], sample_rate_hz: int, *, threshold_db: float = -40.0, margin_s: float = 0.05
) -> Float[Tensor, " R"]:
    """Cut off what is silent at both ends; pauses inside stay, and so does a sound that is silent throughout.

    Arguments and errors as in `sounding_span`.
    """
    begin, end = sounding_span(samples, sample_rate_hz, threshold_db=threshold_db, margin_s=margin_s)
    return samples[begin:end]


def sounding_span(
    samples: Float[Tensor, " S"], sample_rate_hz: int, *, threshold_db: float = -40.0, margin_s: float = 0.05
) -> tuple[int, int]:
    """The first sample that is not silence at the beginning, and the one after the last; all of a sound that is silent
    throughout.

    Args:
        samples: a sound of any level.
        sample_rate_hz: samples per second.
        threshold_db: a frame of 10 ms is silent if its power, around its mean (a constant offset is no sound), lies
            this far (a negative number) below the loudest one's.
        margin_s: seconds to keep around what is not silent.

    Raises:
        ConfigError: a rate outside 1,000..384,000 Hz, a threshold above 0 or a margin below 0.
    """
    _check_rate(sample_rate_hz)
    if not threshold_db <= 0:
        raise ConfigError(f"threshold_db={threshold_db} must be at most 0; it is relative to the loudest frame")
    if not 0 <= margin_s < math.inf:
        raise ConfigError(f"margin_s={margin_s} must be at least 0 and finite")
    if not len(samples):
        return 0, 0
    frame = max(1, round(_FRAME_S * sample_rate_hz))
    values = samples.detach().double()
    padded = torch.cat([values, values[-1:].expand(-len(values) % frame)])
    power = padded.unflatten(0, (-1, frame)).var(1, correction=0)
    if not power.max() > 0:
        return 0, len(samples)
    loud = (power >= power.max() * 10 ** (threshold_db / 10)).nonzero()
    margin = round(margin_s * sample_rate_hz)
    return max(0, int(loud[0]) * frame - margin), min(len(samples), (int(loud[-1]) + 1) * frame + margin)


def check_prompt(samples: Float[Tensor, " S"], sample_rate_hz: int, *, where: str) -> None:
    """Reject a sound that cannot serve as a speech prompt or be edited.

    Args:
        samples: in [-1, 1].
        sample_rate_hz: samples per second.
        where: what to call it in an error.

    Raises:
        ConfigError: a rate outside 1,000..384,000 Hz.
        DataError: shorter than 0.5 s, silent (below -60 dB of full scale), more than 1 % of the samples clipped, or
            values that are not finite.
    """
    _check_rate(sample_rate_hz)
    seconds = len(samples) / sample_rate_hz
    if seconds < MIN_PROMPT_SECONDS:
        raise DataError(f"{where} is {seconds:.2f} s long; it takes at least {MIN_PROMPT_SECONDS} s of speech")
    if not samples.isfinite().all():
        raise DataError(f"{where} holds values that are not finite (NaN or infinity)")
    level = _power_db(float(samples.double().var(correction=0)))  # around the mean: a constant is silence too
    if level < _SILENT_DB:
        raise DataError(
            f"{where} is silent: {level:.0f} dB of full scale, at least {_SILENT_DB:.0f} needed; record louder"
        )
    clipped = float((samples.abs() >= _CLIPPED).double().mean())
    if clipped > _MAX_CLIPPED:
        raise DataError(
            f"{where} is overdriven: {clipped:.1%} of its samples are clipped, at most {_MAX_CLIPPED:.0%} allowed; "
            "record with less gain"
        )


def _check_rate(sample_rate_hz: int) -> None:
    if not _RATES_HZ[0] <= sample_rate_hz <= _RATES_HZ[1]:
        raise ConfigError(f"sample_rate_hz={sample_rate_hz} must lie in {_RATES_HZ[0]}..{_RATES_HZ[1]}")


class _Content(io.BytesIO):
    """Bytes for libsndfile, which on damaged files seeks before the start; an exception there would only be printed."""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return super().seek(max(0, offset) if whence == io.SEEK_SET else offset, whence)


def _decode(
    source: str | Path | bytes | memoryview, where: str, max_seconds: float, max_values: int
) -> tuple[Float[np.ndarray, "S C"], int]:
    """All channels, and the rate in Hz; refuses what is empty or not whole."""
    soundfile = import_extra("soundfile", "speech")
    try:
        content = bytes(source) if isinstance(source, bytes | memoryview) else _read_file(Path(source))
        with soundfile.SoundFile(_Content(content)) as file:
            _check_header(file, content, where, max_seconds, max_values)
            samples = file.read(file.frames, dtype="float32", always_2d=True)  # GSM has to be told how many
            announced, rate, layout = file.frames, file.samplerate, file.format
    except DataError:
        raise
    except soundfile.LibsndfileError as error:
        if error.code == 1:  # SF_ERR_UNRECOGNISED_FORMAT
            raise DataError(f"{where} is not a sound of a known format ({', '.join(_READ_FORMATS)})") from error
        reason = error.error_string.rstrip(".")
        raise DataError(f"{where} cannot be decoded ({reason}); it is damaged or cut short") from error
    except Exception as error:  # of the file system, or whatever a decoder raises on damaged bytes
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{where} cannot be read: {reason}") from error
    if not len(samples):
        raise DataError(f"{where} holds no sound (0 samples)")
    # the length of an MP3 file without a table of contents is a guess from its size
    exact = layout != "MP3" or b"Xing" in content or b"Info" in content
    if exact and len(samples) < announced:
        raise DataError(f"{where} is cut short: {len(samples)} of {announced} samples are there")
    return samples, rate


def _read_file(path: Path) -> bytes:
    if path.is_dir():
        raise OSError("it is a folder")
    if path.exists() and not path.is_file():
        raise OSError("it is not a regular file")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise OSError(f"it has {size} bytes; at most {MAX_BYTES} are read")
    return path.read_bytes()


def _check_header(file: Any, content: bytes, where: str, max_seconds: float, max_values: int) -> None:
    """Reject by what the header says, before anything is decoded."""
    if file.format not in _READ_FORMATS:
        raise DataError(f"{where} has format {file.format}; allowed: {', '.join(_READ_FORMATS)}")
    if not _RATES_HZ[0] <= file.samplerate <= _RATES_HZ[1]:
        raise DataError(f"{where} has {file.samplerate} samples per second; {_RATES_HZ[0]} to {_RATES_HZ[1]} are read")
    if file.frames >= 2**62:  # libsndfile's mark for a stream whose length nobody wrote down
        raise DataError(f"{where} does not say how long it is; convert it to WAV")
    seconds = file.frames / file.samplerate
    if seconds > max_seconds:
        raise DataError(f"{where} is {seconds:.1f} s long; at most {max_seconds:g} s are read: cut it into pieces")
    if file.frames * file.channels > max_values:
        raise DataError(f"{where} has {file.frames} samples in {file.channels} channels; at most {max_values} are read")
    for size, present in _CUT_SHORT.findall(file.extra_info):
        if int(present) < int(size) < _UNKNOWN_BYTES:
            raise DataError(f"{where} is cut short: {present} of {size} bytes of sound are there")
    if file.format == "OGG" and not _ends_with_page(content):
        raise DataError(f"{where} is cut short: its last page is not complete")


def _ends_with_page(content: bytes) -> bool:
    """Whether the last page of an OGG file is all there; libsndfile drops an incomplete one silently (RFC 3533, 6)."""
    page = content[content.rfind(b"OggS") :]
    num_segments = page[26] if len(page) > 26 else 0
    sizes = page[27 : 27 + num_segments]
    return len(page) > 26 and len(page) >= 27 + num_segments + sum(sizes) and len(sizes) == num_segments


def _power_db(power: float) -> float:
    return 10 * math.log10(power) if power > 0 else -math.inf
