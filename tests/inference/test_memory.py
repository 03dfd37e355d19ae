"""Memory: what is promised before the work is kept during it."""

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
from medseg.inference.memory import forward_bytes, parse_bytes
from medseg.inference.scan import load_scan

CHILD = """
import json, sys
import numpy as np
sys.path.insert(0, {tests!r})
from inference.plans import small_plan
from inference.thin_network import thin_network
from medseg.inference import Predictor
from medseg.inference.memory import return_freed_memory
from medseg.inference.scan import load_scan

labels = {{"background": 0, **{{f"organ{{i}}": i for i in range(1, {classes})}}}}
plan = small_plan(labels=labels, tile=[48, 48, 48], spacing={spacing})
image = (np.random.default_rng(0).normal(size={shape}).astype(np.float32), np.diag([1.0, 1.0, 1.5, 1.0]))
image[1][0, 1] = {shear}
predictor = Predictor(
    thin_network({features}, {classes}), plan, "cpu", max_ram="100GB", batch_size={batch}, **{options}
)
return_freed_memory()
estimate = predictor.workload.estimate(load_scan(image, plan), predictor.window)
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
    # And it is no empty promise: what the work was allowed beyond the process itself is mostly used.
    assert found["peak"] - found["resident"] > 0.4 * (found["estimate"] - found["resident"])


LIMITED = """
import json, sys
import numpy as np, torch
sys.path.insert(0, {tests!r})
from inference.plans import small_plan
from medseg.errors import MemoryLimitError
from medseg.inference import Predictor
from medseg.inference.memory import _candidates
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
free = Predictor(network, plan, "cpu", batch_size=2)
scan = load_scan(image, plan)
network_bytes = {{n: free.workload.network_bytes(n) for n in (1, 2)}}
totals = {{"fp32": [], "fp16": []}}
for window in _candidates(free.window):
    totals[window.carried].append(free.workload.estimate(scan, window, network_bytes[window.batch_size]).total)
smallest = min(totals["fp16"])
limit = (smallest + min(totals["fp32"])) // 2
limited = Predictor(network, plan, "cpu", batch_size=2, max_ram=limit)
window = limited.workload.fit(scan, limited.window, limit)
record = limited.predict(image).provenance
peak = 1024 * int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
try:
    Predictor(network, plan, "cpu", max_ram="100MB").predict(image)
    refusal = ""
except MemoryLimitError as error:
    refusal = str(error)
print(json.dumps({{"peak": peak, "limit": limit, "sums": record["sums"], "batch": window.batch_size, "refusal": refusal,
                   "smallest_mb": smallest / 1e6, "spread": totals["fp32"][0] - smallest}}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
def test_a_limit_is_kept_by_giving_up_speed_first_and_precision_last() -> None:
    """The process's real peak stays below what it was allowed."""
    code = LIMITED.format(tests=str(Path(__file__).resolve().parents[1]))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["peak"] <= found["limit"]
    assert found["spread"] > 80e6  # there was something to give up
    assert (found["sums"], found["batch"]) == ("fp16", 1)
    # The refusal names the least it could do with: what was found above, but for what the process has loaded since.
    named = float(re.search(r"needs about ([\d,]+) MB", found["refusal"])[1].replace(",", ""))  # type: ignore[index]
    assert named == pytest.approx(found["smallest_mb"], rel=0.25)


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
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="looks like 4GB"):
        parse_bytes(text)


def test_the_estimate_does_not_depend_on_the_order_of_the_axes_in_the_file() -> None:
    plan = small_plan(spacing=[1.0, 1.0, 5.0], tile=[16, 16, 8], patch=[16, 16, 8])
    predictor = Predictor(thin_network(4, 3), plan, "cpu", max_ram="8GB")
    work = set()
    for order in permutations(range(3)):
        affine = np.eye(4)
        affine[:3, :3] = np.diag([1.0, 1.0, 5.0])[:, order]
        shape = tuple(np.array([60, 50, 9])[list(order)])
        estimate = predictor.workload.estimate(load_scan((np.zeros(shape, np.float32), affine), plan), predictor.window)
        work.add((estimate.preprocess, estimate.merge))
    assert len(work) == 1
