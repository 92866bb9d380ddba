"""What holds in every view, with results and messages in it: width, contrast, names, reach by keyboard, quiet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from browser.fake import MODELS, FakeServer
from browser.page import Page

VIEWS = ("pictures", "edit", "levels", "speech", "words")
LONG = "A class with a name much too long for one line of a small screen and a Donaudampfschifffahrtskapitaen"
TAB = "\ue004"

# The contrast of every text with what is behind it, worst first: [ratio, text].
_CONTRAST = """
const parse = (colour) => {
  const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number);
  return [r, g, b, a];
};
const light = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const behind = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const colour = parse(getComputedStyle(e).backgroundColor);
    if (colour[3] === 1) return colour;
  }
  throw new Error('no ground');
};
const found = [];
for (const e of document.querySelectorAll('body *')) {
  const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  if (!own && !e.matches('input:not([type=range], .source)')) continue;
  if (!e.checkVisibility() || e.matches('noscript, :disabled')) continue;
  const [one, other] = [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((a, b) => b - a);
  found.push([(one + 0.05) / (other + 0.05), e.tagName + ' ' + (e.textContent || e.value).slice(0, 40)]);
}
return found.sort((a, b) => a[0] - b[0]);
"""
_WIDER = """
const edge = document.documentElement.clientWidth;
return [...document.querySelectorAll('body *')].filter((e) => e.checkVisibility() && !e.matches('.skip'))
  .filter((e) => e.getBoundingClientRect().right > edge + 0.5 || e.getBoundingClientRect().left < -0.5)
  .map((e) => e.tagName + '.' + e.className);
"""


# Small images are part of a button, which has the name.
_NAMELESS = """
const named = (e) => e.ariaLabel || e.alt || e.labels?.length && [...e.labels].every((l) => l.textContent.trim())
  || e.matches('button, summary') && e.textContent.trim();
const asked = 'input, select, textarea, button, summary, audio, progress, canvas:not([aria-hidden]), img';
return [...document.querySelectorAll(`.view:not([hidden]) :is(${asked})`)]
  .filter((e) => e.checkVisibility() && !e.matches('.thumbs img') && !named(e)).map((e) => e.outerHTML);
"""
# The controls that Tab should reach: one of a group of radio buttons.
_REACHABLE = """
const inView = '.view:not([hidden]) :is(input, select, textarea, button, audio, summary)';
return [...document.querySelectorAll(`a[href], ${inView}`)]
 .filter((e) => e.checkVisibility() && !e.disabled && !(e.type === 'radio' && !e.checked));
"""


@pytest.fixture(scope="module")
def filled(driver: object, fake_server: FakeServer) -> Iterator[Page]:
    """Results or a message in every view, of models with long names."""
    fake_server.reset()
    image = {**MODELS[0], "name": LONG.replace(" ", "-"), "classes": [LONG, *MODELS[0]["classes"]]}
    fake_server.models = [image, MODELS[2]]
    page = Page(driver, fake_server.url)
    page.load()
    page.finish()
    page.click(".use-edit")
    page.wait(lambda: page.view() == "edit" and page.one(".source-hint").text.startswith("Generated"))
    page.slide("[name=keep_levels]", 1)
    page.finish()
    page.slide("[name=keep_levels]", 0)
    page.finish()  # nothing painted: a message
    page.click("summary")
    page.go("levels")
    page.finish()
    page.go("speech")
    page.fill("[name=text]", "three Donaudampfschifffahrtskapitaenskajuetenschluessel")
    page.finish()
    page.click(".sound .change-words")
    page.wait(lambda: page.view() == "words")
    page.fill("[name=text]", "four Donaudampfschifffahrtskapitaenskajuetenschluessel")
    page.finish()
    page.go("speech")
    page.click("[name=voice][value=file]")
    page.finish()  # no file: a message
    yield page
    page.restore()


def test_there_is_a_result_everywhere(filled: Page) -> None:
    counts = {}
    for view in VIEWS:
        filled.go(view)
        elements = filled.all(".stage img, .error")
        counts[view] = len([element for element in elements if element.is_displayed()])
    assert counts == {"pictures": 5, "edit": 6, "levels": 8, "speech": 2, "words": 2}


@pytest.mark.parametrize("width", [320, 375, 820, 1280])
def test_no_view_is_wider_than_the_screen(filled: Page, width: int) -> None:
    filled.resize(width, 800, mobile=width < 500)
    for view in VIEWS:
        filled.go(view)
        assert filled.run("return document.documentElement.scrollWidth") <= width
        assert filled.run(_WIDER) == []
    filled.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_of_level_aa(filled: Page, scheme: str) -> None:
    filled.media(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
    ground = filled.run("return getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(246, 246, 243)") == (scheme == "light")
    for view in VIEWS:
        filled.go(view)
        ratio, text = filled.run(_CONTRAST)[0]
        assert ratio >= 4.5, (view, text)
    filled.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {})


def test_every_control_and_picture_has_a_name(filled: Page) -> None:
    for view in VIEWS:
        filled.go(view)
        assert filled.run(_NAMELESS) == []


@pytest.mark.parametrize("view", VIEWS)
def test_the_tab_key_reaches_every_control_and_leaves_it(filled: Page, view: str) -> None:
    filled.go(view)
    filled.run(
        "window.visited = []; document.addEventListener('focusin', (e) => window.visited.push(e.target));"
        "document.querySelector('.skip').focus()"
    )
    reachable = filled.run(_REACHABLE)
    filled.keys(*[TAB] * (len(reachable) + 20))  # an audio player has several stops
    visited = filled.run("return window.visited")
    missed = [control.get_attribute("outerHTML") for control in reachable if control not in visited]
    assert missed == []
    assert visited.count(reachable[0]) >= 2, "the focus does not come round again"


def test_the_page_asks_no_other_server_and_says_no_errors(filled: Page) -> None:
    requests = filled.requests()
    assert any(url.endswith("/v1/speech/stream") for url in requests)
    assert [url for url in requests if not url.startswith((filled.url, "data:", "blob:", "about:"))] == []
    assert filled.console() == []
