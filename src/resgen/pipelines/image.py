"""`ImagePipeline`: classes in, pictures out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from resgen.checkpoints.artefacts import Pipeline, load_pipeline, save_pipeline
from resgen.errors import ConfigError, unknown
from resgen.ops.images import to_uint8
from resgen.ops.precision import cast_parameters, choose_device, choose_dtype
from resgen.samplers.unmasking import SamplingConfig, StepCallback, StepRecord, draw_noise, sample_codes


@dataclass(frozen=True, kw_only=True)
class ImageOutput:
    """Generated pictures.

    Attributes:
        images: PIL pictures, `L` or `RGB`.
        codes: `Int64[B, L, D]`, what they were decoded from.
        steps: one record per network evaluation and batch.
        class_ids: the class of each picture; the model's "no class" where it has none.
    """

    images: list[Image.Image]
    codes: Int[Tensor, "B L D"]
    steps: list[StepRecord]
    class_ids: list[int]


class ImagePipeline:
    """Tokenizer and generator of one folder.

    Args:
        parts: what `checkpoints.artefacts.load_pipeline` returns.
        device: `cpu`, `cuda`, ...; a GPU if there is one by default.
        dtype: of the networks: `bfloat16`, `float32`, or `auto`, which takes bfloat16 where the hardware has
            instructions for it.
            Codebooks, mixture arithmetic and quantization are float32 in any case.
    """

    def __init__(self, parts: Pipeline, *, device: str | None = None, dtype: str | torch.dtype = "auto") -> None:
        self.device = choose_device(device or "auto")
        self.dtype = choose_dtype(dtype, self.device)
        self.tokenizer = cast_parameters(parts.tokenizer, self.dtype).to(self.device)
        self.generator = cast_parameters(parts.generator, self.dtype).to(self.device)
        self.sampling: SamplingConfig = parts.sampling
        self.class_names = parts.class_names
        self.history: dict[str, Any] = dict(parts.folder.extra.get("history", {}))

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, device: str | None = None, dtype: str | torch.dtype = "auto"
    ) -> ImagePipeline:
        """Load a pipeline folder, the run folder of a generator, or a bundled model by name.

        Raises:
            CheckpointError: nothing there, damaged, or its parts do not belong together.
        """
        return cls(load_pipeline(name_or_path), device=device, dtype=dtype)

    def save_pretrained(self, path: str | Path) -> None:
        """Write a pipeline folder with these weights and sampling settings."""
        save_pipeline(
            path,
            self.tokenizer,
            self.generator,
            sampling=self.sampling,
            class_names=self.class_names,
            history=self.history,
        )

    @property
    def num_classes(self) -> int:
        """Classes that the generator knows; 0 for a model without classes."""
        return self.generator.config.num_classes

    def class_id(self, name_or_id: str | int) -> int:
        """The number of a class given by name (case does not matter) or number.

        Raises:
            ConfigError: there is no such class.
        """
        lowered = [name.lower() for name in self.class_names]
        text = str(name_or_id)
        if isinstance(name_or_id, str) and text.lower() in lowered:
            return lowered.index(text.lower())
        if text.isdecimal() and int(text) < self.num_classes:
            return int(text)
        numbers = f"0..{self.num_classes - 1}" if self.num_classes else "none (the model has no classes)"
        raise ConfigError(unknown("class", name_or_id, [*self.class_names, numbers]))

    def __call__(
        self,
        class_ids: Sequence[int | str] | None = None,
        *,
        num: int = 1,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        top_p: float | None = None,
        temperature: float | None = None,
        choice_temperature: float | None = None,
        mask_schedule: str | None = None,
        unmasking: str | None = None,
        seed: int = 0,
        batch_size: int = 64,
        codes: Int[Tensor, "B L D"] | None = None,
        visible: Int[Tensor, "B L"] | None = None,
        callback: StepCallback | None = None,
    ) -> ImageOutput:
        """Generate pictures; settings left out are the model's own (`sampling`).

        Args:
            class_ids: classes by number or name; by default every class once.
            num: pictures of each entry of `class_ids`, next to each other.
            num_steps, guidance_scale, top_p, temperature, choice_temperature, mask_schedule, unmasking: see
                `SamplingConfig`.
            seed: picture k draws from the stream (seed, k), so `batch_size` changes nothing but rounding.
            batch_size: pictures per network evaluation.
            codes: given codes, one array per picture; levels below `visible` are kept as they are.
            visible: how many levels of each position are given.
            callback: called after every network evaluation with (record, codes, visible) of the batch.

        Raises:
            ConfigError: an unknown class or a setting out of range.
        """
        if num < 1 or batch_size < 1:
            raise ConfigError(f"num={num} and batch_size={batch_size} must be at least 1")
        if seed < 0:
            raise ConfigError(f"seed={seed} must not be negative")
        given: dict[str, Any] = {
            "num_steps": num_steps,
            "guidance_scale": guidance_scale,
            "top_p": top_p,
            "temperature": temperature,
            "choice_temperature": choice_temperature,
            "mask_schedule": mask_schedule,
            "unmasking": unmasking,
        }
        config = replace(self.sampling, **{name: value for name, value in given.items() if value is not None})
        if not self.num_classes:  # both passes would be the same
            config = replace(config, guidance_first=0.0, guidance_scale=0.0)
        every = range(self.num_classes) if self.num_classes else [0]
        wanted = every if class_ids is None else [self.class_id(c) for c in class_ids]
        chosen = [c for c in wanted for _ in range(num)]
        if not chosen:
            raise ConfigError("class_ids=[] must hold at least one class, or be None for all")
        if (codes is None) != (visible is None):
            raise ConfigError("codes and visible must be given together")
        if codes is not None and visible is not None:
            self._check_given(codes, visible, len(chosen))
        records: list[StepRecord] = []
        finished: list[Tensor] = []
        images: list[Image.Image] = []
        for begin in range(0, len(chosen), batch_size):
            part = slice(begin, begin + batch_size)
            numbers = range(begin, min(begin + batch_size, len(chosen)))
            samples = sample_codes(
                self.generator.predictor(torch.tensor(chosen[part], device=self.device)),
                self.generator.codebooks,
                self.generator.level_std,
                draw_noise(seed, numbers, config.num_steps, self.generator.spec),
                config,
                codes=None if codes is None else codes[part].to(self.device),
                visible=None if visible is None else visible[part].to(self.device),
                callback=callback,
            )
            records += samples.steps
            finished.append(samples.codes.cpu())
            images += self.decode(samples.codes)
        return ImageOutput(images=images, codes=torch.cat(finished), steps=records, class_ids=chosen)

    @torch.inference_mode()
    def decode(self, codes: Int[Tensor, "B L D"], num_levels: int | None = None) -> list[Image.Image]:
        """PIL pictures from the first `num_levels` levels of the codes (all by default)."""
        pixels = to_uint8(self.tokenizer.decode(codes.to(self.device), num_levels)).permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array) for array in pixels]

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
