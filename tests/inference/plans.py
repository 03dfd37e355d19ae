"""Plans for the tests of prediction."""

from __future__ import annotations

from typing import Any

from medseg.plan import Plan


def small_plan(**changes: Any) -> Plan:
    """Return a 3D plan with one channel, two labels and a small tile."""
    values: dict[str, Any] = {
        "name": "small_segmentation",
        "spatial_dims": 3,
        "channels": [{"name": "t1", "modality": "MR"}],
        "labels": {"background": 0, "front": 1, "back": 2},
        "orientation": "RAS",
        "spacing": [1.0, 1.0, 1.0],
        "normalization": [{"scheme": "z_score"}],
        "patch": [16, 16, 16],
        "tile": [16, 16, 16],
        "network": {"name": "unet3d_cicek2016"},
    }
    return Plan(**{**values, **changes})
