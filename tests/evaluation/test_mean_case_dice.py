import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import AsDiscreted

from medseg.errors import EvaluationError
from medseg.evaluation import MeanCaseDice, score_case

LABELS = {"background": 0, "anterior": 1, "posterior": 2, "never": 3}


def cases(count: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    pairs = [(rng.integers(0, 3, (6, 6, 6)), rng.integers(0, 3, (6, 6, 6))) for _ in range(count)]
    pairs[1][0][pairs[1][0] == 2] = 0  # missed
    pairs[2][1][pairs[2][1] == 1] = 0  # spurious
    pairs[3][0][pairs[3][0] == 1] = pairs[3][1][pairs[3][1] == 1] = 0  # absent
    return pairs


def expected_means() -> dict[str, float]:
    scores: dict[str, list[float]] = {"anterior": [], "posterior": [], "never": []}
    for prediction, reference in cases():
        for row in score_case(prediction, reference, (1, 1, 1), {"anterior": 1, "posterior": 2, "never": 3}):
            scores[row.label].append(row.values["dice"])
    return {
        label: float(np.nanmean(values)) if np.isfinite(values).any() else math.nan for label, values in scores.items()
    }


def test_the_metric_equals_the_evaluation() -> None:
    metric = MeanCaseDice(LABELS)
    for prediction, reference in cases():
        batch = [{"pred": torch.from_numpy(prediction)[None], "label": torch.from_numpy(reference)[None].float()}]
        metric.update(metric._output_transform(batch))
    expected = expected_means()
    assert metric.class_means() == pytest.approx(expected, nan_ok=True)
    assert metric.compute() == pytest.approx((expected["anterior"] + expected["posterior"]) / 2)


def test_ignored_voxels_count_on_neither_side() -> None:
    """`score_case` of both maps with background there, as `medseg evaluate` does, is the oracle."""
    prediction, reference = cases()[0]
    is_ignored = np.random.default_rng(1).random(reference.shape) < 0.3
    metric = MeanCaseDice(LABELS, ignore_label=255)
    metric.update(
        ([torch.from_numpy(prediction)[None]], [torch.from_numpy(np.where(is_ignored, 255, reference))[None]])
    )
    cleared = [np.where(is_ignored, 0, labels) for labels in (prediction, reference)]
    rows = score_case(*cleared, (1, 1, 1), {"anterior": 1, "posterior": 2, "never": 3})
    assert metric.class_means() == pytest.approx({row.label: row.values["dice"] for row in rows}, nan_ok=True)


def test_the_metric_works_as_key_metric_of_monais_evaluator() -> None:
    """With an identity network the predictions are the images themselves, one-hot of three classes."""
    data = []
    for prediction, reference in cases():
        onehot = np.eye(4)[prediction].transpose(3, 0, 1, 2).astype(np.float32)
        data.append({"image": torch.from_numpy(onehot), "label": torch.from_numpy(reference)[None].float()})
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(data), batch_size=2),
        network=torch.nn.Identity(),
        postprocessing=AsDiscreted(keys="pred", argmax=True),
        key_val_metric={"val_mean_dice": MeanCaseDice(LABELS)},
    )
    evaluator.run()
    expected = expected_means()
    state = evaluator.state
    assert state.metrics["val_mean_dice"] == pytest.approx((expected["anterior"] + expected["posterior"]) / 2)
    assert state.best_metric == state.metrics["val_mean_dice"]
    assert state.metrics["val_mean_dice_posterior"] == pytest.approx(expected["posterior"])
    details = state.metric_details["val_mean_dice"]
    assert details.shape == (5, 3)
    assert details[:, 0].nanmean().item() == pytest.approx(expected["anterior"])


def test_logits_are_compared_by_their_largest_channel() -> None:
    prediction, reference = cases(4)[0]
    logits = torch.from_numpy(np.eye(3)[prediction].transpose(3, 0, 1, 2)) * 7 - 2
    metric = MeanCaseDice([1, 2], output_transform=lambda output: output)
    metric.update((logits[None], torch.from_numpy(reference)[None, None]))
    rows = score_case(prediction, reference, (1, 1, 1), {"1": 1, "2": 2})
    assert metric.class_means() == pytest.approx({row.label: row.values["dice"] for row in rows})


def test_reset_clears_all_cases() -> None:
    metric = MeanCaseDice([1])
    wrong, right = torch.zeros(1, 1, 4, 4, dtype=torch.long), torch.ones(1, 1, 4, 4, dtype=torch.long)
    metric.update((wrong, right))
    assert metric.compute() == 0
    metric.reset()
    metric.update((right, right))
    assert metric.compute() == 1


def test_invalid_inputs_are_refused() -> None:
    metric = MeanCaseDice([1])
    with pytest.raises(NotComputableError, match="no case"):
        metric.compute()
    with pytest.raises(EvaluationError, match="fractions"):
        metric.update((torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, 1, 2, 2)))
    with pytest.raises(EvaluationError, match="background"):
        MeanCaseDice({"background": 0})


def test_an_attached_metric_is_reset_each_epoch() -> None:
    engine = Engine(lambda _engine, batch: batch)
    MeanCaseDice([1]).attach(engine, "dice")
    right = torch.ones(1, 1, 4, 4, dtype=torch.long)
    engine.run([(right * 0, right)])
    engine.run([(right, right)])
    assert engine.state.metrics["dice"] == 1
