"""Hinge losses, the adaptive weight, and a discriminator that looks at patches."""

from __future__ import annotations

import pytest
import torch

from resgen.losses.adversarial import PatchDiscriminator, adaptive_weight, discriminator_hinge, generator_hinge


def test_hinge_values() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.25])
    assert float(discriminator_hinge(real, fake)) == pytest.approx((0.25 + 0.625) / 2)
    assert float(generator_hinge(fake)) == pytest.approx(1.375)
    assert discriminator_hinge(real.bfloat16(), fake.bfloat16()).dtype == torch.float32


def test_adaptive_weight_is_the_ratio_of_gradient_norms() -> None:
    weight = adaptive_weight(torch.tensor([3.0, 4.0]), torch.tensor([0.5, 0.5]))
    assert float(weight) == pytest.approx(5 / (0.5**0.5 + 1e-4), rel=1e-5)
    assert float(adaptive_weight(torch.tensor([1e4]), torch.tensor([1e-9]))) == 1e4


def test_a_picture_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(3, width=8)
    images = torch.randn(4, 3, 16, 16)
    together = discriminator(images)
    for row in range(4):
        assert torch.allclose(discriminator(images[row : row + 1]), together[row : row + 1], atol=1e-5)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_smallest_picture(num_layers: int) -> None:
    discriminator = PatchDiscriminator(1, width=4, num_layers=num_layers)
    size = discriminator.min_size
    assert discriminator(torch.zeros(1, 1, size, size)).shape == (1, 1, 1, 1)
    with pytest.raises(RuntimeError):
        discriminator(torch.zeros(1, 1, size - 1, size - 1))


def test_logits_are_local() -> None:
    """A logit of the paper's two-layer discriminator sees a patch, not the image (norms aside)."""
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(1, width=4)
    for module in discriminator.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x  # type: ignore[method-assign]
    images = torch.randn(1, 1, 64, 64)
    changed = images.clone()
    changed[..., 0, 0] += 1
    moved = (discriminator(changed) - discriminator(images))[0, 0] != 0
    assert moved[0, 0] and not moved[6:].any() and not moved[:, 6:].any()


def test_it_learns_to_tell_two_sets_apart() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(1, width=8)
    optimizer = torch.optim.Adam(discriminator.parameters(), 1e-2)
    real, fake = torch.rand(8, 1, 12, 12), -torch.rand(8, 1, 12, 12)
    for _ in range(15):
        loss = discriminator_hinge(discriminator(real), discriminator(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.3
    assert generator_hinge(discriminator(real)) < generator_hinge(discriminator(fake))
