"""Reading and writing state dicts: values survive, code never runs, and bad files are one line."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from medseg import weights
from medseg.errors import WeightsError
from medseg.networks import create

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
    with pytest.raises(WeightsError, match=r"evil\.pt: .*pickled.*print"):
        weights.read(path)


def test_pickled_module_is_refused(tmp_path):
    path = tmp_path / "whole.pt"
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(WeightsError, match=r"whole\.pt: .*pickled"):
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


def test_a_missing_file_and_a_file_without_weights_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        weights.read(tmp_path / "nothing.pt")
    path = tmp_path / "numbers.pt"
    torch.save({"epoch": 3, "loss": 0.5}, path)
    with pytest.raises(WeightsError, match=r"numbers\.pt: .*epoch, loss"):
        weights.read(path)


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".pth"])
def test_written_weights_are_read_back_equal(tmp_path, ending):
    network = create("unet_padded", 1, 2, channels=(4, 8))
    path = tmp_path / "new" / f"model{ending}"
    digest = weights.write(path, network)
    found = weights.read(path)
    assert list(found) == list(network.state_dict()) or ending == ".safetensors"
    assert found.keys() == network.state_dict().keys()
    for key, value in network.state_dict().items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value)
    assert digest == weights.sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_views_shared_memory_and_other_layouts_are_written_by_value(tmp_path):
    base = torch.arange(64.0)
    state = {"view": base[:4], "same": base[:4], "last": torch.randn(1, 2, 3, 4).to(memory_format=torch.channels_last)}
    for name in ("w.safetensors", "w.pt"):
        weights.write(tmp_path / name, state)
        found = weights.read(tmp_path / name)
        assert all(torch.equal(found[key], value) for key, value in state.items())
        assert found["view"].untyped_storage().nbytes() == 16


def test_only_safetensors_stores_metadata(tmp_path):
    weights.write(tmp_path / "w.safetensors", {"a": torch.ones(1)}, metadata={"plan": "abc"})
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.metadata() == {"plan": "abc"}
    with pytest.raises(WeightsError, match="metadata"):
        weights.write(tmp_path / "w.pt", {"a": torch.ones(1)}, metadata={"plan": "abc"})


def test_a_failed_write_leaves_the_old_file_and_no_temporary_file(tmp_path):
    path = tmp_path / "w.safetensors"
    weights.write(path, {"a": torch.ones(1)})
    before = path.read_bytes()
    with pytest.raises((TypeError, ValueError)):
        weights.write(path, {"a": torch.zeros(1)}, metadata={"plan": 3})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


def test_bad_arguments(tmp_path):
    with pytest.raises(WeightsError, match=r"w\.onnx: .*\.safetensors"):
        weights.write(tmp_path / "w.onnx", {"a": torch.ones(1)})
    with pytest.raises(WeightsError, match="no tensors"):
        weights.write(tmp_path / "w.pt", {})
    with pytest.raises(WeightsError, match=r"absent\.pt"):
        weights.sha256(tmp_path / "absent.pt")


@pytest.mark.parametrize(("written", "renamed"), [("w.safetensors", "w.pt"), ("w.pt", "w.safetensors")])
def test_a_renamed_file_is_read_by_its_content(tmp_path, written, renamed):
    weights.write(tmp_path / written, {"a": torch.arange(3.0), "b": torch.ones(2, 2)})
    (tmp_path / written).rename(tmp_path / renamed)
    found = weights.read(tmp_path / renamed)
    assert torch.equal(found["a"], torch.arange(3.0))
    assert torch.equal(found["b"], torch.ones(2, 2))


def test_a_folder_is_named_as_such(tmp_path):
    with pytest.raises(WeightsError, match=rf"{tmp_path}.*folder"):
        weights.read(tmp_path)
