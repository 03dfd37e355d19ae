"""Choose the backend and the precision, and give the reason in one line."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Literal, get_args

import torch
from torch import nn

from medseg.errors import BackendError, OptionError
from medseg.inference.backends.quantization import Ranges
from medseg.inference.backends.torch_backend import Backend, EnsembleBackend, StackedBackend, TorchBackend
from medseg.networks.precision import Precision, PrecisionChoice, has_fast_bf16, has_fast_int8
from medseg.networks.work import forward_flops

logger = logging.getLogger("medseg")

# Returns "" if a backend agrees with the recorded result, else the reason in one line.
GoldenCheck = Callable[[Backend], str]

# From this many floating-point operations per tile on, OpenVINO was measured to be faster: 1.5 to 3 times in fp32 and
# 1.1 to 1.9 times in bf16, for U-Nets of 0.8 to 300 GFLOP per tile on AVX-512. Below, converting takes longer than it
# saves.
OPENVINO_PAYS_FROM = 1e9


def choose_backend(
    networks: Sequence[nn.Module],
    device: torch.device,
    tiles: Sequence[int],
    name: Literal["auto", "torch", "openvino"] = "auto",
    precision: PrecisionChoice = "auto",
    golden_check: GoldenCheck | None = None,
    blends_members: bool = False,
    ranges: Sequence[Ranges] = (),
) -> tuple[Backend, str]:
    """Prepare the networks to run, and log the reason for the choice.

    Args:
        networks: one network, or several for an ensemble.
        device: where they run.
        tiles: (B, C, *tile) of a full batch.
        name: "torch", "openvino" (CPU only) or "auto". "auto" takes OpenVINO on a CPU if it is installed, accepts the
            network and a tile needs at least a GFLOP; otherwise torch. This is a rule and not a measurement, so that
            two runs choose the same.
        precision: "fp32"; "bf16", "fp16" or "int8" if the golden check allows it; or "auto", which takes the first of
            these that is fast on the hardware and that the golden check allows: "int8" with OpenVINO if there are
            `ranges` and the CPU has VNNI, "bf16", "fp16" on GPUs without bf16, "fp32".
        golden_check: runs the bundle's golden sample through a backend. It returns "" if the result agrees with the
            recorded result, else the reason in one line. Without a check, "auto" is "fp32".
        blends_members: return the logits of all members of an ensemble side by side instead of their mean, and never
            features.
        ranges: for int8, the ranges of each network's maps; see `medseg.inference.backends.quantization`.

    Returns:
        The backend, and the reason for its choice in one line.

    Raises:
        OptionError: the backend or precision does not exist or does not run on that device, or a low precision is
            requested and the golden check refuses it.
        BackendError: the backend is not installed, or cannot run the network.
    """
    if name not in ("auto", "torch", "openvino"):
        raise OptionError(f"backend must be auto, torch or openvino, found {name!r}")
    if precision not in get_args(PrecisionChoice):
        raise OptionError(f"precision must be auto, fp32, bf16, fp16 or int8, found {precision!r}")
    if name == "openvino" and device.type != "cpu":
        raise OptionError(f"the openvino backend runs on the CPU, found device {device}; use --backend torch")
    if precision == "int8":
        _check_int8(device, name, ranges)
        chosen, why = "openvino", "which int8 needs"
    elif precision == "fp16":
        if device.type != "cuda" or name == "openvino":
            raise OptionError("fp16 needs a CUDA device and the torch backend; use --precision bf16 or auto")
        chosen, why = "torch", "which fp16 needs"
    else:
        chosen, why = (name, "as asked") if name != "auto" else _choose_name(networks, device, tiles)
    at_precision = partial(
        _at_precision, networks, device, tiles, precision=precision, golden_check=golden_check,
        blends_members=blends_members, ranges=ranges,
    )  # fmt: skip
    try:
        backend, why_precision = at_precision(name=chosen)
    except BackendError as error:
        if name != "auto" or precision == "int8":
            raise
        chosen, why = "torch", str(error)
        backend, why_precision = at_precision(name=chosen)
    reason = f"{chosen} on {device} ({why}), {backend.precision} ({why_precision})"
    logger.info(reason)
    return backend, reason


def _check_int8(device: torch.device, name: str, ranges: Sequence[Ranges]) -> None:
    """Raise OptionError if int8 is asked for and cannot be used."""
    if device.type != "cpu" or name == "torch":
        raise OptionError("int8 needs the CPU and the openvino backend; use --device cpu and --backend auto")
    if not has_fast_int8():
        raise OptionError("int8 needs a CPU with VNNI or AMX instructions, which this one lacks; use --precision auto")
    if not ranges:
        raise OptionError(
            "int8 needs ranges that were measured for these weights, found none; run `medseg bundle quantize`, or use "
            "--precision auto"
        )


def _choose_name(networks: Sequence[nn.Module], device: torch.device, tiles: Sequence[int]) -> tuple[str, str]:
    """Return what "auto" takes, and the reason."""
    if device.type != "cpu":
        return "torch", "the backend for that device"
    if not has_openvino():
        return "torch", "openvino is not installed"
    try:
        work = sum(tile_flops(network, tiles) for network in networks)
    except Exception as error:  # a network's forward may fail in any way on tensors without storage
        return "torch", f"the work of a tile is unknown ({type(error).__name__})"
    if work < OPENVINO_PAYS_FROM:
        return "torch", f"a tile is {work / 1e9:.2g} GFLOP, too little for openvino to pay"
    return "openvino", f"a tile is {work / 1e9:.3g} GFLOP"


def _at_precision(
    networks: Sequence[nn.Module],
    device: torch.device,
    tiles: Sequence[int],
    name: str,
    precision: PrecisionChoice,
    golden_check: GoldenCheck | None,
    blends_members: bool,
    ranges: Sequence[Ranges],
) -> tuple[Backend, str]:
    """Return the backend at the precision that is requested or allowed, and the reason."""

    def build(chosen: Precision) -> Backend:
        return _build(networks, device, tiles, name, chosen, blends_members, ranges)

    if precision == "fp32" or (precision != "auto" and golden_check is None):
        return build(precision), "as asked"
    candidates = _fast_precisions(device, name, ranges) if precision == "auto" else [precision]
    if not candidates:
        return build("fp32"), f"this {device.type} is not faster in a lower precision"
    if golden_check is None:
        return build("fp32"), f"there is no golden sample that would allow {candidates[0]}"
    objections: list[str] = []
    for candidate in candidates:
        try:
            backend = build(candidate)
            objection = golden_check(backend.averaged if isinstance(backend, StackedBackend) else backend)
        except BackendError as error:
            if candidate != "int8" or precision == "int8":
                raise
            objection = str(error)
        if not objection:
            return backend, "; ".join([*objections, "the golden sample agrees"])
        if precision != "auto":
            raise OptionError(
                f"{precision} is refused, because the golden sample disagrees: {objection}; use --precision fp32"
            )
        objections.append(f"the golden sample does not allow {candidate}: {objection}")
    return build("fp32"), "; ".join(objections)


def _fast_precisions(device: torch.device, name: str, ranges: Sequence[Ranges]) -> list[Precision]:
    """Return the precisions that are faster than fp32, the fastest first."""
    found: list[Precision] = []
    # The ranges were written because int8 was measured to be faster than bf16 with this network.
    if ranges and name == "openvino" and has_fast_int8():
        found.append("int8")
    if has_fast_bf16(device):
        found.append("bf16")
    elif device.type == "cuda":
        found.append("fp16")
    return found


def _build(
    networks: Sequence[nn.Module],
    device: torch.device,
    tiles: Sequence[int],
    name: str,
    precision: Precision,
    blends_members: bool = False,
    ranges: Sequence[Ranges] = (),
) -> Backend:
    """Build the backend, or an ensemble if there are several networks."""
    # Features of different networks cannot be averaged.
    blend_features = len(networks) == 1 and not blends_members

    def member(number: int, network: nn.Module) -> Backend:
        if name == "openvino":
            from medseg.inference.backends.openvino_backend import OpenVINOBackend

            own = ranges[number] if ranges else None
            return OpenVINOBackend(network, tiles, precision, blend_features, own)
        return TorchBackend(network, device, precision, blend_features)

    members = [member(number, network) for number, network in enumerate(networks)]
    if len(members) == 1:
        return members[0]
    return StackedBackend(members) if blends_members else EnsembleBackend(members)


def tile_flops(network: nn.Module, shape: Sequence[int]) -> int:
    """Count the floating-point operations of convolutions and matrix products for one tile, without computing them.

    Args:
        network: the network.
        shape: (B, C, *tile).
    """
    counted = forward_flops(network, (1, *shape[1:]))
    if counted is not None:
        return counted
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode  # imports PyTorch's compiler, which takes a second

    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
        network(torch.empty(1, *shape[1:], device=device))
    return counter.get_total_flops()


def has_openvino() -> bool:
    """Return True if the openvino backend is installed."""
    try:
        return find_spec("openvino") is not None
    except ValueError:  # raised for a module that is blocked in sys.modules
        return False
