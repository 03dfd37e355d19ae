"""The 3D U-Net re-implementation with PReLU."""

from medseg.weights.layouts.layout import Layout

_PART = [("0", r"0.conv"), ("1", r"0.norm"), ("2", r"0.act"), ("3", r"1.conv"), ("4", r"1.norm"), ("5", r"1.act")]

UNET3D_PRELU = Layout(
    name="3D U-Net with PReLU (init_conv, down_conv, up_conv)",
    preset="unet3d_prelu",
    signature=("init_conv.0.weight", "down_conv1.0.weight", "up_sample1.weight", "final_conv.weight"),
    rules=[
        *((rf"init_conv\.{n}\.(.+)", rf"encoder.0.convolutions.{part}.\1") for n, part in _PART),
        *((rf"down_conv([123])\.{n}\.(.+)", rf"encoder.\1.convolutions.{part}.\2") for n, part in _PART),
        *(
            (rf"up_conv{stage}\.{n}\.(.+)", rf"decoder.{stage - 1}.convolutions.{part}.\1")
            for stage in (1, 2, 3)
            for n, part in _PART
        ),
        *((rf"up_sample{stage}\.(.+)", rf"decoder.{stage - 1}.upsample.\1") for stage in (1, 2, 3)),
        (r"final_conv\.(.+)", r"head.\1"),
    ],
)
