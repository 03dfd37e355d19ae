"""Compare the whole prediction of one scan, from file to file, with a MONAI bundle and with nnU-Net.

Every method reads the same generated CT-like volume and writes a label map, with the same network, weights, tiles and
overlap. The time to build and compile models is reported separately. MONAI's method is the inference config of the
model zoo: LoadImage, Orientation, Spacing, NormalizeIntensity, sliding_window_inference (gaussian) in eager fp32,
AsDiscrete, SaveImage. Its network runs layer by layer, as MONAI's networks do.

nnU-Net's network (MONAI's DynUNet with the same stages) runs in nnU-Net's own predictor, if that is installed, and with
OpenVINO in MONAI's sliding window, because any tool could use OpenVINO. "network alone" is the number of tiles × the
time of one tile.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter

import nibabel as nib
import numpy as np
import SimpleITK
import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import DynUNet
from monai.transforms import (
    AsDiscrete,
    Compose,
    EnsureChannelFirst,
    LoadImage,
    NormalizeIntensity,
    Orientation,
    SaveImage,
    Spacing,
)
from nnunet_peer import NNUNetPeer, is_installed
from scipy.ndimage import gaussian_filter
from timing import Row
from unfolded import unfolded

from medseg import Plan
from medseg.inference import Predictor
from medseg.inference.backends.openvino_backend import OpenVINOBackend
from medseg.inference.backends.torch_backend import Backend
from medseg.inference.tiling.tiles import lay_tiles
from medseg.networks import create
from medseg.networks.precision import Precision, has_fast_bf16

SPACING = 1.5
CHANNELS = [32, 64, 128, 256, 320]
BASELINE = "MONAI bundle, torch fp32"


def ct_like(size: int, seed: int = 0) -> np.ndarray:
    """Generate a volume in Hounsfield units: air, and a body with fat, organs, bone and noise."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, size, dtype=np.float32)] * 3, indexing="ij", sparse=True)
    texture = gaussian_filter(rng.normal(size=(size,) * 3).astype(np.float32), size / 32)
    texture /= texture.std()
    body = ((x / 0.85) ** 2 + (y / 0.65) ** 2 + 0 * z) < 1
    image = np.where(body, 40 + 40 * np.sign(texture) - 140 * (texture < -1) + 600 * (texture > 2), -1000)
    return (image + rng.normal(scale=12, size=image.shape)).astype(np.int16)


