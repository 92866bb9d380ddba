"""All kinds of generator, and functions for any of them."""

from __future__ import annotations

import dataclasses
import numbers
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from resgen.errors import ConfigError, WrongTypeError, unknown
from resgen.kinds.ar_resgen import AR_RESGEN, CLAM_TTS
from resgen.kinds.kind import AnySampling, Kind, ModelConfig, Request
from resgen.kinds.maskgit import MASKGIT
from resgen.kinds.objective import GeneratorLossConfig, Objective
from resgen.kinds.resgen import DIRECT, RESGEN, RESIDUAL, with_head
from resgen.kinds.rq_transformer import RQ_TRANSFORMER
from resgen.kinds.valle import VALLE
from resgen.models.base import CodeModel
from resgen.models.resgen import ResGenConfig
from resgen.samplers.records import Samples, StepCallback
from resgen.samplers.unmasking import SamplingConfig
from resgen.types import CodeSpec, SequenceCondition

_ALL = (RESGEN, RESIDUAL, DIRECT, MASKGIT, RQ_TRANSFORMER, AR_RESGEN, VALLE)
KINDS: dict[str, Kind] = {kind.name: kind for kind in _ALL}
SPEECH_KINDS = KINDS | {CLAM_TTS.name: CLAM_TTS}
"""The kinds to train speech with; CLaM-TTS is a setting of AR-ResGen."""
_TYPES: dict[str, tuple[type, str]] = {"int": (numbers.Integral, "a whole number"), "str": (str, "a name")}
"""Of sampling settings, by their annotation; all others are numbers."""


def get_kind(name: str) -> Kind:
    """The kind called `name`.

    Raises:
        ConfigError: there is none.
    """
    if name not in KINDS:
        raise ConfigError(unknown("kind", name, KINDS))
    return KINDS[name]


def kind_of(config: ModelConfig) -> Kind:
    """The kind that a model's configuration belongs to; three of them are ResGen's network with different heads."""
    same = [kind for kind in KINDS.values() if isinstance(config, kind.config)]
    return next(kind for kind in same if kind.head in (None, getattr(config, "head", None)))


def build(config: ModelConfig, spec: CodeSpec) -> CodeModel:
    """A new model of a configuration."""
    return kind_of(config).build(config, spec)


def count_parameters(config: ModelConfig, spec: CodeSpec) -> int:
    """Parameters of a model, counted on the meta device: no memory is allocated."""
    return kind_of(config).count_parameters(config, spec)


def make_objective(model: CodeModel, config: GeneratorLossConfig) -> Objective:
    """The training objective of a model."""
    return kind_of(model.config).objective(model, config)


def _nearest(kind: Kind, config: ResGenConfig, spec: CodeSpec) -> ModelConfig:
    """The configuration of `kind` of the same width, with as many layers as bring it nearest to the parameters of
    `config`."""
    target = count_parameters(config, spec)
    choices = [kind.sized(config, num_layers) for num_layers in range(1, 2 * config.num_layers + 2)]
    first = bisect_left(choices, target, key=lambda choice: kind.count_parameters(choice, spec))  # not below the target
    return min(
        choices[max(first - 1, 0) : first + 1], key=lambda choice: abs(kind.count_parameters(choice, spec) - target)
    )


def for_kind(
    kind: Kind, generator: ModelConfig, loss: GeneratorLossConfig, sampling: AnySampling, spec: CodeSpec
) -> tuple[ModelConfig, GeneratorLossConfig, AnySampling]:
    """Settings of a recipe for another kind: as many parameters, the same training, the kind's own sampling.

    Args:
        kind: the other kind.
        generator: generator of the recipe.
        loss: loss of the recipe.
        sampling: the recipe's sampling settings.
        spec: shape of the codes.

    Raises:
        ConfigError: the recipe's generator has another network than ResGen's.
    """
    own = kind_of(generator)
    if own is kind:
        return generator, loss, sampling
    if not isinstance(generator, ResGenConfig) or not isinstance(sampling, SamplingConfig):
        sources = ", ".join(name for name, one in KINDS.items() if one.config is ResGenConfig)
        raise ConfigError(f"the recipe is already of kind '{own.name}'; --kind goes with recipes of {sources}")
    if kind.config is not ResGenConfig and kind.head is not None:  # sized as the ResGen whose head it takes
        generator = with_head(generator, kind.head)
    loss = loss if kind.level_decay else dataclasses.replace(loss, level_decay=1.0)
    return _nearest(kind, generator, spec), loss, kind.settings(sampling, spec)


def sample(
    model: CodeModel,
    class_ids: Int[Tensor, " B"],
    *,
    seed: int | Sequence[int],
    indices: Sequence[int],
    sampling: AnySampling,
    start: tuple[Int[Tensor, "B L D"], Int[Tensor, "B L"]] | None = None,
    sequence: SequenceCondition | None = None,
    callback: StepCallback | None = None,
) -> Samples:
    """Codes of a model of any kind, drawn by its own sampler.

    Args:
        model: a generator.
        class_ids: on the model's device, one per sample.
        seed: one seed for all samples, or one for each, so that samples of several calls share a batch.
        indices: number of each sample; sample k draws from the stream (seed, k).
        sampling: settings of the model's kind.
        start: codes and how many levels of each position are visible; those are kept.
        sequence: the condition of sequences. The codes of its prompts must be given; codes beyond a sample's end are 0.
        callback: see the samplers.

    Raises:
        ConfigError: settings of another kind, a prompt without its codes, or what the sampler refuses.
    """
    kind = kind_of(model.config)
    if not isinstance(sampling, kind.sampling):
        raise ConfigError(
            f"{type(sampling).__name__} are not the settings of kind '{kind.name}'; it takes {kind.sampling.__name__}"
        )
    device = model.codebooks.device
    codes, visible = (None, None) if start is None else (start[0].to(device), start[1].to(device))
    if sequence is not None:
        sequence = sequence.to(device)
        if codes is None or visible is None:
            codes = torch.zeros(*sequence.valid.shape, model.spec.depth, dtype=torch.int64, device=device)
            visible = torch.zeros_like(codes[..., 0])
            if sequence.prompt.any():
                raise ConfigError("a sequence with a prompt needs the prompt's codes; pass them as `start`")
        visible = torch.where(sequence.targets, visible, model.spec.depth)
    return kind.sample(model, Request(class_ids, sequence, seed, indices, codes, visible, callback), sampling)


def sampling_with(
    sampling: AnySampling, settings: Mapping[str, Any], *, others: Mapping[str, str] | None = None
) -> AnySampling:
    """`sampling` with the settings that are not None in their place.

    Args:
        sampling: a model's settings.
        settings: those of a call.
        others: names that a mistaken setting may stand for, see `errors.unknown`.

    Raises:
        ConfigError: a setting that this kind of sampling does not have, or a value out of range.
        WrongTypeError: a value of another type.
    """
    changes = {name: value for name, value in settings.items() if value is not None}
    known = {field.name: str(field.type) for field in dataclasses.fields(sampling)}
    for name, value in changes.items():
        if name not in known:
            raise ConfigError(unknown("sampling setting", name, known, others))
        type_, noun = _TYPES.get(known[name], (numbers.Real, "a number"))
        if not isinstance(value, type_):
            raise WrongTypeError(f"{name}={value!r} must be {noun}")
    return dataclasses.replace(sampling, **changes)


def without_guidance(sampling: AnySampling) -> AnySampling:
    """The same settings with guidance off."""
    return dataclasses.replace(sampling, guidance_first=0.0, guidance_scale=0.0)
