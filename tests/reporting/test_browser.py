"""The page as its readers use it, in a real Chromium without WebGL."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from figures.test_panels import rotation
from reporting.chromium import Chromium
from reporting.evaluations import repeated, small_evaluation

from medseg.datasets import phantom_case
from medseg.evaluation import evaluate
from medseg.reporting import write_report
from medseg.volumes import Volume, write_volume

BLUE, ORANGE, VERMILLION = (86, 180, 233), (230, 159, 0), (213, 94, 0)
ESCAPE, ENTER, DOWN, UP, RIGHT, HOME = "\ue00c", "\ue007", "\ue015", "\ue013", "\ue014", "\ue011"
READY = "return document.querySelector('.viewer').dataset.ready === '{}'"


def is_clean(browser: Chromium) -> None:
    """No console message, and nothing asked for but the page itself."""
    console, asked = browser.logs()
    assert console == []
    assert [url for url in asked if not url.startswith(("data:", "file:"))] == []
    assert sum(url.startswith("file:") for url in asked) <= 1


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    result, images = small_evaluation(folder, 6, shape=(24, 20, 16), affine=np.diag([1.0, 1.0, 2.0, 1.0]))
    return write_report(result, folder / "report.html", images=images).path


@pytest.fixture
def opened(browser, page) -> Chromium:
    browser.open(page)
    browser.click("#choices button[data-case='0']")
    browser.wait(READY.format(0))
    return browser


def near(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.abs(picture.astype(int) - colour).max(axis=-1) < 12


def settled(browser: Chromium) -> None:
    browser.js_async("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_the_page_asks_for_nothing_and_complains_of_nothing(browser, page):
    browser.open(page)
    assert browser.js("return document.createElement('canvas').getContext('webgl')") is None
    for case in range(6):
        browser.js("medseg.open(arguments[0])", case)
        browser.wait(READY.format(case))
    for button in ("[data-view='table']", "#theme", "#files summary", "[data-copy]"):
        browser.click(button)
    settled(browser)
    is_clean(browser)
    assert browser.js("return medseg.volumes.decodedNow()") == [3, 4, 5]


def test_the_network_is_refused_even_to_scripts(browser, page):
    browser.open(page)
    assert "Failed to fetch" in browser.js_async("fetch('https://example.org/')")
    browser.logs()


def test_label_bytes_and_image_bytes_reach_the_viewer_exactly(browser, page):
    from reporting.test_report import block

    browser.open(page)
    text = page.read_text(encoding="utf-8")
    for number in (0, 5):
        for role in ("reference", "prediction", "image-0"):
            digest = browser.js_async(
                f"medseg.volumes.get({number}, '{role}').then((bytes) => crypto.subtle.digest('SHA-256', bytes))"
                ".then((d) => [...new Uint8Array(d)])"
            )
            assert bytes(digest) == hashlib.sha256(block(text, f"v{number}-{role}")).digest()


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


def test_search_narrows_the_sheet_the_table_and_the_dots(opened):
    opened.type("#search", "004")
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


def test_columns_sort_both_ways_and_say_so(opened):
    opened.click("[data-view='table']")
    column = "return [...document.querySelectorAll('#cases-table tbody tr')].map((r) => r.cells[1].textContent)"
    opened.click("[data-sort='dice']")
    up = [float(text) for text in opened.js(column)]
    assert up == sorted(up)
    opened.click("[data-sort='dice']")
    assert [float(text) for text in opened.js(column)] == sorted(up, reverse=True)
    sort = "return document.querySelector('[data-sort=dice]').closest('th').getAttribute('aria-sort')"
    assert opened.js(sort) == "descending"
    opened.press(ENTER)  # the header keeps the focus
    assert opened.js(sort) == "ascending"


def test_dots_open_their_case_by_keyboard(opened):
    opened.js("document.querySelector('svg.dots').focus()")
    opened.press(RIGHT)
    said = opened.js("return document.querySelector('#distributions-place [aria-live]').textContent")
    opened.press(ENTER)
    name = opened.js("return document.getElementById('shown').textContent")
    number = opened.js("return document.querySelector('.dot.chosen').dataset.case")
    opened.wait(READY.format(opened.js("return Number(arguments[0])", number)))
    assert opened.js("return document.getElementById('shown').textContent") in said
    assert name


def test_pictures_have_numbers_for_those_who_do_not_see_them(opened):
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


def marker_page(folder: Path, name: str, affine: np.ndarray) -> Path:
    """A phantom scan with a bright block at the patient's left, front and head, whatever the file's axes."""
    case = phantom_case(0, shape=(28, 26, 24))
    index = np.stack(np.indices(case.image.shape), -1)
    world = index @ affine[:3, :3].T
    world -= world.reshape(-1, 3).mean(axis=0)
    spread = np.abs(world).reshape(-1, 3).max(axis=0)
    marker = ((world / spread * (-1, 1, 1)) > 0.3).all(axis=-1)
    image = np.where(marker, 4000, case.image // 20).astype(np.int16)
    like = Volume(image, type(case.grid)(image.shape, affine))
    paths = {role: folder / role / f"{name}.nii.gz" for role in ("image", "label")}
    write_volume(paths["image"], image, like)
    write_volume(paths["label"], marker.astype(np.uint8), like)
    result = evaluate(paths["label"], paths["label"], labels={"marker": 1}, num_draws=2000)
    return write_report(result, folder / f"{name}.html", images=paths["image"]).path


TILTED = np.eye(4)
TILTED[:3, :3] = rotation(17, 0) @ rotation(9, 2) @ np.diag([-1.0, 1.0, 1.3])


@pytest.mark.parametrize(
    ("name", "affine"),
    [("ras", np.diag([1.0, 1, 1.3, 1])), ("lps", np.diag([-1.0, -1, 1.3, 1])), ("oblique", TILTED)],
)
def test_a_marker_on_the_left_is_shown_on_the_side_the_letters_say(browser, tmp_path, name, affine):
    browser.open(marker_page(tmp_path, name, affine))
    browser.js("medseg.open(0)")
    browser.wait(READY.format(0))
    for key in ("reference", "prediction", "cross", "smooth"):
        browser.js(f"document.querySelector('[data-toggle={key}]').click()")
    wanted = {"axial": ("L", "A"), "coronal": ("L", "S"), "sagittal": ("A", "S")}
    for press in (False, True):
        if press:
            browser.js("document.querySelector('[data-toggle=mirrored]').click()")
        settled(browser)
        for number, (across, down) in enumerate(wanted.values(), start=1):
            figure = f"figure:nth-of-type({number})"
            picture = browser.picture(f"{figure} canvas")[..., 0].astype(float)
            # letters lie on the canvas; the marker fills an area that they cannot
            bright = picture > 200
            rows, columns = np.nonzero(bright)
            assert bright.mean() > 0.05
            sides = browser.js(f"return [...document.querySelectorAll('{figure} .letter')].map((l) => l.textContent)")
            assert (columns.mean() > picture.shape[1] / 2) == (sides[1] == across)
            assert (rows.mean() < picture.shape[0] / 2) == (sides[2] == down)
        axial = browser.js(
            "return [...document.querySelectorAll('figure .letter')].slice(0, 4).map((l) => l.textContent)"
        )
        assert axial == (["L", "R", "A", "P"] if press else ["R", "L", "A", "P"])
        badge = browser.js("return document.querySelector('.viewer .badges').textContent")
        assert f"patient left is on image {'left' if press else 'right'}" in badge
        assert ("oblique" in badge) == (name == "oblique")
    is_clean(browser)


def test_a_picture_without_patient_has_one_plane_and_no_letters(browser, tmp_path):
    from PIL import Image

    cells = np.zeros((40, 60), np.uint8)
    cells[5:15, 40:55] = 255
    for folder, picture in (("images", cells // 2 + 20), ("labels", cells), ("predictions", np.roll(cells, 2, axis=1))):
        (tmp_path / folder).mkdir()
        Image.fromarray(picture).save(tmp_path / folder / "a.png")
    result = evaluate(tmp_path / "predictions", tmp_path / "labels", labels={"cell": 255}, num_draws=2000)
    report = write_report(result, tmp_path / "report.html", images=tmp_path / "images").path
    browser.open(report)
    browser.js("medseg.open(0)")
    browser.wait(READY.format(0))
    assert browser.js("return document.querySelectorAll('figure').length") == 1
    assert browser.js("return [...document.querySelectorAll('.letter')].map((l) => l.textContent).join('')") == ""
    badges = browser.js("return document.querySelector('.viewer .badges').textContent")
    assert "no patient orientation" in badges
    assert "pixels" in badges
    blue = near(browser.picture("figure canvas"), BLUE)
    rows, columns = np.nonzero(blue)
    assert rows.mean() < blue.shape[0] / 2
    assert columns.mean() > blue.shape[1] / 2
    is_clean(browser)


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
    is_clean(browser)


def test_one_case_of_sixty_structures_is_paged_and_all_can_be_chosen(browser, tmp_path):
    result, images = small_evaluation(tmp_path, 1, num_labels=60, shape=(20, 20, 12))
    browser.open(write_report(result, tmp_path / "report.html", images=images).path)
    assert browser.js("return document.querySelectorAll('svg.dots').length") == 12
    assert "of 60" in browser.js("return document.querySelector('#distributions-place .pager').textContent")
    browser.js("medseg.open(0)")
    browser.wait(READY.format(0))
    assert browser.js("return document.querySelectorAll('#structure option').length") == 61
    browser.js("const s = document.getElementById('structure'); s.value = 59; s.dispatchEvent(new Event('change'))")
    settled(browser)
    is_clean(browser)


def test_a_page_cut_short_says_so(browser, page, tmp_path):
    cut = tmp_path / "cut.html"
    text = page.read_text(encoding="utf-8")
    start = text.index('id="v0-image-0">') + len('id="v0-image-0">')
    cut.write_text(text[: start + 40] + text[text.index("</script>", start) :], encoding="utf-8")
    browser.open(cut)
    browser.js("medseg.open(0)")
    browser.wait("return !document.getElementById('broken').hidden")
    assert "cannot be opened" in browser.js("return document.getElementById('broken').textContent")
    browser.logs()


def test_nothing_evaluated_still_opens(browser, tmp_path):
    browser.open(write_report(None, tmp_path / "report.html", failure="a: <b> is missing").path)
    assert "a: <b> is missing" in browser.js("return document.body.textContent")
    is_clean(browser)


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
def test_words_stand_out_from_their_background(browser, page, scheme):
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
