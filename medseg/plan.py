"""Read and check a plan: all values of a bundle as plain data.

A plan contains numbers and names, never code. `medseg.load` builds the network and its preprocessing from the plan
without evaluating anything, and the configs of the bundle take their values from the same file.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medseg.errors import NetworkError, PlanError, did_you_mean, one_line

if TYPE_CHECKING:
    import torch

SCHEMA_VERSION = 1
_AXES = ("LR", "PA", "IS")
MAX_CHANNELS = 1024
MAX_VOXELS = 2**27  # of a patch or tile: 512 × 512 × 512
MAX_ARGUMENT_CHARACTERS = 20_000  # of all network arguments as JSON
MAX_ERROR_CHARACTERS = 500
_LATER_KEYS = (
    "slice_axis",
    "air_below",
    "regions",
    "label_regions",
    "regions_class_order",
    "resampling",
    "restoring",
    "padding",
)  # added after the first plans were published


@dataclass(frozen=True)
class Plan:
    """All values of one bundle (`configs/plan.json`).

    Args:
        name: name of the bundle, e.g. `hippocampus_unet3d_segmentation`.
        spatial_dims: 2 or 3.
        channels: one `{"name", "modality"}` per input channel.
        labels: value of each class in label maps, by name; `background` is 0. Sorted by value, the classes are the
            output channels of the network.
        orientation: axis codes of the model grid, e.g. `RAS`.
        spacing: voxel size of the model grid in mm, one value per axis; None keeps the spacing of each scan.
        normalization: one scheme per channel, as `NormalizeIntensityByModality` takes it.
        patch: size of a training patch in voxels.
        tile: size of a tile of the sliding window in voxels.
        overlap: fraction of a tile that it shares with the next one, in [0, 1).
        blending: weights of the voxels of a tile where tiles overlap, `gaussian` or `constant`.
        activation: `softmax` for exclusive labels, `sigmoid` for overlapping regions.
        network: `{"name": preset, "arguments": {...}}` for `medseg.networks.create`.
        crop_ratios: relative frequency of training patches centred on each class, sorted by label value.
        mirror_axes: axes along which the network was trained with mirrored images. Test-time flips along other axes
            are refused.
        slice_axis: for a 2D network that segments volumes slice by slice, the patient axis (`R`, `A` or `S`)
            perpendicular to the slices; `orientation` then names the two axes of a slice. None expects 2D images.
        air_below: intensity of the first channel, as stored in the file, below which a voxel is always background.
            Prediction skips tiles with no voxel above it. None predicts every tile.
        label_regions: structures that overlap, as values of `labels`, by name: the output channels of a network with
            `sigmoid`. None makes each label but the background a structure.
        regions_class_order: the label value that a predicted structure of `label_regions` gets in a label map, one per
            structure. A later structure is drawn over an earlier one, as in nnU-Net.
        regions: parts of a scan to which a network that was trained on crops is applied; see `region_rules` for the
            keys. None applies the network to the whole scan.
        resampling: how scans are resampled and logits restored if the network was trained by another program, whose
            steps are then repeated exactly; see `resampling_rules` for the keys. None is medseg's own way.
        restoring: what is brought back from the model grid to the scan's grid: `probabilities`, interpolated linearly,
            or `labels`, taken from the nearest voxel, as many pipelines of MONAI do. None interpolates logits.
        padding: how an image smaller than a tile is padded: `reflect`, `replicate` or `circular`. None pads with 0.
        description: one sentence about the bundle.
        source: the file that the plan was read from, for error messages.
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
    regions: Mapping[str, Any] | None = None
    label_regions: Mapping[str, Sequence[int]] | None = None
    regions_class_order: Sequence[int] | None = None
    resampling: Mapping[str, Any] | None = None
    restoring: Literal["probabilities", "labels"] | None = None
    padding: Literal["reflect", "replicate", "circular"] | None = None
    description: str = ""
    schema_version: int = SCHEMA_VERSION
    source: str = field(default="<plan>", compare=False)

    def __post_init__(self) -> None:
        # Types are checked first, because the rules about values compare and count them.
        for check in (_type_rules, _rules, region_rules, label_region_rules, resampling_rules):
            for rule, holds in check(self):
                if not holds:
                    raise PlanError(f"{self.source}: {_shortened(rule)}")

    @property
    def in_channels(self) -> int:
        """Number of input channels."""
        return len(self.channels)

    @property
    def out_channels(self) -> int:
        """Number of output channels of the network: one per label for softmax, one per structure for sigmoid.

        A network that is applied to `regions` has one per entry of their `channels`.
        """
        if self.label_regions is not None:
            return len(self.label_regions)
        if self.regions is not None:
            return len(self.regions["channels"])
        return len(self.labels) - (self.activation == "sigmoid")

    @property
    def label_values(self) -> list[int]:
        """Label values that the output channels are drawn with, in their order, beginning with the background."""
        if self.regions_class_order is not None:
            return [0, *self.regions_class_order]
        return sorted(self.labels.values())

    @property
    def label_names(self) -> list[str]:
        """Names of the labels in the order of their values."""
        return sorted(self.labels, key=self.labels.__getitem__)

    @property
    def channels_of_labels(self) -> dict[str, int]:
        """Position of each label in the order of their values: its number inside a training."""
        return {name: number for number, name in enumerate(self.label_names)}

    @property
    def output_names(self) -> list[str]:
        """Names of what the output channels stand for, beginning with the background, which sigmoid has no channel for.

        They are the labels, the `label_regions`, or the `channels` of the `regions`.
        """
        if self.label_regions is not None:
            return ["background", *self.label_regions]
        return self.label_names if self.regions is None else list(self.regions["channels"])

    @property
    def structures(self) -> dict[str, tuple[int, ...]]:
        """Label values of each structure, by name: the `label_regions`, or every label but the background."""
        if self.label_regions is not None:
            return {name: tuple(values) for name, values in self.label_regions.items()}
        return {name: (self.labels[name],) for name in self.label_names if self.labels[name] != 0}

    @property
    def classes_of_structures(self) -> dict[str, list[int]]:
        """Numbers inside a training of the labels that each structure consists of, by name.

        Inside a training, the labels sorted by value are 0, 1, 2, ….
        """
        number = {value: position for position, value in enumerate(sorted(self.labels.values()))}
        return {name: [number[value] for value in values] for name, values in self.structures.items()}

    @property
    def drawn_classes(self) -> list[int]:
        """As `label_values`, but with the numbers that labels have inside a training."""
        order = sorted(self.labels.values())
        return [order.index(value) for value in self.label_values]

    @property
    def axis_pairs(self) -> tuple[str, ...]:
        """The two directions of each patient axis in `orientation`: `LR`, `PA`, `IS` in three dimensions."""
        if self.slice_axis is None:
            return _AXES[: self.spatial_dims]
        return tuple(pair for pair in _AXES if self.slice_axis not in pair)

    @property
    def digest(self) -> str:
        """SHA-256 of the values, independent of the formatting of the file."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return the values as plain data, without `source`."""
        values = asdict(self)
        del values["source"]
        for key in _LATER_KEYS:  # unused keys are left out, so that they do not change the digest of older plans
            if values[key] is None:
                del values[key]
        return json.loads(json.dumps(values))

    def create_network(self, max_bytes: int | None = None, initialize: bool = True) -> torch.nn.Module:
        """Build the network with new random weights.

        Args:
            max_bytes: limit of its parameters, checked before memory is allocated; None for the physical memory.
            initialize: False leaves the parameters undefined; see `medseg.networks.create`.

        Raises:
            NetworkError: the plan names no valid network, or it is too large.
        """
        from medseg.networks import create

        try:
            return create(
                self.network["name"],
                in_channels=self.in_channels,
                out_channels=self.out_channels,
                max_bytes=max_bytes,
                initialize=initialize,
                **self.network.get("arguments", {}),
            )
        except NetworkError as error:
            raise NetworkError(f"{self.source}: {_shortened(one_line(error))}") from error


