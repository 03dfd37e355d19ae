"""The layers all networks are made of: normalisation, convolution blocks, upsampling, heads and their initialisation.

Blocks are plain `torch.nn.Sequential`s with named children (`conv`, `norm`, `act`). Their weights have readable names,
and they can be scripted, traced, exported and compiled without special treatment.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.errors import NetworkError

Norm = Literal["batch", "batch_current", "instance", "group", "none"]
Activation = Literal["relu", "leaky_relu", "prelu", "gelu", "none"]
Padding = Literal["same", "valid"]
Upsampling = Literal["transposed", "linear"]
Order = Literal["conv_norm_act", "conv_act_norm", "norm_act_conv"]
HeadKind = Literal["conv", "conv_act_norm", "norm_act_conv"]
Initialization = Literal["default", "he_normal"]

CONVOLUTION: dict[int, type[nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, type[nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
MAX_POOL: dict[int, type[nn.Module]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE_POOL: dict[int, type[nn.Module]] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise NetworkError unless the argument called `name` has one of the allowed values."""
    if value not in choices:
        raise NetworkError(f"{name}={value!r}: expected one of {', '.join(choices)}")


def per_axis(value: int | Sequence[int], spatial_dims: int, name: str) -> tuple[int, ...]:
    """Return one positive integer per axis, from a single number or a sequence of `spatial_dims` numbers."""
    values = (value,) * spatial_dims if isinstance(value, int) else tuple(value)
    if len(values) != spatial_dims or any(not isinstance(v, int) or v < 1 for v in values):
        raise NetworkError(f"{name}={value!r}: expected a positive integer, or {spatial_dims} of them, one per axis")
    return values


def is_eager() -> bool:
    """Return True if shapes are plain numbers, which is not so while tracing, exporting or compiling for any size."""
    if torch.jit.is_scripting():
        return True
    else:  # noqa: RET505 - TorchScript leaves out this branch only if it is an else
        return not (torch.jit.is_tracing() or torch.compiler.is_compiling())


# Normalisation


