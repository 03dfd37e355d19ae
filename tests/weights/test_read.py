import pickle

import numpy as np
import pytest
import torch
from torch import nn

from medseg import weights
from medseg.errors import WeightsError

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2, dtype=torch.float64)}


def same(found):
    return found.keys() == STATE.keys() and all(torch.equal(found[k], STATE[k]) for k in STATE)


@pytest.mark.parametrize(
    "checkpoint",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3},
        {"model": {"state_dict": {f"module.{k}": v for k, v in STATE.items()}}, "optimizer": {"state": {}}},
        {"network_weights": {f"_orig_mod.{k}": v for k, v in STATE.items()}, "best": np.float64(0.9)},
        {"model_state_dict": {f"module.model.{k}": v for k, v in STATE.items()}, "classes": np.arange(3)},
    ],
)
def test_state_dict_is_found_in_common_checkpoints(tmp_path, checkpoint):
    path = tmp_path / "checkpoint.pth"
    torch.save(checkpoint, path)
    assert same(weights.read(path))


def test_file_that_would_run_code_is_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return (print, ("code ran",))

    path = tmp_path / "evil.pt"
    torch.save({"state_dict": STATE, "hook": Payload()}, path)
    with pytest.raises(WeightsError, match=r"evil\.pt: holds pickled Python objects.*save the tensors alone.*print"):
        weights.read(path)


def test_pickled_module_is_refused(tmp_path):
    path = tmp_path / "whole.pt"
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(WeightsError, match="pickled Python objects"):
        weights.read(path)
    plain = tmp_path / "plain.pkl"
    plain.write_bytes(pickle.dumps({"x": print}))
    with pytest.raises(WeightsError, match=r"plain\.pkl"):
        weights.read(plain)


@pytest.mark.parametrize("name", ["broken.pt", "broken.safetensors"])
def test_damaged_file_is_one_line(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"\x80not weights at all")
    with pytest.raises(WeightsError) as error:
        weights.read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_truncated_file_is_one_line(tmp_path):
    for name in ("half.pt", "half.safetensors"):
        path = tmp_path / name
        weights.write(path, STATE)
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(WeightsError) as error:
            weights.read(path)
        assert "\n" not in str(error.value)


def test_absent_file_and_file_without_weights(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        weights.read(tmp_path / "nothing.pt")
    path = tmp_path / "numbers.pt"
    torch.save({"epoch": 3, "loss": 0.5}, path)
    with pytest.raises(WeightsError, match=r"holds no state dict \(found: epoch, loss\)"):
        weights.read(path)
