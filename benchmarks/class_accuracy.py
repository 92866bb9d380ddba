"""Do generated images show the class that was asked for, how near are they to the data, and are they copies?

    python benchmarks/class_accuracy.py --model DIR --data PATH --classifier DIR --steps 4 8 16 --json J --grid G.png

The judge is a classifier trained on the same data (`tools/train_classifier.py`). Its own errors are reported beside its
judgement, on the test images and on the tokenizer's reconstructions of them. The tables go to standard output.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from resgen.checkpoints.classifiers import load_classifier
from resgen.cli.main import guard
from resgen.data import load_array, open_images, picture_grid, save_picture
from resgen.data.pictures.decode import picture_array
from resgen.errors import ConfigError, DataError
from resgen.evaluation.image.classifier import accuracy, classify, features
from resgen.evaluation.image.metrics import frechet_distance, wilson_interval
from resgen.files import write_json
from resgen.nn.classifier import Classifier
from resgen.ops.images import from_uint8, to_uint8
from resgen.pipelines.image.pipeline import ImagePipeline

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95)
NEIGHBOURS_SHOWN = 3
BATCH = 256


def main(
    model: str,
    data: str,
    classifier: Path,
    num_per_class: int = 100,
    steps: tuple[int, ...] = (),
    guidance_scale: float | None = None,
    top_p: float | None = None,
    temperature: float | None = None,
    choice_temperature: float | None = None,
    schedule: str | None = None,
    seed: int = 0,
    batch_size: int = 64,
    flip: bool = False,
    resize: bool = False,
    json: Path | None = None,
    grid: Path | None = None,
) -> None:
    """Generate images of every class with and without guidance and in several numbers of steps, and judge them.

    Args:
        model: folder of a pipeline, or a bundled name.
        data: the data set that the model was trained on, with a train and a test split.
        classifier: folder of the judge.
        num_per_class: images per class and setting.
        steps: numbers of steps to compare; the last one is also run without guidance. The model's own by default.
        guidance_scale: of the guided runs; like the options below, the model's own by default.
        top_p: nucleus of the mixture's components.
        temperature: scale of the noise within a component.
        choice_temperature: scale of the noise on confidence.
        schedule: mask schedule.
        seed: of all runs.
        batch_size: images per network evaluation.
        flip: look for copies among the mirrored training images, too (for models trained on both).
        resize: cut out and resize images of another size.
        json: file for all numbers.
        grid: image file for samples beside their nearest training images.
    """
    if num_per_class < 1:
        raise ConfigError(f"num_per_class={num_per_class} must be at least 1")
    judge, folder = load_classifier(classifier)
    pipe = ImagePipeline.from_pretrained(model)
    shape = pipe.tokenizer.config.image_size, pipe.tokenizer.config.channels
    if (judge.config.image_size, judge.config.channels) != shape or judge.config.num_classes != pipe.num_classes:
        raise ConfigError(
            f"the classifier is made for {judge.config}, the model for {pipe.num_classes} classes of {shape}"
        )
    source = open_images(data, split="train")
    names = list(source.class_names)
    for what, other in (("model", list(pipe.class_names)), ("classifier", folder.extra.get("class_names"))):
        if other != names:
            raise ConfigError(f"the classes of the {what} are {other}, those of '{data}' are {names}")
    train, _ = load_array(source, size=shape[0], channels=shape[1], resize=resize)
    test, test_labels = load_array(open_images(data, split="test"), size=shape[0], channels=shape[1], resize=resize)
    rebuilt = reconstructions(pipe, test)
    train_features = features(judge, train)
    settings = {
        "guidance_scale": guidance_scale,
        "top_p": top_p,
        "temperature": temperature,
        "choice_temperature": choice_temperature,
        "mask_schedule": schedule,
    }
    step_counts = steps or (pipe.sampling.num_steps,)
    plan: list[dict[str, Any]] = [{**settings, "num_steps": count} for count in step_counts]
    plan.append({**settings, "num_steps": step_counts[-1], "guidance_scale": 0.0})
    runs: list[dict[str, Any]] = []
    guided = train[:0]
    for values in plan:
        begin = time.perf_counter()
        output = pipe(num_samples=num_per_class, seed=seed, batch_size=batch_size, **values)
        seconds = time.perf_counter() - begin
        pictures = torch.from_numpy(np.stack([picture_array(image, *shape) for image in output.images]))
        scale = pipe.sampling.guidance_scale if values["guidance_scale"] is None else values["guidance_scale"]
        run = {**values, "guidance_scale": scale, "seconds": seconds, "pictures": len(pictures)}
        runs.append({**run, **judged(judge, pictures, torch.tensor(output.class_ids), names, train_features)})
        print(f"{run['num_steps']} steps, guidance {scale:g}: {runs[-1]['share']:.1%}", file=sys.stderr, flush=True)
        guided = pictures if values["num_steps"] == step_counts[-1] and scale else guided
    held_out = torch.randperm(len(test), generator=torch.Generator().manual_seed(seed))[: runs[0]["pictures"]]
    references = {
        "test pictures": reference(judge, test, test_labels, held_out, train_features),
        "their reconstructions": reference(judge, rebuilt, test_labels, held_out, train_features),
    }
    candidates = torch.cat([train, train.flip(3)]) if flip else train
    samples = guided if len(guided) else pictures
    sets = {"samples": samples, "test pictures": test[held_out], "their reconstructions": rebuilt[held_out]}
    result = {
        "model": str(model),
        "data": str(data),
        "data_fingerprint": source.fingerprint,
        "seed": seed,
        "num_per_class": num_per_class,
        "class_names": names,
        "history": pipe.history,
        "classifier": folder.extra.get("history", {}),
        "runs": runs,
        "references": references,
        "nearest_training_picture": {name: nearness(images, candidates) for name, images in sets.items()},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(markdown(result))
    if json is not None:
        write_json(json, result)
    if grid is not None:
        save_picture(neighbour_grid(samples, candidates, names, num_per_class), grid)


@torch.inference_mode()
def reconstructions(pipe: ImagePipeline, pictures: Tensor) -> Tensor:
    """What the tokenizer makes of the images."""
    parts = [from_uint8(part).to(pipe.device, pipe.dtype) for part in pictures.split(BATCH)]
    return torch.cat([to_uint8(pipe.tokenizer.decode(pipe.tokenizer.encode(part))).cpu() for part in parts])


def judged(
    judge: Classifier, pictures: Tensor, targets: Tensor, names: list[str], train_features: Tensor
) -> dict[str, Any]:
    """Share of the images recognised as the intended class, with 95 % intervals, and their distance to the data."""
    right = classify(judge, pictures).argmax(1).cpu() == targets
    by_class = {}
    for index, name in enumerate(names):
        mine = right[targets == index]
        by_class[name] = {
            "share": float(mine.double().mean()),
            "interval": wilson_interval(int(mine.sum()), len(mine)),
        }
    return {
        "share": float(right.double().mean()),
        "interval": wilson_interval(int(right.sum()), len(right)),
        "by_class": by_class,
        "fd_classifier": frechet_distance(features(judge, pictures), train_features),
    }


def reference(
    judge: Classifier, pictures: Tensor, labels: Tensor, held_out: Tensor, train_features: Tensor
) -> dict[str, Any]:
    """The classifier's accuracy on all `pictures`, and the distance of as many of them as were generated."""
    return {
        "accuracy": accuracy(judge, pictures, labels),
        "pictures": len(pictures),
        "fd_classifier": frechet_distance(features(judge, pictures[held_out]), train_features),
        "fd_pictures": len(held_out),
    }


