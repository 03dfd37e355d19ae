"""The five commands that write files, on data so small that each takes about a second.

A workload knows its command, the files that exist before it, and what must hold whenever its process ends: every file
under its final name is complete and is that of the start or that of an undisturbed run.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import runpy
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import yaml
from bundle.tiny_bundles import change_plan, copy_bundle
from PIL import Image
from training.bundle_runs import command

import medseg
from medseg import weights
from medseg.cli import main
from medseg.datasets import generate_phantoms, read_manifest
from medseg.errors import MedsegError
from medseg.plan import read_plan
from medseg.training.checkpoint import checkpoint_files

CASES = [f"phantom_{number:03d}" for number in range(5)]
EPOCHS = 3
# What two runs of the same work may differ in.
TIMES = ("created", "seconds", "finished", "minutes", "resumed_at_epoch")


@dataclass(frozen=True)
class Inputs:
    """Data set, bundle and two finished runs, made once and only read afterwards.

    Args:
        root: holds data/, manifest.yaml, bundle/ (with the weights of run_a), run_a/ and run_b/.
    """

    root: Path

    @classmethod
    def make(cls, root: Path) -> Inputs:
        """Generate phantoms, and write the files of two trainings, which end with the weights they begin with."""
        bundle = copy_bundle("phantom_cells_segmentation", root / "bundle")
        change_plan(bundle, {"channels": [4, 8], "strides": [2]}, patch=[16, 16, 16], tile=[16, 16, 16])
        generate_phantoms(root / "data", num_cases=len(CASES), seed=5, shape=(24, 24, 16))
        manifest = yaml.safe_load(read_manifest("phantom_cells").path.read_text(encoding="utf-8"))
        manifest |= {"cases": CASES, "folds": {0: CASES[:1], 1: CASES[1:2], 2: CASES[2:]}, "source": {"page": "none"}}
        (root / "manifest.yaml").write_text(yaml.safe_dump(manifest))
        train = bundle / "configs" / "train.json"
        train.write_text(json.dumps(json.loads(train.read_text()) | {"manifest": str(root / "manifest.yaml")}))
        plan = read_plan(bundle / "configs" / "plan.json")
        for seed, name in enumerate(("run_a", "run_b")):
            torch.manual_seed(seed)
            digest = weights.write(root / name / "model.pt", plan.create_network())
            record = {"plan_digest": plan.digest, "weights_sha256": digest, "settings": {"fold": 1}}
            (root / name / "training.json").write_text(json.dumps(record))
        return cls(root)

    def __getattr__(self, name: str) -> Path:
        """Return a path below the root: data, bundle, run_a, run_b."""
        return self.root / name

    @property
    def manifest(self) -> Path:
        """The manifest of the data set."""
        return self.root / "manifest.yaml"


class Workload(ABC):
    """One command on tiny data.

    Args:
        inputs: what it reads.
    """

    name = ""
    # Files that are removed as soon as their successors are not yet written: they would show other numbers.
    stale: tuple[str, ...] = ()
    # Files that tell which cases failed.
    reports: tuple[str, ...] = ()

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs

    def begin(self, folder: Path) -> None:
        """Put the files of earlier runs into the folder."""
        folder.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def arguments(self, folder: Path) -> list[str]:
        """Return the words after `medseg`."""

    def run(self, folder: Path) -> None:
        """Run the command in this process, as its program does."""
        main(self.arguments(folder))

    def check(self, folder: Path) -> None:  # noqa: B027 - most workloads have no such files
        """Raise AssertionError if files that belong together do not fit."""


class Predict(Workload):
    """Predict four scans with all maps. One of them is finished; one has an outdated result with other maps."""

    name = "predict"
    reports = ("volumes.csv",)

    def begin(self, folder: Path) -> None:
        super().begin(folder)
        for case, options in ((CASES[0], MAPS), (CASES[1], {"uncertainty": True, "overlap": 0.0})):
            model = medseg.load(self.inputs.bundle, device="cpu", **options)
            model.predict(self._scan(case)).save(folder / "out" / f"{case}.nii.gz")

    def arguments(self, folder: Path) -> list[str]:
        scans = [str(self._scan(case)) for case in CASES[:4]]
        options = ["--save-probabilities", "--device", "cpu", "--volumes", str(folder / "volumes.csv")]
        return ["predict", str(self.inputs.bundle), *scans, "--out", str(folder / "out"), *options]

    def _scan(self, case: str) -> Path:
        return self.inputs.data / "images" / f"{case}.nii.gz"

    def check(self, folder: Path) -> None:
        for labels in (folder / "out").glob("phantom_???.nii.gz"):
            record = json.loads(labels.with_name(labels.name.replace(".nii.gz", ".json")).read_text())
            digest = hashlib.sha256(labels.read_bytes()).hexdigest()
            assert record["output_sha256"] == digest, f"{labels} is not the segmentation of its record"
            found = {path.name for path in labels.parent.glob(f"{labels.name[:11]}_*")}
            assert found == {f"{labels.name[:11]}_{name}.nii.gz" for name in record["maps"]}, found


MAPS: dict[str, Any] = {"save_probabilities": True}


class Evaluate(Workload):
    """Evaluate three label maps into a folder with the evaluation of others."""

    name = "evaluate"
    stale = ("out/report.html",)

    def begin(self, folder: Path) -> None:
        super().begin(folder)
        for name, shift in (("first", 1), ("second", 2)):
            (folder / name).mkdir()
            for case in CASES[:3]:
                image = nib.load(self.inputs.data / "labels" / f"{case}.nii.gz")
                moved = np.roll(np.asarray(image.dataobj), shift, axis=0)
                nib.save(nib.Nifti1Image(moved, None, image.header), folder / name / f"{case}.nii.gz")
        quietly(main, self._evaluation(folder, "first"))

    def arguments(self, folder: Path) -> list[str]:
        return self._evaluation(folder, "second")

    def _evaluation(self, folder: Path, predictions: str) -> list[str]:
        references = folder / "references"
        if not references.is_dir():
            shutil.copytree(self.inputs.data / "labels", references)
            for case in CASES[3:]:
                (references / f"{case}.nii.gz").unlink()
        return [
            "evaluate", str(folder / predictions), str(references), "--out", str(folder / "out"), "--labels",
            str(self.inputs.bundle), "--images", str(self.inputs.data / "images"), "--draws", "2000",
        ]  # fmt: skip

    def check(self, folder: Path) -> None:
        out = folder / "out"
        if not (out / "summary.json").exists():
            return
        summary = json.loads((out / "summary.json").read_text())
        with (out / "metrics.csv").open() as stream:
            dice = [float(row["dice"]) for row in csv.DictReader(stream) if row["label"] == "round"]
        assert abs(summary["labels"]["round"]["dice"]["mean"]["value"] - np.mean(dice)) < 1e-6, "metrics.csv is another"
        if (out / "report.html").exists():
            shown = f"{summary['class_mean']['dice']['value']:.3f}"
            assert shown in (out / "report.html").read_text(encoding="utf-8"), "report.html shows another evaluation"


class Promote(Workload):
    """Promote other weights, with a fingerprint, into a bundle that has weights."""

    name = "promote"

    def begin(self, folder: Path) -> None:
        super().begin(folder)
        shutil.copytree(self.inputs.bundle, folder / "bundle")

    def arguments(self, folder: Path) -> list[str]:
        return ["bundle", "promote", str(folder / "bundle"), "--from", str(self.inputs.run_b), "--data",
                str(self.inputs.data)]  # fmt: skip

    def check(self, folder: Path) -> None:
        try:
            model = medseg.load(folder / "bundle", device="cpu", precision="fp32")
        except MedsegError:
            return
        digests = [json.loads((run / "training.json").read_text())["weights_sha256"]
                   for run in (self.inputs.run_a, self.inputs.run_b)]  # fmt: skip
        (digest,) = model.weights_sha256
        assert digest in digests
        with np.load(folder / "bundle" / "models" / "golden.npz") as golden:
            assert json.loads(str(golden["facts"]))["weights_sha256"] == digest, "the golden sample is another's"
        has_fingerprint = (folder / "bundle" / "models" / "fingerprint.json").exists()
        assert has_fingerprint == (digest == digests[1]), "the fingerprint is another's"


class Prepare(Workload):
    """Copy a data set of five cases from a folder. One case is in place."""

    name = "prepare"

    def begin(self, folder: Path) -> None:
        super().begin(folder)
        for role in ("images", "labels", "instances"):
            (folder / "data" / role).mkdir(parents=True)
            shutil.copy2(self.inputs.data / role / f"{CASES[0]}.nii.gz", folder / "data" / role)

    def arguments(self, folder: Path) -> list[str]:
        return ["data", "prepare", str(self.inputs.manifest), "--root", str(folder / "data"), "--from",
                str(self.inputs.data)]  # fmt: skip


class Train(Workload):
    """Train for three epochs with validation; started again, it resumes."""

    name = "train"

    def arguments(self, folder: Path) -> list[str]:
        options = {"max_epochs": EPOCHS, "val_interval": 1, "fold": 1, "resume": "True"}
        return training(self.inputs, folder / "run", **options)

    def run(self, folder: Path) -> None:
        run_training(self.arguments(folder))

    def check(self, folder: Path) -> None:
        run = folder / "run"
        if (run / "training.json").exists():
            record = json.loads((run / "training.json").read_text())
            digest = hashlib.sha256((run / "model.pt").read_bytes()).hexdigest()
            assert record["weights_sha256"] == digest, "training.json is of other weights"
        files = checkpoint_files(run / "checkpoints")
        epochs = [torch.load(file, weights_only=True)["trainer"]["epoch"] for file in files]
        assert epochs == [int(file.stem.rpartition("_")[2]) for file in files]
        assert len(epochs) <= 3


WORKLOADS: tuple[type[Workload], ...] = (Predict, Evaluate, Promote, Prepare, Train)


def training(inputs: Inputs, output_dir: Path, **options: Any) -> list[str]:
    """Return the words after `python` that start a training of the tiny bundle."""
    given = {"dataset_dir": inputs.data, "manifest": inputs.manifest, **options}
    return command(inputs.bundle, output_dir, **given)[1:]


def run_training(arguments: Sequence[str]) -> None:
    """Run `python -m monai.bundle …` in this process."""
    sys.argv = list(arguments[1:])
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)


def quietly(function: Any, *arguments: Any) -> None:
    """Call a function that prints and exits."""
    stdout, sys.stdout = sys.stdout, io.StringIO()
    try:
        function(*arguments)
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(stop.code) from stop
    finally:
        sys.stdout = stdout


def contents(folder: Path) -> dict[str, str]:
    """Return a digest of the content of every file that is not hidden; times in it are left out.

    Raises:
        AssertionError: a file is not complete.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts) and "events.out" not in path.name:
            try:
                found[str(name)] = hashlib.sha256(_content(path)).hexdigest()[:16]
            except Exception as error:
                raise AssertionError(f"torn file {path}: {error!r}") from error
    return found


def leftovers(folder: Path) -> list[Path]:
    """Return the hidden temporary files and folders."""
    return [path for path in folder.rglob(".*.partial*") if path.parent.name != "earlier"]


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    if path.name.endswith(".nii.gz"):
        return gzip.decompress(data)
    if path.suffix == ".json":
        return json.dumps(_without_times(json.loads(data)), sort_keys=True).encode()
    if path.suffix == ".csv":
        assert data.endswith(b"\n")
        rows = list(csv.reader(io.StringIO(data.decode())))
        assert len({len(row) for row in rows}) == 1
        kept = [number for number, column in enumerate(rows[0]) if column != "status"]  # a restart skips cases
        return json.dumps([[row[number] for number in kept] for row in rows]).encode()
    if path.suffix == ".html":
        assert data.rstrip().endswith(b"</html>")
        return b"a report"
    if path.suffix == ".png":
        Image.open(path).load()
        return b"a picture"
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return arrays["logits"].tobytes()
    if path.suffix == ".pt":
        torch.load(path, weights_only=True)
    return data


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(entry) for key, entry in value.items() if key not in TIMES}
    return value
