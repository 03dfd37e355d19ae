"""The viewer of a notebook: the bytes it is given, and that a browser draws them."""

from __future__ import annotations

import base64
import gzip
import itertools
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from medseg.figures.planes import labelled_center
from medseg.figures.slice_viewer import MAX_VOXELS, slice_viewer, viewer_data

ORIENTATIONS = [
    np.column_stack([order, flips])
    for order in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]
LABELS = {"background": 0, "front": 3, "back": 1}


def volume(data: dict[str, Any], key: str) -> np.ndarray:
    raw = gzip.decompress(base64.b64decode(data[key]))
    return np.frombuffer(raw, np.uint8).reshape(data["shape"], order="F")


@pytest.mark.parametrize("ornt", ORIENTATIONS, ids=lambda o: "".join(f"{'+-'[int(f < 0)]}{int(a)}" for a, f in o))
def test_bytes_run_left_posterior_superior_however_the_file_is_stored(ornt: np.ndarray) -> None:
    shape, spacing = (5, 6, 7), (1.0, 2.0, 3.0)
    random = np.random.default_rng(0)
    image, labels = random.normal(size=shape), random.choice([0, 1, 3], shape)
    affine = np.diag([*spacing, 1.0]) @ inv_ornt_aff(ornt, shape)
    data = viewer_data(apply_orientation(image, ornt), apply_orientation(labels, ornt), affine, LABELS)
    low, high = np.percentile(image, [1, 99])
    grey = np.rint(255 * np.clip((image - low) / (high - low), 0, 1))
    # from right, anterior to left, posterior; "front" is the first colour and "back" the second
    assert np.abs(volume(data, "image") - grey[::-1, ::-1]).max() <= 1
    np.testing.assert_array_equal(volume(data, "labels"), np.select([labels == 3, labels == 1], [1, 2])[::-1, ::-1])
    np.testing.assert_allclose(data["spacing"], spacing)
    # it opens on the voxel that `three_planes` goes through
    stored = apply_orientation(labels, ornt)
    marked = np.zeros(stored.shape, bool)
    marked[labelled_center(stored)] = True
    opened = apply_orientation(marked, ornt_transform(io_orientation(affine), axcodes2ornt("LPS")))
    assert np.argwhere(opened).tolist() == [data["center"]]


def test_a_large_volume_is_thinned_and_says_so() -> None:
    image = np.zeros((200, 180, 160), np.uint8)
    data = viewer_data(image, image, np.eye(4), LABELS)
    assert np.prod(data["shape"]) <= MAX_VOXELS
    assert data["spacing"] == [2, 2, 2]
    assert data["note"] == "every 2. voxel along each axis is shown"


def test_odd_values_do_not_stop_it() -> None:
    image = np.full((3, 4, 5), np.nan)
    assert volume(viewer_data(image, np.zeros(image.shape, int), np.eye(4), LABELS), "image").max() == 0


def test_a_browser_draws_it(tmp_path: Path) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no chromium on this machine")
    image = np.random.default_rng(0).normal(size=(12, 10, 8))
    labels = np.zeros(image.shape, int)
    labels[3:6, 3:6, 3:6] = 3
    viewer = slice_viewer(image, labels, np.eye(4), LABELS)
    (page,) = re.findall(r'srcdoc="([^"]*)"', viewer)
    (tmp_path / "page.html").write_text(unescape(page), encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom"]
    done = subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "page.html").as_uri()],
        check=True, capture_output=True, timeout=120, encoding="utf-8",
    )  # fmt: skip
    assert 'data-ready="yes"' in done.stdout
    # the labels' middle in a volume turned from RAS: 12 − 1 − 4, 10 − 1 − 4, 4
    assert re.findall(r"<figcaption>([^<]*)</figcaption>", done.stdout) == [
        "axial 5/8",
        "coronal 6/10",
        "sagittal 8/12",
    ]
