"""The page and the server together, with bundled models: what is shown is what the interface answers."""

from __future__ import annotations

import base64
import io
import json
import urllib.request
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from browser.page import Page

TAB, ENTER = "\ue004", "\ue007"


def ask(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def pixels(stored: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(stored)))


@pytest.fixture
def quick(real: Page) -> Page:
    """The page of images with few steps."""
    real.fill("[name=num_steps]", 4)
    return real


def test_pictures_of_a_seed_are_those_of_the_interface(quick: Page, real_url: str) -> None:
    quick.classes("Bag", "Trouser")
    quick.fill("[name=num_samples]", 2)
    quick.fill("[name=seed]", 11)
    status = quick.finish()
    assert status.startswith("4 images in ") and status.endswith("seed 11.")
    body = {
        "class_ids": ["Trouser", "Bag"],
        "num_samples": 2,
        "num_steps": 4,
        "seed": 11,
        "model": "fashion-mnist-small",
    }
    answer = ask(f"{real_url}v1/images", body)
    expected = [base64.b64decode(image["png"]) for image in answer["images"]]
    assert [quick.png(f".thumbs li:nth-child({k + 1}) img") for k in range(4)] == expected
    names = [thumb.text for thumb in quick.all(".thumbs li")]
    assert names == [image["class_name"] for image in answer["images"]]
    assert quick.one(".steps output").text == "4 of 4"
    assert quick.one("canvas").get_attribute("aria-label").startswith("128 of 128 codes known")
    quick.slide(".steps input", 1)
    assert quick.png() != expected[0]
    known = int(quick.one(".heat figcaption").text.split()[0])
    assert 0 < known < 128
    assert quick.console() == []


def test_by_keyboard_from_loading_to_the_first_picture(real: Page) -> None:
    for _ in range(40):
        real.keys(TAB)
        if real.run("return document.activeElement.matches('#view-pictures button.primary')"):
            break
    real.keys(ENTER)
    real.end()
    assert real.png().startswith(b"\x89PNG") and real.one(".hero img").is_displayed()


def test_a_brush_stroke_changes_what_is_painted_and_keeps_the_rest(quick: Page) -> None:
    quick.classes("Bag")
    quick.finish()
    before = pixels(quick.png())
    quick.click(".use-edit")
    quick.wait(lambda: quick.view() == "edit" and quick.one(".source-hint").text.startswith("Generated"))
    quick.stroke(".mask", (0.1, 0.1), (0.9, 0.1))
    quick.click("[name=blend]")
    quick.fill("[name=num_steps]", 4)
    quick.fill("[name=num_samples]", 1)
    quick.fill("[name=seed]", 3)
    assert quick.finish().startswith("1 image in ")
    after = pixels(quick.png())
    assert quick.one("[name=class_id]").get_attribute("value") == "8"  # the class of what was generated
    assert (after[14:] == before[14:]).all()
    assert (after[:6] != before[:6]).any()


def test_the_levels_of_an_uploaded_photograph(real: Page, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photograph.jpg")
    real.go("levels")
    real.one("input.source").send_keys(str(tmp_path / "photograph.jpg"))
    real.wait(lambda: "28 x 28" in real.one(".source-hint").text)
    assert real.finish() == "8 images, from coarse to fine."
    distances = [float(caption.text.split()[-2]) for caption in real.all("ol.levels figcaption")]
    assert distances[0] < distances[-1]


def test_a_text_in_an_uploaded_voice_is_the_interfaces_sound(real: Page, tmp_path: Path) -> None:
    rate_hz = 16000
    noise = np.random.default_rng(0).normal(0, 2000, rate_hz).astype("<i2")  # no voice, but a sound
    with wave.open(str(tmp_path / "voice.wav"), "wb") as file:
        file.setparams((1, 2, rate_hz, 0, "NONE", ""))
        file.writeframes(noise.tobytes())
    real.go("speech")
    real.fill("[name=text]", "two")
    real.fill("[name=num_steps]", 3)
    real.fill("[name=seed]", 5)
    own = real.finish()
    real.click("[name=voice][value=file]")
    real.one("[name=recording]").send_keys(str(tmp_path / "voice.wav"))
    real.fill("[name=prompt_text]", "five")
    status = real.finish()
    assert " of speech in " in status and status.endswith("seed 5."), (status, own, real.errors())
    real.click(".sound .save")
    with wave.open(str(real.downloaded("two-5.wav"))) as file:
        assert file.getnframes() > 0 and file.getnchannels() == 1
    assert real.one(".sound .spectrogram img").is_displayed()
    assert real.console() == []


def test_a_text_that_the_model_cannot_speak_is_named_beside_the_text(real: Page) -> None:
    real.go("speech")
    real.fill("[name=text]", "!!!")
    real.finish()
    assert real.error_of("[name=text]")


def test_a_phone_shows_the_models_own_names_without_scrolling(quick: Page) -> None:
    quick.resize(375, 800, mobile=True)
    quick.finish()
    for view in ("pictures", "edit", "levels", "speech", "words"):
        quick.go(view)
        assert quick.run("return document.documentElement.scrollWidth") <= 375


def test_the_page_asks_its_own_server_only(quick: Page) -> None:
    quick.finish()
    requests = quick.requests()
    assert any(url.endswith("/v1/images/stream") for url in requests)
    assert [url for url in requests if not url.startswith((quick.url, "data:", "blob:", "about:"))] == []
