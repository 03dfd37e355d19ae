"""The viewer of one segmentation: the packed volumes, and what a real browser draws."""

from __future__ import annotations

import itertools
import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from reporting.browser import Browser

from medseg.errors import GeometryError
from medseg.figures import segmentation_viewer
from medseg.figures.canvas import OKABE_ITO, rgb
from medseg.figures.grey_levels import grey_levels
from medseg.figures.planes import labelled_center
from medseg.figures.viewer.packing import unpack
from medseg.figures.viewer.segmentation_viewer import MAX_BYTES, MAX_VOXELS

ORIENTATIONS = [
    np.column_stack([order, flips])
    for order in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]
LABELS = {"background": 0, "front": 3, "back": 1}


def blocks(page: str) -> dict[str, bytes]:
    return {name: unpack(text) for name, text in re.findall(r'<script type="text/plain" id="([^"]+)">([^<]*)<', page)}


def volume(page: str, name: str) -> np.ndarray:
    return np.frombuffer(blocks(page)[name], np.uint8).reshape(view(page)["dims"], order="F")


def view(page: str) -> dict[str, Any]:
    return json.loads(blocks(page)["data"])["views"][0]


@pytest.mark.parametrize("ornt", ORIENTATIONS, ids=lambda o: "".join(f"{'+-'[int(f < 0)]}{int(a)}" for a, f in o))
def test_bytes_run_right_anterior_superior_however_the_file_is_stored(ornt: np.ndarray) -> None:
    shape, spacing = (5, 6, 7), (1.0, 2.0, 3.0)
    random = np.random.default_rng(0)
    image, labels = random.normal(size=shape), random.choice([0, 1, 3], shape)
    affine = np.diag([*spacing, 1.0]) @ inv_ornt_aff(ornt, shape)
    page = segmentation_viewer(apply_orientation(image, ornt), apply_orientation(labels, ornt), affine, LABELS).page
    np.testing.assert_array_equal(volume(page, "v0-image-0"), grey_levels(image).encode(image))
    # "front" is the first byte and the first colour, "back" the second
    np.testing.assert_array_equal(volume(page, "v0-prediction"), np.select([labels == 3, labels == 1], [1, 2]))
    assert view(page)["spacing"] == list(spacing)
    # it opens on the voxel that `three_planes` goes through
    stored = apply_orientation(labels, ornt)
    marked = np.zeros(stored.shape, bool)
    marked[labelled_center(stored)] = True
    (opened,) = np.argwhere(apply_orientation(marked, ornt_transform(io_orientation(affine), axcodes2ornt("RAS"))))
    assert view(page)["start"] == opened.tolist()
    assert view(page)["colors"] == list(OKABE_ITO[:2])


def test_a_large_scan_is_cropped_and_thinned_with_notes() -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 30_000, (240, 200, 160)).astype(np.int16)  # noise: nothing compresses worse
    labels = np.zeros(image.shape, np.uint8)
    labels[60:180, 60:180, 40:120] = 3
    page = segmentation_viewer(image, labels, np.eye(4), LABELS).page
    assert np.prod(view(page)["dims"]) <= MAX_VOXELS
    assert len(page) <= MAX_BYTES + 60_000
    cropped, thinned = view(page)["notes"]
    assert "240×200×160 to 160×160×120" in cropped
    assert "voxel" in thinned


def test_nan_and_empty_label_maps_are_shown() -> None:
    nothing = np.zeros((3, 4, 5), int)
    page = segmentation_viewer(np.full((3, 4, 5), np.nan), nothing, np.eye(4), LABELS).page
    assert volume(page, "v0-image-0").max() == 0
    with pytest.raises(GeometryError, match=r"\(3, 4, 6\)"):
        segmentation_viewer(np.zeros((3, 4, 6)), nothing, np.eye(4), LABELS)


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Browser:
    """Open the viewer of a segmentation as a page."""
    image = np.random.default_rng(0).normal(size=(24, 20, 16))
    labels = np.zeros(image.shape, int)
    labels[6:12, 6:12, 6:12] = 3
    labels[12:18, 6:12, 6:12] = 1
    viewer = segmentation_viewer(image, labels, np.diag([1.0, 1, 1.5, 1]), LABELS, name="<a> & b.nii.gz")
    saved = viewer.save(tmp_path / "viewer.html")
    frame = viewer._repr_html_()
    (page,) = re.findall(r'srcdoc="([^"]*)"', frame)
    assert unescape(page) == saved.read_text(encoding="utf-8")
    browser.open(saved)
    browser.wait("return document.querySelector('.viewer')?.dataset.ready === '0'")
    return browser


def test_a_browser_draws_the_labels_in_their_colours(opened: Browser) -> None:
    assert opened.js("return document.getElementById('shown').textContent") == "<a> & b.nii.gz"
    assert opened.js("return [...document.querySelectorAll('.legend li')].map((l) => l.textContent)") == [
        "front",
        "back",
    ]
    opened.js("document.querySelector('[data-toggle=cross]').click()")
    opened.wait_until_drawn()
    picture = opened.screenshot("figure canvas").astype(int)
    middles = [np.argwhere(np.abs(picture - rgb(color)).max(-1) <= 2).mean(0) for color in OKABE_ITO[:2]]
    # "front" lies at lower x, to the patient's left, hence on the right of the screen
    assert middles[0][1] > middles[1][1]
    console, asked = opened.logs()
    assert console == []
    assert [url for url in asked if not url.startswith(("data:", "file:"))] == []


def test_controls_that_need_a_reference_are_hidden(opened: Browser) -> None:
    shown = opened.js(
        "return [...document.querySelectorAll('[data-toggle]')].filter((b) => !b.hidden).map((b) => b.textContent)"
    )
    assert shown == ["outlines", "colours", "crosshair", "smooth", "neurological: left on left"]
    keys = opened.js("return [...document.querySelectorAll('.keys kbd')].map((k) => k.textContent)")
    assert keys == ["↑", "↓", "p", "f", "c", "s", "o"]
    assert opened.js("return document.getElementById('readout').textContent").count("reference") == 0
