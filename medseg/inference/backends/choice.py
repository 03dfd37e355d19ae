"""Choosing backend and precision, and saying why in one line."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Literal

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from medseg.errors import BackendError, OptionError
from medseg.inference.backends.compiling import compile_if_it_pays
from medseg.inference.backends.torch_backend import Backend, EnsembleBackend, TorchBackend
from medseg.networks.precision import Precision, has_fast_bf16


def tile_flops(network: nn.Module, shape: Sequence[int]) -> int:
    """Floating-point operations of convolutions and matrix products in one pass over (B, C, *tile), a tile of them.

    The pass is done on tensors without storage.
    """
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
        network(torch.empty(1, *shape[1:], device=device))
    return counter.get_total_flops()


logger = logging.getLogger("medseg")

GoldenCheck = Callable[[Backend], str]

# From this much work a tile on, OpenVINO was measured to be faster (1.5 to 3 times in fp32, 1.1 to 1.9 in bf16, U-Nets
# of 0.8 to 300 GFLOP a tile on AVX-512); below it, converting takes longer than the scans do.
OPENVINO_PAYS_FROM = 1e9


def choose_backend(
    networks: Sequence[nn.Module],
    device: torch.device,
    tiles: Sequence[int],
    name: Literal["auto", "torch", "openvino"] = "auto",
    precision: Precision | Literal["auto"] = "fp32",
    golden_check: GoldenCheck | None = None,
    blend_features: bool = True,
    is_compiled: bool = False,
) -> tuple[Backend, str]:
    """Make the networks ready to run, and log why so.

    Args:
        networks: one, or several for an ensemble.
        device: where they run.
        tiles: (B, C, *tile) of a full batch.
        name: "torch", "openvino" (CPU only), or "auto": OpenVINO on a CPU where it is installed, takes the network and
            a tile is a GFLOP or more of work; else torch. A rule and not a measurement, so that two runs choose alike.
        precision: "fp32", "bf16" where the golden check allows it, or "auto": bf16 where it does and the hardware is
            faster with it.
        golden_check: runs the bundle's golden sample through a backend; returns "" if its labels and logits agree with
            the recorded fp32 ones, else one line that says why not. Without one, bf16 is used only where it is asked
            for by name.
        blend_features: blend features instead of logits where one network has fewer of them.
        is_compiled: let torch.compile try where torch is used; kept where a probe shows that it pays.

    Returns:
        The backend, and one line that says why it was chosen.

    Raises:
        OptionError: a backend or precision that does not exist, or not on that device; bf16 is asked for and the golden
            check objects.
        BackendError: the backend is not installed.
    """
    if name not in ("auto", "torch", "openvino"):
        raise OptionError(f"backend must be auto, torch or openvino, found {name!r}")
    if precision not in ("auto", "fp32", "bf16"):
        raise OptionError(f"precision must be auto, fp32 or bf16, found {precision!r}")
    if name == "openvino" and device.type != "cpu":
        raise OptionError(f"the openvino backend runs on the CPU, found device {device}; use --backend torch")
    maker = _Maker(networks, device, tiles, blend_features and len(networks) == 1)
    chosen, why = (name, "as asked") if name != "auto" else _choice(networks, device, tiles)
    try:
        backend, why_precision = _at_precision(partial(maker.make, chosen), device, precision, golden_check)
    except BackendError as error:
        if name != "auto":
            raise
        chosen, why = "torch", str(error)
        backend, why_precision = _at_precision(partial(maker.make, chosen), device, precision, golden_check)
    reasons = [f"{chosen} on {device} ({why})", f"{backend.precision} ({why_precision})"]
    if is_compiled:
        if isinstance(backend, TorchBackend):
            reasons.append(compile_if_it_pays(backend, torch.zeros(tuple(tiles))))
        else:
            reasons.append("not compiled by torch")
    line = ", ".join(reasons)
    logger.info(line)
    return backend, line


class _Maker:
    """Makes the backend of one kind and precision, an ensemble where there are several networks."""

    def __init__(
        self, networks: Sequence[nn.Module], device: torch.device, tiles: Sequence[int], blend_features: bool
    ) -> None:
        self.networks, self.device, self.tiles, self.blend_features = networks, device, tiles, blend_features

    def make(self, name: str, precision: Precision) -> Backend:
        members = [self._member(name, network, precision) for network in self.networks]
        return members[0] if len(members) == 1 else EnsembleBackend(members)

    def _member(self, name: str, network: nn.Module, precision: Precision) -> Backend:
        if name == "openvino":
            from medseg.inference.backends.openvino_backend import OpenVINOBackend

            return OpenVINOBackend(network, self.tiles, precision, self.blend_features)
        return TorchBackend(network, self.device, precision, self.blend_features)


def _choice(networks: Sequence[nn.Module], device: torch.device, tiles: Sequence[int]) -> tuple[str, str]:
    """What "auto" takes, and why."""
    if device.type != "cpu":
        return "torch", "the backend for that device"
    if not has_openvino():
        return "torch", "openvino is not installed"
    try:
        work = sum(tile_flops(network, tiles) for network in networks)
    except Exception as error:  # a network may do anything in its forward; this asks only how much
        return "torch", f"the work of a tile is unknown ({type(error).__name__})"
    if work < OPENVINO_PAYS_FROM:
        return "torch", f"a tile is {work / 1e9:.2g} GFLOP, too little for openvino to pay"
    return "openvino", f"a tile is {work / 1e9:.3g} GFLOP"


def _at_precision(
    build: Callable[[Precision], Backend],
    device: torch.device,
    precision: Precision | Literal["auto"],
    golden_check: GoldenCheck | None,
) -> tuple[Backend, str]:
    """The backend at the precision that is asked for or allowed, and why."""
    if precision == "fp32" or (precision == "bf16" and golden_check is None):
        return build(precision), "as asked"
    if precision == "auto" and not has_fast_bf16(device):
        return build("fp32"), f"this {device.type} has no fast bf16"
    if golden_check is None:
        return build("fp32"), "no golden sample that would allow bf16"
    backend = build("bf16")
    objection = golden_check(backend)
    if not objection:
        return backend, "the golden sample agrees"
    if precision == "bf16":
        raise OptionError(f"bf16 is refused, the golden sample does not allow it: {objection}; use --precision fp32")
    del backend
    return build("fp32"), f"the golden sample does not allow bf16: {objection}"


def has_openvino() -> bool:
    """Whether the openvino backend is installed."""
    try:
        return find_spec("openvino") is not None
    except ValueError:  # blocked, or half imported
        return False
