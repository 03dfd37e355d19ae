"""Load a bundle from its plan, metadata and weights, without running any of its code."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medseg import weights as weight_files
from medseg.bundle.folder import BundleFolder
from medseg.bundle.golden import LOW_PRECISION, ensemble_sha256, read_golden_sample
from medseg.bundle.int8_file import INT8, QUANTIZE_AGAIN, Int8Model, read_int8_model
from medseg.errors import BundleError, OptionError, WeightsError
from medseg.inference import Predictor
from medseg.inference.backends.choice import GoldenCheck
from medseg.inference.backends.torch_backend import Backend
from medseg.plan import Plan

if TYPE_CHECKING:
    import torch

    from medseg.networks.precision import PrecisionChoice

logger = logging.getLogger(__name__)


def load(
    path: str | Path,
    weights: str | Path | Sequence[str | Path] | None = None,
    device: str = "auto",
    *,
    backend: Literal["auto", "torch", "openvino"] = "auto",
    precision: PrecisionChoice = "auto",
    overlap: float | None = None,
    batch_size: int | None = None,
    interpolation: Literal["linear", "cubic"] = "linear",
    tta: Literal["none", "flip"] = "none",
    max_ram: str | int | None = None,
    save_probabilities: bool = False,
    uncertainty: bool = False,
    on_tiles: Callable[[int, int], None] | None = None,
    region_centers_mm: Mapping[str, Sequence[float]] | None = None,
    force: bool = False,
) -> Predictor:
    """Load a bundle for prediction without evaluating anything in it.

    Args:
        path: folder of the bundle.
        weights: weights file to use instead of the promoted one; several files are an ensemble.
        device: `auto`, `cpu`, `cuda` or `mps`.
        backend, precision, overlap, batch_size, interpolation, tta, max_ram, save_probabilities, uncertainty, on_tiles,
        force: see `medseg.inference.Predictor`.
        region_centers_mm: centre of regions in mm of every scan, by name, for a plan with regions; these are not
            searched for. See `medseg.inference.RegionPredictor`.

    Returns:
        A predictor: `load(path).predict("scan.nii.gz")`.

    Raises:
        BundleError, PlanError: the folder is not a loadable bundle.
        WeightsError: weights are absent, altered or do not fit the plan's network.
        OptionError: weights is an empty list, or region_centers_mm is given for a plan without regions.
    """
    bundle = BundleFolder(Path(path))
    if bundle.inference_differs_from_template():
        warnings.warn(
            f"{bundle.path}/configs/inference.json: differs from medseg's template, so `monai.bundle run` on it may "
            "give other labels than this predictor; `medseg bundle verify` compares them",
            stacklevel=2,
        )
    given = [weights] if weights is None or isinstance(weights, str | Path) else list(weights)
    if not given:
        raise OptionError(
            f"{bundle.path}: weights: found an empty list, expected at least one file; leave the argument out for the "
            "bundle's own weights"
        )
    networks, digests = zip(*_networks(bundle, given), strict=True)
    int8_model, plan = _int8_model(bundle, digests, precision), bundle.plan
    if region_centers_mm and plan.regions is None:
        raise OptionError(f"{bundle.path}: centres of regions were given, but the plan has no regions; leave them out")
    return predictor_class(plan, region_centers_mm)(
        networks,
        bundle.plan,
        device,
        backend=backend,
        precision=precision,
        overlap=overlap,
        batch_size=batch_size,
        interpolation=interpolation,
        tta=tta,
        max_ram=max_ram,
        save_probabilities=save_probabilities,
        uncertainty=uncertainty,
        golden_check=_golden_check(bundle, digests, int8_model),
        int8_ranges=() if int8_model is None else int8_model.ranges,
        bundle=bundle.name,
        weights_sha256=digests,
        on_tiles=on_tiles,
        fingerprint=bundle.fingerprint,
        calibration=bundle.calibration(digests),
        force=force,
    )


def predictor_class(plan: Plan, centers_mm: Mapping[str, Sequence[float]] | None = None) -> Callable[..., Predictor]:
    """Return the predictor of a plan. Each is imported here, because the others import what most plans do not need."""
    if plan.regions is not None:
        from medseg.inference.regions import RegionPredictor

        return partial(RegionPredictor, centers_mm=centers_mm)
    if plan.resampling is not None:
        from medseg.inference.exact import ExactPredictor

        return ExactPredictor
    if plan.slice_axis is not None:
        from medseg.inference.slice_predictor import SlicePredictor

        return SlicePredictor
    return Predictor


def load_network(path: str | Path, weights: str | Path | None = None) -> torch.nn.Module:
    """Load the network of a bundle as a plain `torch.nn.Module` in eval mode on the CPU.

    For an ensemble bundle this is a `medseg.networks.Ensemble`.

    Args:
        path: folder of the bundle.
        weights: weights file to use instead of the promoted one.

    Raises:
        BundleError, PlanError, WeightsError: as in `load`.
    """
    networks = [network for network, _ in _networks(BundleFolder(Path(path)), [weights])]
    if len(networks) == 1:
        return networks[0]
    from medseg.networks import Ensemble

    return Ensemble(networks).eval()


def _networks(bundle: BundleFolder, given: Sequence[str | Path | None]) -> Iterator[tuple[torch.nn.Module, str]]:
    """Load the network of each weights file, and those of the bundle for None, with the files' digests."""
    for weights in given:
        if weights is None:
            for file, sha256 in bundle.members:
                yield _network(bundle, file), sha256
        else:
            file = _checked_file(Path(weights))
            yield _network(bundle, file), weight_files.sha256(file)


