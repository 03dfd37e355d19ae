"""Run a network compiled by OpenVINO, which is several times faster than PyTorch on a CPU.

The network is converted by OpenVINO's PyTorch frontend directly. `openvino.convert_model` would use a command-line
converter, which reports its use if the telemetry package is installed.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import shutil
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from medseg.errors import BackendError, OptionError, VolumeError, first_line
from medseg.inference.backends.quantization import Ranges, insert_quantizers, measure_ranges
from medseg.inference.backends.stepwise_norm import use_stepwise_norms
from medseg.inference.backends.torch_backend import split_head
from medseg.networks.precision import Precision, has_fast_bf16
from medseg.networks.stages import compose_stages
from medseg.versions import installed_version
from medseg.volumes import replacing
from medseg.volumes.files import cache_folder, is_writable

logger = logging.getLogger(__name__)


class FeaturesOnly(nn.Module):
    """A network without its head.

    Args:
        network: owner of the parameters.
        features: its method that returns the features.
    """

    def __init__(self, network: nn.Module, features: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.network = network
        self.features = features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features (B, F, *tile)."""
        return self.features(x)


class OpenVINOBackend:
    """A network compiled for one fixed shape of tiles, because OpenVINO's fast convolutions need fixed shapes.

    Converted and compiled models are kept in `cache_folder()`, if it can be written.

    Args:
        network: copied, because compiling changes its layers.
        shape: (B, C, *tile) of a full batch; a smaller last batch is padded.
        precision: "fp32", "bf16" or "int8". With "int8", everything but the inner convolutions is computed in bf16
            where the CPU is faster with it, else in fp32.
        blend_features: return features instead of logits if they are fewer channels.
        ranges: values that the inputs of the convolutions have, which "int8" needs; see `measured_ranges`.

    Raises:
        BackendError: OpenVINO is not installed, or cannot convert the network, or the ranges belong to another one.
        OptionError: the precision is none of these, or "int8" without ranges.
    """

    name = "openvino"

    def __init__(
        self,
        network: nn.Module,
        shape: Sequence[int],
        precision: Precision = "fp32",
        blend_features: bool = True,
        ranges: Ranges | None = None,
    ) -> None:
        try:
            import openvino
        except ImportError as error:
            raise BackendError("the openvino backend is not installed; pip install 'medseg[openvino]'") from error
        if precision not in ("fp32", "bf16", "int8"):
            raise OptionError(f"the precision of openvino must be fp32, bf16 or int8, found {precision!r}")
        if precision == "int8" and not ranges:
            raise OptionError("int8 needs the ranges that `medseg bundle quantize` measures, found none")
        ranges = ranges if precision == "int8" else None
        self.device = torch.device("cpu")
        self.precision: Precision = precision
        self.shape = tuple(int(n) for n in shape)
        network = deepcopy(network).to(self.device).eval()
        compose_stages(network)
        if precision == "fp32":
            use_stepwise_norms(network)
        split = split_head(network) if blend_features else None
        self.module = network if split is None else FeaturesOnly(network, split.features).eval()
        self.head_weight = None if split is None else split.weight
        self.head_bias = None if split is None else split.bias
        folder = cache_folder()
        details = [] if ranges is None else [str(sorted(ranges.items()))]
        digest = model_digest(self.module, self.shape, openvino.__version__, precision, *details)
        cache = None if folder is None else folder / "openvino" / digest
        is_bf16 = precision == "bf16" or (precision == "int8" and has_fast_bf16())
        self.compiled = _compiled(self.module, self.shape, _hints("bf16" if is_bf16 else "f32"), cache, ranges)

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """See `Backend`."""
        if isinstance(tiles, FakeTensor):  # the memory estimate's tensors have no values
            return self.module(tiles)
        missing = self.shape[0] - tiles.shape[0]
        if missing:
            tiles = torch.cat([tiles, tiles.new_zeros(missing, *tiles.shape[1:])])
        result: Any = self.compiled([np.ascontiguousarray(tiles.numpy())])[0]
        # Copy, because OpenVINO writes every result into the same memory.
        return torch.from_numpy(np.array(result[: self.shape[0] - missing]))


