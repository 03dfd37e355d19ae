"""The layers every network is made of: convolution blocks, upsampling, centre crop.

A block is a plain `torch.nn.Sequential` with named children (`conv`, `norm`, `act`), so weights have readable names and
tracing, exporting and compiling need nothing special.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.errors import NetworkError

Norm = Literal["batch", "batch_current", "instance", "group", "none"]

_BATCH_NORM: dict[int, type[nn.Module]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def instance_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Normalise every channel of every sample of `x` (B, C, …) to mean 0 and variance 1, then scale and shift.

    The same values as `torch.nn.functional.instance_norm` up to rounding. That function copies its input to contiguous
    memory on the CPU and so loses channels_last; the same statistics come from a batch normalisation of one sample
    (which keeps the memory format) or, for contiguous input, from a group normalisation with one channel a group.
    Being traced, exported, compiled or on another device, the plain function is used.
    """
    if x.device.type != "cpu" or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return torch.instance_norm(x, weight, bias, None, None, True, 0.0, eps, torch.backends.cudnn.enabled)
    if x.is_contiguous() or x[0, 0].numel() == 1:
        # torch.group_norm, as F.group_norm refuses the map of a single voxel, whose normalised value is 0
        return torch.group_norm(x, x.shape[1], weight, bias, eps)
    normalized = [F.batch_norm(sample, None, None, weight, bias, True, 0.0, eps) for sample in x.split(1)]
    return normalized[0] if len(normalized) == 1 else torch.cat(normalized)


class InstanceNorm2d(nn.InstanceNorm2d):
    """`torch.nn.InstanceNorm2d` without running statistics that keeps channels_last; see `instance_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return `input` (B, C, H, W) normalised a channel and sample."""
        return instance_norm(input, self.weight, self.bias, self.eps)


