"""Validation Dice as an ignite metric: the number `medseg evaluate` would report for the same label maps."""

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
    """Unweighted mean over classes of each class's mean Dice over cases, usable as an evaluator's key metric.

    Every case is scored by `case_dice`: both masks empty is a correct absence and not averaged, one empty is 0. Beside
    the mean under the name it is attached as, `engine.state.metrics` holds `<name>_<label>` for each label and
    `engine.state.metric_details[name]` the Dice of each case of this process, shape (cases, labels), NaN for absences.

    Args:
        labels: each structure's name and class value (or the values whose union it is); 0 and its name may be
            included and is left out, as background. A sequence of values names each by itself.
        output_transform: engine output → (prediction, label); default takes them from MONAI's decollated or batched
            dictionaries under "pred" and "label". Each is a list of (C, …) tensors or one (B, C, …) tensor; with C = 1
            its integers are the classes, with more the largest channel is.
        device: where the sums are kept for reduction over processes.

    Raises:
        EvaluationError: no labels, or shapes that differ.
    """

    def __init__(
        self,
        labels: Mapping[str, int | Sequence[int]] | Sequence[int],
        output_transform: Callable[[Any], Any] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        if not isinstance(labels, Mapping):
            labels = {str(value): value for value in labels}
        self.labels = {name: values for name, values in label_regions(labels).items() if values != (0,)}
        if not self.labels:
            raise EvaluationError(f"MeanCaseDice needs at least one label above background 0, found {dict(labels)}")
        super().__init__(output_transform or prediction_and_label, device=device)

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget all cases."""
        self._sum = torch.zeros(len(self.labels), dtype=torch.float64, device=self._device)
        self._count = torch.zeros(len(self.labels), dtype=torch.float64, device=self._device)
        self._cases: list[np.ndarray] = []

    @reinit__is_reduced
    def update(self, output: tuple[Any, Any]) -> None:
        """Score the cases of one batch."""
        for prediction, label in zip(*output, strict=True):
            scores = case_dice(classes(prediction), classes(label), list(self.labels.values()))
            self._cases.append(scores)
            self._sum += torch.from_numpy(np.nan_to_num(scores)).to(self._sum)
            self._count += torch.from_numpy(np.isfinite(scores)).to(self._count)

    def class_means(self) -> dict[str, float]:
        """Mean Dice of each label over the cases that count; NaN where none does; of this process alone."""
        means = (self._sum / self._count).tolist()
        return dict(zip(self.labels, means, strict=True))

    @sync_all_reduce("_sum", "_count")
    def compute(self) -> float:
        """The class mean, over the labels that at least one case counts for.

        Raises:
            NotComputableError: no case has been seen, or every label was absent from every case on both sides.
        """
        if not bool((self._count > 0).any()):
            raise NotComputableError("MeanCaseDice: no case with a structure was seen; check the validation labels")
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
    """(prediction, label) of MONAI's output: a list of dictionaries, one dictionary, or already such a pair."""
    if isinstance(output, Mapping):
        return output["pred"], output["label"]
    if isinstance(output, list) and output and isinstance(output[0], Mapping):
        return [item["pred"] for item in output], [item["label"] for item in output]
    return output[0], output[1]


def classes(item: torch.Tensor) -> torch.Tensor:
    """Class integers (…) of one channel-first tensor (C, …): its only channel, or the largest of several."""
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
