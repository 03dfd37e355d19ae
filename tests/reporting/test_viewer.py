"""The viewer in a real browser: keys, mouse, toggles and channels."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from reporting.browser import BLUE, ORANGE, READY, Browser, assert_clean, has_color
from reporting.evaluations import small_evaluation, write_image
from selenium.webdriver import Keys

from medseg.reporting import write_report


def test_the_wheel_and_the_keys_change_slices(opened):
    opened.js("document.querySelector('.viewer').scrollIntoView()")
    axial = "figure:nth-of-type(1) canvas"
    start = opened.js("return medseg.viewer.position()")
    opened.wheel(axial, -100)
    opened.wait(f"return medseg.viewer.position()[2] === {min(start[2] + 1, 15)}")
    opened.js("document.querySelector(arguments[0]).focus()", axial)
    opened.press(Keys.HOME)
    assert opened.js("return medseg.viewer.position()[2]") == 0
    for _ in range(3):
        opened.press(Keys.ARROW_UP)
    opened.press(Keys.ARROW_DOWN)
    opened.wait_until_drawn()
    assert opened.js("return medseg.viewer.position()") == [start[0], start[1], 2]
    canvas = "document.querySelector('figure canvas')"
    assert opened.js(f"return {canvas}.getAttribute('aria-valuetext')") == "slice 3 of 16"
    slider = "figure:nth-of-type(2) input"
    opened.js(f"document.querySelector('{slider}').focus()")
    before = opened.js("return medseg.viewer.position()[1]")
    opened.press(Keys.ARROW_RIGHT)
    assert opened.js("return medseg.viewer.position()[1]") == min(before + 1, 19)


def test_a_click_moves_the_crosshair_to_that_place(opened):
    opened.js("document.querySelector('.viewer').scrollIntoView()")
    opened.click("figure:nth-of-type(1) canvas")  # its middle
    x, y, _ = opened.js("return medseg.viewer.position()")
    assert abs(x - 11.5) <= 1
    assert abs(y - 9.5) <= 1


def test_toggles_show_and_hide_outlines_and_errors(opened):
    opened.js("document.querySelector('.viewer').scrollIntoView()")
    canvas = "figure:nth-of-type(1) canvas"
    assert has_color(opened.screenshot(canvas), BLUE).any()
    assert has_color(opened.screenshot(canvas), ORANGE).any()
    opened.click("[data-toggle='reference']")
    opened.wait_until_drawn()
    assert not has_color(opened.screenshot(canvas), BLUE).any()
    opened.js("document.querySelector(arguments[0]).focus()", canvas)
    opened.press("p")
    opened.wait_until_drawn()
    assert not has_color(opened.screenshot(canvas), ORANGE).any()
    assert (
        opened.js("return document.querySelector('[data-toggle=prediction]').getAttribute('aria-pressed')") == "false"
    )
    quiet = opened.screenshot(canvas)
    opened.press("e")
    opened.wait_until_drawn()
    assert (opened.screenshot(canvas) != quiet).any()
    opened.press("n")
    opened.wait(READY.format(1))


CHANNELS = 3
LOWEST = (0, 10_000, 20_000)


def channels_of(folder: Path, images: dict[str, Path], noise: int = 500) -> dict[str, Path]:
    """Write three channels of each case, with a different range of values in each channel."""
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
def three_channels(browser: Browser, tmp_path: Path) -> Browser:
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


def test_a_key_and_a_list_choose_the_channel(three_channels: Browser) -> None:
    names = "return [...document.querySelectorAll('#channel option')].map((o) => o.textContent)"
    assert three_channels.js(names) == ["channel 1", "channel 2", "channel 3"]
    assert three_channels.js("return document.getElementById('channel').labels[0].textContent").startswith("channel")
    assert "m next channel" in three_channels.js("return document.querySelector('.keys').textContent")
    three_channels.js("document.querySelector('figure canvas').focus()")
    for lowest in (*LOWEST, LOWEST[0]):
        three_channels.wait(f"return Number(document.getElementById('level').value) > {lowest}")
        assert lowest <= intensity(three_channels) <= lowest + 600
        three_channels.press("m")
    three_channels.js("const s = document.getElementById('channel'); s.value = 2; s.dispatchEvent(new Event('change'))")
    three_channels.wait("return Number(document.getElementById('level').value) > 20000")
    assert LOWEST[2] <= intensity(three_channels) <= LOWEST[2] + 600
    assert_clean(three_channels)


def test_the_next_case_opens_on_the_channel_and_each_keeps_its_window(three_channels: Browser) -> None:
    three_channels.js("const w = document.getElementById('width'); w.value = 123; w.dispatchEvent(new Event('change'))")
    three_channels.js("document.querySelector('figure canvas').focus()")
    three_channels.press("m")
    three_channels.wait("return document.getElementById('channel').value === '1'")
    assert three_channels.js("return Number(document.getElementById('width').value)") != 123
    for step in range(1, CHANNELS):
        three_channels.press("m")
        three_channels.wait(f"return document.getElementById('channel').value === '{(1 + step) % CHANNELS}'")
    assert three_channels.js("return Number(document.getElementById('width').value)") == 123
    three_channels.press("m")
    three_channels.wait("return document.getElementById('channel').value === '1'")
    three_channels.press("n")
    three_channels.wait(READY.format(1))
    assert LOWEST[1] <= intensity(three_channels) <= LOWEST[1] + 600


def test_channels_that_do_not_fit_are_named(tmp_path: Path) -> None:
    result, images = small_evaluation(tmp_path, 1, shape=(64, 64, 52))
    noisy = channels_of(tmp_path, images, noise=9_000)
    written = write_report(result, tmp_path / "report.html", images=noisy, max_mb=0.45)
    assert written.megabytes <= 0.45
    assert "Further channels (channel 2, channel 3): left out of 1 of 1 volumes to fit the page." in written.left_out
