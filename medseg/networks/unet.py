"""U-Net (Ronneberger, Fischer and Brox 2015) and 3D U-Net (Çiçek et al. 2016), in 2D and 3D, with their variants."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from medseg.errors import NetworkError
from medseg.networks.blocks import (
    CONVOLUTION,
    Activation,
    ConvBlock,
    HeadKind,
    Initialization,
    Norm,
    Order,
    Padding,
    Upsampling,
    check_choice,
    initialize,
    make_head,
    make_upsample,
    max_pool,
)
from medseg.networks.sizes import StageGeometry
from medseg.networks.stages import DecoderStage, EncoderStage, Fit, convolutions, residual_chain
from medseg.networks.u_shape import UShape


class UNet(UShape):
    """The U-Net: upsampling halves the channels, and the skip is joined before the upsampled map.

    Figure 1 of Ronneberger et al. 2015 (arXiv:1505.04597). The preset `unet_ronneberger2015` is the network of the
    paper; the defaults of this class differ from it in padded convolutions. `downsampling="strided"` with instance
    normalisation is the U-Net of nnU-Net (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z), `residual=True` its
    residual encoder (Isensee et al. 2024, arXiv:2404.09556).

    Args:
        in_channels: channels of the input (B, in_channels, …).
        out_channels: channels of the logits.
        spatial_dims: 2 or 3.
        channels: output channels of each encoder stage, finest first.
        strides: step from each stage to the next. One step for all, or `len(channels) - 1` of them; each is a number or
            one number per axis.
        kernel_sizes: convolution kernel of each stage. One kernel for all, or one per stage; each is a number or one
            number per axis.
        convolutions_per_stage: convolutions (or residual blocks) of each encoder stage; one number for all, or one per
            stage.
        decoder_convolutions: convolutions of each decoder stage; one number for all, or one per stage, finest first.
        norm: "batch", "batch_current" (the statistics of the current batch also at test time), "instance", "group" or
            "none".
        norm_affine: whether the normalisation learns a scale and a shift.
        activation: "relu", "leaky_relu", "prelu" or "gelu".
        order: sequence in each convolution block: "conv_norm_act", "conv_act_norm" or "norm_act_conv".
        padding: "same" (the output has the size of the input) or "valid" (as in the paper; with five stages, the output
            is 184 voxels smaller than the input).
        downsampling: "max_pool", or "strided" for a stride in the first convolution of a stage. A residual encoder is
            always strided.
        upsampling: "transposed" or "linear". Linear upsampling has no weights that could change the channels, so the
            last convolution of each decoder stage produces the channels of the next finer stage.
        upsampling_kernel_size: kernel of the transposed convolutions; None takes the stride.
        upsampling_bias: whether the transposed convolutions have a bias.
        align_corners: option of linear upsampling.
        conv_bias: whether the convolutions have a bias.
        residual: use a residual encoder: a convolution, then stages of residual blocks.
        odd_sizes: "error", or "pad" to take any size: pooling rounds odd sizes down, and the maps are padded at the
            skips.
        head: "conv" (a 1×1×1 convolution), or "conv_act_norm" to load published weights whose logits pass ReLU and
            normalisation.
        head_kernel_size: an odd number.
        dropout: probability of dropout on the coarsest map, the end of the contracting path.
        activation_checkpointing: recompute activations in the backward pass instead of keeping them.
        initialization: "default" (PyTorch's) or "he_normal" (N(0, √(2/fan_in)), as in the paper).

    Raises:
        NetworkError: an argument is not possible.
        ShapeError: (in forward) the network cannot take the input's shape; the message names the nearest valid sizes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int = 2,
        channels: Sequence[int] = (64, 128, 256, 512, 1024),
        strides: Sequence[int | Sequence[int]] | int = 2,
        kernel_sizes: Sequence[int | Sequence[int]] | int = 3,
        convolutions_per_stage: Sequence[int] | int = 2,
        decoder_convolutions: Sequence[int] | int = 2,
        norm: Norm = "none",
        norm_affine: bool = True,
        activation: Activation = "relu",
        order: Order = "conv_norm_act",
        padding: Padding = "same",
        downsampling: Literal["max_pool", "strided"] = "max_pool",
        upsampling: Upsampling = "transposed",
        upsampling_kernel_size: int | Sequence[int] | None = None,
        upsampling_bias: bool = True,
        align_corners: bool = False,
        conv_bias: bool = True,
        residual: bool = False,
        odd_sizes: Literal["error", "pad"] = "error",
        head: HeadKind = "conv",
        head_kernel_size: int = 1,
        dropout: float = 0.0,
        activation_checkpointing: bool = False,
        initialization: Initialization = "default",
    ) -> None:
        check_choice("downsampling", downsampling, ("max_pool", "strided"))
        check_choice("odd_sizes", odd_sizes, ("error", "pad"))
        if padding == "valid" and (residual or downsampling == "strided" or odd_sizes == "pad"):
            raise NetworkError(
                "padding='valid': works only with downsampling='max_pool', odd_sizes='error' and residual=False; "
                "use padding='same'"
            )
        shape = StageGeometry.build(spatial_dims, channels, strides, kernel_sizes)
        down_counts = shape.per_stage(convolutions_per_stage, len(shape.channels), "convolutions_per_stage")
        up_counts = shape.per_stage(decoder_convolutions, len(shape.strides), "decoder_convolutions")
        conv = {"norm": norm, "norm_affine": norm_affine, "activation": activation, "bias": conv_bias}
        block = {**conv, "padding": padding, "order": order}
        encoder, width = [], in_channels
        for i, (c, count) in enumerate(zip(shape.channels, down_counts, strict=True)):
            if residual:
                encoder.append(_residual_stage(shape, i, width, count, conv))
            else:
                encoder.append(_plain_stage(shape, i, width, count, downsampling == "strided", block))
            width = c
        fit: Fit = "crop" if padding == "valid" else "pad" if odd_sizes == "pad" else "exact"
        decoder, decoder_channels = [], []
        for i in reversed(range(len(shape.strides))):
            c = shape.channels[i]
            up = make_upsample(
                upsampling,
                spatial_dims,
                width,
                c,
                shape.strides[i],
                kernel_size=upsampling_kernel_size,
                bias=upsampling_bias,
                align_corners=align_corners,
            )
            joined = c + (width if upsampling == "linear" else c)
            width = shape.channels[max(i - 1, 0)] if upsampling == "linear" else c
            widths = (c,) * (up_counts[i] - 1) + (width,)
            body = convolutions(spatial_dims, joined, widths, shape.kernels[i], **block)
            decoder.append(DecoderStage(up, body, fit))
            decoder_channels.append(width)
        super().__init__(
            nn.ModuleList(encoder),
            decoder,
            in_channels=in_channels,
            out_channels=out_channels,
            decoder_channels=decoder_channels,
            axes=shape.axes(down_counts, padding == "same", odd_sizes == "pad", decoder_convolutions=up_counts),
            dropout=dropout,
            activation_checkpointing=activation_checkpointing,
        )
        self.head = make_head(head, spatial_dims, width, out_channels, head_kernel_size)
        initialize(self, initialization)


