"""Translate the inference config of a MONAI bundle into a plan. What cannot be carried over is refused by name."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg.bundle.importing.monai_config import Component, InertConfig
from medseg.errors import BundleError
from medseg.networks.monai_networks import MONAI_CLASSES, PREFIX
from medseg.plan import Plan

IMAGE, PRED = "image", "pred"
_DIMS = 3
_MODALITIES = {"ct": "CT", "mri": "MR", "mr": "MR", "pet": "PT", "pt": "PT"}
# The parts of a config that make its prediction, as MONAI names them, and how the evaluator refers to them.
_PARTS = {
    "network": ("@network",),
    "inferer": ("@inferer",),
    "postprocessing": ("@postprocessing",),
    "val_data_loader": ("@dataloader",),
}
_NETWORK = ("$@network_def.to(@device)", "@network_def", "$@network_def")
_EVALUATOR_IGNORED = (
    "device", "val_handlers", "amp", "amp_kwargs", "non_blocking", "to_kwargs", "compile", "compile_kwargs",
    "key_val_metric", "additional_metrics", "metric_cmp_fn", "epoch_length",
)  # fmt: skip
_HANDLERS = (
    "StatsHandler", "CheckpointLoader", "MetricsSaver", "TensorBoardStatsHandler", "TensorBoardImageHandler",
    "GarbageCollector",
)  # fmt: skip
_META = ("meta_keys", "meta_key_postfix", "orig_meta_keys", "allow_missing_keys")


@dataclass
class _Preprocessing:
    """Collect the steps of a preprocessing while its config is read.

    Args:
        orientation: axis codes; "" before an Orientationd.
        spacing: in mm; None without a Spacingd.
        schemes: of the normalisation, in their order.
        needs_one_channel: the first component that scales all channels together; "" if none does.
    """

    orientation: str = ""
    spacing: list[float] | None = None
    schemes: list[dict[str, Any]] = field(default_factory=list)
    needs_one_channel: str = ""


def monai_plan(config: InertConfig, metadata: Mapping[str, Any], metadata_file: Path, name: str) -> Plan:
    """Return the plan of a bundle.

    Args:
        config: its inference config.
        metadata: its metadata.json.
        metadata_file: where that lies, for messages.
        name: name of the new bundle.

    Raises:
        BundleError: a component, an argument or an expression cannot be carried over; the message names it.
        PlanError: a value is not possible.
    """
    _check_evaluator(config)
    network, in_channels, out_channels = _network(config)
    prepared = _preprocessing(config)
    if prepared.needs_one_channel and in_channels > 1:
        raise BundleError(
            f"{config.file}: {prepared.needs_one_channel}: scales the {in_channels} channels together; medseg "
            "normalises each channel by itself"
        )
    window = _window(config)
    activation, restoring = _postprocessing(config)
    if activation == "sigmoid" and out_channels != 1:
        raise BundleError(
            f"{config.file}: postprocessing: AsDiscreted with a threshold makes {out_channels} overlapping label maps; "
            "medseg carries over argmax, or a threshold of one channel"
        )
    schemes = prepared.schemes or [{"scheme": "none"}]
    scheme = schemes[0] if len(schemes) == 1 else {"scheme": "sequence", "steps": schemes}
    return Plan(
        name=name,
        description=str(metadata.get("description") or metadata.get("task") or "Imported from a MONAI bundle"),
        spatial_dims=_DIMS,
        channels=_channels(metadata, metadata_file, in_channels),
        labels=_labels(metadata, metadata_file, out_channels, activation),
        orientation=prepared.orientation,
        spacing=prepared.spacing,
        normalization=[scheme] * in_channels,
        patch=window["tile"],
        activation=activation,
        network=network,
        restoring=restoring,
        source=str(config.file),
        **window,
    )


def _check_evaluator(config: InertConfig) -> None:
    """Check that the parts which are translated are those that the evaluator runs."""
    for part in ("network_def", "preprocessing", "inferer", "postprocessing", "evaluator", "dataset", "dataloader"):
        if part not in config:
            raise BundleError(
                f"{config.file}: has no {part}; a bundle that can be imported defines it by this name, as the bundles "
                "of MONAI's model zoo do"
            )
    evaluator = config.component("@evaluator", "evaluator")
    if evaluator.name != "SupervisedEvaluator":
        raise evaluator.error("cannot be carried over; expected SupervisedEvaluator")
    for key, allowed in _PARTS.items():
        _check_reference(evaluator, key, allowed)
    if "val_handlers" in evaluator.arguments:
        for handler in config.components(evaluator.arguments["val_handlers"], "evaluator#val_handlers"):
            if handler.name not in _HANDLERS:
                raise handler.error("cannot be carried over, because it may change the result")
    evaluator.ignore(*_EVALUATOR_IGNORED)
    evaluator.expect("decollate", True, default=True)
    evaluator.expect("mode", "eval", default="eval")
    evaluator.finish()
    if "network" in config and config.raw("network") not in _NETWORK:
        raise config.error("network", f"found {config.raw('network')!r}, expected {_NETWORK[0]!r}")
    _check_reference(config.component("@dataloader", "dataloader"), "dataset", ("@dataset",))
    _check_reference(config.component("@dataset", "dataset"), "transform", ("@preprocessing",))


def _check_reference(component: Component, key: str, allowed: tuple[str, ...]) -> None:
    found = component.arguments.pop(key, None)
    if found not in allowed:
        raise component.error(f"{key}: found {str(found)[:100]!r}, expected {allowed[0]!r}")


def _network(config: InertConfig) -> tuple[dict[str, Any], int, int]:
    """Return the plan's network, and the numbers of its channels."""
    import monai.networks.nets as nets

    component = config.component("@network_def", "network_def")
    if component.name not in MONAI_CLASSES:
        raise component.error(f"this network cannot be carried over; expected one of {', '.join(MONAI_CLASSES)}")
    known = inspect.signature(getattr(nets, component.name)).parameters
    component.is_disabled()
    arguments = {key: component.take(key) for key in [*component.arguments]}
    channels = []
    for key in ("in_channels", "out_channels"):
        value = arguments.pop(key, known[key].default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise component.error(f"{key}: found {value!r}, expected a number of channels")
        channels.append(value)
    if component.name == "SwinUNETR" and "img_size" not in known:
        arguments.pop("img_size", None)  # MONAI 1.5 removed it: the network takes any multiple of 32
    dims = arguments.get("spatial_dims", _DIMS)
    if dims != _DIMS:
        raise component.error(f"spatial_dims: found {dims!r}, expected {_DIMS}; medseg imports networks of volumes")
    if "_target_" in json.dumps(arguments):
        raise component.error("an argument is a component itself, which cannot be carried over")
    return {"name": f"{PREFIX}{component.name}", "arguments": arguments}, channels[0], channels[1]


def _preprocessing(config: InertConfig) -> _Preprocessing:
    prepared = _Preprocessing()
    is_loaded = False
    for step in _transforms(config, "preprocessing"):
        translate = _STEPS.get(step.name)
        if translate is None:
            raise step.error(f"this transform cannot be carried over; medseg carries over {', '.join(_STEPS)}")
        _check_keys(step, IMAGE)
        if step.name == "LoadImaged":
            is_loaded = True
        elif not is_loaded:
            raise step.error("comes before LoadImaged; correct the order")
        translate(step, prepared)
        step.ignore(*_META)
        step.finish()
    if not prepared.orientation:
        raise config.error(
            "preprocessing",
            "has no Orientationd; medseg does not carry over a network that takes the axes as each file stores them",
        )
    return prepared


def _transforms(config: InertConfig, part: str) -> list[Component]:
    compose = config.component(f"@{part}", part)
    if compose.name != "Compose":
        raise compose.error("expected Compose")
    steps = config.components(compose.arguments.pop("transforms", None), f"{compose.where}#transforms")
    compose.expect("lazy", False, None, default=False)
    compose.ignore("map_items", "log_stats", "overrides", "unpack_items")
    compose.finish()
    return steps


def _check_keys(step: Component, expected: str) -> None:
    keys = step.take("keys")
    if keys not in (expected, [expected]):
        raise step.error(f"works on {keys!r}, expected {expected!r}")


def _load(step: Component, _: _Preprocessing) -> None:
    reader = step.take("reader")
    if reader is not None and str(reader).lower().rpartition(".")[2] not in ("itkreader", "nibabelreader"):
        raise step.error(f"the reader {reader!r} cannot be carried over; expected ITKReader or NibabelReader")
    _check_float32(step)
    step.ignore("image_only", "ensure_channel_first", "overwriting", "prune_meta_pattern", "simple_keys")


def _ensure_channel_first(step: Component, _: _Preprocessing) -> None:
    step.expect("channel_dim", None, "no_channel")
    step.ignore("strict_check")


def _ensure_type(step: Component, _: _Preprocessing) -> None:
    _check_float32(step)
    step.expect("data_type", "tensor", default="tensor")
    step.ignore("device", "track_meta", "wrap_sequence", "drop_meta", "non_blocking")


def _check_float32(step: Component) -> None:
    dtype = step.take("dtype", "float32")
    if dtype not in (None, "float32", "float"):
        raise step.error(f"dtype={dtype!r} cannot be carried over; expected float32")


def _orientation(step: Component, prepared: _Preprocessing) -> None:
    if prepared.spacing is not None:
        raise step.error("comes after Spacingd; medseg turns the axes first, which gives another grid")
    if prepared.orientation:
        raise step.error("comes twice; keep one of them")
    prepared.orientation = str(step.take("axcodes"))
    step.expect("as_closest_canonical", False, default=False)
    step.expect("lazy", False, default=False)
    step.ignore("labels")


def _spacing(step: Component, prepared: _Preprocessing) -> None:
    if prepared.schemes:
        raise step.error("comes after a change of intensities; medseg resamples first")
    if not prepared.orientation or prepared.spacing is not None:
        raise step.error("must come once and after Orientationd")
    pixdim = step.take("pixdim")
    if (
        not isinstance(pixdim, list)
        or len(pixdim) != _DIMS
        or not all(_is_number(size) and size > 0 for size in pixdim)
    ):
        raise step.error(f"pixdim: found {pixdim!r}, expected {_DIMS} sizes in mm")
    prepared.spacing = [float(size) for size in pixdim]
    _expect_each(step, "mode", "bilinear", default="bilinear")
    _expect_each(step, "padding_mode", "border", default="border")
    for key in ("align_corners", "diagonal", "scale_extent", "recompute_affine", "lazy"):
        _expect_each(step, key, False, None, default=False)
    for key in ("min_pixdim", "max_pixdim"):
        step.expect(key, None)
    step.take("dtype")  # float64 or float32: the difference is one of rounding
    step.ignore("ensure_same_shape")


def _expect_each(step: Component, key: str, *allowed: Any, default: Any) -> None:
    """Check an argument that may be given once or in a list of one, for the one key."""
    value = step.take(key, default)
    step.arguments[key] = value[0] if isinstance(value, list) and len(value) == 1 else value
    step.expect(key, *allowed, default=default)


def _scale_range(step: Component, prepared: _Preprocessing) -> None:
    lower, upper = step.number("a_min"), step.number("a_max")
    _check_float32(step)
    prepared.schemes.append({"scheme": "window", "lower": lower, "upper": upper, **_output_range(step)})


def _scale_percentiles(step: Component, prepared: _Preprocessing) -> None:
    lower, upper = step.number("lower"), step.number("upper")
    step.expect("relative", False, default=False)
    _check_float32(step)
    _note_channels(step, prepared)
    prepared.schemes.append({"scheme": "percentile", "lower": lower, "upper": upper, **_output_range(step)})


def _output_range(step: Component) -> dict[str, Any]:
    first, last = step.number("b_min", None), step.number("b_max", None)
    clips = step.take("clip", False) is True
    if (first is None) != (last is None):
        raise step.error("b_min and b_max must be given together")
    if first is None or last is None:
        return {"out_min": 0.0, "out_max": 1.0, "clip": False}
    return {"out_min": first, "out_max": last, "clip": clips}


def _scale(step: Component, prepared: _Preprocessing) -> None:
    first, last = step.number("minv", 0.0), step.number("maxv", 1.0)
    step.expect("factor", None)
    _check_float32(step)
    _note_channels(step, prepared)
    prepared.schemes.append(
        {"scheme": "percentile", "lower": 0.0, "upper": 100.0, "out_min": first, "out_max": last, "clip": False}
    )


def _normalize(step: Component, prepared: _Preprocessing) -> None:
    mean, std = (step.number(key, None) for key in ("subtrahend", "divisor"))
    is_nonzero = step.expect("nonzero", False, True, default=False)
    _check_float32(step)
    if (mean is None) != (std is None):
        raise step.error("subtrahend and divisor must be given together")
    scheme: dict[str, Any] = {"scheme": "z_score"}
    if mean is not None:
        scheme |= {"mean": mean, "std": std}
        step.ignore("channel_wise")
    else:
        _note_channels(step, prepared)
    prepared.schemes.append(scheme | ({"foreground": "nonzero", "outside": "unchanged"} if is_nonzero else {}))


def _note_channels(step: Component, prepared: _Preprocessing) -> None:
    if not step.expect("channel_wise", False, True, default=False):
        prepared.needs_one_channel = prepared.needs_one_channel or f"{step.where}: {step.name}"


_STEPS: dict[str, Callable[[Component, _Preprocessing], None]] = {
    "LoadImaged": _load,
    "EnsureChannelFirstd": _ensure_channel_first,
    "EnsureTyped": _ensure_type,
    "CastToTyped": _ensure_type,
    "ToTensord": _ensure_type,
    "Orientationd": _orientation,
    "Spacingd": _spacing,
    "ScaleIntensityRanged": _scale_range,
    "ScaleIntensityRangePercentilesd": _scale_percentiles,
    "ScaleIntensityd": _scale,
    "NormalizeIntensityd": _normalize,
}


def _window(config: InertConfig) -> dict[str, Any]:
    """Return the plan's values of the sliding window."""
    inferer = config.component("@inferer", "inferer")
    if inferer.name != "SlidingWindowInferer":
        raise inferer.error("this inferer cannot be carried over; expected SlidingWindowInferer")
    size = inferer.take("roi_size")
    size = [size] * _DIMS if isinstance(size, int) else size
    if not isinstance(size, list) or len(size) != _DIMS or not all(isinstance(n, int) and n > 0 for n in size):
        raise inferer.error(f"roi_size: found {size!r}, expected {_DIMS} sizes in voxels")
    overlap = inferer.take("overlap", 0.25)
    if isinstance(overlap, list) and len(set(map(str, overlap))) == 1:
        overlap = overlap[0]
    if not _is_number(overlap):
        raise inferer.error(f"overlap: found {overlap!r}, expected one number for all axes")
    mode = inferer.expect("mode", "constant", "gaussian", default="constant")
    inferer.expect("sigma_scale", 0.125, default=0.125)
    padding = inferer.expect("padding_mode", "constant", "reflect", "replicate", "circular", default="constant")
    inferer.expect("cval", 0, default=0)
    inferer.expect("with_coord", False, default=False)
    inferer.ignore(
        "sw_batch_size", "sw_device", "device", "progress", "cache_roi_weight_map", "cpu_thresh", "buffer_steps",
        "buffer_dim",
    )  # fmt: skip
    inferer.finish()
    return {
        "tile": size,
        "overlap": overlap,
        "blending": mode,
        "padding": None if padding == "constant" else padding,
    }


def _postprocessing(config: InertConfig) -> tuple[Any, Any]:
    """Return the activation, and what is restored to the scan's grid: the plan's `restoring`."""
    activation: str | None = None
    decision: str | None = None
    restored: str | None = None
    is_saved = False
    for step in _transforms(config, "postprocessing"):
        name = step.name
        if is_saved:
            raise step.error("comes after SaveImaged; correct the order")
        if name == "SaveImaged":
            is_saved = True
            continue
        _check_keys(step, PRED)
        step.ignore(*_META)
        if name in ("EnsureTyped", "ToTensord", "CastToTyped"):
            _ensure_type(step, _Preprocessing())
        elif name == "Activationsd" and activation is None and decision is None and restored is None:
            flags = [step.take(key, False) is True for key in ("softmax", "sigmoid")]
            step.expect("other", None)
            if all(flags):
                raise step.error("softmax and sigmoid exclude each other")
            activation = "softmax" if flags[0] else "sigmoid" if flags[1] else None
        elif name == "Invertd" and restored is None:
            restored = _inverted(step, decision)
        elif name == "AsDiscreted" and decision is None:
            decision = _decided(step, activation)
        else:
            raise step.error("this transform cannot be carried over here")
        step.finish()
    if decision is None or restored is None:
        missing = "AsDiscreted" if decision is None else "Invertd"
        raise config.error("postprocessing", f"has no {missing}; medseg writes labels on the scan's own grid")
    if restored == "values":
        restored = None if activation is None else "probabilities"
    return decision, restored


def _inverted(step: Component, decision: str | None) -> str:
    """Return what Invertd brings back: `labels`, or `values` that are interpolated linearly."""
    _check_reference(step, "transform", ("@preprocessing", "$@preprocessing"))
    if step.take("orig_keys", IMAGE) not in (IMAGE, [IMAGE]):
        raise step.error(f"orig_keys must be {IMAGE!r}")
    step.expect("post_func", None)
    step.ignore("to_tensor", "device")
    is_nearest = step.expect("nearest_interp", False, True, default=True)
    if decision is not None and not is_nearest:
        raise step.error("interpolates the numbers of labels linearly, which gives wrong labels between them")
    if decision is None and is_nearest:  # the label of the nearest voxel is decided by the values of that voxel
        return "labels"
    return "labels" if decision is not None else "values"


def _decided(step: Component, activation: str | None) -> str:
    """Return the plan's activation."""
    is_argmax, threshold = step.take("argmax", False) is True, step.number("threshold", None)
    for key in ("to_onehot", "rounding", "logit_thresh", "n_classes"):
        step.expect(key, None)
    if is_argmax and threshold is None:
        return "softmax"
    if not is_argmax and activation == "sigmoid" and threshold == 0.5:
        return "sigmoid"
    raise step.error("cannot be carried over; expected argmax, or the threshold 0.5 of a sigmoid")


def _format(metadata: Mapping[str, Any], role: str, name: str) -> Mapping[str, Any]:
    """Return the description of the network's input or output; empty if there is none."""
    formats = metadata.get("network_data_format")
    tensors = formats.get(role) if isinstance(formats, Mapping) else None
    if not isinstance(tensors, Mapping) or not tensors:
        return {}
    found = tensors.get(name, next(iter(tensors.values())))
    return found if isinstance(found, Mapping) else {}


def _channel_names(described: Mapping[str, Any], count: int, file: Path, where: str) -> list[str]:
    """Return the names in a channel_def; "" where there is none.

    Raises:
        BundleError: the metadata states another number of channels than the network has.
    """
    definition = described.get("channel_def") or {}
    stated = described.get("num_channels", count)
    if stated != count or not isinstance(definition, Mapping) or len(definition) not in (0, count):
        raise BundleError(
            f"{file}: {where} states num_channels {stated!r} and a channel_def of {len(definition)} channel(s); the "
            f"network has {count}; correct one of them"
        )
    if definition and sorted(map(str, definition)) != sorted(map(str, range(count))):
        raise BundleError(f"{file}: {where}: channel_def must be numbered 0 to {count - 1}; found {list(definition)}")
    named = {int(number): str(name).strip() for number, name in definition.items()}
    return [named.get(number, "") for number in range(count)]


def _channels(metadata: Mapping[str, Any], file: Path, count: int) -> list[dict[str, str]]:
    described = _format(metadata, "inputs", IMAGE)
    names = _channel_names(described, count, file, "the input")
    modality = str(described.get("modality") or "unknown")
    modality = _MODALITIES.get(modality.lower(), modality)
    return [{"name": name or f"channel {number}", "modality": modality} for number, name in enumerate(names)]


def _labels(metadata: Mapping[str, Any], file: Path, count: int, activation: str) -> dict[str, int]:
    """Return the value of each label by name: the number of its channel, or 1 for the one channel of a sigmoid."""
    names = _channel_names(_format(metadata, "outputs", PRED), count, file, "the output")
    if activation == "sigmoid":
        return {"background": 0, names[0] or "label 1": 1}
    named = ["background", *(name or f"label {number}" for number, name in enumerate(names[1:], start=1))]
    if names[0].lower() not in ("", "background") and "background" in map(str.lower, names[1:]):
        raise BundleError(f"{file}: channel_def names the channel 0 {names[0]!r}; expected the background; correct it")
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        raise BundleError(f"{file}: channel_def has two channels called {twice!r}; give each a name of its own")
    return {name: number for number, name in enumerate(named)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
