"""Editing: the mask that is painted is the mask that is sent; and the levels of an image."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from browser.fake import FakeServer, picture
from browser.page import Page

ENTER = "\ue007"


def array(stored: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(stored)).convert("L"))


def save(path: Path, image: Image.Image) -> Path:
    image.save(path)
    return path


@pytest.fixture
def grey(tmp_path: Path) -> Path:
    """An image of the model's size."""
    return save(tmp_path / "grey.png", Image.fromarray(np.arange(784, dtype=np.uint8).reshape(28, 28)))


def upload(page: Page, file: Path) -> None:
    before = page.one(".source-hint").text
    page.one("input.source").send_keys(str(file))
    page.wait(lambda: page.one(".source-hint").text != before or page.errors())


@pytest.fixture
def easel(page: Page, grey: Path) -> Page:
    """The edit view with an image."""
    page.go("edit")
    upload(page, grey)
    return page


def painted(page: Page) -> np.ndarray:
    """True where the mask is painted, `[S, S]`."""
    script = """const c = arguments[0], d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        return [c.width, [...d].filter((_, k) => k % 4 === 3)]"""
    width, alpha = page.run(script, page.one(".easel .mask"))
    return np.array(alpha).reshape(-1, width) > 0


def test_a_stroke_is_sent_as_the_mask_that_is_seen(easel: Page, fake: FakeServer, grey: Path) -> None:
    easel.slide("#edit-brush", 4)
    easel.stroke(".mask", (0.25, 0.5), (0.75, 0.5))
    easel.choose("[name=class_id]", "Bag")
    easel.fill("[name=num_samples]", 2)
    assert easel.finish() == "2 images in 0.2 s, seed 0."
    ((path, fields),) = fake.seen
    assert path == "/v1/images/edit"
    mask = array(fields.pop("mask"))
    assert mask.shape == (28, 28) and set(np.unique(mask)) == {0, 255}
    assert ((mask == 255) == painted(easel)).all()
    # A band of the brush's width around the middle, from a quarter to three quarters and a radius beyond.
    rows, columns = np.nonzero(mask)
    assert (rows.min(), rows.max()) == (12, 15) and (columns.min(), columns.max()) == (5, 22)
    assert fields.pop("image") == grey.read_bytes()
    settings = {"num_samples": "2", "num_steps": "6", "guidance_scale": "2", "seed": "0", "blend": "false"}
    assert fields == {"model": "clothes", "class_id": "1", **settings}
    assert easel.png() == base64.b64decode(picture("final", 1, 0, 0))


def test_strokes_are_undone_one_by_one_and_cleared(easel: Page) -> None:
    undo, clear = easel.one(".undo"), easel.one(".clear")
    assert not undo.is_enabled() and not clear.is_enabled()
    easel.stroke(".mask", (0.2, 0.2), (0.5, 0.2))
    first = painted(easel)
    easel.stroke(".mask", (0.2, 0.8), (0.5, 0.8))
    assert painted(easel).sum() > first.sum() > 0
    undo.click()
    assert (painted(easel) == first).all()
    clear.click()
    assert not painted(easel).any() and not clear.is_enabled()
    undo.click()
    assert (painted(easel) == first).all()


def test_the_eraser_takes_paint_away(easel: Page) -> None:
    easel.stroke(".mask", (0.2, 0.5), (0.8, 0.5))
    before = painted(easel)
    easel.click(".erase")
    assert easel.one(".erase").get_attribute("aria-pressed") == "true"
    easel.stroke(".mask", (0.5, 0.2), (0.5, 0.8))
    after = painted(easel)
    assert not after[:, 14].any() and after[14, 7] and after.sum() < before.sum()


def test_a_larger_brush_paints_more(easel: Page) -> None:
    sums = []
    for size in (1, 5, 9):
        easel.slide("#edit-brush", size)
        easel.stroke(".mask", (0.5, 0.5), (0.5, 0.5))
        sums.append(int(painted(easel).sum()))
        easel.click(".clear")
    assert 1 <= sums[0] <= 4 < sums[1] < sums[2] and abs(sums[2] - np.pi * 4.5**2) < 12


