"""Choosing backend and precision, and saying why in one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import nn

from medseg.inference.backend import Backend, Precision, TorchBackend
from medseg.inference.ensemble import EnsembleBackend

GoldenCheck = Callable[[Backend], str]


def choose_backend(
    networks: Sequence[nn.Module],
    device: torch.device,
    precision: Precision | Literal["auto"] = "fp32",
    golden_check: GoldenCheck | None = None,
    blend_features: bool = True,
) -> tuple[Backend, str]:
    """Make the networks ready to run.

    Args:
        networks: one, or several for an ensemble.
        device: where they run.
        precision: "fp32", "bf16", or "auto": bf16 where the hardware has it and the golden check allows it.
        golden_check: runs the bundle's golden sample through a backend; returns "" if its labels and logits agree with
            the recorded fp32 ones, else one line that says why not.
        blend_features: blend features instead of logits where one network has fewer of them.

    Returns:
        The backend, and one line that says why it was chosen.
    """

    def build(wanted: Precision) -> Backend:
        alone = len(networks) == 1
        members = [TorchBackend(n, device, wanted, blend_features=blend_features and alone) for n in networks]
        return members[0] if alone else EnsembleBackend(members)

    if precision != "auto":
        return build(precision), f"torch on {device} in {precision}, as asked"
    if not has_fast_bf16(device):
        return build("fp32"), f"torch on {device} in fp32: this {device.type} has no fast bf16"
    if golden_check is None:
        return build("fp32"), f"torch on {device} in fp32: the bundle has no golden sample that would allow bf16"
    backend = build("bf16")
    objection = golden_check(backend)
    if objection:
        return build("fp32"), f"torch on {device} in fp32: bf16 fails the golden sample ({objection})"
    return backend, f"torch on {device} in bf16: the golden sample agrees"


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 convolutions are faster than fp32 there."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False
