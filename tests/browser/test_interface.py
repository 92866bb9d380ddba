"""`/docs`: the interface to read and to try, of the server itself."""

from __future__ import annotations

from browser.page import Page


def open_route(page: Page, method: str, path: str) -> None:
    script = """const wanted = arguments[0] + arguments[1];
        const name = (one) => one.querySelector('.method').textContent + one.querySelector('code').textContent;
        const route = [...document.querySelectorAll('details.route')].find((one) => name(one) === wanted);
        document.querySelectorAll('details.route').forEach((one) => (one.open = one === route));
        route.classList.add('chosen'); return Boolean(route)"""
    page.run("document.querySelectorAll('.chosen').forEach((one) => one.classList.remove('chosen'))")
    assert page.run(script, method, path)


def sent(page: Page) -> str:
    """Press the button of the open route; the first line of its answer."""
    page.run("document.querySelector('.chosen button.primary').click()")
    line = "return document.querySelector('.chosen .answer :is(.status, .error)')?.textContent ?? ''"
    page.wait(lambda: page.run(line) and not page.run(line).startswith("Waiting"))
    return page.run(line)


def shown(page: Page, selector: str) -> str:
    return page.run("return document.querySelector('.chosen ' + arguments[0])?.textContent ?? ''", selector)


def test_every_route_is_there_and_can_be_tried(docs: Page) -> None:
    paths = docs.run(
        "return [...document.querySelectorAll('details.route summary code')].map((one) => one.textContent)"
    )
    assert {"/v1/models", "/v1/images", "/v1/images/edit", "/v1/speech", "/v1/speech/stream", "/metrics"} <= set(paths)
    open_route(docs, "GET", "/v1/models")
    assert sent(docs).startswith("200, application/json")
    assert '"name": "fashion-mnist-small"' in shown(docs, ".answer pre")
    open_route(docs, "POST", "/v1/images")
    assert "num_samples" in shown(docs, ".wide table")
    body = '{"class_ids": ["Bag", "Coat"], "seed": 1, "num_steps": 2, "model": "fashion-mnist-small"}'
    script = """const area = document.querySelector('.chosen textarea'); area.value = arguments[0];
        area.dispatchEvent(new Event('input', {bubbles: true}))"""
    docs.run(script, body)
    assert "curl" in shown(docs, "pre") and '"num_steps": 2' in shown(docs, "pre")
    assert sent(docs).startswith("200, application/json")
    assert docs.run("return document.querySelectorAll('.chosen .answer img').length") == 2
    docs.run(script, '{"num_steps": 0}')
    assert sent(docs).startswith("422: num_steps")
    assert [url for url in docs.requests() if not url.startswith((docs.url, "data:", "blob:", "about:"))] == []


def test_it_fits_a_phone(docs: Page) -> None:
    docs.resize(390, 844, mobile=True)
    for method, path in (("POST", "/v1/images/edit"), ("POST", "/v1/speech")):
        open_route(docs, method, path)
        assert docs.run("return document.documentElement.scrollWidth") <= 390


def test_names_between_backticks_are_shown_as_code(docs: Page) -> None:
    said = "return [...document.querySelectorAll('main .hint, main td')].map((one) => one.textContent).join(' ')"
    assert "audio/speech" in docs.run(said) and "`" not in docs.run(said)
