"""The viewer under the hands of its readers."""

from reporting.browser import BLUE, ORANGE, READY, has_color
from selenium.webdriver import Keys


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
