"""Import nibabel without pydicom, which takes as long to import as nibabel and is needed for DICOM only.

nibabel imports pydicom, where it is installed, for NIfTI headers that hold DICOM data.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any


class _Pydicom(ModuleType):
    """Stand for pydicom in nibabel, and import it when one of its names is used."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module("pydicom"), name)


def import_nibabel() -> None:
    """Import nibabel; do nothing about pydicom if it was imported before or is not installed."""
    if "nibabel" in sys.modules or "pydicom" in sys.modules or find_spec("pydicom") is None:
        return
    sys.modules["pydicom"] = later = _Pydicom("pydicom")
    later.Dataset = Any  # type: ignore[attr-defined]  # nibabel uses the type in annotations when it is imported
    try:
        import_module("nibabel")
    finally:
        del later.Dataset, sys.modules["pydicom"]


import_nibabel()
