"""The sides of the patient are shown where the letters say."""

from pathlib import Path

import numpy as np
import pytest
from figures.test_planes import rotation
from reporting.browser import BLUE, READY, assert_clean, has_color

from medseg.datasets import phantom_case
from medseg.evaluation import evaluate
from medseg.reporting import write_report
from medseg.volumes import Volume, write_volume

TILTED = np.eye(4)
TILTED[:3, :3] = rotation(17, 0) @ rotation(9, 2) @ np.diag([-1.0, 1.0, 1.3])


def marker_page(folder: Path, name: str, affine: np.ndarray) -> Path:
    """Write the report of a scan with a bright block at the patient's left, front and head, for any affine."""
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
        browser.wait_until_drawn()
        for number, (across, down) in enumerate(wanted.values(), start=1):
            figure = f"figure:nth-of-type({number})"
            picture = browser.screenshot(f"{figure} canvas")[..., 0].astype(float)
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
    assert_clean(browser)


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
    blue = has_color(browser.screenshot("figure canvas"), BLUE)
    rows, columns = np.nonzero(blue)
    assert rows.mean() < blue.shape[0] / 2
    assert columns.mean() > blue.shape[1] / 2
    assert_clean(browser)
