"""The rules of axe-core: contrast, names and labels, order of headings, what the keyboard reaches.

axe-core is no part of the project. Without it these tests are skipped; this fetches it:

    npm install --no-save --prefix build/axe axe-core@4.14.1
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from browser.fake import FakeServer
from browser.page import Page
from browser.test_interface import open_route, sent
from browser.test_screens import RESULT, SCHEMES, SIZES, arrive, result_of

AXE = Path(__file__).parents[2] / "build/axe/node_modules/axe-core/axe.min.js"
pytestmark = pytest.mark.skipif(
    not AXE.is_file(), reason="needs axe-core: npm install --no-save --prefix build/axe axe-core@4.14.1"
)
_RUN = """
const done = arguments[arguments.length - 1];
axe.run(document, {resultTypes: ['violations']}).then((result) => done(result.violations.map((one) =>
  one.id + ': ' + one.help + ' ' + one.nodes.map((node) => node.target + ' ' + node.failureSummary).join('; '))),
  (error) => done(['axe failed: ' + error]));
"""


def violations(page: Page) -> list[str]:
    if not page.run("return 'axe' in window"):
        page.run(AXE.read_text(encoding="utf-8"))
    page.driver.set_script_timeout(120)
    found: Any = page.driver.execute_async_script(_RUN)
    return list(found)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("view", RESULT)
def test_no_rule_is_broken(page: Page, fake: FakeServer, view: str, size: str) -> None:
    """On arrival, with a result, and with a mistake and an earlier result that is dimmed."""
    arrive(page, view, size)
    assert violations(page) == []
    result_of(page, view)
    assert violations(page) == []
    fake.fault = {"status": 422, "error": "num_steps=6 must lie in 1..4"}
    page.finish()
    assert page.errors() and violations(page) == []


@pytest.mark.parametrize("size", SIZES)
def test_no_rule_is_broken_in_the_interface(docs: Page, size: str) -> None:
    """On arrival, and with routes that are open: a form, JSON, an answer with images, and a refusal."""
    docs.media(prefers_color_scheme=SCHEMES[size], prefers_reduced_motion="reduce")
    docs.resize(*SIZES[size], mobile=size == "phone")
    assert violations(docs) == []
    open_route(docs, "POST", "/v1/speech/edit")
    assert sent(docs).startswith("422") and violations(docs) == []
    open_route(docs, "GET", "/v1/images/samples")
    assert sent(docs).startswith("200") and violations(docs) == []


def test_axe_finds_what_is_wrong(page: Page) -> None:
    page.run("document.querySelector('label[for=pictures-seed]').remove()")
    assert any(found.startswith("label: ") for found in violations(page))
