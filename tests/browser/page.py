"""What the tests do with the page: find controls as a person does, press, type, wait, look."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WAIT_S = 120
_SHOWN = ".view:not([hidden])"


class Page:
    """A page in a browser. Elements are found by CSS selectors in the view that is shown."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver, self.url = driver, url

    def load(self, view: str = "") -> None:
        """Open the page again and wait until it has its models, or a question."""
        self.driver.get("about:blank")  # ends an earlier page, which could still complain of a request
        for log in ("browser", "performance"):
            self.driver.get_log(log)
        self.driver.get(self.url + (f"#{view}" if view else ""))
        self.wait(lambda: self.asks_key() or not self.is_starting())

    def is_starting(self) -> bool:
        return self.run(
            "const n = document.getElementById('notice'); return !n.hidden && n.textContent.startsWith('Asking')"
        )

    def asks_key(self) -> bool:
        return self.run("return document.getElementById('key')?.open ?? false")

    def restore(self) -> None:
        """Undo what a test changed in the browser."""
        self.run("sessionStorage.clear()")
        for command in ("Emulation.clearDeviceMetricsOverride", "Emulation.setEmulatedMedia"):
            self.driver.execute_cdp_cmd(command, {})

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: Callable[[], Any], what: str = "") -> Any:
        """The condition's first true value."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            if value := condition():
                return value
            time.sleep(0.05)
        raise AssertionError(f"waited {WAIT_S} s in vain: {what or condition}; status: {self.status()!r}")

    def view(self) -> str:
        return self.run("return document.querySelector('.view:not([hidden])')?.id.slice(5) ?? ''")

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", f"{_SHOWN} :is({selector})")

    def one(self, selector: str) -> Any:
        (element,) = self.all(selector)
        return element

    def click(self, selector: str) -> None:
        """Press it where it is not under the bar at the bottom of the window, once the page has stopped scrolling."""
        from selenium.common.exceptions import ElementClickInterceptedException

        element = self.one(selector)

        def press() -> bool:
            self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
            try:
                element.click()
            except ElementClickInterceptedException:
                return False
            return True

        self.wait(press, f"a press on {selector} that nothing intercepts")

    def fill(self, selector: str, value: object) -> None:
        element = self.one(selector)
        element.clear()
        element.send_keys(str(value))

    def slide(self, selector: str, value: int) -> None:
        """Move a slider as a person would, with its events."""
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))"
        self.run(script, self.one(selector), value)

    def choose(self, selector: str, text: str) -> None:
        from selenium.webdriver.support.select import Select

        Select(self.one(selector)).select_by_visible_text(text)

    def go(self, view: str) -> None:
        self.driver.find_element("css selector", f"nav a[href='#{view}']").click()
        self.wait(lambda: self.view() == view)

    def classes(self, *names: str) -> None:
        """Check these classes and no others."""
        script = f"""return [...document.querySelectorAll('{_SHOWN} .chip')]
            .filter((c) => c.control.checked !== arguments[0].includes(c.textContent)).map((c) => c.control)"""
        for box in self.run(script, names):
            box.click()

    def status(self) -> str:
        return self.run(f"return document.querySelector('{_SHOWN} .status')?.textContent ?? ''")

    def finish(self, selector: str = "button.primary") -> str:
        """Press the button and wait for the end; what the status says."""
        self.click(selector)
        return self.end()

    def end(self) -> str:
        self.wait(
            lambda: self.run(f"return document.querySelector('{_SHOWN} button.cancel').hidden"), "the request's end"
        )
        return self.status()

    def errors(self) -> list[str]:
        return self.run(f"return [...document.querySelectorAll('{_SHOWN} .error')].map((e) => e.innerText)")

    def error_of(self, selector: str) -> str:
        """The message that a control is described by."""
        script = "return document.getElementById(arguments[0].id + '-error')?.textContent ?? ''"
        element = self.one(selector)
        assert element.get_attribute("aria-invalid") == "true", "the control is not marked as invalid"
        assert f"{element.get_attribute('id')}-error" in element.get_attribute("aria-describedby").split()
        return self.run(script, element)

    def png(self, selector: str = ".hero img") -> bytes:
        """The bytes of an image that is shown."""
        source = self.one(selector).get_attribute("src")
        assert source.startswith("data:image/png;base64,")
        return base64.b64decode(source.split(",")[1])

    def stroke(self, selector: str, *points: tuple[float, float]) -> None:
        """Draw with the mouse; points are shares of the element's width and height."""
        from selenium.webdriver.common.action_chains import ActionChains

        element = self.one(selector)
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        width, height = element.size["width"], element.size["height"]
        offsets = [(round((x - 0.5) * width), round((y - 0.5) * height)) for x, y in points]
        actions = (
            ActionChains(self.driver, duration=30).move_to_element_with_offset(element, *offsets[0]).click_and_hold()
        )
        for offset in offsets[1:]:
            actions.move_to_element_with_offset(element, *offset)
        actions.release().perform()

    def keys(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def focus(self) -> Any:
        return self.driver.switch_to.active_element

    def resize(self, width: int, height: int, *, mobile: bool = False) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def media(self, **features: str) -> None:
        """Set `prefers_color_scheme` or `prefers_reduced_motion`."""
        selection = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": selection})

    def downloaded(self, name: str) -> Path:
        """The file once it is whole: Chromium holds its name with an empty file until then."""
        file = self.driver.downloads / name
        self.wait(lambda: file.exists() and file.stat().st_size > 0, f"the download {name}")
        return file

    def console(self) -> list[str]:
        """What the browser complained of since the page was loaded."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def requests(self) -> list[str]:
        """The addresses the page asked for since it was loaded."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
