"""What the tests of the page in a browser share."""

from __future__ import annotations

import numpy as np
from reporting.chromium import Chromium

BLUE, ORANGE, VERMILLION = (86, 180, 233), (230, 159, 0), (213, 94, 0)
ESCAPE, ENTER, DOWN, UP, RIGHT, HOME = "\ue00c", "\ue007", "\ue015", "\ue013", "\ue014", "\ue011"
READY = "return document.querySelector('.viewer').dataset.ready === '{}'"


def is_clean(browser: Chromium) -> None:
    """No console message, and nothing asked for but the page itself."""
    console, asked = browser.logs()
    assert console == []
    assert [url for url in asked if not url.startswith(("data:", "file:"))] == []
    assert sum(url.startswith("file:") for url in asked) <= 1


def near(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Which pixels have about that colour."""
    return np.abs(picture.astype(int) - colour).max(axis=-1) < 12


def settled(browser: Chromium) -> None:
    """Wait until what was asked for is drawn."""
    browser.js_async("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
