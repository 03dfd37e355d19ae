"""Tests of streaming, which must equal merging in memory and restoring afterwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from inference.thin_network import thin_network
from monai.inferers import sliding_window_inference
from nibabel.orientations import inv_ornt_aff

from medseg.inference import SlidingWindowInferer
from medseg.inference.backends.torch_backend import TorchBackend
from medseg.inference.tiling.streaming import Window, predict_labels
from medseg.transforms.restore.label_decision import LabelDecision
from medseg.transforms.restore.restore_labels import restore_labels

CPU = torch.device("cpu")


def turned_grid(shape: tuple[int, ...], zoom: tuple[float, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return a native grid with reversed axes, the first of them flipped, and another spacing than the model's."""
    dims = len(shape)
    native = tuple(max(1, round(n * z)) for n, z in zip(shape[::-1], zoom, strict=True))
    ornt = np.column_stack([np.arange(dims)[::-1], [-1, *([1] * (dims - 1))]])
    affine = np.eye(4)
    scaled = np.diag([*(1 / np.asarray(zoom)[::-1]), 1.0])
    affine[np.ix_([*range(dims), 3], [*range(dims), 3])] = scaled @ inv_ornt_aff(ornt, native[::-1])
    return affine, native


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
@pytest.mark.parametrize("zoom", [1.0, 0.6, 2.3])
@pytest.mark.parametrize(
    ("shape", "tile", "overlap"),
    [((35, 51, 37), (16, 24, 20), 0.5), ((20, 41, 31), (32, 16, 24), 0.25), ((7, 5, 1), (8, 8, 8), 0.5),
     ((50, 61), (16, 12), 0.75), ((31, 30, 20), (16, 16, 16), 0.7)],
)  # fmt: skip
def test_streaming_equals_merging_in_memory(
    shape: tuple, tile: tuple, overlap: float, zoom: float, interpolation: str
) -> None:
    classes = 6
    network = thin_network(8, classes, len(shape))
    image = torch.randn(1, *shape, generator=torch.manual_seed(3))
    native_affine, native_shape = turned_grid(shape, (zoom, 1.0, 1.3)[: len(shape)])
    decision = LabelDecision(range(classes))
    with torch.no_grad():
        logits = SlidingWindowInferer(tile, 2, overlap, "gaussian")(image[None], network)[0]
    in_memory = restore_labels(logits, np.eye(4), native_affine, native_shape, decision, interpolation)  # type: ignore[arg-type]
    streamed = predict_labels(
        image, np.eye(4), native_affine, native_shape, TorchBackend(network, CPU), decision,
        Window(tile, overlap, "gaussian", 2, interpolation),  # type: ignore[arg-type]
    )  # fmt: skip
    assert torch.equal(streamed, in_memory)
    if np.prod(shape) > 1000:
        assert len(in_memory.unique()) > 2  # an image of one class would prove nothing


@pytest.mark.parametrize(("shape", "tile"), [((35, 51, 37), (16, 24, 20)), ((50, 61), (16, 12))])
def test_blended_features_give_the_labels_of_blended_logits(shape: tuple, tile: tuple) -> None:
    """Labels differ only where MONAI's two largest logits are within 1e-4."""
    classes = 24
    network = thin_network(8, classes, len(shape))
    image = torch.randn(1, *shape, generator=torch.manual_seed(3))
    backend = TorchBackend(network, CPU)
    assert backend.head_weight is not None
    labels = predict_labels(
        image, np.eye(4), np.eye(4), shape, backend, LabelDecision(range(classes)), Window(tile, 0.5, "gaussian", 3),
        backend.head_weight, backend.head_bias,
    )  # fmt: skip
    with torch.no_grad():
        logits = sliding_window_inference(image[None], tile, 3, network, 0.5, "gaussian")[0]  # type: ignore[index]
    assert isinstance(logits, torch.Tensor)
    ordered = logits.sort(dim=0).values
    differs = labels != logits.argmax(0)
    assert (ordered[-1] - ordered[-2])[differs].max() <= 1e-4 if differs.any() else True
    assert len(labels.unique()) > 4


def test_sheared_grids_are_restored_from_whole_logits() -> None:
    shape = (12, 10, 9)
    network = thin_network(3, 2)
    native_affine = np.eye(4)
    native_affine[0, 1] = 0.2
    image = torch.randn(1, *shape, generator=torch.manual_seed(3))
    decision = LabelDecision([0, 1])
    with torch.no_grad():
        logits = SlidingWindowInferer((8, 8, 8), 1, 0.5, "gaussian")(image[None], network)[0]
    expected = restore_labels(logits, np.eye(4), native_affine, shape, decision)
    backend = TorchBackend(network, CPU)
    streamed = predict_labels(image, np.eye(4), native_affine, shape, backend, decision, Window((8, 8, 8)))
    assert torch.equal(streamed, expected)


def test_progress_counts_every_tile() -> None:
    calls: list[tuple[int, int]] = []
    backend = TorchBackend(thin_network(3, 2), CPU)
    predict_labels(
        torch.zeros(1, 16, 16, 20), np.eye(4), np.eye(4), (16, 16, 20), backend, LabelDecision([0, 1]),
        Window((8, 8, 8), batch_size=4), on_tiles=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    assert calls[-1] == (36, 36)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})


@pytest.mark.parametrize("batch_size", [1, 3])
def test_pipelining_does_not_change_a_label(batch_size: int) -> None:
    shape, classes = (50, 33, 41), 5
    network = thin_network(6, classes)
    image = torch.randn(1, *shape, generator=torch.manual_seed(4))
    native = np.diag([0.7, 1.3, 1.0, 1.0])
    labels = [
        predict_labels(
            image, np.eye(4), native, (70, 25, 41), TorchBackend(network, torch.device("cpu")),
            LabelDecision(range(classes)), Window((24, 20, 16), batch_size=batch_size, is_pipelined=is_pipelined),
        )
        for is_pipelined in (True, False)
    ]  # fmt: skip
    assert torch.equal(*labels)
    assert len(labels[0].unique()) > 2


def test_an_error_of_the_network_or_of_the_progress_callback_is_raised() -> None:
    image = torch.zeros(1, 20, 16, 16)
    decision, window = LabelDecision([0, 1]), Window((16, 16, 16))

    def broken(tiles: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        predict_labels(image, np.eye(4), np.eye(4), (20, 16, 16), broken, decision, window)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_labels(
            image, np.eye(4), np.eye(4), (20, 16, 16), lambda x: torch.cat([x, x], 1), decision, window, on_tiles=stop
        )
