"""Do generated images show every attribute that was asked for, such as hair and background?

    python tools/train_classifier.py --data avatars64 --class-column hair --image-size 64 --channels 3 --out runs/hair
    python benchmarks/attributes.py --model runs/faces/model --data avatars64 --class-columns style=label hair \\
        --judges hair=runs/hair --json attributes.json --grid attributes.png

The model has several axes of classes. It is asked for what held-out images have, on all axes at once; a judge for
each axis looks at the samples, at the images and at the tokenizer's reconstructions of them. The table goes to
standard output.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from class_accuracy import reconstructions
from torch import Tensor

from resgen.checkpoints.classifiers import load_classifier
from resgen.cli.main import guard
from resgen.data import load_array, open_images, picture_grid, save_picture
from resgen.data.pictures.decode import picture_array
from resgen.errors import ConfigError, unknown
from resgen.evaluation.image.classifier import classify
from resgen.evaluation.image.metrics import wilson_interval
from resgen.files import write_json
from resgen.models.conditions import class_digits
from resgen.nn.classifier import Classifier
from resgen.pipelines.image.pipeline import ImagePipeline

SHOWN = 8


def main(
    model: str,
    data: str,
    class_columns: tuple[str, ...],
    judges: tuple[str, ...],
    num_pictures: int = 600,
    seed: int = 0,
    batch_size: int = 64,
    json: Path | None = None,
    grid: Path | None = None,
) -> None:
    """Generate images with the attributes of held-out ones, with and without guidance, and judge every attribute.

    Args:
        model: folder of a pipeline with several axes of classes, or a bundled name.
        data: the data that the model was trained on, with a split `test`.
        class_columns: the columns that are the axes, `column` or `axis=column`, as in training.
        judges: a classifier for each axis to judge, as axis=FOLDER.
        num_pictures: held-out images, evenly over the split.
        seed: of the samples.
        batch_size: images per network evaluation.
        json: file for all numbers.
        grid: image file of samples beside the images whose attributes they were asked for.
    """
    pipe = ImagePipeline.from_pretrained(model)
    shape = pipe.tokenizer.config.image_size, pipe.tokenizer.config.channels
    source = open_images(data, split="test", class_columns=class_columns)
    if dict(source.class_axes) != dict(pipe.class_axes):
        raise ConfigError(
            f"the axes of '{model}' are {dict(pipe.class_axes)}, those of '{data}' {dict(source.class_axes)}"
        )
    axes = list(pipe.class_axes)
    classifiers = dict(_judge(text, pipe, shape) for text in judges)
    if not 1 <= num_pictures <= len(source):
        raise ConfigError(f"num_pictures={num_pictures} must lie in 1..{len(source)}, the images of '{data}'")
    rows = np.linspace(0, len(source) - 1, num_pictures).astype(np.int64)
    real, class_ids = load_array(source.subset(rows), size=shape[0], channels=shape[1])
    pictures = {"held-out pictures": real, "their reconstructions": reconstructions(pipe, real)}
    for name, settings in (("guided", {}), ("unguided", {"guidance_scale": 0.0})):
        output = pipe(class_ids.tolist(), seed=seed, batch_size=batch_size, **settings)
        pictures[name] = torch.from_numpy(np.stack([picture_array(image, *shape) for image in output.images]))
    digits = class_digits(class_ids, [len(names) for names in pipe.class_axes.values()])
    result: dict[str, Any] = {
        "model": str(model),
        "data": str(data),
        "data_fingerprint": source.fingerprint,
        "seed": seed,
    }
    result |= {"pictures": num_pictures, "num_steps": pipe.sampling.num_steps, "axes": {}}
    for axis, judge in classifiers.items():
        first, digit = axis == axes[0], digits[axes.index(axis)]
        targets = digit if first else digit - 1
        told = (targets >= 0) & (targets < len(pipe.class_axes[axis]))
        result["axes"][axis] = {name: _share(judge, some[told], targets[told]) for name, some in pictures.items()}
    print(_markdown(result, list(pictures)))
    if json is not None:
        write_json(json, result)
    if grid is not None:
        shown = torch.linspace(0, num_pictures - 1, SHOWN * 3).long()
        sheet = torch.stack([real[shown], pictures["guided"][shown]]).unflatten(1, (-1, SHOWN)).transpose(0, 1)
        names = ["asked for what it has", "sample"] * (len(shown) // SHOWN)
        save_picture(picture_grid(sheet.flatten(0, 2), SHOWN, row_labels=names), grid)


def _judge(text: str, pipe: ImagePipeline, shape: tuple[int, int]) -> tuple[str, Classifier]:
    """An axis and the classifier that judges it."""
    axis, equals, folder = text.partition("=")
    if not equals or axis not in pipe.class_axes:
        raise ConfigError(unknown("axis", axis, pipe.class_axes) if equals else f"judges={text} must be axis=FOLDER")
    judge, saved = load_classifier(Path(folder))
    names = saved.extra.get("class_names")
    if (judge.config.image_size, judge.config.channels) != shape or names != list(pipe.class_axes[axis]):
        raise ConfigError(
            f"'{folder}' knows {names} at {judge.config.image_size} pixels; {axis} is {pipe.class_axes[axis]}"
        )
    return axis, judge


def _share(judge: Classifier, pictures: Tensor, targets: Tensor) -> dict[str, Any]:
    """How many are recognised as what they should be, with a 95 % interval."""
    right = int((classify(judge, pictures).argmax(1).cpu() == targets).sum())
    return {"share": right / len(targets), "interval": wilson_interval(right, len(targets)), "pictures": len(targets)}


def _markdown(result: dict[str, Any], names: list[str]) -> str:
    lines = ["| recognised | images | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for axis, entry in result["axes"].items():
        cells = [f"{one['share']:.1%} ({one['interval'][0]:.1%} to {one['interval'][1]:.1%})" for one in entry.values()]
        lines.append(f"| {axis} | {entry[names[0]]['pictures']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(guard(lambda: tyro.cli(main)))
