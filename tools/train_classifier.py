"""Train the classifier that judges generated images, and measure it on held-out images.

python tools/train_classifier.py --data PATH --image-size 28 --channels 1 --max-minutes 6 --out DIR
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from jaxtyping import Int, UInt8
from judge_training import Report, decay_matrices, fit
from torch import Tensor
from torch.nn import functional as F

from resgen.checkpoints.classifiers import save_classifier
from resgen.data.pictures.sources import load_array
from resgen.devices import has_bfloat16
from resgen.errors import ConfigError, DataError, ResGenError
from resgen.evaluation.image.classifier import accuracy
from resgen.nn.classifier import Classifier, ClassifierConfig
from resgen.ops.images import from_uint8
from resgen.ops.random import generator
from resgen.training.image.runs import open_splits


def main(
    data: str,
    image_size: int,
    channels: int,
    out: Path,
    max_minutes: float | None = None,
    num_steps: int | None = None,
    width: int = 32,
    batch_size: int = 128,
    learning_rate: float = 0.15,
    crop_padding: int = 2,
    flip: bool = False,
    resize: bool = False,
    class_column: str | None = None,
    seed: int = 0,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Train on the split `train`, measure on the split `test`, or on images held out where there is none.

    Args:
        data: images with labels, as `resgen train` takes them.
        image_size: side of the images in pixels.
        channels: 1 (grey) or 3 (RGB).
        out: folder of the classifier.
        max_minutes: time to spend on training.
        num_steps: batches to train on, instead of a time.
        width: channels of the first convolution.
        batch_size: images per step.
        learning_rate: peak of the learning rate.
        crop_padding: largest random shift in pixels.
        flip: mirror half of the images.
        resize: cut out and resize images of another size.
        class_column: of parquet files, the column to recognise in place of the label; images that it says nothing
            of are left out.
        seed: of weights, order and augmentation.
        as_json: write one JSON document to standard output.
    """
    source, test_source = open_splits(data, [class_column] if class_column else [])
    if class_column:
        source, test_source = (
            one.subset(np.flatnonzero(one.labels < len(one.class_names))) for one in (source, test_source)
        )
    pictures, labels = load_array(source, size=image_size, channels=channels, resize=resize)
    test, test_labels = load_array(test_source, size=image_size, channels=channels, resize=resize)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    begin = time.monotonic()
    steps = 0

    def progress(step: int, share: float, loss: float) -> None:
        nonlocal steps
        steps = step
        if step % 100 == 0:
            print(f"step {step}  {share:4.0%}  loss {loss:.3f}", file=sys.stderr, flush=True)

    model = train_classifier(
        pictures.to(device),
        labels.to(device),
        num_classes=len(source.class_names),
        num_steps=num_steps,
        max_minutes=max_minutes,
        width=width,
        batch_size=batch_size,
        learning_rate=learning_rate,
        crop_padding=crop_padding,
        flip=flip,
        seed=seed,
        report=progress,
    )
    result = {
        "data": source.name.split("/")[0],
        "data_fingerprint": source.fingerprint,
        **({"class_column": class_column} if class_column else {}),
        "train_pictures": len(pictures),
        "test_pictures": len(test),
        "test_accuracy": accuracy(model, test, test_labels),
        "parameters": sum(p.numel() for p in model.parameters()),
        "num_steps": steps,
        "epochs": steps * batch_size / len(pictures),
        "seconds": time.monotonic() - begin,
        "threads": torch.get_num_threads(),
        "device": str(device),
        "seed": seed,
        "flip": flip,
    }
    save_classifier(out, model, class_names=source.class_names, history=result)
    if as_json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name}: {value}" for name, value in result.items()))


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
    report: Report | None = None,
) -> Classifier:
    """Train from scratch with stochastic gradient descent on randomly shifted (and mirrored) images.

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
        batch_size: images per step.
        learning_rate: peak.
        weight_decay: L2 penalty of the weights of convolutions and of the last layer.
        label_smoothing: share of the target that is spread over all classes.
        crop_padding: images are shifted by up to this many pixels in both directions, edges mirrored.
        flip: mirror half of the images.
        seed: of weights, order and augmentation.
        report: called after every step with (step, share of the training that is over, loss).

    Returns:
        The classifier in evaluation mode.

    Raises:
        ConfigError: neither `num_steps` nor `max_minutes`, or a value out of range.
        DataError: no images, or labels that do not fit.
    """
    _check_training(pictures, labels, num_classes, batch_size)
    config = ClassifierConfig(
        image_size=pictures.shape[-1], channels=pictures.shape[1], num_classes=num_classes, width=width
    )
    device = pictures.device
    model = Classifier(config)
    model.reset_parameters(generator("classifier", seed, "weights"))
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(decay_matrices(model, weight_decay), lr=0.0, momentum=0.9, nesterov=True)
    stream = generator("classifier", seed, "batches")
    order = torch.empty(0, dtype=torch.int64)

    def next_loss(_share: float) -> Tensor:
        nonlocal order
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(len(pictures), generator=stream)])
        rows, order = order[:batch_size].to(device), order[batch_size:]
        batch = from_uint8(augment(pictures[rows], crop_padding, flip, stream))
        with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
            logits = model(batch)
        return F.cross_entropy(logits, labels[rows], label_smoothing=label_smoothing)

    fit(
        model,
        optimizer,
        next_loss,
        num_steps=num_steps,
        max_minutes=max_minutes,
        learning_rate=learning_rate,
        report=report,
    )
    return model


def _check_training(pictures: Tensor, labels: Tensor, num_classes: int, batch_size: int) -> None:
    if batch_size < 2:
        raise ConfigError(f"batch_size={batch_size} must be at least 2: the norms compare images of a batch")
    if len(pictures) == 0 or len(pictures) != len(labels):
        raise DataError(f"{len(pictures)} images and {len(labels)} labels given; one label per image is needed")
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise DataError(f"labels span {int(labels.min())}..{int(labels.max())}; allowed: 0..{num_classes - 1}")


def augment(
    pictures: UInt8[Tensor, "B C S S"], padding: int, flip: bool, stream: torch.Generator
) -> UInt8[Tensor, "B C S S"]:
    """Shift every image by up to `padding` pixels, edges mirrored, and mirror half of them if `flip`."""
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
    """Source row of each row of an image padded by reflection."""
    position = torch.arange(-padding, size + padding).abs()
    return torch.where(position >= size, 2 * (size - 1) - position, position)


def command() -> int:
    """Train; say what went wrong in one line, with the names of options: `resize=True` becomes `--resize`."""
    try:
        tyro.cli(main)
    except ResGenError as error:
        names = "|".join(inspect.signature(main).parameters)
        argument = rf"(?<![\w./-])({names})(?:=True\b|(?==))"
        said = re.sub(argument, lambda match: "--" + match[1].replace("_", "-"), str(error))
        print(f"error: {said}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(command())