def _network(bundle: BundleFolder, file: Path) -> torch.nn.Module:
    # Four bytes per parameter in memory, at least one in the file: a larger network cannot be meant.
    network = bundle.plan.create_network(max_bytes=4 * file.stat().st_size + 2**20, initialize=False)
    weight_files.load_into(network, file, assign=True)
    return network.eval()


def _checked_file(file: Path) -> Path:
    """Return the path of a weights file, or raise WeightsError if it is not a file."""
    if file.is_dir():
        raise WeightsError(f"{file}: found a folder, expected a weights file; name the file in it, such as model.pt")
    if not file.is_file():
        raise WeightsError(
            f"{file}: no such weights file; check the name and the folder (a training writes model.pt into its "
            "output_dir), or leave it out for the bundle's own weights"
        )
    return file


def _int8_model(bundle: BundleFolder, digests: Sequence[str], precision: PrecisionChoice) -> Int8Model | None:
    """Return what the bundle knows about int8 if that is wanted and was measured for these weights.

    Raises:
        BundleError: int8 is asked for, and the file is damaged or belongs to other weights.
    """
    if precision not in ("auto", "int8"):
        return None
    try:
        found = read_int8_model(bundle)
        if found is not None and list(found.weights_sha256) != list(digests):
            raise BundleError(f"{bundle.path}/{INT8}: measured for other weights than these; {QUANTIZE_AGAIN}")
    except BundleError as error:
        if precision == "int8":
            raise
        logger.warning(error)
        return None
    return found


def _golden_check(bundle: BundleFolder, digests: Sequence[str], int8_model: Int8Model | None = None) -> GoldenCheck:
    """Return the check that a lower precision must pass; it reads the golden sample when it is first called."""

    def check(backend: Backend) -> str:
        try:
            sample = read_golden_sample(bundle)
        except BundleError as error:
            return str(error)
        if sample is None:
            return "the bundle has none; promoting weights writes one"
        if ensemble_sha256(digests) != sample.weights_sha256:
            return "it was written for other weights than these"
        is_int8 = backend.precision == "int8"
        return sample.objection_to(backend, int8_model.tolerance if is_int8 and int8_model else LOW_PRECISION)

    return check
