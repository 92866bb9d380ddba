"""Generators of other kinds, of about the size of a given one."""

from __future__ import annotations

from resgen.kinds import GeneratorLossConfig, ModelConfig, for_kind, get_kind
from resgen.models.resgen import ResGenConfig
from resgen.samplers.unmasking import SamplingConfig
from resgen.types import CodeSpec


def matched_config(config: ResGenConfig, spec: CodeSpec, kind: str) -> ModelConfig:
    """What `--kind` makes of a recipe's generator; `config` itself for its own kind."""
    return for_kind(get_kind(kind), config, GeneratorLossConfig(), SamplingConfig(num_steps=64), spec)[0]
