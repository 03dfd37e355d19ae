"""The page of predictions, without any reference: as a file and in a real browser."""

from __future__ import annotations

import json

import numpy as np
import pytest
from reporting.browser import READY, assert_clean, has_color
from reporting.predicted_cases import PLAN, cohort, done, failed, fingerprint, flat_cohort, flat_plan, labels_of
from reporting.test_accessibility import CONTRAST
from reporting.test_report import block, sections_of
from selenium.webdriver import Keys

from medseg.errors import OptionError
from medseg.figures.canvas import label_palette, rgb
from medseg.inference import CaseResult
from medseg.reporting import write_prediction_report
from medseg.reporting.predictions import axis_range
from medseg.reporting.structure_sizes import FAR, measure_sizes

SECTIONS = ["first", "volumes", "cases", "viewer", "left-out"]
COLORS = [rgb(color) for color in label_palette(2)]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[CaseResult]:
    return cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def written(results, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "predictions.html"
    return write_prediction_report(results, path, PLAN, fingerprint())


def data_of(written) -> dict:
    return json.loads(block(written.path.read_text(encoding="utf-8"), "data"))


def test_suspicious_cases_come_first_then_failed_ones_then_the_least_usual(written):
    cases = data_of(written)["cases"]
    assert [case["name"] for case in cases[:3]] == ["tiny", "no_head", "broken"]
    assert [case["status"] for case in cases] == ["suspicious", "failed", "failed"] + ["done"] * 7
    sizes = data_of(written)["values"]["size"][3:]
    fronts, median = [row[0] for row in sizes], data_of(written)["means"]["front"]["size"]["value"]
    factors = [abs(np.log(front / median)) for front in fronts]
    assert factors[0] == max(factors)


def test_numbers_reasons_and_lines_are_those_of_the_results(written, results):
    data = data_of(written)
    cases = {case["name"]: (case, data["values"]["size"][n]) for n, case in enumerate(data["cases"])}
    for result in results:
        case, sizes = cases[result.case]
        expected = [result.volumes_ml.get(name) for name in ("front", "back")]
        assert sizes == (pytest.approx(expected, rel=1e-4) if result.volumes_ml else [None, None])
        assert case["reasons"] == ([result.message] if result.status == "failed" else result.suspicions)
    page = written.path.read_text(encoding="utf-8")
    assert sections_of(page) == SECTIONS
    for line in ("no_head.nii.gz: the regions were not found", "front: 0.05 ml, but 0.50 to 1.50 ml in training",
                 "contains patient images", "Research use only", "balls_segmentation", "ab" * 32):  # fmt: skip
        assert line in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


def test_a_scan_that_cannot_be_read_is_named_and_one_that_can_be_read_is_shown(written):
    (line,) = [line for line in written.left_out if line.startswith("broken")]
    assert "no picture" in line
    data = data_of(written)
    names = [data["cases"][view["case"]]["name"] for view in data["views"]]
    assert "no_head" in names
    assert "broken" not in names


def test_label_maps_in_the_page_are_exact(written):
    page, data = written.path.read_text(encoding="utf-8"), data_of(written)
    number = next(n for n, view in enumerate(data["views"]) if data["cases"][view["case"]]["name"] == "tiny")
    stored = np.frombuffer(block(page, f"v{number}-prediction"), np.uint8)
    assert np.bincount(stored, minlength=3)[1:].tolist() == np.bincount(labels_of(2.0, 5.5).ravel())[1:].tolist()


@pytest.mark.parametrize(("factor", "is_far"), [(1.3, False), (4.0, True)])
def test_a_volume_far_from_the_others_is_unusual_without_training_data(factor, is_far):
    rng = np.random.default_rng(0)
    volumes = [*np.exp(rng.normal(0, 0.1, 20)), factor]
    given = [CaseResult(str(n), "done", "x", volumes_ml={"front": v, "back": 1.0}) for n, v in enumerate(volumes)]
    sizes = measure_sizes(given, ["front", "back"], None, is_share=False, problems={})
    deviation = 1.4826 * np.median(np.abs(np.log(volumes) - np.median(np.log(volumes))))
    expected = [abs(np.log(v) - np.median(np.log(volumes))) > 3.5 * deviation for v in volumes]
    assert [row[0] == FAR for row in sizes.outcomes] == expected
    assert expected[-1] == is_far
    assert {row[1] for row in sizes.outcomes} == {"usual"}


@pytest.mark.parametrize(
    ("values", "limits"), [([1.05, 2.59], []), ([0.0, 0.0], []), ([3.0], [(120.0, 900.0)]), ([], [])]
)
def test_axes_hold_all_values_between_few_round_ticks(values, limits):
    low, high, steps = axis_range(np.array(values), limits)
    assert 1 <= steps <= 6
    assert high > low
    for value in (*values, *(limit for pair in limits for limit in pair)):
        assert low <= value <= high
    tick = (high - low) / steps
    assert tick / 10 ** np.floor(np.log10(tick)) == pytest.approx(1) or round(
        tick / 10 ** np.floor(np.log10(tick)), 6
    ) in (2, 2.5, 5)


def test_a_page_of_another_program_is_not_replaced_and_our_own_is(results, tmp_path):
    path = tmp_path / "predictions.html"
    path.write_text("<title>notes</title>")
    with pytest.raises(OptionError, match=r"predictions\.html"):
        write_prediction_report(results[:1], path, PLAN)
    assert path.read_text() == "<title>notes</title>"
    path.unlink()
    for _ in range(2):
        write_prediction_report(results[:1], path, PLAN)


def test_names_are_escaped(tmp_path):
    evil = "<img src=x onerror=alert(1)>"
    page = write_prediction_report(
        [failed(tmp_path, "a", f"{evil}</script>")], tmp_path / "predictions.html", PLAN, title=evil
    ).path.read_text(encoding="utf-8")
    assert "<img src=x" not in page


def test_what_does_not_fit_is_left_out_and_named(results, tmp_path):
    small = write_prediction_report(results, tmp_path / "predictions.html", PLAN, max_mb=0.25)
    assert small.megabytes <= 0.25
    assert any("viewer opens" in line for line in small.left_out)


def test_the_page_of_no_case_opens(browser, tmp_path):
    browser.open(write_prediction_report([], tmp_path / "predictions.html", PLAN).path)
    assert "No result is suspicious" in browser.js("return document.body.textContent")
    assert_clean(browser)


def test_flagged_cases_and_outliers_open_their_case(browser, written):
    browser.open(written.path)
    tiles = browser.js("return [...document.querySelectorAll('.tiles li')].map((l) => l.firstChild.textContent)")
    assert tiles == ["10", "7", "1", "2"]
    assert "1 of them from earlier runs" in browser.js("return document.querySelector('.tiles').textContent")
    browser.click("#first a[data-case='0']")
    browser.wait(READY.format(0))
    assert browser.js("return document.getElementById('shown').textContent") == "tiny"
    assert "0.05 ml" in browser.js("return document.querySelector('#details-place .notice').textContent")
    rings = "return [...document.querySelectorAll('.dot.penalised')].map((dot) => dot.dataset.case)"
    assert browser.js(rings) == ["0"]
    browser.js("document.querySelector('.dot.penalised').dispatchEvent(new MouseEvent('click'))")
    assert browser.js("return location.hash") == "#case-0"
    browser.click("#volumes a[data-case='0']")
    browser.wait(READY.format(0))
    picture = browser.screenshot("figure:nth-of-type(1) canvas")
    assert all(has_color(picture, color).any() for color in COLORS)
    assert_clean(browser)


def test_failed_scans_have_their_line_and_their_picture(browser, written):
    browser.open(written.path)
    browser.js("medseg.open(1)")
    browser.wait("return document.getElementById('shown').textContent === 'no_head'")
    browser.wait("return document.querySelector('.viewer').dataset.ready !== 'no'")
    assert "not found" in browser.js("return document.querySelector('#details-place .notice').textContent")
    picture = browser.screenshot("figure:nth-of-type(1) canvas")
    assert picture.std() > 5
    assert not any(has_color(picture, color).any() for color in COLORS)
    browser.js("medseg.open(2)")
    assert "broken" in browser.js("return document.getElementById('no-volume').textContent")
    assert_clean(browser)


def test_the_search_the_table_and_the_keys_find_cases(browser, written):
    browser.open(written.path)
    search = "const s = document.getElementById('search'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))"
    names = "return [...document.querySelectorAll('#sheet b')].map((b) => b.textContent)"
    browser.js(search, "failed")
    assert browser.js(names) == ["no_head", "broken"]
    browser.js(search, "")
    browser.click("[data-view='table']")
    column = "return [...document.querySelectorAll('#cases-table tbody tr')].map((r) => r.cells[2].textContent)"
    browser.click("[data-sort='v0']")
    up = browser.js(column)
    assert up[-2:] == ["–", "–"]
    assert [float(text) for text in up[:-2]] == sorted(float(text) for text in up[:-2])
    browser.js("document.querySelector('svg.dots').focus()")
    browser.press(Keys.ARROW_RIGHT)
    browser.press(Keys.ENTER)
    assert browser.js("return document.getElementById('shown').textContent") == "tiny"
    assert_clean(browser)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_enough_contrast_and_the_page_fits_a_phone(browser, written, scheme):
    browser.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.devtools("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
    try:
        browser.open(written.path)
        browser.js("medseg.open(0)")
        browser.wait(READY.format(0))
        assert browser.js(CONTRAST) == []
        assert browser.js("return document.documentElement.scrollWidth") <= 390
    finally:
        browser.devtools("Emulation.clearDeviceMetricsOverride")
        browser.devtools("Emulation.setEmulatedMedia", features=[])


def test_2d_images_have_shares_and_one_plane(browser, tmp_path):
    written = write_prediction_report(flat_cohort(tmp_path), tmp_path / "predictions.html", flat_plan())
    data = data_of(written)
    assert sorted(row[0] for row in data["values"]["size"]) == pytest.approx([25, 50, 53.125, 75], rel=1e-4)
    browser.open(written.path)
    assert "shares of the image" in browser.js("return document.querySelector('#volumes h2').textContent").lower()
    browser.js("medseg.open(0)")
    browser.wait(READY.format(0))
    assert browser.js("return document.querySelectorAll('.viewer figure').length") == 1
    assert_clean(browser)


def test_many_cases_are_paged_and_stay_small(browser, tmp_path):
    one = done(tmp_path, "one", 5.4, 5.5)
    given = [CaseResult(f"case_{n:03d}", "done", one.output, volumes_ml=one.volumes_ml, inputs=one.inputs)
             for n in range(120)]  # fmt: skip
    written = write_prediction_report(given, tmp_path / "predictions.html", PLAN, fingerprint())
    assert len(data_of(written)["views"]) == 24
    browser.open(written.path)
    assert browser.js("return document.getElementById('count').textContent") == "1–50 of 120 cases"
    assert_clean(browser)
