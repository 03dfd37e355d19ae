"""Where the packages lie: the manifests and the demo's bundle stand at the top of the repository, where people look for
them, and travel inside the wheel. pyproject.toml holds everything else.
"""

from setuptools import find_packages, setup

SHIPPED = {
    "medseg.datasets.manifests": "data_manifests",
    "medseg.bundle.phantom_cells_segmentation": "bundles/phantom_cells_segmentation",
}

setup(packages=[*find_packages(include=["medseg*"]), *SHIPPED], package_dir=SHIPPED)
