"""The page as a file: content, escaping, privacy, size, and the list of what is left out."""

import json
import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from reporting.evaluations import repeated, small_evaluation, write_image

from medseg.errors import MedsegError, OptionError
from medseg.evaluation import evaluate
from medseg.figures import viewer
from medseg.figures.viewer.packing import unpack
from medseg.reporting import write_report
from medseg.reporting.report import SCRIPTS

ORDER = ["metrics", "distributions", "cases", "viewer", "lesions", "calibration", "manifest", "methods"]
POLICY = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    return small_evaluation(tmp_path_factory.mktemp("evaluation"), 6)


def block(page: str, name: str) -> bytes:
    found = re.search(rf'<script type="text/plain" id="{name}">([^<]*)</script>', page)
    assert found, name
    return unpack(found[1])


def sections_of(page: str) -> list[str]:
    return re.findall(r'<section id="([^"]+)"', page)


def test_the_page_has_its_sections_in_order_and_loads_nothing(evaluation, tmp_path):
    result, images = evaluation
    written = write_report(result, tmp_path / "report.html", images=images)
    page = written.path.read_text(encoding="utf-8")
    assert sections_of(page) == ORDER
    assert f'content="{POLICY}"' in page
    without_namespaces = page.replace("http://www.w3.org/2000/svg", "")
    assert not re.findall(r"https?://", without_namespaces)
    assert not re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="(?!data:)', page)
    assert written.megabytes == pytest.approx(len(page.encode()) / 1e6)
    assert written.left_out == ()
    for number in ("n=6", "95 % intervals", result.summary["inputs_sha256"], "patient left is on image right"):
        assert number in page
    assert "contains patient images" in page


def test_the_viewer_stays_small():
    """At most 40 kB for what every page repeats of the viewer."""
    folder = files("medseg.reporting") / "page"
    assert len(viewer.script().encode()) <= 40_000
    assert len(viewer.script().encode()) + sum(len((folder / script).read_bytes()) for script in SCRIPTS) <= 60_000


def test_numbers_in_the_page_are_those_of_the_evaluation(evaluation, tmp_path):
    result, images = evaluation
    page = write_report(result, tmp_path / "report.html", images=images).path.read_text(encoding="utf-8")
    data = json.loads(block(page, "data"))
    names = [case["name"] for case in data["cases"]]
    assert names == [entry["case"] for entry in result.summary["cases"]]
    for row in result.rows:
        for metric in result.metrics:
            shown = data["values"][metric.name][names.index(row.case)][data["labels"].index(row.label)]
            value = row.values[metric.name]
            assert shown is None if np.isnan(value) else shown == pytest.approx(value, rel=1e-4)
    for label, entry in result.summary["labels"].items():
        assert f'<th scope="row">{label}</th>' in page
        assert f"{entry['dice']['mean']['value']:.3f}" in page


def test_label_maps_in_the_page_are_exact(tmp_path):
    rng = np.random.default_rng(0)
    values = np.array([0, 3, 255, 256, 40_000])
    reference, prediction = (rng.choice(values, (30, 20, 10)).astype(np.uint16) for _ in range(2))
    paths = {
        role: {"a": write_image(tmp_path / role / "a.nii.gz", array)}
        for role, array in (("reference", reference), ("prediction", prediction))
    }
    result = evaluate(paths["prediction"], paths["reference"], num_draws=2000)
    page = write_report(result, tmp_path / "report.html").path.read_text(encoding="utf-8")
    view = json.loads(block(page, "data"))["views"][0]
    table = np.array([0, *view["values"]])
    for role, array in (("reference", reference), ("prediction", prediction)):
        stored = np.frombuffer(block(page, f"v0-{role}"), np.uint8).reshape(view["dims"], order="F")
        np.testing.assert_array_equal(table[stored], array)


def test_names_are_escaped(tmp_path):
    array = np.zeros((6, 6, 6), np.uint8)
    array[2:4, 2:4, 2:4] = 1
    file = write_image(tmp_path / "a.nii.gz", array)
    evil = "<img src=x onerror=alert(1)></script>"
    result = evaluate({evil: file}, {evil: file}, labels={evil: 1}, num_draws=2000)
    page = write_report(result, tmp_path / "report.html", title=evil).path.read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page
    assert page.count("</script>") == len(re.findall(r"<script", page))


def test_hidden_ids_do_not_occur_in_the_page(tmp_path):
    result, images = small_evaluation(tmp_path / "secret", 4)
    images["case_000"] = tmp_path / "secret" / "missing.nii.gz"
    written = write_report(result, tmp_path / "report.html", images=images, anonymise_ids=True)
    page = written.path.read_text(encoding="utf-8")
    everything = page + block(page, "data").decode()
    for word in ("case_0", "secret", str(tmp_path), result.summary["inputs"][0]["reference_sha256"]):
        assert word not in everything
    assert "case 001" in everything
    assert "ids replaced by numbers" in page


