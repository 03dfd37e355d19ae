"""Translate the plans of nnU-Net 2 into a plan of medseg. What cannot be carried over is refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medseg.bundle.importing.nnunet_folder import BATCH_NORM_TRAINER, DATASET, PLANS, NNUNetModel
from medseg.errors import BundleError
from medseg.plan import Plan

# Orientation of the array's reversed axes for a scan stored in RAS+.
AXES = "SAR"
READERS_AS_STORED = ("SimpleITKIO", "NibabelIO", "Tiff3DIO")
READERS_IN_RAS = ("SimpleITKIOWithReorient", "NibabelIOWithReorient")
READER_OF_PICTURES = "NaturalImage2DIO"
_NETWORKS = {"PlainConvUNet": "unet_isensee2021", "ResidualEncoderUNet": "unet_residual_encoder"}
_MODALITIES = {"ct": "CT", "mri": "MR", "mr": "MR", "pet": "PT", "pt": "PT"}
_IGNORED_ARGUMENTS = {  # without effect on a prediction
    "n_stages", "dropout_op", "dropout_op_kwargs", "deep_supervision", "stochastic_depth_p",
}  # fmt: skip


def nnunet_plan(model: NNUNetModel, name: str) -> Plan:
    """Return the plan of a model of nnU-Net.

    Args:
        model: the model.
        name: name of the bundle.

    Raises:
        BundleError: the plans ask for something that medseg cannot do; the message names it.
        PlanError: a value of the plans is not possible.
    """
    configuration, plans, file = model.configuration, model.plans, model.path / PLANS
    _check_programs(model)
    dims = len(_value(configuration, "patch_size", file))
    transpose = [int(axis) for axis in plans["transpose_forward"]]
    letters = [AXES[axis] for axis in transpose]
    has_slices = dims == 2 and not _reads_pictures(model)
    if dims == 2 and not has_slices and transpose[0] != 0:
        raise BundleError(f"{file}: transpose_forward {transpose} of 2D images cannot be carried over")
    image = _resampling(configuration, "resampling_fn_data", file)
    logits = _resampling(configuration, "resampling_fn_probabilities", file)
    labels, regions = _labels(model), region_values(model)
    channels = _channels(model)
    return Plan(
        name=name,
        description=str(model.dataset.get("description") or f"Imported from nnU-Net: {plans.get('dataset_name', '')}"),
        spatial_dims=dims,
        channels=channels,
        labels=labels,
        orientation="".join(letters[-dims:]),
        slice_axis=letters[0] if has_slices else None,  # type: ignore[arg-type]
        spacing=None if image["method"] == "none" else [float(size) for size in configuration["spacing"]],
        normalization=_normalization(model, len(channels)),
        patch=[int(size) for size in configuration["patch_size"]],
        tile=[int(size) for size in configuration["patch_size"]],
        overlap=0.5,
        blending="gaussian",
        activation="sigmoid" if regions else "softmax",
        mirror_axes=list(model.mirror_axes),
        label_regions=regions or None,
        regions_class_order=_class_order(model, regions) if regions else None,
        network=_network(model, dims),
        resampling={
            "program": "nnunet",
            "axes": "RAS" if plans["image_reader_writer"] in READERS_IN_RAS else "file",
            "transpose": transpose,
            "image": image,
            "logits": logits,
        },
        source=str(file),
    )


def ignore_label(model: NNUNetModel) -> int | None:
    """Return the value of voxels without annotation in label maps; None if there is none."""
    value = model.dataset["labels"].get("ignore")
    return None if value is None else int(value)


def region_values(model: NNUNetModel) -> dict[str, list[int]]:
    """Return the label values of each region by name, in the order of the channels; empty without regions."""
    named = {name: value for name, value in model.dataset["labels"].items() if name != "ignore"}
    if not any(isinstance(value, list | tuple) and len(value) > 1 for value in named.values()):
        return {}
    values = {name: [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)]
              for name, value in named.items()}  # fmt: skip
    return {name: value for name, value in values.items() if set(value) != {0}}


def _value(configuration: Mapping[str, Any], key: str, file: Any) -> Any:
    if key not in configuration:
        raise BundleError(f"{file}: not written by a known version of nnU-Net 2; the key {key!r} is missing")
    return configuration[key]


def _check_programs(model: NNUNetModel) -> None:
    """Refuse classes of other people, which may do anything."""
    file = model.path / PLANS
    preprocessor = _value(model.configuration, "preprocessor_name", file)
    manager = model.plans.get("label_manager", "LabelManager")
    reader = model.plans["image_reader_writer"]
    known = (*READERS_AS_STORED, *READERS_IN_RAS, READER_OF_PICTURES)
    for what, found, expected in (
        ("preprocessor", preprocessor, ("DefaultPreprocessor",)),
        ("label manager", manager, ("LabelManager",)),
        ("image reader", reader, known),
    ):
        if found not in expected:
            raise BundleError(f"{file}: the {what} {found} is not known; expected {' or '.join(expected)}")


def _reads_pictures(model: NNUNetModel) -> bool:
    """Return True for a data set of 2D images, which nnU-Net reads as volumes of one slice."""
    shape = model.plans.get("original_median_shape_after_transp") or [0]
    return model.plans["image_reader_writer"] == READER_OF_PICTURES or shape[0] == 1


def _channels(model: NNUNetModel) -> list[dict[str, str]]:
    names = model.dataset.get("channel_names", model.dataset.get("modality"))
    if not isinstance(names, Mapping) or sorted(names) != sorted(str(number) for number in range(len(names))):
        raise BundleError(
            f'{model.path / DATASET}: channel_names must be numbered from 0, as in {{"0": "CT"}}; found {names!r}'
        )
    ordered = [str(names[str(number)]) for number in range(len(names))]
    return [{"name": name, "modality": _MODALITIES.get(name.lower(), name)} for name in ordered]


def _labels(model: NNUNetModel) -> dict[str, int]:
    """Return the value of each label by name.

    With regions, a value that is no region of its own has no name in nnU-Net and is called after its number, as in
    `medseg.datasets`.
    """
    file, found = model.path / DATASET, model.dataset["labels"]
    if not isinstance(found, Mapping) or found.get("background") != 0:
        raise BundleError(f'{file}: labels must be like {{"background": 0, "tumour": 1}}; found {found!r}')
    regions = region_values(model)
    if regions:
        values = sorted({value for each in regions.values() for value in each})
        named = {each[0]: name for name, each in regions.items() if len(each) == 1}
        return {"background": 0, **{named.get(value, f"label {value}"): value for value in values}}
    labels = {
        str(name): int(value[0] if isinstance(value, list | tuple) else value)
        for name, value in found.items() if name != "ignore"
    }  # fmt: skip
    if sorted(labels.values()) != list(range(len(labels))):
        raise BundleError(
            f"{file}: labels must be 0, 1, 2, … without a gap, because nnU-Net writes the number of the class; found "
            f"{sorted(labels.values())}"
        )
    return labels


def _class_order(model: NNUNetModel, regions: Mapping[str, Any]) -> list[int]:
    """Return the label value that each region is drawn with."""
    order = model.dataset.get("regions_class_order")
    if not isinstance(order, list) or len(order) != len(regions):
        raise BundleError(
            f"{model.path / DATASET}: regions_class_order needs one label value for each of the regions "
            f"{', '.join(regions)}; found {order!r}"
        )
    return [int(value) for value in order]


def _normalization(model: NNUNetModel, num_channels: int) -> list[dict[str, Any]]:
    configuration, file = model.configuration, model.path / PLANS
    schemes = _value(configuration, "normalization_schemes", file)
    masks = configuration.get("use_mask_for_norm") or [False] * num_channels
    if len(schemes) != num_channels or len(masks) != num_channels:
        raise BundleError(
            f"{file}: normalization_schemes needs one scheme per channel ({num_channels}); found {schemes}"
        )
    entries: list[dict[str, Any]] = []
    for channel, (scheme, is_masked) in enumerate(zip(schemes, masks, strict=True)):
        if scheme == "ZScoreNormalization":
            entries.append({"scheme": "z_score", **({"foreground": "mask"} if is_masked else {})})
        elif scheme == "CTNormalization":
            entries.append({"scheme": "ct", **_intensities(model, channel)})
        elif scheme == "RescaleTo01Normalization":
            entries.append({"scheme": "percentile", "lower": 0.0, "upper": 100.0})
        elif scheme == "RGBTo01Normalization":
            entries.append({"scheme": "window", "lower": 0.0, "upper": 255.0, "clip": False})
        elif scheme == "NoNormalization":
            entries.append({"scheme": "none"})
        else:
            raise BundleError(f"{file}: the normalisation {scheme} of channel {channel} is not known")
    return entries


def _intensities(model: NNUNetModel, channel: int) -> dict[str, float]:
    """Return the values of a CT normalisation."""
    plans = model.plans
    key = "foreground_intensity_properties_per_channel"
    found = plans.get(key, plans.get("foreground_intensity_properties_by_modality"))
    properties = found.get(str(channel)) if isinstance(found, Mapping) else None
    names = {"lower": "percentile_00_5", "upper": "percentile_99_5", "mean": "mean", "std": "std"}
    if not isinstance(properties, Mapping) or not set(names.values()) <= set(properties):
        raise BundleError(
            f"{model.path / PLANS}: {key} lacks the intensities of channel {channel}, which CTNormalization needs"
        )
    values = {ours: float(properties[theirs]) for ours, theirs in names.items()}
    return {**values, "std": max(values["std"], 1e-8)}


def _resampling(configuration: Mapping[str, Any], key: str, file: Any) -> dict[str, Any]:
    """Return the `image` or `logits` of a plan's `resampling`."""
    function, arguments = _value(configuration, key, file), dict(configuration.get(f"{key}_kwargs") or {})
    step: dict[str, Any] = {
        "method": "spline",
        "order": 3,
        "order_z": 0,
        "separate_z": False,
        "threshold": float(arguments.pop("separate_z_anisotropy_threshold", 3.0)),
    }
    is_labels = arguments.pop("is_seg", False)
    step["separate_z"] = arguments.pop("force_separate_z", None if function == "resample_torch_fornnunet" else False)
    if function == "no_resampling_hack":
        step |= {"method": "none", "order": 1, "separate_z": False}
    elif function == "resample_data_or_seg_to_shape":
        step |= {"order": arguments.pop("order", 3), "order_z": arguments.pop("order_z", 0)}
    elif function == "resample_torch_fornnunet":
        step |= {"method": "torch", "order": 1}
        for name in ("memefficient_seg_resampling", "num_threads", "device"):
            arguments.pop(name, None)
        for name, usual in (("mode", "linear"), ("aniso_axis_mode", "nearest-exact")):
            if arguments.pop(name, usual) != usual:
                raise BundleError(f"{file}: {key}: {name} of {function} must be {usual}; other modes are not known")
    else:
        raise BundleError(f"{file}: {key}: the function {function} is not known")
    if arguments or is_labels:
        raise BundleError(f"{file}: {key}: unknown arguments of {function}: {', '.join(arguments) or 'is_seg'}")
    if key == "resampling_fn_probabilities" and (step["order"] > 1 or step["order_z"] > 1):
        raise BundleError(
            f"{file}: {key}: order {max(step['order'], step['order_z'])} cannot be carried over; medseg restores "
            "logits with order 0 or 1"
        )
    return step


