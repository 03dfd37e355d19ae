"""A generated head with two bright hippocampi, and a network that segments what is bright."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import nn

from medseg.inference.regions import write_template
from medseg.plan import Plan, read_plan
from medseg.volumes.files import file_sha256

CENTERS = {"left": (-26.0, -21.0, -14.0), "right": (26.0, -21.0, -14.0)}
BRIGHT = 2.0


def ellipsoid(points: np.ndarray, center: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    return (((points - center) / radii) ** 2).sum(-1) < 1


def head(points: np.ndarray, has_skull: bool = True) -> np.ndarray:
    """Intensities at positions (…, 3) in mm: white matter 1, grey matter 0.6, fluid 0.1, skull 0.5 to 0.8."""
    x, y, z = np.moveaxis(points, -1, 0)
    values = np.zeros(points.shape[:-1])
    if has_skull:
        values[ellipsoid(points, (0, 0, -8), (80, 100, 90))] = 0.8
        values[ellipsoid(points, (0, 0, -6), (76, 95, 84))] = 0.1
        values[ellipsoid(points, (0, 75, -60), (30, 35, 45))] = 0.5
    folds = 0.06 * np.sin(x / 5) * np.sin(y / 6) * np.sin(z / 5)
    brain = ellipsoid(points / (1 + folds)[..., None], (0, -5, 8), (68, 84, 60))
    values[brain] = 0.6
    white = ellipsoid(points / (1 + 3 * folds)[..., None], (0, -5, 12), (52, 66, 42))
    values[white & (abs(x) > 4)] = 1.0
    for side in (-1, 1):
        values[ellipsoid(points, (side * 14, 8, 14), (7, 32, 8))] = 0.1
        values[ellipsoid(points, (side * 24, -60, -35), (28, 24, 20))] = 0.75
    values[ellipsoid(points, (0, -25, -40), (12, 14, 30))] = 0.95
    for center in CENTERS.values():
        values[ellipsoid(points, center, (7, 16, 8))] = BRIGHT
    return values


def hippocampi(points: np.ndarray) -> np.ndarray:
    """Labels at positions in mm: 1 left, 2 right."""
    labels = np.zeros(points.shape[:-1], dtype=np.uint8)
    for value, center in enumerate(CENTERS.values(), 1):
        labels[ellipsoid(points, center, (7, 16, 8))] = value
    return labels


def positions(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def grid(spacing: float = 2.0, below: float = 90.0, above: float = 85.0) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and RAS affine of a field of view around the head."""
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = [-90, -110, -below]
    return (round(180 / spacing), round(225 / spacing), round((below + above) / spacing)), affine


def moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Positions in the head's own space of positions in a scan in which it was moved by a 4×4 matrix."""
    inverse = np.linalg.inv(matrix)
    return points @ inverse[:3, :3].T + inverse[:3, 3]


class Bright(nn.Module):
    """Logits of background and of what is brighter than white matter."""

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(tiles), 10 * (tiles - 1.5)], dim=1)


def write_plan(folder: Path, **changes: Any) -> Plan:
    """Write plan.json and a template made of the head without its skull; the plan, read."""
    shape, affine = grid()
    (folder / "atlas").mkdir(parents=True)
    (folder / "configs").mkdir()
    source = folder.parent / "template_source.nii.gz"
    nib.save(nib.Nifti1Image(head(positions(shape, affine), has_skull=False).astype(np.float32), affine), source)
    template = write_template(source, folder / "atlas" / "head.nii.gz")
    boxes = [
        {
            "name": name,
            "center_mm": list(center),
            "size_mm": [32, 48, 32],
            "mirrored": name == "right",
            "labels": ["background", name],
        }
        for name, center in CENTERS.items()
    ]
    values = {
        "schema_version": 1,
        "name": folder.name,
        "spatial_dims": 3,
        "channels": [{"name": "T1", "modality": "MR"}],
        "labels": {"background": 0, "left": 1, "right": 2},
        "orientation": "RAS",
        "spacing": [2.0, 2.0, 2.0],
        "normalization": [{"scheme": "none"}],
        "patch": [16, 24, 16],
        "tile": [16, 24, 16],
        "network": {"name": "unet3d_cicek2016", "arguments": {"channels": [4, 8], "norm": "instance"}},
        "regions": {
            "template": "atlas/head.nii.gz",
            "template_sha256": file_sha256(template),
            "channels": ["background", "hippocampus"],
            "boxes": boxes,
        },
        **changes,
    }
    (folder / "configs" / "plan.json").write_text(json.dumps(values))
    return read_plan(folder / "configs" / "plan.json")
