import numpy as np

from medseg.inference.segmentation import Segmentation
from medseg.volumes import Grid, Volume


def test_a_segmentation_prints_its_size_and_volumes_and_no_voxels():
    array = np.zeros((10, 20, 30), np.uint8)
    array[:5, :10] = 1  # 5 · 10 · 30 voxels of 2 mm³
    scan = Volume(array.astype(np.float32), Grid(array.shape, np.diag([1.0, 1.0, 2.0, 1.0])))
    text = repr(Segmentation(array, {"background": 0, "liver": 1, "spleen": 2}, scan))
    assert "10×20×30 voxels: liver 3.00 ml, spleen 0.00 ml" in text
    assert len(text) < 200


def test_a_picture_has_no_volume():
    array = np.zeros((10, 20), np.uint8)
    array[:5, :10] = 1
    scan = Volume(array, Grid(array.shape, np.eye(4)), format="png")
    assert "10×20 pixels: cell 25.0%" in repr(Segmentation(array, {"background": 0, "cell": 1}, scan))
