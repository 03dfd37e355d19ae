"""Data sets: manifests, folds, preparing and checking them, and generated phantoms."""

from medseg.datasets.phantom_cells import PhantomCase, make_phantom_case
from medseg.datasets.phantoms import generate_phantoms, phantom_case, phantom_id

__all__ = ["PhantomCase", "generate_phantoms", "make_phantom_case", "phantom_case", "phantom_id"]
