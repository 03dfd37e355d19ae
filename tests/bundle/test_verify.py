import json
from pathlib import Path

import pytest
import torch

from medseg.bundle import verify

BUNDLES = sorted((Path(__file__).parents[2] / "bundles").iterdir())


def failed(bundle: Path) -> dict[str, str]:
    return {check.name: check.message for check in verify(bundle) if not check.passed}


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_whole_bundle_passes(bundle):
    assert failed(bundle) == {}


@pytest.mark.parametrize("folder", BUNDLES, ids=lambda folder: folder.name)
def test_every_shipped_bundle_passes_but_for_weights_not_yet_trained(folder):
    allowed = set() if (folder / "models" / "model.pt").is_file() else {"weights", "network"}
    assert set(failed(folder)) <= allowed


def test_each_broken_promise_is_named(bundle):
    configs = bundle / "configs"
    change(configs / "inference.json", dataset_dir="elsewhere")
    change(configs / "metadata.json", version="9.9.9")
    change(configs / "train.json", train={})
    (bundle / "models" / "model.pt").write_bytes(b"")
    found = failed(bundle)
    assert "differs from medseg's template" in found["inference.json"]
    assert "changelog has no entry for version 9.9.9" in found["metadata"]
    assert "train.json lacks the" in found["training properties"]
    assert "differs from the recorded" in found["weights"]


def test_metadata_and_plan_must_agree_on_channels(bundle):
    plan = bundle / "configs" / "plan.json"
    change(plan, labels={"background": 0, "round": 1, "elongated": 2, "other": 3}, crop_ratios=None)
    assert "metadata.json declares 1 → 3 channels, the plan 1 → 4" in failed(bundle)["metadata"]


def test_metadata_must_describe_the_tensors(bundle):
    file = bundle / "configs" / "metadata.json"
    formats = json.loads(file.read_text())["network_data_format"]
    del formats["inputs"]["image"]["value_range"]
    change(file, network_data_format=formats)
    assert failed(bundle)["metadata"] == "metadata.json: inputs image lacks value_range"


def test_files_missing_or_cut_short_are_findings_not_crashes(bundle):
    configs = bundle / "configs"
    (configs / "train.json").write_text("{")
    (configs / "evaluate.json").unlink()
    change(configs / "metadata.json", network_data_format={})
    (bundle / "models" / "model.json").write_bytes('{"weights_sha256": ""}'.encode("utf-16"))
    broken = {"metadata", "training network", "training properties", "evaluate.json", "weights", "network"}
    assert set(failed(bundle)) == broken


def test_a_network_torch_cannot_run_is_a_finding(bundle, monkeypatch):
    def refuse(self: object, x: torch.Tensor) -> torch.Tensor:
        return x @ torch.zeros(3, 3)  # torch's RuntimeError

    monkeypatch.setattr("medseg.networks.unet.UNet3D.forward", refuse)
    assert failed(bundle)["network"].startswith("RuntimeError: ")


def test_a_normalisation_nobody_knows_is_found(bundle):
    change(bundle / "configs" / "plan.json", normalization=[{"scheme": "zz"}])
    assert "zz" in failed(bundle)["network"]
