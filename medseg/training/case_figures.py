"""Pictures of a case a training has validated, as `seg.show()` and the report draw it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import ResampleToMatch
from monai.utils.enums import CommonKeys as Keys

from medseg.figures.planes import labelled_center
from medseg.figures.three_planes import three_planes


def case_figures(output: Any, labels: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Figures of a MONAI evaluator's output: the image alone, under the reference, and under the prediction.

    All show the planes through the middle of the reference. The first case of a batch is drawn; an image on another
    grid than a label map (a scan that was respaced for the network, its reference that was not) is resampled to it.

    Args:
        output: `image`, `label` and `pred` of a batch, or a list with these of each case; each (C, …), logits or one
            channel of label values.
        labels: value by name, for colours and legend; by default the values found.

    Returns:
        Figure by name: image, reference, prediction. None of them where there is no image or no reference; without
        geometry, none where the shapes differ.

    Raises:
        ImportError: matplotlib is not installed.
    """
    case = _first_case(output)
    if Keys.IMAGE not in case or Keys.LABEL not in case:
        return {}
    reference = _label_map(case[Keys.LABEL])
    center = labelled_center(reference)
    figures: dict[str, Any] = {}
    for name, key in (("reference", Keys.LABEL), ("prediction", Keys.PRED)):
        found = case.get(key)
        scan = None if found is None else _on_the_grid_of(found, case[Keys.IMAGE])
        if found is None or scan is None:
            continue
        array, label_map, affine = scan[0].numpy(), _label_map(found), _affine(found)
        through = center if label_map.shape == reference.shape else None
        if name == "reference":
            figures["image"] = three_planes(array, np.zeros_like(label_map), affine, {}, title="image", center=through)
        figures[name] = three_planes(array, label_map, affine, labels, title=name, center=through)
    return figures


def _first_case(output: Any) -> dict[str, torch.Tensor]:
    """The items of the first case, on the CPU; nothing where nothing was validated."""
    if not output:
        return {}
    first = output[0] if isinstance(output, list) else output
    found = {key: first[key] for key in (Keys.IMAGE, Keys.LABEL, Keys.PRED) if first.get(key) is not None}
    return {key: (item if first is not output else item[0]).detach().cpu() for key, item in found.items()}


def _on_the_grid_of(other: torch.Tensor, image: torch.Tensor) -> torch.Tensor | None:
    """The image's first channel (1, …) voxel by voxel on the other's grid; None where that cannot be known."""
    first = image[:1].float()
    is_same_shape = first.shape[1:] == other.shape[1:]
    if not (isinstance(image, MetaTensor) and isinstance(other, MetaTensor)):
        return first.as_subclass(torch.Tensor) if is_same_shape else None
    if is_same_shape and np.allclose(_affine(image), _affine(other), atol=1e-3):
        return first.as_subclass(torch.Tensor)
    matched = ResampleToMatch(mode="bilinear", padding_mode="zeros")(first, img_dst=other)
    return matched.as_subclass(torch.Tensor)


def _label_map(item: torch.Tensor) -> np.ndarray:
    """The one channel, or the class of the largest of several logits."""
    plain = item.as_subclass(torch.Tensor)
    return (plain[0] if len(plain) == 1 else plain.argmax(0)).numpy().astype(np.int64)


def _affine(item: torch.Tensor) -> np.ndarray:
    """4×4, voxel index to mm; the identity without geometry."""
    return np.asarray(item.affine, dtype=float) if isinstance(item, MetaTensor) else np.eye(4)
