"""Discriminators of sounds, their losses, and padding that no loss sees."""

from __future__ import annotations

import pytest
import torch

from resgen.errors import ConfigError
from resgen.losses.sound_adversarial import (
    Judgement,
    MelDiscriminator,
    MultiPeriodDiscriminator,
    MultiResolutionDiscriminator,
    WaveformDiscriminator,
    feature_matching,
    least_squares_discriminator,
    least_squares_generator,
)
from resgen.ops.random import generator


def waveform_discriminators() -> list:
    torch.manual_seed(0)
    return [
        MultiPeriodDiscriminator((2, 3), widths=(4, 4)),
        MultiResolutionDiscriminator((64, 32), width=4),
        WaveformDiscriminator(width=2),
    ]


def judgement(logits: list[float], features: list[float], valid: list[bool] | None = None) -> Judgement:
    return Judgement(
        torch.tensor(logits).reshape(1, 1, -1, 1),
        [torch.tensor(features).reshape(1, 1, -1, 1)],
        None if valid is None else torch.tensor([valid]),
    )


def test_least_squares_values() -> None:
    real, fake = judgement([1.0, 0.5], [0.0]), judgement([0.0, 2.0], [0.0])
    assert float(least_squares_discriminator([real], [fake])) == pytest.approx(0.125 + 2)
    assert float(least_squares_generator([fake])) == pytest.approx(1.0)
    assert float(least_squares_generator([fake, fake])) == pytest.approx(2.0), "a sum over sub-discriminators"


def test_feature_matching_values() -> None:
    real, fake = judgement([0.0], [1.0, 2.0]), judgement([0.0], [3.0, 2.5])
    real.features[0].requires_grad_()
    fake.features[0].requires_grad_()
    loss = feature_matching([real], [fake])
    assert float(loss.detach()) == pytest.approx(1.25)
    loss.backward()
    assert real.features[0].grad is None and fake.features[0].grad is not None


def test_losses_leave_padding_out() -> None:
    """Four inputs, two rows of logits: a row counts if its first input is real."""
    real = judgement([0.5, 9.0], [1.0, 9.0], [True, True, False, False])
    fake = judgement([2.0, 5.0], [2.0, 3.0], [True, True, False, False])
    assert float(least_squares_discriminator([real], [fake])) == pytest.approx(0.25 + 4)
    assert float(least_squares_generator([fake])) == pytest.approx(1)
    assert float(feature_matching([real], [fake])) == pytest.approx(1)
    none = judgement([2.0, 5.0], [2.0, 3.0], [False] * 4)
    assert float(least_squares_generator([none])) == 0


@pytest.mark.parametrize("index", range(3))
def test_waveform_discriminators(index: int) -> None:
    discriminator = waveform_discriminators()[index]
    samples = torch.randn(2, 1001)
    judgements = discriminator(samples)
    assert len(judgements) == (2, 2, 8)[index]
    for logits, features, valid, _ in judgements:
        assert logits.shape[:2] == (2, 1) and valid is None and len(features) >= 3
        assert all(feature.shape[0] == 2 and feature.shape[2] >= logits.shape[2] for feature in features)
    for row in range(2):
        for (logits, *_), (together, *_) in zip(discriminator(samples[row : row + 1]), judgements, strict=True):
            assert torch.allclose(logits[0], together[row], atol=1e-5), "a sound does not depend on its batch"


@pytest.mark.parametrize("index", range(3))
def test_time_is_the_third_axis(index: int) -> None:
    """A change at the end of a sound moves no early row of logits or features."""
    discriminator = waveform_discriminators()[index]
    samples = torch.randn(1, 8000)
    changed = samples.clone()
    changed[:, -40:] += 1
    for (a, first, *_), (b, second, *_) in zip(discriminator(samples), discriminator(changed), strict=True):
        for before, after in zip([a, *first], [b, *second], strict=True):
            moved = (before != after).flatten(3).any(-1).any(1)[0]
            assert moved.any() and not moved[: len(moved) // 2].any()


def test_the_gradient_of_padding_is_zero() -> None:
    discriminator = waveform_discriminators()[2]
    valid = torch.arange(4000) < torch.tensor([[4000], [1000]])
    samples = torch.randn(2, 4000).requires_grad_()
    least_squares_generator(discriminator(samples * valid, valid)).backward()
    assert (samples.grad[1, 1000:] == 0).all() and samples.grad[1, :1000].abs().sum() > 0
    one = least_squares_generator(discriminator(torch.randn(1, 4000), valid[1:]))
    assert one.isfinite()


def test_mel_windows_lie_in_the_real_part() -> None:
    discriminator = MelDiscriminator((4, 8, 64), width=2)
    lengths = torch.tensor([30, 8, 3, 0])
    starts = torch.stack([discriminator.starts(lengths, 30, generator("starts", k)) for k in range(300)])
    assert starts.shape == (300, 3, 4) and starts.min() == 0
    assert starts.amax(0).tolist() == [[26, 4, 0, 0], [22, 0, 0, 0], [0, 0, 0, 0]]
    assert len(starts[:, 0, 0].unique()) == 27, "every place occurs"
    again = discriminator.starts(lengths, 30, generator("starts", 0))
    assert torch.equal(again, starts[0])


def test_mel_windows_are_cut_where_they_start() -> None:
    discriminator = MelDiscriminator((4, 64), width=2)
    seen: list[torch.Tensor] = []
    for part in discriminator.parts:
        part.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    mels = torch.arange(2 * 5 * 10.0).reshape(2, 5, 10)
    valid = torch.arange(10) < torch.tensor([[10], [7]])
    starts = torch.tensor([[6, 2], [0, 0]])
    judgements = discriminator(mels, starts, valid)
    assert torch.equal(seen[0][0, 0], mels[0, :, 6:10].T) and torch.equal(seen[0][1, 0], mels[1, :, 2:6].T)
    assert torch.equal(seen[1][:, 0], mels.transpose(1, 2)), "a short mel is taken whole"
    assert judgements[0].valid.all() and torch.equal(judgements[1].valid, valid)


def test_they_learn_to_tell_two_sets_apart() -> None:
    torch.manual_seed(0)
    waves, mels = WaveformDiscriminator(width=4), MelDiscriminator((8,), width=4)
    starts = torch.zeros(1, 4, dtype=torch.int64)
    rising = torch.sin(torch.arange(2000) * 0.3).expand(4, 2000) + 0.1 * torch.randn(4, 2000)
    cases = [
        (waves, lambda x: waves(x), rising, torch.randn(4, 2000)),
        (mels, lambda x: mels(x, starts), torch.randn(4, 20, 16) + 1, torch.randn(4, 20, 16) - 1),
    ]
    for module, judge, real, fake in cases:
        optimizer = torch.optim.Adam(module.parameters(), 3e-3)
        losses = []
        for _ in range(20):
            loss = least_squares_discriminator(judge(real), judge(fake))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.5 * losses[0]
        assert least_squares_generator(judge(real)) < least_squares_generator(judge(fake))


@pytest.mark.parametrize(
    "make",
    [
        lambda: MultiPeriodDiscriminator(()),
        lambda: MultiPeriodDiscriminator((0,)),
        lambda: MultiPeriodDiscriminator((2,), widths=()),
        lambda: MultiResolutionDiscriminator((4,)),
        lambda: MultiResolutionDiscriminator(width=0),
        lambda: MelDiscriminator(()),
        lambda: MelDiscriminator(width=0),
        lambda: WaveformDiscriminator(0),
    ],
)
def test_settings_out_of_range(make) -> None:
    with pytest.raises(ConfigError, match="at least"):
        make()