def read_plan(path: str | Path) -> Plan:
    """Read a plan.json and check it.

    Args:
        path: the file.

    Raises:
        PlanError: the file does not exist or is not JSON, a key is unknown or missing, or a value breaks a rule.
    """
    path = Path(path)
    from medseg.volumes.files import read_json  # brings NumPy and nibabel along, which `import medseg` does not need

    if not path.exists():
        raise PlanError(f"{path}: no such file; run in the bundle's folder or give --bundle_root BUNDLE")
    values = read_json(path, PlanError)
    if not isinstance(values, dict):
        raise PlanError(f"{path}: a plan must be a JSON object; found {type(values).__name__}")
    known = {f.name: f for f in fields(Plan) if f.name != "source"}
    for key in sorted(set(values) - set(known)):
        hint = did_you_mean(key, known) or f"; known keys are {', '.join(sorted(known))}"
        raise PlanError(f"{path}: unknown key {_shortened(repr(key))}{hint}")
    missing = [key for key, f in known.items() if f.default is MISSING and key not in values]
    if missing:
        raise PlanError(f"{path}: missing key {missing[0]!r}; add it")
    return Plan(**values, source=str(path))


def _shortened(text: str) -> str:
    if len(text) <= MAX_ERROR_CHARACTERS:
        return text
    return f"{text[: MAX_ERROR_CHARACTERS // 2]} … {text[-MAX_ERROR_CHARACTERS // 2 :]}"


