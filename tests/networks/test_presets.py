import pytest

from medseg.errors import NetworkError
from medseg.networks import UNet, UNet3D, create, list_presets


def test_names_are_sorted_and_known():
    assert list_presets() == sorted(list_presets())
    assert {
        "unet_ronneberger2015", "unet_padded", "unet_padded_bilinear", "unet_shallow", "unet3d_cicek2016",
        "unet3d_prelu", "unetplusplus_zhou2018", "unetplusplus_preactivation", "unetr_hatamizadeh2021", "unetr_relu",
        "unet_isensee2021", "unet_residual_encoder",
    } <= set(list_presets())  # fmt: skip


def test_errors_about_names_propose_valid_ones():
    with pytest.raises(NetworkError, match=r"'unet4d'.*unet3d_cicek2016, "):
        create("unet4d", 1, 2)
    with pytest.raises(NetworkError, match=r"unet_padded.*'chanels'.*channels\?"):
        create("unet_padded", 1, 2, chanels=(4, 8))
    with pytest.raises(NetworkError, match=r"'xyz'.*in_channels, out_channels, spatial_dims"):
        create("unet_padded", 1, 2, xyz=1)
    for arguments in ({"in_channels": 0, "out_channels": 2}, {"in_channels": 1, "out_channels": 0}):
        with pytest.raises(NetworkError, match="_channels=0"):
            create("unet_padded", **arguments)


@pytest.mark.parametrize(
    ("preset", "names"),
    [
        ("unetr_monai", {"feature_size": "channels", "hidden_size": "embedding_channels", "mlp_dim": "mlp_channels"}),
        ("unet_padded", {"act": "activation", "kernel_size": "kernel_sizes", "num_res_units": "residual"}),
        ("unet3d_cicek2016", {"act": "activation"}),
        ("unetplusplus_zhou2018", {"features": "channels", "deep_supervision": "heads"}),
    ],
)
def test_errors_about_monais_argument_names_propose_ours(preset: str, names: dict[str, str]) -> None:
    for theirs, ours in names.items():
        with pytest.raises(NetworkError, match=rf"'{theirs}'.*{ours}\?"):
            create(preset, 1, 2, **{theirs: 1})


def test_overrides_replace_the_presets_arguments_and_leave_them_unchanged():
    assert isinstance(create("unet3d_cicek2016", 1, 2, channels=(4, 8), padding="same"), UNet3D)
    assert create("unet3d_cicek2016", 1, 2, channels=(4, 8)).axes[0].output(8) is None
    assert isinstance(create("unet_padded", 1, 2, channels=(4, 8)), UNet)


def test_keys_of_weights_are_final():
    """Weights are published under these names, so they must not change."""
    network = create("unet3d_cicek2016", 1, 3, channels=(4, 8), norm="instance", norm_affine=True, padding="same")
    assert list(network.state_dict()) == [
        f"{stage}.{n}.{layer}"
        for stage, layers in {
            "encoder.0.convolutions": (0, 1),
            "encoder.1.convolutions": (0, 1),
        }.items()
        for n in layers
        for layer in ("conv.weight", "conv.bias", "norm.weight", "norm.bias")
    ] + ["decoder.0.upsample.weight"] + [
        f"decoder.0.convolutions.{n}.{layer}"
        for n in (0, 1)
        for layer in ("conv.weight", "conv.bias", "norm.weight", "norm.bias")
    ] + ["head.weight", "head.bias"]  # fmt: skip
