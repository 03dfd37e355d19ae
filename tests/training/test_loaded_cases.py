"""Cases are read in every format onto one grid with labels numbered by channel; unusable ones are refused."""

import dataclasses
import itertools
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from bundle.tiny_bundles import change_plan
from monai.data import CacheDataset
from monai.transforms import Compose
from PIL import Image
from training.bundle_runs import command, run, tiny_bundle

import medseg
from medseg.bundle import promote
from medseg.datasets import (
    Manifest,
    case_files,
    case_problems,
    describe_dataset,
    generate_phantoms,
    prepare,
    read_manifest,
)
from medseg.errors import ManifestError, PlanError
from medseg.evaluation import MeanCaseDice
from medseg.training import IGNORED, LoadCased, partial_labels
from medseg.training.history import read_history
from medseg.volumes import Grid, Volume, read_volume, write_volume

KEYS = ("image", "label")
LABELS = {"background": 0, "round": 1, "elongated": 2}


@pytest.fixture
def manifest(tmp_path):
    generate_phantoms(tmp_path, num_cases=2, seed=1, shape=(12, 12, 8))
    raw = yaml.safe_load(read_manifest("phantom_cells").path.read_text(encoding="utf-8"))
    raw |= {"cases": ["phantom_000", "phantom_001"], "folds": {0: ["phantom_000"], 1: ["phantom_001"]}}
    (tmp_path / "manifest.yaml").write_text(yaml.safe_dump({**raw, "test_fold": None}))
    return read_manifest(tmp_path / "manifest.yaml")


def edit(path, change=lambda array: array, shift_mm=0.0):
    image = nib.load(path)
    affine = image.affine.copy()
    affine[0, 3] += shift_mm
    nib.save(nib.Nifti1Image(change(np.asanyarray(image.dataobj).copy()), affine), path)


def array(path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


def test_a_case_is_read_once_if_it_is_cached(manifest, tmp_path):
    cases = case_files(manifest, tmp_path, "all")
    data = CacheDataset(cases, Compose([LoadCased(KEYS, manifest, LABELS)]), num_workers=0, progress=False)
    edit(cases[0]["label"], lambda array: array + 5)
    loaded = data[0]
    assert (loaded["image"].shape, loaded["image"].dtype) == ((1, 12, 12, 8), torch.float32)
    assert (loaded["label"].shape, loaded["label"].dtype) == ((1, 12, 12, 8), torch.uint8)
    assert loaded["case"] == "phantom_000"
    assert loaded["instances"] == cases[0]["instances"]  # not asked for


def write_again(case: dict, key: str, path: Path) -> None:
    """Write a file of a case in the format of another path, which the case then names."""
    image = nib.load(case[key])
    voxels = np.asanyarray(image.dataobj)
    if path.suffix == ".hdr":
        nib.save(nib.Nifti1Pair(voxels, image.affine), path)
    else:
        stored = voxels.astype(np.float32) if path.suffix == ".mgz" else voxels
        write_volume(path, stored, Volume(voxels, Grid(voxels.shape, image.affine)))
    case[key] = str(path)


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha", ".mgz", ".hdr"])
def test_every_format_gives_the_voxels_and_the_grid_of_nifti(manifest, tmp_path, suffix):
    case = case_files(manifest, tmp_path, "all")[0]
    load = LoadCased((*KEYS, "instances"), manifest, LABELS)
    expected = load(case)
    for key in load.keys:
        write_again(case, key, tmp_path / f"{key}{suffix}")
    found = load(case)
    for key in load.keys:
        np.testing.assert_array_equal(found[key].numpy(), expected[key].numpy())
        assert found[key].dtype == expected[key].dtype
        np.testing.assert_allclose(found[key].affine, expected[key].affine, atol=1e-4)
    np.testing.assert_array_equal(found["label"][0], array(case_files(manifest, tmp_path, "all")[0]["label"]))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_pictures_are_read_as_they_are_predicted(tmp_path, suffix):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    grey = np.arange(70, dtype=np.uint8).reshape(7, 10)
    label = np.where(grey > 30, 255, 0).astype(np.uint8)
    for folder, picture in (("images", grey), ("labels", label)):
        write_volume(tmp_path / folder / f"a{suffix}", picture, Volume(picture, Grid(picture.shape, np.eye(4))))
    raw = yaml.safe_load(read_manifest("em_membrane").path.read_text(encoding="utf-8"))
    raw |= {"cases": ["a"], "folds": {}, "test_fold": None}
    raw["files"] = {"image": f"images/{{case}}{suffix}", "label": f"labels/{{case}}{suffix}"}
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(raw))
    loaded = LoadCased(KEYS, tmp_path / "m.yaml")(case_files(tmp_path / "m.yaml", tmp_path)[0])
    np.testing.assert_array_equal(loaded["image"][0], grey)
    np.testing.assert_array_equal(loaded["label"][0], grey > 30)


