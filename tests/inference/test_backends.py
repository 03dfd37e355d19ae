"""Backends give the same values, and none of them talks to anyone."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inference.plans import small_plan
from inference.thin_network import thin_network

from medseg.errors import BackendError, OptionError
from medseg.inference import Predictor
from medseg.inference.backend import TorchBackend
from medseg.inference.backend_choice import choose_backend
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


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"backend": "tensorrt"}, "backend must be auto, torch or openvino, found 'tensorrt'"),
        ({"precision": "fp8"}, "precision must be auto, fp32 or bf16, found 'fp8'"),
        ({"tta": "turn"}, "tta must be none or flip, found 'turn'"),
        ({"interpolation": "nearest"}, "interpolation must be linear or cubic, found 'nearest'"),
        ({"batch_size": 0}, "batch_size must be at least 1, found 0"),
        ({"overlap": 1.0}, r"overlap must be at least 0 and below 1, found 1\.0"),
        ({"overlap": -0.1}, "overlap must be"),
        ({"overlap": float("nan")}, "overlap must be"),
        ({"max_ram": "lots"}, "looks like 4GB"),
        ({"device": "quantum"}, "choose one of auto, cpu"),
        ({"device": "cpu:x"}, "device 'cpu:x'"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not available here"),
    ],
)
def test_unknown_choices_are_refused(options: dict[str, Any], rule: str) -> None:
    with pytest.raises(OptionError, match=rule):
        Predictor(thin_network(4, 3), small_plan(), **{"device": "cpu", **options})


def test_parts_refuse_unknown_choices_too() -> None:
    with pytest.raises(OptionError, match="choose one of auto, cpu"):
        choose_device("quantum")
    with pytest.raises(OptionError, match="fp32 or bf16"):
        TorchBackend(thin_network(4, 3), torch.device("cpu"), "fp8")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="runs on the CPU"):
        choose_backend([thin_network(4, 3)], torch.device("cuda"), (1, 1, 16, 16, 16), "openvino")


def test_openvino_that_is_absent_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match=r"pip install 'medseg\[openvino\]'"):
        Predictor(thin_network(4, 3), small_plan(), "cpu", backend="openvino")
