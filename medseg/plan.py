"""The plan: every value a bundle needs, as plain data.

A plan holds numbers and names, never code: `medseg.load` builds a network and its preprocessing from a plan without
evaluating anything, and a bundle's configs take their values from the same file.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medseg.errors import PlanError

if TYPE_CHECKING:
    import torch

SCHEMA_VERSION = 1
_AXES = ("LR", "PA", "IS")
_LATER_KEYS = ("slice_axis", "air_below")


@dataclass(frozen=True)
class Plan:
    """The values behind one bundle (`configs/plan.json`).

    Args:
        name: name of the bundle, e.g. `hippocampus_unet3d_segmentation`.
        spatial_dims: 2 or 3.
        channels: one `{"name", "modality"}` an input channel.
        labels: name of each class and its value in label maps; `background` is 0. The order of the values is the
            order of the network's output channels.
        orientation: axis codes of the model grid, e.g. `RAS`.
        spacing: voxel size of the model grid in mm, one an axis; None keeps each scan's own spacing.
        normalization: one scheme a channel, as `NormalizeIntensityByModality` takes them.
        patch: training patch in voxels.
        tile: sliding-window tile in voxels.
        overlap: fraction of a tile shared with the next, in [0, 1).
        blending: `gaussian` or `constant` weights of a tile's voxels.
        activation: `softmax` for exclusive labels, `sigmoid` for overlapping regions.
        network: `{"name": preset, "arguments": {...}}` for `medseg.networks.create`.
        crop_ratios: how often a training patch is centred on each class, in the order of the labels' values.
        mirror_axes: axes the network was trained to mirror; test-time flips are refused along others.
        slice_axis: for a 2D network that is given volumes, the patient axis (`R`, `A` or `S`) across which it takes
            them slice by slice; `orientation` then names the two axes of a slice. None takes 2D images.
        air_below: intensity of the first channel, as in the file, below which there is always background; prediction
            leaves out tiles of nothing else. None predicts every tile.
        description: one sentence for people.
    """

    name: str
    spatial_dims: int
    channels: Sequence[Mapping[str, str]]
    labels: Mapping[str, int]
    orientation: str
    spacing: Sequence[float] | None
    normalization: Sequence[Mapping[str, Any]]
    patch: Sequence[int]
    tile: Sequence[int]
    network: Mapping[str, Any]
    overlap: float = 0.5
    blending: Literal["gaussian", "constant"] = "gaussian"
    activation: Literal["softmax", "sigmoid"] = "softmax"
    crop_ratios: Sequence[float] | None = None
    mirror_axes: Sequence[int] = ()
    slice_axis: Literal["R", "A", "S"] | None = None
    air_below: float | None = None
    description: str = ""
    schema_version: int = SCHEMA_VERSION
    source: str = field(default="<plan>", compare=False)

    def __post_init__(self) -> None:
        # the types first: the rules about values compare and count
        for check in (_type_rules, _rules):
            for rule, holds in check(self):
                if not holds:
                    raise PlanError(f"{self.source}: {rule}")

    @property
    def in_channels(self) -> int:
        """Number of input channels."""
        return len(self.channels)

    @property
    def out_channels(self) -> int:
        """Number of output channels: every label for softmax, every foreground region for sigmoid."""
        return len(self.labels) - (self.activation == "sigmoid")

    @property
    def label_values(self) -> list[int]:
        """Label values in the order of the output channels, background first."""
        return sorted(self.labels.values())

    @property
    def label_names(self) -> list[str]:
        """Names of the labels in the order of their values."""
        return sorted(self.labels, key=self.labels.__getitem__)

    @property
    def axis_pairs(self) -> tuple[str, ...]:
        """The two directions of each patient axis that `orientation` names: `LR`, `PA`, `IS` in three dimensions."""
        if self.slice_axis is None:
            return _AXES[: self.spatial_dims]
        return tuple(pair for pair in _AXES if self.slice_axis not in pair)

    @property
    def digest(self) -> str:
        """SHA-256 of the plan's values, independent of the file's formatting."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The values as plain data, without where they were read from."""
        values = asdict(self)
        del values["source"]
        for key in _LATER_KEYS:  # left out where unused, so that the digest of an earlier plan stays what it was
            if values[key] is None:
                del values[key]
        return json.loads(json.dumps(values))

    def create_network(self) -> torch.nn.Module:
        """Build the network with fresh weights."""
        from medseg.networks import create

        return create(
            self.network["name"],
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            **self.network.get("arguments", {}),
        )


