"""Bundles: loading without running their code, promoting weights, verifying, exporting."""

from medseg.bundle.export import export
from medseg.bundle.folder import BundleFolder, bundle_root
from medseg.bundle.loading import load, load_network
from medseg.bundle.promote import promote
from medseg.bundle.verify import verify

__all__ = ["BundleFolder", "bundle_root", "export", "load", "load_network", "promote", "verify"]
