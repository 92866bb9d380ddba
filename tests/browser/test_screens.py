"""What is seen: every panel in the sizes of a desk and of a phone, on arrival and with a result."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from browser.page import Page

SIZES = {"desk": (1440, 900), "phone": (390, 844)}
SCHEMES = {"desk": "light", "phone": "dark"}
ACCENT = {"light": (14, 106, 105), "dark": (106, 204, 192)}
SAMPLES = ".gallery.samples img, .offer img, .spoken-samples img"
RESULT = {
    "pictures": ".hero img",
    "edit": ".hero img",
    "levels": "ol.levels li:nth-child(1) img",
    "speech": ".sound img",
    "words": ".after img",
}

# Elements that leave the window on its left or right, and those that cut off what is in them.
_CUT = """
const edge = document.documentElement.clientWidth;
const shown = [...document.querySelectorAll('body *')].filter((e) => e.checkVisibility() && !e.matches('.skip'));
const hides = (e) => /hidden|clip/.test(getComputedStyle(e).overflowX) && e.clientWidth > 1;
const cut = (e) => {
  const { left, right } = e.getBoundingClientRect();
  return left < -0.5 || right > edge + 0.5 || (hides(e) && e.scrollWidth > e.clientWidth + 1);
};
return shown.filter(cut).map((e) => `${e.tagName}.${e.className}`);
"""
# Pairs of texts, controls and images that lie on each other. A bar that stays in the window while the rest moves
# below it is compared with itself alone, and a layer of an image with nothing.
_OVERLAPS = """
const bar = (e) => {
  for (let p = e; p; p = p.parentElement) if (/sticky|fixed/.test(getComputedStyle(p).position)) return p;
  return null;
};
const text = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
const asked = 'input, select, textarea, button, audio, img, progress';
const shown = [...document.querySelectorAll('body *')].filter((e) => (e.matches(asked) || text(e))
  && !e.matches('.skip, option, noscript') && e.checkVisibility({ opacityProperty: true, visibilityProperty: true })
  && e.getBoundingClientRect().width > 1);
const items = shown.map((e) => ({ e, bar: bar(e), boxes: [...e.getClientRects()] }));
const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
  && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
const name = (e) => `${e.tagName}.${e.className} ${(e.textContent || e.value || '').trim().slice(0, 30)}`;
const found = [];
items.forEach((one, k) => {
  for (const other of items.slice(k + 1)) {
    if (one.bar !== other.bar || one.e.contains(other.e)) continue;
    if (one.boxes.some((a) => other.boxes.some((b) => meet(a, b)))) found.push(`${name(one.e)} | ${name(other.e)}`);
  }
});
return found;
"""


def screen(page: Page) -> np.ndarray:
    """What is in the window, `[H, W, 3]`."""
    shot = page.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(shot))).convert("RGB"))


def box_of(page: Page, selector: str) -> dict[str, float]:
    return page.run("return arguments[0].getBoundingClientRect().toJSON()", page.one(selector))


def arrive(page: Page, view: str, size: str) -> None:
    """The view in a window of this size, with the samples of its model."""
    page.media(prefers_color_scheme=SCHEMES[size], prefers_reduced_motion="reduce")
    page.resize(*SIZES[size], mobile=size == "phone")
    page.go(view)
    page.wait(lambda: page.all(SAMPLES))
    page.wait(lambda: page.run("return [...document.images].every((one) => !one.checkVisibility() || one.complete)"))


def result_of(page: Page, view: str) -> None:
    """A result in a view, of a sample where it takes an image."""
    if view in ("edit", "levels"):
        page.click(".offer li:nth-child(2) button")
        page.wait(lambda: page.one(".source-hint").text.startswith("Made by"))
    if view == "words":
        page.click(".offer li:nth-child(1) .change-words")
        page.fill("[name=text]", "three nine one")
    if view == "edit":
        page.slide("[name=keep_levels]", 2)
    if view == "levels":
        page.wait(lambda: len(page.all("ol.levels li")) == 8)
        page.end()
    else:
        page.finish()


def in_order(page: Page, size: str) -> None:
    """The button is in the window with nothing over it, nothing is cut off, nothing lies on anything else."""
    page.run("scrollTo({top: 0, behavior: 'instant'})")
    page.driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": 1, "y": 1})
    (width, height), button = SIZES[size], box_of(page, "button.primary")
    assert 0 <= button["left"] < button["right"] <= width and 0 <= button["top"] < button["bottom"] <= height
    seen = screen(page)
    assert seen.shape == (height, width, 3)
    inside = seen[int(button["top"]) + 4, int(button["left"]) + 8 : int(button["right"]) - 8]
    assert (inside == ACCENT[SCHEMES[size]]).all(), "something lies over the button"
    assert page.run(_CUT) == []
    assert page.run(_OVERLAPS) == []


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("view", RESULT)
def test_a_panel_is_seen_and_so_is_its_result(page: Page, view: str, size: str) -> None:
    arrive(page, view, size)
    assert page.one(".panel").is_displayed()
    in_order(page, size)
    result_of(page, view)
    in_order(page, size)
    page.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", page.one(RESULT[view]))
    box = box_of(page, RESULT[view])
    top, bottom = max(0, int(box["top"])), min(SIZES[size][1], int(box["bottom"]))
    shown = screen(page)[top + 4 : bottom - 4, int(box["left"]) + 4 : int(box["right"]) - 4]
    stored = np.asarray(Image.open(io.BytesIO(page.png(RESULT[view]))).convert("L"), dtype=float)
    assert abs(shown.mean() - stored.mean()) < 12 and shown.std() > 20, "another image, or something lies over it"


@pytest.mark.parametrize("view", RESULT)
def test_what_a_desk_shows_on_arrival_is_whole(page: Page, view: str) -> None:
    arrive(page, view, "desk")
    edge = box_of(page, ".panel")["right"]
    boxes = page.run("return arguments[0].map((one) => one.getBoundingClientRect().toJSON())", page.all(SAMPLES))
    assert all(box["left"] >= edge and box["bottom"] <= 900 and box["width"] >= 56 for box in boxes), boxes


def test_what_is_wrong_is_found(page: Page) -> None:
    """A title wider than the window or than its place, one on a text, and one on the button."""
    arrive(page, "pictures", "desk")
    in_order(page, "desk")

    def style(text: str) -> None:
        page.run("document.querySelector('#view-pictures h2').style.cssText = arguments[0]", text)

    style("width: 2000px")
    assert "H2." in page.run(_CUT)
    style("width: 40px; overflow: hidden")
    assert "H2." in page.run(_CUT)
    style("margin-bottom: -40px")
    assert page.run(_OVERLAPS)
    style("position: fixed; inset: 0; z-index: 9; background: white")
    with pytest.raises(AssertionError, match="something lies over the button"):
        in_order(page, "desk")
