"""Load bundles that a stranger has tampered with, one after the other, and report what each of them did.

Run as a script, because memory is measured per process: `python hostile_bundles.py BUNDLE FOLDER` copies BUNDLE into
FOLDER once per case, changes the copy, loads it and predicts with it. It prints one JSON object with the outcome of
each case and the peak memory of the process in bytes.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import shutil
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import medseg
from medseg.bundle import BundleFolder
from medseg.errors import MedsegError
from medseg.plan import Plan
from medseg.volumes.files import file_sha256

Change = Callable[[Path], None]
CANARY = os.environ.get("CANARY", "canary")  # the file that hostile code creates
CASES: dict[str, Change] = {}
# A golden sample that cannot be read only means fp32; configs and other files are never opened by `medseg.load`.
HARMLESS = {
    "pickle as the golden sample",
    "pickle in the golden sample",
    "untouched",
    "extra files",
    "unused hostile configs",
    "unknown metadata keys",
    "symlink inside",
    "half precision",
}


class Bomb:
    """Create the canary file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {CANARY}",))


def plan_with(**values: Any) -> Change:
    """Return a change of top-level keys of plan.json."""

    def change(bundle: Path) -> None:
        file = bundle / "configs" / "plan.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def network_with(**arguments: Any) -> Change:
    """Return a change of arguments of the network."""

    def change(bundle: Path) -> None:
        plan = json.loads((bundle / "configs" / "plan.json").read_text())
        plan["network"]["arguments"] |= arguments
        (bundle / "configs" / "plan.json").write_text(json.dumps(plan))

    return change