def _type_rules(plan: Plan) -> list[tuple[str, bool]]:
    """Return the message for a wrong type of each key, and whether the type is right."""

    def is_list_of(values: Any, kind: Any) -> bool:
        return isinstance(values, Sequence) and not isinstance(values, str) and all(isinstance(v, kind) for v in values)

    def is_number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

    def is_list_of_numbers(values: Any) -> bool:
        return is_list_of(values, int | float) and all(is_number(v) for v in values)

    ratios, air, axis = plan.crop_ratios, plan.air_below, plan.slice_axis
    overlapping, order = plan.label_regions, plan.regions_class_order
    types = {
        "name": ("text", isinstance(plan.name, str)),
        "spatial_dims": ("a whole number", isinstance(plan.spatial_dims, int)),
        "description": ("text", isinstance(plan.description, str)),
        "channels": ("a list of {name, modality}", is_list_of(plan.channels, Mapping)),
        "labels": ("an object of name: value", isinstance(plan.labels, Mapping)),
        "orientation": ("text such as RAS", isinstance(plan.orientation, str)),
        "spacing": ("a list of finite numbers, or null", plan.spacing is None or is_list_of_numbers(plan.spacing)),
        "normalization": ("a list of {scheme, …}", is_list_of(plan.normalization, Mapping)),
        "patch": ("a list of whole numbers", is_list_of(plan.patch, int)),
        "tile": ("a list of whole numbers", is_list_of(plan.tile, int)),
        "network": ("an object {name, arguments}", isinstance(plan.network, Mapping)),
        "overlap": ("a number", is_number(plan.overlap)),
        "crop_ratios": ("a list of finite numbers, or null", ratios is None or is_list_of_numbers(ratios)),
        "regions": ("an object, or null", plan.regions is None or isinstance(plan.regions, Mapping)),
        "label_regions": (
            "an object of name: [values], or null",
            overlapping is None
            or (isinstance(overlapping, Mapping) and all(is_list_of(values, int) for values in overlapping.values())),
        ),
        "regions_class_order": ("a list of whole numbers, or null", order is None or is_list_of(order, int)),
        "resampling": ("an object, or null", plan.resampling is None or isinstance(plan.resampling, Mapping)),
        "mirror_axes": ("a list of whole numbers", is_list_of(plan.mirror_axes, int)),
        "air_below": ("a finite number, or null", air is None or is_number(air)),
        "slice_axis": ("text such as S, or null", axis is None or isinstance(axis, str)),
    }
    return [(f"{key} must be {kind}; found {getattr(plan, key)!r}", holds) for key, (kind, holds) in types.items()]


