"""A browser without a window, and the servers it visits."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from browser.fake import FakeServer, sound
from browser.page import Page

START_S = 600
_RESGEN = "from resgen.cli.main import main; main()"
_MODELS = ("fashion-mnist-small", "spoken-digits-small")


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """Chromium with its microphone and downloads set for tests; one for all tests."""
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not find_spec("selenium") or not chromium or not chromedriver:
        pytest.skip("needs selenium, chromium and chromedriver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-features=BackForwardCache",  # pages that are left cost time
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        "--window-size=1280,1000",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    folder = tmp_path_factory.mktemp("downloads")
    preferences = {"download.default_directory": str(folder), "profile.default_content_settings.popups": 0}
    options.add_experimental_option("prefs", preferences)
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    driver.downloads = folder
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def fake_server() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def fake(fake_server: FakeServer) -> FakeServer:
    """The stand-in, without the faults of the test before."""
    fake_server.reset()
    return fake_server


@pytest.fixture
def page(driver: object, fake: FakeServer) -> Iterator[Page]:
    """The page of the stand-in, just loaded, with every answer that it asks for on arrival."""
    page = Page(driver, fake.url)
    page.load()
    done = "return performance.getEntriesByType('resource').filter((one) => one.initiatorType === 'fetch').length"
    page.wait(lambda: page.run(done) == 4, "models, samples of images and of speech, voices")
    yield page
    page.restore()


@pytest.fixture(scope="session")
def real_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`resgen serve` with two bundled models in a process of its own."""
    if missing := [name for name in ("fastapi", "uvicorn", "python_multipart") if not find_spec(name)]:
        pytest.skip(f"the server needs {', '.join(missing)}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    command = [sys.executable, "-c", _RESGEN, "serve", "--model", *_MODELS, "--port", str(port)]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=Path(__file__).parent)
    url = f"http://127.0.0.1:{port}/"
    try:
        _wait_for(url, process, log)
        yield url
    finally:
        process.kill()  # how it ends in order is tested elsewhere
        process.wait()


def _wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    """Until the server lists its models."""
    for _ in range(10 * START_S):
        if process.poll() is not None:
            pytest.fail(f"the server ended: {log.read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(f"{url}v1/models", timeout=5):
                return
        except urllib.error.HTTPError as error:
            error.close()
        except OSError:
            pass
        time.sleep(0.1)
    pytest.fail(f"the server did not start within {START_S} s: {log.read_text()[-2000:]}")


@pytest.fixture
def real(driver: object, real_url: str) -> Iterator[Page]:
    """The page of the server itself, just loaded."""
    page = Page(driver, real_url)
    page.load()
    yield page
    page.restore()


@pytest.fixture
def docs(real: Page) -> Page:
    """`/docs` of the server itself, with its routes."""
    real.driver.get(f"{real.url}docs")
    real.wait(lambda: real.driver.find_elements("css selector", "details.route"))
    return real


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A sound file to upload."""
    path = tmp_path / "me.wav"
    path.write_bytes(sound())
    return path
