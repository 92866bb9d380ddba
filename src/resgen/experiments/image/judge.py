"""Measuring pipelines against the images they were trained on, many times over with one reference."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from resgen.checkpoints.format import load_folder
from resgen.checkpoints.locate import resolve_model
from resgen.config import config_to_dict
from resgen.devices import dtype_name
from resgen.evaluation.image.checks import generation_protocol
from resgen.evaluation.image.evaluate import Generate, Subject, evaluate_generation, folder_sha256
from resgen.evaluation.image.extractors import Extractor, default_extractor, load_extractor
from resgen.evaluation.image.metrics import frechet_distance, precision_recall
from resgen.evaluation.image.protocol import MANIFOLD_SIZE, EvaluationProtocol, distance_name
from resgen.evaluation.image.reference import (
    Reference,
    choose_split,
    neighbours,
    open_reference,
    reference_features,
)
from resgen.evaluation.image.report import EvaluationReport
from resgen.kinds import AnySampling, sample, without_guidance
from resgen.models.base import CodeModel
from resgen.ops.images import to_uint8
from resgen.pipelines.image.pipeline import ImagePipeline
from resgen.progress import progress_bars
from resgen.tokenizers.image import ImageTokenizer
from resgen.training.generator_task import Evaluate

_BATCH_SIZE = 250
NEIGHBOURS = EvaluationProtocol.pr_k
"""Of precision and recall: as many as a full evaluation takes."""
LEAST_ROWS = 100
"""Samples and real images for precision and recall; of fewer, they say nothing."""


def sampling_of(pipe: ImagePipeline, sampling: AnySampling) -> dict[str, Any]:
    """Settings of the sampler as a protocol names them, with the generator's arithmetic."""
    return {**config_to_dict(sampling), "dtype": dtype_name(pipe.dtype)}


def sha256_of(model: str | Path) -> str:
    """Of the weights of a saved model."""
    return folder_sha256(load_folder(resolve_model(model), verify=False))


@dataclass(frozen=True, kw_only=True)
class Score:
    """A quick measurement, one seed and one setting.

    Attributes:
        distance: Fréchet distance; `Judge.metric` names it.
        precision: share of the samples among the real images, as `precision_recall` says; None of fewer than 100.
        recall: share of the real images among the samples, likewise.
        recognised: share of samples that the extractor takes for their class; None where it does not know the classes.
        num_samples: images generated.
        seconds: seconds of generating them.
    """

    distance: float
    recognised: float | None
    num_samples: int
    seconds: float
    precision: float | None = None
    recall: float | None = None


def samples_of(pipe: ImagePipeline, sampling: AnySampling, batch_size: int) -> Generate:
    """A pipeline under given settings, as `evaluate_generation` takes it."""
    unguided = without_guidance(sampling)

    def generate(indices: range, class_ids: list[int], guided: bool, seed: int) -> UInt8[Tensor, "B C S S"]:
        return pipe.generate_pixels(
            class_ids,
            first_index=indices.start,
            seed=seed,
            batch_size=batch_size,
            sampling=sampling if guided else unguided,
        )

    return generate


