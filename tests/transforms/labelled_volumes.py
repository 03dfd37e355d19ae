"""Small volumes whose voxels say where they came from, and label maps with rare labels."""

import numpy as np
import torch
from monai.data import MetaTensor

AFFINE = torch.tensor(
    [[0.0, -1.5, 0.0, 10.0], [0.8, 0.0, 0.1, -20.0], [0.0, 0.2, 3.0, 5.0], [0.0, 0.0, 0.0, 1.0]], dtype=torch.float64
)


def numbered(shape, channels=1):
    """Every voxel holds its own number, so a patch says where it came from."""
    values = torch.arange(channels * int(np.prod(shape)), dtype=torch.float64).reshape(channels, *shape)
    return MetaTensor(values, affine=AFFINE, meta={"filename_or_obj": "case_3.nii.gz"})


def few_labels():
    """(1, 6, 5, 4): three labels of about 100, 18 and 2 voxels, at the border too."""
    label = np.zeros((1, 6, 5, 4), np.uint8)
    label[0, :3, 1:4, :2] = 1
    label[0, 5, 4, 3] = label[0, 4, 0, 0] = 2
    return label


def rare_labels(shape=(20, 18, 16)):
    label = np.zeros((1, *shape), np.uint8)
    label[0, 3:5, 4:7, 2] = 1
    label[0, 19, 17, 15] = 2
    label[0, 10:14, 9, 8] = 2
    return label
