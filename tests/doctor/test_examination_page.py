"""The page shows each offender, names its problem, and loads nothing."""

import base64
import io
import re

import numpy as np
import pytest
from doctor.data_sets import SPOILT, label_file, names, write_data_set
from PIL import Image
from reporting.browser import assert_clean, browser, has_color
from reporting.test_accessibility import CONTRAST

from medseg.datasets import read_manifest
from medseg.doctor import examine
from medseg.doctor.examination_page import write_page
from medseg.doctor.offender_pictures import NON_FINITE_RGB, RING_RGB, PictureBook

__all__ = ["browser"]

RULES = ("grid", "non-finite", "tiny-piece", "near-duplicate", "spacing", "float-label")


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """Examine a data set with many problems; one case name contains what HTML would take for a tag."""
    folder = write_data_set(tmp_path_factory.mktemp("page") / "<b>livers", names(12))
    manifest = read_manifest(folder)
    for rule in RULES:
        next(problem for problem in SPOILT if problem.rule == rule).spoil(folder)
    label_file(folder, "scan_009").write_bytes(b"")
    return examine(manifest, use_cache=False)


@pytest.fixture(scope="module")
def page(result, tmp_path_factory):
    return write_page(result, tmp_path_factory.mktemp("out") / "doctor.html")


def picture(result, rule):
    """Return the first picture of a rule's finding as RGB."""
    finding = next(finding for finding in result.findings if finding.rule == rule)
    return [
        np.asarray(Image.open(io.BytesIO(one.png)).convert("RGB")) for one in PictureBook(result.dataset).draw(finding)
    ]


def test_the_page_loads_nothing_and_shows_every_finding(browser, page, result):
    browser.open(page)
    assert_clean(browser)
    text = browser.js("return document.body.innerText")
    for finding in result.findings:
        assert finding.found in text
        assert finding.cases[0] in text
        assert finding.expected in text
        assert finding.advice.replace("`", "") in text
    assert browser.js("return document.querySelector('main b b') === null")
    tiles = browser.js("return [...document.querySelectorAll('.tiles b')].map((b) => b.textContent)")
    assert tiles == ["12", *(str(result.counts[severity]) for severity in ("error", "warning", "note"))]


def test_every_readable_offender_has_a_picture_with_an_alternative_text(browser, page, result):
    browser.open(page)
    shown = browser.js("return [...document.querySelectorAll('.offenders img')].map((i) => [i.alt, i.naturalWidth])")
    assert all(width > 100 for _, width in shown)
    for rule in RULES:
        finding = next(finding for finding in result.findings if finding.rule == rule)
        assert any(finding.found in alt and finding.subject in alt for alt, _ in shown)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_enough_contrast_and_fit_a_phone(browser, page, scheme):
    browser.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.devtools("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
    try:
        browser.open(page)
        assert browser.js(CONTRAST) == []
        assert browser.js("return document.documentElement.scrollWidth") <= 390
    finally:
        browser.devtools("Emulation.setEmulatedMedia", features=[])
        browser.devtools("Emulation.clearDeviceMetricsOverride")


def test_the_theme_can_be_chosen(browser, page):
    browser.open(page)
    browser.click("#theme")
    assert browser.js("return document.documentElement.dataset.theme") == "light"


def test_pictures_mark_the_voxel_and_its_values(result):
    (planes,) = picture(result, "non-finite")
    assert has_color(planes, NON_FINITE_RGB).sum() > 20
    (planes,) = picture(result, "tiny-piece")
    assert has_color(planes, RING_RGB).sum() > 50
    assert len(picture(result, "near-duplicate")) == 2


def test_different_grids_are_drawn_with_and_without_the_headers(result):
    by_header, by_voxel = picture(result, "grid")
    assert by_header.shape == by_voxel.shape
    assert (by_header != by_voxel).any()


def test_a_page_without_images_and_one_without_findings(tmp_path, result):
    text = write_page(result, tmp_path / "plain.html", with_images=False).read_text(encoding="utf-8")
    assert "data:image/png" not in text
    assert "patient images" not in text
    clean = examine(write_data_set(tmp_path / "livers"), use_cache=False)
    text = write_page(clean, tmp_path / "clean.html").read_text(encoding="utf-8")
    assert "No rule found a problem" in text


def test_pictures_stop_at_the_limit_of_the_page(tmp_path, result):
    text = write_page(result, tmp_path / "small.html", max_mb=0.004).read_text(encoding="utf-8")
    pictures = re.findall(r"data:image/png;base64,([^\"]+)", text)
    assert 0 < len(pictures) < 5
    assert all(base64.b64decode(one).startswith(b"\x89PNG") for one in pictures)
    for finding in result.findings:
        assert finding.cases[0] in text