class Neighbours(NamedTuple):
    """The most similar reference images of every image.

    Attributes:
        indices: into the reference, nearest first.
        distances: root mean square difference per pixel and channel, 0..255.
    """

    indices: Int[Tensor, "N k"]
    distances: Float[Tensor, "N k"]


def nearest_neighbours(
    pictures: UInt8[Tensor, "N C S S"],
    reference: UInt8[Tensor, "M C2 S2 S2"],
    count: int = 2,
    *,
    chunk_size: int = 4096,
) -> Neighbours:
    """The `count` reference images nearest to every image in pixels, by exhaustive search.

    Args:
        pictures: 0..255.
        reference: at least `count` images of the same shape.
        count: neighbours per image.
        chunk_size: reference images compared at one time.

    Raises:
        DataError: images of different shapes, or fewer references than `count`.
    """
    if pictures.shape[1:] != reference.shape[1:] or len(reference) < count:
        raise DataError(
            f"{len(reference)} references of shape {tuple(reference.shape[1:])} do not do for {count} neighbours of "
            f"images of shape {tuple(pictures.shape[1:])}"
        )
    rows = pictures.flatten(1).float() - 127.5
    norms = rows.square().sum(1, keepdim=True)
    best = torch.full((len(rows), 0), 0.0)
    indices = torch.zeros(len(rows), 0, dtype=torch.int64)
    for begin in range(0, len(reference), chunk_size):
        part = reference[begin : begin + chunk_size].flatten(1).float() - 127.5
        squares = torch.addmm(norms, rows, part.T, alpha=-2) + part.square().sum(1)
        number = torch.arange(begin, begin + len(part)).expand(len(rows), -1)
        best, indices = torch.cat([best, squares], 1), torch.cat([indices, number], 1)
        best, order = best.topk(min(count, best.shape[1]), dim=1, largest=False)
        indices = indices.gather(1, order)
    # The expansion above rounds; the distances of the chosen ones are computed directly.
    nearest = reference[indices].flatten(2).float() - 127.5
    distances = (nearest - rows[:, None]).square().mean(2).sqrt()
    distances, order = distances.sort(dim=1, stable=True)
    return Neighbours(indices.gather(1, order), distances)


