"""Imported MONAI bundles give the labels of MONAI's own runner, and nothing in them is run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from bundle.monai_bundles import CONFIGS, monai_labels, spleen_config, write_ct, write_zoo_bundle

import medseg
from medseg.bundle import import_bundle, verify
from medseg.errors import BundleError, MedsegError, NetworkError, OptionError, WeightsError
from medseg.inference import Predictor
from medseg.networks import monai_networks

SPLEEN, BTCV, WHOLE_BODY = CONFIGS
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    write_ct(folder / "imagesTs" / "case.nii.gz")
    return folder


def share_of_equal_labels(ours: np.ndarray, theirs: np.ndarray) -> float:
    considered = (ours != 0) | (theirs != 0)
    assert considered.sum() > 1000
    return 1 - float((ours != theirs).sum() / considered.sum())


@pytest.mark.parametrize("name", CONFIGS)
def test_labels_are_those_of_monais_runner(name, scans, tmp_path, run_inference):
    source = write_zoo_bundle(name, tmp_path / "zoo" / name)
    theirs = monai_labels(source, scans, tmp_path / "theirs")["case"]
    assert len(np.unique(theirs)) > 1
    bundle = import_bundle(source, tmp_path / name)
    model = medseg.load(bundle.path, device="cpu", backend="torch", precision="fp32")
    ours = model.predict(scans / "imagesTs" / "case.nii.gz").array
    assert share_of_equal_labels(ours, theirs) >= 0.9999
    # Interpolating logits would give other labels, so the way back is really MONAI's.
    plain = Predictor(model.backend.network, replace(model.plan, restoring=None), "cpu", backend="torch")
    assert (plain.predict(scans / "imagesTs" / "case.nii.gz").array != theirs).any()
    if name != BTCV:  # MONAI's runner, on the imported bundle
        again = np.asarray(nib.load(run_inference(bundle.path, scans / "imagesTs") / "case_seg.nii.gz").dataobj)
        np.testing.assert_array_equal(again, ours)
        assert [check.message for check in verify(bundle.path) if not check.passed] == []


def test_what_is_known_about_the_source_is_kept(tmp_path):
    source = write_zoo_bundle(SPLEEN, tmp_path / "zoo")
    bundle = import_bundle(source, tmp_path / "spleen_segmentation")
    assert bundle.plan.labels == {"background": 0, "spleen": 1}
    assert bundle.plan.channels[0]["modality"] == "CT"
    record = bundle.read_json("models/model.json")["imported"]
    assert (record["program"], record["folder"], record["version"]) == ("MONAI bundle", "zoo", "0.5.9")
    assert "Apache License" in (bundle.path / "LICENSE").read_text()
    assert "generated" in (bundle.path / "docs" / "README.md").read_text()
    found, expected = (
        torch.load(folder / "models" / "model.pt", weights_only=True) for folder in (bundle.path, source)
    )
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_the_same_config_in_yaml_is_the_same_bundle(tmp_path):
    plans = []
    for kind in ("json", "yaml"):
        source = write_zoo_bundle(SPLEEN, tmp_path / kind)
        file = source / "configs" / "inference.json"
        if kind == "yaml":
            file.with_suffix(".yaml").write_text(yaml.safe_dump(json.loads(file.read_text())))
            file.unlink()
        plans.append(import_bundle(source, tmp_path / "out" / kind / "spleen_segmentation").plan)
    assert plans[0] == plans[1]


def test_probabilities_are_those_that_were_interpolated(tmp_path, scans):
    bundle = import_bundle(write_zoo_bundle(SPLEEN, tmp_path / "zoo"), tmp_path / "spleen_segmentation")
    model = medseg.load(bundle.path, device="cpu", backend="torch", precision="fp32", save_probabilities=True)
    found = model.predict(scans / "imagesTs" / "case.nii.gz")
    assert found.probabilities is not None
    spleen = found.probabilities["spleen"].astype(np.float32)
    np.testing.assert_allclose(spleen + found.probabilities["background"], 1, atol=2e-3)
    is_clear = abs(spleen - 0.5) > 1e-3
    np.testing.assert_array_equal((spleen > 0.5)[is_clear], (found.array == 1)[is_clear])


def test_a_lower_resolution_is_chosen_in_the_config(tmp_path):
    config = CONFIGS[WHOLE_BODY]()
    config["displayable_configs"]["highres"] = False
    source = write_zoo_bundle(WHOLE_BODY, tmp_path / "zoo", config)
    (source / "models" / "model.pt").rename(source / "models" / "model_lowres.pt")
    bundle = import_bundle(source, tmp_path / "body_segmentation")
    assert list(bundle.plan.spacing or ()) == [3.0, 3.0, 3.0]
    assert bundle.read_json("models/model.json")["imported"]["weights"]["file"] == "models/model_lowres.pt"


# What is refused


def transforms(config: dict[str, Any], part: str = "preprocessing") -> list[dict[str, Any]]:
    return config[part]["transforms"]


def refusal(
    tmp_path: Path, edit: Edit | None = None, kind: type[MedsegError] = BundleError, prepare: Any = None, **options: Any
) -> str:
    """Return the message with which a changed spleen bundle is refused; nothing is written then."""
    config = spleen_config()
    source = write_zoo_bundle(SPLEEN, tmp_path / "zoo", config)
    if edit is not None:
        edit(config)
        (source / "configs" / "inference.json").write_text(json.dumps(config))
    if prepare is not None:
        prepare(source)
    with pytest.raises(kind) as caught:
        import_bundle(source, tmp_path / "imported", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "imported").exists()
    return str(caught.value)


BAD_CONFIGS: dict[str, tuple[Edit, str]] = {
    "unknown transform": (
        lambda c: transforms(c).insert(3, {"_target_": "CropForegroundd", "keys": "image"}), "CropForegroundd"
    ),
    "foreign transform": (
        lambda c: transforms(c).append({"_target_": "scripts.Mine", "keys": "image"}), "scripts.Mine"
    ),
    "foreign class with a known name": (
        lambda c: transforms(c)[3].update(_target_="scripts.Spacingd"), "scripts.Spacingd"
    ),
    "unknown network": (lambda c: c["network_def"].update(_target_="DiNTS"), "DiNTS"),
    "network around the network": (lambda c: c.update(network="$Wrapper(@network_def)"), "Wrapper"),
    "2D network": (lambda c: c["network_def"].update(spatial_dims=2), "spatial_dims"),
    "expression for a value": (lambda c: transforms(c)[3].update(pixdim="$tuple([1.5] * 3)"), "tuple([1.5] * 3)"),
    "reference to nothing": (lambda c: transforms(c)[3].update(pixdim="@pixdim"), "@pixdim"),
    "circular reference": (lambda c: (c.update(a="@b", b="@a"), transforms(c)[3].update(pixdim="@a")), "itself"),
    "included file": (lambda c: transforms(c)[3].update(pixdim="%other.json#pixdim"), "other.json"),
    "other inferer": (lambda c: c["inferer"].update(_target_="SliceInferer"), "SliceInferer"),
    "coordinates of tiles": (lambda c: c["inferer"].update(with_coord=True), "with_coord"),
    "clusters only": (
        lambda c: transforms(c, "postprocessing").insert(
            3, {"_target_": "KeepLargestConnectedComponentd", "keys": "pred"}
        ),
        "KeepLargestConnectedComponentd",
    ),
    "numbers of labels interpolated": (
        lambda c: transforms(c, "postprocessing").insert(1, transforms(c, "postprocessing").pop(2)), "Invertd"
    ),
    "no way back": (lambda c: transforms(c, "postprocessing").pop(1), "Invertd"),
    "no orientation": (lambda c: transforms(c).pop(2), "Orientationd"),
    "intensities before the spacing": (lambda c: transforms(c).insert(2, transforms(c).pop(4)), "Spacingd"),
    "other interpolation": (lambda c: transforms(c)[3].update(mode=3), "mode"),
    "other part is run": (lambda c: c["evaluator"].update(postprocessing="@other"), "@other"),
    "handler": (lambda c: c["handlers"].append({"_target_": "scripts.Handler"}), "scripts.Handler"),
    "no evaluator": (lambda c: c.pop("evaluator"), "evaluator"),
    "weights elsewhere": (lambda c: c["checkpointloader"].update(load_path="../model.pt"), "model.pt"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_what_cannot_be_carried_over_is_named(name, tmp_path):
    edit, fact = BAD_CONFIGS[name]
    message = refusal(tmp_path, edit)
    assert fact in message
    assert "zoo" in message


def test_no_expression_is_run(tmp_path):
    canary = tmp_path / "canary"
    expression = f"$__import__('pathlib').Path({str(canary)!r}).touch()"

    def edit(config: dict[str, Any]) -> None:
        config["imports"].append(expression)
        config["initialize"] = [expression]
        config["dataset_dir"] = config["device"] = expression
        config["handlers"][0]["output_transform"] = expression

    source = write_zoo_bundle(SPLEEN, tmp_path / "zoo")
    config = spleen_config()
    edit(config)
    (source / "configs" / "inference.json").write_text(json.dumps(config))
    import_bundle(source, tmp_path / "imported")
    for number, part in enumerate((transforms(config)[3], config["inferer"], config["network_def"])):
        part["overlap" if number == 1 else "pixdim" if number == 0 else "norm"] = expression
        (source / "configs" / "inference.json").write_text(json.dumps(config))
        with pytest.raises(BundleError, match="expression"):
            import_bundle(source, tmp_path / f"refused_{number}")
    assert not canary.exists()


class Canary:
    """Create a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.file}",)


