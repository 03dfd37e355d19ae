"""The corrected copy has no finding that it claims to have corrected, and the original stays as it was."""

import hashlib
import json

import nibabel as nib
import numpy as np
import pytest
from doctor.data_sets import SPOILT, change, image_file, label_file, names, save, write_data_set

from medseg.datasets import read_manifest
from medseg.doctor import examine
from medseg.doctor.corrected_copy import parse_relabel, write_corrected_copy
from medseg.errors import OptionError


def digests(folder):
    """Return the SHA-256 and the time of every file below a folder."""
    return {
        path.relative_to(folder): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def spoilt(tmp_path, *rules):
    folder = write_data_set(tmp_path / "livers")
    for problem in SPOILT:
        if problem.rule in rules and problem.channels == ("mri",):
            problem.spoil(folder)
    return folder


def test_safe_corrections_and_an_untouched_original(tmp_path):
    folder = spoilt(tmp_path, "float-label", "axis-order", "header-rounding", "tiny-piece")
    before = digests(folder)
    result = examine(folder, use_cache=False)
    copy = write_corrected_copy(result, tmp_path / "copy")
    assert digests(folder) == before
    assert {change["case"] for change in copy.changes} == {"scan_003", "scan_005", "scan_007"}
    left = examine(tmp_path / "copy", use_cache=False).findings
    assert [finding.rule for finding in left] == ["tiny-piece"]
    assert len(copy.left) == 1
    assert "scan_006" in copy.left[0]
    assert json.loads((tmp_path / "copy" / "changes.json").read_text())["changes"] == list(copy.changes)
    for entry in copy.changes:
        original = hashlib.sha256((folder / entry["file"]).read_bytes()).hexdigest()
        assert entry["sha256_before"] == original != entry["sha256_after"]
    unchanged = {path for path in before if str(path) not in {entry["file"] for entry in copy.changes}}
    assert {path: digests(tmp_path / "copy")[path] for path in unchanged} == {path: before[path] for path in unchanged}


def test_no_voxel_moves_when_axes_are_reordered(tmp_path):
    folder = spoilt(tmp_path, "axis-order")
    write_corrected_copy(examine(folder, use_cache=False), tmp_path / "copy")
    original, corrected = (nib.load(label_file(root, "scan_005")) for root in (folder, tmp_path / "copy"))
    image = nib.load(image_file(folder, "scan_005"))
    np.testing.assert_array_equal(corrected.affine, image.affine)
    for value in (1, 2):
        points = [
            nib.affines.apply_affine(one.affine, np.argwhere(np.asarray(one.dataobj) == value))
            for one in (original, corrected)
        ]
        np.testing.assert_allclose(*(p[np.lexsort(p.T)] for p in points))


def test_relabelling_and_filling_on_request(tmp_path):
    folder = spoilt(tmp_path, "label-values", "non-finite")
    result = examine(folder, use_cache=False)
    plain = write_corrected_copy(result, tmp_path / "plain")
    assert plain.changes == ()
    assert len(plain.left) == 2
    asked = write_corrected_copy(result, tmp_path / "asked", relabel={9: 1}, fill_non_finite=-1.0)
    label = np.asarray(nib.load(label_file(tmp_path / "asked", "scan_003")).dataobj)
    assert label[1, 1, 1:4].tolist() == [1, 1, 1]
    image = np.asarray(nib.load(image_file(tmp_path / "asked", "scan_006")).dataobj)
    assert image[3, 4, 5] == -1
    assert np.count_nonzero(image == -1) == 1
    assert [line for line in asked.left if "scan_003" not in line] == []  # the three voxels are a tiny piece now
    rules = {finding.rule for finding in examine(tmp_path / "asked", use_cache=False).findings}
    assert not rules & {"label-values", "non-finite"}


def test_several_corrections_of_one_file(tmp_path):
    folder = write_data_set(tmp_path / "livers")
    label = nib.load(label_file(folder, "scan_002"))
    expected = np.asarray(label.dataobj)
    turned = label.as_reoriented(np.array([[1, -1], [0, 1], [2, 1]]))
    save(label_file(folder, "scan_002"), np.asarray(turned.dataobj).astype(np.float32) * 2, turned.affine)
    copy = write_corrected_copy(examine(folder, use_cache=False), tmp_path / "copy", relabel={2: 1, 4: 2})
    found = nib.load(label_file(tmp_path / "copy", "scan_002"))
    np.testing.assert_array_equal(np.asarray(found.dataobj), expected)
    assert found.get_data_dtype() == np.uint8
    assert len(next(entry for entry in copy.changes if entry["case"] == "scan_002")["changes"]) == 4


@pytest.mark.parametrize("place", ["livers", "livers/inside", "existing"])
def test_folders_that_would_touch_something_are_refused(tmp_path, place):
    folder = spoilt(tmp_path, "float-label")
    (tmp_path / "existing").mkdir()
    result = examine(folder, use_cache=False)
    before = digests(folder)
    with pytest.raises(OptionError, match=place):
        write_corrected_copy(result, tmp_path / place)
    assert digests(folder) == before


def test_a_failed_copy_leaves_nothing(tmp_path, monkeypatch):
    folder = spoilt(tmp_path, "float-label")
    result = examine(folder, use_cache=False)
    label_file(folder, "scan_007").unlink()  # disappears between the examination and the copy
    with pytest.raises(OSError, match="scan_007"):
        write_corrected_copy(result, tmp_path / "copy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["livers"]


def test_files_that_cannot_be_corrected_are_copied_and_named(tmp_path):
    """A pair of header and voxels is not written by medseg."""
    folder = write_data_set(tmp_path / "livers", names(5))
    for case in names(5):
        label = nib.load(label_file(folder, case))
        pair = nib.Nifti1Pair(np.asarray(label.dataobj).astype(np.float32), label.affine)
        nib.save(pair, folder / "labelsTr" / f"{case}.hdr")
        label_file(folder, case).unlink()
    (folder / "dataset.json").unlink()
    (folder / "imagesTr").rename(folder / "images")
    (folder / "labelsTr").rename(folder / "labels")
    for file in (folder / "images").iterdir():
        file.rename(file.with_name(file.name.replace("_0000", "")))
    copy = write_corrected_copy(examine(folder, use_cache=False), tmp_path / "copy")
    assert copy.changes == ()
    assert len(copy.left) == 5
    assert {path: value for path, value in digests(tmp_path / "copy").items() if path.name != "changes.json"} == (
        digests(folder)
    )


def test_relabel_arguments():
    assert parse_relabel(["255=1", "-3=0"]) == {255: 1, -3: 0}
    for wrong in (["255"], ["a=1"], ["1=2", "1=3"]):
        with pytest.raises(OptionError):
            parse_relabel(wrong)


def test_a_new_value_must_be_in_the_manifest(tmp_path):
    folder = spoilt(tmp_path, "label-values")
    with pytest.raises(OptionError, match="44"):
        write_corrected_copy(examine(folder, use_cache=False), tmp_path / "copy", relabel={9: 44})
    change(label_file(folder, names()[0]), lambda array: array)
    assert read_manifest(folder).values_in_files == (0, 1, 2)
