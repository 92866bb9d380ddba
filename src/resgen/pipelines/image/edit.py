"""Editing images: part of an image's codes is given, the sampler fills in the rest.

A position's known levels are a prefix (Sec. 3.1), so that one number per position says what is kept: all levels outside
a mask, none under it, or everywhere the coarsest few.
"""

from __future__ import annotations

import numbers
import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from resgen.data.pictures.decode import decode_picture, pixels
from resgen.data.pictures.grid import from_array
from resgen.errors import ConfigError, DataError
from resgen.kinds import Kind
from resgen.ops.images import from_uint8
from resgen.pipelines.image.inputs import MaskLike, PictureLike, stored_picture
from resgen.pipelines.image.output import ImageOutput, tile_grid
from resgen.tokenizers.image import ImageTokenizer

SHEET_COLUMNS = 8
_TINT = (220, 30, 60)
_WHITE = 128  # from this brightness on a mask means "regenerate"


class Box(NamedTuple):
    """A rectangle in pixels of the model's image; `right` and `bottom` lie just outside, as in Pillow."""

    left: int
    top: int
    right: int
    bottom: int

    @classmethod
    def parse(cls, text: str) -> Box | None:
        """The box written as `LEFT,TOP,RIGHT,BOTTOM`; None for text that is no list of numbers.

        Raises:
            ConfigError: a list of numbers, but not of four whole ones.
        """
        if not re.fullmatch(r"[\d\s.,+-]+", text) or not re.search(r"\d,|,\s*[-+]?\d", text):
            return None
        try:
            return cls(*map(int, text.split(",")))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"box '{text}' must be four whole numbers, LEFT,TOP,RIGHT,BOTTOM") from error

    @classmethod
    def of(cls, what: str, values: object, size: int) -> Box:
        """The box of four numbers, within an image of `size` x `size`.

        Raises:
            ConfigError: not four whole numbers, or see `check`.
        """
        numbers = [one for one in values if isinstance(one, int)] if isinstance(values, tuple | list) else []
        if not isinstance(values, tuple | list) or not len(numbers) == len(values) == len(cls._fields):
            raise ConfigError(f"{what}={values!r} must be a box of four whole numbers, (left, top, right, bottom)")
        box = cls(*numbers)
        box.check(what, size)
        return box

    def check(self, what: str, size: int) -> None:
        """Reject an empty box, and one that leaves an image of `size` x `size`.

        Raises:
            ConfigError: naming the box and what is allowed.
        """
        if not (0 <= self.left < self.right <= size and 0 <= self.top < self.bottom <= size):
            raise ConfigError(
                f"{what} box {','.join(map(str, self))} must be LEFT,TOP,RIGHT,BOTTOM with 0 <= LEFT < RIGHT <= {size} "
                f"and 0 <= TOP < BOTTOM <= {size}, in pixels of the model's image"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class EditPlan:
    """The plan of an image edit: which codes are kept.

    Attributes:
        image: the image as the model takes it.
        mask: white where it is regenerated, of the same size; None without a mask.
        codes: `[L, D]`, the image's.
        visible: `[L]`, how many levels of each position are kept.
    """

    image: Image.Image
    mask: Image.Image | None
    codes: Int[Tensor, "L D"]
    visible: Int[Tensor, " L"]

    def blend(self, image: Image.Image) -> Image.Image:
        """`image` under the mask, the image itself outside, pixel for pixel."""
        return image if self.mask is None else Image.composite(image, self.image, self.mask)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class EditOutput(ImageOutput):
    """Edited images.

    Attributes:
        plan: the image, its codes and which of them were kept.
        context: the image decoded from the given codes alone.
    """

    plan: EditPlan
    context: Image.Image

    def sheet(self, *, scale: int | None = None) -> Image.Image:
        """The image, its mask in red, the part that was kept, and the results on one sheet, magnified if small."""
        heading = {"input": self.plan.image}
        if self.plan.mask is not None:
            plain = self.plan.image.convert("RGB")
            tinted = Image.blend(plain, Image.new("RGB", plain.size, _TINT), 0.6)
            heading["mask"] = Image.composite(tinted, plain, self.plan.mask)
        heading["given"] = self.context
        per_row = min(SHEET_COLUMNS - len(heading), len(self.images))
        blank = Image.new("L", self.plan.image.size, "white")
        tiles: list[Image.Image] = []
        for begin in range(0, len(self.images), per_row):
            tiles += [blank] * len(heading) if begin else list(heading.values())
            tiles += self.images[begin : begin + per_row]
        labels = [*heading, *["result"] * per_row]
        return tile_grid(tiles, len(labels), labels=labels, scale=scale)


@torch.inference_mode()
def plan_edit(
    tokenizer: ImageTokenizer,
    image: PictureLike,
    *,
    mask: MaskLike | None = None,
    keep: tuple[int, int, int, int] | list[int] | None = None,
    keep_levels: int | None = None,
    resize: bool = False,
) -> EditPlan:
    """Encode an image and say what of it is given: 0 levels (or `keep_levels`) of the positions that the mask touches,
    all of the others.

    What lies under the mask is encoded too, and the positions beside it know a little of it: their codes come from an
    encoder that sees further than one cell.

    Args:
        tokenizer: the model's.
        image: an image, its file or the content of one.
        mask: white where the image is regenerated: an image of any size, its file or the content of
            one (cut to the centred square and resized to the nearest pixel), or a box.
        keep: a box outside which everything is regenerated.
        keep_levels: how many of the coarsest levels are given where the image is regenerated; everywhere without
            `mask` and `keep`.
        resize: cut out, resize and convert an image of another size or mode, instead of refusing it.

    Raises:
        ConfigError: a box that is empty or out of range, `keep_levels` out of range, both of `mask` and `keep`, or
            nothing to regenerate.
        DataError: no image, damaged, or of another size or mode; a mask without a white pixel.
    """
    if mask is not None and keep is not None:
        raise ConfigError("mask and keep were both given; keep is the mask of all that lies outside a box")
    if mask is None and keep is None and keep_levels is None:
        raise ConfigError("nothing would be regenerated: give mask=BOX, keep=BOX or keep_levels=N")
    spec, size = tokenizer.spec, tokenizer.config.image_size
    if keep_levels is not None and not (isinstance(keep_levels, numbers.Integral) and 0 <= keep_levels <= spec.depth):
        raise ConfigError(f"keep_levels={keep_levels!r} must lie in 0..{spec.depth}, the model's levels")
    region = _mask(mask, keep, size)
    source = torch.from_numpy(pixels(*stored_picture(image, "image"), size, tokenizer.config.channels, resize).copy())
    device = tokenizer.quantizer.codebooks.device
    codes = tokenizer.encode(from_uint8(source[None]).to(device))[0].cpu()
    touched = torch.ones(spec.num_positions, dtype=torch.bool)
    if region is not None:
        touched = touched_positions(region, (spec.shape[0], spec.shape[1]), tokenizer.config.downsampling)
        if keep is not None and touched.all():
            side = tokenizer.config.downsampling
            raise ConfigError(
                f"keep box {','.join(map(str, keep))} holds no position: those are cells of {side}x{side} pixels"
            )
    return EditPlan(
        image=from_array(source.permute(1, 2, 0).numpy()),
        mask=None if region is None else from_array(region[..., None].numpy().astype(np.uint8) * 255),
        codes=codes,
        visible=torch.where(touched, keep_levels or 0, spec.depth),
    )


def touched_positions(mask: Bool[Tensor, "S S"], shape: tuple[int, int], side: int) -> Bool[Tensor, " L"]:
    """The positions of a grid of `shape` whose cell of `side` x `side` pixels holds any pixel of the mask."""
    (rows, columns), size = shape, mask.shape[0]
    padded = F.pad(mask, (0, columns * side - size, 0, rows * side - size), value=False)
    return padded.view(rows, side, columns, side).any(3).any(1).flatten()


def check_order(kind: Kind, visible: Int[Tensor, " L"]) -> None:
    """Reject what an autoregressive kind cannot do: it sees only what comes before a position in reading order, so that
    what is kept after it would be ignored.

    VALL-E's scheme is free of this from its second level on.

    Raises:
        ConfigError: more is given at a later position than at an earlier one.
    """
    ordered = visible if kind.ordered_levels is None else visible.clamp(max=kind.ordered_levels)
    if (ordered.diff() > 0).any():
        raise ConfigError(
            f"kind '{kind.name}' draws positions in reading order and would not heed what is given after them: mask "
            "whole rows down to the lower edge, or keep levels of the whole image (keep_levels without a mask)"
        )


def _mask(
    mask: MaskLike | None, keep: tuple[int, int, int, int] | list[int] | None, size: int
) -> Bool[Tensor, "S S"] | None:
    """True where the image is regenerated; None without a mask."""
    mask = (Box.parse(mask) or mask) if isinstance(mask, str) else mask
    if isinstance(mask, tuple | list) or keep is not None:
        box = Box.of("mask", mask, size) if keep is None else Box.of("keep", keep, size)
        inside = torch.zeros(size, size, dtype=torch.bool)
        inside[box.top : box.bottom, box.left : box.right] = True
        if keep is None:
            return inside
        if inside.all():
            raise ConfigError(f"keep box {','.join(map(str, box))} is the whole image: nothing would be regenerated")
        return ~inside
    if mask is None:
        return None
    source, where = stored_picture(mask, "mask")
    grey = decode_picture(source, where).convert("L")
    # As the image itself: the centred square. Nearest pixels keep a mask of two values one of two values.
    region = np.asarray(ImageOps.fit(grey, (size, size), Image.Resampling.NEAREST)) >= _WHITE
    if not region.any():
        raise DataError(f"{where} has no white pixel, so nothing would be regenerated; white is regenerated")
    return torch.from_numpy(region)