def _network(model: NNUNetModel, dims: int) -> dict[str, Any]:
    """Return the plan's network.

    Raises:
        BundleError: the class or an argument is not known.
    """
    file = model.path / PLANS
    class_name, given = _architecture(model.configuration, file, dims)
    module, _, short = class_name.rpartition(".")
    if short not in _NETWORKS or not module.startswith("dynamic_network_architectures."):
        raise BundleError(
            f"{file}: the network class {class_name} is not known; medseg runs PlainConvUNet and ResidualEncoderUNet"
        )
    arguments = {key: value for key, value in given.items() if key not in _IGNORED_ARGUMENTS}
    stages = int(given["n_stages"])

    def per_stage(key: str, count: int) -> list[Any]:
        value = arguments.pop(key)
        return [value] * count if isinstance(value, int) else list(value)

    is_residual = short == "ResidualEncoderUNet"
    strides = [_sizes(stride, dims) for stride in per_stage("strides", stages)]
    if any(step != 1 for step in strides[0]):
        raise BundleError(f"{file}: strides: the first stage must have the stride 1; found {strides[0]}")
    decoder = per_stage("n_conv_per_stage_decoder", stages - 1)
    has_bias = bool(arguments.pop("conv_bias", False))
    result = {
        "channels": [int(width) for width in per_stage("features_per_stage", stages)],
        "strides": strides[1:],
        "kernel_sizes": [_sizes(kernel, dims) for kernel in per_stage("kernel_sizes", stages)],
        "convolutions_per_stage": per_stage("n_blocks_per_stage" if is_residual else "n_conv_per_stage", stages),
        "decoder_convolutions": decoder[::-1],
        "norm": (norm := _norm(arguments, model, file)),
        "norm_affine": _norm_affine(arguments, norm, model, file),
        "activation": _activation(arguments, file),
        "conv_bias": has_bias,
        "upsampling_bias": has_bias,
    }
    if dims == 2:
        result["spatial_dims"] = 2
    if arguments.pop("nonlin_first", False):
        if is_residual:
            raise BundleError(f"{file}: nonlin_first of {short} cannot be carried over")
        result["order"] = "conv_act_norm"
    _check_rest(arguments, result, short, file)
    return {"name": _NETWORKS[short], "arguments": result}


