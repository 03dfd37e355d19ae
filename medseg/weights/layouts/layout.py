"""Recognise a published weights layout and rename its keys to those of medseg's networks."""

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
        name: description of the layout.
        preset: preset whose network takes these weights.
        signature: keys that occur together in no other layout.
        rules: pairs (pattern, replacement) for full keys, tried in order. A replacement of None drops the key.
        finish: changes the renamed tensors, for layouts that differ by more than names.
        notes: descriptions of what is dropped or changed.
    """

    name: str
    preset: str
    signature: Sequence[str]
    rules: Sequence[tuple[str, str | None]]
    finish: Callable[[State], State] = _unchanged
    notes: tuple[str, ...] = ()

    def recognizes(self, state: Mapping[str, Tensor]) -> bool:
        """Return whether a state dict has the keys of this layout."""
        return all(key in state for key in self.signature)

    def convert(self, state: Mapping[str, Tensor]) -> State:
        """Return a state dict with our keys. A key that no rule matches keeps its name, so that loading reports it."""
        renamed: State = {}
        for key, value in state.items():
            our_key = self.rename(key)
            if our_key is not None:
                renamed[our_key] = value
        return self.finish(renamed)

    def rename(self, key: str) -> str | None:
        """Return our name of a key, or None if it is dropped."""
        for pattern, replacement in self.rules:
            match = re.fullmatch(pattern, key)
            if match:
                return None if replacement is None else match.expand(replacement)
        return key


def swap_halves(weight: Tensor, first: int) -> Tensor:
    """Move the first `first` input channels of a convolution's weight behind the others."""
    return weight.roll(-first, dims=1).contiguous()
