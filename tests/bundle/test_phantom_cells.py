"""The promoted weights of the phantom bundle on a phantom that neither training nor validation used."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import label

import medseg
from medseg.datasets import generate_phantoms, read_manifest
from medseg.evaluation import case_dice

BUNDLE = Path(__file__).parents[2] / "bundles" / "phantom_cells_segmentation"
UNSEEN = 900


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantoms")
    (case,) = generate_phantoms(root, num_cases=1, first_case=UNSEEN)
    assert case not in read_manifest("phantom_cells").cases
    return {name: root / name / f"{case}.nii.gz" for name in ("images", "labels", "instances")}


def test_an_unseen_phantom_is_segmented_and_touching_cells_are_separated(phantom):
    segmentation = medseg.load(BUNDLE, backend="torch").predict(phantom["images"])
    reference, instances = (
        np.asarray(nib.load(phantom[name]).dataobj).astype(np.int64) for name in ("labels", "instances")
    )
    # The target has ridges between cells and the reference has none, so the best possible Dice is about 0.9.
    assert min(case_dice(segmentation.array, reference, [1, 2])) > 0.8
    touching = label(reference > 0)[1]
    found = label(segmentation.array > 0)[1]
    cells = len(np.unique(instances)) - 1
    assert touching < cells / 2, "the cells of the phantom do not touch, so the test shows nothing"
    assert touching + cells / 4 < found < 2 * cells
