import pytest
import torch

from medseg.training import resolve_precision


def test_auto_follows_the_processor():
    has_bf16 = any(torch.cpu.get_capabilities().get(flag) for flag in ("amx_bf16", "avx512_bf16"))
    assert resolve_precision("auto", "cpu") == ("bf16" if has_bf16 else "fp32")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_an_explicit_choice_is_kept(precision):
    assert resolve_precision(precision, "cpu") == precision


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="auto, fp32, bf16 or fp16, found 'int8'"):
        resolve_precision("int8", "cpu")
