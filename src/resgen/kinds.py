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
from resgen.samplers import autoregressive, depthwise, unmasking
from resgen.samplers.autoregressive import AutoregressiveConfig, LatentAutoregressiveConfig
from resgen.samplers.depthwise import DepthwiseConfig
from resgen.samplers.unmasking import Samples, SamplingConfig, StepCallback
from resgen.types import CodeSpec

ModelConfig = ResGenConfig | MaskGITConfig | RQTransformerConfig | ARResGenConfig
AnySampling = SamplingConfig | DepthwiseConfig | AutoregressiveConfig | LatentAutoregressiveConfig
Given = tuple[Int[Tensor, "B L D"], Int[Tensor, "B L"]]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One way to generate codes.

    Attributes:
        name: on the command line and in saved models.
        title: in reports.
        model: class of the network.
        config: class of its configuration.
        sampling: class of its sampling settings.
        sample: `(model, class_ids, seed, indices, sampling, given, callback) -> Samples`.
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
    seed: int,
    indices: Sequence[int],
    sampling: SamplingConfig,
    given: Given | None,
    callback: StepCallback | None,
) -> Samples:
    tokens = model.config.head != "mixture"
    return unmasking.sample_codes(
        model.predictor(class_ids),
        model.codebooks,
        model.level_std,
        unmasking.draw_noise(seed, indices, sampling.num_steps, model.spec, tokens=tokens),
        sampling,
        codes=given[0] if given else None,
        visible=given[1] if given else None,
        callback=callback,
    )


def _depthwise(
    model: MaskGIT,
    class_ids: Int[Tensor, " B"],
    seed: int,
    indices: Sequence[int],
    sampling: DepthwiseConfig,
    given: Given | None,
    callback: StepCallback | None,
) -> Samples:
    return depthwise.sample_codes(
        model.predictor(class_ids),
        model.spec,
        depthwise.draw_noise(seed, indices, sampling.num_steps, model.spec),
        sampling,
        codes=given[0] if given else None,
        visible=given[1] if given else None,
        callback=callback,
        device=model.codebooks.device,
    )


def _autoregressive(
    model: RQTransformer,
    class_ids: Int[Tensor, " B"],
    seed: int,
    indices: Sequence[int],
    sampling: AutoregressiveConfig,
    given: Given | None,
    callback: StepCallback | None,
) -> Samples:
    return autoregressive.sample_autoregressive(
        model.decoder(class_ids),
        autoregressive.draw_autoregressive_noise(seed, indices, model.spec),
        sampling,
        codes=given[0] if given else None,
        visible=given[1] if given else None,
        callback=callback,
    )


def _latent_autoregressive(
    model: ARResGen,
    class_ids: Int[Tensor, " B"],
    seed: int,
    indices: Sequence[int],
    sampling: LatentAutoregressiveConfig,
    given: Given | None,
    callback: StepCallback | None,
) -> Samples:
    return autoregressive.sample_latent_autoregressive(
        model.decoder(class_ids),
        model.codebooks,
        autoregressive.draw_latent_autoregressive_noise(
            seed, indices, sampling.num_steps, model.spec, tokens=model.config.head != "mixture"
        ),
        sampling,
        codes=given[0] if given else None,
        visible=given[1] if given else None,
        callback=callback,
    )


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
    common = {
        name: getattr(config, name)
        for name in ("width", "num_heads", "mlp_width", "condition_width", "num_classes", "class_dropout")
    }
    wanted = count_parameters(config, spec)

    def candidate(num_layers: int) -> ModelConfig:
        if kind in BY_HEAD.values():
            head = next(head for head, name in BY_HEAD.items() if name == kind)
            return dataclasses.replace(config, head=head, num_layers=num_layers)
        if kind == "maskgit":
            return MaskGITConfig(num_layers=num_layers, **common)
        if kind == "rq_transformer":  # about six layers over positions for one over levels
            return RQTransformerConfig(num_layers=num_layers, depth_layers=max(1, round(num_layers / 6)), **common)
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
    given: Given | None = None,
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
        callback: see the samplers.

    Raises:
        ConfigError: settings of another kind, or what the sampler refuses.
    """
    kind = kind_of(model.config)
    if not isinstance(sampling, kind.sampling):
        raise ConfigError(
            f"{type(sampling).__name__} are not the settings of kind '{kind.name}'; it takes {kind.sampling.__name__}"
        )
    device = model.codebooks.device
    on_device = None if given is None else (given[0].to(device), given[1].to(device))
    return kind.sample(model, class_ids, seed, indices, sampling, on_device, callback)


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