def measured_ranges(network: nn.Module, tiles: Sequence[torch.Tensor]) -> Ranges:
    """Measure the range of the inputs of a network's convolutions, as int8 needs them.

    Args:
        network: copied.
        tiles: inputs (1, C, *tile), all of one size.

    Raises:
        BackendError: OpenVINO is not installed, or cannot convert the network.
    """
    try:
        import openvino
    except ImportError as error:
        raise BackendError("quantizing needs openvino; pip install 'medseg[openvino]'") from error
    network = deepcopy(network).cpu().eval()
    compose_stages(network)
    model = _convert(network, tuple(tiles[0].shape))
    core = openvino.Core()
    arrays = (tile.numpy() for tile in tiles)
    return measure_ranges(model, arrays, lambda probed: core.compile_model(probed, "CPU", _hints("f32")))


def _hints(precision: str) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }


def _compiled(
    module: nn.Module, shape: tuple[int, ...], hints: dict[str, Any], cache: Path | None, ranges: Ranges | None = None
) -> Any:
    """Compile a network, or load it from its cache folder. A damaged folder is removed and written again."""
    import openvino

    core = openvino.Core()
    if cache is None or not is_writable(cache):
        return core.compile_model(_convert(module, shape, ranges), "CPU", hints)
    hints_with_cache = {**hints, "CACHE_DIR": str(cache / "compiled")}
    model = cache / "converted" / "model.xml"
    for _ in range(2):
        try:
            if not model.is_file():
                _save(_convert(module, shape, ranges), model.parent)
            # Compile the model as read from the file, so that a later run finds it in the cache.
            return core.compile_model(core.read_model(model), "CPU", hints_with_cache)
        except (RuntimeError, OSError) as error:
            logger.warning("%s: the cache cannot be used and is removed; %s", cache, first_line(error))
            shutil.rmtree(cache, ignore_errors=True)
    return core.compile_model(_convert(module, shape, ranges), "CPU", hints)


def _save(converted: Any, folder: Path) -> None:
    """Write a converted model to the cache atomically."""
    import openvino

    try:
        with replacing(folder) as temporary:
            openvino.save_model(converted, temporary / "model.xml", compress_to_fp16=False)
    except VolumeError:
        if not folder.is_dir():  # else another process has written it in the meantime
            raise


def _convert(module: nn.Module, shape: tuple[int, ...], ranges: Ranges | None = None) -> Any:
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    # Trace with noise, because normalising a constant image leaves only rounding errors.
    example = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # about shapes, which are fixed here
            decoder = TorchScriptPythonDecoder(module, example_input=(example,), trace_kwargs={"check_trace": False})
        frontend = FrontEndManager().load_by_framework("pytorch")
        model = frontend.convert(frontend.load(decoder))
        model.reshape(list(shape))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # OpenVINO's errors share no class, and their last line says most
        last = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise BackendError(f"openvino cannot convert the network ({last}); use --backend torch") from error
    if ranges is not None:
        insert_quantizers(model, ranges)
    return model


def model_digest(network: nn.Module, shape: Sequence[int], *details: str) -> str:
    """Return the SHA-256 of a network's weights, structure and code, and of what it is compiled for.

    Args:
        network: on the CPU.
        shape: (B, C, *tile).
        details: further strings, such as the compiler's version and the precision.
    """
    facts = [str(network), str(tuple(shape)), torch.__version__, installed_version("medseg"), *details]
    content = hashlib.sha256("|".join(facts).encode())
    for file in sorted(_source_files(network)):
        with suppress(OSError):
            content.update(Path(file).read_bytes())
    for name, tensor in sorted(network.state_dict().items()):
        content.update(name.encode())
        content.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def _source_files(network: nn.Module) -> set[str]:
    """Return the files that define the network's classes, except torch's, whose version is part of the digest."""
    files = set()
    for kind in {type(module) for module in network.modules()}:
        if not kind.__module__.startswith("torch."):
            with suppress(TypeError, OSError):  # a class defined in a notebook has no file
                files.add(inspect.getfile(kind))
    return files
