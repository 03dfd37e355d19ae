"""An evaluation takes regions, partial annotations and colours from the manifest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from medseg.datasets import describe_dataset
from medseg.evaluation import evaluate

RANDOM = np.random.default_rng(0)
REFERENCES = {case: RANDOM.choice([0, 1, 2, 4], (6, 7, 8)).astype(np.uint8) for case in ("a", "b")}
PREDICTIONS = {case: RANDOM.choice([0, 1, 2, 4], (6, 7, 8)).astype(np.uint8) for case in ("a", "b")}
REGIONS = {"whole": [1, 2, 4], "core": [1, 4], "enhancing": [4]}


def write(folder: Path, label_maps: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True)
    for case, array in label_maps.items():
        nib.save(nib.Nifti1Image(array, np.eye(4)), folder / f"{case}.nii.gz")
    return folder


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_regions_and_partial_annotations_against_brute_force(tmp_path: Path) -> None:
    data, predictions = tmp_path / "data", write(tmp_path / "predictions", PREDICTIONS)
    write(data / "labelsTr", REFERENCES)
    write(data / "imagesTr", REFERENCES)
    content = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, **REGIONS},
        "regions_class_order": [2, 1, 4],
        "file_ending": ".nii.gz",
    }
    (data / "dataset.json").write_text(json.dumps(content))
    manifest = describe_dataset(data)
    expected = {
        (case, name): dice(np.isin(PREDICTIONS[case], values), np.isin(REFERENCES[case], values))
        for case in REFERENCES
        for name, values in REGIONS.items()
    }
    whole = evaluate(predictions, data / "labelsTr", labels=manifest, num_draws=2000)
    assert {(row.case, row.label): round(row.values["dice"], 12) for row in whole.rows} == {
        key: round(value, 12) for key, value in expected.items()
    }
    cases = (replace(manifest.cases[0], labels=("enhancing", "label 1")), manifest.cases[1])
    partial = evaluate(
        predictions, data / "labelsTr", labels=replace(manifest, cases=cases), num_draws=2000, out_dir=tmp_path / "out"
    )
    assert partial.mean("dice", "whole") == expected["b", "whole"]
    assert partial.mean("dice", "core") == np.mean([expected["a", "core"], expected["b", "core"]])
    assert [(row.case, row.label) for row in partial.rows if row.outcome == "unknown"] == [("a", "whole")]
    assert 'a,a,whole,unknown,"not annotated' in (tmp_path / "out" / "metrics.csv").read_text()


def test_references_in_colours(tmp_path: Path) -> None:
    colors = np.array([[128, 128, 128], [128, 64, 128], [0, 0, 0]], np.uint8)
    index, predicted = RANDOM.integers(0, 3, (20, 24)), RANDOM.integers(1, 3, (20, 24)).astype(np.uint8)
    for folder, array in (("images", predicted), ("labels", colors[index]), ("../predictions", predicted)):
        (tmp_path / "data" / folder).mkdir(parents=True)
        Image.fromarray(array).save(tmp_path / "data" / folder / "a.png")
    (tmp_path / "data" / "class_dict.csv").write_text("name,r,g,b\nSky,128,128,128\nRoad,128,64,128\nVoid,0,0,0")
    evaluation = evaluate(tmp_path / "predictions", tmp_path / "data", labels=tmp_path / "data", num_draws=2000)
    counted = index != 2
    for value, name in enumerate(("Sky", "Road"), start=1):
        assert evaluation.mean("dice", name) == dice((predicted == value) & counted, index == value - 1)