def bench_command(size: int, tile: int, classes: int, repeats: int) -> list[Row]:
    """Measure the seconds of each method, its ratio to its network alone, and MONAI's time divided by it."""
    torch.manual_seed(0)
    network = create(
        "unet3d_cicek2016", in_channels=1, out_channels=classes, channels=CHANNELS, norm="instance", norm_affine=True,
        activation="leaky_relu", padding="same", conv_bias=False,
    ).eval()  # fmt: skip
    nnunet = DynUNet(
        3, 1, classes, [3] * 5, [1, 2, 2, 2, 2], [2] * 4, filters=CHANNELS, res_block=False, norm_name="instance"
    ).eval()  # fmt: skip
    plan = Plan(
        name="bench_segmentation", spatial_dims=3, channels=[{"name": "ct", "modality": "CT"}],
        labels={"background": 0, **{f"organ_{n}": n for n in range(1, classes)}}, orientation="RAS",
        spacing=[SPACING] * 3, normalization=[{"scheme": "z_score"}], patch=[tile] * 3, tile=[tile] * 3, overlap=0.5,
        network={"name": "unet3d_cicek2016"},
    )  # fmt: skip
    shape = (1, 1, *plan.tile)
    num_tiles = lay_tiles((size,) * 3, plan.tile, 0.5).num_tiles
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder) / "scan.nii.gz"
        nib.save(nib.Nifti1Image(ct_like(size), np.diag([SPACING] * 3 + [1.0])), scan)
        plain = unfolded(network)
        networks: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {BASELINE: plain}
        commands: dict[str, Callable[[], Path]] = {BASELINE: lambda: predict_by_monai(scan, plain, tile, "monai")}
        building: dict[str, float] = {}
        precisions: list[Precision] = ["fp32", "bf16"] if has_fast_bf16(torch.device("cpu")) else ["fp32"]
        for backend in ["torch", "openvino"] if find_spec("openvino") else ["torch"]:
            for precision in precisions:
                name = f"medseg, {backend} {precision}"
                begin = perf_counter()
                predictor = Predictor(network, plan, "cpu", backend=backend, precision=precision)  # type: ignore[arg-type]
                building[name] = perf_counter() - begin
                networks[name] = predictor.backend
                commands[name] = lambda p=predictor, n=name: p.predict(scan).save(Path(folder) / f"{n}.nii.gz")  # type: ignore[misc]
        if is_installed():
            name = "nnU-Net's predictor, torch fp32"
            nnunet_peer = NNUNetPeer(nnunet, plan.tile, classes)
            networks[name], commands[name] = nnunet, lambda: predict_by_nnunet(scan, nnunet_peer)
        if find_spec("openvino"):
            for precision in precisions:
                name = f"nnU-Net's network in MONAI, openvino {precision}"
                begin = perf_counter()
                peer = OpenVINOBackend(nnunet, shape, precision, blend_features=False)
                building[name] = perf_counter() - begin
                networks[name] = peer
                commands[name] = lambda p=peer, n=precision: predict_by_monai(scan, p, tile, f"nnunet_{n}")  # type: ignore[misc]
        alone = {name: num_tiles * _tile_seconds(run, shape) for name, run in networks.items()}
        times: dict[str, list[float]] = {name: [] for name in commands}
        labels: dict[str, np.ndarray] = {}
        for _ in range(repeats):
            for name, command in commands.items():
                begin = perf_counter()
                written = command()
                times[name].append(perf_counter() - begin)
                labels[name] = np.asarray(nib.load(written).dataobj)
    topic = f"CT {size}³ file to file, {num_tiles} tiles of {tile}³, {classes} classes"
    seconds = {name: median(values) for name, values in times.items()}
    rows = []
    for name, taken in seconds.items():
        same = (labels[name] == labels[BASELINE]).mean()
        agreement = "" if name == BASELINE or name.startswith("nnU-Net") else f", labels agree {same:.5f}"
        built = f", building {building[name]:.1f} s" if name in building else ""
        rows.append(Row(topic, f"{name}{agreement}{built}", taken, seconds[BASELINE] / taken, "times MONAI's speed"))
        rows.append(Row(topic, f"{name}: whole / network alone", alone[name], taken / alone[name], "network alone"))
    return rows


def predict_by_monai(scan: Path, network: Callable[[torch.Tensor], torch.Tensor], tile: int, name: str) -> Path:
    """Segment a scan with the transforms of a MONAI bundle's inference config."""
    prepare = Compose(
        [
            LoadImage(),
            EnsureChannelFirst(),
            Orientation("RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            Spacing([SPACING] * 3, mode="bilinear"),
            NormalizeIntensity(nonzero=False),
        ]
    )
    image = prepare(scan)
    with torch.no_grad():
        logits = sliding_window_inference(image[None], (tile,) * 3, 1, network, 0.5, "gaussian")
    label = AsDiscrete(argmax=True)(logits[0])
    save = SaveImage(
        scan.parent / name, output_postfix="", output_dtype=np.uint8, separate_folder=False, print_log=False
    )
    save(label)
    return scan.parent / name / scan.name


def predict_by_nnunet(scan: Path, peer: NNUNetPeer) -> Path:
    """Segment a scan as nnU-Net does, with SimpleITK and a z-score. The scan has the spacing of the model already."""
    image = SimpleITK.ReadImage(str(scan))
    array = torch.from_numpy(SimpleITK.GetArrayFromImage(image).astype(np.float32))[None]
    labels = peer.labels((array - array.mean()) / array.std(), array.shape[1:], [1.0] * 3)
    written = SimpleITK.GetImageFromArray(labels.astype(np.uint8))
    written.CopyInformation(image)
    path = scan.parent / "nnunet_predictor.nii.gz"
    SimpleITK.WriteImage(written, str(path), True)
    return path


def _tile_seconds(
    run: Callable[[torch.Tensor], torch.Tensor] | Backend, shape: tuple[int, ...], passes: int = 3
) -> float:
    """Measure the median seconds of a forward pass over one tile."""
    tile = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    times = []
    with torch.inference_mode():
        run(tile)
        for _ in range(passes):
            begin = perf_counter()
            run(tile)
            times.append(perf_counter() - begin)
    return median(times)
