"""The network compiled by OpenVINO: several times faster than eager PyTorch on a CPU.

Converted through OpenVINO's PyTorch frontend directly: `openvino.convert_model` would go through its command-line
converter, which reports its use where the telemetry package is installed.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from medseg.errors import BackendError, OptionError
from medseg.inference.backend import Precision
from medseg.inference.pointwise_head import split_head


class FeaturesOnly(nn.Module):
    """A network without its head.

    Args:
        network: holds the parameters.
        features: its method that stops before the head.
    """

    def __init__(self, network: nn.Module, features: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.network = network
        self.features = features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (B, F, *tile)."""
        return self.features(x)


class OpenVINOBackend:
    """A network compiled for one fixed shape of tiles (only fixed shapes get the fast convolutions).

    Args:
        network: on the CPU.
        shape: (B, C, *tile) of a full batch; a smaller last batch is padded.
        precision: "fp32" or "bf16".
        blend_features: give features instead of logits where that is fewer channels.
        cache_dir: keeps converted and compiled models by their content; None takes `MEDSEG_CACHE` or
            `~/.cache/medseg`.

    Raises:
        BackendError: OpenVINO is not installed.
    """

    name = "openvino"

    def __init__(
        self,
        network: nn.Module,
        shape: Sequence[int],
        precision: Precision = "fp32",
        blend_features: bool = True,
        cache_dir: str | Path | None = None,
    ) -> None:
        try:
            import openvino
        except ImportError as error:
            raise BackendError("the openvino backend is not installed; pip install 'medseg[openvino]'") from error
        if precision not in ("fp32", "bf16"):
            raise OptionError(f"precision must be fp32 or bf16, found {precision!r}")
        self.device = torch.device("cpu")
        self.precision: Precision = precision
        self.shape = tuple(int(n) for n in shape)
        network = network.to(self.device).eval()
        split = split_head(network) if blend_features else None
        self.module = network if split is None else FeaturesOnly(network, split.features).eval()
        self.head_weight = None if split is None else split.weight
        self.head_bias = None if split is None else split.bias
        cache = Path(cache_dir or os.environ.get("MEDSEG_CACHE") or Path.home() / ".cache" / "medseg") / "openvino"
        core = openvino.Core()
        model = _converted(core, self.module, self.shape, cache)
        hints = {
            "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else "bf16",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "CACHE_DIR": str(cache / "compiled"),
        }
        self.compiled = core.compile_model(model, "CPU", hints)

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """See `Backend`."""
        if isinstance(tiles, FakeTensor):  # the memory estimate asks for shapes, not for numbers
            return self.module(tiles)
        missing = self.shape[0] - tiles.shape[0]
        if missing:
            tiles = torch.cat([tiles, tiles.new_zeros(missing, *tiles.shape[1:])])
        result: Any = self.compiled([np.ascontiguousarray(tiles.numpy())])[0]
        # OpenVINO writes every result into the same memory.
        return torch.from_numpy(np.array(result[: self.shape[0] - missing]))


def _converted(core: Any, module: nn.Module, shape: tuple[int, ...], cache: Path) -> Any:
    """The network in OpenVINO's form, from the cache where it was converted before."""
    import openvino

    folder = cache / "converted" / _digest(module, shape, openvino.__version__)
    if (folder / "model.xml").is_file():
        return core.read_model(folder / "model.xml")
    model = _convert(module, shape)
    with suppress(OSError):  # a cache that cannot be written, or that another process filled first, costs time only
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as scratch:
            openvino.save_model(model, Path(scratch) / "model" / "model.xml", compress_to_fp16=False)
            (Path(scratch) / "model").replace(folder)
    return model


def _convert(module: nn.Module, shape: tuple[int, ...]) -> Any:
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with torch.no_grad():
        decoder = TorchScriptPythonDecoder(module, example_input=(torch.zeros(shape),))
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    model.reshape(list(shape))
    return model


def _digest(module: nn.Module, shape: tuple[int, ...], version: str) -> str:
    """Digest of everything the converted model depends on."""
    content = hashlib.sha256(f"{module}|{shape}|{version}|{torch.__version__}".encode())
    for name, tensor in sorted(module.state_dict().items()):
        content.update(name.encode())
        content.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()
