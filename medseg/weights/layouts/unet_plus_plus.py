"""The pre-activation UNet++ re-implementation."""

from medseg.weights.layouts.layout import Layout

_ENCODER_PART = [("0", "0.conv"), ("1", "0.norm"), ("3", "1.conv"), ("4", "1.norm")]
_NODE_PART = [("0", "0.norm"), ("2", "0.conv"), ("3", "1.norm"), ("5", "1.conv")]

UNET_PLUS_PLUS_PREACTIVATION = Layout(
    name="pre-activation UNet++ (CONV, stage, upsample, final_super)",
    preset="unetplusplus_preactivation",
    signature=("stage_0.Conv_forward.0.weight", "CONV0_1.Conv_forward.0.weight", "upsample_0_1.weight"),
    rules=[
        *(
            (rf"stage_(\d)\.Conv_forward\.{n}\.(.+)", rf"encoder.\1.convolutions.{part}.\2")
            for n, part in _ENCODER_PART
        ),
        *(
            (rf"CONV(\d)_(\d)\.Conv_forward\.{n}\.(.+)", rf"nodes.\1_\2.convolutions.{part}.\3")
            for n, part in _NODE_PART
        ),
        (r"upsample_(\d)_(\d)\.(.+)", r"nodes.\1_\2.upsample.\3"),
        (r"final_super_0_(\d)\.0\.(.+)", r"heads.\1.norm.\2"),
        (r"final_super_0_(\d)\.2\.(.+)", r"heads.\1.conv.\2"),
    ],
)
