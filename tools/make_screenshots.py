"""Take the screenshots of the server's page: every view with a result, from bundled models, in headless Chromium.

For example:

    python tools/make_screenshots.py --out docs/results

starts a server of its own, asks it as a person would, and writes page-arrival, page-pictures, page-edit-dark,
page-levels, page-speech, page-words, page-phone-dark and page-interface as PNG files. It needs selenium, chromium and
chromedriver. Seeds are fixed; the seconds that the page shows are those of this machine.
"""

from __future__ import annotations

import base64
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser.page import Page  # noqa: E402 (the path must be set first)

MODELS = ("avatars64", "fashion-mnist-small", "spoken-digits-small")
START_S = 600
DESK, PHONE = (1280, 900), (390, 844)


@dataclass(frozen=True, kw_only=True)
class MakeScreenshots:
    """Write page-NAME.png for every scene."""

    out: Path = Path("docs/results")
    """Folder for the screenshots."""
    only: tuple[str, ...] = ()
    """Names of scenes, all of them by default."""

    def draw(self) -> None:
        if unknown := sorted(set(self.only) - set(SCENES)):
            raise SystemExit(f"unknown scene {unknown[0]!r}: one of {', '.join(SCENES)}")
        self.out.mkdir(parents=True, exist_ok=True)
        with serving() as url, browsing() as driver:
            for name in self.only or SCENES:
                page = Page(driver, url)
                scheme, width, height = ("dark" if name.endswith("dark") else "light"), *DESK
                if name.startswith("phone"):
                    width, height = PHONE
                page.media(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
                page.resize(width, height, mobile=width < 500)
                SCENES[name](page)
                (self.out / f"page-{name}.png").write_bytes(whole(page))
                print(self.out / f"page-{name}.png")


def whole(page: Page) -> bytes:
    """The page from its top to its end as a PNG file, the pointer and the focus on nothing."""
    page.run("document.activeElement.blur()")
    page.driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": 1, "y": 1})
    width, height = page.run(
        "scrollTo({top: 0, behavior: 'instant'}); return [innerWidth, document.documentElement.scrollHeight]"
    )
    page.resize(width, height, mobile=width < 500)  # bars that stay in the window then stand where they belong
    return base64.b64decode(page.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"])


@contextmanager
def serving() -> Iterator[str]:
    """`resgen serve` with the models, in a process of its own; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/"
    command = [sys.executable, "-c", "from resgen.cli.main import main; main()", "serve", "--port", str(port)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([*command, "--model", *MODELS], stdout=log, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + START_S
            while not _lists_models(url):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise SystemExit(f"the server did not start: {log.read()[-2000:]}")
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            process.wait()


def _lists_models(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}v1/models", timeout=5):
            return True
    except OSError:  # not there yet, or a status of 503 while it loads
        return False


@contextmanager
def browsing() -> Iterator[Any]:
    """Chromium without a window."""
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not chromedriver:
        raise SystemExit("chromium or chromedriver is missing: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--mute-audio"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    try:
        yield driver
    finally:
        driver.quit()


def arrival(page: Page) -> None:
    page.load("pictures")
    samples_shown(page)


def pictures(page: Page) -> None:
    page.load("pictures")
    page.choose("[name=model]", "fashion-mnist-small")
    page.classes("Dress", "Sneaker", "Bag", "Ankle boot")
    for name, value in {"num_samples": 3, "num_steps": 16, "seed": 3}.items():
        page.fill(f"[name={name}]", value)
    finish(page)
    page.click(".thumbs li:nth-child(11) button")
    steps = page.run("return Number(arguments[0].max)", page.one(".steps input"))  # a slow machine leaves out some
    page.slide(".steps input", round(0.8 * steps))


def edit(page: Page) -> None:
    take_sample(page, "edit", "fashion-mnist-small", "Bag")
    page.stroke(".easel .mask", *((x, y) for y in (0.1, 0.2, 0.3, 0.4) for x in (0.25, 0.75)))
    finish(page)


def levels(page: Page) -> None:
    take_sample(page, "levels", "fashion-mnist-small", "Ankle boot")
    page.wait(lambda: len(page.all("ol.levels li")) == 8)
    page.end()


def speech(page: Page) -> None:
    page.load("speech")
    page.wait(lambda: page.all(".spoken-samples img"))
    page.fill("[name=text]", "Three one. Four zero nine.")
    page.fill("[name=seed]", 1)
    finish(page)


def words(page: Page) -> None:
    page.load("words")
    page.wait(lambda: page.all(".offer img"))
    page.click(".offer li:nth-child(1) .change-words")
    said = page.one("[name=input_text]").get_attribute("value").split()
    page.fill("[name=text]", " ".join([*said[:1], "five" if said[1] != "five" else "nine", *said[2:]]))
    finish(page)


def phone(page: Page) -> None:
    page.load("pictures")
    samples_shown(page)
    finish(page)


def interface(page: Page) -> None:
    page.driver.get(f"{page.url}docs")
    page.wait(lambda: page.run("return document.querySelectorAll('details.route').length"))
    page.run(
        """const route = [...document.querySelectorAll('details.route')]
             .find((one) => one.querySelector('summary code').textContent === '/v1/images');
           route.open = true; const body = route.querySelector('textarea');
           body.value = '{"model": "avatars64", "class_ids": ["lorelei", "micah", "thumbs"], "seed": 0}';
           body.dispatchEvent(new Event('input', {bubbles: true})); route.querySelector('button.primary').click()"""
    )
    said = "return document.querySelector('details[open] .answer :is(.status, .error)')?.textContent ?? ''"
    answer = page.wait(lambda: page.run(said) if not page.run(said).startswith("Waiting") else "")
    if not answer.startswith("200"):
        raise SystemExit(f"the interface refused: {answer}")


def finish(page: Page) -> None:
    """Press the button and wait for the result."""
    page.finish()
    if errors := page.errors():
        raise SystemExit(f"the page refused: {errors[0]}")


def samples_shown(page: Page) -> None:
    """Wait for what the model draws by itself."""
    page.wait(lambda: page.all(".gallery.samples .thumbs img, .offer .thumbs img"))


def take_sample(page: Page, view: str, model: str, name: str) -> None:
    """The view with the model's own image of a class in it."""
    page.load(view)
    page.choose("[name=model]", model)
    page.wait(lambda: any(one.text == name for one in page.all(".offer .thumbs button")))
    next(one for one in page.all(".offer .thumbs button") if one.text == name).click()
    page.wait(lambda: page.one(".source-hint").text.startswith("Made by"))


SCENES = {
    "arrival": arrival,
    "pictures": pictures,
    "edit-dark": edit,
    "levels": levels,
    "speech": speech,
    "words": words,
    "phone-dark": phone,
    "interface": interface,
}

if __name__ == "__main__":
    tyro.cli(MakeScreenshots).draw()