@pytest.mark.parametrize("more", [(1,), (1, 1)])
def test_label_maps_with_axes_of_one_voxel(manifest, tmp_path, more):
    case = case_files(manifest, tmp_path, "all")[0]
    expected = array(case["label"])
    edit(case["label"], lambda array: array.reshape((*array.shape, *more)))
    assert nib.load(case["label"]).shape == (*expected.shape, *more)
    np.testing.assert_array_equal(LoadCased(KEYS, manifest, LABELS)(case)["label"][0], expected)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
def test_the_same_voxels_in_another_order_are_reordered(manifest, tmp_path, order, flips):
    case = case_files(manifest, tmp_path, "all")[0]
    load = LoadCased((*KEYS, "instances"), manifest, LABELS)
    expected = load(case)
    image = nib.load(case["label"])
    turn = np.stack([np.array(order), np.array(flips)], axis=1)
    turned = image.as_reoriented(turn)
    nib.save(turned, case["label"])
    assert case_problems(manifest, manifest.paths(tmp_path, "phantom_000"), "phantom_000") == []
    found = load(case)
    for key in load.keys:
        np.testing.assert_array_equal(found[key].numpy(), expected[key].numpy())
        np.testing.assert_allclose(found[key].affine, expected[key].affine, atol=1e-4)


def relabelled(manifest: Manifest, folder: Path, values: tuple[int, int, int]) -> dict:
    """Store these values in place of 0, 1 and 2 in the label map of a case; return the case."""
    case = case_files(manifest, folder, "all")[0]
    edit(case["label"], lambda array: np.array(values, np.int32)[array])
    return case


@pytest.mark.parametrize(("first", "second"), [(1, 256), (256, 1), (1, 4), (4, 1), (77, 2035), (1000000, 70000)])
def test_any_label_values_are_numbered_by_channel(manifest, tmp_path, first, second):
    old = array(case_files(manifest, tmp_path, "all")[0]["label"])
    assert set(np.unique(old)) == {0, 1, 2}
    case = relabelled(manifest, tmp_path, (0, first, second))
    labels = {"background": 0, "round": first, "elongated": second}
    found = LoadCased(KEYS, dataclasses.replace(manifest, labels=labels), labels)(case)["label"][0].numpy()
    channel = {0: 0, 1: 1 if first < second else 2, 2: 2 if first < second else 1}
    for before, expected in channel.items():
        assert (found[old == before] == expected).all()


@pytest.mark.parametrize(("ignored", "two"), [(255, 2), (2, 4), (300, 256)])
def test_voxels_of_the_ignore_label_get_one_value(manifest, tmp_path, ignored, two):
    old = array(case_files(manifest, tmp_path, "all")[0]["label"])
    case = relabelled(manifest, tmp_path, (0, ignored, two))
    labels = {"background": 0, "elongated": two}
    changed = dataclasses.replace(manifest, labels=labels, ignore_label=ignored)
    found = LoadCased(KEYS, changed, labels)(case)["label"][0].numpy()
    assert (found[old == 1] == IGNORED).all()
    assert (found[old == 2] == 1).all()


def test_large_instance_numbers_stay_apart(manifest, tmp_path):
    case = case_files(manifest, tmp_path, "all")[0]
    old = array(case["instances"]).astype(np.int32)
    edit(case["instances"], lambda array: np.where(array > 0, array.astype(np.int32) + 2**30, 0).astype(np.int32))
    found = LoadCased("instances", manifest)(case)["instances"][0].numpy()
    assert found.max() < 2**24
    np.testing.assert_array_equal(found, np.unique(old, return_inverse=True)[1].reshape(old.shape))


def add_nan(array):
    array = array.astype(np.float32)
    array[1, 1, 1] = np.nan
    return array


@pytest.mark.parametrize(
    ("key", "change", "shift_mm", "fact"),
    [
        (
            "label",
            lambda array: array * 7,
            0.0,
            r"label.*14 \(\d+ voxels\)",
        ),
        ("label", lambda array: array[:-2], 0.0, r"shape \(10, 12, 8\) differs from \(12, 12, 8\) of .*images"),
        ("label", lambda array: array, 5.0, r"its corners lie up to 5 mm from those of"),
        ("instances", lambda array: array, 5.0, r"instances.*its corners lie up to 5 mm"),
        (
            "image",
            lambda array: np.stack([array] * 2, -1),
            0.0,
            r"images.*\(12, 12, 8, 2\) \(4D\) where 3D is expected",
        ),
        ("image", add_nan, 0.0, r"1 of 1152 voxels are NaN or infinite; replace them first"),
    ],
)
def test_an_unusable_case_is_named_with_its_problem(manifest, tmp_path, key, change, shift_mm, fact):
    case = case_files(manifest, tmp_path, "all")[1]
    edit(case[key], change, shift_mm)
    with pytest.raises(ManifestError, match=rf"^case phantom_001: .*{fact}"):
        LoadCased(("image", "label", "instances"), manifest)(case)


