"""Shared by the commands that sample: the model, settings of the sampler, progress and traces."""

from __future__ import annotations

import contextlib
import re
from abc import ABC
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from resgen.cli.common import Json, check_out_dir, check_out_file, option, positive, progress_bar

if TYPE_CHECKING:
    from resgen.pipelines.image.trace import StepTrace

_NAMES = {
    "steps": "num_steps",
    "schedule": "mask_schedule",
    "class_name": "class_id",
    "classes": "class_ids",
    "num": "num_samples",
}
"""Options that are not called as the pipeline's arguments."""
_FLAGS = {"class_name": "class", "classes": "class", "begin_s": "from", "end_s": "to"}
"""Options that are not called as their fields."""
_COMMANDS = {"ImagePipeline": "`resgen generate image`", "SpeechPipeline": "`resgen generate speech`"}

Trace = Annotated[
    Path | None,
    arg(
        metavar="FILE.gif|DIR",
        help="Record the sampling steps: a GIF, or a folder for one image per step, which replaces any earlier trace "
        "there.",
        help_behavior_hint="",
    ),
]


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Settings of the sampler; the model's own where they are left out."""

    steps: Annotated[int | None, option("N")] = None
    """Maximum number of sampling steps; with guidance each takes two or three network passes."""
    guidance_scale: Annotated[float | None, option("W")] = None
    """Classifier-free guidance scale; 0 turns guidance off and halves the time."""
    top_p: Annotated[float | None, option("P")] = None
    """Nucleus sampling: probability mass of the codes or mixture components to sample from, in (0, 1]."""
    temperature: Annotated[float | None, option("T")] = None
    """Randomness of the codes."""
    choice_temperature: Annotated[float | None, option("T")] = None
    """Randomness of the order in which tokens are revealed."""
    batch_size: Annotated[int | None, option("N")] = None
    """Samples per batch."""

    def settings(self) -> dict[str, Any]:
        """The sampling options that were given, by the pipeline's names.

        Raises:
            ConfigError: no samples per evaluation.
        """
        if self.batch_size is not None:
            positive("--batch-size", self.batch_size)
        options = {_NAMES.get(field.name, field.name): getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class SpeechSampling(SamplingOptions):
    """Settings of the sampler of speech."""

    prompt_guidance: Annotated[float | None, option("SHARE")] = None
    """Fraction of the guidance that applies to the prompt's voice alone, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class PictureSampling(SamplingOptions):
    """Settings of the sampler of images."""

    guidance_start: Annotated[float | None, option("SHARE")] = None
    """Fraction of the steps after which guidance starts; steps without it take half the time."""
    guidance_end: Annotated[float | None, option("SHARE")] = None
    """Fraction of the steps after which guidance stops."""
    top_k: Annotated[int | None, option("K")] = None
    """Number of most likely codes to sample from (kind rq_transformer only)."""
    schedule: Annotated[str | None, option("NAME")] = None
    """Mask schedule: circle, cosine, linear, exponential or power."""


@dataclass(frozen=True, kw_only=True)
class Drawing(ABC):
    """What every command takes that draws samples."""

    model: Annotated[str, option("DIR_OR_NAME")]
    """Pipeline folder or bundled model name (see `resgen models`)."""
    device: Annotated[str | None, option("NAME")] = None
    """cpu, cuda or cuda:1; by default a GPU if there is one."""
    dtype: Annotated[str, option("NAME")] = "auto"
    """float32, bfloat16, int8 (on CPUs: faster, rounds the network's weights), or auto: bfloat16 if the
    hardware supports it."""
    trace: Trace = None
    as_json: Json = False

    def check_trace(self) -> None:
        """Reject a place for a trace that could not be written, before any heavy work.

        Raises:
            ConfigError: a file that is no GIF, or a place that cannot be written to.
        """
        if self.trace is None:
            return
        is_file = self.trace.suffix and not self.trace.is_dir()
        check_out_file(self.trace, (".gif",), name="--trace") if is_file else check_out_dir(self.trace, name="--trace")

    @contextlib.contextmanager
    def watched(self, title: str, make_trace: Callable[[], StepTrace]) -> Iterator[tuple[Any, list[Path]]]:
        """Sampling under a progress bar, and with a trace if there is a place for one.

        Yields the sampler's callback, and a list that holds the files of the trace when the sampling has ended well.
        """
        files: list[Path] = []
        with progress_bar(title) as step_done:
            if self.trace is None:
                yield step_done, files
                return
            watching = _Watching(step_done, make_trace())
            yield watching, files
        files += watching.trace.save(self.trace)


def in_flags(text: str, command: Any) -> str:
    """What a pipeline says of its arguments, said of a command's options: `num_steps=0` becomes `--steps=0`, and
    `resize=True` becomes `--resize`.

    Names of one word are arguments only where a value follows, `seed=-1`.
    """
    names = [field.name for part in (command, getattr(command, "sampling", command)) for field in fields(part)]
    flags = {_NAMES.get(name, name): "--" + _FLAGS.get(name, name).replace("_", "-") for name in names} | _COMMANDS
    arguments = "|".join(name if "_" in name or name in _COMMANDS else f"{name}(?==)" for name in flags)
    return re.sub(rf"(?<![\w./-])({arguments})(?:=True)?(?![\w./-])", lambda match: flags[match[1]], text)


class _Watching:
    """A callback that moves the bar and keeps the trace."""

    def __init__(self, step_done: Callable[..., None], trace: StepTrace) -> None:
        self.step_done, self.trace = step_done, trace

    def __call__(self, *step: Any) -> None:
        self.step_done(*step)
        self.trace(*step)

    def begin_batch(self, lengths: Any) -> None:
        """See `speaking.BatchCallback`."""
        self.trace.begin_batch(lengths)