@pytest.mark.parametrize("megabytes", [0, -1, 25.1, float("nan")])
def test_a_size_beyond_the_limit_is_refused(evaluation, tmp_path, megabytes):
    with pytest.raises(OptionError, match="at most 25"):
        write_report(evaluation[0], tmp_path / "report.html", max_mb=megabytes)
    assert not (tmp_path / "report.html").exists()


def test_contents_that_do_not_fit_are_left_out_in_order_and_named(tmp_path):
    result, images = small_evaluation(tmp_path, 4, shape=(64, 64, 40))
    full = write_report(result, tmp_path / "full.html", images=images)
    assert full.left_out == ()
    tight = write_report(result, tmp_path / "tight.html", images=images, max_mb=0.7)
    assert tight.megabytes <= 0.7
    assert any("4 of 4 volumes" in line for line in tight.left_out)
    page = tight.path.read_text(encoding="utf-8")
    assert "the numbers are of all voxels" in block(page, "data").decode()
    tiny = write_report(result, tmp_path / "tiny.html", images=images, max_mb=0.26)
    assert tiny.megabytes <= 0.26
    assert any("Thumbnails" in line for line in tiny.left_out)


def test_numbers_only_of_300_cases_stay_below_half_a_megabyte(evaluation, tmp_path):
    many = repeated(evaluation[0], 300)
    written = write_report(many, tmp_path / "report.html", with_images=False)
    assert written.megabytes <= 0.5
    page = written.path.read_text(encoding="utf-8")
    assert "contains patient images" not in page
    assert "numbers only" in page
    assert not re.findall(r'id="(?:v\d+-|thumbnails)', page)


def test_cases_with_problems_are_listed(tmp_path):
    result, images = small_evaluation(tmp_path / "data", 3)
    references = {entry["case"]: Path(entry["reference"]) for entry in result.summary["inputs"]}
    predictions = {entry["case"]: Path(entry["prediction"]) for entry in result.summary["inputs"]}
    predictions["case_001"] = tmp_path / "broken.nii.gz"
    predictions["case_001"].write_bytes(b"\x1f\x8bgarbage")
    del predictions["case_002"]
    labels = {"structure 1": 1, "structure 2": 2}
    left = evaluate(predictions, references, labels=labels, allow_missing=True, num_draws=2000)
    written = write_report(left, tmp_path / "report.html", images=images)
    assert any("2 cases were not evaluated" in line for line in written.left_out)
    page = written.path.read_text(encoding="utf-8")
    assert sections_of(page)[0] == "left-out"
    for words in ("case_001", "case_002", "prediction missing", "unreadable file"):
        assert words in page


def test_a_page_without_evaluation_says_why(tmp_path):
    with pytest.raises(MedsegError) as raised:
        evaluate({"a": tmp_path / "a.nii.gz"}, {"b": tmp_path / "b.nii.gz"})
    written = write_report(None, tmp_path / "report.html", failure=str(raised.value))
    page = written.path.read_text(encoding="utf-8")
    assert "Nothing was evaluated" in page
    assert "prediction missing" in page
    assert "reference missing" in page


def test_a_deleted_file_costs_only_its_picture(tmp_path):
    result, images = small_evaluation(tmp_path, 4)
    Path(result.summary["inputs"][0]["prediction"]).unlink()
    written = write_report(result, tmp_path / "report.html", images=images)
    assert any("case_000" in line and "no picture" in line for line in written.left_out)


def test_a_failed_write_keeps_the_earlier_page(evaluation, tmp_path, monkeypatch):
    page = tmp_path / "report.html"
    page.write_text("before")
    monkeypatch.setattr(Path, "write_text", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(MedsegError, match="No space left"):
        write_report(evaluation[0], page, with_images=False)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert page.read_bytes() == b"before"


def test_objects_and_comparison_are_shown_on_request(tmp_path):
    result, _ = small_evaluation(tmp_path, 4, instances="components")
    predictions = {entry["case"]: entry["reference"] for entry in result.summary["inputs"]}
    references = dict(predictions)
    labels = {"structure 1": 1, "structure 2": 2}
    given = {entry["case"]: entry["prediction"] for entry in result.summary["inputs"]}
    result = evaluate(given, references, labels=labels, against=predictions, instances="components", num_draws=2000)
    page = write_report(result, tmp_path / "report.html").path.read_text(encoding="utf-8")
    for words in ("Sensitivity by size", "F1 at any overlap", "Paired differences", "p (Wilcoxon, Holm)"):
        assert words in page
