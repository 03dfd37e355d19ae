"""A transposed convolution and the convolution after it, done as one convolution of the coarser map.

Between a transposed convolution and the convolution of the joined maps there is no norm and no activation, so the two
are one linear map and their kernels can be multiplied first. A convolution of 3 voxels an axis over a map enlarged by 2
reads 2 different coarse voxels an axis, whichever of the two finer voxels it is at: 8 products instead of 27 in 3D, for
each pair of a coarse and an output channel, and neither the enlarged nor the joined map is ever stored. The numbers are
those of the two layers but for the order of the sums. That a transposed convolution is one at the lower resolution and
a rearrangement is Shi et al. 2016, arXiv:1609.07009.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.networks.blocks import ConvBlock

# A product of two kernels takes about as long as this many in a convolution (fp32 against bf16, forward and backward).
COMPOSING_COST = 10
# Rearranging the voxels costs time as well: with more of the products than this, nothing was gained.
WORTHWHILE = 0.65
_CONVOLVE = {2: F.conv2d, 3: F.conv3d}
_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


@dataclass(frozen=True)
class AxisFold:
    """How one axis is folded: o = stride · j + phase − crop, from the coarse voxels j − pad + tap.

    Args:
        stride: of the upsampling.
        kernel: size of the convolution's.
        taps: coarse voxels an output voxel is made from.
        pad: zeros on both sides of the coarse map.
        crop: voxels too many on both sides of the output.
    """

    stride: int
    kernel: int
    taps: int
    pad: int
    crop: int

    @staticmethod
    def of(stride: int, kernel: int) -> "AxisFold | None":
        """The fold of an axis, None where there is none that saves products."""
        if stride == 1 and kernel % 2:
            return AxisFold(1, kernel, kernel, kernel // 2, 0)
        if (stride, kernel) == (2, 3):
            return AxisFold(2, 3, taps=2, pad=1, crop=1)
        return AxisFold(2, 1, taps=1, pad=0, crop=0) if (stride, kernel) == (2, 1) else None


def folds_of(upsample: nn.Module, block: nn.Module) -> tuple[AxisFold, ...]:
    """How a transposed convolution (kernel = stride) and a block's padded one are folded; () where they cannot be."""
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
    """Whether folding takes few enough of the products that the separate layers take, the skip's included.

    So where the transposed convolution keeps the channels (Çiçek et al. 2016: half of the products), and not where it
    halves them (Ronneberger et al. 2015: three quarters, which rearranging the voxels uses up).

    Args:
        folds: one an axis.
        upsample: the transposed convolution.
        convolution: of the joined maps.
        voxels: of the output, all samples together; None for a kernel that was composed beforehand.
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
    """The kernel of both layers on the coarse map.

    K[q, o, c, u] = Σ_{m, a, t} U[c, m, a] W[o, m, t], over the t = stride · (u − pad) + a − q + crop + ⌊k/2⌋ an axis:
    the fine voxel t of the convolution at the phase q of the output lies at the offset a in the coarse voxel u.

    Args:
        folds: one an axis.
        upsample: the transposed convolution, U (C, M, *stride) and its bias.
        kernel: W (O, M, *k), the part of the convolution's that falls on the upsampled map.

    Returns:
        (phases · O, C, *taps), in fp32 at least; with a bias, C + 1 channels, the last for a map of ones.
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
    """The convolution of the skip joined with the upsampled coarser map, (B, O, …).

    Args:
        folds: one an axis.
        composed: see `composed_kernel`.
        coarser: (B, C, …).
        skip: (B, S, …), as large as the upsampled map.
        skip_kernel: (O, S, *k), the part of the convolution's kernel that falls on the skip.
        bias: (O), of the convolution.
    """
    dims = len(folds)
    if composed.shape[1] > coarser.shape[1]:  # the bias, which ends where the map does, as the zeros around it begin
        coarser = torch.cat([coarser, torch.ones_like(coarser[:, :1])], dim=1)
    coarser = F.pad(coarser, [fold.pad for fold in folds[::-1] for _ in range(2)])
    is_last = skip.is_contiguous(memory_format=_CHANNELS_LAST[dims]) and not skip.is_contiguous()
    if is_last:
        coarser = coarser.contiguous(memory_format=_CHANNELS_LAST[dims])
        composed = composed.contiguous(memory_format=_CHANNELS_LAST[dims])
    phases = _CONVOLVE[dims](coarser, composed.to(coarser.dtype))
    phases = phases.unflatten(1, (*(fold.stride for fold in folds), -1))
    # (B, *stride, O, *coarse): every phase goes beside the others of its axis, in the memory order of the skip
    axes = [axis for i in range(dims) for axis in (dims + 2 + i, 1 + i)]
    channel = dims + 1
    order = (0, *axes, channel) if is_last else (0, channel, *axes)
    spread = phases.permute(order)
    first = 1 if is_last else 2
    for axis in range(first, first + dims):
        spread = spread.flatten(axis, axis + 1)
    if is_last:
        spread = spread.movedim(-1, 1)
    # one padding by negative margins: three slices would each fill a whole gradient with zeros
    spread = F.pad(spread, [-fold.crop for fold in folds[::-1] for _ in range(2)])
    margin = [fold.kernel // 2 for fold in folds]
    return _CONVOLVE[dims](skip, skip_kernel, bias, padding=margin).add_(spread)


def _selection(folds: Sequence[AxisFold]) -> Tensor:
    """Which product of weights counts for which phase and tap, 0 or 1: (offsets · k, phases · taps) over all axes."""
    selection = torch.ones(1, 1, 1, 1)
    for fold in folds:
        sizes = (fold.stride, fold.kernel, fold.stride, fold.taps)
        a, t, q, u = torch.meshgrid([torch.arange(n) for n in sizes], indexing="ij")
        axis = (t == fold.stride * (u - fold.pad) + a - q + fold.crop + fold.kernel // 2).float()
        selection = torch.einsum("atqu,ATQU->aAtTqQuU", selection, axis)
        selection = selection.flatten(6, 7).flatten(4, 5).flatten(2, 3).flatten(0, 1)
    return selection.flatten(2, 3).flatten(0, 1)
