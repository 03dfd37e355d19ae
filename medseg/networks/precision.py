"""Choose the precision in which a network's convolutions are computed."""

from __future__ import annotations

from typing import Literal

import torch

# What a network is computed in, and what may be asked for.
Precision = Literal["fp32", "bf16", "fp16", "int8"]
PrecisionChoice = Literal["auto", "fp32", "bf16", "fp16", "int8"]


def has_fast_bf16(device: torch.device | str = "cpu") -> bool:
    """Return True if the device multiplies bf16 in hardware, which makes its convolutions faster than in fp32.

    On x86 processors this needs AMX or AVX512-BF16, on ARM processors the BF16 extension, on CUDA an Ampere or later
    GPU. Where the instructions are missing, bf16 is emulated and slower than fp32.

    Args:
        device: where the network runs.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return False


def has_fast_int8() -> bool:
    """Return True if the CPU sums products of int8 in hardware: with AVX512-VNNI, AVX-VNNI or AMX.

    Without these instructions, such sums saturate at 16 bits, so that the result is wrong, and they are not faster.
    """
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))


def autocast(device: torch.device | str, precision: Precision) -> torch.autocast:
    """Return the context in which convolutions and matrix products run in a precision; it does nothing for fp32.

    Args:
        device: where the network runs.
        precision: normalisation layers and sums stay in fp32 in any case.
    """
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(torch.device(device).type, dtype, enabled=precision != "fp32")
