"""UNETR (Hatamizadeh et al. 2021, arXiv:2103.10504)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.errors import NetworkError
from medseg.networks import sizes
from medseg.networks.blocks import (
    CONVOLUTION,
    Activation,
    Initialization,
    Norm,
    check_choice,
    initialize,
    is_eager,
    make_activation,
    make_dropout,
    per_axis,
    transposed_convolution,
)
from medseg.networks.stages import Chain, DecoderStage, Stage, convolutions, recompute_stages, residual_chain
from medseg.networks.u_shape import UShape

EncoderNorm = Literal["applied", "unused", "none"]


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product attention, softmax(q kᵀ / √d) v per head (Eq. 1 of Vaswani et al. 2017)."""

    def __init__(self, channels: int, num_heads: int, bias: bool, dropout: float) -> None:
        super().__init__()
        if channels % num_heads:
            raise NetworkError(f"embedding_channels={channels}: cannot be split into num_heads={num_heads} equal parts")
        self.num_heads = num_heads
        self.attention_dropout = dropout
        self.qkv = nn.Linear(channels, 3 * channels, bias=bias)
        self.out = nn.Linear(channels, channels)
        self.dropout = make_dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return `tokens` (B, N, C) after attention to each other."""
        batch, count, channels = tokens.shape
        split = self.qkv(tokens).view(batch, count, 3, self.num_heads, channels // self.num_heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        probability = self.attention_dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=probability)
        return self.dropout(self.out(attended.transpose(1, 2).reshape(batch, count, channels)))


class TransformerBlock(Stage):
    """z' = z + MSA(LN(z)); z = z' + MLP(LN(z')) (Eq. 2 and 3 of Hatamizadeh et al. 2021)."""

    def __init__(
        self,
        channels: int,
        num_heads: int,
        mlp_channels: int,
        *,
        mlp_activation: Activation,
        qkv_bias: bool,
        dropout: float,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(channels, eps=norm_eps)
        self.attention = SelfAttention(channels, num_heads, qkv_bias, dropout)
        self.mlp_norm = nn.LayerNorm(channels, eps=norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(channels, mlp_channels),
            make_activation(mlp_activation, mlp_channels),
            nn.Dropout(dropout),
            nn.Linear(mlp_channels, channels),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the block's output (B, N, C)."""
        tokens = tokens + self.attention(self.attention_norm(tokens))
        return tokens + self.mlp(self.mlp_norm(tokens))


class VisionTransformer(nn.Module):
    """Cut the image into patches, embed them with their position, and return the tokens after the tapped blocks.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image (B, in_channels, …).
        grid: patches per axis, at the image size that the position embedding is made for.
        patch_size: voxels of a patch per axis.
        channels: channels of a token.
        taps: numbers of the blocks (from 1) whose outputs are returned; the last one is the number of blocks.
        num_heads: attention heads.
        mlp_channels, mlp_activation: hidden layer of a block.
        qkv_bias: whether query, key and value have biases.
        dropout: probability of dropout.
        norm_eps: added to the variance in layer normalisations.
        encoder_norm: layer normalisation of the last tap: "applied", "none", or "unused" for a frozen one that exists
            only so that published weights load.
        position_std: standard deviation of the initial position embedding; 0 for zeros.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        grid: Sequence[int],
        patch_size: Sequence[int],
        channels: int,
        taps: Sequence[int],
        *,
        num_heads: int,
        mlp_channels: int,
        mlp_activation: Activation,
        qkv_bias: bool,
        dropout: float,
        norm_eps: float,
        encoder_norm: EncoderNorm,
        position_std: float,
    ) -> None:
        super().__init__()
        check_choice("encoder_norm", encoder_norm, get_args(EncoderNorm))
        if list(taps) != sorted(set(taps)) or min(taps) < 1:
            raise NetworkError(f"taps={tuple(taps)}: expected rising block numbers, the first one at least 1")
        self.grid = list(grid)
        self.taps = list(taps)
        self.spatial_dims = spatial_dims
        self.patch_embedding = CONVOLUTION[spatial_dims](in_channels, channels, tuple(patch_size), tuple(patch_size))
        tokens = torch.Size(self.grid).numel()
        self.position_embedding = nn.Parameter(torch.zeros(1, tokens, channels))
        if position_std:
            nn.init.trunc_normal_(self.position_embedding, std=position_std, a=-2 * position_std, b=2 * position_std)
        self.dropout = make_dropout(dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                channels,
                num_heads,
                mlp_channels,
                mlp_activation=mlp_activation,
                qkv_bias=qkv_bias,
                dropout=dropout,
                norm_eps=norm_eps,
            )
            for _ in range(self.taps[-1])
        )
        self.applies_norm = encoder_norm == "applied"
        if encoder_norm != "none":
            self.encoder_norm = nn.LayerNorm(channels, eps=norm_eps)
        if encoder_norm == "unused":
            self.encoder_norm.requires_grad_(False)  # so that no trained parameter lacks a gradient

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the tapped tokens as maps (B, C, grid…), in the order of the blocks."""
        patches = self.patch_embedding(x)
        grid = list(patches.shape[2:])
        position = resize_position_embedding(self.position_embedding, self.grid, grid)
        tokens = self.dropout(patches.flatten(2).transpose(1, 2) + position)
        maps: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index + 1 in self.taps:
                tapped = tokens
                if self.applies_norm and index + 1 == self.taps[-1]:
                    tapped = self.encoder_norm(tokens)
                maps.append(tapped.transpose(1, 2).unflatten(2, grid))
        return maps


def resize_position_embedding(embedding: Tensor, grid: list[int], wanted: list[int]) -> Tensor:
    """Return the position `embedding` (1, N, C) of a patch `grid`, resized to the grid `wanted`.

    The values are interpolated linearly between the centres of the patches; an equal grid changes nothing.
    """
    if is_eager() and list(grid) == list(wanted):
        return embedding
    channels = embedding.shape[2]
    table = embedding.transpose(1, 2).reshape([1, channels] + list(grid))
    mode = "bilinear" if len(grid) == 2 else "trilinear"
    resized = F.interpolate(table, size=wanted, mode=mode, align_corners=False)
    return resized.flatten(2).transpose(1, 2).to(embedding.dtype)


class UNETR(UShape):
    """UNETR: a vision transformer as encoder, whose tapped tokens are the skips of a convolutional decoder.

    Figure 2 of Hatamizadeh et al. 2021. `residual=True` (the default) is the decoder that the authors published, with
    residual blocks and constant widths on the way up; `residual=False` is the plain decoder of the re-implementation
    `unetr_relu`. The network takes any image size divisible by the patch, because the position embedding is resized by
    interpolation.

    Args:
        in_channels: channels of the input (B, in_channels, …).
        out_channels: channels of the logits.
        spatial_dims: 2 or 3.
        image_size: image size in voxels that the position embedding is made for, a number or one per axis; a multiple
            of the patch.
        channels: channels of the decoder's stages, finest first; a patch has 2**len(channels) voxels per axis.
        embedding_channels: channels of a token.
        num_heads: attention heads.
        mlp_channels: channels of the hidden layer of a transformer block.
        mlp_activation: "gelu" or "relu".
        qkv_bias: whether query, key and value have biases.
        taps: numbers of the blocks (from 1) whose tokens are used, finest skip first; the last is the number of blocks.
        encoder_norm: layer normalisation of the last tap: "applied", "none", or "unused" (frozen, to load published
            weights).
        norm_eps: added to the variance in layer normalisations.
        position_std: standard deviation of the initial position embedding; 0 for zeros.
        norm, norm_affine, activation: normalisation and activation of the decoder.
        conv_bias, upsampling_bias: whether the decoder's convolutions and transposed convolutions have a bias.
        residual: whether the decoder has residual blocks.
        dropout: probability of dropout in the transformer.
        activation_checkpointing: recompute activations in the backward pass instead of keeping them.
        initialization: "default" or "he_normal", for the convolutions.

    Raises:
        NetworkError: an argument is not possible.
        ShapeError: (in forward) the network cannot take the input's shape; the message names the nearest valid sizes.
    """

    if TYPE_CHECKING:
        encoder: VisionTransformer

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int = 3,
        image_size: int | Sequence[int] = 96,
        channels: Sequence[int] = (16, 32, 64, 128),
        embedding_channels: int = 768,
        num_heads: int = 12,
        mlp_channels: int = 3072,
        mlp_activation: Activation = "gelu",
        qkv_bias: bool = False,
        taps: Sequence[int] = (3, 6, 9, 12),
        encoder_norm: EncoderNorm = "applied",
        norm_eps: float = 1e-5,
        position_std: float = 0.02,
        norm: Norm = "instance",
        norm_affine: bool = False,
        activation: Activation = "leaky_relu",
        conv_bias: bool = False,
        upsampling_bias: bool = False,
        residual: bool = True,
        dropout: float = 0.0,
        activation_checkpointing: bool = False,
        initialization: Initialization = "default",
    ) -> None:
        if spatial_dims not in (2, 3):
            raise NetworkError(f"spatial_dims={spatial_dims!r}: expected 2 or 3")
        levels = len(channels)
        if len(taps) != levels:
            raise NetworkError(
                f"taps={tuple(taps)}: found {len(taps)}, expected one per stage, len(channels) = {levels}"
            )
        image = per_axis(image_size, spatial_dims, "image_size")
        patch = (2**levels,) * spatial_dims
        if any(size % patch[0] for size in image):
            raise NetworkError(
                f"image_size={image}: expected multiples of the patch, which has {patch[0]} voxels per axis"
            )
        block = {"norm": norm, "norm_affine": norm_affine, "activation": activation, "bias": conv_bias}
        layers = _DecoderLayers(spatial_dims, residual, upsampling_bias, block)
        decoder, width = [], embedding_channels
        for c in reversed(channels):
            decoder.append(DecoderStage(layers.upsample(width, c), layers.fuse(2 * c, c)))
            width = c
        encoder = VisionTransformer(
            spatial_dims,
            in_channels,
            tuple(size // p for size, p in zip(image, patch, strict=True)),
            patch,
            embedding_channels,
            taps,
            num_heads=num_heads,
            mlp_channels=mlp_channels,
            mlp_activation=mlp_activation,
            qkv_bias=qkv_bias,
            dropout=dropout,
            norm_eps=norm_eps,
            encoder_norm=encoder_norm,
            position_std=position_std,
        )
        axis = sizes.AxisSizes((2,) * levels, (0,) * (levels + 1), (0,) * levels)
        super().__init__(
            encoder,
            decoder,
            in_channels=in_channels,
            out_channels=out_channels,
            decoder_channels=tuple(reversed(channels)),
            axes=(axis,) * spatial_dims,
        )
        self.stem = layers.stem(in_channels, channels[0])
        self.projections = nn.ModuleList(
            layers.project(embedding_channels, channels, level) for level in range(1, levels)
        )
        self.head = CONVOLUTION[spatial_dims](width, out_channels, 1)
        initialize(self, initialization)
        if activation_checkpointing:
            recompute_stages(self)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the skips, finest first, and the last tap's tokens as the coarsest map."""
        if not torch.jit.is_scripting():
            self.check_input(x)
        # The backward pass frees last computed activations first. If the stem came first, its full-size activations
        # would be held while the transformer's gradients pile up.
        tokens = self.encoder(x)
        maps = [self.stem(x)]
        taps = [_in_format_of(maps[0], tap) for tap in tokens]
        for index, project in enumerate(self.projections):
            maps.append(project(taps[index]))
        maps.append(taps[-1])
        return maps

    def fit_state(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Return `state` fitted to this network, and notes on what was changed.

        A position embedding of another, cubic image size is resized by interpolation. The normalisation of the encoder
        is left out if this network has none.
        """
        fitted, notes = dict(state), []
        position = fitted.get("encoder.position_embedding")
        if (
            position is not None
            and position.dim() == 3
            and position.shape[1] != self.encoder.position_embedding.shape[1]
        ):
            side = round(position.shape[1] ** (1 / self.spatial_dims))
            if side**self.spatial_dims == position.shape[1]:
                grid = [side] * self.spatial_dims
                fitted["encoder.position_embedding"] = resize_position_embedding(position, grid, self.encoder.grid)
                notes.append(f"position embedding resized from {tuple(grid)} to {tuple(self.encoder.grid)} patches")
        norm = [key for key in fitted if key.startswith("encoder.encoder_norm.")]
        if norm and not hasattr(self.encoder, "encoder_norm"):
            fitted = {key: value for key, value in fitted.items() if key not in norm}
            notes.append("encoder_norm dropped (the network has none)")
        return fitted, notes


class _DecoderLayers:
    """Build the layers of the two published decoders."""

    def __init__(self, spatial_dims: int, residual: bool, upsampling_bias: bool, block: dict[str, Any]) -> None:
        self.spatial_dims = spatial_dims
        self.residual = residual
        self.upsampling_bias = upsampling_bias
        self.block = block
        self.ones = (1,) * spatial_dims
        self.threes = (3,) * spatial_dims

    def upsample(self, in_channels: int, out_channels: int) -> nn.Module:
        stride = (2,) * self.spatial_dims
        return transposed_convolution(self.spatial_dims, in_channels, out_channels, stride, bias=self.upsampling_bias)

    def convolve(self, in_channels: int, widths: Sequence[int]) -> Chain:
        if self.residual:
            out = widths[-1]
            return residual_chain(self.spatial_dims, in_channels, out, 1, self.threes, self.ones, **self.block)
        return convolutions(self.spatial_dims, in_channels, widths, self.threes, **self.block)

    def stem(self, in_channels: int, c: int) -> Chain:
        return self.convolve(in_channels, (max(c // 2, 1), c))

    def fuse(self, in_channels: int, c: int) -> Chain:
        return self.convolve(in_channels, (c, c))

    def project(self, in_channels: int, channels: Sequence[int], level: int) -> Chain:
        """Return the layers from tokens to the skip of `level`; each step doubles the resolution.

        The authors' decoder keeps one width and has no convolutions in the first step. The plain decoder takes the
        width of each level it passes and convolves in every step.
        """
        steps: list[nn.Module] = []
        for passed in reversed(range(level, len(channels))):
            c = channels[level] if self.residual else channels[passed]
            step = [self.upsample(in_channels, c)]
            if steps or not self.residual:
                step.append(self.convolve(c, (c,)))
            steps.append(nn.Sequential(*step))
            in_channels = c
        return Chain(*steps)


def _in_format_of(reference: Tensor, tap: Tensor) -> Tensor:
    # Tokens viewed as a map have their channels last, but the decoder needs the memory format of the stem's map.
    if reference.is_contiguous() or torch.jit.is_tracing():
        return tap.contiguous()
    return tap.contiguous(memory_format=torch.channels_last if tap.dim() == 4 else torch.channels_last_3d)