def test_a_truncated_file_is_named(manifest, tmp_path):
    case = case_files(manifest, tmp_path, "all")[0]
    with Path(case["image"]).open("r+b") as stream:
        stream.truncate(200)
    with pytest.raises(ManifestError, match=r"case phantom_000: .*images.*phantom_000"):
        LoadCased(KEYS, manifest)(case)


@pytest.mark.parametrize(
    ("labels", "ignored", "facts"),
    [
        ({**LABELS, "tumour": 3}, None, r"tumour \(3\) of phantom_cells"),
        ({"background": 0, "round": 2, "elongated": 1}, None, r"1 for round.*has 2"),
        ({"background": 0, "round": 1}, 2, r"2 .*ignore_label"),
        ({"background": 0, "round": 256}, None, r"1 for round.*256"),
    ],
)
def test_labels_that_do_not_fit_the_plan_are_refused_before_a_case_is_read(manifest, labels, ignored, facts):
    changed = dataclasses.replace(manifest, labels=labels, ignore_label=ignored)
    with pytest.raises(PlanError, match=facts):
        LoadCased(KEYS, changed, LABELS)


def test_a_training_has_at_most_255_labels(manifest):
    labels = {f"label {value}": 10 * value for value in range(256)}
    with pytest.raises(PlanError, match=r"255.*256"):
        LoadCased(KEYS, dataclasses.replace(manifest, labels=labels))
    del labels["label 255"]
    assert max(LoadCased(KEYS, dataclasses.replace(manifest, labels=labels)).channel_of_value.values()) < IGNORED


def test_volumes_can_be_allowed_for_a_2d_network(manifest, tmp_path):
    case = case_files(manifest, tmp_path, "all")[0]
    of_slices = dataclasses.replace(manifest, spatial_dims=2)
    with pytest.raises(ManifestError, match="where 2D is expected"):
        LoadCased(KEYS, of_slices)(case)
    assert LoadCased(KEYS, of_slices, spatial_dims=3)(case)["image"].shape == (1, 12, 12, 8)


