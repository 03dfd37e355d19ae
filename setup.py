"""Locate the packages: the wheel contains the manifests and the demo bundle, which are at the top of the repository.

pyproject.toml contains all other settings.
"""

from setuptools import find_packages, setup

SHIPPED = {
    "medseg.datasets.manifests": "data_manifests",
    "medseg.bundle.phantom_cells_segmentation": "bundles/phantom_cells_segmentation",
}

setup(packages=[*find_packages(include=["medseg*"]), *SHIPPED], package_dir=SHIPPED)
