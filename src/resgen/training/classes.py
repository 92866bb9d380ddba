"""Cached codes with classes as examples for a generator, and what becomes of it; of any modality."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from resgen.checkpoints.artefacts import SavedTokenizer, save_pipeline
from resgen.data.codes.cache import CodeCache
from resgen.kinds import AnySampling, sample
from resgen.models.base import CodeModel
from resgen.training.generator_task import Batch

SAMPLED_CLASSES, SAMPLES_PER_CLASS = 10, 4


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
    """A tokenizer that decodes."""

    def to(self, device: torch.device, /) -> object:
        """Move its network."""
        ...

    def decode(self, codes: Int[Tensor, "B L D"]) -> Tensor:
        """Signals of codes."""
        ...


class ClassProduct:
    """`generator_task.Product` of a generator of classes.

    Args:
        tokenizer: decodes samples; exported with the generator.
        class_names: of the training data.
        show: (path, signals, names of their classes) writes decoded samples; four of each class follow each other.
    """

    def __init__(
        self,
        tokenizer: Decoder,
        class_names: Sequence[str],
        show: Callable[[Path, Tensor, Sequence[str]], None],
    ) -> None:
        self.tokenizer, self.class_names, self.show = tokenizer, tuple(class_names), show

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
            history=history,
        )
