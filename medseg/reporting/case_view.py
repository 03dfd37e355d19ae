"""One evaluated case cut to what its reader must see: everything that either mask holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from medseg.evaluation.boxes import bounding_box, union
from medseg.figures.viewer.cut_out import cut_out
from medseg.figures.viewer.view import View
from medseg.volumes import Grid


def case_view(
    prediction: np.ndarray,
    reference: np.ndarray,
    grid: Grid,
    images: Iterable[tuple[str, np.ndarray]],
    *,
    modalities: Mapping[str, str] | None = None,
    has_patient: bool = True,
    known: Sequence[int] | None = None,
) -> View:
    """Crop a case to both masks with 20 mm around them; without any label the whole image is kept.

    Args:
        prediction, reference: integer label maps of the grid's shape.
        grid: of everything.
        images: name and image of each channel, of the same shape; taken one at a time.
        modalities: channel name → modality; a channel without looks at its values.
        has_patient: whether the grid lies in a patient.
        known: the label values to show; None shows all.
    """
    box = union(grid.spatial_dims, (bounding_box(labels) for labels in (prediction, reference)))
    return cut_out(
        prediction, reference, grid, images, box, modalities=modalities, has_patient=has_patient, known=known
    )
