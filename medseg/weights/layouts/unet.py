"""The two U-Net re-implementations."""

from medseg.weights.layouts.layout import Layout, State, swap_halves

_PADDED_PART = [("0", "0.conv"), ("1", "0.norm"), ("3", "1.conv"), ("4", "1.norm")]
_SHALLOW_PART = [("0", "0.conv"), ("2", "0.norm"), ("3", "1.conv"), ("5", "1.norm")]
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


def _skip_first(state: State) -> State:
    # this layout joins (upsampled, skip), ours (skip, upsampled); both have the same number of channels
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
            for n, part in _SHALLOW_PART
        ),
        *((rf"{theirs}\.6\.(.+)", rf"decoder.{stage}.upsample.\1") for theirs, stage in _SHALLOW_UPSAMPLE),
        (r"final_layer\.6\.(.+)", r"head.conv.\1"),
        (r"final_layer\.8\.(.+)", r"head.norm.\1"),
    ],
    finish=_skip_first,
    notes=("its logits pass ReLU and batch normalisation",),
)

_PADDED_RULES: list[tuple[str, str | None]] = [
    *((rf"inc\.double_conv\.{n}\.(.+)", rf"encoder.0.convolutions.{part}.\1") for n, part in _PADDED_PART),
    *(
        (rf"down(\d+)\.maxpool_conv\.1\.double_conv\.{n}\.(.+)", rf"encoder.\1.convolutions.{part}.\2")
        for n, part in _PADDED_PART
    ),
    *(
        (rf"up{stage}\.conv\.double_conv\.{n}\.(.+)", rf"decoder.{stage - 1}.convolutions.{part}.\1")
        for stage in range(1, 10)
        for n, part in _PADDED_PART
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
