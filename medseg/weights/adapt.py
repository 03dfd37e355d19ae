"""Weights for another number of classes or input channels, on request (fine-tuning)."""

from collections.abc import Mapping

import torch
from torch import Tensor

HEAD_PREFIXES = ("head.", "heads.")


def adapt_to(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], in_channels: int | None
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Fit `found` to a network with other classes or input channels.

    Args:
        found: the weights, with our keys.
        expected: the network's fresh state dict.
        in_channels: of the network; None if it is not known, then input channels are not changed.

    Returns:
        The fitted weights, the keys that were changed, and what was done in words.
    """
    fitted, changed, notes = dict(found), [], []
    heads = [key for key in expected if key.startswith(HEAD_PREFIXES)]
    if any(key not in found or found[key].shape != expected[key].shape for key in heads):
        before = _classes(found)
        fitted = {key: value for key, value in fitted.items() if not key.startswith(HEAD_PREFIXES)}
        fitted.update({key: expected[key] for key in heads})
        changed += heads
        notes.append(f"head re-initialised ({before} → {_classes(expected)} classes)")
    for key, value in expected.items():
        if key in changed or key not in fitted or in_channels is None:
            continue
        have, want = fitted[key].shape, value.shape
        differs_in_input = have != want and len(have) == len(want) > 2 and have[0] == want[0] and have[2:] == want[2:]
        if differs_in_input and want[1] == in_channels:
            fitted[key], how = change_input_channels(fitted[key], in_channels)
            changed.append(key)
            notes.append(f"{key} {how} ({have[1]} → {in_channels} input channels)")
    return fitted, changed, notes


def change_input_channels(weight: Tensor, in_channels: int) -> tuple[Tensor, str]:
    """Return a convolution's weight (out, in, …) for another number of input channels, and what was done.

    To one channel the weights are summed: a channel seen n times gives what it gave before. To more channels they are
    repeated and scaled by the ratio of the numbers, which keeps the size of the response.
    """
    before = weight.shape[1]
    if in_channels == 1:
        return weight.sum(dim=1, keepdim=True), "summed"
    source = torch.arange(in_channels) % before
    return weight[:, source] * (before / in_channels), "repeated"


def _classes(state: Mapping[str, Tensor]) -> int | str:
    biases = [value for key, value in state.items() if key.startswith(HEAD_PREFIXES) and key.endswith("bias")]
    return biases[-1].shape[0] if biases else "unknown"