def _type_rules(plan: Plan) -> list[tuple[str, bool]]:
    """What kind of value each key must hold, and whether it does."""

    def each(values: Any, kind: Any) -> bool:
        return isinstance(values, Sequence) and not isinstance(values, str) and all(isinstance(v, kind) for v in values)

    def is_number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

    def numbers(values: Any) -> bool:
        return each(values, int | float) and all(is_number(v) for v in values)

    kinds = {
        "name": ("a text", isinstance(plan.name, str)),
        "channels": ("a list of {name, modality}", each(plan.channels, Mapping)),
        "labels": ("an object of name: value", isinstance(plan.labels, Mapping)),
        "orientation": ("a text such as RAS", isinstance(plan.orientation, str)),
        "spacing": ("a list of finite numbers, or null", plan.spacing is None or numbers(plan.spacing)),
        "normalization": ("a list of {scheme, …}", each(plan.normalization, Mapping)),
        "patch": ("a list of whole numbers", each(plan.patch, int)),
        "tile": ("a list of whole numbers", each(plan.tile, int)),
        "network": ("an object {name, arguments}", isinstance(plan.network, Mapping)),
        "overlap": ("a number", is_number(plan.overlap)),
        "crop_ratios": ("a list of finite numbers, or null", plan.crop_ratios is None or numbers(plan.crop_ratios)),
        "mirror_axes": ("a list of whole numbers", each(plan.mirror_axes, int)),
        "air_below": ("a finite number, or null", plan.air_below is None or is_number(plan.air_below)),
        "slice_axis": ("a text such as S, or null", plan.slice_axis is None or isinstance(plan.slice_axis, str)),
    }
    return [(f"{key} must be {kind}, found {getattr(plan, key)!r}", holds) for key, (kind, holds) in kinds.items()]


def _rules(plan: Plan) -> list[tuple[str, bool]]:
    """Each rule a plan keeps, worded with the value found, and whether it holds."""
    dims = plan.spatial_dims
    values = list(plan.labels.values())
    rules = [
        (
            f"schema_version must be {SCHEMA_VERSION}, found {plan.schema_version!r}",
            plan.schema_version == SCHEMA_VERSION,
        ),
        (f"spatial_dims must be 2 or 3, found {dims!r}", dims in (2, 3)),
        (
            f"channels needs at least one {{name, modality}}, found {list(plan.channels)}",
            len(plan.channels) > 0 and all({"name", "modality"} <= set(channel) for channel in plan.channels),
        ),
        (
            f"slice_axis must be R, A or S, and is for 2D networks only; found {plan.slice_axis!r}",
            plan.slice_axis is None or (plan.slice_axis in ("R", "A", "S") and dims == 2),
        ),
        (
            f"orientation needs one letter of each of {' '.join(plan.axis_pairs)}, found {plan.orientation!r}",
            len(plan.orientation) == dims and _is_orientation(plan.orientation, plan.axis_pairs),
        ),
        (f"labels must contain background: 0, found {dict(plan.labels)}", plan.labels.get("background") == 0),
        (f"labels must be distinct non-negative integers, found {values}", _are_label_values(values)),
        (
            f"normalization needs one entry a channel ({len(plan.channels)}), found {len(plan.normalization)}",
            len(plan.normalization) == len(plan.channels),
        ),
        (
            f"normalization: each entry needs a scheme, found {list(plan.normalization)}",
            all(isinstance(entry.get("scheme"), str) for entry in plan.normalization),
        ),
        (f"overlap must be in [0, 1), found {plan.overlap!r}", 0 <= plan.overlap < 1),
        (f"blending must be gaussian or constant, found {plan.blending!r}", plan.blending in ("gaussian", "constant")),
        (
            f"activation must be softmax or sigmoid, found {plan.activation!r}",
            plan.activation in ("softmax", "sigmoid"),
        ),
        (f"network must have a name, found {dict(plan.network)}", isinstance(plan.network.get("name"), str)),
        (
            f"mirror_axes must lie in 0..{dims - 1}, found {list(plan.mirror_axes)}",
            all(a in range(dims) for a in plan.mirror_axes),
        ),
    ]
    for key in ("patch", "tile"):
        size = getattr(plan, key)
        rules.append((f"{key} needs {dims} positive sizes, found {size}", len(size) == dims and min(size) > 0))
    if plan.spacing is not None:
        rules.append(
            (
                f"spacing needs {dims} positive values in mm, found {plan.spacing}",
                len(plan.spacing) == dims and min(plan.spacing) > 0,
            )
        )
    if plan.crop_ratios is not None:
        rules.append(
            (
                f"crop_ratios needs one ratio a label ({len(values)}), found {list(plan.crop_ratios)}",
                len(plan.crop_ratios) == len(values) and min(plan.crop_ratios) >= 0 and sum(plan.crop_ratios) > 0,
            )
        )
    return rules


def _is_orientation(codes: str, pairs: Sequence[str]) -> bool:
    return all(sum(code in pair for code in codes) == 1 for pair in pairs)


def _are_label_values(values: Sequence[Any]) -> bool:
    return all(isinstance(v, int) and v >= 0 for v in values) and len(set(values)) == len(values)


def read_plan(path: str | Path) -> Plan:
    """Read a plan.json and check it.

    Raises:
        PlanError: the file is absent, not JSON, has unknown or missing keys, or a value breaks a rule.
    """
    path = Path(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PlanError(f"{path}: no such file; run in the bundle's folder or give --bundle_root BUNDLE") from None
    except OSError as error:
        raise PlanError(f"{path}: could not be read: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise PlanError(f"{path}: a plan is a JSON object, found {type(values).__name__}")
    known = {f.name for f in fields(Plan)} - {"source"}
    unknown = sorted(set(values) - known)
    if unknown:
        raise PlanError(f"{path}: unknown key {unknown[0]!r}; valid keys are {', '.join(sorted(known))}")
    try:
        return Plan(**values, source=str(path))
    except TypeError as error:
        raise PlanError(f"{path}: {str(error).replace('Plan.__init__() ', '')}") from None
