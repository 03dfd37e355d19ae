"""A headless Chromium, driven by selenium without downloading anything, and what the tests of the pages share."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from selenium.webdriver.remote.webelement import WebElement

# The browser must not ask for anything by itself; as root it needs --no-sandbox. WebGL is off because the viewer must
# work without it.
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-webgl",
    "--disable-3d-apis",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
    "--window-size=1280,900",
]
WAIT_SECONDS = 30

BLUE, ORANGE = (86, 180, 233), (230, 159, 0)
READY = "return document.querySelector('.viewer').dataset.ready === '{}'"


def missing_browser() -> str:
    """Return why no browser can be driven on this machine; an empty string if one can."""
    if importlib.util.find_spec("selenium") is None:
        return "selenium is not installed (pip install 'medseg[test]')"
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"no {' and no '.join(absent)} on this machine (apt-get install chromium chromium-driver)" if absent else ""


class Browser:
    """One browser window with its own profile.

    Args:
        profile: an empty folder.
    """

    def __init__(self, profile: Path) -> None:
        # With a driver and a binary given, selenium looks for neither on the network; the variable makes sure of it.
        os.environ["SE_OFFLINE"] = "true"
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = webdriver.ChromeService(executable_path=str(shutil.which("chromedriver")))
        self.driver = webdriver.Chrome(options=options, service=service)
        self.driver.set_script_timeout(WAIT_SECONDS)

    def close(self) -> None:
        """End the browser and its driver."""
        self.driver.quit()

    def open(self, page: Path) -> None:
        """Open a file and wait until its scripts have built the page."""
        self.driver.get("about:blank")
        self.logs()
        self.driver.get(page.resolve().as_uri())
        if self.js("return document.getElementById('data') !== null"):
            self.wait(
                "return document.documentElement.dataset.ready === 'yes' || !document.getElementById('broken').hidden"
            )

    def js(self, script: str, *arguments: Any) -> Any:
        """Return the result of a script."""
        return self.driver.execute_script(script, *arguments)

    def js_async(self, promise: str) -> Any:
        """Return what a promise resolves to."""
        script = f"const done = arguments[0]; ({promise}).then(done, (error) => done('error: ' + error))"
        return self.driver.execute_async_script(script)

    def wait(self, condition: str) -> None:
        """Wait until a script returns something true."""
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.driver, WAIT_SECONDS, poll_frequency=0.02).until(
            lambda driver: driver.execute_script(condition), f"never true: {condition}"
        )

    def wait_until_drawn(self) -> None:
        """Wait until the next two frames are drawn."""
        self.js_async("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def find(self, css: str) -> WebElement:
        """Return the first element that a selector matches."""
        from selenium.webdriver.common.by import By

        return self.driver.find_element(By.CSS_SELECTOR, css)

    def click(self, css: str) -> None:
        """Click the middle of an element, scrolled to where nothing covers it."""
        self.js("document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", css)
        self.find(css).click()

    def press(self, key: str) -> None:
        """Press a key on the element that has the focus; `selenium.webdriver.Keys` names the special keys."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(key).perform()

    def wheel(self, css: str, delta: int) -> None:
        """Turn the mouse wheel over the middle of an element."""
        from selenium.webdriver import ActionChains
        from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

        ActionChains(self.driver).scroll_from_origin(ScrollOrigin.from_element(self.find(css)), 0, delta).perform()

    def screenshot(self, css: str | None = None) -> np.ndarray:
        """Return an element, or the window, as RGB, shape (rows, columns, 3)."""
        png = self.driver.get_screenshot_as_png() if css is None else self.find(css).screenshot_as_png
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))

    def devtools(self, command: str, **parameters: Any) -> Any:
        """Run one command of the Chrome DevTools protocol."""
        return self.driver.execute_cdp_cmd(command, parameters)

    def logs(self) -> tuple[list[str], list[str]]:
        """Return the console messages and the requested addresses since the last call."""
        console = [entry["message"] for entry in self.driver.get_log("browser")]
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return console, urls


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Start a browser for the session; tests that need it are skipped on machines without one."""
    if reason := missing_browser():
        pytest.skip(reason)
    started = Browser(tmp_path_factory.mktemp("chromium"))
    yield started
    started.close()


def assert_clean(browser: Browser) -> None:
    """Assert that the page logged nothing and requested nothing but itself."""
    console, urls = browser.logs()
    assert console == []
    assert [url for url in urls if not url.startswith(("data:", "file:"))] == []
    assert sum(url.startswith("file:") for url in urls) <= 1


def has_color(picture: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Return True at the pixels that have about this colour."""
    return np.abs(picture.astype(int) - color).max(axis=-1) < 12
