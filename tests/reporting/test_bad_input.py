"""Degenerate evaluations still give a page, which names what is missing."""

import numpy as np
from reporting.browser import READY, assert_clean
from reporting.evaluations import small_evaluation, write_image

from medseg.evaluation import evaluate
from medseg.reporting import write_report


def test_one_case_of_sixty_structures_is_paged_and_all_can_be_chosen(browser, tmp_path):
    result, images = small_evaluation(tmp_path, 1, num_labels=60, shape=(20, 20, 12))
    browser.open(write_report(result, tmp_path / "report.html", images=images).path)
    assert browser.js("return document.querySelectorAll('svg.dots').length") == 12
    assert "of 60" in browser.js("return document.querySelector('#distributions-place .pager').textContent")
    browser.js("medseg.open(0)")
    browser.wait(READY.format(0))
    assert browser.js("return document.querySelectorAll('#structure option').length") == 61
    browser.js("const s = document.getElementById('structure'); s.value = 59; s.dispatchEvent(new Event('change'))")
    browser.wait_until_drawn()
    assert_clean(browser)


def test_a_truncated_page_shows_an_error(browser, page, tmp_path):
    cut = tmp_path / "cut.html"
    text = page.read_text(encoding="utf-8")
    start = text.index('id="v0-image-0">') + len('id="v0-image-0">')
    cut.write_text(text[: start + 40] + text[text.index("</script>", start) :], encoding="utf-8")
    browser.open(cut)
    browser.js("medseg.open(0)")
    browser.wait("return !document.getElementById('broken').hidden")
    assert "cannot be opened" in browser.js("return document.getElementById('broken').textContent")
    browser.logs()


def test_a_page_without_evaluation_opens(browser, tmp_path):
    browser.open(write_report(None, tmp_path / "report.html", failure="a: <b> is missing").path)
    assert "a: <b> is missing" in browser.js("return document.body.textContent")
    assert_clean(browser)


def test_one_case_has_no_interval_and_no_percentiles(browser, tmp_path):
    result, images = small_evaluation(tmp_path, 1)
    browser.open(write_report(result, tmp_path / "report.html", images=images).path)
    tiles = browser.js("return [...document.querySelectorAll('.tiles li')].map((l) => l.textContent)")
    assert "no interval" in tiles[0]
    assert tiles[1] == "1caseof 1 patient"
    assert browser.js("return document.querySelectorAll('#choices .bar').length") == 1
    browser.js("medseg.open(0)")
    browser.wait(READY.format(0))
    assert_clean(browser)


def test_cases_that_failed_come_first_on_the_page(browser, tmp_path):
    result, images = small_evaluation(tmp_path, 3)
    files = {role: {e["case"]: e[role] for e in result.summary["inputs"]} for role in ("prediction", "reference")}
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    files["prediction"]["case_001"] = tmp_path / "broken.nii.gz"
    labels = {"structure 1": 1, "structure 2": 2}
    left = evaluate(files["prediction"], files["reference"], labels=labels, allow_missing=True, num_draws=2000)
    browser.open(write_report(left, tmp_path / "report.html", images=images).path)
    assert browser.js("return document.querySelector('section').id") == "left-out"
    assert "case_001" in browser.js("return document.querySelector('#left-out tbody').textContent")
    tiles = browser.js("return [...document.querySelectorAll('.tiles li')].map((l) => l.textContent)")
    assert "1case left outsee below" in tiles
    assert browser.js("return document.querySelectorAll('#sheet li').length") == 2
    assert_clean(browser)


def test_a_structure_that_occurs_nowhere_is_shown(browser, tmp_path):
    empty = write_image(tmp_path / "a.nii.gz", np.zeros((9, 8, 7), np.uint8))
    result = evaluate({"a": empty}, {"a": empty}, labels={"tumour": 1}, num_draws=2000)
    browser.open(write_report(result, tmp_path / "report.html").path)
    assert browser.js("return document.querySelector('.tiles b').textContent") == "–"
    assert "no case counts" in browser.js("return document.querySelector('svg.dots').getAttribute('aria-label')")
    browser.js("medseg.open(0)")
    browser.wait(READY.format(0))
    assert browser.js("return document.getElementById('readout').textContent").endswith("prediction: background")
    assert_clean(browser)


def test_cases_of_a_page_without_pictures_can_be_opened(browser, tmp_path):
    result, images = small_evaluation(tmp_path, 3, shape=(48, 48, 32))
    written = write_report(result, tmp_path / "report.html", images=images, max_mb=0.2)
    assert any("Thumbnails of the best 3 cases" in line for line in written.left_out)
    assert any("The viewer opens 0 of 3 cases" in line for line in written.left_out)
    browser.open(written.path)
    browser.click("#sheet button")
    assert "no volume on this page" in browser.js("return document.getElementById('no-volume').textContent")
    assert browser.js("return document.querySelectorAll('#details tbody tr').length") == 2
    assert_clean(browser)
