"""Which arithmetic a training step uses on the machine at hand."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]


def resolve_precision(precision: str, device: torch.device | str) -> Precision:
    """Turn `auto` into the precision the device computes convolutions in natively.

    Args:
        precision: `auto`, `fp32` or `bf16`. `auto` means bf16 where the processor multiplies it in hardware (AMX or
            AVX512-BF16 on CPUs, Ampere or later on CUDA), else fp32: emulated bf16 is slower than fp32.
        device: where the network runs.

    Raises:
        ValueError: the name is not one of the three.
    """
    if precision not in ("auto", "fp32", "bf16"):
        raise ValueError(f"precision must be auto, fp32 or bf16, found {precision!r}")
    if precision != "auto":
        return "bf16" if precision == "bf16" else "fp32"
    kind = torch.device(device).type
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if kind == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return "bf16" if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else "fp32"
    return "fp32"


def autocast(precision: Precision, device: torch.device | str) -> torch.autocast:
    """The autocast context of a resolved precision; disabled for fp32."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")
