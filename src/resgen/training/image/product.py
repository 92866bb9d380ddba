"""Encoded pictures as examples, and generated ones as files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from resgen.checkpoints.artefacts import save_pipeline
from resgen.data.codes.cache import CodeCache
from resgen.data.pictures.grid import picture_grid, save_picture
from resgen.kinds import AnySampling, sample
from resgen.models.base import CodeModel
from resgen.ops.images import to_uint8
from resgen.tokenizers.image import ImageTokenizer
from resgen.training.generator_task import Batch

SHOWN_CLASSES = 10


class ClassExamples:
    """A code cache as `generator_task.Examples`: codes and classes.

    Args:
        cache: encoded pictures.
        num_classes: classes that the generator knows; with 0 all pictures have none.
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


class ImageProduct:
    """`generator_task.Product` of pictures.

    Args:
        tokenizer: decodes samples; exported with the generator.
        class_names: of the training data.
    """

    def __init__(self, tokenizer: ImageTokenizer, class_names: tuple[str, ...]) -> None:
        self.tokenizer, self.class_names = tokenizer, class_names

    def to(self, device: torch.device) -> None:
        """Move the tokenizer."""
        self.tokenizer.to(device)

    @torch.no_grad()
    def sample(self, path: Path, model: CodeModel, sampling: AnySampling) -> None:
        """A sheet of four samples per class (the first ten classes), one class a row."""
        classes = min(model.config.num_classes, SHOWN_CLASSES)
        class_ids = torch.arange(max(classes, 1)).repeat_interleave(4).to(model.codebooks.device)
        codes = sample(model, class_ids, seed=0, indices=range(len(class_ids)), sampling=sampling).codes
        pictures = to_uint8(self.tokenizer.decode(codes)).cpu()
        names = list(self.class_names[:classes]) or None
        save_picture(picture_grid(pictures, 4, scale=max(1, 64 // pictures.shape[-1]), row_labels=names), path)

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
