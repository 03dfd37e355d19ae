"""Facts of files are compared with NumPy and SciPy, and survive JSON."""

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from doctor.data_sets import SHAPE, change, image_file, label_file, names, save, write_data_set
from scipy import ndimage

from medseg.datasets import read_manifest
from medseg.datasets.case_facts import PERCENTILES, CaseFacts
from medseg.datasets.collect_facts import BYTES_PER_VOXEL
from medseg.datasets.measure_case import measure_case, measure_intensities, measure_values


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_data_set(tmp_path_factory.mktemp("facts") / "livers", names(5))


def test_intensities_are_those_of_numpy():
    rng = np.random.default_rng(0)
    array = (rng.normal(1e6, 3, (20, 30, 40))).astype(np.float32)
    measured, non_finite, at = measure_intensities(array)
    exact = array.astype(np.float64)
    assert (non_finite, at) == (0, ())
    assert measured.count == array.size
    assert (measured.minimum, measured.maximum) == (exact.min(), exact.max())
    np.testing.assert_allclose([measured.mean, measured.std], [exact.mean(), exact.std()], rtol=1e-9)
    np.testing.assert_allclose(measured.percentiles, np.percentile(array, PERCENTILES), rtol=1e-6)
    array[1, 2, 3] = np.nan
    measured, non_finite, at = measure_intensities(array)
    assert (measured.count, non_finite, at) == (array.size - 1, 1, (1, 2, 3))
    assert measure_intensities(np.full((2, 2), np.inf))[0] is None


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_values_and_pieces_are_those_of_scipy(dtype):
    rng = np.random.default_rng(1)
    smooth = ndimage.gaussian_filter(rng.normal(size=(24, 20, 16)), 2)
    array = np.digitize(smooth, np.quantile(smooth, [0.5, 0.7, 0.9])).astype(dtype)
    if dtype is not np.uint8:
        array[array == 3] = -40
        array[array == 2] = 30_000
    facts, zeros = measure_values(array)
    assert zeros == np.count_nonzero(array == 0)
    assert sorted(facts) == sorted(set(np.unique(array).tolist()) - {0})
    for value, one in facts.items():
        pieces, count = ndimage.label(array == value, structure=np.ones((3, 3, 3)))
        sizes = np.bincount(pieces.ravel())[1:]
        assert (one.voxels, one.pieces, one.smallest, one.largest) == (sizes.sum(), count, sizes.min(), sizes.max())
        assert sizes[pieces[one.at] - 1] == one.smallest


def test_foreground_is_what_is_labelled(folder):
    facts = measure_case(read_manifest(folder), folder, "scan_002")
    image = np.asarray(nib.load(image_file(folder, "scan_002")).dataobj)
    label = np.asarray(nib.load(label_file(folder, "scan_002")).dataobj)
    foreground = facts.images[0].foreground
    assert foreground.count == np.count_nonzero(label)
    assert foreground.mean == pytest.approx(image[label > 0].mean(dtype=np.float64))
    assert facts.label.values[2].voxels == 27


def test_facts_survive_json(folder):
    facts = measure_case(read_manifest(folder), folder, "scan_001")
    assert CaseFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts


def test_the_digest_ignores_format_type_and_storage_order(tmp_path, folder):
    other = write_data_set(tmp_path / "livers", names(5))
    image = nib.load(image_file(other, "scan_001"))
    whole = np.rint(np.asarray(image.dataobj))
    save(image_file(folder, "scan_001"), whole.astype(np.int16), image.affine)
    turned = nib.Nifti1Image(whole, image.affine).as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    save(image_file(other, "scan_001"), np.asarray(turned.dataobj).astype(np.float64), turned.affine)
    digests = {measure_case(read_manifest(root), root, "scan_001").images[0].digest for root in (folder, other)}
    assert len(digests) == 1
    change(image_file(other, "scan_001"), lambda array: array + 1)
    assert measure_case(read_manifest(other), other, "scan_001").images[0].digest not in digests


def test_the_thumbnail_is_the_mean_of_blocks(folder):
    shape = (16, 24, 8)
    array = np.random.default_rng(0).normal(size=shape)
    for path in (image_file(folder, "scan_003"), label_file(folder, "scan_003")):
        save(path, array.astype(np.float32), np.eye(4))
    blocks = array.astype(np.float32).reshape(8, 2, 8, 3, 8, 1).mean((1, 3, 5))
    expected = (blocks - blocks.mean()) / blocks.std()
    found = measure_case(read_manifest(folder), folder, "scan_003").images[0].thumbnail_vector()
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("shape", [(13, 21, 5), (35, 51, 36)])
def test_the_thumbnail_of_a_mirrored_image_is_mirrored(folder, shape):
    """The borders of the blocks may lie inside of voxels, so sizes that 8 does not divide are mirrored exactly, too."""
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    vectors = []
    for image in (array, array[::-1, :, ::-1]):
        save(image_file(folder, "scan_004"), np.ascontiguousarray(image), np.eye(4))
        vectors.append(measure_case(read_manifest(folder), folder, "scan_004").images[0].thumbnail_vector())
    np.testing.assert_allclose(vectors[0], vectors[1][::-1, :, ::-1], atol=2e-3)


def test_a_file_that_cannot_be_read_becomes_a_fact(tmp_path):
    root = write_data_set(tmp_path / "livers", names(5))
    save(image_file(root, "scan_001"), np.zeros((*SHAPE, 2), np.float32))
    label_file(root, "scan_002").write_bytes(b"not an image")
    manifest = read_manifest(root)
    (image, label) = measure_case(manifest, root, "scan_001").files
    assert image.stored_shape == (*SHAPE, 2)
    assert image.problem
    assert label.is_readable
    (image, label) = measure_case(manifest, root, "scan_002").files
    assert str(label_file(root, "scan_002")) in label.problem
    assert image.foreground is None


@pytest.mark.slow
def test_the_memory_per_voxel_is_what_the_number_of_processes_assumes(tmp_path):
    """The worst types: an image of float64 and a label map of float64, each in a process of its own."""
    root = write_data_set(tmp_path / "livers", names(5))
    shape = (192, 192, 96)
    image = np.tile(np.arange(192.0), (96, 192, 1)).T
    save(image_file(root, "scan_001"), image, np.eye(4))
    save(label_file(root, "scan_001"), (image > 80).astype(np.float64), np.eye(4))
    script = """
import resource, sys
from pathlib import Path
from medseg.datasets import read_manifest
from medseg.datasets.measure_case import measure_case
root = Path(sys.argv[1])
manifest = read_manifest(root)
measure_case(manifest, root, "scan_002")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
facts = measure_case(manifest, root, "scan_001")
assert facts.label.values[1].voxels > 0
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    done = subprocess.run([sys.executable, "-c", script, str(root)], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= BYTES_PER_VOXEL * int(np.prod(shape))