def _rules(plan: Plan) -> list[tuple[str, bool]]:
    """Return the message of each rule about values, and whether the plan follows the rule."""
    dims = plan.spatial_dims
    values = list(plan.labels.values())
    version, axes, blending, activation = plan.schema_version, plan.axis_pairs, plan.blending, plan.activation
    rules = [
        (f"schema_version must be {SCHEMA_VERSION}; found {version!r}", version == SCHEMA_VERSION),
        (f"spatial_dims must be 2 or 3; found {dims!r}", dims in (2, 3)),
        (
            f"name must consist of letters, digits, '.', '_' and '-' and begin with one of the first two; found "
            f"{plan.name!r}",
            re.fullmatch(r"\w[\w.-]{0,99}", plan.name) is not None,
        ),
        (
            f"channels must have at most {MAX_CHANNELS} entries; found {len(plan.channels)}",
            len(plan.channels) <= MAX_CHANNELS,
        ),
        (
            f"channels needs at least one {{name, modality}}; found {list(plan.channels)}",
            len(plan.channels) > 0 and all({"name", "modality"} <= set(channel) for channel in plan.channels),
        ),
        (
            f"slice_axis must be R, A or S, for 2D networks only; found {plan.slice_axis!r}",
            plan.slice_axis is None or (plan.slice_axis in ("R", "A", "S") and dims == 2),
        ),
        (
            f"orientation needs one letter of each of {' '.join(axes)}; found {plan.orientation!r}",
            len(plan.orientation) == dims and all(sum(code in pair for code in plan.orientation) == 1 for pair in axes),
        ),
        (f"labels must contain background: 0; found {dict(plan.labels)}", plan.labels.get("background") == 0),
        (
            f"labels must have distinct whole numbers of 0 or more; found {values}",
            all(isinstance(v, int) and v >= 0 for v in values) and len(set(values)) == len(values),
        ),
        (
            f"normalization needs one entry per channel ({len(plan.channels)}); found {len(plan.normalization)}",
            len(plan.normalization) == len(plan.channels),
        ),
        (
            f"normalization needs a scheme in each entry; found {list(plan.normalization)}",
            all(isinstance(entry.get("scheme"), str) for entry in plan.normalization),
        ),
        (f"overlap must be in [0, 1); found {plan.overlap!r}", 0 <= plan.overlap < 1),
        (f"blending must be gaussian or constant; found {blending!r}", blending in ("gaussian", "constant")),
        (f"activation must be softmax or sigmoid; found {activation!r}", activation in ("softmax", "sigmoid")),
        (f"network must have a name; found {dict(plan.network)}", isinstance(plan.network.get("name"), str)),
        (
            f"network must have arguments of at most {MAX_ARGUMENT_CHARACTERS:,} characters",
            len(json.dumps(plan.network.get("arguments"), default=str)) <= MAX_ARGUMENT_CHARACTERS,
        ),
        (
            f"network needs arguments that are an object; found {plan.network.get('arguments')!r}",
            isinstance(plan.network.get("arguments", {}), Mapping),
        ),
        (
            f"restoring must be probabilities, labels or null, without resampling or regions; found {plan.restoring!r}",
            plan.restoring is None
            or (plan.restoring in ("probabilities", "labels") and plan.resampling is None and plan.regions is None),
        ),
        (
            f"padding must be reflect, replicate, circular or null, without resampling or regions; found "
            f"{plan.padding!r}",
            plan.padding is None
            or (plan.padding in ("reflect", "replicate", "circular") and plan.resampling is None and not plan.regions),
        ),
        (
            f"mirror_axes must be in 0..{dims - 1}; found {list(plan.mirror_axes)}",
            all(a in range(dims) for a in plan.mirror_axes),
        ),
    ]
    for key in ("patch", "tile"):
        size = getattr(plan, key)
        rules.append((f"{key} needs {dims} positive sizes; found {size}", len(size) == dims and min(size) > 0))
        rules.append((f"{key} must have at most {MAX_VOXELS:,} voxels; found {size}", math.prod(size) <= MAX_VOXELS))
    if plan.spacing is not None:
        is_valid = len(plan.spacing) == dims and min(plan.spacing) > 0
        rules.append((f"spacing needs {dims} positive values in mm; found {plan.spacing}", is_valid))
    if plan.crop_ratios is not None:
        ratios = list(plan.crop_ratios)
        is_valid = len(ratios) == len(values) and min(ratios) >= 0 and sum(ratios) > 0
        rules.append((f"crop_ratios needs one ratio per label ({len(values)}); found {ratios}", is_valid))
    return rules


