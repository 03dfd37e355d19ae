"""The viewer under the hands of its readers."""

from reporting.browsing import BLUE, DOWN, HOME, ORANGE, READY, RIGHT, UP, near, settled


def test_the_wheel_and_the_keys_change_slices(opened):
    opened.js("document.querySelector('.viewer').scrollIntoView()")
    axial = "figure:nth-of-type(1) canvas"
    start = opened.js("return medseg.viewer.position()")
    opened.wheel(axial, -100)
    opened.wait(f"return medseg.viewer.position()[2] === {min(start[2] + 1, 15)}")
    opened.js("document.querySelector(arguments[0]).focus()", axial)
    opened.press(HOME)
    assert opened.js("return medseg.viewer.position()[2]") == 0
    for _ in range(3):
        opened.press(UP)
    opened.press(DOWN)
    settled(opened)
    assert opened.js("return medseg.viewer.position()") == [start[0], start[1], 2]
    canvas = "document.querySelector('figure canvas')"
    assert opened.js(f"return {canvas}.getAttribute('aria-valuetext')") == "slice 3 of 16"
    slider = "figure:nth-of-type(2) input"
    opened.js(f"document.querySelector('{slider}').focus()")
    before = opened.js("return medseg.viewer.position()[1]")
    opened.press(RIGHT)
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
    assert near(opened.picture(canvas), BLUE).any()
    assert near(opened.picture(canvas), ORANGE).any()
    opened.click("[data-toggle='reference']")
    settled(opened)
    assert not near(opened.picture(canvas), BLUE).any()
    opened.js("document.querySelector(arguments[0]).focus()", canvas)
    opened.press("p")
    settled(opened)
    assert not near(opened.picture(canvas), ORANGE).any()
    assert (
        opened.js("return document.querySelector('[data-toggle=prediction]').getAttribute('aria-pressed')") == "false"
    )
    quiet = opened.picture(canvas)
    opened.press("e")
    settled(opened)
    assert (opened.picture(canvas) != quiet).any()
    opened.press("n")
    opened.wait(READY.format(1))