def _plain_stage(
    shape: StageGeometry, i: int, in_channels: int, count: int, strided: bool, block: dict[str, Any]
) -> EncoderStage:
    dims, c, kernel = shape.spatial_dims, shape.channels[i], shape.kernels[i]
    stride = shape.strides[i - 1] if i else (1,) * dims
    if strided and i:
        first: nn.Module = ConvBlock(dims, in_channels, c, kernel, stride, **block)
        rest = convolutions(dims, c, (c,) * (count - 1), kernel, **block)
        return EncoderStage(None, nn.Sequential(first, *rest))
    pool = max_pool(dims, stride) if i else None
    return EncoderStage(pool, convolutions(dims, in_channels, (c,) * count, kernel, **block))


def _residual_stage(shape: StageGeometry, i: int, in_channels: int, count: int, conv: dict[str, Any]) -> EncoderStage:
    dims, c, kernel = shape.spatial_dims, shape.channels[i], shape.kernels[i]
    if i:
        return EncoderStage(None, residual_chain(dims, in_channels, c, count, kernel, shape.strides[i - 1], **conv))
    stem = ConvBlock(dims, in_channels, c, kernel, **conv)
    return EncoderStage(None, nn.Sequential(stem, residual_chain(dims, c, c, count, kernel, (1,) * dims, **conv)))


