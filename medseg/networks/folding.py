"""Fold a transposed convolution and the convolution after it into one convolution of the coarser map.

There is no normalisation and no activation between a transposed convolution and the convolution of the joined maps. The
two are therefore one linear map, and their kernels can be multiplied in advance. A convolution with 3 voxels per axis
over a map enlarged by 2 reads 2 different coarse voxels per axis at each of the two finer voxels. In 3D this takes 8
products instead of 27 for each pair of a coarse and an output channel, and neither the enlarged nor the joined map is
stored. The result equals that of the two layers except for the order of the sums. Shi et al. 2016 (arXiv:1609.07009)
compute a transposed convolution in this way, as a convolution at the lower resolution and a rearrangement of voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.networks.blocks import ConvBlock

# Time of one product while composing kernels, in products of a convolution (fp32 and not bf16, forward and backward).
COMPOSING_COST = 10
# Rearranging the voxels takes time too. Above this share of the separate layers' products, nothing was gained.
WORTHWHILE = 0.65
_CONVOLVE = {2: F.conv2d, 3: F.conv3d}
_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


@dataclass(frozen=True)
class AxisFold:
    """Fold of one axis: output voxel stride · j + phase − crop is a sum over the coarse voxels j − pad + tap.

    Args:
        stride: stride of the upsampling.
        kernel: kernel size of the convolution.
        taps: number of coarse voxels that contribute to an output voxel.
        pad: zeros to add on both sides of the coarse map.
        crop: voxels to remove on both sides of the output.
    """

    stride: int
    kernel: int
    taps: int
    pad: int
    crop: int

    @staticmethod
    def of(stride: int, kernel: int) -> "AxisFold | None":
        """Return the fold of an axis, or None if there is none that saves products."""
        if stride == 1 and kernel % 2:
            return AxisFold(1, kernel, kernel, kernel // 2, 0)
        if (stride, kernel) == (2, 3):
            return AxisFold(2, 3, taps=2, pad=1, crop=1)
        return AxisFold(2, 1, taps=1, pad=0, crop=0) if (stride, kernel) == (2, 1) else None


def folds_of(upsample: nn.Module, block: nn.Module) -> tuple[AxisFold, ...]:
    """Return the fold per axis of a transposed convolution and the block after it, or () if they cannot be folded.

    The transposed convolution must have a kernel equal to its stride, and the block must begin with a padded
    convolution.
    """
    convolution = next(block.children(), None)
    if not isinstance(upsample, nn.ConvTranspose2d | nn.ConvTranspose3d) or not isinstance(block, ConvBlock):
        return ()
    if not isinstance(convolution, nn.Conv2d | nn.Conv3d) or upsample.kernel_size != upsample.stride:
        return ()
    is_plain = not any((*upsample.padding, *upsample.output_padding)) and upsample.groups == convolution.groups == 1
    is_same = convolution.padding == tuple(k // 2 for k in convolution.kernel_size)
    is_dense = {*convolution.stride, *convolution.dilation, *upsample.dilation} == {1}
    found = [AxisFold.of(s, k) for s, k in zip(upsample.stride, convolution.kernel_size, strict=True)]
    folds = tuple(fold for fold in found if fold is not None)
    usable = is_plain and is_same and is_dense and len(folds) == len(found) and max(upsample.stride) == 2
    return folds if usable else ()


def is_worth_folding(folds: Sequence[AxisFold], upsample: Any, convolution: Any, voxels: int | None) -> bool:
    """Return True if folding takes clearly fewer products than the separate layers, including those for the skip.

    This is so where the transposed convolution keeps the channels (Çiçek et al. 2016: half of the products). It is not
    so where it halves them (Ronneberger et al. 2015: three quarters, and rearranging the voxels takes the rest of the
    time).

    Args:
        folds: one per axis.
        upsample: the transposed convolution.
        convolution: the convolution of the joined maps.
        voxels: number of output voxels of all samples; None if the kernel was composed in advance.
    """
    taps, phases, kernel = (prod([getattr(f, name) for f in folds]) for name in ("taps", "stride", "kernel"))
    channels, middle, out = upsample.in_channels, upsample.out_channels, convolution.out_channels
    skip = (convolution.in_channels - middle) * out * kernel
    separate = skip + middle * (out * kernel + channels)
    folded = skip + channels * out * taps
    if voxels is None:
        return folded < WORTHWHILE * separate
    composing = COMPOSING_COST * channels * middle * out * phases * kernel
    return folded * voxels + composing < WORTHWHILE * separate * voxels


def composed_kernel(folds: Sequence[AxisFold], upsample: Any, kernel: Tensor) -> Tensor:
    """Compose the kernel that does both layers on the coarse map.

    K[q, o, c, u] = Σ_{m, a, t} U[c, m, a] W[o, m, t], where t = stride · (u − pad) + a − q + crop + ⌊k/2⌋ on each axis.
    The convolution's voxel t, at phase q of the output, lies at offset a within the coarse voxel u.

    Args:
        folds: one per axis.
        upsample: the transposed convolution, with weights U (C, M, *stride) and its bias.
        kernel: W (O, M, *k), the convolution's weights for the enlarged map.

    Returns:
        (phases · O, C, *taps), in fp32 or more. With a bias there are C + 1 channels, the last one for a map of ones.
    """
    with torch.autocast(kernel.device.type, enabled=False):
        precise = torch.promote_types(kernel.dtype, torch.float32)
        rows = upsample.weight.flatten(2).to(precise)
        if upsample.bias is not None:
            bias = upsample.bias.to(precise)[None, :, None].expand(1, -1, rows.shape[2])
            rows = torch.cat([rows, bias])
        products = torch.einsum("cma,omt->coat", rows, kernel.flatten(2).to(precise)).flatten(2)
        composed = products @ _selection(folds).to(products)
    composed = composed.unflatten(2, (prod([fold.stride for fold in folds]), -1))
    return composed.permute(2, 1, 0, 3).flatten(0, 1).unflatten(2, [fold.taps for fold in folds])


def convolve_folded(
    folds: Sequence[AxisFold], composed: Tensor, coarser: Tensor, skip: Tensor, skip_kernel: Tensor, bias: Tensor | None
) -> Tensor:
    """Convolve the skip joined with the enlarged coarser map, without enlarging and joining.

    Args:
        folds: one per axis.
        composed: see `composed_kernel`.
        coarser: (B, C, …).
        skip: (B, S, …), with the size of the enlarged map.
        skip_kernel: (O, S, *k), the convolution's weights for the skip.
        bias: (O), of the convolution.

    Returns:
        (B, O, …), in the memory format of the skip.
    """
    dims = len(folds)
    if composed.shape[1] > coarser.shape[1]:
        # The bias is added inside the map and not in the zeros around it, so it is the weight of a map of ones.
        coarser = torch.cat([coarser, torch.ones_like(coarser[:, :1])], dim=1)
    coarser = F.pad(coarser, [fold.pad for fold in folds[::-1] for _ in range(2)])
    is_last = skip.is_contiguous(memory_format=_CHANNELS_LAST[dims]) and not skip.is_contiguous()
    if is_last:
        coarser = coarser.contiguous(memory_format=_CHANNELS_LAST[dims])
        composed = composed.contiguous(memory_format=_CHANNELS_LAST[dims])
    phases = _CONVOLVE[dims](coarser, composed.to(coarser.dtype))
    phases = phases.unflatten(1, (*(fold.stride for fold in folds), -1))
    # From (B, *stride, O, *coarse), interleave the phases of each axis, in the memory format of the skip.
    axes = [axis for i in range(dims) for axis in (dims + 2 + i, 1 + i)]
    channel = dims + 1
    order = (0, *axes, channel) if is_last else (0, channel, *axes)
    spread = phases.permute(order)
    first = 1 if is_last else 2
    for axis in range(first, first + dims):
        spread = spread.flatten(axis, axis + 1)
    if is_last:
        spread = spread.movedim(-1, 1)
    # Crop by one negative padding: each of three slices would fill a whole gradient with zeros.
    spread = F.pad(spread, [-fold.crop for fold in folds[::-1] for _ in range(2)])
    margin = [fold.kernel // 2 for fold in folds]
    return _CONVOLVE[dims](skip, skip_kernel, bias, padding=margin).add_(spread)


def _selection(folds: Sequence[AxisFold]) -> Tensor:
    """Return which products of weights count for which phase and tap, as 0 or 1: (offsets · k, phases · taps)."""
    selection = torch.ones(1, 1, 1, 1)
    for fold in folds:
        sizes = (fold.stride, fold.kernel, fold.stride, fold.taps)
        a, t, q, u = torch.meshgrid([torch.arange(n) for n in sizes], indexing="ij")
        axis = (t == fold.stride * (u - fold.pad) + a - q + fold.crop + fold.kernel // 2).float()
        selection = torch.einsum("atqu,ATQU->aAtTqQuU", selection, axis)
        selection = selection.flatten(6, 7).flatten(4, 5).flatten(2, 3).flatten(0, 1)
    return selection.flatten(2, 3).flatten(0, 1)