_REGION_KEYS = ("boxes", "channels", "template", "template_sha256")
_BOX_KEYS = ("center_mm", "labels", "mirrored", "name", "size_mm")


def region_rules(plan: Plan) -> list[tuple[str, bool]]:
    """Return the rules about the regions of a plan, and whether they are met.

    `regions` has the keys `template` (a file in the bundle's folder, see `medseg.inference.regions.write_template`),
    `template_sha256`, `channels` (names of the network's output channels, `background` first) and `boxes`. A box has:

    - `name`: name of the region, e.g. `left`.
    - `center_mm`: its centre in mm of the template (RAS+).
    - `size_mm`: its size in mm of the scan along the template's axes, like the crops of the training.
    - `mirrored`: whether the network sees the box mirrored left to right.
    - `labels`: the label of the plan for each channel, `background` first.
    """
    if plan.regions is None:
        return []
    if sorted(plan.regions) != sorted(_REGION_KEYS):
        return [(f"regions needs the keys {', '.join(_REGION_KEYS)}; found {', '.join(plan.regions)}", False)]
    boxes, channels = plan.regions["boxes"], plan.regions["channels"]
    rules = [
        (
            "regions need a 3D network, softmax and a spacing",
            plan.spatial_dims == 3 and plan.activation == "softmax" and plan.spacing is not None,
        ),
        (f"regions: channels needs background and one more name; found {channels}", _begins_with_background(channels)),
        (f"regions: boxes needs at least one box; found {boxes}", isinstance(boxes, list | tuple) and len(boxes) > 0),
    ]
    for box in boxes if isinstance(boxes, list | tuple) else ():
        if not isinstance(box, Mapping) or sorted(box) != sorted(_BOX_KEYS):
            return [*rules, (f"regions: a box needs the keys {', '.join(_BOX_KEYS)}; found {box}", False)]
        where, labels, size = f"regions: box {box['name']!r}:", box["labels"], box["size_mm"]
        rules += [
            (f"{where} center_mm needs 3 numbers; found {box['center_mm']}", _are_three_numbers(box["center_mm"])),
            (f"{where} size_mm needs 3 positive numbers; found {size}", _are_three_numbers(size) and min(size) > 0),
            (f"{where} mirrored must be true or false; found {box['mirrored']!r}", isinstance(box["mirrored"], bool)),
            (
                f"{where} labels needs one label of the plan per channel, background first; found {labels}",
                _begins_with_background(labels) and len(labels) == len(channels) and set(labels) <= set(plan.labels),
            ),
        ]
    return rules


