"""Channels, strides and kernels of the stages of a network, checked and spelled out."""

from collections.abc import Sequence
from dataclasses import dataclass

from medseg.errors import NetworkError
from medseg.networks.blocks import per_axis
from medseg.networks.sizes import AxisSizes, stage_losses


@dataclass(frozen=True)
class StageGeometry:
    """One width and kernel a stage (finest first), one stride a transition; one entry an axis."""

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
        """Check the arguments of a network and spell them out.

        Raises:
            NetworkError: `spatial_dims` is neither 2 nor 3, there are fewer than two stages, or a list has the wrong
                length.
        """
        if spatial_dims not in (2, 3):
            raise NetworkError(f"spatial_dims={spatial_dims!r}: expected 2 or 3")
        widths = tuple(channels)
        if len(widths) < 2 or any(not isinstance(c, int) or c < 1 for c in widths):
            raise NetworkError(f"channels={channels!r}: expected at least two positive integers, finest stage first")
        steps = _spell_out(strides, len(widths) - 1, spatial_dims, "strides", "one a transition, len(channels) - 1")
        kernels = _spell_out(kernel_sizes, len(widths), spatial_dims, "kernel_sizes", "one a stage, len(channels)")
        return cls(spatial_dims, widths, steps, kernels)

    def per_stage(self, value: int | Sequence[int], count: int, name: str) -> tuple[int, ...]:
        """Return `count` positive integers, finest stage first, from one number or that many."""
        values = (value,) * count if isinstance(value, int) else tuple(value)
        if len(values) != count or any(not isinstance(v, int) or v < 1 for v in values):
            raise NetworkError(f"{name}={value!r}: expected a positive integer or {count} of them, one a stage")
        return values

    def axes(
        self,
        convolutions: Sequence[int] | int,
        padded: bool,
        pads_odd: bool = False,
        decoder_convolutions: Sequence[int] | int | None = None,
    ) -> list[AxisSizes]:
        """Return the size arithmetic of every axis, from the number of convolutions of each stage."""
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


def _spell_out(
    values: Sequence[int | Sequence[int]] | int, count: int, spatial_dims: int, name: str, rule: str
) -> tuple[tuple[int, ...], ...]:
    listed = [values] * count if isinstance(values, int) else list(values)
    if len(listed) != count:
        raise NetworkError(f"{name}={values!r}: expected {rule} = {count}, got {len(listed)}")
    return tuple(per_axis(value, spatial_dims, name) for value in listed)
