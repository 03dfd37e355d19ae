"""The page makes no request, and holds the compared label maps exactly."""

import hashlib

from reporting.browser import READY, assert_clean
from reporting.test_report import block


def test_the_page_requests_nothing_and_logs_nothing(browser, page):
    browser.open(page)
    assert browser.js("return document.createElement('canvas').getContext('webgl')") is None
    for case in range(6):
        browser.js("medseg.open(arguments[0])", case)
        browser.wait(READY.format(case))
    for button in ("[data-view='table']", "#theme", "#files summary", "[data-copy]"):
        browser.click(button)
    browser.wait_until_drawn()
    assert_clean(browser)
    assert browser.js("return medseg.volumes.decodedNow()") == [3, 4, 5]


def test_scripts_cannot_reach_the_network(browser, page):
    browser.open(page)
    assert "Failed to fetch" in browser.js_async("fetch('https://example.org/')")
    browser.logs()


def test_label_bytes_and_image_bytes_reach_the_viewer_exactly(browser, page):
    browser.open(page)
    text = page.read_text(encoding="utf-8")
    for number in (0, 5):
        for role in ("reference", "prediction", "image-0"):
            digest = browser.js_async(
                f"medseg.volumes.get({number}, '{role}').then((bytes) => crypto.subtle.digest('SHA-256', bytes))"
                ".then((d) => [...new Uint8Array(d)])"
            )
            assert bytes(digest) == hashlib.sha256(block(text, f"v{number}-{role}")).digest()