class Judge:
    """An extractor and real images, ready to measure any number of models.

    Args:
        data: images, as `open_images` takes them; the training split is the reference.
        image_size: S.
        channels: C.
        extractor: name or path; by default the bundled classifier of the same classes.
        cache_dir: for the features of the reference and of evaluations.
        resize: cut out and resize images of another size.
        skip_unreadable: leave out images that cannot be read.
        device: where the extractor computes.
    """

    def __init__(
        self,
        data: str | Path,
        *,
        image_size: int,
        channels: int,
        extractor: str | None = None,
        cache_dir: str | Path | None = None,
        resize: bool = False,
        skip_unreadable: bool = False,
        device: str = "cpu",
    ) -> None:
        split = choose_split(data, "train")
        self.reference: Reference = open_reference(
            data,
            split=split,
            image_size=image_size,
            channels=channels,
            resize=resize,
            skip_unreadable=skip_unreadable,
        )
        name = extractor or default_extractor(self.reference.class_names, image_size, channels)
        self.extractor: Extractor = load_extractor(name, device)
        self.cache_dir = Path(cache_dir) if cache_dir is not None else None
        with progress_bars() as advance:
            self.real = reference_features(
                self.reference,
                self.extractor,
                manifold_size=MANIFOLD_SIZE,
                cache_dir=self.cache_dir,
                advance=advance,
            )

    def prepare(self) -> None:
        """Fill the cache with all that is needed of the real images."""
        if len(self.real.rows) >= LEAST_ROWS:
            _ = self.radii

    @cached_property
    def radii(self) -> Tensor:
        """`neighbours` of the real images, for precision and recall."""
        with progress_bars() as advance:
            return neighbours(
                self.real, self.reference, self.extractor, NEIGHBOURS, cache_dir=self.cache_dir, advance=advance
            )

    @property
    def metric(self) -> str:
        """`FID` with the standard Inception features, `FD-<extractor>` otherwise."""
        return distance_name(self.extractor.name, self.extractor.sha256)

    def score(self, generate: Callable[[list[int], int], Tensor], num_classes: int, num_samples: int) -> Score:
        """A quick measurement without error bars.

        Args:
            generate: (class_ids, first_index) to uint8 `[B, C, S, S]`.
            num_classes: number of classes of the model; samples show the classes in turn.
            num_samples: images to generate.
        """

        class_ids = [index % max(num_classes, 1) for index in range(num_samples)]
        features, right, seconds = [], 0, 0.0
        judged = num_classes > 0 and self.extractor.class_names == self.reference.class_names
        for begin in range(0, num_samples, 500):
            ids = class_ids[begin : begin + 500]
            start = time.perf_counter()
            pictures = generate(ids, begin)
            seconds += time.perf_counter() - start
            output = self.extractor(pictures)
            features.append(output.features)
            if judged and output.logits is not None:
                right += int((output.logits.argmax(1) == torch.tensor(ids)).sum())
        rows, real = torch.cat(features), self.real.rows
        precision = recall = None
        if min(len(rows), len(real)) >= LEAST_ROWS:
            precision, recall = precision_recall(rows[:MANIFOLD_SIZE], real, k=NEIGHBOURS, reference_radii=self.radii)
        return Score(
            distance=frechet_distance(rows, self.real.statistics),
            precision=precision,
            recall=recall,
            recognised=right / num_samples if judged else None,
            num_samples=num_samples,
            seconds=seconds,
        )

    def score_pipeline(self, pipe: ImagePipeline, sampling: AnySampling, *, num_samples: int, seed: int) -> Score:
        """`score` of a pipeline under given settings."""

        def generate(class_ids: list[int], first: int) -> Tensor:
            return pipe.generate_pixels(
                class_ids, first_index=first, seed=seed, batch_size=_BATCH_SIZE, sampling=sampling
            )

        return self.score(generate, pipe.num_classes, num_samples)

    def in_training(self, tokenizer: ImageTokenizer) -> Callable[[CodeModel, AnySampling], dict[str, float]]:
        """What `GeneratorTask` calls every `evaluate_every` steps: distance, precision and recall, with and without
        guidance."""
        num_samples = 1000

        @torch.inference_mode()
        def evaluate(model: CodeModel, sampling: AnySampling) -> dict[str, float]:
            num_classes, device = model.config.num_classes, model.codebooks.device

            def generate(settings: AnySampling) -> Callable[[list[int], int], Tensor]:
                def pictures(class_ids: list[int], first: int) -> Tensor:
                    parts = []
                    for begin in range(0, len(class_ids), _BATCH_SIZE):
                        part = torch.tensor(class_ids[begin : begin + _BATCH_SIZE], device=device)
                        indices = range(first + begin, first + begin + len(part))
                        codes = sample(model, part, seed=0, indices=indices, sampling=settings).codes
                        parts.append(to_uint8(tokenizer.decode(codes)).cpu())
                    return torch.cat(parts)

                return pictures

            scores = {"unguided": self.score(generate(without_guidance(sampling)), num_classes, num_samples)}
            if sampling.guidance_scale > 0:
                scores["guided"] = self.score(generate(sampling), num_classes, num_samples)
            values = {}
            for setting, score in scores.items():
                values[f"{self.metric}/{setting}"] = score.distance
                if score.precision is not None and score.recall is not None:
                    values |= {f"precision/{setting}": score.precision, f"recall/{setting}": score.recall}
            return values

        return evaluate

    def report(
        self,
        model: str | Path,
        pipe: ImagePipeline,
        sampling: AnySampling,
        *,
        num_samples: int,
        seeds: Sequence[int],
        name: str = "",
        command: str = "",
        **settings: Any,
    ) -> EvaluationReport:
        """The full evaluation of a model, guided and unguided, with error bars; see `evaluate_generation`."""
        protocol = generation_protocol(
            self.extractor,
            self.reference,
            num_samples=num_samples,
            sampling=sampling_of(pipe, sampling),
            class_balance="equal" if pipe.num_classes else "none",
            seeds=tuple(seeds),
            **settings,
        )
        return evaluate_generation(
            samples_of(pipe, sampling, _BATCH_SIZE),
            protocol,
            self.extractor,
            self.reference,
            Subject(
                name=name or str(model),
                sha256=sha256_of(model),
                command=command,
                environment={"device": str(pipe.device)},
            ),
            cache_dir=self.cache_dir,
        )


def evaluator(path: str, *, resize: bool, extractor: str | None = None) -> Callable[[ImageTokenizer], Evaluate]:
    """What measures, for a tokenizer, a generator in training against the images in `path`."""

    def make(tokenizer: ImageTokenizer) -> Evaluate:
        config = tokenizer.config
        judge = Judge(path, image_size=config.image_size, channels=config.channels, extractor=extractor, resize=resize)
        return judge.in_training(tokenizer)

    return make