def text_in(name: str, content: str | bytes) -> Change:
    """Return a change that replaces a file of the bundle."""

    def change(bundle: Path) -> None:
        (bundle / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def weights_with(edit: Callable[[dict[str, torch.Tensor]], Any], record: bool = True) -> Change:
    """Return a change of the state dict, with or without its digest recorded anew."""

    def change(bundle: Path) -> None:
        file = bundle / "models" / "model.pt"
        state = torch.load(file, weights_only=True)
        edited = edit(state)
        torch.save(state if edited is None else edited, file)
        if record:
            record_digest(bundle)

    return change


def record_digest(bundle: Path) -> None:
    digest = file_sha256(bundle / "models" / "model.pt")
    (bundle / "models" / "model.json").write_text(json.dumps({"weights_sha256": digest}))


def set_value(key: str, value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def edit(state: dict[str, torch.Tensor]) -> None:
        state[key].view(-1)[0] = value

    return edit


def raw_weights(content: bytes) -> Change:
    def change(bundle: Path) -> None:
        (bundle / "models" / "model.pt").write_bytes(content)
        record_digest(bundle)

    return change


def link(name: str, target: str) -> Change:
    def change(bundle: Path) -> None:
        path = bundle / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.symlink_to(target)

    return change


def define_cases() -> None:
    bomb = pickle.dumps(Bomb())
    CASES["untouched"] = lambda bundle: None
    CASES["pickle as weights"] = raw_weights(bomb)
    CASES["pickle inside the weights"] = weights_with(lambda state: {**state, "note": Bomb()})
    CASES["pickle as the state dict"] = weights_with(lambda state: Bomb())
    CASES["pickle as the golden sample"] = text_in("models/golden.npz", bomb)
    CASES["pickle in the golden sample"] = pickled_golden
    CASES["pickle as plan.json"] = text_in("configs/plan.json", bomb)
    CASES["pickle as metadata.json"] = text_in("configs/metadata.json", bomb)
    CASES["pickle as model.json"] = text_in("models/model.json", bomb)
    CASES["unused hostile configs"] = hostile_configs
    CASES["altered weights"] = weights_with(set_value("head.bias", 1.0), record=False)
    CASES["digest missing"] = text_in("models/model.json", "{}")
    CASES["digest not text"] = text_in("models/model.json", '{"weights_sha256": 5}')
    CASES["model.json is a list"] = text_in("models/model.json", "[]")
    CASES["NaN in the weights"] = weights_with(set_value("head.bias", float("nan")))
    CASES["infinity in the weights"] = weights_with(set_value("head.bias", float("inf")))
    CASES["half precision"] = weights_with(lambda state: {key: value.half() for key, value in state.items()})
    CASES["weights of another network"] = weights_with(lambda state: {"a": torch.zeros(3), "b": torch.zeros(2)})
    CASES["a weight of absurd shape"] = weights_with(
        lambda state: state.update({"head.bias": torch.zeros(1).expand(10**12)})
    )
    CASES["an empty state dict"] = weights_with(lambda state: {})
    CASES["truncated weights"] = truncated
    CASES["empty weights"] = raw_weights(b"")
    CASES["weights that are a folder"] = folder_as_weights
    CASES["compressed weights"] = zip_bomb
    CASES["weights link outside"] = link("models/model.pt", "/etc/hostname")
    CASES["weights link to a device"] = link("models/model.pt", "/dev/zero")
    CASES["models folder links outside"] = models_outside
    CASES["plan links outside"] = link("configs/plan.json", "/etc/hostname")
    CASES["plan links to a device"] = link("configs/plan.json", "/dev/zero")
    CASES["plan is a pipe"] = pipe
    CASES["symlink inside"] = link_inside
    CASES["nested JSON"] = text_in("configs/plan.json", "[" * 100_000 + "]" * 100_000)
    CASES["nested metadata"] = text_in("configs/metadata.json", '{"a":' * 100_000 + "1" + "}" * 100_000)
    CASES["huge metadata"] = huge("configs/metadata.json")
    CASES["huge plan"] = huge("configs/plan.json")
    CASES["plan is a list"] = text_in("configs/plan.json", "[1, 2]")
    CASES["plan is not UTF-8"] = text_in("configs/plan.json", b"\xff\xfe\x00")
    CASES["metadata is not JSON"] = text_in("configs/metadata.json", "{")
    CASES["unknown metadata keys"] = text_in("configs/metadata.json", '{"run": "$import os", "_target_": "os.system"}')
    CASES["extra files"] = extra_files
    CASES["name leaves the folder"] = plan_with(name="../../x")
    CASES["name is an expression"] = plan_with(name="$__import__('os').system('touch CANARY')")
    CASES["network is a Python path"] = plan_with(network={"name": "os.system", "arguments": {"command": "true"}})
    CASES["network is an expression"] = plan_with(network={"name": "$torch.nn.Identity()", "arguments": {}})
    CASES["network argument is a target"] = network_with(norm={"_target_": "os.system"})
    CASES["network argument is code"] = network_with(activation="__import__('os')")
    CASES["a million channels"] = network_with(channels=[10**6, 10**6], strides=2)
    CASES["10^18 channels"] = network_with(channels=[10**18, 10**18], strides=2)
    CASES["a million stages"] = network_with(channels=[4] * 300_000, strides=2)
    CASES["a billion layers"] = plan_with(
        network={"name": "unetr_hatamizadeh2021", "arguments": {"taps": [1, 2, 3, 10**9], "image_size": [16, 16, 16]}}
    )
    CASES["kernels of a million"] = network_with(kernel_sizes=10**6 + 1)
    CASES["a million input channels"] = plan_with(
        channels=[{"name": f"c{i}", "modality": "MR"} for i in range(10**5)], normalization=[{"scheme": "none"}] * 10**5
    )
    CASES["a million labels"] = plan_with(labels={"background": 0, **{f"l{i}": i for i in range(1, 10**5)}})
    CASES["a tile of 10^18 voxels"] = plan_with(tile=[10**6] * 3)
    CASES["a patch of 10^18 voxels"] = plan_with(patch=[10**6] * 3)
    keys = [field.name for field in dataclasses.fields(Plan) if field.name != "source"]
    for key in keys:
        CASES[f"wrong type of {key}"] = plan_with(**{key: {"$x": [None]} if key != "network" else [7]})
    CASES["NaN in the plan"] = plan_with(spacing=[float("nan")] * 3)
    CASES["infinity in the plan"] = plan_with(air_below=float("-inf"))
    CASES["an unknown key"] = plan_with(_target_="os.system")


def pickled_golden(bundle: Path) -> None:
    np.savez(
        bundle / "models" / "golden.npz",
        labels=np.array([Bomb()], dtype=object),
        facts=np.array([Bomb()], dtype=object),
    )


def hostile_configs(bundle: Path) -> None:
    touch = f"$__import__('os').system('touch {CANARY}')"
    for name in ("train.json", "evaluate.json", "multi_gpu_train.json"):
        (bundle / "configs" / name).write_text(json.dumps({"imports": [touch], "initialize": [touch], "run": [touch]}))
    (bundle / "configs" / "logging.conf").write_text(f"[handlers]\nkeys={touch}")
    (bundle / "scripts").mkdir()
    (bundle / "scripts" / "__init__.py").write_text(f"import os; os.system('touch {CANARY}')")


def truncated(bundle: Path) -> None:
    file = bundle / "models" / "model.pt"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    record_digest(bundle)


def folder_as_weights(bundle: Path) -> None:
    (bundle / "models" / "model.pt").unlink()
    (bundle / "models" / "model.pt").mkdir()


def zip_bomb(bundle: Path) -> None:
    file = bundle / "models" / "model.pt"
    content = io.BytesIO()
    with zipfile.ZipFile(file) as given, zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as made:
        for member in given.infolist():
            made.writestr(member.filename, given.read(member))
        with made.open("archive/data/zeros", "w", force_zip64=True) as stream:
            for _ in range(64):
                stream.write(bytes(2**24))
    file.write_bytes(content.getvalue())
    record_digest(bundle)


def models_outside(bundle: Path) -> None:
    outside = bundle.parent / "outside"
    shutil.move(bundle / "models", outside)
    (bundle / "models").symlink_to(outside)


def pipe(bundle: Path) -> None:
    (bundle / "configs" / "plan.json").unlink()
    os.mkfifo(bundle / "configs" / "plan.json")


def link_inside(bundle: Path) -> None:
    (bundle / "models" / "model.pt").rename(bundle / "models" / "weights_of_march.pt")
    (bundle / "models" / "model.pt").symlink_to("weights_of_march.pt")


def huge(name: str) -> Change:
    def change(bundle: Path) -> None:
        with (bundle / name).open("r+b") as stream:
            stream.truncate(300 * 2**20)

    return change


def extra_files(bundle: Path) -> None:
    (bundle / "models" / "model.ts").write_bytes(pickle.dumps(Bomb()))
    (bundle / "sitecustomize.py").write_text(f"import os; os.system('touch {CANARY}')")
    yaml = f"!!python/object/apply:os.system ['touch {CANARY}']"
    (bundle / "configs" / "inference.yaml").write_text(yaml)


def main(template: Path, folder: Path) -> None:
    define_cases()
    medseg.load(template, device="cpu", backend="torch")  # imports take their time here, not in the first case
    results = {}
    for number, (name, change) in enumerate(CASES.items()):
        bundle = folder / f"{number:02d}" / "tiny_segmentation"
        shutil.copytree(template, bundle)
        change(bundle)
        before = {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}
        started = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                BundleFolder(bundle).metadata  # noqa: B018 - read as `medseg bundle verify` does
                model = medseg.load(bundle, device="cpu", backend="torch", precision="auto")
                model.predict((np.zeros((16, 16, 16), np.float32) + np.arange(16), np.eye(4)))
            outcome, line = "loaded", ""
        except MedsegError as error:
            outcome, line = type(error).__name__, str(error)
        except BaseException as error:  # a defect; the test reports it
            outcome, line = f"DEFECT {type(error).__name__}", str(error)
        seconds = time.perf_counter() - started
        changed = {path: path.lstat().st_mtime_ns for path in folder.rglob("*")} != before
        results[name] = {"outcome": outcome, "line": line, "seconds": seconds, "wrote": changed}
        shutil.rmtree(bundle.parent, ignore_errors=True)
    # ru_maxrss would count the memory of the test process that started this one.
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    print(json.dumps({"cases": results, "peak_bytes": peak}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
