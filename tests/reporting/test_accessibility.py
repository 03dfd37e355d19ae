"""Accessibility of the page: alternative texts, contrast, and the width of a phone."""

import pytest
from reporting.browser import READY


def test_pictures_have_alternative_texts_with_numbers(opened):
    texts = opened.js("return [...document.querySelectorAll('#sheet img')].map((i) => i.alt)")
    assert len(texts) == 6
    assert all("Dice 0." in text for text in texts)
    labels = opened.js("return [...document.querySelectorAll('svg.dots')].map((s) => s.getAttribute('aria-label'))")
    assert all("Dice of 6 cases from" in text for text in labels)
    unnamed = opened.js(
        "return [...document.querySelectorAll('button, select, input, canvas, textarea')]"
        ".filter((e) => !(e.textContent.trim() || e.labels?.length || e.getAttribute('aria-label')))"
        ".map((e) => e.outerHTML)"
    )
    assert unnamed == []


def test_the_page_fits_a_phone(browser, page):
    browser.devtools("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
    try:
        browser.open(page)
        browser.js("medseg.open(0)")
        browser.wait(READY.format(0))
        assert browser.js("return document.documentElement.scrollWidth") <= 390
    finally:
        browser.devtools("Emulation.clearDeviceMetricsOverride")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_enough_contrast(browser, page, scheme):
    """WCAG 2.2, 1.4.3: a contrast of at least 4.5 for every piece of text."""
    browser.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.open(page)
    browser.js("medseg.open(0)")
    browser.wait(READY.format(0))
    faint = browser.js(CONTRAST)
    browser.devtools("Emulation.setEmulatedMedia", features=[])
    assert faint == []


CONTRAST = """
const probe = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
function rgba(colour) {
  probe.clearRect(0, 0, 1, 1); probe.fillStyle = colour; probe.fillRect(0, 0, 1, 1);
  return [...probe.getImageData(0, 0, 1, 1).data];
}
const linear = (v) => (v <= 10 ? v / 3294.6 : ((v / 255 + 0.055) / 1.055) ** 2.4);
const luminance = (c) => c.slice(0, 3).map(linear)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
function background(node) {
  for (let n = node; n; n = n.parentElement) {
    const c = rgba(getComputedStyle(n).backgroundColor);
    if (c[3] === 255) return c;
  }
  return [255, 255, 255, 255];
}
const faint = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode.parentElement;
  if (!walker.currentNode.textContent.trim() || !node.checkVisibility()) continue;
  if (node.closest('script, style, :disabled, .letter, option, svg')) continue;
  const [a, b] = [luminance(rgba(getComputedStyle(node).color)), luminance(background(node))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) faint.push(`${ratio.toFixed(2)} ${walker.currentNode.textContent.trim().slice(0, 40)}`);
}
return faint;
"""
