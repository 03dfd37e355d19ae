"""Networks for other runtimes: TorchScript and ONNX."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medseg.errors import NetworkError
from medseg.networks.sizes import AxisSizes
from medseg.volumes import replacing, staged


def example_input(network: Any) -> torch.Tensor:
    """Return a batch of two random images of a small size `network` can take, a different one an axis."""
    # not the smallest sizes, whose coarsest maps of one voxel an exporter would take for constants
    shape = [axis.valid_sizes(5)[2 + i % 3] for i, axis in enumerate(network.axes)]
    return torch.randn(2, network.in_channels, *shape)


def export_torchscript(network: nn.Module, path: str | Path) -> Path:
    """Trace `network` in eval mode and write it as TorchScript, atomically; any valid size can be given to the result.

    Raises:
        NetworkError: `path` does not end in `.pt` or `.ts`.
        VolumeError: the file cannot be written.
    """
    file = _checked(path, (".pt", ".ts"))
    with _evaluated(network) as copy, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, on shapes that do follow the input
        traced = torch.jit.trace(copy, example_input(copy), check_trace=False)
        # torch's own writing of files ends the process where the disk is full
        content = io.BytesIO()
        torch.jit.save(traced, content)
        with replacing(file) as temporary:
            temporary.write_bytes(content.getbuffer())
    return file


def export_onnx(network: nn.Module, path: str | Path) -> Path:
    """Write `network` in eval mode as one ONNX file with dynamic batch and spatial axes, atomically.

    The input is called `image`, the output `logits`. Spatial sizes must be ones the network can take.

    Raises:
        NetworkError: `path` does not end in `.onnx`, or the export extra is not installed.
        VolumeError: the file cannot be written.
    """
    file = _checked(path, (".onnx",))
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise NetworkError("ONNX export needs the extra: pip install 'medseg[export]'") from error
    with _evaluated(network) as copy, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            copy,
            (example_input(copy),),
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=(dynamic_shape(copy.axes),),
            dynamo=True,
            verbose=False,
        )
        if program is None:
            raise NetworkError(f"{file}: the ONNX exporter returned nothing")
        with staged(file) as temporary:
            program.save(temporary, external_data=False)
    return file


def dynamic_shape(axes: tuple[AxisSizes, ...]) -> dict[int, Any]:
    """Return what `torch.export` must know of the input's axes: free batch, valid spatial sizes only."""
    shape: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=1024)}
    for number, axis in enumerate(axes, start=2):
        first, second = axis.valid_sizes(2)
        period = second - first
        if period == 1:
            shape[number] = torch.export.Dim(f"size{number}", min=first, max=4096)
        else:
            step = torch.export.Dim(f"step{number}", min=first // period, max=4096)
            shape[number] = period * step + first % period
    return shape


def _checked(path: str | Path, endings: tuple[str, ...]) -> Path:
    file = Path(path)
    if file.suffix not in endings:
        raise NetworkError(f"{file}: the ending must be {' or '.join(endings)}")
    return file


@contextlib.contextmanager
def _evaluated(network: nn.Module) -> Iterator[Any]:
    yield deepcopy(network).cpu().float().eval().requires_grad_(False)
