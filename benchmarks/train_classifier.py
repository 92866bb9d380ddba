"""Train the classifier that judges generated pictures, and measure it on the data's test split.

python benchmarks/train_classifier.py --data PATH --image-size 28 --channels 1 --max-minutes 6 --out DIR
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import tyro

from resgen.data.images import load_array, open_images
from resgen.errors import ResGenError
from resgen.evaluation.classifier import accuracy, save_classifier, train_classifier


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
    seed: int = 0,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Train on the split `train`, measure on the split `test`.

    Args:
        data: pictures with labels, as `resgen train` takes them, with a train and a test split.
        image_size: side of the pictures in pixels.
        channels: 1 (grey) or 3 (RGB).
        out: folder of the classifier.
        max_minutes: time to spend on training.
        num_steps: batches to train on, instead of a time.
        width: channels of the first convolution.
        batch_size: pictures per step.
        learning_rate: peak of the learning rate.
        crop_padding: largest random shift in pixels.
        flip: mirror half of the pictures.
        resize: cut out and resize pictures of another size.
        seed: of weights, order and augmentation.
        as_json: write one JSON document to standard output.
    """
    source = open_images(data, split="train")
    test_source = open_images(data, split="test")
    pictures, labels = load_array(source, size=image_size, channels=channels, resize=resize)
    test, test_labels = load_array(test_source, size=image_size, channels=channels, resize=resize)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    begin = time.monotonic()
    steps = 0

    def progress(step: int, done: float, loss: float) -> None:
        nonlocal steps
        steps = step
        if step % 100 == 0:
            print(f"step {step}  {done:4.0%}  loss {loss:.3f}", file=sys.stderr, flush=True)

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


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except ResGenError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
