"""Where a network runs."""

from __future__ import annotations

import torch

from medseg.errors import OptionError


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """The device of that name; "auto" takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        OptionError: the device is not there.
    """
    if isinstance(name, torch.device):
        return name
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, _, number = name.partition(":")
    is_there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    count = torch.cuda.device_count() if kind == "cuda" else 1
    is_numbered = number.isdecimal() and int(number) < count if ":" in name else True
    if not is_there.get(kind, False) or not is_numbered:
        choices = ", ".join(["auto", *(k for k, there in is_there.items() if there)])
        raise OptionError(f"device {name!r} is not available here; choose one of {choices}")
    return torch.device(name)
