"""Unfinished sums put aside in half precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from inference.thin_network import thin_network

from medseg.inference.backends.torch_backend import TorchBackend
from medseg.inference.tiling.blending import HalfBlock
from medseg.inference.tiling.streaming import Window, predict_labels
from medseg.transforms.restore.label_decision import LabelDecision


@pytest.mark.parametrize("layout", [(0, 1, 2, 3), (0, 3, 1, 2)])
def test_sums_come_back_within_half_a_unit_of_fp16(layout: tuple[int, ...]) -> None:
    block = torch.empty_permuted((4, 5, 6, 7), layout).normal_(generator=torch.manual_seed(0))
    block[0] *= 1e6  # beyond fp16's largest number
    block[1] *= 1e-9  # below its smallest
    block[2] = 0
    back = HalfBlock.of(block).restored()
    assert back.stride() == block.stride()
    assert torch.equal(back[-1], block[-1])
    assert torch.equal(back[2], block[2])
    bound = torch.maximum(block.abs() * 2.0**-11, block.abs().amax((1, 2, 3), keepdim=True) * 2.0**-40)
    assert ((back - block).abs() <= bound).all()


def test_labels_differ_at_near_ties_alone() -> None:
    shape, classes = (60, 41, 37), 8
    backend, decision = TorchBackend(thin_network(8, classes), torch.device("cpu")), LabelDecision(range(classes))
    image = torch.randn(1, *shape, generator=torch.manual_seed(3))
    found = [
        predict_labels(
            image, np.eye(4), np.eye(4), shape, backend, decision,
            Window((24, 20, 16), carried=carried),
        )
        for carried in ("fp32", "fp16")
    ]  # fmt: skip
    agreement = (found[0] == found[1]).float().mean().item()
    assert 0.998 < agreement < 1  # it was used, and is close


@pytest.mark.parametrize("batch_size", [1, 3])
def test_working_beside_the_network_changes_nothing(batch_size: int) -> None:
    shape, classes = (50, 33, 41), 5
    network = thin_network(6, classes)
    image = torch.randn(1, *shape, generator=torch.manual_seed(4))
    native = np.diag([0.7, 1.3, 1.0, 1.0])
    found = [
        predict_labels(
            image, np.eye(4), native, (70, 25, 41), TorchBackend(network, torch.device("cpu")),
            LabelDecision(range(classes)), Window((24, 20, 16), batch_size=batch_size, is_pipelined=is_pipelined),
        )
        for is_pipelined in (True, False)
    ]  # fmt: skip
    assert torch.equal(*found)
    assert len(found[0].unique()) > 2


def test_an_error_of_the_network_or_of_what_follows_it_ends_the_work() -> None:
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
