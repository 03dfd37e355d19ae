"""The published networks, by class or by preset name."""

from medseg.networks.presets import create, list_presets
from medseg.networks.unet3d import UNet3D

__all__ = ["UNet3D", "create", "list_presets"]
