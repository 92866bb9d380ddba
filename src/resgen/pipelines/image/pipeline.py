"""`ImagePipeline`: classes in, images out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from resgen.data.pictures.grid import from_array
from resgen.errors import ConfigError
from resgen.kinds import AnySampling, Settings, kind_of, sample
from resgen.ops.images import to_uint8
from resgen.pipelines.base import check_whole
from resgen.pipelines.classes import ClassesLike, ClassLike, ClassPipeline
from resgen.pipelines.image.edit import EditOutput, EditPlan, check_order, plan_edit
from resgen.pipelines.image.inputs import MaskLike, PictureLike
from resgen.pipelines.image.output import ImageOutput
from resgen.samplers.records import StepCallback
from resgen.tokenizers.image import ImageTokenizer


class ImagePipeline(ClassPipeline):
    """Generates and edits images with the tokenizer and generator of a model folder.

        pipe = ImagePipeline.from_pretrained("fashion-mnist-small")
        pipe("Bag", num_samples=4, seed=1).save("bags.png")

    The arguments are those of `ClassPipeline`.
    """

    tag, usage = "unconditional-image-generation", 'pipe().save("pictures.png")'
    tokenizers = (ImageTokenizer,)
    tokenizer: ImageTokenizer

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
        """Generate images. Settings that are not given default to the model's own (`sampling`).

        Args:
            class_ids: a class by name or number, or several in a list, an array or a tensor. With several axes also
                `{"style": "lorelei", "background": "blue"}` or the same as text, "lorelei, background=blue"; the model
                chooses the axes that are not given. By default every class once (with several axes, of the first
                axis).
            num_samples: images per entry of `class_ids`, consecutive in the output.
            seed: image k depends only on (seed, k), so `batch_size` changes nothing but rounding. None draws a fresh
                seed, stored in the output as `seed`.
            batch_size: images per batch.
            codes: known codes, one array per image; the first `visible` levels of each position are kept.
            visible: number of known levels per position.
            callback: called after every sampling step with (record, codes, visible) of the batch.
            settings: `num_steps`, `guidance_scale`, `top_p`, `temperature`, ...: see `kinds.Settings`; for ResGen the
                fields of `SamplingConfig`.

        Raises:
            ConfigError: an unknown class, or a setting that is unknown or out of range.
        """
        result = self.draw(
            class_ids,
            num_samples=num_samples,
            seed=seed,
            batch_size=batch_size,
            codes=codes,
            visible=visible,
            callback=callback,
            **settings,
        )
        return ImageOutput(
            images=result.signals,
            codes=result.codes,
            steps=result.steps,
            class_ids=result.class_ids,
            class_names=result.class_names,
            seed=result.seed,
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
        """Regenerate part of an image, or its finer levels; all other codes stay unchanged.

        Args:
            image: a PIL image, an array, a tensor, a file or its content (see `inputs.PictureLike`).
            mask: what to regenerate: the white area of an image, or a box (left, top, right, bottom) in pixels at the
                model's size.
            keep: a box; everything outside it is regenerated.
            keep_levels: number of coarsest levels to keep in the regenerated part (0 by default), or in the whole
                image without `mask` and `keep`.
            class_id: number or name of the class to generate, the image's own or another. Models without classes
                take none.
            num_samples: number of results.
            seed: result k depends only on (seed, k), so `batch_size` changes nothing but rounding; None draws a fresh
                seed.
            blend: copy the pixels outside the mask from the input instead of decoding them.
            resize: crop, resize and convert an image of another size or mode instead of rejecting it.
            batch_size: images per batch.
            callback: called after every sampling step with (record, codes, visible) of the batch.
            settings: as in a call.

        Raises:
            ConfigError: no class or an unknown one, nothing to regenerate, a mask that the kind cannot follow, or a
                value out of range.
            DataError: the image or mask is unreadable or does not fit.
        """
        check_whole(1, num_samples=num_samples)
        self._settings(self.edit, settings)
        plan = self.plan_edit(image, mask=mask, keep=keep, keep_levels=keep_levels, blend=blend, resize=resize)
        number = self.edited_class(class_id)
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
            context=self.decode(plan.codes[None], visible=plan.visible[None])[0],
        )

    def edited_class(self, class_id: ClassLike | None) -> int | None:
        """The number of the class to generate; None for a model without classes.

        Raises:
            ConfigError: no class or an unknown one.
        """
        if class_id is None and self.num_classes:
            allowed = ", ".join([*self.class_names, f"0..{self.num_classes - 1}"])
            if others := ", ".join([*self.class_axes][1:]):
                allowed += f"; also {others}, given as axis=value, or 'any'"
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
        """The sampler's input for `edit`, with the same arguments and errors."""
        if blend and mask is None and keep is None:
            raise ConfigError("blend copies the pixels outside a mask from the image: it needs mask or keep")
        plan = plan_edit(self.tokenizer, image, mask=mask, keep=keep, keep_levels=keep_levels, resize=resize)
        check_order(kind_of(self.generator.config), plan.visible)
        return plan

    def generate_pixels(
        self, class_ids: Sequence[int], *, first_index: int, seed: int, batch_size: int, sampling: AnySampling
    ) -> UInt8[Tensor, "B C S S"]:
        """Images of the classes, values in 0..255; image k depends only on (seed, first_index + k).

        A long series can therefore be generated in parts, in any order.
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
        """PIL images from the first `num_levels` levels of the codes (all by default), or from the first `visible`
        levels of each position."""
        visible = None if visible is None else visible.to(self.device)
        decoded = self.tokenizer.decode(codes.to(self.device), num_levels, visible=visible)
        pixels = to_uint8(decoded).permute(0, 2, 3, 1).cpu().numpy()
        return [from_array(array) for array in pixels]

    def _facts(self) -> Sequence[str]:
        config = self.tokenizer.config
        picture = f"{config.image_size}x{config.image_size} {'grey' if config.channels == 1 else 'RGB'}"
        return picture, *super()._facts()
