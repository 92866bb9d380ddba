"""Class-conditional pipelines of any modality: the part of `ImagePipeline` that is not specific to images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, SupportsIndex, TypeVar, Unpack

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from resgen.checkpoints.artefacts import Pipeline, load_pipeline, save_pipeline
from resgen.checkpoints.card import card_of
from resgen.errors import ConfigError, WrongTypeError, unknown
from resgen.kinds import KINDS, AnySampling, Settings, kind_of, sample, sampling_with, without_guidance
from resgen.nn.int8 import check_floating
from resgen.ops.axes import count_ids
from resgen.pipelines.axes import axes_id, axes_name
from resgen.pipelines.base import (
    BasePipeline,
    NoOthers,
    check_callback,
    check_whole,
    refuse_others,
    seed_of,
    some_of,
)
from resgen.samplers.records import StepCallback, StepRecord

ClassLike = str | SupportsIndex | Mapping[str, str | SupportsIndex | None]
ClassesLike = ClassLike | Iterable[ClassLike]
C = TypeVar("C", bound="ClassPipeline")


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassOutput:
    """Generated samples.

    Attributes:
        signals: decoded samples.
        codes: `Int64[B, L, D]`, from which they were decoded.
        steps: one record per network evaluation and batch.
        class_ids: the class of each sample; 0 for a model without classes.
        class_names: its name, or its number where classes have no names; none for a model without classes. With several
            axes the value on each, as `class_id` takes it.
        seed: sample k was drawn from the stream (seed, k).
    """

    signals: list[Any]
    codes: Int[Tensor, "B L D"]
    steps: list[StepRecord]
    class_ids: list[int]
    class_names: list[str]
    seed: int


class ClassPipeline(BasePipeline):
    """The tokenizer and generator of a model folder.

    A modality names its tokenizers, and may say more of what comes out:

        class MotionPipeline(ClassPipeline):
            tokenizers = (MotionTokenizer,)

    Attributes:
        tokenizers: classes of those that a folder may have.
        class_names: of the classes; with several axes, of the first.
        class_axes: names on every axis, by its name; empty where the classes have no named axes.

    Args:
        parts: what `checkpoints.artefacts.load_pipeline` returns.
        device: `cpu`, `cuda`, ...; a GPU if there is one by default.
        dtype: number type: `bfloat16` (or `bf16`), `float32`, or `auto` (also None), which takes bfloat16 where the
            hardware has instructions for it. Codebooks, mixture arithmetic and quantization are float32 in any case.
            `int8`, on CPUs only, rounds the matrices of the generator's transformer blocks and leaves the rest as with
            `auto`.
    """

    tokenizers: ClassVar[Sequence[type[Any]]]

    def __init__(
        self, parts: Pipeline, *, device: str | torch.device | None = None, dtype: str | torch.dtype | None = "auto"
    ) -> None:
        self._check_parts(parts)
        self.path = parts.folder.path
        self.tokenizer: Any = parts.tokenizer
        self.generator = parts.generator
        self.sampling: AnySampling = parts.sampling
        self.class_names, self.class_axes = parts.class_names, parts.class_axes
        self.history: dict[str, Any] = dict(parts.folder.extra.get("history", {}))
        self._extra = parts.folder.extra
        self.to("auto" if device is None else device, "auto" if dtype is None else dtype)

    @classmethod
    def from_pretrained(
        cls: type[C],
        name_or_path: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = "auto",
        **others: Unpack[NoOthers],
    ) -> C:
        """Load a pipeline's folder, a generator's run folder, a bundled model, or `owner/model[@revision]` of the hub.

        Raises:
            CheckpointError: the model is missing, damaged, of another modality, or its parts do not belong together.
            ConfigError: a device or type that cannot be used, or another argument.
        """
        refuse_others(others)
        return cls(load_pipeline(name_or_path, cls.tokenizers), device=device, dtype=dtype)

    def save_pretrained(self, path: str | Path) -> None:
        """Write a pipeline folder with these weights and sampling settings, and all else in its `config.json`.

        Raises:
            ConfigError: the weights are int8.
        """
        check_floating(self.generator, "save_pretrained")
        save_pipeline(
            path,
            self.tokenizer,
            self.generator,
            sampling=self.sampling,
            class_names=self.class_names,
            class_axes=self.class_axes,
            extra=self._extra | {"history": self.history},
            files=card_of(self.path),
        )

    def compile(self) -> None:
        """Compile the transformer, on a GPU into CUDA graphs: takes a minute for each batch size, then runs faster.

        In float32 the codes are the same as without compilation; in bfloat16 the compiler rounds elsewhere, and they
        may differ. Needs a C++ compiler.

        Raises:
            ConfigError: a kind whose input grows from one evaluation to the next, or weights in int8.
        """
        check_floating(self.generator, "compile")
        kind = kind_of(self.generator.config)
        if not kind.compilable:
            names = ", ".join(name for name, one in KINDS.items() if one.compilable)
            raise ConfigError(f"{kind.name} cannot be compiled: its cache grows with every position; {names} can")
        mode = "reduce-overhead" if self.device.type == "cuda" else None
        self.generator.get_submodule("transformer").compile(dynamic=False, mode=mode)

    @property
    def num_classes(self) -> int:
        """Number of classes, on the first axis if there are several; 0 for a model without classes."""
        return self.generator.config.num_classes

    def class_name(self, class_id: int) -> str:
        """The name of a class, or its number where classes have no names."""
        if self.class_axes:
            return axes_name(class_id, self.class_axes)
        return self.class_names[class_id] if class_id < len(self.class_names) else str(class_id)

    def class_id(self, name_or_id: ClassLike) -> int:
        """The number of a class given by name (case does not matter) or number; with several axes see
        `pipelines.axes.axes_id`.

        Raises:
            ConfigError: there is no such class.
        """
        if self.class_axes:
            return axes_id(name_or_id, self.class_axes)
        lowered = [name.lower() for name in self.class_names]
        text = str(name_or_id)
        if isinstance(name_or_id, str) and text.lower() in lowered:
            return lowered.index(text.lower())
        sizes = self.generator.condition.sizes  # of more axes than one, but without names, ids say everything
        most = self.num_classes if len(sizes) == 1 else count_ids(sizes)
        if text.isdecimal() and len(text) < 10 and int(text) < most:  # int refuses thousands of digits
            return int(text)
        numbers = f"0..{most - 1}" if most else "none (the model has no classes)"
        line = unknown("class", name_or_id, [*self.class_names, numbers])
        if isinstance(name_or_id, str) or hasattr(name_or_id, "__index__"):
            raise ConfigError(line)
        raise WrongTypeError(f"{line}; a class is a name or a whole number, not {type(name_or_id).__name__}")

    def _settings(self, call: Callable[..., Any], settings: Mapping[str, Any]) -> AnySampling:
        for name, value in settings.items():
            if name in self.class_axes:
                raise ConfigError(
                    f"{name}={value!r} is asked for with the class: {', '.join(self.class_axes)} make up one class, "
                    f"such as {{'{name}': {value!r}}} or '{name}={value}'"
                )
        return super()._settings(call, settings)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See `draw`."""
        return self.draw(*args, **kwargs)

    def draw(
        self,
        class_ids: ClassesLike | None = None,
        *,
        num_samples: int = 1,
        seed: int | None = 0,
        batch_size: int = 64,
        codes: Int[Tensor, "B L D"] | None = None,
        visible: Int[Tensor, "B L"] | None = None,
        callback: StepCallback | None = None,
        **settings: Unpack[Settings],
    ) -> ClassOutput:
        """Generate samples; arguments and errors are those of `ImagePipeline.__call__`."""
        check_whole(1, num_samples=num_samples, batch_size=batch_size)
        check_callback(callback)
        seed = seed_of(seed)
        every = range(self.num_classes) if self.num_classes else [0]
        classes = every if class_ids is None else [self.class_id(c) for c in listed(class_ids)]
        ids = [c for c in classes for _ in range(num_samples)]
        if not ids:
            raise ConfigError("class_ids=[] must hold at least one class, or be None for all")
        if (codes is None) != (visible is None):
            raise ConfigError("codes and visible must be given together")
        if codes is not None and visible is not None:
            self._check_given(codes, visible, len(ids))
        records: list[StepRecord] = []
        finished: list[Tensor] = []
        signals: list[Any] = []
        sampling = self._unguided(self._settings(self.draw, settings))
        for begin in range(0, len(ids), batch_size):
            part = slice(begin, begin + batch_size)
            samples = sample(
                self.generator,
                torch.tensor(ids[part], device=self.device),
                seed=seed,
                indices=range(begin, min(begin + batch_size, len(ids))),
                sampling=sampling,
                start=None if codes is None or visible is None else (codes[part], visible[part]),
                callback=callback,
            )
            records += samples.steps
            finished.append(samples.codes.cpu())
            signals += self.decode(samples.codes)
        return ClassOutput(
            signals=signals,
            codes=torch.cat(finished),
            steps=records,
            class_ids=ids,
            class_names=[self.class_name(c) for c in ids] if self.num_classes else [],
            seed=seed,
        )

    def sampling_with(self, **settings: Any) -> AnySampling:
        """The model's sampling settings with those given (not None) in their place.

        Raises:
            ConfigError: a setting that the model's kind does not have, or a value out of range.
        """
        return self._unguided(sampling_with(self.sampling, settings))

    def _unguided(self, sampling: AnySampling) -> AnySampling:
        """The same without guidance for a model without classes, where both passes would be the same."""
        return sampling if self.num_classes else without_guidance(sampling)

    @torch.inference_mode()
    def decode(self, codes: Int[Tensor, "B L D"], num_levels: int | None = None) -> list[Any]:
        """Signals from the first `num_levels` levels of the codes, all by default."""
        return list(self.tokenizer.decode(codes.to(self.device), num_levels).cpu())

    def _cast(self) -> Sequence[nn.Module]:
        return self._modules()

    def _modules(self) -> Sequence[nn.Module]:
        return self.tokenizer, self.generator

    def _facts(self) -> Sequence[str]:
        if self.class_axes:
            return (f"classes by {', '.join(f'{axis} ({len(names)})' for axis, names in self.class_axes.items())}",)
        names = f" ({some_of(self.class_names)})" if self.class_names else ""
        return (f"{self.num_classes} classes{names}" if self.num_classes else "no classes",)

    def _check_given(self, codes: Tensor, visible: Tensor, count: int) -> None:
        spec = self.generator.spec
        expected = (count, spec.num_positions, spec.depth)
        if tuple(codes.shape) != expected or tuple(visible.shape) != expected[:2]:
            raise ConfigError(
                f"codes {tuple(codes.shape)} and visible {tuple(visible.shape)} must be {expected} and {expected[:2]}"
            )
        if visible.min() < 0 or visible.max() > spec.depth:
            raise ConfigError(f"visible must lie in 0..{spec.depth}, not {int(visible.min())}..{int(visible.max())}")
        if codes.min() < 0 or codes.max() >= spec.codebook_size:
            raise ConfigError(
                f"codes must lie in 0..{spec.codebook_size - 1}, not {int(codes.min())}..{int(codes.max())}"
            )


def listed(value: Any) -> list[Any]:
    """A single entry, or those of a list, an array or a tensor."""
    if isinstance(value, np.ndarray | Tensor):
        value = value.tolist()
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        return [value]
    return [one.item() if isinstance(one, np.generic | Tensor) else one for one in value]
