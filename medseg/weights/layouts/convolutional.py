"""Published layouts of U-Nets: two 2D re-implementations, a 3D one, UNet++, and nnU-Net's two networks."""

import re

from medseg.weights.layouts.layout import Layout, State, swap_halves

_PADDED_LAYERS = [("0", "0.conv"), ("1", "0.norm"), ("3", "1.conv"), ("4", "1.norm")]
_SHALLOW_LAYERS = [("0", "0.conv"), ("2", "0.norm"), ("3", "1.conv"), ("5", "1.norm")]
_SHALLOW_STAGES = [
    ("conv_encode1", "encoder.0"),
    ("conv_encode2", "encoder.1"),
    ("conv_encode3", "encoder.2"),
    ("bottleneck", "encoder.3"),
    ("conv_decode3", "decoder.0"),
    ("conv_decode2", "decoder.1"),
    ("final_layer", "decoder.2"),
]
_SHALLOW_UPSAMPLE = [("bottleneck", 0), ("conv_decode3", 1), ("conv_decode2", 2)]


def _put_skip_first_in_three_stages(state: State) -> State:
    # This layout concatenates (upsampled, skip), ours (skip, upsampled). Both have the same number of channels.
    for stage in range(3):
        key = f"decoder.{stage}.convolutions.0.conv.weight"
        if key in state:
            state[key] = swap_halves(state[key], state[key].shape[1] // 2)
    return state


UNET_SHALLOW = Layout(
    name="U-Net with three poolings (conv_encode, bottleneck, conv_decode)",
    preset="unet_shallow",
    signature=("conv_encode1.0.weight", "bottleneck.6.weight", "conv_decode2.6.weight", "final_layer.6.weight"),
    rules=[
        *(
            (rf"{theirs}\.{n}\.(.+)", rf"{ours}.convolutions.{part}.\1")
            for theirs, ours in _SHALLOW_STAGES
            for n, part in _SHALLOW_LAYERS
        ),
        *((rf"{theirs}\.6\.(.+)", rf"decoder.{stage}.upsample.\1") for theirs, stage in _SHALLOW_UPSAMPLE),
        (r"final_layer\.6\.(.+)", r"head.conv.\1"),
        (r"final_layer\.8\.(.+)", r"head.norm.\1"),
    ],
    finish=_put_skip_first_in_three_stages,
    notes=("ReLU and batch normalisation are applied to its logits",),
)

_PADDED_RULES: list[tuple[str, str | None]] = [
    *((rf"inc\.double_conv\.{n}\.(.+)", rf"encoder.0.convolutions.{part}.\1") for n, part in _PADDED_LAYERS),
    *(
        (rf"down(\d+)\.maxpool_conv\.1\.double_conv\.{n}\.(.+)", rf"encoder.\1.convolutions.{part}.\2")
        for n, part in _PADDED_LAYERS
    ),
    *(
        (rf"up{stage}\.conv\.double_conv\.{n}\.(.+)", rf"decoder.{stage - 1}.convolutions.{part}.\1")
        for stage in range(1, 10)
        for n, part in _PADDED_LAYERS
    ),
    *((rf"up{stage}\.up\.(.+)", rf"decoder.{stage - 1}.upsample.\1") for stage in range(1, 10)),
    (r"outc\.conv\.(.+)", r"head.\1"),
    (r"mask_values", None),
]
_PADDED_SIGNATURE = ("inc.double_conv.0.weight", "down1.maxpool_conv.1.double_conv.0.weight", "outc.conv.weight")

UNET_PADDED = Layout(
    name="padded U-Net (inc, down, up, outc)",
    preset="unet_padded",
    signature=(*_PADDED_SIGNATURE, "up1.up.weight"),
    rules=_PADDED_RULES,
)

UNET_PADDED_BILINEAR = Layout(
    name="padded U-Net, bilinear (inc, down, up, outc)",
    preset="unet_padded_bilinear",
    signature=_PADDED_SIGNATURE,
    rules=_PADDED_RULES,
)

_PRELU_LAYERS = [
    ("0", r"0.conv"),
    ("1", r"0.norm"),
    ("2", r"0.act"),
    ("3", r"1.conv"),
    ("4", r"1.norm"),
    ("5", r"1.act"),
]

UNET3D_PRELU = Layout(
    name="3D U-Net with PReLU (init_conv, down_conv, up_conv)",
    preset="unet3d_prelu",
    signature=("init_conv.0.weight", "down_conv1.0.weight", "up_sample1.weight", "final_conv.weight"),
    rules=[
        *((rf"init_conv\.{n}\.(.+)", rf"encoder.0.convolutions.{part}.\1") for n, part in _PRELU_LAYERS),
        *((rf"down_conv([123])\.{n}\.(.+)", rf"encoder.\1.convolutions.{part}.\2") for n, part in _PRELU_LAYERS),
        *(
            (rf"up_conv{stage}\.{n}\.(.+)", rf"decoder.{stage - 1}.convolutions.{part}.\1")
            for stage in (1, 2, 3)
            for n, part in _PRELU_LAYERS
        ),
        *((rf"up_sample{stage}\.(.+)", rf"decoder.{stage - 1}.upsample.\1") for stage in (1, 2, 3)),
        (r"final_conv\.(.+)", r"head.\1"),
    ],
)

_ENCODER_LAYERS = [("0", "0.conv"), ("1", "0.norm"), ("3", "1.conv"), ("4", "1.norm")]
_NODE_LAYERS = [("0", "0.norm"), ("2", "0.conv"), ("3", "1.norm"), ("5", "1.conv")]

UNET_PLUS_PLUS_PREACTIVATION = Layout(
    name="pre-activation UNet++ (CONV, stage, upsample, final_super)",
    preset="unetplusplus_preactivation",
    signature=("stage_0.Conv_forward.0.weight", "CONV0_1.Conv_forward.0.weight", "upsample_0_1.weight"),
    rules=[
        *(
            (rf"stage_(\d)\.Conv_forward\.{n}\.(.+)", rf"encoder.\1.convolutions.{part}.\2")
            for n, part in _ENCODER_LAYERS
        ),
        *(
            (rf"CONV(\d)_(\d)\.Conv_forward\.{n}\.(.+)", rf"nodes.\1_\2.convolutions.{part}.\3")
            for n, part in _NODE_LAYERS
        ),
        (r"upsample_(\d)_(\d)\.(.+)", r"nodes.\1_\2.upsample.\3"),
        (r"final_super_0_(\d)\.0\.(.+)", r"heads.\1.norm.\2"),
        (r"final_super_0_(\d)\.2\.(.+)", r"heads.\1.conv.\2"),
    ],
)


def _keep_finest_head(state: State) -> State:
    # Every decoder stage has a head, and the last one, on the finest map, is the network's. This layout concatenates
    # (upsampled, skip), ours (skip, upsampled).
    heads = sorted({int(m[1]) for key in state if (m := re.fullmatch(r"seg_layers\.(\d+)\.\w+", key))})
    for key in [key for key in state if key.startswith("seg_layers.")]:
        _, number, part = key.split(".")
        value = state.pop(key)
        if int(number) == heads[-1]:
            state[f"head.{part}"] = value
    stage = 0
    while f"decoder.{stage}.convolutions.0.conv.weight" in state:
        key = f"decoder.{stage}.convolutions.0.conv.weight"
        state[key] = swap_halves(state[key], state[key].shape[1] // 2)
        stage += 1
    return state


UNET_NNUNET = Layout(
    name="nnU-Net U-Net (encoder.stages, decoder.stages)",
    preset="unet_isensee2021",
    signature=(
        "encoder.stages.0.0.convs.0.conv.weight",
        "decoder.stages.0.convs.0.conv.weight",
        "decoder.seg_layers.0.weight",
    ),
    rules=[
        (r"decoder\.encoder\..+", None),
        (r".+\.all_modules\..+", None),
        (r"encoder\.stages\.(\d+)\.0\.convs\.(.+)", r"encoder.\1.convolutions.\2"),
        (r"decoder\.transpconvs\.(\d+)\.(.+)", r"decoder.\1.upsample.\2"),
        (r"decoder\.stages\.(\d+)\.convs\.(.+)", r"decoder.\1.convolutions.\2"),
        (r"decoder\.(seg_layers\..+)", r"\1"),
    ],
    finish=_keep_finest_head,
    notes=("heads of its deep supervision are dropped",),
)

UNET_RESIDUAL_ENCODER = Layout(
    name="nnU-Net residual-encoder U-Net (encoder.stem, encoder.stages, decoder.stages)",
    preset="unet_residual_encoder",
    signature=(
        "encoder.stem.convs.0.conv.weight",
        "encoder.stages.0.blocks.0.conv1.conv.weight",
        "decoder.seg_layers.0.weight",
    ),
    rules=[
        (r"decoder\.encoder\..+", None),
        (r".+\.all_modules\..+", None),
        (r"encoder\.stem\.convs\.0\.(.+)", r"encoder.0.convolutions.0.\1"),
        (r"encoder\.stages\.0\.blocks\.(\d+)\.skip\.\d\.(.+)", r"encoder.0.convolutions.1.\1.shortcut.project.\2"),
        (r"encoder\.stages\.0\.blocks\.(.+)", r"encoder.0.convolutions.1.\1"),
        (
            r"encoder\.stages\.(\d+)\.blocks\.(\d+)\.skip\.\d\.(.+)",
            r"encoder.\1.convolutions.\2.shortcut.project.\3",
        ),
        (r"encoder\.stages\.(\d+)\.blocks\.(.+)", r"encoder.\1.convolutions.\2"),
        (r"decoder\.transpconvs\.(\d+)\.(.+)", r"decoder.\1.upsample.\2"),
        (r"decoder\.stages\.(\d+)\.convs\.(.+)", r"decoder.\1.convolutions.\2"),
        (r"decoder\.(seg_layers\..+)", r"\1"),
    ],
    finish=_keep_finest_head,
    notes=("heads of its deep supervision are dropped",),
)
