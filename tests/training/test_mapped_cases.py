"""Cases mapped from files equal those that `CacheDataset` holds in memory, and are never stale."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import CacheDataset
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, MapTransform, RandGaussianNoised, ScaleIntensityd

from medseg.training import MappedCases, SampleIndex, SeededSamples
from medseg.transforms import LabelVoxelIndexd, RandCropByLabeld

KEYS = ["image", "label"]


class Counted(MapTransform):
    """Add a number, and count the calls."""

    calls = 0

    def __init__(self, keys, add=1.0):
        super().__init__(keys)
        self.add = add

    def __call__(self, data):
        Counted.calls += 1
        return {**data, **{key: data[key] + self.add for key in self.key_iterator(data)}}


def transforms(add=1.0):
    return Compose([
        LoadImaged(KEYS), EnsureChannelFirstd(KEYS), ScaleIntensityd("image"), Counted("image", add),
        LabelVoxelIndexd("label"), RandCropByLabeld(KEYS, "label", (8, 8, 8), [1, 1], num_samples=1),
        RandGaussianNoised("image", prob=0.7),
    ])  # fmt: skip


def write(folder: Path, name: str, array: np.ndarray) -> str:
    path = folder / f"{name}.nii"
    nibabel.Nifti1Image(array, np.diag([1.0, 2.0, 3.0, 1.0])).to_filename(path)
    return str(path)


@pytest.fixture
def cases(tmp_path) -> list[dict[str, str]]:
    generator = np.random.default_rng(0)
    files = []
    for n in range(3):
        image = write(tmp_path, f"image_{n}", generator.normal(size=(12, 14, 10)).astype(np.float32))
        label = write(tmp_path, f"label_{n}", generator.integers(0, 2, (12, 14, 10)).astype(np.uint8))
        files.append({"image": image, "label": label, "case": f"case_{n}"})
    return files


def samples(dataset) -> list:
    return [SeededSamples(dataset)[SampleIndex(n, 7 * n)] for n in range(len(dataset))]


def assert_same(ours, theirs) -> None:
    for (sample,), (other,) in zip(ours, theirs, strict=True):
        assert sample.keys() == other.keys()
        assert sample["case"] == other["case"]
        for key in KEYS:
            assert type(sample[key]) is type(other[key])
            assert torch.equal(sample[key], other[key])
            assert torch.equal(sample[key].affine, other[key].affine)


def test_samples_equal_those_from_memory_bit_for_bit(cases, tmp_path):
    inner = CacheDataset(cases, transforms(), copy_cache=False, num_workers=0, progress=False)
    expected = samples(inner)
    Counted.calls = 0
    for run in range(2):  # the second one finds the files of the first
        mapped = MappedCases(cases, transforms(), tmp_path / "cache")
        assert Counted.calls == 3, run
        assert_same(samples(mapped), expected)
    assert len(list((tmp_path / "cache").iterdir())) == 3


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of maps")
def test_the_files_are_mapped_and_never_written_to(cases, tmp_path):
    mapped = MappedCases(cases, transforms(), tmp_path / "cache")
    before = mapped.case_file(0).read_bytes()
    assert str(mapped.case_file(0)) in Path("/proc/self/maps").read_text()
    mapped._cache[0]["image"].fill_(-5)  # a transform that works in place
    assert mapped.case_file(0).read_bytes() == before
    assert float(MappedCases(cases, transforms(), tmp_path / "cache")._cache[0]["image"].min()) > -5


def test_every_change_gives_another_file(cases, tmp_path, monkeypatch):
    names = [MappedCases(cases, transforms(), tmp_path / "cache").case_file(0)]
    names.append(MappedCases(cases, transforms(add=2.0), tmp_path / "cache").case_file(0))
    image = Path(cases[0]["image"])
    stamp, content = image.stat(), bytearray(image.read_bytes())
    content[-1] ^= 1  # the same size and the same time
    image.write_bytes(content)
    os.utime(image, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    names.append(MappedCases(cases, transforms(), tmp_path / "cache").case_file(0))
    monkeypatch.setattr("medseg.training.training_cases.software_versions", lambda: {"medseg": "another"})
    names.append(MappedCases(cases, transforms(), tmp_path / "cache").case_file(0))
    assert len(set(names)) == 4


def test_random_transforms_and_their_draws_change_no_file(cases, tmp_path):
    name = MappedCases(cases, transforms(), tmp_path / "cache").case_file(0)
    seeded = transforms().set_random_state(5)
    assert MappedCases(cases, seeded, tmp_path / "cache").case_file(0) == name
    fewer = Compose([*transforms().transforms[:-1]])
    assert MappedCases(cases, fewer, tmp_path / "cache").case_file(0) == name


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_a_damaged_file_is_replaced(cases, tmp_path, damage):
    file = MappedCases(cases, transforms(), tmp_path / "cache").case_file(1)
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "other": b"PK nonsense"}[damage])
    Counted.calls = 0
    with pytest.warns(UserWarning, match="cannot be read"):
        again = MappedCases(cases, transforms(), tmp_path / "cache")
    assert Counted.calls == 1
    memory = CacheDataset(cases, transforms(), copy_cache=False, num_workers=0, progress=False)
    assert_same(samples(again), samples(memory))


def test_a_spawned_worker_receives_file_names_instead_of_arrays(cases, tmp_path):
    mapped = MappedCases(cases, transforms(), tmp_path / "cache")
    sent = pickle.dumps(mapped)
    assert mapped._cache[0]["image"].numpy().tobytes() not in sent
    assert_same(samples(pickle.loads(sent)), samples(mapped))


def test_names_are_the_same_in_every_process(cases, tmp_path):
    # string hashes differ between processes, and with them the order of sets
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
    code += "from training.test_mapped_cases import *\n"
    code += f"print(MappedCases({cases!r}, transforms(), {str(tmp_path / 'cache')!r}).case_file(0).name)"
    names = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-W", "ignore", "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        names.add(done.stdout.strip())
    assert len(names) == 1
