"""Adversarial loss of the image tokenizer: hinge PatchGAN with VQGAN's adaptive weight (App. A.1)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from resgen.nn.conv2d import group_norm


class PatchDiscriminator(nn.Module):
    """Logits for overlapping patches of an image: strided convolutions, `num_layers` after the first.

    GroupNorm stands where PatchGAN has BatchNorm (a deviation): an image's logits then do not depend on the rest of
    the batch.
    """

    def __init__(self, channels: int, width: int = 64, num_layers: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        current = width
        for layer in range(1, num_layers + 1):
            wider = width * min(2**layer, 8)
            stride = 2 if layer < num_layers else 1
            layers += [nn.Conv2d(current, wider, 4, stride=stride, padding=1), group_norm(wider), nn.LeakyReLU(0.2)]
            current = wider
        self.layers = nn.Sequential(*layers, nn.Conv2d(current, 1, 4, padding=1))
        self.min_size = 3 * 2**num_layers  # the two convolutions without stride each take one row and column away

    def forward(self, images: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B 1 y x"]:
        return self.layers(images)


def discriminator_hinge(real: Float[Tensor, "*b"], fake: Float[Tensor, "*b"]) -> Float[Tensor, ""]:
    """`(mean relu(1 - D(real)) + mean relu(1 + D(fake))) / 2`."""
    return (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()) / 2


def generator_hinge(fake: Float[Tensor, "*b"]) -> Float[Tensor, ""]:
    """`-mean D(fake)`."""
    return -fake.float().mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor) -> Float[Tensor, ""]:
    """Ratio of the norms of the two losses' gradients at the decoder's last layer, at most 1e4."""
    return (reconstruction.norm() / (adversarial.norm() + 1e-4)).clamp(0, 1e4)
