"""`medseg bundle quantize`: it measures, refuses what costs accuracy or saves no time, and is tied to the weights."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundle.tiny_bundles import BUNDLES

import medseg
from medseg.bundle import BundleFolder, quantize
from medseg.bundle import measure_int8 as module
from medseg.bundle.golden import Tolerance, golden_input
from medseg.bundle.int8_file import INT8, read_int8_model
from medseg.bundle.verify import _check_int8, _run
from medseg.cli import main
from medseg.datasets import generate_phantoms
from medseg.errors import BundleError, OptionError
from medseg.evaluation.statistics import Estimate
from medseg.networks.precision import has_fast_int8

pytest.importorskip("openvino")
needs_vnni = pytest.mark.skipif(not has_fast_int8(), reason="this CPU has no instructions for int8")


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generate one validation case of fold 1, and one training case."""
    root = tmp_path_factory.mktemp("phantoms")
    generate_phantoms(root, num_cases=1, first_case=6, seed=2026)
    generate_phantoms(root, num_cases=1, first_case=10, seed=2026)
    return root


@pytest.fixture(scope="module")
def quantized(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "phantom_cells_segmentation"
    shutil.copytree(BUNDLES / folder.name, folder)
    (folder / INT8).unlink(missing_ok=True)
    with pytest.warns(UserWarning, match="are left out"):
        found = quantize(folder, phantoms)
    assert found.num_layers == 16
    assert not found.is_seen  # the shipped phantom weights were trained without fold 1
    assert abs(found.lost.value) < 0.001
    return folder


@pytest.fixture
def bundle(quantized: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(quantized, tmp_path / quantized.name))


def change(bundle: Path, **values: Any) -> None:
    content = json.loads((bundle / INT8).read_text())
    (bundle / INT8).write_text(json.dumps(content | values))


def check(bundle: Path) -> tuple[bool, str]:
    """Return the result of the check of `medseg bundle verify`, without its other checks."""
    found = _run("int8", _check_int8, BundleFolder(bundle))
    return found.passed, found.message


@needs_vnni
def test_int8_is_used_and_agrees_with_fp32(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg.inference.backends.choice.OPENVINO_PAYS_FROM", 0)
    model = medseg.load(bundle, device="cpu")
    assert (model.backend.name, model.backend.precision) == ("openvino", "int8")
    image = golden_input(1, (48, 48, 24))
    network = medseg.load_network(bundle)
    with torch.no_grad():
        expected = network(image)
    difference = (model.backend(image) - expected).square().mean().sqrt() / expected.std()
    recorded = read_int8_model(BundleFolder(bundle)).golden_difference.logits
    assert 0 < recorded == pytest.approx(difference.item(), rel=0.05)
    assert check(bundle)[0]


@needs_vnni
def test_calibration_tiles_are_those_that_vary_most(bundle: Path, phantoms: Path) -> None:
    plan, network = BundleFolder(bundle).plan, medseg.load_network(bundle)
    image = phantoms / "images" / "phantom_010.nii.gz"
    tiles = module.calibration_tiles(network, plan, [{"image": image}])
    assert len(tiles) == module.TILES_PER_CASE
    seen: list[torch.Tensor] = []
    model = medseg.load(bundle, device="cpu", backend="torch", precision="fp32", batch_size=1)
    zeros = module._TileRecorder(model.backend, plan.out_channels)  # not to compute what does not matter
    model.predict_tiles = lambda batch: seen.append(batch.clone()) or zeros(batch)  # type: ignore[method-assign,func-returns-value]
    model.predict(image)
    spread = sorted(float(tile.std()) for tile in seen)
    assert len(seen) > len(tiles)
    assert sorted(float(tile.std()) for tile in tiles) == spread[-len(tiles) :]
    assert all(any(torch.equal(tile, other) for other in seen) for tile in tiles)


@pytest.mark.parametrize(
    ("values", "fact"),
    [
        ({}, None),
        ({"lost": Estimate(0.0011, 0.0, 0.002, 52, 47)}, "by more than 0.001"),
        ({"lost": Estimate(np.nan, np.nan, np.nan, 0, 0)}, "mean Dice"),
        ({"speedup": 1.04}, "1.04 times as fast as bf16"),
        ({"golden_difference": Tolerance(0.11, 0.0)}, "0.110 standard deviations"),
        ({"golden_difference": Tolerance(0.01, 0.04)}, "4.00% of the labels"),
    ],
)
def test_int8_is_refused_if_it_costs_accuracy_or_saves_nothing(values: dict[str, Any], fact: str | None) -> None:
    good: dict[str, Any] = {"lost": Estimate(0.0009, 0.0, 0.002, 52, 47), "speedup": 1.1, "other": "bf16"}
    good |= {"num_layers": 16, "data": "some, fold 1", "dice": {"fp32": 0.9, "int8": 0.8991}, "is_seen": False}
    found = module.Quantization(**{**good, "golden_difference": Tolerance(0.02, 0.001), **values})
    folder = BundleFolder(BUNDLES / "phantom_cells_segmentation")
    with nullcontext() if fact is None else pytest.raises(BundleError, match=fact):
        module._check(folder, found)


@needs_vnni
def test_the_file_belongs_to_its_weights(bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    torch.save({name: value + 0.01 for name, value in state.items()}, other)
    with pytest.raises(BundleError, match="other weights"):
        medseg.load(bundle, other, "cpu", precision="int8")
    change(bundle, weights_sha256=["0" * 64])
    passed, message = check(bundle)
    assert (passed, "other weights" in message) == (False, True)


@needs_vnni
def test_another_result_than_the_measured_one_is_refused(bundle: Path) -> None:
    content = json.loads((bundle / INT8).read_text())
    ranges = [{name: [low / 4, high / 4] for name, (low, high) in each.items()} for each in content["ranges"]]
    change(bundle, ranges=ranges)
    with pytest.raises(OptionError, match=r"int8 is refused.*golden sample"):
        medseg.load(bundle, device="cpu", precision="int8")
    assert not check(bundle)[0]


@pytest.mark.parametrize(
    "values",
    [
        {"schema_version": 2},
        {"ranges": []},
        {"ranges": [{"a": [1, 2]}]},
        {"ranges": [{"a": [-1, float("nan")]}]},
        {"ranges": [{"a": "text"}]},
        {"golden_difference": {"logits": 0.5, "labels": 0}},
        {"golden_difference": {}},
        {"weights_sha256": 3},
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, values: dict[str, Any]) -> None:
    folder = shutil.copytree(BUNDLES / "phantom_cells_segmentation", tmp_path / "b")
    good = {"schema_version": 1, "weights_sha256": ["a"], "ranges": [{"a": [-1, 1]}], "measured": {}}
    good["golden_difference"] = {"logits": 0.01, "labels": 0}
    (folder / INT8).write_text(json.dumps(good))
    assert read_int8_model(BundleFolder(folder)) is not None
    change(folder, **values)
    with pytest.raises(BundleError, match=r"int8\.json") as error:
        read_int8_model(BundleFolder(folder))
    assert "\n" not in str(error.value)


def test_weights_of_all_cases_need_a_fold_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_fast_int8", lambda: True)
    with pytest.raises(BundleError, match="--fold"):
        quantize(BUNDLES / "hippocampus_unet3d_segmentation", tmp_path)
    monkeypatch.setattr(module, "has_fast_int8", lambda: False)
    with pytest.raises(OptionError, match="VNNI"):
        quantize(BUNDLES / "hippocampus_unet3d_segmentation", tmp_path)


@pytest.mark.slow
@pytest.mark.data
@needs_vnni
@pytest.mark.parametrize("name", ["unet3d", "unetplusplus", "unetr"])
def test_the_hippocampus_networks_lose_no_dice_in_int8(
    name: str, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bundle = shutil.copytree(
        BUNDLES / f"hippocampus_{name}_segmentation", tmp_path / f"hippocampus_{name}_segmentation"
    )
    command = ["bundle", "quantize", str(bundle), "--data", str(shared_data / "hippocampus"), "--fold", "1", "--json"]
    with pytest.raises(SystemExit) as exit_code:
        main(command)
    assert not exit_code.value.code
    found = json.loads(capsys.readouterr().out)
    assert found["cases"] == 52
    assert found["trained_on_these_cases"]
    low, high = found["dice_lost_interval"]
    assert low < found["dice_lost"] < high < 0.001
    assert found["times_as_fast_as"].popitem()[1] > 1.05
    assert np.isclose(found["dice"]["fp32"] - found["dice"]["int8"], found["dice_lost"], atol=2e-5)