class UNet3D(UShape):
    """The 3D U-Net: channels double *before* pooling, upsampling keeps them, and the skip is joined first.

    Figure 2 of Çiçek et al. 2016 (arXiv:1606.06650). The defaults are the paper's channels with padded convolutions;
    the preset `unet3d_cicek2016` is the network of the paper.

    Args:
        in_channels: channels of the input (B, in_channels, …).
        out_channels: channels of the logits.
        spatial_dims: 2 or 3.
        channels: output channels of each encoder stage, finest first; the first convolution of a stage produces half of
            them.
        strides: pooling step from each stage to the next. One step for all, or `len(channels) - 1` of them; each is a
            number or one number per axis.
        kernel_sizes: convolution kernel of each stage. One kernel for all, or one per stage; each is a number or one
            number per axis.
        norm: "batch", "batch_current" (the statistics of the current batch also at test time, as in the paper),
            "instance", "group" or "none".
        norm_affine: whether the normalisation learns a scale and a shift.
        activation: "relu", "leaky_relu", "prelu" or "gelu".
        padding: "same" (the output has the size of the input) or "valid" (as in the paper; with four stages, the output
            is 88 voxels smaller than the input).
        upsampling: "transposed" or "linear".
        upsampling_bias: whether the transposed convolutions have a bias.
        conv_bias: whether the convolutions have a bias.
        dropout: probability of dropout on the coarsest map.
        activation_checkpointing: recompute activations in the backward pass instead of keeping them.
        initialization: "default" (PyTorch's) or "he_normal" (N(0, √(2/fan_in))).

    Raises:
        NetworkError: an argument is not possible.
        ShapeError: (in forward) the network cannot take the input's shape; the message names the nearest valid sizes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int = 3,
        channels: Sequence[int] = (64, 128, 256, 512),
        strides: Sequence[int | Sequence[int]] | int = 2,
        kernel_sizes: Sequence[int | Sequence[int]] | int = 3,
        norm: Norm = "batch",
        norm_affine: bool = True,
        activation: Activation = "relu",
        padding: Padding = "same",
        upsampling: Upsampling = "transposed",
        upsampling_bias: bool = True,
        conv_bias: bool = True,
        dropout: float = 0.0,
        activation_checkpointing: bool = False,
        initialization: Initialization = "default",
    ) -> None:
        shape = StageGeometry.build(spatial_dims, channels, strides, kernel_sizes)
        block = {
            "padding": padding,
            "norm": norm,
            "norm_affine": norm_affine,
            "activation": activation,
            "bias": conv_bias,
        }
        encoder, decoder, width = [], [], in_channels
        for i, c in enumerate(shape.channels):
            pool = max_pool(spatial_dims, shape.strides[i - 1]) if i else None
            body = convolutions(spatial_dims, width, (max(c // 2, 1), c), shape.kernels[i], **block)
            encoder.append(EncoderStage(pool, body))
            width = c
        for i in reversed(range(len(shape.strides))):
            c = shape.channels[i]
            up = make_upsample(upsampling, spatial_dims, width, width, shape.strides[i], bias=upsampling_bias)
            body = convolutions(spatial_dims, width + c, (c, c), shape.kernels[i], **block)
            decoder.append(DecoderStage(up, body, "crop" if padding == "valid" else "exact"))
            width = c
        super().__init__(
            nn.ModuleList(encoder),
            decoder,
            in_channels=in_channels,
            out_channels=out_channels,
            decoder_channels=shape.channels[-2::-1],
            axes=shape.axes(convolutions=2, padded=padding == "same"),
            dropout=dropout,
            activation_checkpointing=activation_checkpointing,
        )
        self.head = CONVOLUTION[spatial_dims](width, out_channels, 1)
        initialize(self, initialization)
