"""The kinds of generator on the same codes, one file for each family: model, objective, sampler and everything specific
to it (Sec. 5.2.1)."""

from resgen.kinds.kind import AnySampling, Kind, ModelConfig, Request
from resgen.kinds.objective import Batch, GeneratorLossConfig, Objective
from resgen.kinds.registry import (
    KINDS,
    SPEECH_KINDS,
    build,
    count_parameters,
    for_kind,
    get_kind,
    kind_of,
    make_objective,
    sample,
    sampling_with,
    without_guidance,
)
from resgen.kinds.settings import Settings

__all__ = [
    "KINDS",
    "SPEECH_KINDS",
    "AnySampling",
    "Batch",
    "GeneratorLossConfig",
    "Kind",
    "ModelConfig",
    "Objective",
    "Request",
    "Settings",
    "build",
    "count_parameters",
    "for_kind",
    "get_kind",
    "kind_of",
    "make_objective",
    "sample",
    "sampling_with",
    "without_guidance",
]
