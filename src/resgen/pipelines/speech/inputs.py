"""Sounds as arguments, and the arguments of a `SpeechPipeline`'s call."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from resgen.data.sound.decode import MAX_PEAK, read_sound, resample
from resgen.errors import ConfigError, DataError, WrongTypeError
from resgen.kinds import Settings
from resgen.pipelines.speech.utterances import SpeechOutput
from resgen.samplers.records import StepCallback

SoundLike = str | Path | bytes | memoryview | np.ndarray | Tensor | tuple[np.ndarray | Tensor, int] | SpeechOutput
"""A file of any kind and rate that `data.sound.decode.read_sound` takes, its content, samples at the model's rate,
`(samples, rate)`, or what a pipeline said. Samples lie in [-1, 1] or are whole numbers of their type's range; of
several channels, in either order of the axes, the mean is taken."""


class Speaking(Settings, total=False):
    """Keyword arguments of `SpeechPipeline`."""

    prompt: SoundLike | None
    prompt_text: str | None
    voice: str | None
    task: str
    speed: float
    seed: int | None
    batch_size: int
    callback: StepCallback | None


class SpeakingAll(Speaking, total=False):
    """Those for several texts; `num_samples` is apart because it makes a list of the result for a single one."""

    num_samples: int | None


def texts_of(text: Any) -> list[str]:
    """A single text, or those of a list.

    Raises:
        WrongTypeError: something else.
        ConfigError: none.
    """
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, Iterable) or isinstance(texts, bytes | Mapping | set | frozenset):
        raise WrongTypeError(f"text={text!r} must be a text or a list of texts")
    texts = list(texts)
    if not texts:
        raise ConfigError(f"text={text!r} must hold at least one text")
    for one in texts:
        if not isinstance(one, str):
            raise WrongTypeError(f"text={text!r} holds {one!r}, which is not text")
    return texts


def check_speed(speed: Any) -> None:
    """Reject a speed that is not a finite number above 0.

    Raises:
        ConfigError: naming it.
    """
    real = isinstance(speed, numbers.Real)
    if not real or not 0 < float(speed) < math.inf:
        raise (ConfigError if real else WrongTypeError)(f"speed={speed!r} must be a number above 0, and finite")


def name_of(source: Any, what: str) -> str:
    """What to call a sound in an error."""
    return f"{what} '{source}'" if isinstance(source, str | Path) else f"the {what}"


def samples_of(source: Any, sample_rate_hz: int, what: str) -> tuple[Float[Tensor, " S"], str]:
    """Samples of a sound at a rate, and what to call it in an error.

    Args:
        source: a `SoundLike`.
        sample_rate_hz: rate of the result.
        what: `prompt` or `recording`.

    Raises:
        ConfigError: a rate outside 1,000..384,000 Hz.
        WrongTypeError: something else.
        DataError: what `read_sound` refuses.
    """
    where = name_of(source, what)
    if isinstance(source, str | Path | bytes | memoryview):
        return read_sound(source, sample_rate_hz, where=where), where
    values, rate = source, sample_rate_hz
    if isinstance(source, SpeechOutput):
        values, rate = source.audio, source.sample_rate_hz
    if isinstance(source, tuple | list) and len(source) == 2:
        values, rate = source
        if isinstance(rate, float | np.floating) and float(rate).is_integer():
            rate = int(rate)
    if not isinstance(values, np.ndarray | Tensor) or not isinstance(rate, int | np.integer):
        raise WrongTypeError(
            f"{where} is {' '.join(repr(source).split()):.80} ({type(source).__name__}); give a file, samples at "
            f"{sample_rate_hz} Hz as an array or a tensor, or (samples, rate)"
        )
    samples = _mono(values.detach().cpu() if isinstance(values, Tensor) else torch.from_numpy(values), where)
    if int(rate) == sample_rate_hz:
        return samples, where
    return resample(samples.float(), int(rate), sample_rate_hz).clamp(-1, 1), where


def _mono(samples: Tensor, where: str) -> Float[Tensor, " S"]:
    if samples.ndim not in (1, 2) or samples.is_complex() or samples.dtype == torch.bool:
        raise DataError(
            f"{where} has the shape {tuple(samples.shape)} of {samples.dtype}; give [samples] or [channels, samples]"
        )
    if not samples.is_floating_point():
        info = torch.iinfo(samples.dtype)
        middle = 0 if info.min else (info.max + 1) // 2  # 8-bit sounds have no sign
        samples = ((samples.double() - middle) / (info.max + 1 - middle)).float()
    if samples.ndim == 2:
        samples = samples.mean(0 if samples.shape[0] < samples.shape[1] else 1)
    peak = float(samples.abs().max()) if len(samples) else 0.0
    if peak > MAX_PEAK:
        raise DataError(f"{where} holds values up to {peak:.4g}, but those of a sound lie in [-1, 1]; scale them")
    return samples
