"""A real headless Chromium, driven through chromedriver's own protocol (W3C WebDriver: JSON over HTTP)."""

from __future__ import annotations

import base64
import io
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

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
]
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


def missing() -> str:
    """Why no browser can be driven here; empty where one can."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    packages = "apt-get install chromium chromium-driver"
    return f"{' and '.join(absent)} not on this machine ({packages})" if absent else ""


def started(folder: Path) -> Iterator[Chromium]:
    """A running browser for a fixture; tests that need it are skipped where there is none."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    running = Chromium(folder)
    yield running
    running.close()


class Chromium:
    """One browser window.

    Args:
        folder: an empty folder for its profile.
    """

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._root = f"http://127.0.0.1:{port}"
        self._driver = subprocess.Popen(
            ["chromedriver", f"--port={port}", "--silent"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        options = {
            "binary": shutil.which("chromium"),
            "args": [*FLAGS, f"--user-data-dir={folder}", "--window-size=1280,900"],
        }
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        try:
            self._wait_for_driver()
            session = self._send("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        except BaseException:
            self._driver.kill()
            raise
        self._root += f"/session/{session['sessionId']}"
        self._send("POST", "/timeouts", {"script": 30_000, "pageLoad": 60_000})

    def close(self) -> None:
        """End the browser and its driver."""
        try:
            self._send("DELETE", "")
        finally:
            self._driver.kill()
            self._driver.wait()

    def open(self, page: Path, fragment: str = "") -> None:
        """Open a file and wait until its scripts have built the page."""
        self._send("POST", "/url", {"url": "about:blank"})
        self.logs()
        self._send("POST", "/url", {"url": page.resolve().as_uri() + fragment})
        if self.js("return document.getElementById('data') !== null"):
            self.wait(
                "return document.documentElement.dataset.ready === 'yes' || !document.getElementById('broken').hidden"
            )

    def js(self, script: str, *arguments: Any) -> Any:
        """The result of a script."""
        return self._send("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def js_async(self, expression: str) -> Any:
        """What a promise gives."""
        script = f"const done = arguments[0]; ({expression}).then(done, (error) => done('error: ' + error))"
        return self._send("POST", "/execute/async", {"script": script, "args": []})

    def wait(self, condition: str, seconds: float = 30) -> None:
        """Wait until a script returns something true."""
        end = time.monotonic() + seconds
        while not self.js(condition):
            if time.monotonic() > end:
                raise TimeoutError(f"never true: {condition}; console: {self.logs()[0]}")
            time.sleep(0.02)

    def find(self, css: str) -> str:
        """The first element of a selector."""
        return self._send("POST", "/element", {"using": "css selector", "value": css})[_ELEMENT]

    def click(self, css: str) -> None:
        """Click the middle of an element as a user does, scrolled to where nothing covers it."""
        self.js("document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", css)
        self._send("POST", f"/element/{self.find(css)}/click", {})

    def type(self, css: str, text: str) -> None:
        """Type into an element; special keys are WebDriver's code points."""
        self._send("POST", f"/element/{self.find(css)}/value", {"text": text})

    def press(self, key: str) -> None:
        """Press a key wherever the focus is."""
        keys = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self._send("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": keys}]})

    def wheel(self, css: str, delta: int) -> None:
        """Turn the mouse wheel over the middle of an element."""
        origin = {_ELEMENT: self.find(css)}
        turn = {"type": "scroll", "origin": origin, "x": 0, "y": 0, "deltaX": 0, "deltaY": delta}
        self._send("POST", "/actions", {"actions": [{"type": "wheel", "id": "wheel", "actions": [turn]}]})

    def picture(self, css: str | None = None) -> np.ndarray:
        """What is on the screen: an element, or the window. RGB, shape (rows, columns, 3)."""
        path = "/screenshot" if css is None else f"/element/{self.find(css)}/screenshot"
        png = base64.b64decode(self._send("GET", path))
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))

    def devtools(self, command: str, **parameters: Any) -> Any:
        """One command of the Chrome DevTools protocol."""
        return self._send("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def logs(self) -> tuple[list[str], list[str]]:
        """Console messages and addresses asked for since the last call."""
        console = [entry["message"] for entry in self._send("POST", "/se/log", {"type": "browser"})]
        events = [json.loads(e["message"])["message"] for e in self._send("POST", "/se/log", {"type": "performance"})]
        asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return console, asked

    def _wait_for_driver(self) -> None:
        for _ in range(500):
            try:
                if self._send("GET", "/status")["ready"]:
                    return
            except OSError:
                pass
            time.sleep(0.02)
        raise TimeoutError("chromedriver did not start")

    def _send(self, method: str, path: str, body: dict | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._root + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=90) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{method} {path}: {json.load(error)['value']['message'].splitlines()[0]}") from None
