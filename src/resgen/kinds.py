"""The kinds of generator on the same codes: which model, which sampler, with which settings (Sec. 5.2.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from resgen.errors import ConfigError, unknown
from resgen.models.ar_resgen import ARResGen, ARResGenConfig
from resgen.models.base import SHARED_FIELDS, CodeModel
from resgen.models.maskgit import MaskGIT, MaskGITConfig
from resgen.models.resgen import ResGen, ResGenConfig
from resgen.models.rq_transformer import RQTransformer, RQTransformerConfig
from resgen.models.valle import Valle, ValleConfig
from resgen.samplers import autoregressive, depthwise, unmasking
from resgen.samplers.autoregressive import AutoregressiveConfig, LatentAutoregressiveConfig
from resgen.samplers.depthwise import DepthwiseConfig
from resgen.samplers.records import Samples, StepCallback, StepRecord
from resgen.samplers.unmasking import SamplingConfig
from resgen.types import CodeSpec, SequenceCondition

ModelConfig = ResGenConfig | MaskGITConfig | RQTransformerConfig | ARResGenConfig | ValleConfig
AnySampling = SamplingConfig | DepthwiseConfig | AutoregressiveConfig | LatentAutoregressiveConfig
GREEDY = 1e-9
"""Nucleus of the most likely code alone."""


class Request(NamedTuple):
    """Which samples of a model are wanted; everything on the model's device.

    Attributes:
        class_ids: one per sample.
        sequence: the condition of sequences.
        seed: of all samples, or one for each.
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

    @property
    def rest(self) -> dict[str, Any]:
        """What every sampler takes besides its predictor, noise and settings."""
        return {"codes": self.codes, "visible": self.visible, "callback": self.callback}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One way to generate codes.

    Attributes:
        name: on the command line and in saved models.
        title: in reports.
        model: class of the network.
        config: class of its configuration.
        sampling: class of its sampling settings.
        sample: `(model, request, sampling) -> Samples`.
    """

    name: str
    title: str
    model: type[CodeModel]
    config: type[Any]
    sampling: type[Any]
    sample: Callable[[Any, Request, Any], Samples]


def _unmask(model: ResGen, request: Request, sampling: SamplingConfig) -> Samples:
    if request.sequence is not None and not request.sequence.prompt.any():
        sampling = dataclasses.replace(sampling, prompt_guidance=0.0)  # no prompt, no branch without it
    noise = unmasking.draw_noise(
        request.seed,
        request.indices,
        sampling.num_steps,
        model.spec,
        model.head.noise,
        lengths=request.lengths,
        device=model.codebooks.device,
    )
    predict = model.predictor(*request.condition, prompt_guidance=sampling.prompt_guidance)
    return unmasking.sample_codes(predict, noise, sampling, **request.rest)


def _depthwise(model: MaskGIT, request: Request, sampling: DepthwiseConfig) -> Samples:
    noise = depthwise.draw_noise(
        request.seed,
        request.indices,
        sampling.num_steps,
        model.spec,
        lengths=request.lengths,
        device=model.codebooks.device,
    )
    return depthwise.sample_codes(model.predictor(*request.condition), model.spec, noise, sampling, **request.rest)


def _autoregressive(model: RQTransformer, request: Request, sampling: AutoregressiveConfig) -> Samples:
    noise = autoregressive.draw_autoregressive_noise(request.seed, request.indices, model.spec, lengths=request.lengths)
    return autoregressive.sample_autoregressive(model.decoder(*request.condition), noise, sampling, **request.rest)


def _latent_autoregressive(model: ARResGen, request: Request, sampling: LatentAutoregressiveConfig) -> Samples:
    noise = autoregressive.draw_latent_autoregressive_noise(
        request.seed,
        request.indices,
        sampling.num_steps,
        model.spec,
        model.head.noise,
        lengths=request.lengths,
    )
    decoder = model.decoder(*request.condition)
    return autoregressive.sample_latent_autoregressive(decoder, model.spec, noise, sampling, **request.rest)


def _first_then_rest(model: Valle, request: Request, sampling: AutoregressiveConfig) -> Samples:
    codes, visible, depth = request.codes, request.visible, model.spec.depth
    given = request._replace(
        codes=None if codes is None else codes[..., :1],
        visible=None if visible is None else visible.clamp(max=1),
        callback=None if request.callback is None else _deepened(request.callback, depth),
    )
    first = _autoregressive(model.first, given, sampling)
    codes = first.codes.repeat(1, 1, depth) if codes is None else codes.clone()
    codes[..., 0] = first.codes[..., 0]
    visible = torch.ones_like(codes[..., 0]) if visible is None else visible.clamp(min=1)
    # One evaluation per level, the first of them with nothing left to do; the most likely codes, as in VALL-E.
    settings = DepthwiseConfig(
        num_steps=depth,
        choice_temperature=0.0,
        top_p=GREEDY,
        guidance_first=sampling.guidance_scale,
        guidance_scale=sampling.guidance_scale,
    )
    rest = _depthwise(model.rest, request._replace(codes=codes, visible=visible), settings)
    return Samples(rest.codes, first.steps + rest.steps)


def _deepened(callback: StepCallback, depth: int) -> StepCallback:
    """A callback that is shown the codes of the first level as codes of all levels, of which one is visible."""

    def deepened(record: StepRecord, codes: Tensor, visible: Tensor) -> None:
        callback(record, F.pad(codes, (0, depth - 1)), visible)

    return deepened


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
            name="residual",
            title="residual head (ours)",
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


BY_HEAD = {"mixture": "resgen", "residual": "residual", "tokens": "direct"}
"""The kinds with the network of ResGen, by their head: the paper's, ours, and direct tokens."""


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
    common = {name: getattr(config, name) for name in SHARED_FIELDS}
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
    seed: int | Sequence[int],
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
        seed: of all samples, or one for each, so that samples of several calls share a batch.
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
    return kind.sample(model, Request(class_ids, sequence, seed, indices, codes, visible, callback), sampling)


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
