"""Editing images: what is given, what is regenerated, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kind_parts import matched_config
from resgen.errors import ConfigError, DataError
from resgen.kinds import build, get_kind
from resgen.ops.images import from_uint8, to_uint8
from resgen.pipelines.image.edit import Box, plan_edit, touched_positions
from resgen.pipelines.image.inputs import stored_picture
from resgen.pipelines.image.output import SHEET_CELL
from resgen.pipelines.image.pipeline import ImagePipeline

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)
OTHER_KINDS = ("maskgit", "rq_transformer", "ar_resgen", "valle", "direct")


@pytest.fixture
def pipe(model: Path) -> ImagePipeline:
    return ImagePipeline.from_pretrained(model, device="cpu", dtype="float32")


def of_kind(pipe: ImagePipeline, kind: str) -> ImagePipeline:
    """The pipeline with an untrained generator of another kind on the same codes."""
    spec = pipe.tokenizer.spec
    torch.manual_seed(0)
    generator = build(matched_config(pipe.generator.config, spec, kind), spec)
    quantizer = pipe.tokenizer.quantizer
    generator.set_codebooks(quantizer.codebooks, quantizer.variances, torch.randint(10, (50, 16, 3)))
    pipe.generator, pipe.sampling = generator.eval(), get_kind(kind).sampling()
    if kind == "maskgit":
        pipe.sampling = pipe.sampling_with(num_steps=6)
    return pipe


def codes_of(pipe: ImagePipeline) -> torch.Tensor:
    with torch.inference_mode():
        return pipe.tokenizer.encode(from_uint8(torch.from_numpy(PIXELS)[None, None]))[0]


def grid(visible: torch.Tensor) -> list[list[int]]:
    return visible.view(4, 4).tolist()


def arrays(images: list[Image.Image]) -> list[list[list[int]]]:
    return [np.asarray(image).tolist() for image in images]


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("1,2,3,4", (1, 2, 3, 4)),
        (" 0, 2,3 ,4", (0, 2, 3, 4)),
        ("-1,2,3,4", (-1, 2, 3, 4)),
        ("mask.png", None),
        ("3.png", None),
        ("a,b,c,d", None),
        ("12", None),
        ("", None),
    ],
)
def test_boxes_are_lists_of_numbers(text: str, box: tuple[int, ...] | None) -> None:
    assert Box.parse(text) == box


@pytest.mark.parametrize("text", ["1,2,3", "1,2,3,4,5", "1,2,3,4.5", "1,,3,4"])
def test_boxes_of_other_numbers(text: str) -> None:
    with pytest.raises(ConfigError, match="four whole numbers"):
        Box.parse(text)


def test_positions_that_a_mask_touches() -> None:
    mask = torch.zeros(7, 7, dtype=torch.bool)
    mask[2, 3] = mask[6, 6] = True
    expected = torch.zeros(3, 3, dtype=torch.bool)
    expected[0, 1] = expected[2, 2] = True
    assert torch.equal(touched_positions(mask, (3, 3), 3), expected.flatten()), "cells of 3 pixels, the last ones cut"


def test_a_box_gives_what_is_outside(pipe: ImagePipeline) -> None:
    plan = plan_edit(pipe.tokenizer, PICTURE, mask=(1, 2, 3, 5))
    assert grid(plan.visible) == [[3, 3, 3, 3], [0, 0, 3, 3], [0, 0, 3, 3], [3, 3, 3, 3]]
    assert torch.equal(plan.codes, codes_of(pipe)) and np.array_equal(np.asarray(plan.image), PIXELS)
    assert plan.mask is not None and np.asarray(plan.mask)[2:5, 1:3].min() == 255
    assert np.count_nonzero(np.asarray(plan.mask)) == 6
    outside = plan_edit(pipe.tokenizer, PICTURE, keep=(2, 2, 7, 8))
    assert grid(outside.visible) == [[0, 0, 0, 0], [0, 3, 3, 0], [0, 3, 3, 0], [0, 3, 3, 0]]
    coarse = plan_edit(pipe.tokenizer, PICTURE, mask=(1, 2, 3, 5), keep_levels=1)
    assert grid(coarse.visible) == [[3, 3, 3, 3], [1, 1, 3, 3], [1, 1, 3, 3], [3, 3, 3, 3]]
    whole = plan_edit(pipe.tokenizer, PICTURE, keep_levels=2)
    assert grid(whole.visible) == [[2] * 4] * 4 and whole.mask is None


def test_a_picture_as_mask(pipe: ImagePipeline, tmp_path: Path) -> None:
    mask = np.zeros((32, 32, 3), np.uint8)
    mask[:12, 20:] = 200
    mask[20:, :4] = 100  # darker than the middle
    Image.fromarray(mask).save(tmp_path / "mask.png")
    plans = [plan_edit(pipe.tokenizer, PICTURE, mask=m) for m in (tmp_path / "mask.png", Image.fromarray(mask))]
    assert grid(plans[0].visible) == [[3, 3, 0, 0], [3, 3, 0, 0], [3, 3, 3, 3], [3, 3, 3, 3]]
    assert torch.equal(plans[1].visible, plans[0].visible)
    wide = np.zeros((8, 16), np.uint8)
    wide[:, 4] = wide[:, 0] = 255
    plan = plan_edit(pipe.tokenizer, PICTURE, mask=Image.fromarray(wide))
    assert grid(plan.visible) == [[0, 3, 3, 3]] * 4, "the centred square, as of the image"


@pytest.mark.parametrize("kind", ["resgen", *OTHER_KINDS])
def test_what_is_given_comes_back(pipe: ImagePipeline, kind: str) -> None:
    if kind != "resgen":
        of_kind(pipe, kind)
    codes = codes_of(pipe)
    for options in ({"mask": (0, 4, 8, 8)}, {"mask": (0, 2, 8, 8), "keep_levels": 2}, {"keep_levels": 1}):
        result = pipe.edit(PICTURE, class_id="bag", num_samples=3, **options)
        given = torch.arange(3) < result.plan.visible[:, None]
        assert given.any() and not given.all()
        assert all(torch.equal(sample[given], codes[given]) for sample in result.codes), options
        assert not all(torch.equal(sample, codes) for sample in result.codes), options
        assert result.class_ids == [1, 1, 1] and result.steps
        assert arrays(result.images) == arrays(pipe.decode(result.codes))


def test_nothing_left_to_regenerate(pipe: ImagePipeline) -> None:
    result = pipe.edit(PICTURE, class_id=0, keep_levels=3)
    assert result.steps == [] and torch.equal(result.codes[0], codes_of(pipe))
    assert arrays(result.images) == arrays([result.context])


def test_given_is_decoded_from_what_is_given(pipe: ImagePipeline) -> None:
    result = pipe.edit(PICTURE, class_id=0, keep_levels=2)
    expected = to_uint8(pipe.tokenizer.decode(codes_of(pipe)[None], 2))[0, 0]
    assert np.array_equal(np.asarray(result.context), expected.numpy())


def test_blend_takes_the_rest_from_the_picture(pipe: ImagePipeline) -> None:
    plain = pipe.edit(PICTURE, class_id=0, mask=(1, 1, 4, 6), num_samples=2)
    blended = pipe.edit(PICTURE, class_id=0, mask=(1, 1, 4, 6), num_samples=2, blend=True)
    assert torch.equal(plain.codes, blended.codes)
    for before, after in zip(map(np.asarray, plain.images), map(np.asarray, blended.images), strict=True):
        expected = PIXELS.copy()
        expected[1:6, 1:4] = before[1:6, 1:4]
        assert np.array_equal(after, expected) and not np.array_equal(before, after)


def test_seeds_and_batches(pipe: ImagePipeline) -> None:
    options = {"class_id": 0, "mask": (0, 0, 4, 8)}
    whole = pipe.edit(PICTURE, num_samples=5, seed=3, **options)
    parts = pipe.edit(PICTURE, num_samples=5, seed=3, batch_size=2, **options)
    assert torch.equal(whole.codes, parts.codes) and arrays(whole.images) == arrays(parts.images)
    assert torch.equal(pipe.edit(PICTURE, num_samples=2, seed=3, **options).codes, whole.codes[:2])
    assert not torch.equal(pipe.edit(PICTURE, num_samples=5, seed=4, **options).codes, whole.codes)
    swapped = pipe.edit(PICTURE, num_samples=5, seed=3, **options | {"class_id": 2})
    assert not torch.equal(swapped.codes, whole.codes)
    assert len(pipe.edit(PICTURE, num_steps=1, **options).steps) == 1


@pytest.mark.parametrize("kind", ["rq_transformer", "ar_resgen", "valle"])
def test_kinds_in_reading_order_refuse_what_they_would_not_heed(pipe: ImagePipeline, kind: str) -> None:
    of_kind(pipe, kind)
    for options in ({"mask": (0, 0, 8, 4)}, {"mask": (0, 4, 4, 8)}, {"keep": (0, 4, 8, 8)}):
        with pytest.raises(ConfigError, match=f"kind '{kind}' draws positions in reading order"):
            pipe.edit(PICTURE, class_id=0, **options)
    coarse = {"mask": (0, 0, 8, 4), "keep_levels": 1}
    if kind == "valle":  # only its first level is drawn in order
        assert pipe.edit(PICTURE, class_id=0, **coarse).steps
    else:
        with pytest.raises(ConfigError, match="reading order"):
            pipe.edit(PICTURE, class_id=0, **coarse)


def test_a_model_without_classes(make_pipeline, tmp_path: Path) -> None:
    path = make_pipeline(tmp_path / "m", num_classes=0, channels=3)
    pipe = ImagePipeline.from_pretrained(path, device="cpu", dtype="float32")
    result = pipe.edit(PICTURE, mask=(0, 0, 4, 4), num_samples=2, blend=True)
    assert result.images[0].mode == "RGB" and result.class_ids == [0, 0]
    assert np.array_equal(np.asarray(result.images[0])[4:, :, 1], PIXELS[4:]), "grey becomes RGB without loss"
    with pytest.raises(ConfigError, match="no classes"):
        pipe.edit(PICTURE, mask=(0, 0, 4, 4), class_id=0)


def test_resizing(pipe: ImagePipeline) -> None:
    wide = Image.fromarray(np.repeat(np.repeat(PIXELS, 2, 0), 4, 1))
    with pytest.raises(DataError, match="32x16 pixels, but 8x8"):
        pipe.edit(wide, mask=(0, 0, 4, 4), class_id=0)
    result = pipe.edit(wide, mask=(0, 0, 4, 4), class_id=0, resize=True)
    assert result.plan.image.size == (8, 8)


def test_pictures_and_masks_as_callers_have_them(pipe: ImagePipeline, tmp_path: Path) -> None:
    drawn, mask = pipe("bag", seed=4), Image.new("L", (8, 8))
    picture = drawn[0]
    assert len(drawn) == 1 and picture is drawn.images[0]
    mask.paste(255, (0, 0, 4, 8))
    picture.save(tmp_path / "a.png")
    pixels, repaint = np.array(picture), np.array(mask)
    expected = pipe.edit(picture, mask=mask, class_id=0).codes
    pictures = [
        drawn,
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        (tmp_path / "a.png").read_bytes(),
        pixels,
        pixels.astype(np.int64),
        pixels[..., None],
        pixels / 255,
        np.stack([pixels] * 3, axis=-1),
        torch.from_numpy(pixels),
        torch.from_numpy(pixels)[None].float() / 255,
        (torch.from_numpy(pixels) / 255).expand(3, 8, 8),
    ]
    for source in pictures:
        assert torch.equal(pipe.edit(source, mask=mask, class_id=0).codes, expected), type(source)
    for where in (
        (0, 0, 4, 8),
        [0, 0, 4, 8],
        "0,0,4,8",
        repaint,
        repaint > 0,
        repaint / 255,
        torch.from_numpy(repaint) > 0,
    ):
        assert torch.equal(pipe.edit(picture, mask=where, class_id=0).codes, expected), where
    assert torch.equal(pipe.edit(picture, keep=[4, 0, 8, 8], class_id=0).codes, expected)


def test_channels_are_found_at_either_end_and_a_batch_may_be_one() -> None:
    numbers = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    content = bytes(stored_picture(Image.fromarray(numbers), "image")[0])
    for form in (numbers, numbers[None], numbers.transpose(2, 0, 1), numbers.transpose(2, 0, 1)[None]):
        for picture in (form, torch.from_numpy(form.copy())):
            assert bytes(stored_picture(picture, "image")[0]) == content
    square = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)  # either end could be meant
    assert stored_picture(square, "image")[0] == stored_picture(torch.from_numpy(square).permute(2, 0, 1), "image")[0]


@pytest.mark.parametrize(
    ("picture", "named"),
    [
        (np.full((8, 8), 256), r"the image holds int64 from 256 to 256; whole numbers must lie in 0\.\.255"),
        (np.full((8, 8), 1.5), r"float64 from 1.5 to 1.5; .* others in \[0, 1\]"),
        (np.full((8, 8), np.nan), "float64 from nan"),
        (np.zeros((2, 3, 8, 8)), r"the image has the shape \(2, 3, 8, 8\)"),
        (np.zeros((2, 8, 8)), r"shape \(2, 8, 8\); an image has rows, columns and 1, 3 or 4 channels, first or last"),
        (torch.zeros(8, 8, 2), r"shape \(8, 8, 2\)"),
        (np.zeros((0, 8)), "shape"),
        (np.full((8, 8), "a"), "not numbers"),
        (b"GIF", "the image is not an image of a known format"),
    ],
)
def test_numbers_that_are_no_picture(pipe: ImagePipeline, picture, named: str) -> None:
    with pytest.raises(DataError, match=named):
        pipe.edit(picture, keep_levels=1, class_id=0)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"mask": [0, 0, 4]}, r"mask=\[0, 0, 4\] must be a box of four whole numbers"),
        ({"keep": [0, 0, 4]}, r"keep=\[0, 0, 4\] must be a box of four whole numbers"),
        ({}, "nothing would be regenerated"),
        ({"mask": (0, 0, 9, 8)}, r"mask box 0,0,9,8 must be .* RIGHT <= 8"),
        ({"mask": (4, 0, 4, 8)}, "mask box 4,0,4,8"),
        ({"mask": (0, 5, 4, 4)}, "mask box 0,5,4,4"),
        ({"mask": (-1, 0, 4, 4)}, "mask box -1,0,4,4"),
        ({"keep": (0, 0, 4, 9)}, "keep box 0,0,4,9"),
        ({"keep": (0, 0, 8, 8)}, "keep box 0,0,8,8 is the whole image"),
        ({"keep": (1, 1, 3, 3)}, "keep box 1,1,3,3 holds no position: those are cells of 2x2"),
        ({"mask": (0, 0, 4, 4), "keep": (0, 0, 4, 4)}, "both given"),
        ({"keep_levels": 4}, r"keep_levels=4 .* 0\.\.3"),
        ({"keep_levels": -1}, r"keep_levels=-1 .* 0\.\.3"),
        ({"mask": Image.new("L", (8, 8), 127)}, "the mask has no white pixel"),
        ({"mask": "nothing.png"}, "mask 'nothing.png' cannot be read"),
        ({"mask": Image.new("CMYK", (8, 8))}, "the mask has mode CMYK"),
        ({"keep_levels": 1, "blend": True}, "blend"),
        ({"keep_levels": 1, "num_samples": 0}, "num_samples=0"),
        ({"keep_levels": 1, "seed": -1}, "seed=-1"),
        ({"keep_levels": 1, "class_id": None}, r"needs a class.*T-shirt/top, Bag, 1, 0\.\.2"),
        ({"keep_levels": 1, "class_id": "bagg"}, "unknown class 'bagg'"),
        ({"keep_levels": 1, "num_steps": 0}, "num_steps=0"),
        ({"keep_levels": 1, "top_k": 3}, "unknown sampling setting 'top_k'"),
    ],
)
def test_what_is_refused(pipe: ImagePipeline, options: dict, named: str) -> None:
    with pytest.raises((ConfigError, DataError), match=named) as error:
        pipe.edit(PICTURE, **{"class_id": 0, **options})
    assert "\n" not in str(error.value)


def test_pictures_that_cannot_be_read(pipe: ImagePipeline, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(DataError, match="not an image"):
        pipe.edit(tmp_path / "a.png", keep_levels=1, class_id=0)
    with pytest.raises(DataError, match="image 'nowhere.png'"):
        pipe.edit("nowhere.png", keep_levels=1, class_id=0)


def test_sheet(pipe: ImagePipeline) -> None:
    result = pipe.edit(PICTURE, mask=(0, 0, 4, 8), class_id=0, num_samples=7)
    sheet = result.sheet()
    cell, pad = SHEET_CELL, 2
    assert sheet.mode == "RGB" and sheet.width == pad + 8 * (cell + pad)
    top = sheet.height - 2 * (cell + pad)  # below the labels

    def tile(row: int, column: int) -> np.ndarray:
        left, upper = pad + column * (cell + pad), top + row * (cell + pad)
        return np.asarray(sheet.crop((left, upper, left + cell, upper + cell)).resize((8, 8), Image.Resampling.NEAREST))

    assert np.array_equal(tile(0, 0)[..., 1], PIXELS)
    red, green = tile(0, 1)[..., 0].astype(int), tile(0, 1)[..., 1].astype(int)
    assert np.array_equal(green[:, 4:], PIXELS[:, 4:]) and (red - green)[:, :4].min() > 50, "the mask is red"
    assert np.array_equal(tile(0, 2)[..., 0], np.asarray(result.context))
    for k, image in enumerate(result.images):
        assert np.array_equal(tile(k // 5, 3 + k % 5)[..., 0], np.asarray(image))
    assert (tile(1, 0) == 255).all()
    without = pipe.edit(PICTURE, keep_levels=1, class_id=0).sheet()
    assert without.width == pad + 3 * (cell + pad), "no mask, no column for it"


def test_several_classes_are_of_a_call(pipe: ImagePipeline) -> None:
    with pytest.raises(ConfigError, match="unknown sampling setting 'class_ids' .did you mean 'class_id'"):
        pipe.edit(PICTURE, keep_levels=1, class_ids=["bag"])