def test_a_box_by_numbers_needs_no_brush(easel: Page, fake: FakeServer) -> None:
    easel.click("summary")
    for side, value in {"left": 3, "top": 5, "right": 20, "bottom": 9}.items():
        easel.fill(f"#box-{side}", value)
    easel.click(".add-box")
    easel.finish()
    expected = np.zeros((28, 28), dtype=bool)
    expected[5:9, 3:20] = True
    assert ((array(fake.seen[0][1]["mask"]) == 255) == expected).all()


_BAD_SIDES = [
    ("right", "0", "28", "Right must be a whole number from 1 to 28."),
    ("left", "28", "0", "Left must be a whole number from 0 to 27."),
    ("bottom", "29", "14", "Bottom must be a whole number from 1 to 28."),
]


def test_a_box_out_of_the_picture_is_refused(easel: Page) -> None:
    easel.click("summary")
    for side, value, good, message in _BAD_SIDES:
        easel.fill(f"#box-{side}", value)
        easel.click(".add-box")
        assert easel.error_of(f"#box-{side}") == message
        easel.fill(f"#box-{side}", good)
    assert not painted(easel).any()


def test_an_empty_box_is_refused(easel: Page) -> None:
    easel.click("summary")
    easel.fill("#box-top", 9)
    easel.fill("#box-bottom", 9)
    easel.click(".add-box")
    assert easel.error_of("#box-bottom") == "Bottom must be more than top."


def test_levels_are_kept_of_the_whole_picture_without_paint(easel: Page, fake: FakeServer) -> None:
    easel.slide("[name=keep_levels]", 3)
    assert easel.one("#edit-keep-out").text == "3 of 8"
    easel.click("[name=blend]")  # without paint there is no outside
    easel.finish()
    fields = fake.seen[0][1]
    assert fields["keep_levels"] == "3" and "mask" not in fields and fields["blend"] == "false"


def test_levels_and_blending_are_sent_with_the_paint(easel: Page, fake: FakeServer) -> None:
    easel.stroke(".mask", (0.2, 0.5), (0.8, 0.5))
    easel.slide("[name=keep_levels]", 2)
    easel.click("[name=blend]")
    easel.finish()
    fields = fake.seen[0][1]
    assert fields["keep_levels"] == "2" and fields["blend"] == "true" and array(fields["mask"]).any()


def test_nothing_to_regenerate_is_a_mistake(easel: Page, fake: FakeServer) -> None:
    easel.finish()
    assert easel.error_of(".paint").startswith("Paint what to regenerate")
    easel.stroke(".mask", (0.2, 0.5), (0.8, 0.5))
    assert easel.errors() == []
    easel.slide("[name=keep_levels]", 8)
    easel.finish()
    assert easel.error_of("[name=keep_levels]").startswith("All levels are kept")
    assert not fake.seen


def test_no_picture_is_a_mistake_beside_the_picture(page: Page, fake: FakeServer) -> None:
    page.go("edit")
    page.finish()
    assert page.error_of("[name=image]").startswith("Choose an image first")
    assert not fake.seen


def test_a_refused_mask_is_named_beside_the_paint(easel: Page, fake: FakeServer) -> None:
    easel.stroke(".mask", (0.2, 0.5), (0.8, 0.5))
    fake.fault = {"status": 422, "error": "the mask has no white pixel"}
    easel.finish()
    assert easel.error_of(".paint") == "the mask has no white pixel."


def test_a_picture_of_another_size_is_cut_brought_to_size_and_sent_as_shown(
    page: Page, fake: FakeServer, tmp_path: Path
) -> None:
    # Red at the sides, blue in the centred square; transparent in its lower half.
    pixels = np.zeros((56, 112, 4), dtype=np.uint8)
    pixels[..., 0], pixels[..., 3] = 255, 255
    pixels[:, 28:84] = (0, 0, 255, 255)
    pixels[28:, 28:84, 3] = 0
    page.go("edit")
    upload(page, save(tmp_path / "wide.png", Image.fromarray(pixels)))
    assert page.one(".source-hint").text == "wide.png. Cut and brought to 28 x 28 pixels."
    page.slide("[name=keep_levels]", 1)
    page.finish()
    sent = Image.open(io.BytesIO(fake.seen[0][1]["image"])).convert("RGB")
    values = np.asarray(sent).astype(int)
    assert sent.size == (28, 28)
    assert (values[2:12, 2:26] == 29).all()  # the grey of blue: 0.114 of 255
    assert (values[16:, 2:26] == 255).all()  # transparency over white


