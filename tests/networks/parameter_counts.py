"""Published numbers of parameters: (preset, channels in, channels out, overrides, count, description)."""

from typing import Any

COUNTS: list[tuple[str, int, int, dict[str, Any], int, str]] = [
    ("unet_ronneberger2015", 1, 2, {}, 31_030_658, "the paper's Figure 1"),
    ("unet_ronneberger2015", 3, 2, {}, 31_031_810, "the same"),
    ("unet_ronneberger2015", 1, 3, {}, 31_030_723, "the same"),
    ("unet_padded", 1, 2, {}, 31_036_546, "padded, batch norm, transposed convolutions"),
    ("unet_padded", 3, 2, {}, 31_037_698, "the same"),
    ("unet_padded_bilinear", 1, 2, {}, 17_261_890, "padded, batch norm, bilinear"),
    ("unet_padded_bilinear", 3, 2, {}, 17_263_042, "the same"),
    ("unet_shallow", 1, 2, {}, 8_563_078, "three poolings, unpadded, ReLU before norm"),
    ("unet_isensee2021", 1, 2, {}, 31_194_050, "nnU-Net's; it builds 1,544 more for deep supervision"),
    (
        "unet_residual_encoder",
        1,
        2,
        {},
        102_348_226,
        "residual encoder; nnU-Net builds 1,544 more for deep supervision",
    ),
    ("unet3d_cicek2016", 3, 3, {}, 19_069_955, "the paper's number"),
    ("unet3d_cicek2016", 3, 3, {"upsampling_bias": True}, 19_070_851, "with biases of the up-convolutions"),
    ("unet3d_cicek2016", 3, 3, {"upsampling_bias": True, "norm_affine": True}, 19_075_523, "and with scale and shift"),
    ("unet3d_prelu", 3, 3, {}, 19_077_859, "and one PReLU slope per channel: the re-implementation"),
    ("unetplusplus_zhou2018", 3, 1, {}, 9_042_177, "the paper, one head"),
    ("unetplusplus_zhou2018", 3, 1, {"heads": "all"}, 9_042_276, "the paper, four heads"),
    ("unetplusplus_preactivation", 3, 3, {}, 47_195_340, "the re-implementation, its four heads built"),
    ("unetplusplus_preactivation", 3, 3, {"heads": "last"}, 47_189_763, "the same with one head"),
    ("unetplusplus_preactivation", 3, 33, {}, 47_264_580, "33 classes"),
    ("unetr_hatamizadeh2021", 1, 14, {}, 92_784_046, "96³; MONAI counts 92,802,478 with 18,432 it never uses"),
    ("unetr_hatamizadeh2021", 4, 3, {"image_size": 128}, 102_449_715, "128³; MONAI counts 102,468,147, likewise"),
    ("unetr_relu", 4, 3, {}, 148_955_299, "the re-implementation, 128³"),
]
# Parameters after prune(depth), for depth 1 to 4.
PRUNED: dict[str, tuple[int, int, dict[str, Any], tuple[int, ...]]] = {
    "unetplusplus_preactivation": (3, 3, {}, (505_027, 2_638_339, 11_481_027, 47_189_763)),
    "unetplusplus_zhou2018": (3, 1, {"heads": "all"}, (101_537, 511_681, 2_205_537, 9_042_177)),
}
