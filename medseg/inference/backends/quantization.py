"""Compute the convolutions of a converted network in int8.

A convolution is computed in int8 if its input and its weights are rounded to 256 levels. In an OpenVINO graph, an
operation `FakeQuantize` in front of each of the two says so, and the compiler replaces the rounded convolution by one
of integers, with sums in int32. Weights have one scale per output channel, which follows from the weights. Inputs have
one range per map, which is measured on some tiles.

Everything else stays as it is: normalisation, activation and attention; transposed convolutions, which are not faster
in int8; the convolutions of the image, which are cheap; and the last ones, after which nothing evens the
rounding out.

OpenVINO's own tool for this, NNCF, also rounds the inputs of normalisation and misses convolutions behind a padding,
such as the folded ones (`medseg.networks.folding`), which take the most time. On the hippocampus 3D U-Net its golden
logits differ from fp32 by twice as much (0.034 standard deviations, here 0.017), at the same speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from medseg.errors import BackendError

# Smallest and largest value of the input of each convolution that is computed in int8, by the convolution's name.
Ranges = Mapping[str, tuple[float, float]]

ACTIVATION_LEVELS, WEIGHT_LEVELS = 256, 255
_CONVOLUTIONS = ("Convolution", "ConvolutionBackpropData")
# Operations that move values and compute none, so that they give the same in int8; with the inputs that hold values.
_MOVING = ("MaxPool", "Pad", "Concat")


def measure_ranges(model: Any, tiles: Iterable[np.ndarray], compile_model: Callable[[Any], Any]) -> Ranges:
    """Measure the range of the inputs of a network's convolutions.

    The ends of a range are means of the smallest and largest values per tile, so that a single outlier does not make
    the levels coarse. Maps that are joined have one range.

    Args:
        model: an OpenVINO model, which is not changed.
        tiles: inputs (B, C, *tile).
        compile_model: compiles a model.

    Returns:
        Ranges that contain 0; none for a network without inner convolutions.
    """
    import openvino

    model = model.clone()
    _fold_constants(model)
    sources = {_name(layer): [output for output, _ in _sources(layer)] for layer in _inner_convolutions(model)}
    group = _groups(sources.values())
    outputs = {_key(output): output for found in sources.values() for output in found}
    if not outputs:
        return {}
    compiled = compile_model(openvino.Model(list(outputs.values()), model.get_parameters()))
    lows, highs = {key: [] for key in outputs}, {key: [] for key in outputs}  # type: ignore[var-annotated]
    for tile in tiles:
        for key, values in zip(outputs, compiled([np.ascontiguousarray(tile)]).values(), strict=True):
            lows[key].append(float(values.min()))
            highs[key].append(float(values.max()))
    ranges = {}
    for name, found in sources.items():
        members = [key for key in outputs if group[key] == group[_key(found[0])]]
        low, high = min(np.mean(lows[key]) for key in members), max(np.mean(highs[key]) for key in members)
        ranges[name] = (_rounded(min(low, 0.0)), _rounded(max(high, 0.0)))
    return ranges


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def insert_quantizers(model: Any, ranges: Ranges) -> None:
    """Quantize the inputs and weights of convolutions in place.

    Args:
        model: an OpenVINO model of a network.
        ranges: as measured for the same network; convolutions without a range are left as they are.

    Raises:
        BackendError: a convolution with a range is not in the model.
    """
    _fold_constants(model)
    layers = {_name(layer): layer for layer in _convolutions_of_maps(model)}
    unknown = sorted(ranges.keys() - layers.keys())
    if unknown:
        raise BackendError(
            f"the int8 ranges were measured for another graph, found {unknown[0]!r}, which this version of openvino or "
            "medseg does not make; run `medseg bundle quantize` again"
        )
    quantized: dict[tuple[str, float, float], Any] = {}
    for name, (low, high) in ranges.items():
        for output, place in _sources(layers[name]):
            key = (_key(output), low, high)
            if key not in quantized:
                quantized[key] = _fake_quantized(output, *_with_exact_zero(low, high), ACTIVATION_LEVELS)
            place.replace_source_output(quantized[key])
        _quantize_weights(layers[name])


def _inner_convolutions(model: Any) -> list[Any]:
    """Return the convolutions to compute in int8: those of maps that are not the image, without the last ones."""
    used = {name for op in model.get_ops() if op.get_type_name() in _CONVOLUTIONS for name in _convolutions_before(op)}
    return [layer for layer in _convolutions_of_maps(model) if layer.get_name() in used]


def _convolutions_of_maps(model: Any) -> list[Any]:
    """Return the convolutions with constant weights that do not see the image, in the order of the computation.

    Without its head, a network ends with one of these.
    """
    found = [op for op in model.get_ordered_ops() if op.get_type_name() == "Convolution"]
    with_constants = [op for op in found if op.input_value(1).get_node().get_type_name() == "Constant"]
    return [op for op in with_constants if not _sees_image(op)]


def _convolutions_before(layer: Any) -> set[str]:
    """Return the names of the convolutions whose results reach a layer without another convolution between."""
    found, seen, todo = set(), set(), [layer.input_value(0).get_node()]
    while todo:
        node = todo.pop()
        name = node.get_name()
        if name in seen:
            continue
        seen.add(name)
        if node.get_type_name() in _CONVOLUTIONS:
            found.add(name)
        else:
            todo += [value.get_node() for value in node.input_values()]
    return found


def _fold_constants(model: Any) -> None:
    """Compute the parts of kernels and the sizes that are constant, so that kernels are constants."""
    from openvino import passes

    manager = passes.Manager()
    manager.register_pass(passes.ConstantFolding())
    manager.run_passes(model)


def _sees_image(layer: Any) -> bool:
    return any(output.get_node().get_type_name() == "Parameter" for output, _ in _sources(layer))


def _sources(layer: Any) -> list[tuple[Any, Any]]:
    """Return the computed maps that a convolution's input consists of, each with the place where it goes in."""
    found, todo = [], [layer.input(0)]
    while todo:
        place = todo.pop()
        node = place.get_source_output().get_node()
        kind = node.get_type_name()
        if kind in _MOVING and (kind != "Pad" or _pads_zeros(node)):
            todo += node.inputs() if kind == "Concat" else [node.input(0)]
        else:
            found.append((place.get_source_output(), place))
    return found


