"""Published layouts of UNETR: a re-implementation with ReLU, and MONAI's."""

import re

import torch

from medseg.weights.layouts.layout import Layout, State, swap_halves


def _block(theirs: str, ours: str, conv: str, norm: str) -> list[tuple[str, str | None]]:
    return [(rf"{theirs}\.{conv}\.(.+)", rf"{ours}.conv.\1"), (rf"{theirs}\.{norm}\.(.+)", rf"{ours}.norm.\1")]


def _relu_rules() -> list[tuple[str, str | None]]:
    rules: list[tuple[str, str | None]] = [
        (r"transformer\.embeddings\.patch_embeddings\.(.+)", r"encoder.patch_embedding.\1"),
        (r"transformer\.embeddings\.position_embeddings", r"encoder.position_embedding"),
        (r"transformer\.layer\.(\d+)\.attention_norm\.(.+)", r"encoder.blocks.\1.attention_norm.\2"),
        (r"transformer\.layer\.(\d+)\.mlp_norm\.(.+)", r"encoder.blocks.\1.mlp_norm.\2"),
        (r"transformer\.layer\.(\d+)\.mlp\.w_1\.(.+)", r"encoder.blocks.\1.mlp.0.\2"),
        (r"transformer\.layer\.(\d+)\.mlp\.w_2\.(.+)", r"encoder.blocks.\1.mlp.3.\2"),
        (r"transformer\.layer\.(\d+)\.attn\.(.+)", r"encoder.blocks.\1.attention.\2"),
        (r"transformer\.encoder_norm\.(.+)", r"encoder.encoder_norm.\1"),
        (r"decoder12_upsampler\.block\.(.+)", r"decoder.0.upsample.\1"),
        (r"decoder0_header\.2\.block\.(.+)", r"head.\1"),
    ]
    for n in (0, 1):
        rules += _block(rf"decoder0\.{n}\.block", f"stem.{n}", r"0\.block", "1")
    # decoder9 is one block, decoder6 and decoder3 are sequences of blocks.
    for level, theirs in enumerate((r"decoder3\.{}", r"decoder6\.{}", "decoder9")):
        for step in range(3 - level):
            block = theirs.format(step) + r"\.block"
            rules.append((rf"{block}\.0\.block\.(.+)", rf"projections.{level}.{step}.0.\1"))
            rules += _block(block, f"projections.{level}.{step}.1.0", r"1\.block", "2")
    fused = ("decoder9_upsampler", "decoder6_upsampler", "decoder3_upsampler", "decoder0_header")
    for stage, theirs in enumerate(fused):
        for n in (0, 1):
            rules += _block(rf"{theirs}\.{n}\.block", f"decoder.{stage}.convolutions.{n}", r"0\.block", "1")
        if stage < 3:
            rules.append((rf"{theirs}\.2\.block\.(.+)", rf"decoder.{stage + 1}.upsample.\1"))
    return rules


def _join_query_key_value(state: State) -> State:
    joined: State = {}
    for key, value in state.items():
        match = re.fullmatch(r"(.+\.attention\.)(query|key|value)\.(weight|bias)", key)
        if match is None:
            joined[key] = value
        elif match[2] == "query":
            parts = [state.get(f"{match[1]}{part}.{match[3]}") for part in ("query", "key", "value")]
            joined[f"{match[1]}qkv.{match[3]}"] = torch.cat([part for part in parts if part is not None])
    return joined


UNETR_RELU = Layout(
    name="UNETR with ReLU (transformer, decoder)",
    preset="unetr_relu",
    signature=(
        "transformer.embeddings.position_embeddings",
        "transformer.layer.0.attn.query.weight",
        "decoder0_header.2.block.weight",
    ),
    rules=_relu_rules(),
    finish=_join_query_key_value,
)


def _residual(theirs: str, ours: str) -> list[tuple[str, str | None]]:
    return [
        (rf"{theirs}\.conv([12])\.conv\.(.+)", rf"{ours}.conv\1.conv.\2"),
        (rf"{theirs}\.norm([12])\.(.+)", rf"{ours}.conv\1.norm.\2"),
        (rf"{theirs}\.conv3\.conv\.(.+)", rf"{ours}.shortcut.project.conv.\1"),
        (rf"{theirs}\.norm3\.(.+)", rf"{ours}.shortcut.project.norm.\1"),
    ]


def _monai_rules() -> list[tuple[str, str | None]]:
    rules: list[tuple[str, str | None]] = [
        (r"vit\.patch_embedding\.patch_embeddings\.(.+)", r"encoder.patch_embedding.\1"),
        (r"vit\.patch_embedding\.position_embeddings", r"encoder.position_embedding"),
        (r"vit\.blocks\.(\d+)\.norm1\.(.+)", r"encoder.blocks.\1.attention_norm.\2"),
        (r"vit\.blocks\.(\d+)\.norm2\.(.+)", r"encoder.blocks.\1.mlp_norm.\2"),
        (r"vit\.blocks\.(\d+)\.mlp\.linear1\.(.+)", r"encoder.blocks.\1.mlp.0.\2"),
        (r"vit\.blocks\.(\d+)\.mlp\.linear2\.(.+)", r"encoder.blocks.\1.mlp.3.\2"),
        (r"vit\.blocks\.(\d+)\.attn\.out_proj\.(.+)", r"encoder.blocks.\1.attention.out.\2"),
        (r"vit\.blocks\.(\d+)\.attn\.(.+)", r"encoder.blocks.\1.attention.\2"),
        (r"vit\.blocks\.\d+\.(norm_cross_attn|cross_attn)\..+", None),
        (r"vit\.norm\.(.+)", r"encoder.encoder_norm.\1"),
        (r"out\.conv\.conv\.(.+)", r"head.\1"),
        *_residual(r"encoder1\.layer", "stem.0"),
    ]
    for level in range(3):
        theirs = rf"encoder{level + 2}"
        rules.append((rf"{theirs}\.transp_conv_init\.conv\.(.+)", rf"projections.{level}.0.0.\1"))
        for step in range(2 - level):
            ours = f"projections.{level}.{step + 1}"
            rules.append((rf"{theirs}\.blocks\.{step}\.0\.conv\.(.+)", rf"{ours}.0.\1"))
            rules += _residual(rf"{theirs}\.blocks\.{step}\.1", f"{ours}.1.0")
    for stage in range(4):
        theirs = rf"decoder{5 - stage}"
        rules.append((rf"{theirs}\.transp_conv\.conv\.(.+)", rf"decoder.{stage}.upsample.\1"))
        rules += _residual(rf"{theirs}\.conv_block", f"decoder.{stage}.convolutions.0")
    return rules


def _put_skip_first(state: State) -> State:
    # MONAI concatenates (upsampled, skip), ours (skip, upsampled). Both have the same number of channels.
    for stage in range(4):
        for part in ("conv1.conv", "shortcut.project.conv"):
            key = f"decoder.{stage}.convolutions.0.{part}.weight"
            if key in state:
                state[key] = swap_halves(state[key], state[key].shape[1] // 2)
    return state


UNETR_MONAI = Layout(
    name="MONAI UNETR (vit, encoder, decoder, out)",
    preset="unetr_monai",
    signature=("vit.patch_embedding.position_embeddings", "vit.blocks.0.attn.qkv.weight", "out.conv.conv.weight"),
    rules=_monai_rules(),
    finish=_put_skip_first,
    notes=("cross-attention norms, which MONAI creates but never uses, are dropped",),
)
