"""Which arithmetic a training step uses on the machine at hand."""

from __future__ import annotations

from typing import Literal, cast

import torch

Precision = Literal["fp32", "bf16", "fp16"]
NAMES = ("auto", "fp32", "bf16", "fp16")


def resolve_precision(precision: str, device: torch.device | str) -> Precision:
    """Turn `auto` into the precision the device computes convolutions in natively.

    Args:
        precision: `auto`, `fp32`, `bf16` or `fp16`. `auto` means bf16 where the processor multiplies it in hardware
            (AMX or AVX512-BF16 on CPUs, Ampere or later on CUDA), since emulated bf16 is slower than fp32; else fp16 on
            CUDA, whose gradients need scaling (`gradient_scaler`), and fp32 elsewhere.
        device: where the network runs.

    Raises:
        ValueError: the name is not one of the four.
    """
    if precision not in NAMES:
        raise ValueError(f"precision must be auto, fp32, bf16 or fp16, found {precision!r}")
    if precision != "auto":
        return cast(Precision, precision)
    kind = torch.device(device).type
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if kind == "cpu":
        return "bf16" if multiplies_bf16() else "fp32"
    return "fp32"


def multiplies_bf16() -> bool:
    """Whether this processor multiplies bf16 in hardware: AMX or AVX512-BF16."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def autocast(precision: Precision, device: torch.device | str) -> torch.autocast:
    """The autocast context of a resolved precision; disabled for fp32."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(torch.device(device).type, dtype, enabled=precision != "fp32")


def gradient_scaler(precision: str, device: torch.device | str) -> torch.amp.GradScaler:
    """The scaler that keeps fp16 gradients from vanishing; it does nothing in other precisions, which do not need it.

    Args:
        precision: as in `resolve_precision`.
        device: where the network runs.
    """
    return torch.amp.GradScaler(torch.device(device).type, enabled=resolve_precision(precision, device) == "fp16")
