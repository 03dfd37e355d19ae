"""The vision transformer of UNETR (Dosovitskiy et al. 2021, arXiv:2010.11929), pre-norm."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.errors import NetworkError
from medseg.networks.blocks import CONVOLUTION, Activation, make_activation, make_dropout
from medseg.networks.recompute import run

_LINEAR_MODE = {2: "bilinear", 3: "trilinear"}

EncoderNorm = Literal["applied", "unused", "none"]


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product attention, softmax(q kᵀ / √d) v a head (Eq. 1 of arXiv:1706.03762)."""

    def __init__(self, channels: int, num_heads: int, bias: bool, dropout: float) -> None:
        super().__init__()
        if channels % num_heads:
            raise NetworkError(f"embedding_channels={channels} cannot be split into num_heads={num_heads}")
        self.num_heads = num_heads
        self.attention_dropout = dropout
        self.qkv = nn.Linear(channels, 3 * channels, bias=bias)
        self.out = nn.Linear(channels, channels)
        self.dropout = make_dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the attended `tokens` (B, N, C)."""
        batch, count, channels = tokens.shape
        split = self.qkv(tokens).view(batch, count, 3, self.num_heads, channels // self.num_heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        probability = self.attention_dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=probability)
        return self.dropout(self.out(attended.transpose(1, 2).reshape(batch, count, channels)))


class TransformerBlock(nn.Module):
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
        grid: patches an axis at the size the position embedding is made for.
        patch_size: voxels of a patch, one number an axis.
        channels: of a token.
        taps: numbers of the blocks (from 1) whose outputs are returned; the last one is the number of blocks.
        encoder_norm: of the last tap: "applied", "none", or "unused": kept so that published weights load, frozen so
            that it never lacks a gradient.
        position_std: of the position embedding's initial normal distribution (0: zeros).
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
        activation_checkpointing: bool,
    ) -> None:
        super().__init__()
        if encoder_norm not in ("applied", "unused", "none"):
            raise NetworkError(f"encoder_norm={encoder_norm!r} is not one of applied, unused, none")
        if list(taps) != sorted(set(taps)) or min(taps) < 1:
            raise NetworkError(f"taps={tuple(taps)}: expected rising block numbers, the first at least 1")
        self.grid = tuple(grid)
        self.taps = tuple(taps)
        self.spatial_dims = spatial_dims
        self.activation_checkpointing = activation_checkpointing
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
            self.encoder_norm.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the tapped tokens as maps (B, C, grid…), in the order of the blocks."""
        patches = self.patch_embedding(x)
        grid = patches.shape[2:]
        position = resize_position_embedding(self.position_embedding, self.grid, grid)
        tokens = self.dropout(patches.flatten(2).transpose(1, 2) + position)
        maps = []
        for number, block in enumerate(self.blocks, start=1):
            tokens = run(block, tokens, recompute=self.activation_checkpointing)
            if number in self.taps:
                is_last = number == self.taps[-1]
                tapped = self.encoder_norm(tokens) if is_last and self.applies_norm else tokens
                maps.append(tapped.transpose(1, 2).unflatten(2, grid))
        return maps


def resize_position_embedding(embedding: Tensor, grid: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """Return the position `embedding` (1, N, C) of a patch `grid` for a grid of another size.

    Linear interpolation between the patches' centres; the same grid gives the same numbers.
    """
    exporting = torch.jit.is_tracing() or torch.compiler.is_exporting()
    if not exporting and tuple(grid) == tuple(wanted):
        return embedding
    channels = embedding.shape[2]
    table = embedding.transpose(1, 2).reshape(1, channels, *grid)
    resized = F.interpolate(table, size=tuple(wanted), mode=_LINEAR_MODE[len(grid)], align_corners=False)
    return resized.flatten(2).transpose(1, 2).to(embedding.dtype)
