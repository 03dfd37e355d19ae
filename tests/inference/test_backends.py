"""Backends give the same values, and none of them talks to anyone."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inference.plans import small_plan
from inference.thin_network import thin_network

from medseg.inference import Predictor
from medseg.inference.backend import TorchBackend
from medseg.inference.device import choose_device
from medseg.inference.ensemble import EnsembleBackend
from medseg.inference.forward_memory import forward_bytes


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDSEG_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


IMAGE = (np.random.default_rng(0).normal(size=(20, 24, 30)).astype(np.float32), np.eye(4))


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_prediction_opens_no_socket(backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    seg = Predictor(thin_network(4, 3), small_plan(), "cpu", backend=backend).predict(IMAGE)  # type: ignore[arg-type]
    assert seg.array.shape == IMAGE[0].shape


def test_openvino_gives_torchs_values_for_full_and_short_batches(own_cache: Path) -> None:
    pytest.importorskip("openvino")
    from medseg.inference.openvino_backend import OpenVINOBackend

    for features, classes in ((4, 3), (4, 9)):  # logits, and features with the head apart
        network = thin_network(features, classes)
        ours, theirs = OpenVINOBackend(network, (2, 1, 16, 16, 16)), TorchBackend(network, torch.device("cpu"))
        assert (ours.head_weight is None) == (theirs.head_weight is None)
        for batch in (2, 1):
            tiles = torch.randn(batch, 1, 16, 16, 16, generator=torch.manual_seed(batch))
            first = ours(tiles)
            kept = first.clone()
            torch.testing.assert_close(first, theirs(tiles), atol=1e-4, rtol=1e-4)
            ours(torch.zeros_like(tiles))
            assert torch.equal(first, kept)  # a later pass does not write into an earlier result
        assert forward_bytes(ours, (2, 1, 16, 16, 16)) > 0
    assert len(list((own_cache / "openvino" / "converted").iterdir())) == 2
    again = OpenVINOBackend(network, (2, 1, 16, 16, 16))  # from the cache
    torch.testing.assert_close(again(tiles), theirs(tiles), atol=1e-4, rtol=1e-4)
    assert len(list((own_cache / "openvino" / "converted").iterdir())) == 2


def test_openvino_predicts_torchs_labels() -> None:
    pytest.importorskip("openvino")
    network, plan = thin_network(6, 3), small_plan()
    seg = Predictor(network, plan, "cpu", backend="openvino", batch_size=4).predict(IMAGE)
    expected = Predictor(network, plan, "cpu", batch_size=4).predict(IMAGE)
    assert (seg.array == expected.array).mean() > 0.9995
    assert seg.provenance["backend"] == "openvino"


def test_an_ensemble_refuses_features_and_emptiness() -> None:
    member = TorchBackend(thin_network(4, 9), torch.device("cpu"))
    with pytest.raises(ValueError, match="must give logits"):
        EnsembleBackend([member])
    with pytest.raises(ValueError, match="at least one"):
        EnsembleBackend([])


def test_unknown_choices_are_refused() -> None:
    with pytest.raises(ValueError, match="auto, torch or openvino, found 'tensorrt'"):
        Predictor(thin_network(4, 3), small_plan(), "cpu", backend="tensorrt")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="choose one of auto, cpu"):
        choose_device("quantum")
    with pytest.raises(ValueError, match="fp32 or bf16"):
        TorchBackend(thin_network(4, 3), torch.device("cpu"), "fp8")  # type: ignore[arg-type]
