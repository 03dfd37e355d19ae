"""Validation Dice as an ignite metric, equal to what `medseg evaluate` reports for the same label maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce

from medseg.errors import EvaluationError
from medseg.evaluation.overlap import case_dice, label_regions


class MeanCaseDice(Metric):
    """Compute the unweighted mean over classes of each class's mean Dice over cases, as an evaluator's key metric.

    Every case is scored by `case_dice`: a case with both masks empty is a correct absence and does not enter the mean,
    a case with one empty mask has Dice 0. The metric writes its mean to `engine.state.metrics[name]`, the mean of each
    label to `engine.state.metrics[f"{name}_{label}"]`, and the Dice of each case of this process to
    `engine.state.metric_details[name]`, shape (cases, labels), NaN for correct absences.

    Args:
        labels: class value of each structure by name, or the values whose union it is. Value 0 is background and left
            out. A sequence of values names each structure by its value.
        output_transform: engine output → (prediction, label); by default "pred" and "label" of MONAI's decollated or
            batched dictionaries. Each is a list of (C, …) tensors or one (B, C, …) tensor. With C = 1 the integers are
            the classes, with C > 1 the largest channel is the class.
        device: device of the sums, for reduction over processes.
        ignore_label: value of voxels of the label map that do not count; None counts all.
        partial_labels: the classes that a value of the label map may stand for, by value (see
            `medseg.training.partial_labels`). A case with such voxels does not count for the structures of these
            classes.

    Raises:
        EvaluationError: there is no label above background, or shapes differ.
    """

    def __init__(
        self,
        labels: Mapping[str, int | Sequence[int]] | Sequence[int],
        output_transform: Callable[[Any], Any] | None = None,
        device: str | torch.device = "cpu",
        ignore_label: int | None = None,
        partial_labels: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        if not isinstance(labels, Mapping):
            labels = {str(value): value for value in labels}
        self.labels = {name: values for name, values in label_regions(labels).items() if values != (0,)}
        if not self.labels:
            raise EvaluationError(
                f"MeanCaseDice needs at least one label above background 0, found {dict(labels)}; add one"
            )
        self.ignore_label = ignore_label
        self.partial_labels = {int(value): set(classes) for value, classes in (partial_labels or {}).items()}
        super().__init__(output_transform or prediction_and_label, device=device)

    @reinit__is_reduced
    def reset(self) -> None:
        """Clear all cases."""
        self._sum = torch.zeros(len(self.labels), dtype=torch.float64, device=self._device)
        self._count = torch.zeros(len(self.labels), dtype=torch.float64, device=self._device)
        self._cases: list[np.ndarray] = []

    @reinit__is_reduced
    def update(self, output: tuple[Any, Any]) -> None:
        """Score the cases of one batch."""
        for prediction, label in zip(*output, strict=True):
            predicted, reference = classes(prediction), classes(label)
            if self.ignore_label is not None and predicted.shape == reference.shape:
                is_ignored = reference == self.ignore_label
                predicted, reference = (labels.masked_fill(is_ignored, 0) for labels in (predicted, reference))
            scores = case_dice(predicted, reference, list(self.labels.values()))
            for value, possible in self.partial_labels.items():
                if bool((reference == value).any()):
                    scores[[bool(possible & set(values)) for values in self.labels.values()]] = np.nan
            self._cases.append(scores)
            self._sum += torch.from_numpy(np.nan_to_num(scores)).to(self._sum)
            self._count += torch.from_numpy(np.isfinite(scores)).to(self._count)

    def class_means(self) -> dict[str, float]:
        """Return the mean Dice of each label over the cases of this process; NaN if no case counts."""
        means = (self._sum / self._count).tolist()
        return dict(zip(self.labels, means, strict=True))

    @sync_all_reduce("_sum", "_count")
    def compute(self) -> float:
        """Return the mean over the labels that count in at least one case.

        Raises:
            NotComputableError: there was no case, or every label was absent from every case on both sides.
        """
        if not bool((self._count > 0).any()):
            raise NotComputableError("MeanCaseDice: no case contains a structure; check the validation labels")
        self._reduced_means = self.class_means()
        return float(np.nanmean(list(self._reduced_means.values())))

    def completed(self, engine: Engine, name: str) -> None:
        """Store the mean, the mean of each label and the cases in the engine's state."""
        super().completed(engine, name)
        for label, mean in self._reduced_means.items():
            engine.state.metrics[f"{name}_{label}"] = mean
        if not hasattr(engine.state, "metric_details"):
            engine.state.metric_details = {}
        engine.state.metric_details[name] = torch.from_numpy(np.reshape(self._cases, (-1, len(self.labels))))


def prediction_and_label(output: Any) -> tuple[Any, Any]:
    """Return (prediction, label) of an engine's output: a list of dictionaries, one dictionary, or such a pair."""
    if isinstance(output, Mapping):
        return output["pred"], output["label"]
    if isinstance(output, list) and output and isinstance(output[0], Mapping):
        return [item["pred"] for item in output], [item["label"] for item in output]
    return output[0], output[1]


def classes(item: torch.Tensor) -> torch.Tensor:
    """Return the class integers (…) of one channel-first tensor (C, …): the only channel, or the largest of several."""
    if item.shape[0] > 1:
        return item.argmax(dim=0)
    item = item[0]
    if not item.is_floating_point():
        return item
    rounded = item.round()
    if not torch.equal(rounded, item):
        raise EvaluationError(
            "MeanCaseDice: a one-channel prediction or label must hold class integers, found fractions; "
            "turn probabilities into classes first (monai.transforms.AsDiscreted)"
        )
    return rounded.long()