def nearness(pictures: Tensor, candidates: Tensor) -> dict[str, Any]:
    """How near the nearest training image is, in root mean square grey levels, and how it compares to the second."""
    distances = nearest_neighbours(pictures, candidates, 2).distances.double()
    levels = torch.tensor(QUANTILES, dtype=torch.float64)
    ratio = distances[:, 0] / distances[:, 1].clamp(min=1e-9)
    return {
        "pictures": len(pictures),
        "distance": dict(zip(map(str, QUANTILES), distances[:, 0].quantile(levels).tolist(), strict=True)),
        "nearest_over_second": dict(zip(map(str, QUANTILES), ratio.quantile(levels).tolist(), strict=True)),
    }


def neighbour_grid(samples: Tensor, candidates: Tensor, names: list[str], num_per_class: int) -> Any:
    """A row per class: two samples, each followed by its nearest training images."""
    per_class = min(2, num_per_class)
    rows = torch.arange(len(samples)).view(len(names), -1)[:, :per_class].flatten()
    near = nearest_neighbours(samples[rows], candidates, NEIGHBOURS_SHOWN).indices
    sheet = torch.cat([samples[rows][:, None], candidates[near]], dim=1).flatten(0, 1)
    labels = ["sample", *(f"near {i + 1}" for i in range(NEIGHBOURS_SHOWN))] * per_class
    scale = max(1, 56 // samples.shape[-1])
    return picture_grid(sheet, len(labels), scale=scale, labels=labels, row_labels=names)


def markdown(result: dict[str, Any]) -> str:
    """The numbers as tables."""

    def percent(entry: dict[str, Any]) -> str:
        low, high = entry["interval"]
        return f"{entry['share']:.1%} ({low:.1%} to {high:.1%})"

    lines = [
        "| setting | steps | guidance | intended class recognised (95 % interval) | FD-classifier | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for run in result["runs"]:
        name = "guided" if run["guidance_scale"] else "unguided"
        cells = [name, run["num_steps"], f"{run['guidance_scale']:g}", percent(run)]
        lines.append(_row([*cells, f"{run['fd_classifier']:.2f}", f"{run['seconds']:.1f}"]))
    for name, entry in result["references"].items():
        lines.append(f"| {name} | | | {entry['accuracy']:.1%} | {entry['fd_classifier']:.2f} | |")
    lines += ["", "| class | " + " | ".join(_title(run) for run in result["runs"]) + " |"]
    lines.append("|---" * (len(result["runs"]) + 1) + "|")
    for name in result["class_names"]:
        lines.append(
            f"| {name} | " + " | ".join(f"{run['by_class'][name]['share']:.0%}" for run in result["runs"]) + " |"
        )
    for key, title in (
        ("distance", "distance to the nearest training image"),
        ("nearest_over_second", "nearest over second nearest"),
    ):
        lines += [
            "",
            f"| {title} | " + " | ".join(f"{q:.0%}" for q in QUANTILES) + " |",
            "|---" * (len(QUANTILES) + 1) + "|",
        ]
        for name, entry in result["nearest_training_picture"].items():
            lines.append(f"| {name} | " + " | ".join(f"{value:.2f}" for value in entry[key].values()) + " |")
    return "\n".join(lines)


def _row(cells: list[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _title(run: dict[str, Any]) -> str:
    return f"{'guided' if run['guidance_scale'] else 'unguided'}, {run['num_steps']} steps"


if __name__ == "__main__":
    sys.exit(guard(lambda: tyro.cli(main)))
