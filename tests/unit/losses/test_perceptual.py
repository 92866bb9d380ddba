"""The optional perceptual loss, with weights that the test makes up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from resgen.errors import CheckpointError
from resgen.losses.perceptual import ClassifierPerceptualLoss, VGGPerceptualLoss
from resgen.nn.classifier import Classifier, ClassifierConfig

CHANNELS = ((3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 512)) + (
    (512, 512),
) * 5
INDICES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # of the convolutions in the common layout of VGG-16


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    stream = torch.Generator().manual_seed(0)
    tensors = {}
    for index, (inner, outer) in zip(INDICES, CHANNELS, strict=True):
        scale = (2 / (9 * inner)) ** 0.5
        tensors[f"features.{index}.weight"] = torch.randn(outer, inner, 3, 3, generator=stream) * scale
        tensors[f"features.{index}.bias"] = torch.zeros(outer)
    return tensors


@pytest.fixture(scope="module")
def path(weights: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg") / "vgg.safetensors"
    save_file(weights, path)
    return path


@pytest.fixture(scope="module")
def loss(path: Path) -> VGGPerceptualLoss:
    return VGGPerceptualLoss(path)


def test_distance(loss: VGGPerceptualLoss) -> None:
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(2))
    assert float(loss(pictures, pictures)) == 0
    near, far = (float(loss(pictures + scale * noise, pictures)) for scale in (0.05, 0.5))
    assert 0 < near < far


def test_distance_to_a_classifier() -> None:
    classifier = Classifier(ClassifierConfig(image_size=16, channels=3, num_classes=2, width=4))
    classifier.reset_parameters(torch.Generator().manual_seed(0))
    loss = ClassifierPerceptualLoss(classifier.train())
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(2))
    near, far = (loss((pictures + scale * noise).requires_grad_(), pictures) for scale in (0.05, 0.5))
    assert loss(pictures, pictures).item() == 0 < near.item() < far.item()
    assert float(loss(pictures[:1], noise[:1])) == pytest.approx(
        float(sum(_mean_square(x, y) for x, y in zip(*map(classifier.maps, (pictures[:1], noise[:1])), strict=True)))
    )
    far.backward()
    assert all(p.grad is None for p in classifier.parameters())


def _mean_square(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x, y = (maps / maps.square().sum(1, keepdim=True).sqrt().clamp(min=1e-12) for maps in (x, y))
    return (x - y).square().mean()


def test_gradient_reaches_the_pictures_only(loss: VGGPerceptualLoss) -> None:
    pictures = torch.rand(1, 1, 32, 32).requires_grad_()
    loss(pictures, torch.zeros(1, 1, 32, 32)).backward()
    assert pictures.grad is not None and pictures.grad.abs().sum() > 0
    assert not list(p for p in loss.parameters() if p.requires_grad)


def test_grey_pictures_count_as_colour_ones(loss: VGGPerceptualLoss) -> None:
    grey, other = torch.rand(2, 1, 1, 32, 32)
    assert torch.allclose(loss(grey, other), loss(grey.repeat(1, 3, 1, 1), other.repeat(1, 3, 1, 1)))


def test_learned_channel_weights(weights: dict[str, torch.Tensor], loss: VGGPerceptualLoss, tmp_path: Path) -> None:
    lins = {f"lin{k}.weight": torch.full((1, c, 1, 1), 2.0 / c) for k, c in enumerate((64, 128, 256, 512, 512))}
    save_file(weights | lins, tmp_path / "lpips.safetensors")
    learned = VGGPerceptualLoss(tmp_path / "lpips.safetensors")
    pictures = torch.rand(2, 1, 3, 32, 32)
    assert torch.allclose(learned(*pictures), 2 * loss(*pictures))


def test_files_that_do_not_fit(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="none.safetensors"):
        VGGPerceptualLoss(tmp_path / "none.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="broken.safetensors"):
        VGGPerceptualLoss(tmp_path / "broken.safetensors")
    lacking = {name: value for name, value in weights.items() if name != "features.14.bias"}
    save_file(lacking, tmp_path / "lacking.safetensors")
    with pytest.raises(CheckpointError, match=r"features\.14\.bias"):
        VGGPerceptualLoss(tmp_path / "lacking.safetensors")
    save_file(weights | {"features.0.bias": torch.zeros(3)}, tmp_path / "shape.safetensors")
    with pytest.raises(CheckpointError, match=r"features\.0\.bias.*\(64,\)"):
        VGGPerceptualLoss(tmp_path / "shape.safetensors")