def label_region_rules(plan: Plan) -> list[tuple[str, bool]]:
    """Return the rules about structures that overlap, and whether they are met."""
    regions, order = plan.label_regions, plan.regions_class_order
    if regions is None:
        return [("regions_class_order is given without label_regions; add them, or remove it", order is None)]
    known = sorted(set(plan.labels.values()) - {0})
    rules = [
        (
            "label_regions need the activation sigmoid, and no regions",
            plan.activation == "sigmoid" and not plan.regions,
        ),
        (f"label_regions needs at least one structure; found {dict(regions)}", len(regions) > 0),
        (
            f"regions_class_order needs one label value per structure ({len(regions)}), each another; found {order}",
            order is not None and len(order) == len(regions) == len(set(order)),
        ),
    ]
    for (name, values), drawn in zip(regions.items(), order or (), strict=False):
        rules += [
            (
                f"label_regions: {name!r} needs values of labels above 0 ({known}); found {list(values)}",
                len(values) > 0 and set(values) <= set(known),
            ),
            (f"regions_class_order: {drawn} is no value of {name!r}; expected one of {list(values)}", drawn in values),
        ]
    return rules


def _begins_with_background(names: Any) -> bool:
    is_list = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return is_list and len(names) > 1 and names[0] == "background"


def _are_three_numbers(values: Any) -> bool:
    is_list = isinstance(values, list | tuple) and len(values) == 3
    return is_list and all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)


_RESAMPLING_KEYS = ("axes", "image", "logits", "program", "transpose")
_STEP_KEYS = ("method", "order", "order_z", "separate_z", "threshold")


def resampling_rules(plan: Plan) -> list[tuple[str, bool]]:
    """Return the rules about the `resampling` of a plan, and whether they are met.

    `resampling` has the keys:

    - `program`: whose steps are repeated; `nnunet` is nnU-Net 2.
    - `axes`: `file` takes the axes of an array as they are stored, `RAS` turns them to RAS+ first.
    - `transpose`: order of the network's axes, as numbers of the reversed axes of the array (nnU-Net's
      `transpose_forward`).
    - `image`, `logits`: how each is resampled: `method` (`spline`: scikit-image's `resize`; `torch`:
      `torch.nn.functional.interpolate`; `none`), `order` of the spline, `order_z` along a coarse axis, `separate_z`
      (true, false, or null to decide by the spacing), and the `threshold` of that decision: the ratio of the largest to
      the smallest spacing above which the coarse axis is resampled separately.
    """
    found = plan.resampling
    if found is None:
        return []
    if sorted(found) != sorted(_RESAMPLING_KEYS):
        return [(f"resampling needs the keys {', '.join(_RESAMPLING_KEYS)}; found {', '.join(map(str, found))}", False)]
    rules = [
        (f"resampling: program must be nnunet; found {found['program']!r}", found["program"] == "nnunet"),
        (f"resampling: axes must be file or RAS; found {found['axes']!r}", found["axes"] in ("file", "RAS")),
        (
            f"resampling: transpose must be an order of 0, 1, 2; found {found['transpose']!r}",
            isinstance(found["transpose"], list | tuple) and sorted(map(str, found["transpose"])) == ["0", "1", "2"],
        ),
        ("resampling: regions cannot be combined with it", plan.regions is None),
    ]
    for part, largest in (("image", 5), ("logits", 1)):
        step = found[part]
        if not isinstance(step, Mapping) or sorted(step) != sorted(_STEP_KEYS):
            return [*rules, (f"resampling: {part} needs the keys {', '.join(_STEP_KEYS)}; found {step!r}", False)]
        method, orders, threshold = step["method"], (step["order"], step["order_z"]), step["threshold"]
        rules += [
            (f"resampling: {part}: method must be spline, torch or none; found {method!r}",
             method in ("spline", "torch", "none")),
            (f"resampling: {part}: order and order_z must be in 0..{largest}; found {orders}",
             all(isinstance(order, int) and 0 <= order <= largest for order in orders)),
            (f"resampling: {part}: separate_z must be true, false or null; found {step['separate_z']!r}",
             step["separate_z"] in (True, False, None)),
            (f"resampling: {part}: threshold must be a number; found {threshold!r}",
             isinstance(threshold, int | float) and math.isfinite(threshold)),
        ]  # fmt: skip
    return rules
