"""A kind of generator: one record of everything specific to it (Sec. 5.2.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Int
from torch import Tensor

from resgen.kinds.objective import GeneratorLossConfig, Objective
from resgen.models.ar_resgen import ARResGenConfig
from resgen.models.base import CodeModel
from resgen.models.maskgit import MaskGITConfig
from resgen.models.resgen import ResGenConfig
from resgen.models.rq_transformer import RQTransformerConfig
from resgen.models.valle import ValleConfig
from resgen.samplers.autoregressive import AutoregressiveConfig, LatentAutoregressiveConfig
from resgen.samplers.depthwise import DepthwiseConfig
from resgen.samplers.records import Recorder, Samples, StepCallback
from resgen.samplers.unmasking import SamplingConfig
from resgen.types import CodeSpec, SequenceCondition

ModelConfig = ResGenConfig | MaskGITConfig | RQTransformerConfig | ARResGenConfig | ValleConfig
AnySampling = SamplingConfig | DepthwiseConfig | AutoregressiveConfig | LatentAutoregressiveConfig


class Request(NamedTuple):
    """A request for samples of a model; all tensors are on the model's device.

    Attributes:
        class_ids: one per sample.
        sequence: the condition of sequences.
        seed: one seed for all samples, or one for each.
        indices: number of each sample; sample k draws from the stream (seed, k).
        codes: given codes, with `visible`.
        visible: how many levels of each position are given.
        callback: see the samplers.
    """

    class_ids: Int[Tensor, " B"]
    sequence: SequenceCondition | None
    seed: int | Sequence[int]
    indices: Sequence[int]
    codes: Int[Tensor, "B L D"] | None
    visible: Int[Tensor, "B L"] | None
    callback: StepCallback | None

    @property
    def lengths(self) -> list[int] | None:
        """Positions of each sample, or None for those of the model."""
        return None if self.sequence is None else self.sequence.lengths

    @property
    def condition(self) -> tuple[Int[Tensor, " B"], SequenceCondition | None]:
        """What a model's predictor or decoder is made for."""
        return self.class_ids, self.sequence

    def recorded(
        self, num_steps: int, sampler: Callable[..., Int[Tensor, "B L D"]], *args: Any, **recording: Any
    ) -> Samples:
        """What a sampler gives, with a record of every evaluation.

        Args:
            num_steps: evaluations at most.
            sampler: takes given codes and a record besides `args`.
            args: predictor, noise and settings.
            recording: further settings of the `Recorder`.
        """
        given = self.visible if self.visible is None or self.sequence is None else self.visible * self.sequence.valid
        num_given = 0 if given is None else int(given.sum())
        record = Recorder(num_steps, num_given, self.callback, **recording)
        codes = sampler(*args, codes=self.codes, visible=self.visible, record=record)
        return Samples(codes, record.steps)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One way to generate codes.

    Attributes:
        name: on the command line and in saved models.
        title: in reports.
        model: class of the network.
        make: `(configuration, shape of the codes) -> model`; the class itself by default.
        config: class of its configuration.
        sampling: class of its sampling settings.
        sample: `(model, request, sampling) -> Samples`.
        objective: `(model, settings) -> Objective`, what it is trained to do.
        sized: `(configuration of a ResGen, num_layers) -> configuration` of this kind, of the same width.
        settings: `(settings of a ResGen, shape of the codes) -> sampling` to begin with, at the same guidance.
        search: values of the sampling settings to try, one setting after the other; every kind gets as many tries.
        presets: configurations by size, at the paper's shape of codes.
        head: head of ResGen's network, for the kinds that share it.
        level_decay: whether the loss may weigh deeper levels less; the others weigh all tokens alike.
        step_counts: depth -> numbers of steps at which it is worth comparing; none where they cannot be chosen.
        ordered_levels: how many levels are drawn position by position, in reading order: they do not heed what is given
            after them. 0 for none, None for all.
        level_network: the part of the network that runs once for every level or iteration of a position.
        least_steps: depth -> the fewest evaluations that sampling can do with.
        iterates: whether `num_steps` counts iterations at every position, at most the depth, and not evaluations.
        gains_with_progress: whether tokens must become more likely as more of a sample is known; not where the finest
            levels are left for the end.
        has_verdict: whether comparisons say in words how it stands against the others.
        is_yardstick: whether tables of speed have the ratios to it.
        compilable: whether `torch.compile` serves it; a growing cache would be recompiled for every position.
    """

    name: str
    title: str
    model: type[CodeModel]
    config: type[Any]
    sampling: type[Any]
    sample: Callable[[Any, Request, Any], Samples]
    objective: Callable[[Any, GeneratorLossConfig], Objective]
    sized: Callable[[ResGenConfig, int], ModelConfig]
    settings: Callable[[SamplingConfig, CodeSpec], AnySampling]
    search: Mapping[str, Sequence[Any]]
    presets: Mapping[str, ModelConfig] = field(default_factory=dict)
    head: str | None = None
    make: Callable[[Any, CodeSpec], CodeModel] | None = None
    level_decay: bool = False
    step_counts: Callable[[int], Sequence[int]] = lambda depth: ()
    ordered_levels: int | None = 0
    level_network: str | None = None
    least_steps: Callable[[int], int] = lambda depth: 1
    iterates: bool = False
    gains_with_progress: bool = False
    has_verdict: bool = False
    is_yardstick: bool = False
    compilable: bool = True

    def build(self, config: ModelConfig, spec: CodeSpec) -> CodeModel:
        """A new model."""
        return (self.make or cast(Callable[..., CodeModel], self.model))(config, spec)

    def count_parameters(self, config: ModelConfig, spec: CodeSpec) -> int:
        """Parameters of a model, counted on the meta device: no memory is allocated."""
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in self.build(config, spec).parameters())
