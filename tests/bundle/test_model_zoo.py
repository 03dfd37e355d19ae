"""The checks of MONAI's model zoo (its `ci/verify_bundle.py`), offline: files, metadata, tensors, TorchScript."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bundle.tiny_bundles import BUNDLES
from monai.bundle import ckpt_export, create_workflow, verify_net_in_out
from monai.data import load_net_with_metadata

import medseg
from medseg.networks.serialization import example_input

# JSON types that MONAI's schema (meta_schema_20240725.json) gives to the keys of metadata.json.
TYPES: dict[type, tuple[str, ...]] = {
    str: (
        "schema", "version", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors",
        "copyright", "data_source", "data_type", "image_classes", "label_classes", "pred_classes", "intended_use",
    ),
    dict: ("changelog", "required_packages_version", "eval_metrics", "supported_apps", "network_data_format"),
    list: ("references",),
}  # fmt: skip
TENSOR_TYPES = {
    "type": str, "format": str, "num_channels": int, "spatial_shape": list, "dtype": str, "value_range": list,
    "is_patch_data": bool, "channel_def": dict,
}  # fmt: skip


@pytest.fixture(params=sorted(BUNDLES.iterdir()), ids=lambda folder: folder.name)
def shipped(request) -> Path:
    return request.param


def read(bundle: Path) -> dict:
    return json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))


def test_the_files_the_zoo_asks_for_exist_and_nothing_is_left_to_download(shipped):
    for name in ("LICENSE", "configs/metadata.json", "configs/inference.json", "models/model.pt"):
        assert (shipped / name).is_file()
    assert not list(shipped.glob("large_files*"))


def test_metadata_has_the_types_of_the_schema(shipped):
    metadata = read(shipped)
    assert metadata["version"] in metadata["changelog"]
    for kind, keys in TYPES.items():
        assert [key for key in keys if not isinstance(metadata[key], kind)] == []
    for role in ("inputs", "outputs"):
        for tensor in metadata["network_data_format"][role].values():
            assert [key for key, kind in TENSOR_TYPES.items() if not isinstance(tensor[key], kind)] == []


def test_metadata_describes_what_the_network_takes_and_returns(shipped):
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(shipped / "configs" / "metadata.json"),
        config_file=str(shipped / "configs" / "inference.json"),
        bundle_root=str(shipped),
    )


def test_the_inference_workflow_has_the_required_properties(shipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workflow = create_workflow(
        workflow_type="inference",
        bundle_root=str(shipped),
        config_file=str(shipped / "configs" / "inference.json"),
        logging_file=False,
        meta_file=str(shipped / "configs" / "metadata.json"),
    )
    assert type(workflow.network_def) is type(medseg.load_network(shipped))
    assert not list(tmp_path.iterdir())  # nothing is written before the run


def test_ckpt_export_writes_the_network_as_torchscript(shipped, tmp_path):
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(shipped / "models" / "model.pt"),
        meta_file=str(shipped / "configs" / "metadata.json"),
        config_file=str(shipped / "configs" / "inference.json"),
        bundle_root=str(shipped),
    )
    exported, metadata, _ = load_net_with_metadata(str(tmp_path / "model.ts"))
    assert metadata["version"] == read(shipped)["version"]
    network = medseg.load_network(shipped)
    x = example_input(network)
    with torch.no_grad():
        expected = network(x)
        torch.testing.assert_close(exported.eval()(x), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
