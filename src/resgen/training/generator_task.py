"""Stage 2: a generator learns to predict the masked levels of cached codes (Sec. 3, App. A.1)."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from resgen.kinds import AnySampling, Batch, GeneratorLossConfig, Objective, make_objective, without_guidance
from resgen.models.base import CodeModel
from resgen.models.conditions import class_digits
from resgen.nn.transformer import Block
from resgen.ops.axes import join_digits
from resgen.ops.random import generator as make_generator
from resgen.quantizers.base import Quantizer
from resgen.training.interface import LossOf
from resgen.training.sharding import Shard
from resgen.types import LOCAL, Reduce

VALIDATION_BATCH = 256
Evaluate = Callable[[CodeModel, AnySampling], Mapping[str, float]]
"""Metrics of samples of a model under sampling settings."""


class Examples(Protocol):
    """Encoded data, as batches."""

    def __len__(self) -> int: ...

    def codes(self, indices: Int[Tensor, " B"]) -> Int[Tensor, "A M D"]:
        """Codes of the samples without padding, for statistics: all positions count alike."""
        ...

    def draw(self, indices: Int[Tensor, " B"], generator: torch.Generator) -> tuple[Any, Bool[Tensor, "B L"]]:
        """All that is random about the samples of a step, as a sequence or tensor with one entry for each; and the
        positions that are to be targets."""
        ...

    def batch(self, samples: Any) -> Batch:
        """Codes, classes and, for sequences, the rest of the condition, of a slice of what was drawn."""
        ...


class Product(Protocol):
    """The result of a generator: the data and files that people look at."""

    def to(self, device: torch.device) -> object:
        """Move what turns codes into signals."""
        ...

    def sample(self, path: Path, model: CodeModel, sampling: AnySampling) -> None:
        """Draw samples and write an image of them."""
        ...

    def export(self, folder: Path, model: CodeModel, sampling: AnySampling, history: Mapping[str, Any]) -> None:
        """Write the pipeline folder."""
        ...


class GeneratorTask:
    """Training task of a generator of any kind on codes; see `training.interface.Task`.

    Args:
        model: the generator. One without codebooks takes those of `quantizer`, scaled by the codes of `train`; one that
            was trained keeps its own and the scale that it learned with.
        config: how it is trained.
        train: encoded training data.
        held_out: encoded data to validate on.
        quantizer: quantizer of the tokenizer that made the codes.
        product: samples and export.
        sampling: settings for samples, exported with the model.
        history: stored with the exported model.
        evaluate: metrics of samples.
    """

    name = "generator"

    def __init__(
        self,
        model: CodeModel,
        config: GeneratorLossConfig,
        train: Examples,
        held_out: Examples,
        *,
        quantizer: Quantizer,
        product: Product,
        sampling: AnySampling,
        history: Mapping[str, Any] | None = None,
        evaluate: Evaluate | None = None,
    ) -> None:
        self.module: nn.Module = model
        self.model, self.config, self.product = model, config, product
        # Without a condition there is nothing that guidance could move away from.
        conditional = model.config.num_classes or model.config.feature_width
        self.sampling = sampling if conditional else without_guidance(sampling)
        self.train, self.held_out = train, held_out
        self.history = dict(history or {})
        self.objective = make_objective(model, self.config)
        self._loss: Callable[..., tuple[Tensor, dict[str, Tensor]]] = self.objective.loss
        self._evaluate = evaluate
        if not model.codebooks.any():
            count = min(len(train), 16384)
            # Float32 rounds numbers above 2^24, the last of them beyond the end.
            codes = train.codes(torch.linspace(0, len(train) - 1, count).long().clamp(max=len(train) - 1))
            model.set_codebooks(quantizer.codebooks, quantizer.variances, codes)

    @property
    def num_samples(self) -> int:
        """Encoded samples."""
        return len(self.train)

    @property
    def lengths(self) -> Int[Tensor, " N"] | None:
        """Positions of the encoded samples, where they differ."""
        return getattr(self.train, "lengths", None)

    @property
    def ema_module(self) -> nn.Module:
        """The whole generator."""
        return self.model

    def optimizer_groups(self) -> dict[str, list[nn.Parameter]]:
        """All parameters in one group."""
        return {"generator": list(self.model.parameters())}

    def to(self, device: torch.device) -> None:
        """Move the generator and what makes samples of its codes."""
        self.model.to(device)
        self.product.to(device)

    def compile(self) -> None:
        """Compile the blocks of the transformers."""
        for block in self._blocks():
            block.compile()

    def recompute(self) -> None:
        """Keep the inputs of the transformers' blocks only."""
        for block in self._blocks():
            block.forward = functools.partial(recomputed, block.forward)  # type: ignore[method-assign]

    def shard(self, shard: Shard) -> None:
        """Divide the blocks of the transformers, and all the rest as one."""
        for block in self._blocks():
            shard(block)
        self._loss = _Loss(self.model, self.objective)
        shard(self._loss)

    @contextlib.contextmanager
    def replaced(self, module: nn.Module) -> Iterator[None]:
        """Within the block another model of the same configuration is validated, sampled and exported."""
        own = self.module, self.model, self.objective
        self.module, self.model = module, cast(CodeModel, module)
        self.objective = make_objective(self.model, self.config)
        try:
            yield
        finally:
            self.module, self.model, self.objective = own

    def _blocks(self) -> list[Block]:
        return [module for module in self.model.modules() if isinstance(module, Block)]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.codebooks.device

    @torch.no_grad()
    def before_start(self, generator: torch.Generator, reduce: Reduce = LOCAL) -> None:
        """Let the kind's objective initialise the model from data; all processes start from what the first one has,
        since sums on a GPU may differ from one to the next."""
        count = min(len(self.train), 4096)
        index = torch.randint(len(self.train), (count,), generator=generator, device=generator.device)
        self.objective.start(self.train.codes(index).to(self.device), generator)
        if reduce.world_size > 1:
            for tensor in (*self.model.parameters(), *self.model.buffers()):
                tensor.copy_(reduce.sum(tensor if reduce.rank == 0 else torch.zeros_like(tensor)))

    def losses(
        self,
        indices: Int[Tensor, " B"],
        parts: Sequence[slice],
        step: int,
        generator: torch.Generator,
        reduce: Reduce = LOCAL,
    ) -> list[LossOf]:
        """The loss of the kind's objective, with some conditions dropped for guidance."""
        samples, targets = self.train.draw(indices, generator)
        condition = self.model.condition
        kept = draw_kept(len(indices), len(condition.sizes), self.model.config.class_dropout, generator)
        visible = self.objective.draw(targets.to(self.device), generator)

        def loss_of(rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
            codes, class_ids, sequence = self._to_device(self.train.batch(samples[rows]))
            keep = kept[rows].to(self.device)
            class_ids = keep_axes(class_ids, keep, condition.sizes)
            if sequence is not None and self.model.config.feature_width:
                sequence = replace(sequence, keep=keep.any(1))
            masks = visible[rows, : codes.shape[1]]  # beyond are the positions of longer samples
            return self._loss((codes, class_ids, sequence), masks, visible)

        return [("generator", functools.partial(loss_of, rows)) for rows in parts]

    @torch.no_grad()
    def validate(self, module: nn.Module, reduce: Reduce = LOCAL) -> dict[str, float]:
        """Exact negative log-likelihood in nats per token; the same held-out codes and masks at every validation."""
        count = min(len(self.held_out), self.config.validation_samples)
        parts = list(enumerate(torch.arange(count).split(VALIDATION_BATCH)))[reduce.rank :: reduce.world_size]
        draws = (self.held_out.draw(part, make_generator("validation", number))[0] for number, part in parts)
        return self.objective.validate((self._to_device(self.held_out.batch(samples)) for samples in draws), reduce)

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Metrics of generated samples, if the task was given a way to take them."""
        return {} if self._evaluate is None else dict(self._evaluate(self.model, self.sampling))

    def sample(self, path: Path) -> None:
        """An image of samples."""
        self.product.sample(path, self.model, self.sampling)

    def export(self, folder: Path, history: Mapping[str, Any]) -> None:
        """Write the pipeline folder."""
        self.product.export(folder, self.model, self.sampling, {**self.history, "generator": dict(history)})

    def _to_device(self, batch: Batch) -> Batch:
        codes, class_ids, sequence = batch
        moved = None if sequence is None else sequence.to(self.device)
        return codes.to(self.device), class_ids.to(self.device), moved


def draw_kept(count: int, num_axes: int, dropout: float, generator: torch.Generator) -> Bool[Tensor, "B A"]:
    """Which axes of its class each sample of a step keeps.

    A share `dropout` of the samples keeps none, for the unconditional branch of guidance: as many as with one axis,
    however many there are. Each of the others keeps some: their number is drawn evenly from 1 to A, then which they
    are. So a request that tells one axis alone is seen as often as one that tells all. If each axis were dropped by
    itself, the number kept would lie about its mean: with six axes kept at 90 % each, one alone in 18,000 samples.
    """
    keep = torch.rand(count, generator=generator, device=generator.device) >= dropout
    if num_axes == 1:
        return keep[:, None]
    ranks = torch.rand(count, num_axes, generator=generator, device=generator.device).argsort(1)
    return keep[:, None] & (
        ranks < torch.randint(1, num_axes + 1, (count, 1), generator=generator, device=ranks.device)
    )


def keep_axes(class_ids: Int[Tensor, " B"], keep: Bool[Tensor, "B A"], sizes: Sequence[int]) -> Int[Tensor, " B"]:
    """Class ids that say nothing on the axes that are not kept."""
    parts = zip(class_digits(class_ids, sizes), class_digits(sizes[0], sizes), keep.unbind(1), strict=True)
    return torch.as_tensor(join_digits([torch.where(kept, digit, nothing) for digit, nothing, kept in parts], sizes))


class _Loss(nn.Module):
    """The loss as a module: while it is computed, a divided model's weights are there."""

    def __init__(self, model: CodeModel, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(
        self, batch: Batch, visible: Int[Tensor, "B L"], whole: Int[Tensor, "G M"]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.objective.loss(batch, visible, whole)


def recomputed(forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """A forward pass whose inner activations are computed again in the backward pass, if there is one."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    function = functools.partial(forward, **kwargs)
    return cast(Tensor, checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False))
