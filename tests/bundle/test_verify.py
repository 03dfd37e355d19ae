import json
from pathlib import Path

import pytest
import torch

from medseg.bundle import apply_plan, verify

BUNDLES = sorted((Path(__file__).parents[2] / "bundles").iterdir())


def failed(bundle: Path) -> dict[str, str]:
    return {check.name: check.message for check in verify(bundle) if not check.passed}


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_complete_bundle_passes(bundle):
    assert failed(bundle) == {}


@pytest.mark.parametrize("folder", BUNDLES, ids=lambda folder: folder.name)
def test_every_shipped_bundle_passes_except_for_weights_not_yet_trained(folder):
    allowed = set() if (folder / "models" / "model.pt").is_file() else {"weights", "network"}
    assert set(failed(folder)) <= allowed


def test_each_difference_is_named(bundle):
    configs = bundle / "configs"
    change(configs / "inference.json", dataset_dir="elsewhere")
    change(configs / "metadata.json", version="9.9.9")
    change(configs / "train.json", train={})
    (bundle / "models" / "model.pt").write_bytes(b"")
    found = failed(bundle)
    assert "inference.json: " in found["inference.json"]
    assert "9.9.9" in found["metadata"]
    assert "train.json: " in found["training properties"]
    assert "model.pt: " in found["weights"]


def test_metadata_and_plan_must_agree_on_channels(bundle):
    plan = bundle / "configs" / "plan.json"
    change(plan, labels={"background": 0, "round": 1, "elongated": 2, "other": 3}, crop_ratios=None)
    assert "metadata.json: found 1 → 3 channels, expected 1 → 4" in failed(bundle)["metadata"]


def test_the_network_of_each_config_must_be_the_plans(bundle):
    plan = bundle / "configs" / "plan.json"
    network = json.loads(plan.read_text())["network"]
    network["arguments"]["channels"] = [4, 8, 16]
    change(plan, network=network)
    assert {"inference.json", "training network"} <= set(failed(bundle))
    apply_plan(bundle)
    assert not {"inference.json", "training network"} & set(failed(bundle))


def test_metadata_must_describe_the_tensors(bundle):
    file = bundle / "configs" / "metadata.json"
    formats = json.loads(file.read_text())["network_data_format"]
    del formats["inputs"]["image"]["value_range"]
    change(file, network_data_format=formats)
    assert "inputs image: value_range" in failed(bundle)["metadata"]


def test_missing_and_truncated_files_are_reported(bundle):
    configs = bundle / "configs"
    (configs / "train.json").write_text("{")
    (configs / "evaluate.json").unlink()
    change(configs / "metadata.json", network_data_format={})
    (bundle / "models" / "model.json").write_bytes('{"weights_sha256": ""}'.encode("utf-16"))
    broken = {"metadata", "training network", "training properties", "evaluate.json", "weights", "network"}
    assert set(failed(bundle)) == broken


def test_a_network_that_fails_is_reported(bundle, monkeypatch):
    def refuse(self: object, x: torch.Tensor) -> torch.Tensor:
        return x @ torch.zeros(3, 3)  # torch's RuntimeError

    monkeypatch.setattr("medseg.networks.unet.UNet3D.forward", refuse)
    assert failed(bundle)["network"].startswith("RuntimeError: ")


def test_an_unknown_normalisation_is_reported(bundle):
    change(bundle / "configs" / "plan.json", normalization=[{"scheme": "zz"}])
    assert "zz" in failed(bundle)["network"]
