"""Tests of predicting from chunks to chunks, which must equal predicting the whole image in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inference.plans import small_plan
from inference.thin_network import thin_network

from medseg.errors import OptionError
from medseg.inference import Predictor, predict_files
from medseg.inference.chunked import prediction
from medseg.inference.chunked.intensities import StreamedIntensities
from medseg.inference.chunked.model_image import ModelImage
from medseg.inference.chunked.strips import strip_boxes
from medseg.transforms.normalization import ArrayIntensities, checked_scheme
from medseg.volumes import read_label_map
from medseg.volumes.files import locked

zarr = pytest.importorskip("zarr")

from volumes.zarr_stores import SPACE, noise, ome_zarr  # noqa: E402

from medseg.volumes import zarr_images  # noqa: E402
from medseg.volumes.zarr_images import ZarrImage  # noqa: E402

MM = [{**axis, "unit": "millimeter"} for axis in SPACE]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zarr_images, "CHUNK", 16)


def make_predictor(classes: int = 4, **changes: Any) -> Predictor:
    labels = {"background": 0, **{f"organ{i}": i for i in range(1, classes)}}
    options = {key: changes.pop(key) for key in ("interpolation", "batch_size", "max_ram") if key in changes}
    plan = small_plan(labels=labels, tile=[16, 16, 16], **changes)
    network = thin_network(3, classes, in_channels=plan.in_channels)
    return Predictor(network, plan, "cpu", backend="torch", **options)


def predict_in_strips(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let every prediction use that many strips, whatever the memory."""
    fit = prediction.ChunkedPrediction._fit

    def fit_strips(self: Any, image: ModelImage, chunks: Sequence[int], fixed: int) -> Any:
        boxes, window = fit(self, image, chunks, 0)
        assert len(boxes) == 1  # these images fit into memory
        return strip_boxes(image.native.shape, self._resampler(image), chunks, count), window

    monkeypatch.setattr(prediction.ChunkedPrediction, "_fit", fit_strips)


ORIENTED = [
    {**axis, "orientation": {"type": "anatomical", "value": value}}
    for axis, value in zip(MM, ("superior-to-inferior", "left-to-right", "anterior-to-posterior"), strict=True)
]
NONZERO = {"scheme": "z_score", "foreground": "nonzero"}
CT = {"scheme": "ct", "lower": 100.0, "upper": 900.0, "mean": 500.0, "std": 200.0}


@pytest.mark.parametrize(
    ("shape", "dtype", "axes", "strips", "options"),
    [
        ((50, 33, 41), np.uint16, MM, 1, {"spacing": None}),
        ((50, 33, 41), np.float32, ORIENTED, 3, {"spacing": None, "normalization": [{"scheme": "percentile"}]}),
        ((30, 60, 40), np.uint8, ORIENTED, 3, {"spacing": [1.5, 0.8, 1.0]}),
        ((30, 40, 60), np.int32, MM, 3, {"spacing": [1.3, 1.0, 0.7], "interpolation": "cubic", "normalization": [CT]}),
        ((9, 40, 40), np.float64, MM, 1, {"spacing": None, "batch_size": 3}),
        ((40, 40, 40), np.uint16, MM, 2, {"spacing": None, "normalization": [NONZERO]}),
    ],
    ids=["whole", "percentile, turned", "resampled, turned", "cubic, ct", "thin, batches", "nonzero"],
)  # fmt: skip
def test_labels_equal_those_of_the_image_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strips: int, shape: Any, dtype: Any, axes: Any, options: Any
) -> None:
    array = noise(shape, dtype=np.uint16) % 255
    path = ome_zarr(tmp_path / "scan.ome.zarr", array.astype(dtype), "0.5", (1.0, 1.0, 1.0), axes)
    predictor = make_predictor(**options)
    in_memory = predictor.predict(path)
    if strips > 1:
        predict_in_strips(monkeypatch, strips)
    (result,) = predict_files(predictor, [path], tmp_path / "out")
    assert result.status == "done", result.message
    written = read_label_map(tmp_path / "out" / "scan.ome.zarr")
    assert np.array_equal(written.array, in_memory.array)
    assert written.grid == in_memory.scan.grid
    assert len(np.unique(written.array)) > 2  # an image of one class would prove nothing
    assert result.volumes_ml == pytest.approx(in_memory.volumes_ml())
    record = json.loads((tmp_path / "out" / "scan.json").read_text(encoding="utf-8"))
    assert (record["strips"] > 1) == (strips > 1)
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_channels_of_one_store_and_of_two_give_the_same(tmp_path: Path, version: str) -> None:
    channels = [{"name": name, "modality": "MR"} for name in ("t1", "t2")]
    predictor = make_predictor(channels=channels, normalization=[{"scheme": "z_score"}] * 2, spacing=None)
    array = noise((2, 20, 24, 28))
    one = ome_zarr(tmp_path / "one.zarr", array, version, axes=[{"name": "c", "type": "channel"}, *SPACE])
    for number in range(2):
        ome_zarr(tmp_path / f"two_{number:04d}.zarr", array[number], version)
    results = predict_files(predictor, [one, *tmp_path.glob("two_*.zarr")], tmp_path / "out")
    assert [result.status for result in results] == ["done", "done"]
    first, second = (read_label_map(tmp_path / "out" / f"{name}.zarr") for name in ("one", "two"))
    assert np.array_equal(first.array, second.array)
    assert len(np.unique(first.array)) > 2
    wrong = predict_files(make_predictor(), [one], tmp_path / "wrong")
    assert wrong[0].status == "failed"
    assert "found 2" in wrong[0].message


