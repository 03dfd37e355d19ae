"""The published networks, by class or by preset name."""

from medseg.networks.mean_logits import Ensemble, create_ensemble
from medseg.networks.presets import create, list_presets
from medseg.networks.unet import UNet, UNet3D
from medseg.networks.unet_plus_plus import UNetPlusPlus
from medseg.networks.unetr import UNETR

__all__ = ["UNETR", "Ensemble", "UNet", "UNet3D", "UNetPlusPlus", "create", "create_ensemble", "list_presets"]