def _architecture(configuration: Mapping[str, Any], file: Any, dims: int) -> tuple[str, dict[str, Any]]:
    """Return the class and the arguments of the network, also from the plans of nnU-Net 2.0 to 2.3."""
    if "architecture" in configuration:
        found = configuration["architecture"]
        return str(found["network_class_name"]), dict(found["arch_kwargs"])
    if "UNet_class_name" not in configuration:
        raise BundleError(
            f"{file}: not written by a known version of nnU-Net 2; neither architecture nor UNet_class_name is there"
        )
    name = str(configuration["UNet_class_name"])
    encoder = list(_value(configuration, "n_conv_per_stage_encoder", file))
    module = "residual_unet" if name == "ResidualEncoderUNet" else "unet"
    base, most = configuration["UNet_base_num_features"], configuration["unet_max_num_features"]
    arguments = {
        "n_stages": len(encoder),
        "features_per_stage": [min(base * 2**stage, most) for stage in range(len(encoder))],
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": configuration["conv_kernel_sizes"],
        "strides": configuration["pool_op_kernel_sizes"],
        "n_blocks_per_stage" if name == "ResidualEncoderUNet" else "n_conv_per_stage": encoder,
        "n_conv_per_stage_decoder": configuration["n_conv_per_stage_decoder"],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    known = name in _NETWORKS
    return (f"dynamic_network_architectures.architectures.{module}.{name}" if known else name), arguments


def _sizes(value: Any, dims: int) -> list[int]:
    return [int(value)] * dims if isinstance(value, int) else [int(size) for size in value]


def _norm(arguments: dict[str, Any], model: NNUNetModel, file: Any) -> str:
    name = str(arguments.pop("norm_op", None)).rpartition(".")[2]
    if model.trainer == BATCH_NORM_TRAINER:
        return "batch"
    for prefix, ours in (("InstanceNorm", "instance"), ("BatchNorm", "batch"), ("None", "none")):
        if name.startswith(prefix):
            return ours
    raise BundleError(f"{file}: the normalisation layer {name} is not known; expected InstanceNorm or BatchNorm")


def _norm_affine(arguments: dict[str, Any], norm: str, model: NNUNetModel, file: Any) -> bool:
    given = dict(arguments.pop("norm_op_kwargs", None) or {})
    if model.trainer == BATCH_NORM_TRAINER:
        return True
    is_affine = bool(given.pop("affine", norm == "batch"))  # PyTorch's own defaults
    if given.pop("eps", 1e-5) != 1e-5 or given:
        raise BundleError(f"{file}: norm_op_kwargs must be eps 1e-5 and affine; other arguments cannot be carried over")
    return is_affine


def _activation(arguments: dict[str, Any], file: Any) -> str:
    name = str(arguments.pop("nonlin", None)).rpartition(".")[2]
    given = dict(arguments.pop("nonlin_kwargs", None) or {})
    given.pop("inplace", None)
    activations = {"LeakyReLU": "leaky_relu", "ReLU": "relu", "GELU": "gelu"}
    if name not in activations or (name == "LeakyReLU" and given.pop("negative_slope", 0.01) != 0.01) or given:
        raise BundleError(
            f"{file}: the activation {name} with {given} is not known; expected LeakyReLU with slope 0.01"
        )
    return activations[name]


def _check_rest(arguments: dict[str, Any], ours: Mapping[str, Any], class_name: str, file: Any) -> None:
    """Refuse the arguments that no rule has translated, unless they have their usual values."""
    arguments.pop("conv_op", None)
    usual: dict[str, Sequence[Any]] = {
        "squeeze_excitation": (False,),
        "squeeze_excitation_reduction_ratio": (arguments.get("squeeze_excitation_reduction_ratio"),),
        "bottleneck_channels": (None,),
        "block": (None, "dynamic_network_architectures.building_blocks.residual.BasicBlockD"),
        "stem_channels": (None, ours["channels"][0]),
        "pool": ("conv",),
    }
    for key, value in arguments.items():
        if key not in usual or value not in usual[key]:
            raise BundleError(f"{file}: the argument {key}={value!r} of {class_name} cannot be carried over")
