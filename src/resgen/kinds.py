"""The kinds of generator on the same codes: which model, which sampler, with which settings (Sec. 5.2.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor

from resgen.errors import ConfigError, unknown
from resgen.models.ar_resgen import ARResGen, ARResGenConfig
from resgen.models.base import CodeModel
from resgen.models.maskgit import MaskGIT, MaskGITConfig
from resgen.models.resgen import ResGen, ResGenConfig
from resgen.models.rq_transformer import RQTransformer, RQTransformerConfig
from resgen.models.valle import COMMON, Valle, ValleConfig
from resgen.samplers import autoregressive, depthwise, unmasking
from resgen.samplers.autoregressive import AutoregressiveConfig, LatentAutoregressiveConfig
from resgen.samplers.depthwise import DepthwiseConfig
from resgen.samplers.unmasking import Samples, SamplingConfig, StepCallback
from resgen.types import CodeSpec, SequenceCondition

ModelConfig = ResGenConfig | MaskGITConfig | RQTransformerConfig | ARResGenConfig | ValleConfig
AnySampling = SamplingConfig | DepthwiseConfig | AutoregressiveConfig | LatentAutoregressiveConfig
Given = tuple[Int[Tensor, "B L D"] | None, Int[Tensor, "B L"] | None]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One way to generate codes.

    Attributes:
        name: on the command line and in saved models.
        title: in reports.
        model: class of the network.
        config: class of its configuration.
        sampling: class of its sampling settings.
        sample: `(model, class_ids, sequence, seed, indices, sampling, given, callback) -> Samples`.
    """

    name: str
    title: str
    model: type[CodeModel]
    config: type[Any]
    sampling: type[Any]
    sample: Callable[..., Samples]


def _unmask(
    model: ResGen,
    class_ids: Int[Tensor, " B"],
    sequence: SequenceCondition | None,
    seed: int,
    indices: Sequence[int],
    sampling: SamplingConfig,
    given: Given,
    callback: StepCallback | None,
) -> Samples:
    tokens = model.config.head != "mixture"
    return unmasking.sample_codes(
        model.predictor(class_ids, sequence),
        model.codebooks,
        model.level_std,
        unmasking.draw_noise(
            seed, indices, sampling.num_steps, model.spec, tokens=tokens, lengths=lengths_of(sequence)
        ),
        sampling,
        codes=given[0],
        visible=given[1],
        callback=callback,
    )


def _depthwise(
    model: MaskGIT,
    class_ids: Int[Tensor, " B"],
    sequence: SequenceCondition | None,
    seed: int,
    indices: Sequence[int],
    sampling: DepthwiseConfig,
    given: Given,
    callback: StepCallback | None,
) -> Samples:
    return depthwise.sample_codes(
        model.predictor(class_ids, sequence),
        model.spec,
        depthwise.draw_noise(seed, indices, sampling.num_steps, model.spec, lengths=lengths_of(sequence)),
        sampling,
        codes=given[0],
        visible=given[1],
        callback=callback,
        device=model.codebooks.device,
    )


def _autoregressive(
    model: RQTransformer,
    class_ids: Int[Tensor, " B"],
    sequence: SequenceCondition | None,
    seed: int,
    indices: Sequence[int],
    sampling: AutoregressiveConfig,
    given: Given,
    callback: StepCallback | None,
) -> Samples:
    return autoregressive.sample_autoregressive(
        model.decoder(class_ids, sequence),
        autoregressive.draw_autoregressive_noise(seed, indices, model.spec, lengths=lengths_of(sequence)),
        sampling,
        codes=given[0],
        visible=given[1],
        callback=callback,
    )


