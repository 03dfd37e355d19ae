"""What a published weights layout is: how to recognise it, and how its keys become ours."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

State = dict[str, Tensor]


def _unchanged(state: State) -> State:
    """Return the state dict as it is."""
    return state


@dataclass(frozen=True)
class Layout:
    """One published layout.

    Args:
        name: in words.
        preset: the preset whose network takes these weights.
        signature: keys that together occur in no other layout.
        rules: (pattern, replacement) of full keys, tried in order; a replacement of None drops the key.
        finish: changes the renamed tensors, where the layouts differ by more than names.
        notes: what is dropped or changed, in words.
    """

    name: str
    preset: str
    signature: Sequence[str]
    rules: Sequence[tuple[str, str | None]]
    finish: Callable[[State], State] = _unchanged
    notes: tuple[str, ...] = ()

    def recognizes(self, state: Mapping[str, Tensor]) -> bool:
        """Return whether `state` has this layout's keys."""
        return all(key in state for key in self.signature)

    def convert(self, state: Mapping[str, Tensor]) -> State:
        """Return `state` with our keys; a key no rule knows keeps its name, so that loading reports it."""
        renamed: State = {}
        for key, value in state.items():
            ours = self.rename(key)
            if ours is not None:
                renamed[ours] = value
        return self.finish(renamed)

    def rename(self, key: str) -> str | None:
        """Return our name of `key`, or None if it is dropped."""
        for pattern, replacement in self.rules:
            match = re.fullmatch(pattern, key)
            if match:
                return None if replacement is None else match.expand(replacement)
        return key


def swap_halves(weight: Tensor, first: int) -> Tensor:
    """Return a convolution's weight with its first `first` input channels moved behind the others."""
    return weight.roll(-first, dims=1).contiguous()