def instance_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Normalise each channel of each sample of `x` (B, C, …) to mean 0 and variance 1, then scale and shift it.

    The result equals `torch.nn.functional.instance_norm` up to rounding. On the CPU that function copies its input to
    contiguous memory and so loses channels_last. The same statistics come from a batch normalisation of one sample,
    which keeps the memory format, or for contiguous input from a group normalisation with one channel per group. On
    other devices, and while scripting, tracing, exporting or compiling, the plain function is used.
    """
    if torch.jit.is_scripting():
        return torch.instance_norm(x, weight, bias, None, None, True, 0.0, eps, torch.backends.cudnn.enabled)
    else:  # noqa: RET505 - TorchScript leaves out this branch only if it is an else
        if x.device.type != "cpu" or not is_eager():
            return torch.instance_norm(x, weight, bias, None, None, True, 0.0, eps, torch.backends.cudnn.enabled)
        if x.is_contiguous() or x[0, 0].numel() == 1:
            # not F.group_norm, which refuses a map of one voxel; its normalised value is 0
            return torch.group_norm(x, x.shape[1], weight, bias, eps)
        normalized = [F.batch_norm(sample, None, None, weight, bias, True, 0.0, eps) for sample in x.split(1)]
        return normalized[0] if len(normalized) == 1 else torch.cat(normalized)


class InstanceNorm2d(nn.InstanceNorm2d):
    """`torch.nn.InstanceNorm2d` without running statistics that keeps channels_last; see `instance_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return `input` (B, C, H, W), normalised per channel and sample."""
        return instance_norm(input, self.weight, self.bias, self.eps)


class InstanceNorm3d(nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d` without running statistics that keeps channels_last_3d; see `instance_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return `input` (B, C, D, H, W), normalised per channel and sample."""
        return instance_norm(input, self.weight, self.bias, self.eps)


def batch_norm_current(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Normalise each channel of the batch `x` (B, C, …) by its own mean and variance, then scale and shift it.

    This is `torch.nn.functional.batch_norm` without its check for a single value per channel, which no exporter can
    follow for free sizes. A single value is normalised to 0.
    """
    return torch.batch_norm(x, weight, bias, None, None, True, 0.0, eps, torch.backends.cudnn.enabled)


class CurrentBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation with the statistics of the current batch, also at test time."""

    def forward(self, input: Tensor) -> Tensor:
        """Return `input` (B, C, H, W), normalised per channel."""
        return batch_norm_current(input, self.weight, self.bias, self.eps)


class CurrentBatchNorm3d(nn.BatchNorm3d):
    """Batch normalisation with the statistics of the current batch, also at test time."""

    def forward(self, input: Tensor) -> Tensor:
        """Return `input` (B, C, D, H, W), normalised per channel."""
        return batch_norm_current(input, self.weight, self.bias, self.eps)


_BATCH_NORM: dict[int, type[nn.Module]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_CURRENT_NORM: dict[int, type[nn.Module]] = {2: CurrentBatchNorm2d, 3: CurrentBatchNorm3d}
_INSTANCE_NORM: dict[int, type[nn.Module]] = {2: InstanceNorm2d, 3: InstanceNorm3d}


def make_norm(norm: Norm, spatial_dims: int, channels: int, affine: bool = True, num_groups: int = 8) -> nn.Module:
    """Return a normalisation layer.

    Args:
        norm: "batch", "batch_current" (the statistics of the current batch also at test time, as in Çiçek et al. 2016,
            so no running statistics are kept), "instance", "group" or "none".
        spatial_dims: 2 or 3.
        channels: channels of the input.
        affine: whether the layer learns a scale and a shift per channel.
        num_groups: groups of a group normalisation.

    Raises:
        NetworkError: the name is unknown, or the channels cannot be split into `num_groups` groups.
    """
    check_choice("norm", norm, get_args(Norm))
    if norm == "none":
        return nn.Identity()
    if norm == "batch":
        return _BATCH_NORM[spatial_dims](channels, affine=affine)
    if norm == "batch_current":
        return _CURRENT_NORM[spatial_dims](channels, affine=affine, track_running_stats=False)
    if norm == "instance":
        return _INSTANCE_NORM[spatial_dims](channels, affine=affine)
    if channels % num_groups:
        raise NetworkError(f"norm='group': {channels} channels cannot be split into {num_groups} equal groups")
    return nn.GroupNorm(num_groups, channels, affine=affine)


# Convolution


def make_activation(activation: Activation, channels: int, inplace: bool = True) -> nn.Module:
    """Return an activation layer; "prelu" learns one slope per channel.

    Raises:
        NetworkError: the name is unknown.
    """
    check_choice("activation", activation, get_args(Activation))
    if activation == "relu":
        return nn.ReLU(inplace=inplace)
    if activation == "leaky_relu":
        return nn.LeakyReLU(0.01, inplace=inplace)
    if activation == "prelu":
        return nn.PReLU(channels)
    return nn.GELU() if activation == "gelu" else nn.Identity()


def make_dropout(probability: float) -> nn.Dropout:
    """Return a dropout layer.

    Raises:
        NetworkError: `probability` is not in 0 … 1.
    """
    if not 0 <= probability <= 1:
        raise NetworkError(f"dropout={probability!r}: expected a probability from 0 to 1")
    return nn.Dropout(probability)


class ConvBlock(nn.Sequential):
    """One convolution with its normalisation and activation.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input (B, in_channels, …).
        out_channels: channels of the output.
        kernel_size: one number, or one per axis. Even kernels need `padding="valid"`.
        stride: one number, or one per axis.
        padding: "same" keeps the size (divided by the stride), "valid" uses no padding.
        norm, norm_affine, num_groups: see `make_norm`.
        activation: see `make_activation`.
        bias: whether the convolution has a bias.
        order: sequence of convolution, normalisation and activation; "norm_act_conv" is the pre-activation order.
    """

    # TorchScript gives modules with equal children in another order one type, and so one order, unless a constant
    # differs.
    __constants__ = ("order",)

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
        check_choice("padding", padding, get_args(Padding))
        check_choice("order", order, get_args(Order))
        kernel = per_axis(kernel_size, spatial_dims, "kernel_size")
        if padding == "same" and any(k % 2 == 0 for k in kernel):
            raise NetworkError(f"kernel_size={kernel}: padding='same' needs odd kernel sizes")
        margin = tuple(k // 2 for k in kernel) if padding == "same" else (0,) * spatial_dims
        steps = per_axis(stride, spatial_dims, "stride")
        normed = in_channels if order == "norm_act_conv" else out_channels
        # Without a normalisation before it, an in-place activation would overwrite the caller's tensor.
        inplace = order != "norm_act_conv" or norm != "none"
        layers = {
            "conv": CONVOLUTION[spatial_dims](in_channels, out_channels, kernel, steps, margin, bias=bias),
            "norm": make_norm(norm, spatial_dims, normed, norm_affine, num_groups),
            "act": make_activation(activation, normed, inplace),
        }
        named = [(part, layers[part]) for part in order.split("_")]
        super().__init__(OrderedDict((part, layer) for part, layer in named if not isinstance(layer, nn.Identity)))
        self.order = order


def make_head(
    kind: HeadKind,
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    kernel_size: int = 1,
    norm: Norm = "batch",
    activation: Activation = "relu",
) -> nn.Module:
    """Return the layer that turns features into logits.

    Args:
        kind: "conv" is a single convolution. The others exist to load published weights: "conv_act_norm" passes the
            logits through ReLU and batch normalisation, "norm_act_conv" is the pre-activation head of a UNet++
            re-implementation.
        spatial_dims: 2 or 3.
        in_channels: channels of the features.
        out_channels: channels of the logits.
        kernel_size: an odd number.
        norm, activation: of the kinds that have them.
    """
    check_choice("head", kind, get_args(HeadKind))
    if kind == "conv":
        return CONVOLUTION[spatial_dims](in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    return ConvBlock(spatial_dims, in_channels, out_channels, kernel_size, norm=norm, activation=activation, order=kind)


# Upsampling and fitting maps to each other


class LinearUpsample(nn.Module):
    """Enlarge by whole factors with linear interpolation, in the input's dtype and memory format."""

    def __init__(self, spatial_dims: int, stride: Sequence[int], align_corners: bool = False) -> None:
        super().__init__()
        self.factors = [float(s) for s in stride]
        self.align_corners = align_corners
        self.mode = "bilinear" if spatial_dims == 2 else "trilinear"

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (B, C, …), enlarged; the dtype is kept where autocast interpolates in fp32."""
        enlarged = F.interpolate(x, scale_factor=self.factors, mode=self.mode, align_corners=self.align_corners)
        return enlarged.to(x.dtype)


def transposed_convolution(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    stride: Sequence[int],
    kernel_size: int | Sequence[int] | None = None,
    bias: bool = True,
) -> nn.Module:
    """Return a transposed convolution whose output is exactly `stride` times as large as its input.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: enlargement per axis.
        kernel_size: one number, or one per axis, at least the stride; None takes the stride.
        bias: whether the convolution has a bias.
    """
    steps = tuple(stride)
    kernel = steps if kernel_size is None else per_axis(kernel_size, spatial_dims, "upsampling_kernel_size")
    if any(k < s for k, s in zip(kernel, steps, strict=True)):
        raise NetworkError(
            f"upsampling_kernel_size={kernel}: smaller than the stride {steps}, which would leave holes in the output"
        )
    if any(s == 1 and k % 2 == 0 for k, s in zip(kernel, steps, strict=True)):
        raise NetworkError(
            f"upsampling_kernel_size={kernel}: an axis with stride 1 needs an odd kernel, and the strides are {steps}; "
            "give one kernel size per axis"
        )
    padding = tuple(math.ceil((k - s) / 2) for k, s in zip(kernel, steps, strict=True))
    extra = tuple(s - k + 2 * p for k, s, p in zip(kernel, steps, padding, strict=True))
    return TRANSPOSED[spatial_dims](in_channels, out_channels, kernel, steps, padding, extra, bias=bias)


def make_upsample(
    upsampling: Upsampling,
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    stride: Sequence[int],
    *,
    kernel_size: int | Sequence[int] | None = None,
    bias: bool = True,
    align_corners: bool = False,
) -> nn.Module:
    """Return an upsampling layer; "linear" has no weights and keeps the channels of its input."""
    check_choice("upsampling", upsampling, get_args(Upsampling))
    if upsampling == "linear":
        return LinearUpsample(spatial_dims, stride, align_corners)
    return transposed_convolution(spatial_dims, in_channels, out_channels, stride, kernel_size, bias)


def max_pool(spatial_dims: int, stride: Sequence[int]) -> nn.Module:
    """Return a max pooling whose windows are as large as its stride."""
    return MAX_POOL[spatial_dims](tuple(stride), tuple(stride))


def centre_crop(x: Tensor, size: list[int]) -> Tensor:
    """Return the central part of `x` (B, C, …) with the spatial `size`, as a view."""
    if is_eager() and list(x.shape[2:]) == list(size):
        return x
    for axis, wanted in enumerate(size):
        x = x.narrow(axis + 2, (x.shape[axis + 2] - wanted) // 2, wanted)
    return x


def pad_to(x: Tensor, size: list[int]) -> Tensor:
    """Return `x` (B, C, …), padded with zeros on both sides to the spatial `size`."""
    if is_eager() and list(x.shape[2:]) == list(size):
        return x
    margins: list[int] = []
    for axis in range(x.dim() - 1, 1, -1):
        missing = size[axis - 2] - x.shape[axis]
        margins.append(missing // 2)
        margins.append(missing - missing // 2)
    return F.pad(x, margins)


# Initialisation


def initialize(network: nn.Module, initialization: Initialization) -> None:
    """Draw the convolution weights of `network` in place.

    "he_normal" draws every convolution weight from N(0, √(2/N)), where N is the number of incoming nodes of one neuron,
    and sets the biases to zero (Section 3 of Ronneberger et al. 2015, arXiv:1505.04597; He et al. 2015). The incoming
    nodes of a transposed convolution are its input channels times the kernel weights that reach one output voxel, which
    is the kernel's volume divided by the stride's. "default" keeps PyTorch's own initialisation.
    """
    check_choice("initialization", initialization, get_args(Initialization))
    if initialization == "default":
        return
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
