"""Any model by its name, as the pipeline that it is."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

import torch

from resgen.checkpoints.format import load_folder
from resgen.checkpoints.locate import resolve_model
from resgen.errors import CheckpointError
from resgen.pipelines.base import NoOthers, refuse_others
from resgen.pipelines.image.pipeline import ImagePipeline
from resgen.pipelines.speech.pipeline import SpeechPipeline

PIPELINES: dict[str, type[ImagePipeline] | type[SpeechPipeline]] = {
    "pipeline": ImagePipeline,
    "speech-pipeline": SpeechPipeline,
}


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    **others: Unpack[NoOthers],
) -> ImagePipeline | SpeechPipeline:
    """Open a model of pictures or of speech.

    Args:
        name_or_path: as `ImagePipeline.from_pretrained` takes it.
        device: likewise.
        dtype: likewise.
        others: none.

    Raises:
        CheckpointError: nothing there, damaged, or a part of a model.
        ConfigError: a device or type that cannot be used, or another argument.
    """
    refuse_others(others)
    path = resolve_model(name_or_path)
    kind = load_folder(path, verify=False).kind
    if kind not in PIPELINES:
        raise CheckpointError(f"'{path}' holds a {kind}, which is a part of a model; give a whole one")
    return PIPELINES[kind].from_pretrained(path, device=device, dtype=dtype)