def test_pickled_objects_in_the_weights_are_not_run(tmp_path):
    canary = tmp_path / "canary"

    def prepare(source: Path) -> None:
        torch.save({"model": {"x": Canary(canary)}}, source / "models" / "model.pt")

    assert "model.pt" in refusal(tmp_path, kind=WeightsError, prepare=prepare)
    assert not canary.exists()


def test_missing_and_unfitting_files_are_named(tmp_path):
    def change_metadata(source: Path, edit: Edit) -> None:
        file = source / "configs" / "metadata.json"
        content = json.loads(file.read_text())
        edit(content["network_data_format"]["outputs"]["pred"])
        file.write_text(json.dumps(content))

    def without_config(source: Path) -> None:
        (source / "configs" / "inference.json").unlink()

    def without_weights(source: Path) -> None:
        (source / "models" / "model.pt").unlink()
        (source / "large_files.yml").write_text("large_files: []")

    def other_classes(source: Path) -> None:
        change_metadata(source, lambda pred: pred.update(num_channels=3))

    def twice(source: Path) -> None:
        change_metadata(source, lambda pred: pred.update(channel_def={"0": "background", "1": "background"}))

    def truncated(source: Path) -> None:
        content = (source / "models" / "model.pt").read_bytes()
        (source / "models" / "model.pt").write_bytes(content[: len(content) // 2])

    assert "inference.json" in refusal(tmp_path / "1", prepare=without_config)
    assert "large files" in refusal(tmp_path / "2", kind=WeightsError, prepare=without_weights)
    assert "num_channels 3" in refusal(tmp_path / "3", prepare=other_classes)
    assert "'background'" in refusal(tmp_path / "4", prepare=twice)
    assert "model.pt" in refusal(tmp_path / "5", kind=WeightsError, prepare=truncated)
    wider = refusal(tmp_path / "6", lambda c: c["network_def"].update(channels=[4, 8, 24]), WeightsError)
    assert "model.pt" in wider
    deeper = refusal(tmp_path / "7", lambda c: c["network_def"].update(num_res_units=1), WeightsError)
    assert "model.pt" in deeper
    unknown = refusal(tmp_path / "8", lambda c: c["network_def"].update(colour=1), NetworkError)
    assert "colour" in unknown
    assert "--fold" in refusal(tmp_path / "9", kind=OptionError, folds=["0"])


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(monai_networks, "find_spec", lambda name: None)
    with pytest.raises(NetworkError, match="einops"):
        import_bundle(write_zoo_bundle(BTCV, tmp_path / "zoo"), tmp_path / "imported")
