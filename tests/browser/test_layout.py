"""Readable and usable: on a phone, by keyboard, in both colour schemes, with less motion."""

from __future__ import annotations

from browser.fake import MODELS, FakeServer
from browser.page import Page

VIEWS = ("pictures", "edit", "levels", "speech", "words")
TAB, ENTER, SPACE, ARROW_LEFT = "\ue004", "\ue007", "\ue00d", "\ue012"


def test_a_phone_shows_one_column_and_brings_the_result_into_view(page: Page) -> None:
    page.resize(375, 700, mobile=True)
    page.load()
    page.finish()
    panel, stage = page.one(".panel").rect, page.one(".stage").rect
    assert stage["y"] >= panel["y"] + panel["height"] and stage["x"] == panel["x"]
    page.wait(lambda: 0 <= page.run("return arguments[0].getBoundingClientRect().top", page.one(".stage")) < 350)


def test_a_phone_brings_the_result_of_an_edit_into_view(page: Page) -> None:
    """The stage stands above the panel as long as it offers samples, and below it with a result."""
    page.resize(390, 844, mobile=True)
    page.media(prefers_reduced_motion="reduce")
    page.load("edit")
    page.wait(lambda: len(page.all(".offer li")) == 3)
    assert page.one(".stage").rect["y"] < page.one(".panel").rect["y"]
    page.click(".offer li:nth-child(2) button")
    page.wait(lambda: page.one(".source-hint").text.startswith("Made by"))
    page.slide("[name=keep_levels]", 2)
    page.finish()
    assert page.one(".stage").rect["y"] > page.one(".panel").rect["y"]
    top, bottom = page.run(
        "const {top, bottom} = arguments[0].getBoundingClientRect(); return [top, bottom]", page.one(".stage")
    )
    assert 0 <= top < 422 and bottom > top


def test_from_loading_to_the_first_picture_and_back_through_its_steps_by_keyboard(page: Page, fake: FakeServer) -> None:
    def tab_to(selector: str) -> None:
        for _ in range(60):
            page.keys(TAB)
            outline = page.run("const s = getComputedStyle(document.activeElement); return [s.outlineStyle, s.opacity]")
            assert outline[0] != "none" or outline[1] == "0", page.focus().get_attribute("outerHTML")
            if page.run("return document.activeElement.matches(arguments[0])", selector):
                return
        raise AssertionError(f"{selector} is out of reach")

    page.keys(TAB)
    assert page.focus().text == "Skip to the controls" and page.focus().rect["y"] >= 0
    page.keys(ENTER)
    assert page.view() == "pictures"
    tab_to(".chip:nth-child(2) input")
    page.keys(SPACE)
    tab_to("#view-pictures button.primary")
    page.keys(ENTER)
    page.end()
    assert fake.seen[0][1]["class_ids"] == [0, 1]
    assert page.one(".hero img").is_displayed()
    tab_to("#view-pictures .steps input")
    page.keys(ARROW_LEFT)
    assert page.one(".steps output").text == "5 of 6"
    tab_to(".thumbs li:nth-child(2) button")
    page.keys(ENTER)
    assert page.one(".thumbs li:nth-child(2) button").get_attribute("aria-pressed") == "true"


def test_what_changes_is_announced(page: Page) -> None:
    for view in VIEWS:
        page.go(view)
        assert page.one(".stage .status").get_attribute("role") == "status"
    assert page.driver.find_element("id", "notice").get_attribute("role") == "status"


def test_small_pictures_are_enlarged_without_smoothing(page: Page) -> None:
    page.finish()
    image = page.one(".hero img")
    assert image.value_of_css_property("image-rendering") == "pixelated"
    assert image.size["width"] > 300


def test_large_pictures_are_smooth(page: Page, fake: FakeServer) -> None:
    fake.models = [{**MODELS[0], "image": {"height": 256, "width": 256, "channels": 3}}]
    page.load()
    page.finish()
    assert page.one(".hero img").value_of_css_property("image-rendering") == "auto"


def test_who_wants_less_motion_gets_none(page: Page, fake: FakeServer) -> None:
    page.media(prefers_reduced_motion="reduce")
    page.load()
    page.finish()
    assert not page.one(".replay").is_displayed()
    script = (
        "return [...document.querySelectorAll('*')].filter((e) => getComputedStyle(e).animationName !== 'none').length"
    )
    fake.hold_at = 1
    page.go("speech")
    page.click("button.primary")
    page.wait(lambda: page.one("progress").is_displayed())
    assert page.run(script) == 0
    fake.released.set()
    page.end()


def test_a_view_has_its_own_address_and_title(page: Page) -> None:
    page.load("levels")
    assert page.view() == "levels" and page.driver.title == "Levels of an image – resgen"
    current = page.driver.find_elements("css selector", "nav [aria-current=page]")
    assert [link.text for link in current] == ["Levels"]


def test_the_page_opens_again_after_the_skip_link_was_used(page: Page) -> None:
    page.keys(TAB, ENTER)
    assert page.run("return location.hash") == "#main"
    page.load("main")
    assert page.view() == "pictures"