def test_a_training_depends_on_no_label_value(tmp_path):
    """Label values 0, 4, 300 give the weights, the Dice and, value by value, the predictions of 0, 1, 2."""
    results = {}
    for name, values in (("plain", (0, 1, 2)), ("other", (0, 4, 300))):
        folder = tmp_path / name
        folder.mkdir()
        bundle = tiny_bundle(folder)
        labels = dict(zip(LABELS, values, strict=True))
        change_plan(bundle, labels=labels)
        manifest = yaml.safe_load((folder / "manifest.yaml").read_text()) | {"labels": labels}
        (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
        for file in (folder / "data" / "labels").iterdir():
            edit(file, lambda array, values=values: np.array(values, np.int16)[array])
        run(command(bundle, folder / "run", max_epochs=1, val_interval=1))
        promote(bundle, folder / "run")
        scan = folder / "data" / "images" / "phantom_004.nii.gz"
        results[name] = (
            json.loads((folder / "run" / "training.json").read_text())["weights_sha256"],
            read_history(folder / "run" / "history.csv")[-1],
            medseg.load(bundle).predict(scan).array,
        )
    plain, other = results["plain"], results["other"]
    assert plain[0] == other[0]
    assert {k: v for k, v in plain[1].items() if "dice" in k} == {k: v for k, v in other[1].items() if "dice" in k}
    assert len(np.unique(plain[2])) > 1
    np.testing.assert_array_equal(np.array([0, 4, 300])[plain[2]], other[2])


def test_an_nnunet_dataset_in_nrrd_is_prepared_and_trained(tmp_path):
    bundle = tiny_bundle(tmp_path)
    raw = tmp_path / "Dataset001_cells"
    for source, target in (("images/phantom_00", "imagesTr/c{}_0000"), ("labels/phantom_00", "labelsTr/c{}")):
        (raw / target).parent.mkdir(parents=True)
        for number in range(6):
            volume = read_volume(tmp_path / "data" / f"{source}{number}.nii.gz")
            write_volume(raw / f"{target.format(number)}.nrrd", volume.array, volume)
    content = {"channel_names": {"0": "fluorescence"}, "labels": LABELS, "numTraining": 6, "file_ending": ".nrrd"}
    (raw / "dataset.json").write_text(json.dumps(content))
    assert prepare(raw).present == tuple(f"c{number}" for number in range(6))
    config = json.loads((bundle / "configs" / "train.json").read_text())
    steps = config["train"]["deterministic_transforms"]
    steps["load"]["keys"] = steps["orientation"]["keys"] = steps["spacing"]["keys"] = list(KEYS)
    steps["spacing"]["mode"] = ["bilinear", "nearest"]
    del steps["weight"]["instance_key"]
    (bundle / "configs" / "train.json").write_text(json.dumps(config))
    options = {"manifest": raw, "dataset_dir": raw, "max_epochs": 1, "val_interval": 1, "fold": 0}
    run(command(bundle, tmp_path / "run", **options))
    assert 0 <= read_history(tmp_path / "run" / "history.csv")[-1]["val_mean_dice"] <= 1


def test_the_background_of_partially_labelled_cases(manifest, tmp_path):
    raw = yaml.safe_load((tmp_path / "manifest.yaml").read_text())
    raw["cases"] = [{"id": "phantom_000", "labels": ["round"]}, "phantom_001"]
    (tmp_path / "manifest.yaml").write_text(yaml.safe_dump(raw))
    partial = read_manifest(tmp_path / "manifest.yaml")
    assert partial_labels(partial, LABELS) == {254: [0, 2]}
    assert partial_labels(manifest, LABELS) == {}
    whole, found = (
        [LoadCased(KEYS, each, LABELS)(case)["label"] for case in case_files(each, tmp_path, "all")]
        for each in (manifest, partial)
    )
    assert torch.equal(found[0], torch.where(whole[0] == 0, 254, whole[0]).to(torch.uint8))
    assert torch.equal(found[1], whole[1])
    metric = MeanCaseDice({"round": 1, "elongated": 2}, ignore_label=IGNORED, partial_labels=partial_labels(partial))
    metric.update(([whole[0], whole[1]], [found[0], found[1]]))
    means = metric.class_means()
    assert means == {"round": 1.0, "elongated": 1.0}
    is_absent = [not (whole[1] == value).any() for value in (1, 2)]
    assert [np.isnan(row).tolist() for row in metric._cases] == [[False, True], is_absent]


def write_pictures(folder: Path) -> Manifest:
    """Write two RGB pictures with coloured label maps of 13 classes, and return their manifest."""
    random = np.random.default_rng(0)
    colors = random.choice(2**24, 13, replace=False)[:, None] >> np.array([16, 8, 0]) & 255
    table = ["name,r,g,b", *(f"class {n},{r},{g},{b}" for n, (r, g, b) in enumerate(colors))]
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    (folder / "class_dict.csv").write_text("\n".join(table))
    for case in ("a", "b"):
        picture = random.integers(0, 256, (20, 24, 3)).astype(np.uint8)
        Image.fromarray(picture).save(folder / "images" / f"{case}.tif")
        index = random.integers(0, 13, (20, 24))
        np.save(folder / f"{case}.npy", index)
        Image.fromarray(colors[index].astype(np.uint8)).save(folder / "labels" / f"{case}.png")
    return describe_dataset(folder)


def test_colour_pictures_with_coloured_labels_of_many_classes(tmp_path):
    manifest = write_pictures(tmp_path)
    case = case_files(manifest, tmp_path, "all")[0]
    loaded = LoadCased(KEYS, manifest)(case)
    assert np.array_equal(loaded["image"].numpy(), np.asarray(Image.open(case["image"])).transpose(2, 1, 0))
    assert np.array_equal(loaded["label"][0].numpy(), np.load(tmp_path / "a.npy").T + 1)


def test_channels_in_one_file_and_label_values_of_brats(tmp_path):
    for name in ("imagesTr", "labelsTr"):
        (tmp_path / name).mkdir()
    random = np.random.default_rng(0)
    image = random.normal(size=(6, 7, 8, 4)).astype(np.float32)
    label = random.choice([0, 1, 2, 4], (6, 7, 8))
    nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / "imagesTr" / "b.nii.gz")
    nib.save(nib.Nifti1Image(label.astype(np.float64), np.eye(4)), tmp_path / "labelsTr" / "b.nii.gz")
    content = {
        "modality": {str(n): name for n, name in enumerate(("FLAIR", "T1w", "t1gd", "T2w"))},
        "labels": {"background": 0, "whole": [1, 2, 4], "core": [1, 4], "enhancing": [4]},
        "regions_class_order": [2, 1, 4],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    (case,) = case_files(read_manifest(tmp_path), tmp_path, "all")
    loaded = LoadCased(KEYS, tmp_path)(case)
    assert np.array_equal(loaded["image"].numpy(), image.transpose(3, 0, 1, 2))
    assert np.array_equal(loaded["label"][0].numpy(), np.searchsorted([0, 1, 2, 4], label))