def _latent_autoregressive(
    model: ARResGen,
    class_ids: Int[Tensor, " B"],
    sequence: SequenceCondition | None,
    seed: int,
    indices: Sequence[int],
    sampling: LatentAutoregressiveConfig,
    given: Given,
    callback: StepCallback | None,
) -> Samples:
    return autoregressive.sample_latent_autoregressive(
        model.decoder(class_ids, sequence),
        model.codebooks,
        autoregressive.draw_latent_autoregressive_noise(
            seed,
            indices,
            sampling.num_steps,
            model.spec,
            tokens=model.config.head != "mixture",
            lengths=lengths_of(sequence),
        ),
        sampling,
        codes=given[0],
        visible=given[1],
        callback=callback,
    )


def _first_then_rest(
    model: Valle,
    class_ids: Int[Tensor, " B"],
    sequence: SequenceCondition | None,
    seed: int,
    indices: Sequence[int],
    sampling: AutoregressiveConfig,
    given: Given,
    callback: StepCallback | None,
) -> Samples:
    codes, visible = given
    first = _autoregressive(
        model.first,
        class_ids,
        sequence,
        seed,
        indices,
        sampling,
        (None if codes is None else codes[..., :1], None if visible is None else visible.clamp(max=1)),
        None,
    )
    depth = model.spec.depth
    codes = first.codes.repeat(1, 1, depth) if codes is None else codes.clone()
    codes[..., 0] = first.codes[..., 0]
    visible = torch.ones_like(codes[..., 0]) if visible is None else visible.clamp(min=1)
    # One evaluation per level, the first of them with nothing left to do; the most likely codes, as in VALL-E.
    settings = DepthwiseConfig(
        num_steps=depth,
        choice_temperature=0.0,
        temperature=0.01,
        guidance_first=sampling.guidance_scale,
        guidance_scale=sampling.guidance_scale,
    )
    rest = _depthwise(model.rest, class_ids, sequence, seed, indices, settings, (codes, visible), callback)
    return Samples(rest.codes, first.steps + rest.steps)


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            name="resgen",
            title="ResGen",
            model=ResGen,
            config=ResGenConfig,
            sampling=SamplingConfig,
            sample=_unmask,
        ),
        Kind(
            name="mixture",
            title="ResGen, mixture head",
            model=ResGen,
            config=ResGenConfig,
            sampling=SamplingConfig,
            sample=_unmask,
        ),
        Kind(
            name="direct",
            title="direct tokens",
            model=ResGen,
            config=ResGenConfig,
            sampling=SamplingConfig,
            sample=_unmask,
        ),
        Kind(
            name="maskgit",
            title="MaskGIT, depth by depth",
            model=MaskGIT,
            config=MaskGITConfig,
            sampling=DepthwiseConfig,
            sample=_depthwise,
        ),
        Kind(
            name="rq_transformer",
            title="RQ-Transformer",
            model=RQTransformer,
            config=RQTransformerConfig,
            sampling=AutoregressiveConfig,
            sample=_autoregressive,
        ),
        Kind(
            name="ar_resgen",
            title="AR-ResGen",
            model=ARResGen,
            config=ARResGenConfig,
            sampling=LatentAutoregressiveConfig,
            sample=_latent_autoregressive,
        ),
        Kind(
            name="valle",
            title="VALL-E's scheme",
            model=Valle,
            config=ValleConfig,
            sampling=AutoregressiveConfig,
            sample=_first_then_rest,
        ),
    )
}


BY_HEAD = {"residual": "resgen", "mixture": "mixture", "tokens": "direct"}


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
    if isinstance(config, ResGenConfig):
        return KINDS[BY_HEAD[config.head]]
    return next(kind for kind in KINDS.values() if isinstance(config, kind.config))


def build(config: ModelConfig, spec: CodeSpec) -> CodeModel:
    """A new model of a configuration."""
    return cast(Callable[..., CodeModel], kind_of(config).model)(config, spec)