def test_a_nifti_scan_becomes_a_label_image_on_request(tmp_path: Path, scans: Path) -> None:
    predictor = make_predictor(spacing=None)
    predict_files(predictor, [scans], tmp_path / "nifti")
    predict_files(predictor, [scans], tmp_path / "zarr", format="zarr")
    for name in ("case0", "case1", "case2"):
        nifti = read_label_map(tmp_path / "nifti" / f"{name}.nii.gz")
        stored = read_label_map(tmp_path / "zarr" / f"{name}.ome.zarr")
        assert np.array_equal(stored.array.transpose(2, 1, 0), nifti.array)
    again = predict_files(predictor, [scans], tmp_path / "zarr", format="zarr")
    assert {result.status for result in again} == {"skipped"}
    over = predict_files(predictor, [scans], tmp_path / "zarr", format="zarr", overwrite=True)
    assert {result.status for result in over} == {"done"}
    assert not list((tmp_path / "zarr").glob(".*"))


def test_finished_stores_are_skipped_and_foreign_ones_kept(tmp_path: Path) -> None:
    path = ome_zarr(tmp_path / "scan.zarr", noise((20, 20, 20)))
    predictor = make_predictor(spacing=None)
    assert predict_files(predictor, [path], tmp_path / "out")[0].status == "done"
    assert predict_files(predictor, [path], tmp_path / "out")[0].status == "skipped"
    stored = zarr.open_group(str(path))["0"]
    stored[3, 3, 3] = 999
    assert predict_files(predictor, [path], tmp_path / "out")[0].status == "done"
    assert predict_files(predictor, [path], tmp_path / "out", overwrite=True)[0].status == "done"
    (tmp_path / "out" / "scan.json").unlink()
    with pytest.raises(OSError, match="record"):
        predict_files(predictor, [path], tmp_path / "out")


def test_an_interrupted_prediction_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ome_zarr(tmp_path / "scan.zarr", noise((80, 34, 40)), scale=(1.0, 1.0, 1.0), axes=ORIENTED)
    predictor = make_predictor(spacing=[1.0, 1.0, 1.1])
    predict_in_strips(monkeypatch, 2)
    predict_files(predictor, [path], tmp_path / "whole")
    out = tmp_path / "out"

    class Stopped(BaseException):
        pass

    seen: list[tuple[int, int]] = []
    for stop in (60, 140, 10_000):
        first = len(seen)

        def count(done: int, total: int, stop: int = stop) -> None:
            seen.append((done, total))
            if done >= stop:
                raise Stopped

        predictor.on_tiles = count
        if stop < 10_000:
            with pytest.raises(Stopped):
                predict_files(predictor, [path], out)
            assert (out / ".scan.zarr.unfinished" / "progress.json").is_file()
            assert not (out / "scan.zarr").exists()
        else:
            predict_files(predictor, [path], out)
            # A restart repeats at most two rows of tiles.
            assert seen[first][1] < seen[0][1]
    whole, resumed = (read_label_map(folder / "scan.zarr").array for folder in (tmp_path / "whole", out))
    assert np.array_equal(whole, resumed)
    record = json.loads((out / "scan.json").read_text(encoding="utf-8"))
    assert record["layers_of_earlier_run"] > 1


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from inference.test_chunked import make_predictor
from medseg.inference import predict_files
from medseg.volumes import zarr_images

