"""From a scan on its own grid to the network's input on the model grid."""

from __future__ import annotations

from monai.transforms import Compose, Orientation, Spacing

from medseg.plan import Plan
from medseg.transforms import NormalizeIntensityByModality

# Anatomical names of the axes, said outright because MONAI changes its default.
AXIS_LABELS = (("L", "R"), ("P", "A"), ("I", "S"))


def preprocessing(plan: Plan) -> Compose:
    """The deterministic steps between loading and the network: orientation, spacing, intensity.

    The same transforms, with the same arguments, stand in a bundle's inference.json behind LoadImaged and
    EnsureChannelFirstd.

    Returns:
        A callable on a MetaTensor (C, *native grid), giving a MetaTensor (C, *model grid) of float32.
    """
    steps: list = [Orientation(axcodes=plan.orientation, labels=AXIS_LABELS[: plan.spatial_dims])]
    if plan.spacing is not None:
        steps.append(Spacing(pixdim=plan.spacing, mode="bilinear", padding_mode="border"))
    steps.append(NormalizeIntensityByModality(plan.normalization))
    return Compose(steps)