def count_parameters(config: ModelConfig, spec: CodeSpec) -> int:
    """Parameters of a model, counted on the meta device: no memory is allocated."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build(config, spec).parameters())


def matched_config(config: ResGenConfig, spec: CodeSpec, kind: str) -> ModelConfig:
    """The configuration of another kind of the same width, with as many layers as bring it nearest to the parameters of
    `config`.

    Args:
        config: of ResGen.
        spec: shape of the codes.
        kind: name of the kind.

    Raises:
        ConfigError: there is no such kind.
    """
    if kind_of(config).name == get_kind(kind).name:
        return config
    common = {name: getattr(config, name) for name in COMMON}
    wanted = count_parameters(config, spec)

    def candidate(num_layers: int) -> ModelConfig:
        if kind in BY_HEAD.values():
            head = next(head for head, name in BY_HEAD.items() if name == kind)
            return dataclasses.replace(config, head=head, num_layers=num_layers)
        if kind == "maskgit":
            return MaskGITConfig(num_layers=num_layers, **common)
        if kind == "rq_transformer":  # about six layers over positions for one over levels
            return RQTransformerConfig(num_layers=num_layers, depth_layers=max(1, round(num_layers / 6)), **common)
        if kind == "valle":  # half of the layers for either network
            return ValleConfig(num_layers=(num_layers + 1) // 2, rest_layers=max(1, num_layers // 2), **common)
        mixture = {name: getattr(config, name) for name in ("num_components", "mean_rank")}
        depth_head = {"head_layers": max(2, round(num_layers / 6)), "head_width": config.mlp_width}
        return ARResGenConfig(num_layers=num_layers, head=config.head, **depth_head, **common, **mixture)

    choices = [candidate(num_layers) for num_layers in range(1, 2 * config.num_layers + 2)]
    return min(choices, key=lambda choice: abs(count_parameters(choice, spec) - wanted))


def sample(
    model: CodeModel,
    class_ids: Int[Tensor, " B"],
    *,
    seed: int,
    indices: Sequence[int],
    sampling: AnySampling,
    given: tuple[Int[Tensor, "B L D"], Int[Tensor, "B L"]] | None = None,
    sequence: SequenceCondition | None = None,
    callback: StepCallback | None = None,
) -> Samples:
    """Codes of a model of any kind, drawn by its own sampler.

    Args:
        model: a generator.
        class_ids: on the model's device, one per sample.
        seed: of all streams.
        indices: number of each sample; sample k draws from the stream (seed, k).
        sampling: settings of the model's kind.
        given: codes and how many levels of each position are visible; those are kept.
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
    codes, visible = (None, None) if given is None else (given[0].to(device), given[1].to(device))
    if sequence is not None:
        sequence = sequence.to(device)
        if codes is None or visible is None:
            codes = torch.zeros(*sequence.valid.shape, model.spec.depth, dtype=torch.int64, device=device)
            visible = torch.zeros_like(codes[..., 0])
            if sequence.prompt.any():
                raise ConfigError("a sequence with a prompt needs the prompt's codes; pass them as `given`")
        visible = torch.where(sequence.wanted, visible, model.spec.depth)
    return kind.sample(model, class_ids, sequence, seed, indices, sampling, (codes, visible), callback)


def lengths_of(sequence: SequenceCondition | None) -> list[int] | None:
    """Positions of each sample, or None for those of the model."""
    return None if sequence is None else sequence.lengths


def sampling_with(sampling: AnySampling, settings: dict[str, Any]) -> AnySampling:
    """`sampling` with the settings that are not None in their place.

    Raises:
        ConfigError: a setting that this kind of sampling does not have, or a value out of range.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    known = [field.name for field in dataclasses.fields(sampling)]
    for name in given:
        if name not in known:
            raise ConfigError(unknown("sampling setting", name, known))
    return dataclasses.replace(sampling, **given)


def without_guidance(sampling: AnySampling) -> AnySampling:
    """The same settings with guidance off."""
    return dataclasses.replace(sampling, guidance_first=0.0, guidance_scale=0.0)