zarr_images.CHUNK = 16
predictor = make_predictor(spacing=None)
predictor.on_tiles = lambda done, total: done > {tiles} and os.kill(os.getpid(), signal.SIGKILL)
predict_files(predictor, [{path!r}], {out!r})
"""


@pytest.mark.slow
def test_kill_9_loses_no_finished_layer(tmp_path: Path) -> None:
    path = ome_zarr(tmp_path / "scan.zarr", noise((80, 30, 30)))
    tests = Path(__file__).parents[1]
    script = KILLED.format(tests=str(tests), path=str(path), out=str(tmp_path / "out"), tiles=60)
    child = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False)
    assert child.returncode == -9, child.stderr
    progress = json.loads((tmp_path / "out" / ".scan.zarr.unfinished" / "progress.json").read_text(encoding="utf-8"))
    assert progress["done"][0][:2] == [0, 1]
    predictor = make_predictor(spacing=None)
    (result,) = predict_files(predictor, [path], tmp_path / "out")
    assert result.status == "done"
    record = json.loads((tmp_path / "out" / "scan.json").read_text(encoding="utf-8"))
    assert record["layers_of_earlier_run"] == len(progress["done"][0])
    assert np.array_equal(read_label_map(tmp_path / "out" / "scan.zarr").array, predictor.predict(path).array)
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_progress_of_other_settings_is_discarded(tmp_path: Path) -> None:
    path = ome_zarr(tmp_path / "scan.zarr", noise((60, 20, 20)))
    predictor = make_predictor(spacing=None)

    def stop(done: int, total: int) -> None:
        if done > 25:
            raise KeyboardInterrupt

    predictor.on_tiles = stop
    with pytest.raises(KeyboardInterrupt):
        predict_files(predictor, [path], tmp_path / "out")
    other = make_predictor(spacing=None, overlap=0.25)
    assert predict_files(other, [path], tmp_path / "out")[0].status == "done"
    record = json.loads((tmp_path / "out" / "scan.json").read_text(encoding="utf-8"))
    assert record["layers_of_earlier_run"] == 0
    assert np.array_equal(read_label_map(tmp_path / "out" / "scan.zarr").array, other.predict(path).array)


def test_a_second_run_on_the_same_store_is_refused(tmp_path: Path) -> None:
    path = ome_zarr(tmp_path / "scan.zarr", noise((20, 20, 20)))
    unfinished = tmp_path / "out" / ".scan.zarr.unfinished"
    unfinished.mkdir(parents=True)
    with locked(unfinished / "lock", "unused"), pytest.raises(OptionError, match="taken"), \
         locked(unfinished / "lock", "taken"):  # fmt: skip
        pass
    with locked(unfinished / "lock", "unused"):
        (result,) = predict_files(make_predictor(spacing=None), [path], tmp_path / "out")
    assert result.status == "failed"
    assert "another run" in result.message


@pytest.mark.parametrize(
    ("spoil", "fact"),
    [
        (lambda path: (path / "0" / "c" / "1" / "0" / "1").unlink(), "c/1/0/1"),
        (lambda path: (path / "0" / "c" / "1" / "0" / "1").write_bytes(b"1234567"), "damaged"),
        (lambda path: zarr.open_group(str(path))["0"].__setitem__((3, 4, 5), np.nan), "1 voxels"),
    ],
    ids=["lost chunk", "damaged chunk", "NaN"],
)
def test_a_bad_store_fails_in_one_line_before_the_network_runs(tmp_path: Path, spoil: Any, fact: str) -> None:
    path = ome_zarr(tmp_path / "scan.zarr", noise((32, 32, 32), dtype=np.float32))
    spoil(path)
    predictor = make_predictor(spacing=None, normalization=[CT])
    predictor.on_tiles = lambda done, total: pytest.fail("the network ran")
    (result,) = predict_files(predictor, [path], tmp_path / "out")
    assert result.status == "failed"
    assert fact in result.message
    assert str(path) in result.message
    assert not (tmp_path / "out" / "scan.zarr").exists()


def test_a_memory_limit_cuts_strips_or_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ome_zarr(tmp_path / "scan.zarr", noise((20, 20, 40)))
    (result,) = predict_files(make_predictor(spacing=None, max_ram="1MB"), [path], tmp_path / "out")
    assert result.status == "failed"
    assert "limit is 1 MB" in result.message
    predictor = make_predictor(spacing=None)
    # A large volume without a single chunk: its accumulator exceeds the limit unless it is cut.
    stored = zarr.open_group(str(ome_zarr(tmp_path / "large.zarr", noise((4, 4, 4)), num_levels=1)))
    del stored["0"]
    stored.create_array("0", shape=(1000, 1000, 1000), chunks=(128, 128, 128), dtype="uint8", fill_value=0)
    images = [ZarrImage(tmp_path / "large.zarr")]
    run = prediction.ChunkedPrediction.__new__(prediction.ChunkedPrediction)
    run.predictor, run.images = predictor, images
    monkeypatch.setattr(prediction, "resident_bytes", lambda: 0)
    counts = []
    for limit in (2_000_000_000, 450_000_000):
        predictor.max_ram = limit
        boxes, _ = run._fit(ModelImage(images, predictor.plan), (128, 128, 128), 0)
        counts.append(len(boxes))
    assert counts[0] == 1 < counts[1]


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
@pytest.mark.parametrize("foreground", ["all", "nonzero"])
def test_streamed_statistics_equal_those_in_memory(tmp_path: Path, dtype: Any, foreground: str) -> None:
    values = (np.random.default_rng(3).normal(size=(40, 33, 37)) * 300).clip(0, None).astype(dtype)
    values = values if dtype == np.uint16 else values - np.float32(100.3) * (values > 0)
    path = ome_zarr(tmp_path / "a.zarr", values, num_levels=1)
    image = ModelImage([ZarrImage(path)], small_plan(spacing=None))
    entry = checked_scheme({"scheme": "percentile", "foreground": foreground}, 0)
    considered = values[values != 0] if foreground == "nonzero" else values.ravel()
    streamed = StreamedIntensities(image, 0, entry)
    whole = ArrayIntensities(torch.from_numpy(considered.astype(np.float32)))
    assert streamed.count == whole.count
    assert streamed.extremes() == whole.extremes()
    assert streamed.inner_extremes() == whole.inner_extremes()
    assert streamed.mean_and_std() == whole.mean_and_std()
    percents = [0.0, 0.5, 17.3, 50.0, 99.5, 100.0]
    assert streamed.percentiles(percents) == whole.percentiles(percents)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarrs_own_reader_opens_the_label_image(tmp_path: Path, version: str) -> None:
    reader = pytest.importorskip("ome_zarr.reader", reason="ome-zarr is installed without its dependencies")
    from ome_zarr.io import parse_url

    path = ome_zarr(tmp_path / "scan.ome.zarr", noise((40, 36, 44)), version, num_levels=3)
    predictor = make_predictor(spacing=None)
    predict_files(predictor, [path], tmp_path / "out")
    nodes = list(reader.Reader(parse_url(tmp_path / "out" / "scan.ome.zarr"))())
    labels = next(node for node in nodes if any(isinstance(spec, reader.Label) for spec in node.specs))
    expected = predictor.predict(path).array
    # "The datasets MUST have the same number of entries as the original unlabeled image" (OME-NGFF, labels).
    assert [level.shape for level in labels.data] == [(40, 36, 44), (20, 18, 22), (10, 9, 11)]
    assert np.array_equal(labels.data[0].compute(), expected)
    assert np.array_equal(labels.data[1].compute(), expected[::2, ::2, ::2])
    assert set(labels.metadata["color"]) == {1, 2, 3}
    assert labels.metadata["properties"][2] == {"class": "organ2"}
    # The source of the label image is found, so viewers show both.
    assert any(str(path) == node.zarr.path for node in nodes)
    assert os.fspath(path) in {node.zarr.path for node in nodes}
