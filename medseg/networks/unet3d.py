"""3D U-Net (Çiçek et al. 2016, arXiv:1606.06650)."""

from collections.abc import Sequence

from torch import nn

from medseg.networks.blocks import CONVOLUTION, Activation, Padding, Upsampling
from medseg.networks.geometry import StageGeometry
from medseg.networks.initialization import Initialization, initialize
from medseg.networks.normalization import Norm
from medseg.networks.stages import DecoderStage, EncoderStage, convolutions, make_upsample, max_pool
from medseg.networks.u_shape import UShape


class UNet3D(UShape):
    """The 3D U-Net: channels double *before* pooling, upsampling keeps them, the skip is joined first.

    Figure 2 of Çiçek et al. 2016. The defaults are the paper's channels with padded convolutions; the preset
    `unet3d_cicek2016` is the paper to the digit.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input (B, in_channels, …).
        out_channels: channels of the logits.
        channels: output channels of each encoder stage, finest first; a stage's first convolution makes half of them.
        strides: pooling step from each stage to the next, a number or one an axis; `len(channels) - 1` of them.
        kernel_sizes: convolution kernel of each stage, a number or one an axis; one number for all, or one a stage.
        norm: "batch", "batch_current" (current statistics at test time too, as the paper), "instance", "group", "none".
        norm_affine: whether the normalisation learns a scale and a shift.
        activation: "relu", "leaky_relu", "prelu", "gelu".
        padding: "same" (output size = input size) or "valid" (the paper's; output = input − 88 at four stages).
        upsampling: "transposed" or "linear".
        upsampling_bias: whether the transposed convolutions have a bias.
        conv_bias: whether the convolutions have a bias.
        dropout: probability, on the coarsest map.
        activation_checkpointing: recompute activations in the backward pass instead of keeping them.
        initialization: "default" (PyTorch's) or "he_normal" (N(0, √(2/fan_in))).

    Raises:
        NetworkError: an argument cannot be used.
        ShapeError: (forward) the input's shape cannot be used; the message names the nearest valid sizes.
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
