"""Servers that refuse, break off, want a key or are gone: said in words, and the page goes on."""

from __future__ import annotations

import pytest

from browser.fake import KEY, FakeServer
from browser.page import Page

_FAULTS = [
    (429, "8 requests wait already", 3, "8 requests wait already. Try again in 3 seconds."),
    (429, "too many requests", None, "too many requests. Try again later."),
    (503, "the server is stopping", 1, "the server is stopping. Try again in 1 second."),
    (429, "too many requests are waiting; try again later", 1, "too many requests are waiting. Try again in 1 second."),
    (504, "it took too long; ask for fewer steps", None, "it took too long; ask for fewer steps."),
    (504, "", None, "the server answered 504 Gateway Timeout. Ask for fewer images or steps, or a shorter text."),
    (500, "internal error", None, "internal error."),
]


@pytest.mark.parametrize("watch", [True, False])
def test_what_the_server_says_stands_beside_the_button(page: Page, fake: FakeServer, watch: bool) -> None:
    if not watch:
        page.click("[name=watch]")
    for status, error, wait_s, message in _FAULTS:
        fake.fault = {"status": status, "error": error, **({"retry_after": wait_s} if wait_s else {})}
        assert page.finish() == f"Not done: {message}"
        assert page.error_of("button.primary") == message
    fake.fault = None
    assert page.finish() == "4 images in 0.2 s, seed 0."
    assert page.errors() == []


def test_a_refused_value_is_named_beside_its_field(page: Page, fake: FakeServer) -> None:
    fake.fault = {"status": 422, "error": "num_steps=6 must lie in 1..4"}
    page.finish()
    assert page.error_of("[name=num_steps]") == "num_steps=6 must lie in 1..4."
    assert page.focus() == page.one("[name=num_steps]")


def test_an_error_after_some_steps_is_said_and_the_steps_stay(page: Page, fake: FakeServer) -> None:
    fake.fault = "stream"
    page.finish()
    assert page.error_of("button.primary") == "out of memory: ask for fewer images."
    assert page.one(".hero img").get_attribute("alt") == "T-shirt/top, 1 of 4, step 2 of 6"
    assert not page.one("button.save").is_enabled()


def test_a_stream_that_ends_early_is_no_result(page: Page, fake: FakeServer) -> None:
    fake.fault = "break"
    page.finish()
    message = "The connection ended before the response was complete. Try again."
    assert page.error_of("button.primary") == message


def test_a_server_that_is_gone_is_said(driver: object, page: Page) -> None:
    server = FakeServer()
    visit = Page(driver, server.url)
    visit.load()
    server.shutdown()
    server.server_close()
    visit.finish()
    assert visit.error_of("button.primary") == "The server does not respond. Is it still running?"


def test_a_key_is_asked_for_used_and_kept_in_this_tab_only(page: Page, fake: FakeServer) -> None:
    fake.key = KEY
    page.load()
    assert page.asks_key()
    title = "return document.getElementById('key-title')?.textContent"
    assert page.run(title) == "This server needs an API key"
    page.keys("wrong", "\ue007")  # the field has the focus; Enter
    page.wait(lambda: page.run(title) == "The server did not accept this API key")
    page.keys(KEY, "\ue007")
    page.wait(lambda: page.view() == "pictures")
    assert page.finish() == "4 images in 0.2 s, seed 0."
    assert page.run("return [Object.values(sessionStorage), localStorage.length, document.cookie]") == [[KEY], 0, ""]
    assert KEY not in page.run("return location.href + document.documentElement.outerHTML")


def test_without_a_key_the_page_says_so_and_can_be_asked_again(page: Page, fake: FakeServer) -> None:
    fake.key = KEY
    page.load()
    page.keys("\ue00c")  # Escape
    notice = page.driver.find_element("id", "notice")
    page.wait(lambda: "without one it does nothing" in notice.text)
    assert page.view() == ""
    notice.find_element("css selector", "button").click()
    page.wait(page.asks_key)
    page.keys(KEY, "\ue007")
    page.wait(lambda: page.view() == "pictures")


def test_a_key_that_is_wanted_later_does_not_lose_the_request(page: Page, fake: FakeServer) -> None:
    page.fill("[name=seed]", 5)
    fake.key = KEY
    page.click("button.primary")
    page.wait(page.asks_key)
    page.keys(KEY, "\ue007")
    assert page.end() == "4 images in 0.2 s, seed 5."


def test_a_server_without_models_says_how_to_start_one(page: Page, fake: FakeServer) -> None:
    fake.models = []
    page.load()
    assert "resgen serve --model" in page.driver.find_element("id", "notice").text


def test_a_server_of_voices_opens_with_speech_and_offers_no_pictures(page: Page, fake: FakeServer) -> None:
    fake.models = [model for model in fake.models if model["modality"] == "speech"]
    page.load("edit")
    assert page.view() == "speech"
    links = page.driver.find_elements("css selector", "nav a")
    assert [link.text for link in links if link.is_displayed()] == ["Speech", "Words"]
    assert page.console() == []


def test_models_that_cannot_be_listed_can_be_asked_for_again(page: Page, fake: FakeServer) -> None:
    fake.fault = {"status": 503, "error": "still loading", "retry_after": 2}
    page.load()
    notice = page.driver.find_element("id", "notice")
    page.wait(lambda: notice.text.startswith("still loading. Try again in 2 seconds."))
    fake.fault = None
    notice.find_element("css selector", "button").click()
    page.wait(lambda: page.view() == "pictures")


def test_a_server_that_still_loads_is_asked_again_by_itself(page: Page, fake: FakeServer) -> None:
    fake.fault = {"status": 503, "error": "the server is loading", "retry_after": 1}
    page.load()
    fake.fault = None
    page.wait(lambda: page.view() == "pictures")


def test_an_earlier_result_is_dimmed_when_a_request_fails(page: Page, fake: FakeServer) -> None:
    opacity = "return getComputedStyle(arguments[0]).opacity"
    page.finish()
    first = page.png()
    assert page.run(opacity, page.one(".hero img")) == "1"
    fake.fault = {"status": 422, "error": "num_steps=6 must lie in 1..4"}
    assert page.finish() == "Not done: see the message beside the field. Below is the earlier result."
    assert page.png() == first and float(page.run(opacity, page.one(".hero img"))) < 0.5
    fake.fault = None
    page.fill("[name=num_steps]", 4)
    page.finish()
    assert page.run(opacity, page.one(".hero img")) == "1"


def test_a_request_that_is_cancelled_before_its_first_step_leaves_the_earlier_result(
    page: Page, fake: FakeServer
) -> None:
    page.finish()
    first = page.png()
    fake.hold_at = 0
    page.fill("[name=seed]", 9)
    page.click("button.primary")
    page.wait(lambda: page.status() == "Generating 4 images …")
    page.click("button.cancel")
    assert page.end() == "Cancelled."
    assert (
        page.png() == first and page.run("return getComputedStyle(arguments[0]).opacity", page.one(".hero img")) == "1"
    )