def _pads_zeros(pad: Any) -> bool:
    value = pad.input_value(3).get_node() if pad.get_input_size() > 3 else None
    is_constant = pad.get_pad_mode() == "constant"
    is_zero = value is None or (value.get_type_name() == "Constant" and not np.any(value.get_data()))
    return is_constant and is_zero


def _groups(joined: Iterable[list[Any]]) -> dict[str, int]:
    """Return the number of the group of each map; maps that are joined anywhere are in one group."""
    group: dict[str, int] = {}
    for number, outputs in enumerate(joined):
        touched = {group[_key(output)] for output in outputs if _key(output) in group}
        group |= {_key(output): number for output in outputs}
        group |= {key: number for key, old in group.items() if old in touched}
    return group


def _with_exact_zero(low: float, high: float) -> tuple[float, float]:
    """Move the ends of a range a little, so that 0, with which maps are padded, is one of the levels."""
    step = max(high - low, 1e-6) / (ACTIVATION_LEVELS - 1)
    zero = round(-low / step)
    return -zero * step, (ACTIVATION_LEVELS - 1 - zero) * step


def _quantize_weights(layer: Any) -> None:
    weights = layer.input_value(1).get_node()
    values = weights.get_data()  # (O, I, …)
    largest = np.abs(values).max(tuple(range(1, values.ndim)), keepdims=True)
    largest = np.maximum(largest, 1e-8).astype(np.float32)
    layer.input(1).replace_source_output(_fake_quantized(weights.output(0), -largest, largest, WEIGHT_LEVELS))


def _fake_quantized(output: Any, low: Any, high: Any, levels: int) -> Any:
    from openvino import opset13

    ends = [np.asarray(end, dtype=np.float32) for end in (low, high, low, high)]
    return opset13.fake_quantize(output, *ends, levels).output(0)


def _name(layer: Any) -> str:
    """Return the name of a convolution, the same whether the network was converted with its head or without."""
    return str(layer.get_friendly_name()).replace("__module.network.", "__module.")


def _key(output: Any) -> str:
    return f"{output.get_node().get_name()}:{output.get_index()}"
