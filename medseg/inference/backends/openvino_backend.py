"""The network compiled by OpenVINO: several times faster than eager PyTorch on a CPU.

Converted through OpenVINO's PyTorch frontend directly: `openvino.convert_model` would go through its command-line
converter, which reports its use where the telemetry package is installed.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from medseg.errors import BackendError, OptionError, VolumeError, first_line
from medseg.inference.backends.torch_backend import split_head
from medseg.networks.precision import Precision
from medseg.networks.stages import compose_stages
from medseg.volumes import replacing
from medseg.volumes.files import is_writable


def model_digest(network: nn.Module, shape: Sequence[int], *details: str) -> str:
    """SHA-256 of a network's weights, structure and code, of the shape it is compiled for, and of further details.

    Args:
        network: on the CPU.
        shape: (B, C, *tile).
        details: e.g. the compiler's version and the precision.
    """
    facts = [str(network), str(tuple(shape)), torch.__version__, *details]
    with suppress(LookupError, ImportError):  # run from a checkout that is not installed
        facts.append(version("medseg"))
    content = hashlib.sha256("|".join(facts).encode())
    for file in sorted(_source_files(network)):
        with suppress(OSError):
            content.update(Path(file).read_bytes())
    for name, tensor in sorted(network.state_dict().items()):
        content.update(name.encode())
        content.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def _source_files(network: nn.Module) -> set[str]:
    """Files that define the network's own classes; torch's are known by its version."""
    files = set()
    for kind in {type(module) for module in network.modules()}:
        if not kind.__module__.startswith("torch."):
            with suppress(TypeError, OSError):  # defined where there is no file, as in a notebook
                files.add(inspect.getfile(kind))
    return files


def cache_folder() -> Path:
    """`MEDSEG_CACHE_DIR`, or medseg's folder among the caches of this user as the system keeps them.

    It may not exist or not be writable: what is kept there saves time and nothing else.
    """
    if chosen := os.environ.get("MEDSEG_CACHE_DIR"):
        return Path(chosen)
    try:
        home = Path.home()
    except RuntimeError:  # a user without a home, as in some containers
        return Path(tempfile.gettempdir()) / f"medseg-{os.getpid()}"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "medseg" / "cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "medseg"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "medseg"


logger = logging.getLogger(__name__)


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
        cache_dir: keeps converted and compiled models by their content; None takes `cache_folder()`. One that cannot be
            written costs time only.

    Raises:
        BackendError: OpenVINO is not installed, or does not take the network.
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
        # a copy, because the composed kernels belong to the weights as they are now
        network = deepcopy(network).to(self.device).eval()
        compose_stages(network)
        split = split_head(network) if blend_features else None
        self.module = network if split is None else FeaturesOnly(network, split.features).eval()
        self.head_weight = None if split is None else split.weight
        self.head_bias = None if split is None else split.bias
        digest = model_digest(self.module, self.shape, openvino.__version__, precision)
        kept = Path(cache_dir or cache_folder()) / "openvino" / digest
        hints = {
            "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else "bf16",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        self.compiled = _compiled(self.module, self.shape, hints, kept)

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


def _compiled(module: nn.Module, shape: tuple[int, ...], hints: dict[str, Any], kept: Path) -> Any:
    """The network compiled, by way of the folder that keeps it; a folder that is damaged is not used again."""
    import openvino

    core = openvino.Core()
    if not is_writable(kept):
        return core.compile_model(_convert(module, shape), "CPU", hints)
    cached = {**hints, "CACHE_DIR": str(kept / "compiled")}
    model = kept / "converted" / "model.xml"
    for _ in range(2):
        try:
            if not model.is_file():
                _save(_convert(module, shape), model.parent)
            # read back, not as converted: what compiling keeps is found again by the model as read
            return core.compile_model(core.read_model(model), "CPU", cached)
        except (RuntimeError, OSError) as error:
            logger.warning("%s cannot be used: %s", kept, first_line(error))
            shutil.rmtree(kept, ignore_errors=True)
    return core.compile_model(_convert(module, shape), "CPU", hints)


def _save(converted: Any, folder: Path) -> None:
    """Write a converted model to the cache atomically."""
    import openvino

    try:
        with replacing(folder) as temporary:
            openvino.save_model(converted, temporary / "model.xml", compress_to_fp16=False)
    except VolumeError:
        if not folder.is_dir():  # else another process has written it in the meantime
            raise


def _convert(module: nn.Module, shape: tuple[int, ...]) -> Any:
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    # Not zeros: of a constant image, normalisation leaves nothing but rounding errors.
    example = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # on shapes, which are fixed here
            decoder = TorchScriptPythonDecoder(module, example_input=(example,), trace_kwargs={"check_trace": False})
        frontend = FrontEndManager().load_by_framework("pytorch")
        model = frontend.convert(frontend.load(decoder))
        model.reshape(list(shape))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # OpenVINO's errors have no common base, and the last line says most
        last = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise BackendError(f"openvino does not take the network ({last}); use the torch backend") from error
    return model
