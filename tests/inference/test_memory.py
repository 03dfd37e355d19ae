"""Tests of the memory limit: the estimate bounds the real peak, and the limit is kept or refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from inference.plans import small_plan
from inference.thin_network import thin_network
from torch import nn

from medseg.errors import OptionError
from medseg.inference import Predictor
from medseg.inference.memory import candidates, forward_bytes, parse_bytes
from medseg.inference.scan import load_scan
from medseg.inference.tiling.streaming import Window

CHILD = """
import json, sys
import numpy as np
sys.path.insert(0, {tests!r})
from inference.plans import small_plan
from inference.thin_network import thin_network
from medseg.inference import Predictor
from medseg.inference.memory import keep_freed_memory
from medseg.inference.scan import load_scan

labels = {{"background": 0, **{{f"organ{{i}}": i for i in range(1, {classes})}}}}
plan = small_plan(labels=labels, tile=[48, 48, 48], spacing={spacing})
image = (np.random.default_rng(0).normal(size={shape}).astype(np.float32), np.diag([1.0, 1.0, 1.5, 1.0]))
image[1][0, 1] = {shear}
predictor = Predictor(
    thin_network({features}, {classes}), plan, "cpu", max_ram="100GB", batch_size={batch}, **{options}
)
keep_freed_memory(False)
estimate = predictor.workload().estimate(load_scan(image, plan), predictor.window)
predictor.predict(image)
# VmHWM is this process's own; getrusage would count what the parent held when it started this one.
status = open("/proc/self/status").read()
peak = 1024 * int(status.split("VmHWM:")[1].split()[0])
print(json.dumps({{"estimate": estimate.total, "resident": estimate.resident, "peak": peak}}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
@pytest.mark.parametrize(
    ("features", "classes", "shape", "spacing", "batch", "shear", "options"),
    [
        (16, 60, (96, 90, 160), [1.0, 1.0, 1.5], 2, 0, {"backend": "torch"}),
        (16, 8, (120, 110, 100), [1.3, 1.2, 1.0], 1, 0, {"backend": "openvino"}),
        (16, 8, (90, 80, 70), [1.3, 1.2, 1.0], 1, 0.3, {"uncertainty": True, "save_probabilities": True}),
    ],
    ids=["features", "logits, resampled", "sheared, observed"],
)
def test_the_estimate_bounds_the_real_peak(
    features: int, classes: int, shape: tuple, spacing: list, batch: int, shear: float, options: dict
) -> None:
    if options.get("backend") == "openvino":
        pytest.importorskip("openvino")
    code = CHILD.format(
        tests=str(Path(__file__).resolve().parents[1]), features=features, classes=classes, shape=shape,
        spacing=spacing, batch=batch, shear=shear, options=options,
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["peak"] <= found["estimate"]
    # The estimate is not far too large either.
    assert found["peak"] - found["resident"] > 0.4 * (found["estimate"] - found["resident"])


LIMITED = """
import json, sys
import numpy as np, torch
sys.path.insert(0, {tests!r})
from inference.plans import small_plan
from medseg.errors import MemoryLimitError
from medseg.inference import Predictor
from medseg.inference.memory import candidates
from medseg.inference.scan import load_scan

class Pointwise(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = torch.nn.Conv3d(1, 64, 1), torch.nn.Conv3d(64, 80, 1)
    def features(self, x):
        return self.body(x)
    def forward(self, x):
        return self.head(self.features(x))

torch.manual_seed(0)
labels = {{"background": 0, **{{f"organ{{i}}": i for i in range(1, 80)}}}}
plan = small_plan(labels=labels, tile=[32, 32, 32], spacing=[1.0, 1.0, 1.3])
image = (np.random.default_rng(0).normal(size=(170, 150, 90)).astype(np.float32), np.diag([1.0, 1.0, 1.5, 1.0]))
network = Pointwise()
free = Predictor(network, plan, "cpu", backend="torch", batch_size=4)
scan = load_scan(image, plan)
network_bytes = {{n: free.workload().network_bytes(n) for n in (1, 2, 4)}}
totals = [
    free.workload().estimate(scan, window, network_bytes[window.batch_size]).total
    for window in candidates(free.window)
]
limit = (min(totals) + totals[0]) // 2
limited = Predictor(network, plan, "cpu", backend="torch", batch_size=4, max_ram=limit)
window = limited.workload().fit(scan, limited.window, limit)
limited.predict(image)
peak = 1024 * int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
try:
    Predictor(network, plan, "cpu", backend="torch", max_ram="100MB").predict(image)
    refusal = ""
except MemoryLimitError as error:
    refusal = str(error)
print(json.dumps({{"peak": peak, "limit": limit, "batch": window.batch_size, "slab_values": window.slab_values,
                   "free_slab_values": free.window.slab_values, "refusal": refusal, "least_mb": min(totals) / 1e6,
                   "spread": totals[0] - min(totals)}}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
def test_a_limit_is_kept_by_giving_up_speed() -> None:
    """The process's real peak stays below its limit."""
    code = LIMITED.format(tests=str(Path(__file__).resolve().parents[1]))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["peak"] <= found["limit"]
    assert found["spread"] > 80e6  # there was something to give up
    assert found["batch"] < 4 or found["slab_values"] < found["free_slab_values"]
    # The refusal states the least memory, up to what the process has loaded since.
    named = float(re.search(r"needs at least ([\d,]+) MB", found["refusal"])[1].replace(",", ""))  # type: ignore[index]
    assert named == pytest.approx(found["least_mb"], rel=0.25)


@pytest.mark.parametrize(("shape", "limit_mb"), [((160, 160, 480), 1450), ((512, 512, 400), 4000)])
def test_many_classes_fit_into_little_memory(shape: tuple[int, int, int], limit_mb: float) -> None:
    """105 classes from 32 features in tiles of 96³, with a scan in float32 and 470 MB for the process."""
    labels = {"background": 0, **{f"organ{i}": i for i in range(1, 105)}}
    plan = small_plan(labels=labels, spacing=None, tile=[96, 96, 96], normalization=[{"scheme": "none"}])
    workload = Predictor(thin_network(32, 105), plan, "cpu", backend="torch").workload()
    scan = load_scan((np.broadcast_to(np.float32(0), shape), np.eye(4)), plan)
    network = workload.network_bytes(1)
    windows = candidates(Window(tuple(plan.tile)))
    estimates = [workload.estimate(scan, window, network) for window in windows]
    least = min(estimate.total - estimate.resident for estimate in estimates)
    assert least + 4 * np.prod(shape) + 470e6 < limit_mb * 1e6


def test_forward_bytes_counts_what_lives_at_once() -> None:
    shape = (1, 1, 8, 8, 8)
    voxels = 8**3 * 4
    # Input, first result and second result live together when the second convolution runs: 1 + 4 + 4 channels, less
    # the input, which a Sequential drops only at the end.
    network = nn.Sequential(nn.Conv3d(1, 4, 1, bias=False), nn.Conv3d(4, 4, 1, bias=False))
    largest = (4 + 4) * voxels + network[1].weight.numel() * 4
    with torch.no_grad():
        counted = forward_bytes(network, shape)
    assert counted == (1 + 4 + 4) * voxels + largest // 2
    assert forward_bytes(thin_network(8, 3), (2, *shape[1:])) > forward_bytes(thin_network(8, 3), shape)


@pytest.mark.parametrize(
    ("text", "size"), [("4GB", 4e9), ("500 MiB", 500 * 2**20), ("1.5g", 1.5e9), (12345, 12345), ("2kb", 2000)]
)
def test_amounts_of_memory(text: str | int, size: float) -> None:
    assert parse_bytes(text) == int(size)


@pytest.mark.parametrize("text", ["", "lots", "-4GB", "4XB", "0"])
def test_an_invalid_amount_of_memory_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="found"):
        parse_bytes(text)


def test_the_estimate_does_not_depend_on_the_order_of_the_axes_in_the_file() -> None:
    plan = small_plan(spacing=[1.0, 1.0, 5.0], tile=[16, 16, 8], patch=[16, 16, 8])
    predictor = Predictor(thin_network(4, 3), plan, "cpu", max_ram="8GB")
    work = set()
    for order in permutations(range(3)):
        affine = np.eye(4)
        affine[:3, :3] = np.diag([1.0, 1.0, 5.0])[:, order]
        shape = tuple(np.array([60, 50, 9])[list(order)])
        estimate = predictor.workload().estimate(
            load_scan((np.zeros(shape, np.float32), affine), plan), predictor.window
        )
        work.add((estimate.preprocess, estimate.held, estimate.blending))
    assert len(work) == 1


# A separate process, because the setting and the page faults are those of the whole process.
PAGE_FAULTS = """
import resource
import torch
from medseg.inference.memory import keep_freed_memory

def step():
    for _ in range(4):
        torch.ones(16 << 20)  # 64 MB, more than the blocks that glibc learns to keep

for keep in {settings}:
    assert keep_freed_memory(keep)
faults = []
for _ in range(5):  # small blocks between the large ones settle in the first steps
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults[1:]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
@pytest.mark.parametrize(("settings", "is_kept"), [([], False), ([True], True), ([True, False], False)])
def test_freed_memory_is_kept_or_returned(settings: list[bool], is_kept: bool) -> None:
    """A later step asks the system for no memory if that of the earlier ones was kept."""
    code = PAGE_FAULTS.format(settings=settings)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (int(done.stdout) < 100) is is_kept
