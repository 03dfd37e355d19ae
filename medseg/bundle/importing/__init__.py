"""Import models of other programs as bundles; see `import_bundle`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medseg.bundle.folder import BundleFolder
from medseg.bundle.importing.monai_import import import_monai, is_monai_bundle
from medseg.bundle.importing.nnunet_folder import CHECKPOINT, is_nnunet_folder
from medseg.bundle.importing.nnunet_import import import_nnunet
from medseg.errors import BundleError, OptionError

__all__ = ["import_bundle"]


def import_bundle(
    source: str | Path,
    out: str | Path,
    *,
    folds: Sequence[str] = (),
    checkpoint: str | None = None,
    trainer: str | None = None,
) -> BundleFolder:
    """Write a bundle of medseg from a model of another program. Nothing in the model's folder is run.

    Args:
        source: the folder of a model that nnU-Net 2 has trained, or of a MONAI bundle.
        out: folder of the bundle, new or empty.
        folds: folds of nnU-Net, such as "0" or "all"; none takes all numbered ones, which become an ensemble.
        checkpoint: name of the weights: in each fold of nnU-Net (default: checkpoint_final.pth), or in `models` of a
            MONAI bundle (default: what its config loads).
        trainer: name of a trainer that nnU-Net 2.8.1 does not contain, if it builds the network of plans.json.

    Returns:
        The bundle.

    Raises:
        BundleError, WeightsError, PlanError: the folder is not such a model, or something in it cannot be carried over;
            the message names it.
    """
    source, out = Path(source), Path(out)
    if not source.is_dir():
        raise BundleError(f"{source}: no such folder; give the folder of a trained model")
    if is_nnunet_folder(source):
        return import_nnunet(source, out, folds=folds, checkpoint=checkpoint or CHECKPOINT, trainer=trainer)
    if is_monai_bundle(source):
        for option, value in (("fold", folds), ("trainer", trainer)):
            if value:
                raise OptionError(f"{source}: --{option} is for models of nnU-Net, found a MONAI bundle; leave it out")
        return import_monai(source, out, checkpoint=checkpoint)
    raise BundleError(
        f"{source}: not a model that medseg can import; found neither plans.json of nnU-Net 2 nor "
        "configs/inference.json of a MONAI bundle"
    )
