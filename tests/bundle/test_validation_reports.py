"""The committed validation reports and records of the trained bundles, and the script that writes the reports."""

import base64
import gzip
import importlib.util
import json
import re
from pathlib import Path

import pytest

from medseg.bundle import BundleFolder
from medseg.datasets import read_manifest
from medseg.errors import WeightsError
from medseg.volumes.files import file_sha256

BUNDLES = Path(__file__).parents[2] / "bundles"
REPORTS = sorted(BUNDLES.glob("*/docs/validation.html"))
# Formats of the numbers in the tables of the bundles' pages.
INTERVAL, PLAIN = "{value:.3f} ({low:.3f}–{high:.3f})", "{value:.3f}"
PRINTED = {
    "hippocampus": {"dice": INTERVAL},
    "em": {"v_rand": PLAIN, "v_info": PLAIN, "pixel_error": PLAIN},
    "phantom": {"dice": INTERVAL},
}


def packed_data(page: str) -> dict:
    (block,) = re.findall(r'<script type="text/plain" id="data">([^<]*)</script>', page)
    return json.loads(gzip.decompress(base64.b64decode(block)))


@pytest.fixture(params=REPORTS, ids=lambda file: file.parents[1].name)
def report(request) -> Path:
    return request.param


def test_records_hold_no_machine_path():
    for file in BUNDLES.glob("*/models/model.json"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"(?<![\w.])/\w|[A-Za-z]:\\\\|~", text), file
        record = json.loads(text)
        assert "--dataset_dir DATA" in record.get("command", "--dataset_dir DATA")


def test_every_trained_bundle_has_one():
    promoted = {file.parents[1] for file in BUNDLES.glob("*/models/model.pt")}
    trained = {folder for folder in promoted if (folder / "configs" / "train.json").is_file()}
    assert trained == {file.parents[1] for file in REPORTS}
    for bundle in trained:
        assert "](validation.html)" in (bundle / "docs" / "README.md").read_text(encoding="utf-8")


def test_it_holds_no_patient_and_no_machine_path(report):
    page = report.read_text(encoding="utf-8")
    data = packed_data(page)
    assert report.stat().st_size <= 500_000
    assert data["views"] == []
    assert page.count('type="text/plain"') == 1  # the block of numbers; pictures have blocks of their own
    assert not re.search(r"<img|<canvas|<image|src=", page)
    assert not re.search(r"(?<![\w.<])/(?:home|root|tmp|work|mnt|Users|data)\b", page + json.dumps(data))
    assert all(not name.startswith("/") for row in data["inputs"] for name in (row[1], row[3]))


def test_it_states_weights_training_and_evaluated_cases(report):
    (facts,) = re.findall(r'<dl class="facts">(.*?)</dl>', report.read_text(encoding="utf-8"), re.DOTALL)
    assert re.search(r"<dt>weights</dt><dd>SHA-256 [0-9a-f]{64}</dd>", facts)
    assert re.search(r"<dt>trained on</dt><dd>\d+ cases of \w+, fold [\d, ]+; [\d and]+ epochs, [\d,]+ steps", facts)
    assert re.search(r"<dt>judged on</dt><dd>fold 1 of \w+, which none of these trainings saw</dd>", facts)
    assert f"<dt>bundle</dt><dd>{report.parents[1].name}, plan" in facts


def test_its_numbers_are_those_of_the_bundles_readme(report):
    page = (report.parent / "README.md").read_text(encoding="utf-8")
    printed = PRINTED[report.parents[1].name.partition("_")[0]]
    means = packed_data(report.read_text(encoding="utf-8"))["means"]
    for label, metrics in means.items():
        for name, form in printed.items():
            assert form.format(**metrics[name]) in page, (label, name)


@pytest.fixture(scope="module")
def script():
    file = Path(__file__).parents[2] / "benchmarks" / "validation_report.py"
    spec = importlib.util.spec_from_file_location("validation_report", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def finished_run(folder: Path, fold: int | str, started_from: Path | None = None) -> Path:
    folder.mkdir()
    weights = folder / "model.pt"
    weights.write_bytes(folder.name.encode())
    record = {
        "weights_sha256": file_sha256(weights),
        "settings": {"fold": fold, "init_weights": "model.pt" if started_from else ""},
        "initial_weights_sha256": file_sha256(started_from) if started_from else None,
        "cases": 156,
        "epochs": 3,
        "steps": 1000,
    }
    (folder / "training.json").write_text(json.dumps(record))
    return weights


def test_the_page_names_all_runs_that_the_weights_come_from(script, tmp_path):
    first = finished_run(tmp_path / "first", 1)
    runs = script.trainings(finished_run(tmp_path / "second", 1, first), [first])
    manifest = read_manifest("hippocampus")
    assert script.judged_fold(runs, manifest) == 1
    folder = BundleFolder(BUNDLES / "hippocampus_unet3d_segmentation")
    facts = script.provenance(folder, manifest, runs, "a note")
    assert facts["trained on"] == "156 cases of hippocampus, fold 2, 3, 4; 3 and 3 epochs, 2,000 steps"
    assert facts["weights"] == f"SHA-256 {file_sha256(tmp_path / 'second' / 'model.pt')}"
    assert facts["note"] == "a note"


def test_weights_trained_on_an_evaluated_case_in_any_run_are_refused(script, tmp_path):
    first = finished_run(tmp_path / "first", "all")
    second = finished_run(tmp_path / "second", 1, first)
    runs = script.trainings(finished_run(tmp_path / "third", 1, second), [first, second])
    with pytest.raises(WeightsError, match=r"51 other cases of fold 1"):
        script.judged_fold(runs, read_manifest("hippocampus"))


def test_weights_of_unknown_origin_are_refused(script, tmp_path):
    weights = finished_run(tmp_path / "run", 1)
    weights.write_bytes(b"other")
    with pytest.raises(WeightsError, match=r"model\.pt: .*training\.json"):
        script.trainings(weights)
    (tmp_path / "run" / "training.json").unlink()
    with pytest.raises(WeightsError, match=r"no training\.json"):
        script.trainings(weights)


def test_a_run_started_from_unnamed_weights_is_refused(script, tmp_path):
    first, other = finished_run(tmp_path / "first", "all"), finished_run(tmp_path / "other", 1)
    second = finished_run(tmp_path / "second", 1, first)
    for named in ([], [other]):
        with pytest.raises(WeightsError, match="--started_from"):
            script.trainings(second, named)


def test_facts_are_escaped_in_the_head(script):
    assert (
        script.with_facts('<dl class="facts"></dl>', {"a": "<b>"})
        == '<dl class="facts"><dt>a</dt><dd>&lt;b&gt;</dd></dl>'
    )
    with pytest.raises(ValueError, match="found 0"):
        script.with_facts("<dl></dl>", {})
