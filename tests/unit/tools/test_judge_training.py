"""The changes of recordings do what they say; the loop ends in time and says how far it is."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import pytest
import torch
from judge_training import (
    change_speed,
    decay_matrices,
    disturb,
    equal_error_rate,
    fit,
    hear_changed,
    length_batches,
    mask_parts,
    one_cycle,
    verify,
    warp_bands,
)
from torch import Tensor, nn

from resgen.errors import ConfigError, DataError
from resgen.evaluation.speech.hearing import MEL
from resgen.ops.mel import mel_filters


def _stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _tone(hz: float, seconds: float = 0.5) -> Tensor:
    return 0.3 * torch.sin(2 * math.pi * hz * torch.arange(int(16000 * seconds)) / 16000)


def _loudest_hz(samples: Tensor) -> float:
    spectrum = torch.fft.rfft(samples * torch.hann_window(len(samples))).abs()
    return float(torch.fft.rfftfreq(len(samples), 1 / 16000)[spectrum.argmax()])


def test_speed_moves_length_and_pitch() -> None:
    faster = change_speed(_tone(500), 1.25)
    assert len(faster) == 6400 and _loudest_hz(faster) == pytest.approx(625, abs=5)
    assert torch.equal(change_speed(_tone(500), 1.0), _tone(500))


def test_disturbance_keeps_the_speech_and_stays_in_its_limits() -> None:
    samples = torch.stack([_tone(1000), torch.cat([_tone(1000, 0.25), torch.zeros(4000)])]).repeat(20, 1)
    lengths = torch.tensor([8000, 4000] * 20)
    out = disturb(samples, lengths, 16000, _stream())
    assert out.shape == samples.shape and out.isfinite().all()
    assert torch.equal(out, disturb(samples, lengths, 16000, _stream()))
    spectrum = torch.fft.rfft(out).abs().square()
    hz = torch.fft.rfftfreq(8000, 1 / 16000)
    tone = spectrum[:, (hz - 1000).abs() < 20].sum(1)
    assert (tone / spectrum.sum(1) > 0.5).all()  # the noise is at least 5 dB softer
    above = spectrum[:, hz > 5000].sum(1) / spectrum[:, (hz > 2000) & (hz < 3000)].sum(1)
    narrow = above < 1e-6
    assert 8 < int(narrow.sum()) < 32


def test_warping_moves_peaks_to_where_a_shorter_tract_has_them() -> None:
    filters = mel_filters(MEL)
    centres = (filters * torch.linspace(0, 8000, filters.shape[1])).sum(1) / filters.sum(1)
    log_mels = -((centres[None, :, None] - 2000) / 300).square().expand(3, -1, 4)
    warped = warp_bands(log_mels, torch.tensor([0.85, 1.0, 1.15]), MEL)
    peaks = centres[warped[:, :, 0].argmax(1)]
    assert peaks.tolist() == pytest.approx([1700, 2000, 2300], abs=60)
    assert torch.allclose(warped[1], log_mels[1], atol=1e-4)
    assert warped[:, 0].isfinite().all()


def test_masks_cover_a_part_and_leave_the_rest() -> None:
    features = torch.ones(50, 80, 300)
    out = mask_parts(features, _stream())
    assert set(out.unique().tolist()) == {0, 1}
    bands, frames = (out.amax(2) == 0).sum(1), (out.amax(1) == 0).sum(1)
    assert bands.float().mean() > 0 and int(bands.max()) <= 26
    assert frames.float().mean() > 0 and int(frames.max()) <= 24
    assert out.mean() > 0.7


def test_all_changes_together_are_reproducible() -> None:
    recordings = [_tone(300), _tone(700, 0.3)]
    features, valid = hear_changed(recordings, MEL, _stream(), torch.device("cpu"))
    again, _ = hear_changed(recordings, MEL, _stream(), torch.device("cpu"))
    assert torch.equal(features, again) and features.isfinite().all()
    assert features.shape[2] == valid.shape[1] == int(valid.sum(1).max())
    assert 40 <= int(valid[0].sum()) <= 63 and 24 <= int(valid[1].sum()) <= 38
    _, kept = hear_changed(recordings, MEL, _stream(), torch.device("cpu"), speed=False)
    assert kept.sum(1).tolist() == [50, 30]


def test_batches_hold_similar_lengths_and_everything_once() -> None:
    lengths = torch.randint(100, 1000, (60,), generator=_stream())
    lengths[7] = 5000
    batches = length_batches(lengths, 3000, _stream(1))
    seen: list[int] = []
    shares = []
    while len(seen) < 60:
        rows = next(batches)
        seen += rows
        longest = int(lengths[rows].max())
        assert len(rows) == 1 or longest * len(rows) <= 3000
        shares.append(float(lengths[rows].sum()) / (longest * len(rows)))
    assert sorted(seen) == list(range(60))
    assert sum(shares) / len(shares) > 0.8
    assert [*islice(length_batches(lengths, 3000, _stream(1)), 3)] != [
        *islice(length_batches(lengths, 3000, _stream(2)), 3)
    ]


def test_fit_ends_in_time_and_says_how_far_it_is() -> None:
    module = nn.Linear(2, 1)
    seen: list[tuple[int, float, float]] = []

    def loss(share: float) -> Tensor:
        return (module(torch.ones(4, 2)) - 3).square().mean()

    settings: Any = {"learning_rate": 0.1, "report": lambda *values: seen.append(values)}

    def optimizer(linear: nn.Linear) -> torch.optim.Optimizer:
        return torch.optim.AdamW(decay_matrices(linear, 0.0), lr=0.0)

    fit(module, optimizer(module), loss, num_steps=40, max_minutes=None, **settings)
    assert [step for step, _, _ in seen] == list(range(1, 41)) and seen[-1][1] == 1
    assert seen[-1][2] < 0.1 * seen[0][2]
    assert not module.training and not module.weight.requires_grad
    again = nn.Linear(2, 1)
    seen.clear()
    fit(
        again,
        optimizer(again),
        lambda share: again(torch.ones(4, 2)).square().mean(),
        num_steps=None,
        max_minutes=0.001,
        **settings,
    )
    assert 0.3 < seen[-1][1] <= 1 and seen[-1][0] == len(seen)
    for steps, minutes in ((None, None), (0, None), (None, -1.0)):
        with pytest.raises(ConfigError, match="num_steps|max_minutes"):
            fit(again, optimizer(again), loss, num_steps=steps, max_minutes=minutes, **settings)


def test_one_cycle() -> None:
    assert [one_cycle(p) for p in (0.0, 0.1, 0.2, 0.6, 1.0, 1.5)] == pytest.approx([0, 0.5, 1, 0.5, 0, 0])


def _voices() -> tuple[torch.Tensor, torch.Tensor]:
    """Three speakers near the axes, four utterances each."""
    stream = torch.Generator().manual_seed(0)
    speakers = torch.arange(3).repeat_interleave(4)
    embeddings = torch.eye(3)[speakers] + 0.1 * torch.randn(12, 3, generator=stream)
    return torch.nn.functional.normalize(embeddings, dim=1), speakers


def test_verify_leaves_the_tested_utterance_out() -> None:
    embeddings, speakers = _voices()
    assert verify(embeddings, speakers) == (1, 0, 12, 3)
    # two utterances of a fourth speaker that have nothing in common: only their own presence could make them nearest
    odd = torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]]) / math.sqrt(3)
    mixed, owners = torch.cat([embeddings, odd]), torch.cat([speakers, torch.tensor([3, 3])])
    tested = owners == 3
    rates = verify(mixed, owners, tested=tested)
    assert rates.nearest == 0 and rates.num_utterances == 2 and rates.num_candidates == 4
    assert rates.equal_error_rate > 0.5
    assert verify(mixed, owners).nearest == pytest.approx(12 / 14)
    with pytest.raises(DataError, match="two utterances"):
        verify(mixed[:13], owners[:13])


def test_equal_error_rate_of_known_scores() -> None:
    assert equal_error_rate(torch.tensor([0.8, 0.9]), torch.tensor([0.1, 0.2, 0.3])) == 0
    # one of four equal pairs below one of four different ones
    assert equal_error_rate(torch.tensor([0.9, 0.8, 0.7, 0.3]), torch.tensor([0.1, 0.2, 0.0, 0.6])) == pytest.approx(
        0.25
    )
    same = torch.linspace(0, 1, 50)
    assert equal_error_rate(same, same) == pytest.approx(0.5, abs=0.02)
    with pytest.raises(DataError, match="both are needed"):
        equal_error_rate(same, same[:0])
