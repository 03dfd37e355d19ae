"""Tests of the choice of precision."""

from __future__ import annotations

from types import MappingProxyType

import pytest
import torch

from medseg.networks.precision import autocast, has_fast_bf16


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, True),
        ({"architecture": "aarch64", "neon": True, "bf16": True}, True),
        ({"architecture": "aarch64", "neon": True, "bf16": False}, False),
    ],
)
def test_bf16_is_fast_where_the_processor_multiplies_it(
    capabilities: dict, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: MappingProxyType(capabilities))
    assert has_fast_bf16("cpu") is expected


def test_torch_names_the_capabilities_that_are_looked_up() -> None:
    """A version of torch that renames them would silently turn bf16 off."""
    capabilities = torch.cpu.get_capabilities()
    names = {"x86_64": {"amx_bf16", "avx512_bf16"}, "aarch64": {"bf16"}}.get(capabilities["architecture"])
    if names is None:
        pytest.skip(f"no fast bf16 is known on {capabilities['architecture']}")
    assert names <= set(capabilities)


def test_other_devices_compute_in_fp32() -> None:
    assert not has_fast_bf16("mps")


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_sets_the_type_of_convolutions(precision: str, dtype: torch.dtype) -> None:
    conv, x = torch.nn.Conv2d(1, 2, 3), torch.zeros(1, 1, 8, 8)
    with torch.no_grad(), autocast("cpu", precision):  # type: ignore[arg-type]
        assert conv(x).dtype == dtype
