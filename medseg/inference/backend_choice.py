"""Choosing backend and precision, and saying why in one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import nn

from medseg.errors import OptionError
from medseg.inference.backend import Backend, Precision, TorchBackend
from medseg.inference.ensemble import EnsembleBackend

GoldenCheck = Callable[[Backend], str]


def choose_backend(
    networks: Sequence[nn.Module],
    device: torch.device,
    tiles: Sequence[int],
    name: Literal["auto", "torch", "openvino"] = "auto",
    precision: Precision | Literal["auto"] = "fp32",
    golden_check: GoldenCheck | None = None,
    blend_features: bool = True,
) -> tuple[Backend, str]:
    """Make the networks ready to run.

    Args:
        networks: one, or several for an ensemble.
        device: where they run.
        tiles: (B, C, *tile) of a full batch.
        name: "torch", "openvino" (CPU only), or "auto": torch, which needs no conversion.
        precision: "fp32", "bf16", or "auto": bf16 where the hardware has it and the golden check allows it.
        golden_check: runs the bundle's golden sample through a backend; returns "" if its labels and logits agree with
            the recorded fp32 ones, else one line that says why not.
        blend_features: blend features instead of logits where one network has fewer of them.

    Returns:
        The backend, and one line that says why it was chosen.

    Raises:
        OptionError: a backend or precision that does not exist, or not on that device.
        BackendError: the backend is not installed.
    """
    if name not in ("auto", "torch", "openvino"):
        raise OptionError(f"backend must be auto, torch or openvino, found {name!r}")
    if precision not in ("auto", "fp32", "bf16"):
        raise OptionError(f"precision must be auto, fp32 or bf16, found {precision!r}")
    if name == "openvino" and device.type != "cpu":
        raise OptionError(f"the openvino backend runs on the CPU, found device {device}; use --backend torch")
    chosen = "openvino" if name == "openvino" else "torch"
    alone = len(networks) == 1

    def make(network: nn.Module, wanted: Precision) -> Backend:
        if chosen == "openvino":
            from medseg.inference.openvino_backend import OpenVINOBackend

            return OpenVINOBackend(network, tiles, wanted, blend_features and alone)
        return TorchBackend(network, device, wanted, blend_features and alone)

    def build(wanted: Precision) -> Backend:
        members = [make(network, wanted) for network in networks]
        return members[0] if alone else EnsembleBackend(members)

    where = f"{chosen} on {device}"
    if precision != "auto":
        return build(precision), f"{where} in {precision}, as asked"
    if not has_fast_bf16(device):
        return build("fp32"), f"{where} in fp32: this {device.type} has no fast bf16"
    if golden_check is None:
        return build("fp32"), f"{where} in fp32: the bundle has no golden sample that would allow bf16"
    backend = build("bf16")
    objection = golden_check(backend)
    if objection:
        return build("fp32"), f"{where} in fp32: bf16 fails the golden sample ({objection})"
    return backend, f"{where} in bf16: the golden sample agrees"


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 convolutions are faster than fp32 there."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False
