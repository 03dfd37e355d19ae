"""Compute which input sizes an encoder-decoder network can take, and the output sizes, one axis at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from medseg.errors import NetworkError, ShapeError
from medseg.networks.blocks import per_axis


@dataclass(frozen=True)
class AxisSizes:
    """The sizes of one spatial axis in a U-shaped network.

    Args:
        strides: step from each stage to the next coarser one.
        encoder_loss: voxels by which the convolutions of each encoder stage shorten the axis (0 if they are padded),
            finest stage first.
        decoder_loss: the same for the decoder stages, coarsest first.
        pads_odd: whether pooling rounds odd sizes down and the maps are padded again at the skips.
    """

    strides: tuple[int, ...]
    encoder_loss: tuple[int, ...]
    decoder_loss: tuple[int, ...]
    pads_odd: bool = False

    def output(self, size: int) -> int | None:
        """Return the output size for an input of `size` voxels, or None if the network cannot take it."""
        skips = [size - self.encoder_loss[0]]
        for stride, loss in zip(self.strides, self.encoder_loss[1:], strict=True):
            if skips[-1] < stride or (skips[-1] % stride and not self.pads_odd):
                return None
            skips.append(skips[-1] // stride - loss)
        current = skips.pop()
        for stride, skip, loss in zip(reversed(self.strides), reversed(skips), self.decoder_loss, strict=True):
            if current < 1:
                return None
            current = skip if self.pads_odd else current * stride
            current = min(current, skip) - loss
        return current if current >= 1 else None

    def valid_sizes(self, count: int, reach: int = 4096) -> list[int]:
        """Return the `count` smallest valid input sizes."""
        return list(islice((n for n in range(1, reach) if self.output(n) is not None), count))

    def nearest(self, size: int, reach: int = 4096) -> tuple[int | None, int | None]:
        """Return the nearest valid sizes at most and at least `size` (None where there is none within `reach`)."""
        below = next((n for n in range(size, max(0, size - reach), -1) if self.output(n) is not None), None)
        above = next((n for n in range(max(size, 1), size + reach) if self.output(n) is not None), None)
        return below, above


def stage_losses(
    kernels: Sequence[Sequence[int]], convolutions: Sequence[int], axis: int, padded: bool
) -> tuple[int, ...]:
    """Return by how many voxels each stage shortens `axis`, from its kernel sizes and number of convolutions."""
    if padded:
        return (0,) * len(kernels)
    return tuple((kernel[axis] - 1) * count for kernel, count in zip(kernels, convolutions, strict=True))


def suggest(size: int, nearest: Callable[[int], tuple[int | None, int | None]]) -> str:
    """Return the advice for one axis: that `size` is valid, or the nearest valid sizes."""
    below, above = nearest(size)
    if below == size:
        return f"{size} is valid"
    options = [str(n) for n in (below, above) if n is not None]
    return f"{size} → {' or '.join(options) if options else 'no valid size near'}"


def check_size(network: str, shape: Sequence[int], axes: Sequence[AxisSizes]) -> None:
    """Raise ShapeError, with the nearest valid sizes, unless the network can take the spatial `shape`."""
    if all(axis.output(size) is not None for axis, size in zip(axes, shape, strict=True)):
        return
    advice = "; ".join(
        f"axis {i}: {suggest(size, axis.nearest)}" for i, (size, axis) in enumerate(zip(shape, axes, strict=True))
    )
    raise ShapeError(f"{network}: cannot take an input of {tuple(shape)} voxels; nearest valid sizes: {advice}")


def check_input(network: str, shape: Sequence[int], in_channels: int, axes: Sequence[AxisSizes]) -> None:
    """Raise ShapeError unless `shape` is (B, in_channels, …) with a valid size on each spatial axis."""
    if len(shape) != len(axes) + 2:
        raise ShapeError(
            f"{network}: found an input of shape {tuple(shape)}, expected {len(axes) + 2} axes: batch, channels and "
            f"{len(axes)} spatial axes"
        )
    if shape[1] != in_channels:
        raise ShapeError(
            f"{network}: found an input of {shape[1]} channels (shape {tuple(shape)}), expected {in_channels} channels"
        )
    check_size(network, shape[2:], axes)


def output_shape(network: str, shape: Sequence[int], axes: Sequence[AxisSizes]) -> tuple[int, ...]:
    """Return the spatial output shape for a spatial input `shape`."""
    check_size(network, shape, axes)
    return tuple(out for axis, size in zip(axes, shape, strict=True) if (out := axis.output(size)) is not None)


@dataclass(frozen=True)
class StageGeometry:
    """The stages of a network: channels and kernel per stage (finest first), and the stride to each next stage.

    Kernels and strides have one number per axis.
    """

    spatial_dims: int
    channels: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]

    @classmethod
    def build(
        cls,
        spatial_dims: int,
        channels: Sequence[int],
        strides: Sequence[int | Sequence[int]] | int,
        kernel_sizes: Sequence[int | Sequence[int]] | int,
    ) -> "StageGeometry":
        """Check the arguments of a network and expand single numbers to one per stage and axis.

        Raises:
            NetworkError: `spatial_dims` is neither 2 nor 3, there are fewer than two stages, or a list has the wrong
                length.
        """
        if spatial_dims not in (2, 3):
            raise NetworkError(f"spatial_dims={spatial_dims!r}: expected 2 or 3")
        widths = tuple(channels)
        if len(widths) < 2 or any(not isinstance(c, int) or c < 1 for c in widths):
            raise NetworkError(f"channels={channels!r}: expected at least two positive integers, finest stage first")
        steps = _expand(
            strides, len(widths) - 1, spatial_dims, "strides", "one per step to the next stage, len(channels) - 1"
        )
        kernels = _expand(kernel_sizes, len(widths), spatial_dims, "kernel_sizes", "one per stage, len(channels)")
        return cls(spatial_dims, widths, steps, kernels)

    def per_stage(self, value: int | Sequence[int], count: int, name: str) -> tuple[int, ...]:
        """Return `count` positive integers, finest stage first, from a single number or a sequence of `count`."""
        values = (value,) * count if isinstance(value, int) else tuple(value)
        if len(values) != count or any(not isinstance(v, int) or v < 1 for v in values):
            raise NetworkError(f"{name}={value!r}: expected a positive integer, or {count} of them, one per stage")
        return values

    def axes(
        self,
        convolutions: Sequence[int] | int,
        padded: bool,
        pads_odd: bool = False,
        decoder_convolutions: Sequence[int] | int | None = None,
    ) -> list[AxisSizes]:
        """Return the sizes of every axis, from the number of convolutions in each stage."""
        stages = len(self.channels)
        down = self.per_stage(convolutions, stages, "convolutions")
        up = down[:-1]
        if decoder_convolutions is not None:
            up = self.per_stage(decoder_convolutions, stages - 1, "decoder_convolutions")
        return [
            AxisSizes(
                strides=tuple(step[axis] for step in self.strides),
                encoder_loss=stage_losses(self.kernels, down, axis, padded),
                decoder_loss=stage_losses(self.kernels[-2::-1], up[::-1], axis, padded),
                pads_odd=pads_odd,
            )
            for axis in range(self.spatial_dims)
        ]


def _expand(
    values: Sequence[int | Sequence[int]] | int, count: int, spatial_dims: int, name: str, rule: str
) -> tuple[tuple[int, ...], ...]:
    listed = [values] * count if isinstance(values, int) else list(values)
    if len(listed) != count:
        raise NetworkError(f"{name}={values!r}: expected {rule} = {count}, got {len(listed)}")
    return tuple(per_axis(value, spatial_dims, name) for value in listed)
