"""The volumes and colours of the ipyniivue widget."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from medseg.errors import GeometryError
from medseg.figures import niivue_widget
from medseg.figures.canvas import OKABE_ITO
from medseg.figures.grey_levels import grey_levels

ipyniivue = pytest.importorskip("ipyniivue", reason="pip install 'medseg[niivue]'")

LABELS = {"background": 0, "front": 4, "back": 2}
AFFINE = np.array([[0.0, -2, 0, 5], [1, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
IMAGE = np.random.default_rng(0).normal(100, 20, (5, 6, 7))
LABEL_MAP = np.random.default_rng(1).choice([0, 2, 4, 9], IMAGE.shape)


def test_the_widget_holds_the_scan_and_its_labels_on_one_grid() -> None:
    widget = niivue_widget(IMAGE, LABEL_MAP, AFFINE, LABELS)
    assert isinstance(widget, ipyniivue.NiiVue)
    scan, overlay = widget.volumes
    low, high = grey_levels(IMAGE).limits
    assert (scan.cal_min, scan.cal_max) == pytest.approx((low, high))
    for volume, wanted in ((scan, IMAGE), (overlay, np.select([LABEL_MAP == 4, LABEL_MAP == 2], [1, 2]))):
        stored = nib.Nifti1Image.from_bytes(volume.get_state("data")["data"])
        np.testing.assert_allclose(np.asarray(stored.dataobj), wanted, rtol=1e-6)
        np.testing.assert_allclose(stored.affine, AFFINE)


def test_labels_have_their_names_and_colours() -> None:
    table = niivue_widget(IMAGE, LABEL_MAP, AFFINE, LABELS).volumes[1].get_state("colormap_label")["colormap_label"]
    assert table["labels"] == ["background", "front", "back"]
    lut = np.reshape(list(table["lut"]), (-1, 4))
    colors = [[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in OKABE_ITO[:2]]
    np.testing.assert_array_equal(lut[1:3, :3], colors)
    assert lut[0, 3] == 0
    assert (lut[1:3, 3] == 255).all()


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(GeometryError, match=r"\(5, 6, 7\).*\(5, 6, 6\)"):
        niivue_widget(IMAGE, LABEL_MAP[..., 1:], AFFINE, LABELS)
