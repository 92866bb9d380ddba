"""Generate pictures and speech with residual vector quantized tokens.

    from resgen import ImagePipeline

    pipe = ImagePipeline.from_pretrained("fashion-mnist-small")
    pipe(class_ids=[0, 7], num_steps=16, seed=0).images[0].save("picture.png")

The names below are imported on first use, so `import resgen` stays light and loads no torch.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from resgen.extras import DISTRIBUTION

if TYPE_CHECKING:
    from resgen.models.resgen import ResGen
    from resgen.pipelines.image.pipeline import ImagePipeline
    from resgen.pipelines.speech.pipeline import SpeechPipeline
    from resgen.tokenizers.image import ImageTokenizer
    from resgen.types import CodeSpec

__all__ = ["CodeSpec", "ImagePipeline", "ImageTokenizer", "ResGen", "SpeechPipeline", "__version__"]

try:
    __version__ = version(DISTRIBUTION)
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

_HOMES = {
    "CodeSpec": "resgen.types",
    "ImagePipeline": "resgen.pipelines.image.pipeline",
    "ImageTokenizer": "resgen.tokenizers.image",
    "ResGen": "resgen.models.resgen",
    "SpeechPipeline": "resgen.pipelines.speech.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'resgen' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOMES))
