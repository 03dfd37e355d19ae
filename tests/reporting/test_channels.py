"""A case of several channels: all can be looked at, in a real browser."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from reporting.browser import READY, Browser, assert_clean
from reporting.evaluations import small_evaluation, write_image

from medseg.reporting import write_report

CHANNELS = 3
LOWEST = (0, 10_000, 20_000)


def channels_of(folder: Path, images: dict[str, Path], noise: int = 500) -> dict[str, Path]:
    """Three channels of each case, whose values say which one it is."""
    rng = np.random.default_rng(0)
    found = {}
    for case, path in images.items():
        shape = nib.load(path).shape
        for number, lowest in enumerate(LOWEST):
            image = (lowest + 1 + rng.integers(0, noise, shape)).astype(np.int16)
            name = f"{case}_{number:04d}"
            found[name] = write_image(folder / "channels" / f"{name}.nii.gz", image)
    return found


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Browser:
    result, images = small_evaluation(tmp_path, 3, shape=(16, 14, 12))
    written = write_report(result, tmp_path / "report.html", images=channels_of(tmp_path, images))
    assert written.left_out == ()
    browser.open(written.path)
    browser.js("medseg.open(0)")
    browser.wait(READY.format(0))
    return browser


def intensity(browser: Browser) -> float:
    browser.wait_until_drawn()
    readout = browser.js("return document.getElementById('readout').textContent")
    return float(readout.split("intensity about ")[1].split("reference")[0])


def test_a_key_and_a_list_choose_the_channel(opened: Browser) -> None:
    names = "return [...document.querySelectorAll('#channel option')].map((o) => o.textContent)"
    assert opened.js(names) == ["channel 1", "channel 2", "channel 3"]
    assert opened.js("return document.getElementById('channel').labels[0].textContent").startswith("channel")
    assert "m next channel" in opened.js("return document.querySelector('.keys').textContent")
    opened.js("document.querySelector('figure canvas').focus()")
    for lowest in (*LOWEST, LOWEST[0]):
        opened.wait(f"return Number(document.getElementById('level').value) > {lowest}")
        assert lowest <= intensity(opened) <= lowest + 600
        opened.press("m")
    opened.js("const s = document.getElementById('channel'); s.value = 2; s.dispatchEvent(new Event('change'))")
    opened.wait("return Number(document.getElementById('level').value) > 20000")
    assert LOWEST[2] <= intensity(opened) <= LOWEST[2] + 600
    assert_clean(opened)


def test_the_next_case_opens_on_the_channel_and_each_keeps_its_window(opened: Browser) -> None:
    opened.js("const w = document.getElementById('width'); w.value = 123; w.dispatchEvent(new Event('change'))")
    opened.js("document.querySelector('figure canvas').focus()")
    opened.press("m")
    opened.wait("return document.getElementById('channel').value === '1'")
    assert opened.js("return Number(document.getElementById('width').value)") != 123
    for step in range(1, CHANNELS):
        opened.press("m")
        opened.wait(f"return document.getElementById('channel').value === '{(1 + step) % CHANNELS}'")
    assert opened.js("return Number(document.getElementById('width').value)") == 123
    opened.press("m")
    opened.wait("return document.getElementById('channel').value === '1'")
    opened.press("n")
    opened.wait(READY.format(1))
    assert LOWEST[1] <= intensity(opened) <= LOWEST[1] + 600


def test_channels_that_do_not_fit_are_named(tmp_path: Path) -> None:
    result, images = small_evaluation(tmp_path, 1, shape=(64, 64, 52))
    noisy = channels_of(tmp_path, images, noise=9_000)
    written = write_report(result, tmp_path / "report.html", images=noisy, max_mb=0.45)
    assert written.megabytes <= 0.45
    assert "Further channels (channel 2, channel 3): left out of 1 of 1 volumes to fit the page." in written.left_out
