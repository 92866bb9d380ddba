"""Class-conditional generators of any modality: cached codes as examples, training, and the saved result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from resgen.checkpoints.artefacts import SavedTokenizer, check_belongs, fingerprint, load_tokenizer_as, save_pipeline
from resgen.checkpoints.format import Folder
from resgen.data.codes.cache import CachePlan, CodeCache
from resgen.data.codes.encoding import write_codes
from resgen.errors import DataError
from resgen.kinds import AnySampling, kind_of, sample
from resgen.models.base import CodeModel
from resgen.training.generator_task import Batch, Evaluate, GeneratorTask
from resgen.training.initial import new_generator, read_generator_init
from resgen.training.parallel import initialise
from resgen.training.stages import Job, Run, run_stage

SAMPLED_CLASSES, SAMPLES_PER_CLASS = 10, 4
Show = Callable[[Path, Tensor, Sequence[str]], None]
"""(path, signals, names of their classes) writes decoded samples; four of each class follow each other."""


class ClassExamples:
    """A code cache as `generator_task.Examples`: codes and classes.

    Args:
        cache: encoded samples.
        num_classes: classes that the generator knows; with 0 all samples have none.
    """

    def __init__(self, cache: CodeCache, num_classes: int) -> None:
        self.cache, self.num_classes = cache, num_classes

    def __len__(self) -> int:
        return len(self.cache)

    def codes(self, indices: Int[Tensor, " B"]) -> Int[Tensor, "B L D"]:
        """Codes of the rows."""
        return self.cache.batch(indices)[0]

    def draw(
        self, indices: Int[Tensor, " B"], generator: torch.Generator
    ) -> tuple[Int[Tensor, " B"], Bool[Tensor, "B L"]]:
        """Nothing is random: the rows themselves, and all their positions."""
        return indices, torch.ones(len(indices), self.cache.spec.num_positions, dtype=torch.bool)

    def batch(self, samples: Int[Tensor, " B"]) -> Batch:
        """Codes and classes of the rows."""
        codes, labels = self.cache.batch(samples)
        return codes, labels if self.num_classes else torch.zeros_like(labels), None


class Decoder(SavedTokenizer, Protocol):
    """A tokenizer at work."""

    def to(self, device: torch.device, /) -> object:
        """Move its network."""
        ...

    def encode(self, signals: Tensor) -> Int[Tensor, "B L D"]:
        """Codes of signals."""
        ...

    def decode(self, codes: Int[Tensor, "B L D"]) -> Tensor:
        """Signals of codes."""
        ...


class ClassProduct:
    """`generator_task.Product` of a generator of classes.

    Args:
        tokenizer: decodes samples; exported with the generator.
        class_names: names of the training data's classes.
        show: writes samples.
        class_axes: see `checkpoints.artefacts.save_pipeline`.
    """

    def __init__(
        self,
        tokenizer: Decoder,
        class_names: Sequence[str],
        show: Show,
        class_axes: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        self.tokenizer, self.class_names, self.show = tokenizer, tuple(class_names), show
        self.class_axes = class_axes

    def to(self, device: torch.device) -> None:
        """Move the tokenizer."""
        self.tokenizer.to(device)

    @torch.no_grad()
    def sample(self, path: Path, model: CodeModel, sampling: AnySampling) -> None:
        """Four samples of each of the first ten classes."""
        classes = min(model.config.num_classes, SAMPLED_CLASSES)
        class_ids = torch.arange(max(classes, 1)).repeat_interleave(SAMPLES_PER_CLASS).to(model.codebooks.device)
        codes = sample(model, class_ids, seed=0, indices=range(len(class_ids)), sampling=sampling).codes
        self.show(path, self.tokenizer.decode(codes).cpu(), self.class_names[:classes])

    def export(self, folder: Path, model: CodeModel, sampling: AnySampling, history: Mapping[str, Any]) -> None:
        """Write the pipeline folder."""
        save_pipeline(
            folder,
            self.tokenizer,
            model,
            sampling=sampling,
            class_names=self.class_names if model.config.num_classes else (),
            class_axes=self.class_axes,
            history=history,
        )


def train_classes(
    recipe: Any,
    run: Run,
    *,
    tokenizers: Sequence[type[Any]],
    encoded: Callable[[Any, Folder], tuple[CodeCache, CodeCache]],
    show: Show,
    evaluator: Callable[[Any], Evaluate] | None = None,
) -> dict[str, float]:
    """Train a generator of classes and write the pipeline `out/model`; returns the final metrics.

    Args:
        recipe: with `generator`, `generator_loss`, `generator_training` and `sampling`; the shape of the codes is the
            tokenizer's.
        run: with the model `tokenizer`. Classes of `init` are known by their names; others start from scratch.
        tokenizers: classes of those that will do.
        encoded: (tokenizer, its folder) gives training and held-out codes, with the column `labels`.
        show: writes samples.
        evaluator: makes, for the tokenizer, what is called every `evaluate_every` steps.
    """

    def prepare() -> Job:
        tokenizer, folder = load_tokenizer_as(run.models["tokenizer"], tokenizers)
        init = read_generator_init(run.init, recipe.generator, tokenizer)
        train, held_out = encoded(tokenizer, folder)
        for cache in (train, held_out):
            check_belongs(tokenizer, cache.spec, cache.plan.made_from.get("tokenizer"), str(cache.path))
        class_names, class_axes = train.plan.class_names, dict(train.plan.class_axes)
        if held_out.plan.class_axes != train.plan.class_axes:
            raise DataError(
                f"code caches '{train.path}' and '{held_out.path}' differ in their class_axes; encode again"
            )
        num_classes = len(class_names) if len(class_names) > 1 or class_axes else 0
        other_axes = tuple(map(len, class_axes.values()))[1:]
        config = replace(recipe.generator, num_classes=num_classes, other_axes=other_axes)
        task = GeneratorTask(
            new_generator(recipe, config, tokenizer.spec, init, class_axes or {"": class_names[:num_classes]}),
            recipe.generator_loss,
            ClassExamples(train, num_classes),
            ClassExamples(held_out, num_classes),
            quantizer=tokenizer.quantizer,
            product=ClassProduct(tokenizer, class_names, show, class_axes),
            sampling=recipe.sampling,
            evaluate=evaluator(tokenizer) if evaluator is not None and initialise().rank == 0 else None,
            history={"tokenizer": folder.record("tokenizer")},
        )
        about = {
            "sha256": train.plan.made_from["data"],
            "versions": train.plan.versions,
            "tokenizer": train.plan.made_from["tokenizer"],
        }
        configs = {"generator": config, "generator_loss": recipe.generator_loss, "sampling": recipe.sampling}
        return Job(task, about, configs, kind_of(config).name)

    return run_stage("generator", recipe, run, prepare)


@torch.no_grad()
def encode_classes(
    folder: Path, tokenizer: Decoder, signals: Tensor, labels: Int[Tensor, " N"], class_names: Sequence[str], data: str
) -> CodeCache:
    """A code cache of signals that fit into memory, for `ClassExamples`.

    Args:
        folder: the place of the cache.
        tokenizer: encodes them.
        signals: as the tokenizer takes them, [N, ...].
        labels: their classes.
        class_names: names of all classes.
        data: what the signals are, such as a hash; with the same the cache is kept.
    """
    plan = CachePlan(
        spec=tokenizer.spec,
        num_samples=len(signals),
        columns={"labels": "number"},
        class_names=tuple(class_names),
        made_from={"tokenizer": fingerprint(tokenizer), "data": data},
        shard_samples=len(signals),
    )
    return write_codes(folder, plan, tokenizer.encode(signals).cpu(), {"labels": labels.tolist()})
