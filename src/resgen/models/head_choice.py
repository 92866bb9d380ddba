"""The heads for all masked levels of a position, by name."""

from __future__ import annotations

from typing import Any

from resgen.models.heads import LatentHead, MixtureHead
from resgen.models.metric import MetricHead
from resgen.models.token_head import TokenHead
from resgen.types import CodeSpec


def head_class(name: str) -> type[LatentHead | TokenHead]:
    """What the heads called `name` are, with a metric or without."""
    return LatentHead if name == "mixture" else TokenHead


def make_head(config: Any, spec: CodeSpec) -> MixtureHead | MetricHead | TokenHead:
    """The head that `config.head` and `config.metric` name, for a configuration with ResGen's fields."""
    if config.head == "mixture":
        return MixtureHead.of(config, spec) if config.metric == "none" else MetricHead(config, spec)
    code_dim = spec.code_dim if config.head == "residual" else None
    return TokenHead(config.width, spec.depth, spec.codebook_size, code_dim)
