"""Digests of inputs against hashlib on the same bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813

from medseg.inference.scan import input_digest


def test_a_file_has_the_digest_of_its_content(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(b"voxels" * 1000)
    assert input_digest(tmp_path / "a.nii") == hashlib.sha256(b"voxels" * 1000).hexdigest()


def test_a_series_changes_with_any_name_or_content(tmp_path: Path) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    (folder / "1").write_bytes(b"one")
    (folder / "2").write_bytes(b"two")
    seen = {input_digest(folder)}
    (folder / "2").write_bytes(b"TWO")
    seen.add(input_digest(folder))
    (folder / "2").rename(folder / "3")
    seen.add(input_digest(folder))
    (folder / "4").touch()
    seen.add(input_digest(folder))
    assert len(seen) == 4


def test_the_voxels_of_a_detached_header_count(tmp_path: Path) -> None:
    for suffix in ("mhd", "nhdr", "hdr"):
        path = tmp_path / f"scan.{suffix}"
        digests = set()
        for value in (1, 2):
            array = np.full((3, 3, 3), value, np.uint8)
            if suffix == "hdr":
                nib.save(nib.Nifti1Pair(array, np.eye(4)), path)
            else:
                sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
            digests.add((path.read_bytes(), input_digest(path)))
        assert len({header for header, _ in digests}) == 1
        assert len(digests) == 2