class InstanceNorm3d(nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d` without running statistics that keeps channels_last_3d; see `instance_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return `input` (B, C, D, H, W) normalised a channel and sample."""
        return instance_norm(input, self.weight, self.bias, self.eps)


def batch_norm_current(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Normalise every channel of the batch `x` (B, C, …) by its own mean and variance, then scale and shift.

    `torch.nn.functional.batch_norm` without its test for a single value a channel, which no exporter can follow for
    free sizes; the normalised value is then 0.
    """
    return torch.batch_norm(x, weight, bias, None, None, True, 0.0, eps, torch.backends.cudnn.enabled)


class CurrentBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation with the statistics of the current batch, at test time too."""

    def forward(self, input: Tensor) -> Tensor:
        """Return `input` (B, C, H, W) normalised a channel."""
        return batch_norm_current(input, self.weight, self.bias, self.eps)


class CurrentBatchNorm3d(nn.BatchNorm3d):
    """Batch normalisation with the statistics of the current batch, at test time too."""

    def forward(self, input: Tensor) -> Tensor:
        """Return `input` (B, C, D, H, W) normalised a channel."""
        return batch_norm_current(input, self.weight, self.bias, self.eps)


_CURRENT_NORM: dict[int, type[nn.Module]] = {2: CurrentBatchNorm2d, 3: CurrentBatchNorm3d}
_INSTANCE_NORM: dict[int, type[nn.Module]] = {2: InstanceNorm2d, 3: InstanceNorm3d}


def make_norm(norm: Norm, spatial_dims: int, channels: int, affine: bool = True, num_groups: int = 8) -> nn.Module:
    """Return the normalisation layer called `norm`; `"batch_current"` uses the current batch at test time as well.

    Çiçek et al. 2016 normalise with the statistics of the current batch at test time too, so no running statistics are
    kept.

    Raises:
        NetworkError: the name is unknown, or the channels cannot be split into `num_groups` groups.
    """
    if norm == "none":
        return nn.Identity()
    if norm == "batch":
        return _BATCH_NORM[spatial_dims](channels, affine=affine)
    if norm == "batch_current":
        return _CURRENT_NORM[spatial_dims](channels, affine=affine, track_running_stats=False)
    if norm == "instance":
        return _INSTANCE_NORM[spatial_dims](channels, affine=affine)
    if norm == "group":
        if channels % num_groups:
            raise NetworkError(f"norm='group': {channels} channels cannot be split into {num_groups} groups")
        return nn.GroupNorm(num_groups, channels, affine=affine)
    raise NetworkError(f"norm={norm!r} is not one of batch, batch_current, instance, group, none")


Activation = Literal["relu", "leaky_relu", "prelu", "gelu", "none"]
Padding = Literal["same", "valid"]
Upsampling = Literal["transposed", "linear"]
Order = Literal["conv_norm_act", "conv_act_norm", "norm_act_conv"]

CONVOLUTION: dict[int, type[nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, type[nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
MAX_POOL: dict[int, type[nn.Module]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE_POOL: dict[int, type[nn.Module]] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}
_LINEAR_MODE = {2: "bilinear", 3: "trilinear"}


def per_axis(value: int | Sequence[int], spatial_dims: int, name: str) -> tuple[int, ...]:
    """Return one positive integer an axis, from a number or a sequence of `spatial_dims` of them."""
    values = (value,) * spatial_dims if isinstance(value, int) else tuple(value)
    if len(values) != spatial_dims or any(not isinstance(v, int) or v < 1 for v in values):
        raise NetworkError(
            f"{name}={value!r}: expected a positive integer or {spatial_dims} of them, one a spatial axis"
        )
    return values


def make_activation(activation: Activation, channels: int, inplace: bool = True) -> nn.Module:
    """Return the activation called `activation`; `"prelu"` has one slope a channel.

    Raises:
        NetworkError: the name is unknown.
    """
    if activation == "none":
        return nn.Identity()
    if activation == "relu":
        return nn.ReLU(inplace=inplace)
    if activation == "leaky_relu":
        return nn.LeakyReLU(0.01, inplace=inplace)
    if activation == "prelu":
        return nn.PReLU(channels)
    if activation == "gelu":
        return nn.GELU()
    raise NetworkError(f"activation={activation!r} is not one of relu, leaky_relu, prelu, gelu, none")


class ConvBlock(nn.Sequential):
    """One convolution with its normalisation and activation, in the given order.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input (B, in_channels, …).
        out_channels: channels of the output.
        kernel_size: one number, or one an axis. Even kernels need `padding="valid"`.
        stride: one number, or one an axis.
        padding: `"same"` keeps the size (divided by the stride), `"valid"` uses no padding.
        norm, norm_affine, num_groups: see `make_norm`.
        activation: see `make_activation`.
        bias: whether the convolution has a bias.
        order: where normalisation and activation stand; `"norm_act_conv"` is the pre-activation order.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 1,
        *,
        padding: Padding = "same",
        norm: Norm = "batch",
        norm_affine: bool = True,
        num_groups: int = 8,
        activation: Activation = "relu",
        bias: bool = True,
        order: Order = "conv_norm_act",
    ) -> None:
        kernel = per_axis(kernel_size, spatial_dims, "kernel_size")
        if padding not in ("same", "valid"):
            raise NetworkError(f"padding={padding!r} is not one of same, valid")
        if padding == "same" and any(k % 2 == 0 for k in kernel):
            raise NetworkError(f"kernel_size={kernel}: 'same' padding needs odd kernel sizes")
        margin = tuple(k // 2 for k in kernel) if padding == "same" else (0,) * spatial_dims
        steps = per_axis(stride, spatial_dims, "stride")
        normed = in_channels if order == "norm_act_conv" else out_channels
        # without a norm in between, an in-place activation in front would overwrite the caller's tensor
        inplace = order != "norm_act_conv" or norm != "none"
        layers = {
            "conv": CONVOLUTION[spatial_dims](in_channels, out_channels, kernel, steps, margin, bias=bias),
            "norm": make_norm(norm, spatial_dims, normed, norm_affine, num_groups),
            "act": make_activation(activation, normed, inplace),
        }
        if order not in ("conv_norm_act", "conv_act_norm", "norm_act_conv"):
            raise NetworkError(f"order={order!r} is not one of conv_norm_act, conv_act_norm, norm_act_conv")
        wanted = OrderedDict((part, layers[part]) for part in order.split("_"))
        super().__init__(OrderedDict((k, v) for k, v in wanted.items() if not isinstance(v, nn.Identity)))


class LinearUpsample(nn.Module):
    """Enlarge by whole factors with linear interpolation, in the input's dtype and memory format."""

    def __init__(self, spatial_dims: int, stride: Sequence[int], align_corners: bool = False) -> None:
        super().__init__()
        self.factors = tuple(float(s) for s in stride)
        self.align_corners = align_corners
        self.mode = _LINEAR_MODE[spatial_dims]

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (B, C, …) enlarged, in its own dtype also where autocast interpolates in fp32."""
        enlarged = F.interpolate(x, scale_factor=self.factors, mode=self.mode, align_corners=self.align_corners)
        return enlarged.to(x.dtype)


def make_dropout(probability: float) -> nn.Dropout:
    """Return a dropout layer.

    Raises:
        NetworkError: `probability` is not in 0 … 1.
    """
    if not 0 <= probability <= 1:
        raise NetworkError(f"dropout={probability!r}: expected a probability, 0 … 1")
    return nn.Dropout(probability)


def transposed_convolution(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    stride: Sequence[int],
    kernel_size: int | Sequence[int] | None = None,
    bias: bool = True,
) -> nn.Module:
    """Return a transposed convolution whose output is exactly `stride` times its input, for any kernel ≥ stride."""
    steps = tuple(stride)
    kernel = steps if kernel_size is None else per_axis(kernel_size, spatial_dims, "upsampling_kernel_size")
    if any(k < s for k, s in zip(kernel, steps, strict=True)):
        raise NetworkError(f"upsampling_kernel_size={kernel} is smaller than the stride {steps}: it would leave holes")
    if any(s == 1 and k % 2 == 0 for k, s in zip(kernel, steps, strict=True)):
        raise NetworkError(
            f"upsampling_kernel_size={kernel} with stride {steps}: a stride of 1 needs an odd kernel; give one an axis"
        )
    padding = tuple(math.ceil((k - s) / 2) for k, s in zip(kernel, steps, strict=True))
    extra = tuple(s - k + 2 * p for k, s, p in zip(kernel, steps, padding, strict=True))
    return TRANSPOSED[spatial_dims](in_channels, out_channels, kernel, steps, padding, extra, bias=bias)


def centre_crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return the central part of `x` (B, C, …) with the spatial `size`, as a view."""
    if is_eager() and x.shape[2:] == size:
        return x
    for axis, wanted in enumerate(size, start=2):
        x = x.narrow(axis, (x.shape[axis] - wanted) // 2, wanted)
    return x


def pad_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return `x` (B, C, …) padded with zeros on both sides to the spatial `size`; `x` itself if it fits."""
    if is_eager() and x.shape[2:] == size:
        return x
    missing = [wanted - have for wanted, have in zip(size, x.shape[2:], strict=True)]
    return F.pad(x, [w for lack in reversed(missing) for w in (lack // 2, lack - lack // 2)])


def is_eager() -> bool:
    """Return whether shapes are plain numbers: not so while tracing, exporting or compiling for any size."""
    return not (torch.jit.is_tracing() or torch.compiler.is_compiling())


HeadKind = Literal["conv", "conv_act_norm", "norm_act_conv"]


def make_head(
    kind: HeadKind,
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    kernel_size: int = 1,
    norm: Norm = "batch",
    activation: Activation = "relu",
) -> nn.Module:
    """Return the head called `kind`.

    `"conv"` is a convolution, 1×1×1 unless told otherwise. The others exist to load published weights:
    `"conv_act_norm"` passes the logits through ReLU and batch normalisation, `"norm_act_conv"` is the pre-activation
    head of a UNet++ re-implementation.
    """
    if kind == "conv":
        return CONVOLUTION[spatial_dims](in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    if kind in ("conv_act_norm", "norm_act_conv"):
        return ConvBlock(
            spatial_dims, in_channels, out_channels, kernel_size, norm=norm, activation=activation, order=kind
        )
    raise NetworkError(f"head={kind!r} is not one of conv, conv_act_norm, norm_act_conv")


Initialization = Literal["default", "he_normal"]


def initialize(network: nn.Module, initialization: Initialization) -> None:
    """Draw the convolution weights of `network` in place.

    `"he_normal"` draws every convolution weight from N(0, √(2/N)), N the incoming nodes of one neuron, and sets the
    biases to zero (Section 3 of Ronneberger et al. 2015, arXiv:1505.04597; He et al. 2015). `"default"` leaves
    PyTorch's own initialisation. The incoming nodes of a transposed convolution are its input channels times the taps
    that reach one output voxel (kernel volume over stride volume).
    """
    if initialization == "default":
        return
    if initialization != "he_normal":
        raise NetworkError(f"initialization={initialization!r} is not one of default, he_normal")
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            fan_in = module.in_channels * math.prod(module.kernel_size)
        elif isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
            fan_in = module.in_channels * math.prod(module.kernel_size) // math.prod(module.stride)
        else:
            continue
        nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_in))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
