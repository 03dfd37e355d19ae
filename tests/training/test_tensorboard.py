"""TensorBoard's pictures are those of `seg.show()`: read back from the event file and compared."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.transforms import Spacing
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medseg.figures import three_planes
from medseg.figures.canvas import label_color, rgb
from medseg.training import TensorBoardHandler
from medseg.training.tensorboard import case_figures

LABELS = {"background": 0, "absent": 1, "anterior": 2}
# stored from the patient's right to the left: voxel 0 of the first axis is the right
AFFINE = np.diag([-1.0, 1.0, 2.0, 1.0])


def case(shape: tuple[int, ...] = (20, 24, 12)) -> dict[str, torch.Tensor]:
    """A bright scan; the reference is on the patient's left, the prediction a voxel further back."""
    image = 1 + 0.1 * torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    image[0, 0] = 0  # something dark, for the window
    label, pred = torch.zeros(1, *shape), torch.zeros(1, *shape)
    label[(0, slice(12, 17), slice(8, 16), slice(3, 9))[: 1 + len(shape)]] = 2
    pred[(0, slice(12, 17), slice(7, 15), slice(3, 9))[: 1 + len(shape)]] = 2
    items = {"image": image, "label": label, "pred": pred}
    return {name: MetaTensor(item, affine=torch.as_tensor(AFFINE)) for name, item in items.items()}


def written(directory: Path, output: object) -> dict[str, np.ndarray]:
    """Return the RGB pictures by name that TensorBoard shows after a validation with this output."""
    network = torch.nn.Linear(1, 1)
    trainer, evaluator = Engine(lambda *_: {"loss": torch.tensor(1.0)}), Engine(lambda *_: output)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    TensorBoardHandler(directory, optimizer, evaluator, labels=LABELS).attach(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([0]))
    trainer.run([0])
    events = EventAccumulator(str(directory))
    events.Reload()
    return {
        tag.removeprefix("validation/"): np.asarray(Image.open(io.BytesIO(events.Images(tag)[0].encoded_image_string)))
        for tag in events.Tags()["images"]
    }


def drawn(figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]


def has_color(picture: np.ndarray, position: int) -> bool:
    return bool((picture == rgb(label_color(position))).all(-1).any())


@pytest.mark.parametrize("shape", [(20, 24, 12), (20, 24)])
def test_the_event_file_holds_the_figures_of_show(tmp_path, shape):
    from matplotlib import pyplot

    given = case(shape)
    found = written(tmp_path, [given])
    assert list(found) == ["image", "reference", "prediction"]
    center = (14, 11, 5)[: len(shape)]
    for name, key in (("reference", "label"), ("prediction", "pred")):
        expected = three_planes(given["image"][0].numpy(), given[key][0].numpy(), AFFINE, LABELS, None, name, center)
        np.testing.assert_array_equal(found[name], drawn(expected))
        # the second label's colour, although there is nothing of the first
        assert (has_color(found[name], 0), has_color(found[name], 1)) == (False, True)
    assert not has_color(found["image"], 1)
    assert found["image"].max() > 200  # the scan itself is there
    assert not np.array_equal(found["reference"], found["prediction"])
    assert pyplot.get_fignums() == []


def test_the_patients_right_is_on_the_left(tmp_path):
    found = written(tmp_path, [case()])
    overlay = (found["reference"] != case_picture_without_labels()).any(-1)
    overlay[int(0.85 * len(overlay)) :] = False  # the legend
    axial = overlay[:, : overlay.shape[1] // 3]
    # voxels 12 to 16 of 20, counted from the right: in the right half of the picture, as AFFINE runs to the left
    assert 0.6 < np.argwhere(axial)[:, 1].mean() / axial.shape[1] < 0.85


def case_picture_without_labels() -> np.ndarray:
    given = case()
    label = given["label"][0].numpy()
    figure = three_planes(given["image"][0].numpy(), label, AFFINE, LABELS, None, "reference", (14, 11, 5))
    for axes in figure.axes:
        axes.images[1].remove()
        for outline in axes.collections[:]:
            outline.remove()
    return drawn(figure)


def test_a_resampled_scan_is_shown_on_the_grid_of_the_reference():
    given = case()
    coarse = Spacing((2.0, 2.0, 2.0), padding_mode="border")(given["image"])
    assert coarse.shape != given["label"].shape
    figures = case_figures([{**given, "image": coarse}], LABELS)
    assert list(figures) == ["image", "reference", "prediction"]
    shown = figures["reference"].axes[0].images[0].get_array()
    assert shown.shape == (24, 20)  # the axial plane of the reference, rows towards the back
    assert abs(float(np.median(shown)) - 1.05) < 0.05


def test_items_that_cannot_be_drawn_are_left_out():
    given = case()
    plain = {name: item.as_tensor() for name, item in given.items()}
    assert list(case_figures([plain])) == ["image", "reference", "prediction"]
    assert case_figures(None) == case_figures([]) == {}
    assert case_figures([{"image": plain["image"], "pred": plain["pred"]}]) == {}
    batch = {"image": plain["image"][None], "label": plain["label"][None], "pred": None, "loss": torch.tensor(1.0)}
    assert list(case_figures(batch)) == ["image", "reference"]
    assert case_figures([{**plain, "image": plain["image"][:, ::2]}]) == {}


def test_logits_are_shown_as_the_label_of_the_largest_one():
    given = case()
    logits = torch.nn.functional.one_hot(given["pred"][0].as_tensor().long(), 3).movedim(-1, 0).float()
    figures = case_figures([{**given, "pred": MetaTensor(logits, affine=torch.as_tensor(AFFINE))}], LABELS)
    np.testing.assert_array_equal(drawn(figures["prediction"]), drawn(case_figures([given], LABELS)["prediction"]))


def test_empty_cases_and_scans_of_nan_are_drawn():
    given = case()
    empty = {name: item * 0 for name, item in given.items()}
    assert len(case_figures([empty], LABELS)) == 3
    assert len(case_figures([{**given, "image": given["image"] * float("nan")}], LABELS)) == 3


FULL_DISK = """
import resource, signal, sys
import torch
from ignite.engine import Engine
from medseg.training import TensorBoardHandler

network = torch.nn.Linear(1, 1)
trainer = Engine(lambda *_: {"loss": torch.tensor(1.0)})
TensorBoardHandler(sys.argv[1], torch.optim.SGD(network.parameters(), lr=1.0), network=network).attach(trainer)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))  # like a full disk: no file may grow beyond 10 bytes
print("steps:", trainer.run([0] * 50, max_epochs=4).iteration)
"""


def test_a_training_goes_on_without_events_on_a_full_disk(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "steps: 200" in done.stdout
    assert done.stderr.count("TensorBoard's events end here") == 1
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
