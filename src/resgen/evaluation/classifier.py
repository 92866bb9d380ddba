"""A small convolutional classifier: the judge of whether generated pictures show the class that was asked for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from resgen.checkpoints.format import Component, Folder, load_folder, load_tensors, save_folder
from resgen.checkpoints.tensors import load_state, module_tensors
from resgen.config import config_from_dict, config_to_dict
from resgen.errors import CheckpointError, ConfigError, DataError
from resgen.ops.images import from_uint8
from resgen.ops.precision import has_bfloat16
from resgen.ops.random import generator

KIND = "classifier"
BATCH = 256
WARMUP = 0.2
MIN_SIZE = 8


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Shape of the classifier; the default has about 1.2M parameters.

    Attributes:
        image_size: side of the square pictures in pixels, at least 8.
        channels: 3 (RGB) or 1 (grey).
        num_classes: classes told apart.
        width: channels of the first convolution; the last stage has 8 times as many.
    """

    image_size: int
    channels: int
    num_classes: int
    width: int = 32

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ConfigError(f"channels={self.channels} must be 1 (grey) or 3 (RGB)")
        if self.image_size < MIN_SIZE:
            raise ConfigError(f"image_size={self.image_size} must be at least {MIN_SIZE}")
        if self.num_classes < 2:
            raise ConfigError(f"num_classes={self.num_classes} must be at least 2")
        if self.width < 1:
            raise ConfigError(f"width={self.width} must be at least 1")