def test_a_picture_of_a_format_that_the_server_does_not_read_is_sent_as_shown(
    page: Page, fake: FakeServer, tmp_path: Path
) -> None:
    pixels = np.tile(np.arange(28, dtype=np.uint8) * 9, (28, 1))
    page.go("edit")
    upload(page, save(tmp_path / "grey.gif", Image.fromarray(pixels)))
    page.slide("[name=keep_levels]", 1)
    page.finish()
    sent = Image.open(io.BytesIO(fake.seen[0][1]["image"]))
    assert sent.format == "PNG" and (np.asarray(sent.convert("L")) == pixels).all()


def test_a_picture_that_takes_long_to_read_is_waited_for(easel: Page, fake: FakeServer, tmp_path: Path) -> None:
    easel.slide("[name=keep_levels]", 1)
    slow = """const read = createImageBitmap; window.createImageBitmap = async (...given) => {
        await new Promise((resolve) => setTimeout(resolve, 1000)); return read(...given); }"""
    easel.run(slow)
    file = save(tmp_path / "white.png", Image.new("L", (28, 28), "white"))
    easel.one("input.source").send_keys(str(file))
    easel.finish()
    assert [fields["image"] for _, fields in fake.seen] == [file.read_bytes()], "not the one before"


def test_what_is_no_picture_is_named(page: Page, fake: FakeServer, tmp_path: Path) -> None:
    file = tmp_path / "notes.png"
    file.write_text("no image")
    page.go("edit")
    upload(page, file)
    message = "'notes.png' is not an image this browser can read. Try a PNG or JPEG."
    page.wait(lambda: page.errors() == [message])
    page.finish()
    assert not fake.seen


def test_a_generated_picture_is_edited_in_its_class_and_results_again(page: Page, fake: FakeServer) -> None:
    page.classes("Bag")
    page.finish()
    page.click(".use-edit")
    page.wait(lambda: page.view() == "edit" and page.one(".source-hint").text == "Generated: Bag, seed 0.")
    assert page.focus().text == "Edit an image"
    page.slide("[name=keep_levels]", 2)
    page.fill("[name=seed]", 1)
    page.finish()
    fields = fake.seen[1][1]
    assert fields["image"] == base64.b64decode(picture("final", 1, 0, 0)) and fields["class_id"] == "1"
    page.click(".gallery .thumbs li:nth-child(2) button")
    page.click(".use-edit-this")
    page.wait(lambda: page.one(".source-hint").text == "Generated: Bag, seed 1.")
    page.finish()
    assert fake.seen[2][1]["image"] == base64.b64decode(picture("final", 1, 1, 1))
    page.driver.back()
    page.wait(lambda: page.view() == "pictures")


def test_the_levels_of_a_picture_with_their_distances(page: Page, fake: FakeServer, grey: Path) -> None:
    page.go("levels")
    upload(page, grey)
    assert page.finish() == "8 images, from coarse to fine."
    path, fields = fake.seen[0]
    assert path == "/v1/images/levels" and fields == {"model": "clothes", "image": grey.read_bytes()}
    captions = [caption.text.split("\n") for caption in page.all("figcaption")]
    assert captions[0] == ["1 level", "12.0 dB"] and captions[7] == ["8 levels", "26.0 dB"]
    assert page.png("ol.levels li:nth-child(3) img") == base64.b64decode(picture("level", 3))
    page.click("ol.levels li:nth-child(3) button")
    assert page.downloaded("grey-levels-3.png").read_bytes() == base64.b64decode(picture("level", 3))


def test_a_picture_goes_along_to_the_other_view_and_model(easel: Page, fake: FakeServer) -> None:
    easel.go("levels")
    easel.choose("[name=model]", "animals")
    easel.wait(lambda: fake.seen and fake.seen[-1][1]["model"] == "animals", "the levels of the other model")
    assert array(fake.seen[-1][1]["image"]).shape == (32, 32)
    easel.end()


