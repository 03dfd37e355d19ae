import pytest
import torch
from torch.nn import functional as F

from medseg.networks.blocks import batch_norm_current, instance_norm, make_norm

SHAPES = [(2, 5, 4, 6, 8), (1, 5, 4, 6, 8), (2, 3, 7, 9), (1, 3, 2, 1)]


def in_layout(x, channels_last):
    layout = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return x.contiguous(memory_format=layout) if channels_last else x


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_instance_norm_and_its_gradients_equal_those_of_torch(shape, channels_last):
    torch.manual_seed(0)
    weight, bias = torch.randn(2, shape[1], dtype=torch.float64)
    results = []
    for function in (lambda *a: instance_norm(*a, 1e-5), lambda x, w, b: F.instance_norm(x, weight=w, bias=b)):
        inputs = [t.clone().requires_grad_() for t in (weight, bias)]
        x = in_layout(
            torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), channels_last
        )
        x.requires_grad_()
        y = function(x, *inputs)
        y.square().sum().backward()
        results.append((y, x.grad, *(t.grad for t in inputs)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_a_single_voxel_is_normalised_to_zero():
    bias = torch.tensor([1.0, -2.0])
    x = torch.randn(3, 2, 1, 1, 1)
    expected = bias.view(1, 2, 1, 1, 1).expand(3, -1, -1, -1, -1)
    torch.testing.assert_close(instance_norm(x, torch.ones(2), bias, 1e-5), expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(instance_norm(x[:1], torch.ones(2), bias, 1e-5), expected[:1], atol=1e-3, rtol=0)


def test_current_batch_norm_equals_that_of_torch_in_both_modes():
    norm = make_norm("batch_current", 2, 4)
    x = torch.randn(3, 4, 5, 6)
    expected = F.batch_norm(x, None, None, norm.weight, norm.bias, training=True)
    torch.testing.assert_close(norm.train()(x), expected)
    torch.testing.assert_close(norm.eval()(x), expected)
    assert not list(norm.buffers())
    assert torch.equal(batch_norm_current(torch.ones(1, 2, 1, 1), None, None, 1e-5), torch.zeros(1, 2, 1, 1))


@pytest.mark.parametrize("norm", ["batch", "batch_current", "instance"])
def test_affine_is_optional(norm):
    assert len(list(make_norm(norm, 3, 4, affine=True).parameters())) == 2
    assert not list(make_norm(norm, 3, 4, affine=False).parameters())


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES[:3])
def test_instance_norm_keeps_the_memory_format(shape, channels_last):
    x = in_layout(torch.randn(shape), channels_last)
    assert instance_norm(x, None, None, 1e-5).stride() == x.stride()
