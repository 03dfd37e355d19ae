"""Write networks for other runtimes: TorchScript and ONNX."""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medseg.errors import NetworkError
from medseg.networks.sizes import AxisSizes
from medseg.volumes import replacing, staged


def export_torchscript(network: nn.Module, path: str | Path) -> Path:
    """Write `network` in eval mode as TorchScript, atomically; the result takes any size the network can take.

    Raises:
        NetworkError: `path` does not end in `.pt` or `.ts`.
        VolumeError: the file cannot be written.
    """
    file = _checked_path(path, (".pt", ".ts"))
    with _in_eval_mode(network) as copy, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        content = io.BytesIO()
        torch.jit.save(torch.jit.script(copy), content)
    # torch.jit.save to a file ends the process if the disk is full
    with replacing(file) as temporary:
        temporary.write_bytes(content.getbuffer())
    return file


def export_onnx(network: nn.Module, path: str | Path, shape: Sequence[int] = ()) -> Path:
    """Write `network` in eval mode as one ONNX file, atomically.

    The input is called `image`, the output `logits`. Batch and spatial axes are free, within the sizes that the network
    can take, or fixed for a network that does not state them.

    Args:
        network: the network.
        path: the file.
        shape: (1, C, *tile) of the input of a network without `axes`.

    Raises:
        NetworkError: `path` does not end in `.onnx`, or the export extra is not installed.
        VolumeError: the file cannot be written.
    """
    file = _checked_path(path, (".onnx",))
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise NetworkError(f"{file}: ONNX export needs more packages; pip install 'medseg[export]'") from error
    is_free = getattr(network, "axes", None) is not None
    with _in_eval_mode(network) as copy, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            copy,
            (example_input(copy) if is_free else torch.randn(*shape),),
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=(dynamic_shape(copy.axes),) if is_free else None,
            dynamo=True,
            verbose=False,
        )
        if program is None:
            raise NetworkError(f"{file}: the ONNX exporter returned nothing")
        with staged(file) as temporary:
            program.save(temporary, external_data=False)
    return file


def example_input(network: Any) -> torch.Tensor:
    """Return a batch of two random images of a small valid size, different on each axis."""
    # Not the smallest sizes: an exporter would take their coarsest maps of one voxel for constants.
    shape = [axis.valid_sizes(5)[2 + i % 3] for i, axis in enumerate(network.axes)]
    return torch.randn(2, network.in_channels, *shape)


def dynamic_shape(axes: tuple[AxisSizes, ...]) -> dict[int, Any]:
    """Describe the input's axes for `torch.export`: a free batch, and the spatial sizes that the network can take."""
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


def _checked_path(path: str | Path, endings: tuple[str, ...]) -> Path:
    file = Path(path)
    if file.suffix not in endings:
        raise NetworkError(f"{file}: found the ending {file.suffix!r}, expected {' or '.join(endings)}")
    return file


@contextmanager
def _in_eval_mode(network: nn.Module) -> Iterator[Any]:
    yield deepcopy(network).cpu().float().eval().requires_grad_(False)
