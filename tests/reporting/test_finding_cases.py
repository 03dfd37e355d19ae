"""Finding cases by search, order, pages and dots."""

from reporting.browser import READY, assert_clean
from reporting.evaluations import repeated, small_evaluation
from selenium.webdriver import Keys

from medseg.reporting import write_report


def test_search_narrows_the_sheet_the_table_and_the_dots(opened):
    opened.find("#search").send_keys("004")
    assert opened.js("return [...document.querySelectorAll('#sheet b')].map((b) => b.textContent)") == ["case_004"]
    assert opened.js("return document.getElementById('found').textContent") == "1 of 6 cases found"
    hits = opened.js(
        "return [...new Set([...document.querySelectorAll('.dot.hit')].map((d) => d.dataset.case))].length"
    )
    assert hits == 1
    opened.js("const s = document.getElementById('search'); s.value = 'missed'; s.dispatchEvent(new Event('input'))")
    assert (
        opened.js("return document.querySelectorAll('#sheet li').length") == 2
    )  # variant 1 of four misses a structure
    opened.js("const s = document.getElementById('search'); s.value = 'nobody'; s.dispatchEvent(new Event('input'))")
    assert "no case" in opened.js("return document.getElementById('count').textContent")


def test_columns_sort_both_ways_and_set_aria_sort(opened):
    opened.click("[data-view='table']")
    column = "return [...document.querySelectorAll('#cases-table tbody tr')].map((r) => r.cells[1].textContent)"
    opened.click("[data-sort='dice']")
    up = [float(text) for text in opened.js(column)]
    assert up == sorted(up)
    opened.click("[data-sort='dice']")
    assert [float(text) for text in opened.js(column)] == sorted(up, reverse=True)
    sort = "return document.querySelector('[data-sort=dice]').closest('th').getAttribute('aria-sort')"
    assert opened.js(sort) == "descending"
    opened.press(Keys.ENTER)  # the header keeps the focus
    assert opened.js(sort) == "ascending"


def test_dots_open_their_case_by_keyboard(opened):
    opened.js("document.querySelector('svg.dots').focus()")
    opened.press(Keys.ARROW_RIGHT)
    said = opened.js("return document.querySelector('#distributions-place [aria-live]').textContent")
    opened.press(Keys.ENTER)
    name = opened.js("return document.getElementById('shown').textContent")
    number = opened.js("return document.querySelector('.dot.chosen').dataset.case")
    opened.wait(READY.format(opened.js("return Number(arguments[0])", number)))
    assert opened.js("return document.getElementById('shown').textContent") in said
    assert name


def test_500_cases_open_in_pages_of_50(browser, tmp_path):
    result, images = small_evaluation(tmp_path, 4)
    many = repeated(result, 500)
    named = {case: images[f"case_{int(case[5:]) % 4:03d}"] for case in (e["case"] for e in many.summary["inputs"])}
    written = write_report(many, tmp_path / "report.html", images=named)
    assert written.megabytes <= 15
    browser.open(written.path)
    assert browser.js("return document.querySelectorAll('#sheet img').length") == 50
    assert browser.js("return document.getElementById('count').textContent") == "1–50 of 500 cases"
    for _ in range(9):
        browser.click("[aria-label='Next page']")
    assert browser.js("return document.getElementById('count').textContent") == "451–500 of 500 cases"
    assert browser.js("return [...document.querySelectorAll('#sheet img')].every((i) => i.complete)")
    browser.js("medseg.open(499)")  # neither among the worst nor at a percentile
    assert "no volume on this page" in browser.js("return document.getElementById('no-volume').textContent")
    assert browser.js("return document.querySelectorAll('#details tbody tr').length") == 2
    assert_clean(browser)
