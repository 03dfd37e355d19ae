"""Versions of the software that computes a result."""

from __future__ import annotations

import functools
import platform
import sys
from importlib import metadata


@functools.cache  # each look-up reads the package's metadata file
def installed_version(package: str) -> str:
    """Return the installed version of a package, or `"unknown"` if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def software_versions() -> dict[str, str]:
    """Return the versions of Python, medseg and the libraries that compute its results, by package name.

    OpenVINO is listed only if this process has imported it.
    """
    packages = ["medseg", "torch", "monai", "numpy", "nibabel", "SimpleITK"]
    if "openvino" in sys.modules:
        packages.append("openvino")
    return {"python": platform.python_version(), **{package: installed_version(package) for package in packages}}