def test_the_outlined_positions_are_those_that_are_drawn_again(easel: Page) -> None:
    """A stroke through two of the 4 x 4 cells: these are marked whole, also where there is no paint; and under the
    pointer those that the brush would touch."""
    easel.slide("#edit-brush", 2)
    easel.stroke(".mask", (0.1, 0.1), (0.4, 0.1))
    script = """const c = arguments[0], s = c.width / 4, p = c.getContext('2d');
        return [...Array(16).keys()].filter((k) =>
          p.getImageData(((k % 4) + 0.5) * s, (Math.floor(k / 4) + 0.8) * s, 1, 1).data[3] > 0)"""
    easel.wait(lambda: easel.one(".cells-hint").text == "2 of 16 positions will be drawn again, 7 x 7 pixels each.")
    assert easel.run(script, easel.one(".easel .cells")) == [0, 1]
    assert "2 of 16 positions" in easel.one(".easel .mask").get_attribute("aria-label")
    easel.click("[name=blend]")  # then only what is painted changes: the cells are outlined and not filled
    assert easel.run(script, easel.one(".easel .cells")) == []
    easel.click("[name=blend]")
    easel.click(".clear")
    assert easel.run(script, easel.one(".easel .cells")) == []
    easel.slide("[name=keep_levels]", 2)
    assert easel.one(".cells-hint").text.startswith("16 of 16 positions")


def test_before_and_after_stand_side_by_side(easel: Page) -> None:
    easel.stroke(".mask", (0.1, 0.1), (0.4, 0.1))
    easel.finish()
    before, after = easel.one(".hero .before canvas").rect, easel.one(".hero img").rect
    assert abs(before["y"] - after["y"]) < 2 and after["x"] >= before["x"] + before["width"]
    assert abs(before["width"] - after["width"]) < 2 and before["width"] > 200
    captions = [caption.text for caption in easel.all(".hero figcaption") if caption.is_displayed()]
    assert captions == ["Before; outlined: drawn again", "After: T-shirt/top, 1 of 4"]


def test_a_sample_is_edited_with_one_press(page: Page) -> None:
    page.go("edit")
    page.wait(lambda: page.all(".offer .thumbs button"))
    page.click(".offer li:nth-child(2) button")
    page.wait(lambda: page.one(".source-hint").text == "Made by clothes: Bag, seed 0.")
    assert page.one("[name=class_id]").get_attribute("value") == "1"


def test_levels_open_with_one_press(page: Page, fake: FakeServer) -> None:
    page.finish()
    page.click(".use-levels")
    page.wait(lambda: page.view() == "levels" and len(page.all("ol.levels li")) == 8)
    assert fake.seen[-1][0] == "/v1/images/levels"
    page.load("levels")
    page.wait(lambda: page.all(".offer .thumbs button"))
    page.click(".offer li:nth-child(3) button")
    page.wait(lambda: len(page.all("ol.levels li")) == 8)
    assert not page.one(".offer").is_displayed()


def test_enter_in_a_number_of_the_box_paints_it_and_sends_nothing(easel: Page, fake: FakeServer) -> None:
    easel.click("summary")
    easel.fill("#box-bottom", 7)
    easel.keys(ENTER)
    assert painted(easel).sum() == 7 * 28
    assert easel.status() == "" and not fake.seen


def test_one_finger_paints_and_a_second_one_does_not(easel: Page) -> None:
    place = """arguments[0].scrollIntoView({block: 'center', behavior: 'instant'});
        const {x, y, width, height} = arguments[0].getBoundingClientRect(); return [x, y, width, height]"""
    left, top, width, height = easel.run(place, easel.one(".mask"))

    def touch(kind: str, *fingers: tuple[float, float]) -> None:
        points = [{"x": left + x * width, "y": top + y * height, "id": k} for k, (x, y) in enumerate(fingers)]
        easel.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", (0.2, 0.1))
    touch("touchMove", (0.4, 0.1))
    easel.wait(lambda: painted(easel)[2, 8], "the first finger's stroke")
    touch("touchStart", (0.4, 0.1), (0.8, 0.9))
    touch("touchMove", (0.6, 0.1), (0.5, 0.9))
    touch("touchEnd")
    easel.wait(lambda: painted(easel)[2, 16], "the first finger's stroke goes on")
    assert not painted(easel)[8:].any()
