"""The residual-encoder U-Net of nnU-Net."""

import re

from medseg.weights.layouts.layout import Layout, State, swap_halves


def _finish(state: State) -> State:
    # of the heads on every decoder stage the last, on the finest map, is the network's; theirs joins (upsampled, skip)
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
    finish=_finish,
    notes=("heads of its deep supervision are dropped",),
)
