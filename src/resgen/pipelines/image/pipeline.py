"""`ImagePipeline`: classes in, pictures out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor, nn

from resgen.checkpoints.artefacts import Pipeline, load_pipeline, save_pipeline
from resgen.data.pictures.grid import from_array
from resgen.errors import ConfigError, unknown
from resgen.kinds import KINDS, AnySampling, Settings, kind_of, sample, sampling_with, without_guidance
from resgen.ops.images import to_uint8
from resgen.pipelines.base import BasePipeline, NoOthers, check_whole, refuse_others, seed_of, some_of
from resgen.pipelines.image.edit import EditOutput, EditPlan, check_order, plan_edit
from resgen.pipelines.image.inputs import ClassesLike, ClassLike, MaskLike, PictureLike, listed
from resgen.pipelines.image.output import ImageOutput
from resgen.samplers.records import StepCallback, StepRecord


class ImagePipeline(BasePipeline):
    """Tokenizer and generator of one folder.

        pipe = ImagePipeline.from_pretrained("fashion-mnist-small")
        pipe("Bag", num_samples=4, seed=1).save("bags.png")

    Args:
        parts: what `checkpoints.artefacts.load_pipeline` returns.
        device: `cpu`, `cuda`, ...; a GPU if there is one by default.
        dtype: of the networks: `bfloat16` (or `bf16`), `float32`, or `auto`, which takes bfloat16 where the hardware
            has instructions for it. Codebooks, mixture arithmetic and quantization are float32 in any case.
    """

    def __init__(
        self, parts: Pipeline, *, device: str | torch.device | None = None, dtype: str | torch.dtype = "auto"
    ) -> None:
        self.name = parts.folder.path.name
        self.tokenizer, self.generator = parts.tokenizer, parts.generator
        self.sampling: AnySampling = parts.sampling
        self.class_names = parts.class_names
        self.history: dict[str, Any] = dict(parts.folder.extra.get("history", {}))
        self.to("auto" if device is None else device, dtype)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
        **others: Unpack[NoOthers],
    ) -> ImagePipeline:
        """Load a pipeline's folder, a generator's run folder, a bundled model, or `owner/model[@revision]` of the hub.

        Raises:
            CheckpointError: nothing there, damaged, of speech, or its parts do not belong together.
            ConfigError: a device or type that cannot be used, or another argument.
        """
        refuse_others(others)
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

    def compile(self) -> None:
        """Compile the transformer, on a GPU into CUDA graphs: a minute for each size of batch, then faster.

        In float32 codes are those of the pipeline that is not compiled; in bfloat16 the compiler rounds elsewhere, and
        they may differ. Takes a C++ compiler.

        Raises:
            ConfigError: a kind whose evaluations grow with the positions before them.
        """
        kind = kind_of(self.generator.config)
        if not kind.compilable:
            names = ", ".join(name for name, one in KINDS.items() if one.compilable)
            raise ConfigError(f"{kind.name} cannot be compiled: its cache grows with every position; {names} can")
        mode = "reduce-overhead" if self.device.type == "cuda" else None
        self.generator.get_submodule("transformer").compile(dynamic=False, mode=mode)

    @property
    def num_classes(self) -> int:
        """Classes that the generator knows; 0 for a model without classes."""
        return self.generator.config.num_classes

    def class_name(self, class_id: int) -> str:
        """The name of a class, or its number where classes have no names."""
        return self.class_names[class_id] if class_id < len(self.class_names) else str(class_id)

    def class_id(self, name_or_id: ClassLike) -> int:
        """The number of a class given by name (case does not matter) or number.

        Raises:
            ConfigError: there is no such class.
        """
        lowered = [name.lower() for name in self.class_names]
        text = str(name_or_id)
        if isinstance(name_or_id, str) and text.lower() in lowered:
            return lowered.index(text.lower())
        if text.isdecimal() and len(text) < 10 and int(text) < self.num_classes:  # int refuses thousands of digits
            return int(text)
        numbers = f"0..{self.num_classes - 1}" if self.num_classes else "none (the model has no classes)"
        raise ConfigError(unknown("class", name_or_id, [*self.class_names, numbers]))

    def __call__(
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
    ) -> ImageOutput:
        """Generate pictures; settings left out are the model's own (`sampling`).

        Args:
            class_ids: a class by name or number, or several in a list, an array or a tensor; by default every class
                once.
            num_samples: pictures of each entry of `class_ids`, next to each other.
            seed: picture k draws from the stream (seed, k), so `batch_size` changes nothing but rounding. None takes a
                fresh one; the output has it as `seed`.
            batch_size: pictures per network evaluation.
            codes: given codes, one array per picture; levels below `visible` are kept as they are.
            visible: how many levels of each position are given.
            callback: called after every network evaluation with (record, codes, visible) of the batch.
            settings: `num_steps`, `guidance_scale`, `top_p`, `temperature`, ...: see `kinds.Settings`; for ResGen the
                fields of `SamplingConfig`.

        Raises:
            ConfigError: an unknown class, or a setting that is unknown or out of range.
        """
        check_whole(1, num_samples=num_samples, batch_size=batch_size)
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
        images: list[Image.Image] = []
        sampling = self._unguided(self._settings(self.__call__, settings))
        for begin in range(0, len(ids), batch_size):
            part = slice(begin, begin + batch_size)
            samples = sample(
                self.generator,
                torch.tensor(ids[part], device=self.device),
                seed=seed,
                indices=range(begin, min(begin + batch_size, len(ids))),
                sampling=sampling,
                given=None if codes is None or visible is None else (codes[part], visible[part]),
                callback=callback,
            )
            records += samples.steps
            finished.append(samples.codes.cpu())
            images += self.decode(samples.codes)
        return ImageOutput(
            images=images,
            codes=torch.cat(finished),
            steps=records,
            class_ids=ids,
            class_names=[self.class_name(c) for c in ids] if self.num_classes else [],
            seed=seed,
        )

    def edit(
        self,
        image: PictureLike,
        *,
        mask: MaskLike | None = None,
        keep: tuple[int, int, int, int] | list[int] | None = None,
        keep_levels: int | None = None,
        class_id: ClassLike | None = None,
        num_samples: int = 1,
        seed: int | None = 0,
        blend: bool = False,
        resize: bool = False,
        batch_size: int = 64,
        callback: StepCallback | None = None,
        **settings: Unpack[Settings],
    ) -> EditOutput:
        """Imagine a part of a picture anew, or its finer levels; what is given comes back as it is, code for code.

        Args:
            image: a PIL picture, an array, a tensor, a file or the content of one (see `inputs.PictureLike`).
            mask: what to imagine anew: white in a picture, or a box (left, top, right, bottom) in pixels of the
                model's picture.
            keep: a box outside which everything is imagined anew.
            keep_levels: how many of the coarsest levels are kept even there (0 by default); of the whole picture
                without `mask` and `keep`.
            class_id: number or name of the class to imagine; the picture's own or another. Models without classes
                take none.
            num_samples: how many results.
            seed: result k draws from the stream (seed, k), so `batch_size` changes nothing but rounding; None takes a
                fresh one.
            blend: take the pixels outside the mask from the picture itself instead of the decoder.
            resize: cut out, resize and convert a picture of another size or mode, instead of refusing it.
            batch_size: pictures per network evaluation.
            callback: called after every network evaluation with (record, codes, visible) of the batch.
            settings: as of a call.

        Raises:
            ConfigError: no class or an unknown one, nothing to imagine, a mask that the model's kind cannot follow, or
                a value out of range.
            DataError: picture or mask cannot be read or do not fit.
        """
        check_whole(1, num_samples=num_samples)
        self._settings(self.edit, settings)
        number = self.edited_class(class_id)
        plan = self.plan_edit(image, mask=mask, keep=keep, keep_levels=keep_levels, blend=blend, resize=resize)
        result = self(
            None if number is None else [number],
            num_samples=num_samples,
            seed=seed,
            batch_size=batch_size,
            codes=plan.codes.expand(num_samples, -1, -1),
            visible=plan.visible.expand(num_samples, -1),
            callback=callback,
            **settings,
        )
        return EditOutput(
            images=[plan.blend(image) for image in result.images] if blend else result.images,
            codes=result.codes,
            steps=result.steps,
            class_ids=result.class_ids,
            class_names=result.class_names,
            seed=result.seed,
            plan=plan,
            given=self.decode(plan.codes[None], visible=plan.visible[None])[0],
        )

    def edited_class(self, class_id: ClassLike | None) -> int | None:
        """The number of the class to imagine; None for a model without classes.

        Raises:
            ConfigError: no class or an unknown one.
        """
        if class_id is None and self.num_classes:
            allowed = ", ".join([*self.class_names, f"0..{self.num_classes - 1}"])
            raise ConfigError(f"this model needs a class, class_id; allowed: {allowed}")
        return None if class_id is None else self.class_id(class_id)

    def plan_edit(
        self,
        image: PictureLike,
        *,
        mask: MaskLike | None = None,
        keep: tuple[int, int, int, int] | list[int] | None = None,
        keep_levels: int | None = None,
        blend: bool = False,
        resize: bool = False,
    ) -> EditPlan:
        """What `edit` gives to the sampler; arguments and errors are those of `edit`."""
        if blend and mask is None and keep is None:
            raise ConfigError("blend takes the pixels outside a mask from the picture: give mask or keep with it")
        plan = plan_edit(self.tokenizer, image, mask=mask, keep=keep, keep_levels=keep_levels, resize=resize)
        check_order(kind_of(self.generator.config), plan.visible)
        return plan

    def sampling_with(self, **settings: Any) -> AnySampling:
        """The model's sampling settings with those given (not None) in their place.

        Raises:
            ConfigError: a setting that the model's kind does not have, or a value out of range.
        """
        return self._unguided(sampling_with(self.sampling, settings))

    def _unguided(self, sampling: AnySampling) -> AnySampling:
        """The same without guidance for a model without classes, where both passes would be the same."""
        return sampling if self.num_classes else without_guidance(sampling)

    def generate_pixels(
        self, class_ids: Sequence[int], *, first_index: int, seed: int, batch_size: int, sampling: AnySampling
    ) -> UInt8[Tensor, "B C S S"]:
        """Pictures of the classes, as numbers in 0..255; picture k draws from the stream (seed, first_index + k).

        A long series can thus be generated in parts, in any order.
        """
        parts = []
        for begin in range(0, len(class_ids), batch_size):
            part = torch.tensor(class_ids[begin : begin + batch_size], device=self.device)
            indices = range(first_index + begin, first_index + begin + len(part))
            codes = sample(self.generator, part, seed=seed, indices=indices, sampling=sampling).codes
            with torch.inference_mode():
                parts.append(to_uint8(self.tokenizer.decode(codes)).cpu())
        return torch.cat(parts)

    @torch.inference_mode()
    def decode(
        self,
        codes: Int[Tensor, "B L D"],
        num_levels: int | None = None,
        *,
        visible: Int[Tensor, "B L"] | None = None,
    ) -> list[Image.Image]:
        """PIL pictures from the first `num_levels` levels of the codes (all by default), or from the first `visible`
        levels of each position."""
        visible = None if visible is None else visible.to(self.device)
        decoded = self.tokenizer.decode(codes.to(self.device), num_levels, visible=visible)
        pixels = to_uint8(decoded).permute(0, 2, 3, 1).cpu().numpy()
        return [from_array(array) for array in pixels]

    def _cast(self) -> Sequence[nn.Module]:
        return self._modules()

    def _modules(self) -> Sequence[nn.Module]:
        return self.tokenizer, self.generator

    def _facts(self) -> Sequence[str]:
        config = self.tokenizer.config
        picture = f"{config.image_size}x{config.image_size} {'grey' if config.channels == 1 else 'RGB'}"
        names = f" ({some_of(self.class_names)})" if self.class_names else ""
        return picture, f"{self.num_classes} classes{names}" if self.num_classes else "no classes"

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
