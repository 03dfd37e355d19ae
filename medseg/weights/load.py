"""Load weights into a network: convert published layouts, adapt classes and channels, explain what does not fit."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from medseg.errors import WeightsError
from medseg.weights.layouts import Layout, detect
from medseg.weights.state_dict import read, strip_prefixes

HEAD_PREFIXES = ("head.", "heads.")


@dataclass(frozen=True)
class LoadReport:
    """Result of loading weights.

    Args:
        source: the file, or "a state dict".
        layout: the published layout that was recognised, or "medseg" for our own keys.
        matched: number of tensors loaded unchanged.
        total: number of tensors of the network.
        notes: descriptions of what was converted, dropped, resized or re-initialised.
    """

    source: str
    layout: str
    matched: int
    total: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the report on one line."""
        notes = f"; {'; '.join(self.notes)}" if self.notes else ""
        return f"{self.source}: layout {self.layout}, {self.matched} of {self.total} tensors match{notes}"


def load_into(
    network: nn.Module, source: str | Path | Mapping[str, Tensor], *, adapt: bool = False, assign: bool = False
) -> LoadReport:
    """Load weights into a network, converting a published layout if necessary.

    Args:
        network: changed in place. It is unchanged if an error is raised.
        source: a file (see `read`) or a state dict.
        adapt: allow another number of classes or input channels, for fine-tuning. A head with another number of classes
            keeps its initial weights. The first convolutions are summed or repeated (see `change_input_channels`).
        assign: put the tensors of the source into the network instead of copying their values, so that the weights
            exist once in memory. An optimiser that was made before would keep the old parameters.

    Returns:
        The report, which states every conversion. `str(report)` is one line.

    Raises:
        WeightsError: the weights do not fit, and the message names the first mismatch (key, shape found, shape
            expected); or a value is NaN or infinite, and the message names the tensor.
    """
    name = "a state dict" if isinstance(source, Mapping) else str(source)
    found = strip_prefixes(source) if isinstance(source, Mapping) else read(source)
    wrapper = _wrapper_of(network)
    if wrapper and not any(key.startswith(wrapper) for key in found):
        found = {f"{wrapper}{key}": value for key, value in found.items()}
    # The keys of MONAI's own networks are not those of a layout to convert.
    is_own = set(found) == set(network.state_dict()) or type(network).__module__.startswith("monai.")
    layout = None if is_own else detect(found)
    notes: list[str] = []
    if layout is not None:
        found = layout.convert(found)
        notes += layout.notes
    fit_state = getattr(network, "fit_state", None)
    if fit_state is not None:
        found, fitted = fit_state(found)
        notes += fitted
    expected = network.state_dict()
    adapted: list[str] = []
    if adapt:
        found, adapted, changes = _adapt(found, expected, getattr(network, "in_channels", None))
        notes += changes
    # Old files lack the counter of batches, which does not influence the result.
    counters = {k: v for k, v in expected.items() if k.endswith("num_batches_tracked") and k not in found}
    found = {**found, **counters}
    mismatches = list_mismatches(found, expected)
    if mismatches:
        raise WeightsError(_explain(name, layout, mismatches, found, expected, adapt))
    damaged = next((key for key, value in found.items() if not _is_finite(value)), None)
    if damaged is not None:
        raise WeightsError(
            f"{name}: {damaged} holds values that are not finite (NaN or infinity), so the training has failed or the "
            "file is damaged; use other weights"
        )
    if assign:
        found = {key: _laid_out(value.to(expected[key])) for key, value in found.items()}
    network.load_state_dict(found, assign=assign)
    return LoadReport(
        source=name,
        layout=layout.name if layout else "medseg",
        matched=len(expected) - len(adapted),
        total=len(expected),
        notes=tuple(notes),
    )


def _laid_out(value: Tensor) -> Tensor:
    """Return a tensor with the strides of a new one.

    A file keeps the strides of a channels-last training, which choose other kernels: with them, the fp32 logits of a
    network were wrong by up to 1e-3. Strides of axes of size 1 count, too, and `contiguous` leaves them alone.
    """
    return value.contiguous().view(-1).view(value.shape)


def _wrapper_of(network: nn.Module) -> str:
    """Return what all keys of a network begin with, if it looks like a wrapper's prefix that `read` has removed.

    The whole network of MONAI's `UNet`, for example, is its attribute `model`.
    """
    state = network.state_dict()
    key = next(iter(state), "")
    stripped = next(iter(strip_prefixes(state)), "")
    return key.removesuffix(stripped) if stripped else ""


def list_mismatches(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Describe every difference between two state dicts, in the order of `expected`."""
    lines = []
    for key, value in expected.items():
        if key not in found:
            lines.append(f"{key}: absent, expected shape {tuple(value.shape)}")
        elif found[key].shape != value.shape:
            lines.append(f"{key}: shape found {tuple(found[key].shape)}, shape expected {tuple(value.shape)}")
    lines += [
        f"{key}: shape found {tuple(found[key].shape)}, not in the network" for key in found if key not in expected
    ]
    return lines


def change_input_channels(weight: Tensor, in_channels: int) -> tuple[Tensor, str]:
    """Convert a convolution's weight to another number of input channels.

    For one channel the weights are summed, so that the response equals that to the channel repeated n times. For more
    channels they are repeated and scaled by the ratio of the two numbers, so that the size of the response is kept.

    Args:
        weight: (out, in, *kernel).
        in_channels: the new number of input channels.

    Returns:
        The new weight, and "summed" or "repeated".
    """
    before = weight.shape[1]
    if in_channels == 1:
        return weight.sum(dim=1, keepdim=True), "summed"
    source = torch.arange(in_channels) % before
    return weight[:, source] * (before / in_channels), "repeated"


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _adapt(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], in_channels: int | None
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Adapt weights to a network with another number of classes or input channels.

    Args:
        found: the weights, with our keys.
        expected: the network's initial state dict.
        in_channels: of the network; None if unknown, then input channels are not changed.

    Returns:
        The adapted weights, the keys that were changed, and a description of each change.
    """
    fitted, changed, notes = dict(found), [], []
    heads = [key for key in expected if key.startswith(HEAD_PREFIXES)]
    if any(key not in found or found[key].shape != expected[key].shape for key in heads):
        before = _num_classes(found)
        fitted = {key: value for key, value in fitted.items() if not key.startswith(HEAD_PREFIXES)}
        fitted.update({key: expected[key] for key in heads})
        changed += heads
        notes.append(f"head re-initialised ({before} → {_num_classes(expected)} classes)")
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


def _num_classes(state: Mapping[str, Tensor]) -> int | str:
    biases = [value for key, value in state.items() if key.startswith(HEAD_PREFIXES) and key.endswith("bias")]
    return biases[-1].shape[0] if biases else "unknown"


def _explain(
    name: str,
    layout: Layout | None,
    mismatches: list[str],
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    adapt: bool,
) -> str:
    if not set(found) & set(expected):
        key = next(iter(found), "none")
        return (
            f"{name}: the keys belong to no network medseg knows; found {key} as the first, expected "
            f"{next(iter(expected))}; rename the keys and pass the state dict"
        )
    others = f" ({len(mismatches) - 1} more)" if len(mismatches) > 1 else ""
    where = f" [layout: {layout.name}]" if layout else ""
    advice = f"build the network these weights were trained with{f', preset {layout.preset}' if layout else ''}"
    if not adapt:
        advice += ", or pass adapt=True if only the number of classes or input channels differs"
    return f"{name}{where}: {mismatches[0]}{others}; {advice}"