class _Stage(nn.Module):
    """Half the resolution and other channels, then a residual convolution. Pooling first leaves the norm less to do."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.widen_norm = nn.BatchNorm2d(width)
        self.refine = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.refine_norm = nn.BatchNorm2d(width)

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B W y x"]:
        x = F.relu(self.widen_norm(F.max_pool2d(self.widen(x), 2)))
        return x + F.relu(self.refine_norm(self.refine(x)))


class Classifier(nn.Module):
    """Three stages over a first convolution, the largest response of each channel, one linear layer."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.stem = nn.Conv2d(config.channels, width, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        self.stages = nn.Sequential(*(_Stage(width * 2**i, width * 2 ** (i + 1)) for i in range(3)))
        self.out = nn.Linear(8 * width, config.num_classes)

    def features(self, pictures: Float[Tensor, "B C S S"]) -> Float[Tensor, "B F"]:
        """What the last layer sees, of pictures in [-1, 1]."""
        x = pictures.contiguous(memory_format=torch.channels_last)
        return self.stages(F.relu(self.stem_norm(self.stem(x)))).amax((2, 3)).float()

    def forward(self, pictures: Float[Tensor, "B C S S"]) -> Float[Tensor, "B classes"]:
        """Logits of pictures in [-1, 1]."""
        return self.out(self.features(pictures)).float()

    @torch.no_grad()
    def reset_parameters(self, stream: torch.Generator) -> None:
        """Draw the weights of all convolutions (He) and of the last layer from `stream`."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                fan_in = module.weight[0].numel()
                gain = 2.0 if isinstance(module, nn.Conv2d) else 1.0
                module.weight.normal_(std=math.sqrt(gain / fan_in), generator=stream)
        self.out.bias.zero_()


def train_classifier(
    pictures: UInt8[Tensor, "N C S S"],
    labels: Int[Tensor, " M"],
    *,
    num_classes: int,
    num_steps: int | None = None,
    max_minutes: float | None = None,
    width: int = 32,
    batch_size: int = 128,
    learning_rate: float = 0.15,
    weight_decay: float = 5e-4,
    label_smoothing: float = 0.1,
    crop_padding: int = 2,
    flip: bool = False,
    seed: int = 0,
    report: Callable[[int, float, float], None] | None = None,
) -> Classifier:
    """Train from scratch with stochastic gradient descent on randomly shifted (and mirrored) pictures.

    The learning rate rises to its peak over the first fifth of the training and falls to zero over the rest. How much
    of the training is over is measured in steps, in minutes, or by whichever is further on. With `num_steps` alone the
    result is reproducible.

    Args:
        pictures: 0..255.
        labels: classes, 0..num_classes-1.
        num_classes: classes told apart.
        num_steps: batches to train on.
        max_minutes: time to spend, the last batch included.
        width: see `ClassifierConfig`.
        batch_size: pictures per step.
        learning_rate: peak.
        weight_decay: L2 penalty of the weights of convolutions and of the last layer.
        label_smoothing: share of the target that is spread over all classes.
        crop_padding: pictures are shifted by up to this many pixels in both directions, edges mirrored.
        flip: mirror half of the pictures.
        seed: of weights, order and augmentation.
        report: called after every step with (step, share of the training that is over, loss).

    Returns:
        The classifier in evaluation mode.

    Raises:
        ConfigError: neither `num_steps` nor `max_minutes`, or a value out of range.
        DataError: no pictures, or labels that do not fit.
    """
    _check_training(pictures, labels, num_classes, num_steps, max_minutes, batch_size)
    config = ClassifierConfig(
        image_size=pictures.shape[-1], channels=pictures.shape[1], num_classes=num_classes, width=width
    )
    device = pictures.device
    model = Classifier(config)
    model.reset_parameters(generator("classifier", seed, "weights"))
    model = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=True)
    stream = generator("classifier", seed, "batches")
    order = torch.empty(0, dtype=torch.int64)
    begin, step, progress, step_share = time.monotonic(), 0, 0.0, 0.0
    while progress + step_share / 2 < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * one_cycle(progress)
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(len(pictures), generator=stream)])
        rows, order = order[:batch_size].to(device), order[batch_size:]
        batch = from_uint8(augment(pictures[rows], crop_padding, flip, stream))
        with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
            logits = model(batch)
        loss = F.cross_entropy(logits, labels[rows], label_smoothing=label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        by_steps = step / num_steps if num_steps else 0.0
        by_time = (time.monotonic() - begin) / (60 * max_minutes) if max_minutes else 0.0
        step_share = by_time / step if by_time > by_steps else 0.0  # no step that would end after the budget
        progress = max(by_steps, by_time)
        if report is not None:
            report(step, min(progress, 1.0), float(loss.detach()))
    return model.eval().requires_grad_(False)


def one_cycle(progress: float) -> float:
    """Learning rate as a share of its peak: linear to 1 at `WARMUP`, linear to 0 at the end."""
    return max(0.0, min(progress / WARMUP, (1 - progress) / (1 - WARMUP)))


def augment(
    pictures: UInt8[Tensor, "B C S S"], padding: int, flip: bool, stream: torch.Generator
) -> UInt8[Tensor, "B C S S"]:
    """Shift every picture by up to `padding` pixels, edges mirrored, and mirror half of them if `flip`."""
    count, channels, size, _ = pictures.shape
    offsets = torch.randint(0, 2 * padding + 1, (2, count), generator=stream).to(pictures.device)
    rows, columns = offsets[:, :, None] + torch.arange(size, device=pictures.device)
    if flip:
        mirrored = (torch.rand(count, generator=stream) < 0.5).to(pictures.device)
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    if padding:
        source = _reflected(size, padding).to(pictures.device)
        rows, columns = source[rows], source[columns]
    samples = torch.arange(count, device=pictures.device)[:, None, None, None]
    levels = torch.arange(channels, device=pictures.device)[:, None, None]
    return pictures[samples, levels, rows[:, None, :, None], columns[:, None, None, :]]


def _reflected(size: int, padding: int) -> Tensor:
    """Source row of each row of a picture padded by reflection."""
    position = torch.arange(-padding, size + padding).abs()
    return torch.where(position >= size, 2 * (size - 1) - position, position)


@torch.no_grad()
def classify(model: Classifier, pictures: UInt8[Tensor, "N C S S"]) -> Float[Tensor, "N classes"]:
    """Logits of pictures in 0..255.

    Raises:
        DataError: pictures of another shape than the classifier's.
    """
    return torch.cat([model.out(part) for part in features(model, pictures).split(BATCH)])


@torch.no_grad()
def features(model: Classifier, pictures: UInt8[Tensor, "N C S S"]) -> Float[Tensor, "N F"]:
    """What the last layer sees, of pictures in 0..255.

    Raises:
        DataError: pictures of another shape than the classifier's.
    """
    config, device = model.config, model.out.weight.device
    expected = (config.channels, config.image_size, config.image_size)
    if tuple(pictures.shape[1:]) != expected or not len(pictures):
        raise DataError(f"pictures of shape {tuple(pictures.shape)}; the classifier takes one or more of {expected}")
    with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
        return torch.cat([model.features(from_uint8(part.to(device))) for part in pictures.split(BATCH)])


def accuracy(model: Classifier, pictures: UInt8[Tensor, "N C S S"], labels: Int[Tensor, " N"]) -> float:
    """Share of the pictures whose most likely class is their label."""
    return float((classify(model, pictures).argmax(1).cpu() == labels.cpu()).double().mean())


def save_classifier(
    path: str | Path, model: Classifier, *, class_names: Sequence[str] = (), history: Mapping[str, Any] | None = None
) -> None:
    """Write a classifier folder.

    Raises:
        CheckpointError: the place holds something else or cannot be written.
    """
    part = Component(type=KIND, config=config_to_dict(model.config), tensors=module_tensors(model))
    extra = {"class_names": list(class_names), "history": dict(history or {})}
    save_folder(path, kind=KIND, components={KIND: part}, extra=extra)


def load_classifier(path: str | Path) -> tuple[Classifier, Folder]:
    """The classifier of a folder, in evaluation mode.

    Raises:
        CheckpointError: nothing there, damaged, or not a classifier.
    """
    folder = load_folder(path)
    saved = folder.component(KIND)
    if saved.type != KIND:
        raise CheckpointError(f"'{saved.path}': type '{saved.type}' is not known; this version knows '{KIND}'")
    model = Classifier(config_from_dict(ClassifierConfig, saved.config, where="classifier."))
    load_state(model, load_tensors(saved), str(saved.path))
    return model.eval().requires_grad_(False), folder


def _check_training(
    pictures: Tensor,
    labels: Tensor,
    num_classes: int,
    num_steps: int | None,
    max_minutes: float | None,
    batch_size: int,
) -> None:
    if num_steps is None and max_minutes is None:
        raise ConfigError("num_steps or max_minutes is needed: neither says how long to train")
    for name, value in (("num_steps", num_steps), ("max_minutes", max_minutes), ("batch_size", batch_size)):
        if value is not None and not value > 0:
            raise ConfigError(f"{name}={value} must be positive")
    if batch_size < 2:
        raise ConfigError(f"batch_size={batch_size} must be at least 2: the norms compare pictures of a batch")
    if len(pictures) == 0 or len(pictures) != len(labels):
        raise DataError(f"{len(pictures)} pictures and {len(labels)} labels given; one label per picture is needed")
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise DataError(f"labels span {int(labels.min())}..{int(labels.max())}; allowed: 0..{num_classes - 1}")
