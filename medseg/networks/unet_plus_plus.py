"""UNet++ (Zhou et al. 2018, arXiv:1807.10165)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from medseg.errors import NetworkError
from medseg.networks import sizes
from medseg.networks.blocks import (
    Activation,
    HeadKind,
    Initialization,
    Norm,
    Order,
    Upsampling,
    check_choice,
    initialize,
    is_eager,
    make_dropout,
    make_head,
    make_upsample,
    max_pool,
)
from medseg.networks.sizes import StageGeometry
from medseg.networks.stages import EncoderStage, JoiningStage, convolutions, recompute_stages


class NestedNode(JoiningStage):
    """x_{i,j} = H([Up(x_{i+1,j−1}), x_{i,0}, …, x_{i,j−1}]), where i is the row and j the column of the node."""

    def __init__(self, upsample: nn.Module, convolutions: nn.Module, row: int, column: int) -> None:
        super().__init__(upsample, convolutions, upsampled_first=True)
        self.row = row
        self.column = column


class UNetPlusPlus(nn.Module):
    """UNet++: nested dense skip pathways, x_{i,j} = H([x_{i,0} … x_{i,j−1}, Up(x_{i+1,j−1})]).

    Eq. 1 of Zhou et al. 2018; here the upsampled map comes first in the concatenation. The defaults are the paper's
    channels with one head. Each x_{0,j} is a map of full resolution, so that a head on it makes a smaller network; see
    `prune`.

    Args:
        in_channels: channels of the input (B, in_channels, …).
        out_channels: channels of the logits.
        spatial_dims: 2 or 3.
        channels: output channels of each stage, finest first.
        strides: step from each stage to the next. One step for all, or `len(channels) - 1` of them; each is a number or
            one number per axis.
        kernel_sizes: convolution kernel of each stage. One kernel for all, or one per stage; each is a number or one
            number per axis.
        norm: "batch", "batch_current" (the statistics of the current batch also at test time), "instance", "group" or
            "none".
        norm_affine: whether the normalisation learns a scale and a shift.
        activation: "relu", "leaky_relu", "prelu" or "gelu".
        node_order: sequence in the blocks of the nested nodes; "norm_act_conv" is that of the pre-activation
            re-implementation.
        upsampling: "transposed" or "linear".
        upsampling_kernel_size: kernel of the transposed convolutions; None takes the stride.
        conv_bias: whether the convolutions have a bias.
        head: "conv" (1×1×1) or "norm_act_conv" (that of the pre-activation re-implementation).
        head_kernel_size: an odd number.
        heads: "last", or "all" for one head on each of x_{0,1} … x_{0,L}. The forward pass uses only the last. Deep
            supervision trains all; without it the others get no gradient (see `unused_parameters`).
        dropout: probability of dropout on the coarsest encoder map.
        activation_checkpointing: recompute activations in the backward pass instead of keeping them.
        initialization: "default" (PyTorch's) or "he_normal" (N(0, √(2/fan_in))).

    Raises:
        NetworkError: an argument is not possible.
        ShapeError: (in forward) the network cannot take the input's shape; the message names the nearest valid sizes.
    """

    __jit_unused_properties__ = ("head",)

    if TYPE_CHECKING:
        nodes: Any

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int = 2,
        channels: Sequence[int] = (32, 64, 128, 256, 512),
        strides: Sequence[int | Sequence[int]] | int = 2,
        kernel_sizes: Sequence[int | Sequence[int]] | int = 3,
        norm: Norm = "none",
        norm_affine: bool = True,
        activation: Activation = "relu",
        node_order: Order = "conv_norm_act",
        upsampling: Upsampling = "transposed",
        upsampling_kernel_size: int | Sequence[int] | None = None,
        conv_bias: bool = True,
        head: HeadKind = "conv",
        head_kernel_size: int = 1,
        heads: Literal["last", "all"] = "last",
        dropout: float = 0.0,
        activation_checkpointing: bool = False,
        initialization: Initialization = "default",
    ) -> None:
        super().__init__()
        # everything prune() needs to build the same network with fewer stages
        self._arguments: dict[str, Any] = {
            name: value for name, value in locals().items() if name not in ("self", "__class__")
        }
        check_choice("heads", heads, ("last", "all"))
        shape = StageGeometry.build(spatial_dims, channels, strides, kernel_sizes)
        self._geometry = shape
        self.spatial_dims, self.in_channels, self.out_channels = spatial_dims, in_channels, out_channels
        self.depth = len(shape.channels) - 1
        self.axes = tuple(shape.axes(2, padded=True))
        self.intermediate_channels = (shape.channels[0],) * self.depth
        block = {"norm": norm, "norm_affine": norm_affine, "activation": activation, "bias": conv_bias}
        widths = (in_channels, *shape.channels)
        self.encoder = nn.ModuleList(
            EncoderStage(
                max_pool(spatial_dims, shape.strides[i - 1]) if i else None,
                convolutions(spatial_dims, widths[i], (c, c), shape.kernels[i], **block),
            )
            for i, c in enumerate(shape.channels)
        )
        self.dropout = make_dropout(dropout)
        self.nodes = nn.ModuleDict()
        for j in range(1, self.depth + 1):
            for i in range(self.depth + 1 - j):
                c, coarser = shape.channels[i], shape.channels[i + 1]
                up = make_upsample(
                    upsampling, spatial_dims, coarser, c, shape.strides[i], kernel_size=upsampling_kernel_size
                )
                joined = j * c + (coarser if upsampling == "linear" else c)
                body = convolutions(spatial_dims, joined, (c, c), shape.kernels[i], order=node_order, **block)
                self.nodes[f"{i}_{j}"] = NestedNode(up, body, i, j)
        first = 1 if heads == "all" else self.depth
        self.heads = nn.ModuleDict(
            {
                str(j): make_head(
                    head, spatial_dims, shape.channels[0], out_channels, head_kernel_size, activation=activation
                )
                for j in range(first, self.depth + 1)
            }
        )
        initialize(self, initialization)
        if activation_checkpointing:
            recompute_stages(self)

    @property
    def head(self) -> nn.Module:
        """The head on x_{0,L}, the deepest map."""
        return self.heads[str(self.depth)]

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, out_channels, …) of `x` (B, in_channels, …), from the last head."""
        logits = self.features(x)
        # a loop and not self.head(…), because TorchScript indexes modules by constants only
        for depth, head in self.heads.items():
            if depth == str(self.depth):
                logits = head(logits)
        return logits

    def features(self, x: Tensor) -> Tensor:
        """Return x_{0,L}, which `head` turns into logits."""
        return self.intermediate_features(x)[0]

    def intermediate_features(self, x: Tensor) -> list[Tensor]:
        """Return x_{0,L} … x_{0,1}, all at full resolution, deepest first; deep supervision puts a head on each."""
        rows = [[encoded] for encoded in self.encode(x)]
        for node in self.nodes.values():
            rows[node.row].append(node(rows[node.row + 1][node.column - 1], list(rows[node.row])))
            if node.row + node.column == self.depth:
                rows.pop()  # the next column does not reach this row: without gradients its maps are freed here
        deepest_first: list[Tensor] = []
        for features in rows[0][1:]:
            deepest_first.insert(0, features)
        return deepest_first

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return x_{0,0} … x_{L,0}; dropout is applied to the last one."""
        if not torch.jit.is_scripting():
            self.check_input(x)
        maps: list[Tensor] = []
        for stage in self.encoder:
            x = stage(x)
            maps.append(x)
        maps[-1] = self.dropout(maps[-1])
        return maps

    def intermediate_heads(self) -> nn.ModuleList:
        """Return the heads for `intermediate_features`, the last one of the network first.

        Raises:
            NetworkError: the network was built with one head.
        """
        if len(self.heads) < self.depth:
            raise NetworkError("heads='last': this UNet++ has one head; build it with heads='all' for deep supervision")
        return nn.ModuleList(self.heads[str(j)] for j in range(self.depth, 0, -1))

    def unused_parameters(self) -> tuple[str, ...]:
        """Return the names of the parameters that the forward pass does not use: those of the shallower heads."""
        last = f"heads.{self.depth}."
        return tuple(n for n, _ in self.named_parameters() if n.startswith("heads.") and not n.startswith(last))

    def fit_state(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Return `state` without the heads this network was not built with, and notes on what was left out."""
        dropped = [key for key in state if key.startswith("heads.") and key.split(".")[1] not in self.heads]
        numbers = sorted({key.split(".")[1] for key in dropped})
        notes = [f"heads {', '.join(numbers)} dropped (the network has one)"] if dropped else []
        return {key: value for key, value in state.items() if key not in dropped}, notes

    def check_input(self, x: Tensor) -> None:
        """Raise ShapeError, with the nearest valid sizes, unless the network can take `x`; do nothing while tracing."""
        if is_eager():
            sizes.check_input(type(self).__name__, x.shape, self.in_channels, self.axes)

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the spatial shape of the logits for an input of the spatial `shape`, or raise ShapeError."""
        return sizes.output_shape(type(self).__name__, shape, self.axes)

    def prune(self, depth: int) -> "UNetPlusPlus":
        """Return a smaller network that equals the head on x_{0,depth} of this one (Section 3.2 of Zhou et al. 2018).

        It has the nodes with i + j ≤ depth and that one head. Weights are copied and the training mode is kept. In eval
        mode its logits are exactly those of the full network's head.

        Args:
            depth: from 1 to the depth of this network.

        Raises:
            NetworkError: `depth` is out of range, or there is no head at this depth.
        """
        if not 1 <= depth <= self.depth:
            raise NetworkError(f"depth={depth}: expected 1 to {self.depth} for this UNet++")
        if str(depth) not in self.heads:
            raise NetworkError(f"depth={depth}: no head at this depth; build and train the network with heads='all'")
        shape = self._geometry
        smaller = {
            "channels": shape.channels[: depth + 1],
            "strides": shape.strides[:depth],
            "kernel_sizes": shape.kernels[: depth + 1],
            "heads": "last",
            "initialization": "default",
        }
        reference = next(self.parameters())
        with reference.device:
            pruned = UNetPlusPlus(**{**self._arguments, **smaller})
        pruned = pruned.to(reference.dtype)
        state = self.state_dict()
        pruned.load_state_dict({key: state[key] for key in pruned.state_dict()})
        return pruned.train(self.training)
