"""Generate images and speech with residual vector quantized tokens.

    import resgen

    pipe = resgen.load("fashion-mnist-small")
    pipe("Bag", num_samples=4).save("bags.png")

The names below are imported on first use, so `import resgen` stays light and loads no torch.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from resgen.extras import DISTRIBUTION

if TYPE_CHECKING:
    from resgen.modalities import load
    from resgen.models.resgen import ResGen
    from resgen.pipelines.image.pipeline import ImagePipeline
    from resgen.pipelines.speech.pipeline import SpeechPipeline
    from resgen.tokenizers.image import ImageTokenizer
    from resgen.types import CodeSpec

__all__ = ["CodeSpec", "ImagePipeline", "ImageTokenizer", "ResGen", "SpeechPipeline", "__version__", "load"]

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
    "load": "resgen.modalities",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'resgen' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({name for name in globals() if name.startswith("__")} | set(_HOMES))
