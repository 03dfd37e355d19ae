import hashlib

import pytest
import torch
from safetensors import safe_open

from medseg import weights
from medseg.errors import WeightsError
from medseg.networks import create


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".pth"])
def test_what_is_written_is_what_is_read(tmp_path, ending):
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


def test_metadata_is_kept_in_safetensors_only(tmp_path):
    weights.write(tmp_path / "w.safetensors", {"a": torch.ones(1)}, metadata={"plan": "abc"})
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.metadata() == {"plan": "abc"}
    with pytest.raises(WeightsError, match="metadata"):
        weights.write(tmp_path / "w.pt", {"a": torch.ones(1)}, metadata={"plan": "abc"})


def test_a_failed_write_leaves_the_old_file_and_no_remains(tmp_path):
    path = tmp_path / "w.safetensors"
    weights.write(path, {"a": torch.ones(1)})
    before = path.read_bytes()
    with pytest.raises((TypeError, ValueError)):
        weights.write(path, {"a": torch.zeros(1)}, metadata={"plan": 3})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


def test_bad_arguments(tmp_path):
    with pytest.raises(WeightsError, match="ending must be one of"):
        weights.write(tmp_path / "w.onnx", {"a": torch.ones(1)})
    with pytest.raises(WeightsError, match="no tensors"):
        weights.write(tmp_path / "w.pt", {})
    with pytest.raises(WeightsError, match="cannot be read"):
        weights.sha256(tmp_path / "absent.pt")
