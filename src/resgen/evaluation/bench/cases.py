"""What a speed measurement samples: shapes, one case per row of its table, networks with random weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resgen import kinds
from resgen.errors import ConfigError
from resgen.kinds import KINDS, AnySampling, ModelConfig
from resgen.models.base import CodeModel
from resgen.nn.int8 import floating_type, to_int8
from resgen.ops.random import generator
from resgen.types import CodeSpec

GUIDANCE_SCALE = 2.0
WEIGHT_STD = 0.02
NOISE_BLOCK = 1_048_573  # a prime: no two rows of a matrix filled from repeated blocks are the same
MEASURED = tuple(name for name, kind in KINDS.items() if kind.presets)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Networks and codes of a measurement.

    Attributes:
        preset: the preset of every kind.
        grid: positions.
        codebook_size: V.
        code_dim: H.
        num_classes: number of classes of the condition.
        num_steps: default of the kinds that take a number of steps; no more than positions, so that none of them is
            empty at depth 1.
    """

    preset: str
    grid: tuple[int, int]
    codebook_size: int
    code_dim: int
    num_classes: int
    num_steps: int


SHAPES: dict[str, Shape] = {
    "paper": Shape(preset="xl", grid=(8, 8), codebook_size=1024, code_dim=64, num_classes=1000, num_steps=63),
    "base": Shape(preset="base", grid=(8, 8), codebook_size=1024, code_dim=64, num_classes=10, num_steps=63),
    "small": Shape(preset="small", grid=(8, 8), codebook_size=1024, code_dim=64, num_classes=10, num_steps=63),
    "tiny": Shape(preset="tiny", grid=(4, 4), codebook_size=64, code_dim=16, num_classes=10, num_steps=16),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the table: what is sampled. Simple values only, so that another process can take it.

    Attributes:
        shape: a key of `SHAPES`.
        kind: a key of `kinds.KINDS`.
        iterations: unmasking iterations per position, of the kinds that iterate.
        depth: D.
        batch_size: B.
        num_steps: sampling steps of the kinds that take them.
        guidance: both branches in every evaluation (from `guidance_start` on).
        dtype: `float32`, `bfloat16` or `int8`.
        seed: seed of weights and noise.
        guidance_start: share of the steps before guidance sets in, of the kinds that have this setting.
    """

    shape: str
    kind: str
    iterations: int | None
    depth: int
    batch_size: int
    num_steps: int
    guidance: bool
    dtype: str
    seed: int
    guidance_start: float = 0.0

    @property
    def label(self) -> str:
        """Kind and variant."""
        return self.kind if self.iterations is None else f"{self.kind} x{self.iterations}"

    @property
    def spec(self) -> CodeSpec:
        """Shape of the codes."""
        shape = SHAPES[self.shape]
        return CodeSpec(depth=self.depth, codebook_size=shape.codebook_size, code_dim=shape.code_dim, shape=shape.grid)

    @property
    def config(self) -> ModelConfig:
        """Of the network."""
        shape = SHAPES[self.shape]
        return dataclasses.replace(preset(self.kind, shape.preset), num_classes=shape.num_classes)

    @property
    def sampling(self) -> AnySampling:
        """The kind's default settings, but with the linear schedule, under which no evaluation is empty and saved, and
        with guidance in every evaluation or in none."""
        scale = GUIDANCE_SCALE if self.guidance else 0.0
        settings: dict[str, Any] = {"guidance_first": scale, "guidance_scale": scale}
        settings |= {"num_steps": self.iterations or self.num_steps, "mask_schedule": "linear"}
        settings |= {"guidance_start": self.guidance_start}
        default = KINDS[self.kind].sampling()
        known = {entry.name for entry in dataclasses.fields(default)}
        return kinds.sampling_with(default, {name: value for name, value in settings.items() if name in known})

    def sample(self, network: CodeModel, callback: Callable[..., None] | None = None) -> object:
        """Draw a batch."""
        class_ids = torch.arange(self.batch_size, device=network.codebooks.device) % SHAPES[self.shape].num_classes
        return kinds.sample(
            network,
            class_ids,
            seed=self.seed,
            indices=range(self.batch_size),
            sampling=self.sampling,
            callback=callback,
        )


def preset(kind: str, name: str) -> ModelConfig:
    """The configuration of a kind at one of the sizes `tiny`, `small`, `base` and `xl`.

    Raises:
        ConfigError: there is no such kind, or it has no presets.
    """
    presets = kinds.get_kind(kind).presets
    if not presets:
        raise ConfigError(f"kind '{kind}' has no presets to measure")
    return presets[name]


def random_network(
    config: ModelConfig,
    spec: CodeSpec,
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
    pool: dict[Any, Tensor] | None = None,
) -> CodeModel:
    """A generator with random weights that are drawn in their final type and place: no slow start, no copy.

    Every parameter is normal with standard deviation 0.02, so that no gate is zero; codebooks fall by level.

    Args:
        config: configuration of any kind.
        spec: shape of the codes.
        device: where it is built.
        dtype: number type of the parameters; buffers are float32. With int8 that of the transformer blocks' matrices.
        seed: seed of the weights.
        pool: parameters by name and shape; networks of the same kind that are given the same pool share them.
    """
    pool = {} if pool is None else pool
    with torch.device("meta"):
        network = kinds.build(config, spec).eval()
    stream = generator("bench", seed)
    floating = floating_type(dtype, device)
    block = torch.randn(NOISE_BLOCK, generator=stream).mul_(WEIGHT_STD).to(device, floating)
    for path, module in network.named_modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            key = (kinds.kind_of(config).name, path, name, tuple(parameter.shape))
            if key not in pool:
                pool[key] = _filled(torch.empty(parameter.shape, dtype=floating, device=device), block)
            setattr(module, name, nn.Parameter(pool[key], requires_grad=False))
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, device=device).uniform_(-1, 1)
    falling = 0.7 ** torch.arange(spec.depth, device=device)
    books = torch.randn(network.codebooks.shape, generator=stream).to(device)
    network.codebooks.copy_(books * falling[:, None, None])
    network.level_std.copy_(falling)
    network.latent_scale.fill_(1.0)
    if dtype == torch.int8:
        to_int8(network)
    return network


def _filled(tensor: Tensor, block: Tensor) -> Tensor:
    for part in tensor.view(-1).split(len(block)):
        part.copy_(block[: len(part)])
    return tensor
