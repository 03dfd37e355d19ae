import pytest
import torch

from medseg.errors import ShapeError
from medseg.networks import create
from medseg.networks.sizes import StageGeometry


def axis(stages, padded, pads_odd=False, spatial_dims=2):
    return StageGeometry.build(spatial_dims, (1,) * stages, 2, 3).axes(2, padded, pads_odd)[0]


def test_unet_takes_12_modulo_16_from_188_and_loses_184():
    """Ronneberger et al. 2015: valid sizes are those at which every pooling gets an even map."""
    sizes = axis(5, padded=False)
    for n in range(1, 700):
        assert sizes.output(n) == (n - 184 if n >= 188 and n % 16 == 12 else None)


def test_unet3d_takes_4_modulo_8_from_92_and_loses_88():
    sizes = axis(4, padded=False)
    for n in range(1, 400):
        assert sizes.output(n) == (n - 88 if n >= 92 and n % 8 == 4 else None)


def test_padded_networks_take_multiples():
    sizes = axis(4, padded=True)
    for n in range(1, 100):
        assert sizes.output(n) == (n if n % 8 == 0 else None)


def test_networks_that_pad_odd_sizes_take_any_size_from_16():
    sizes = axis(5, padded=True, pads_odd=True)
    for n in range(1, 100):
        assert sizes.output(n) == (n if n >= 16 else None)


@pytest.mark.parametrize("n", range(20, 60))
def test_arithmetic_agrees_with_torch(n):
    """The computed output sizes are those of the layers."""
    network = create("unet_ronneberger2015", 1, 1, channels=(1, 1, 1), dropout=0.0).eval()
    announced = network.axes[0].output(n)
    if announced is None:
        with pytest.raises(ShapeError):
            network(torch.zeros(1, 1, n, 44))
    else:
        with torch.no_grad():
            assert network(torch.zeros(1, 1, n, 44)).shape[2] == announced


def test_nearest_sizes_are_valid_and_nearest():
    sizes = axis(4, padded=False)
    for n in range(60, 200):
        below, above = sizes.nearest(n)
        valid = [m for m in range(1, 300) if sizes.output(m)]
        assert below == max((m for m in valid if m <= n), default=None)
        assert above == min(m for m in valid if m >= n)


def test_error_names_the_nearest_sizes_of_each_axis():
    network = create("unet3d_cicek2016", 1, 2, channels=(2, 4, 8, 16))
    with pytest.raises(ShapeError) as error:
        network(torch.zeros(1, 1, 130, 132, 50))
    for fact in ("UNet3D", "(130, 132, 50)", "axis 0: 130 → 124 or 132", "axis 1: 132 is valid", "axis 2: 50 → 92"):
        assert fact in str(error.value)


def test_each_axis_has_its_own_valid_sizes():
    network = create("unet3d_prelu", 1, 2, channels=(2, 4, 8), strides=((1, 2, 2), (2, 2, 2)))
    assert network.output_shape((6, 12, 4)) == (6, 12, 4)
    with pytest.raises(ShapeError, match="axis 0: 5 → 4 or 6; axis 1: 12 is valid; axis 2: 6 → 4 or 8"):
        network.output_shape((5, 12, 6))
