"""Measure training samples per second of the hippocampus bundle, augmentation included, beside MONAI's stock trainer.

    python benchmarks/bench_training.py [--cases 8] [--repeats 5] [--workers 0] [--precision auto]

Both trainers use the same network, loss, optimizer, patch and batch, and all threads that torch has. medseg: the
bundle's own random transforms, `SeededDataLoader`, and `SupervisedUpdate` (channels last, the precision of its rule,
averaged weights, steps that are not finite skipped). MONAI: `SupervisedTrainer` as it comes (fp32, eager) with MONAI's
equivalents of the transforms: `RandCropByLabelClassesd`, `Rand3DElasticd` with rotation and scaling, and the same
intensity transforms. MONAI's networks run upsampling, concatenation and convolution as separate layers, and so does the
network in MONAI's row; a further row gives medseg's folded network to MONAI's trainer. MONAI's trainer runs in separate
processes, because medseg's trainer tells its process to keep freed memory; one more row gives that to MONAI. The
generated cases have the size of the dataset's (36×50×35) and are cached, so no disk is measured. One call is one epoch:
every sample is drawn anew. Further rows switch medseg's parts off one at a time; the last trains with one process per
core on the same batch, as `multi_gpu_train.json` does. Medians of interleaved repeats.
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data import CacheDataset, DataLoader, MetaTensor
from monai.engines import SupervisedTrainer
from monai.transforms import Compose, Rand3DElasticd, RandCropByLabelClassesd, SpatialPadd
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from medseg.inference.memory import keep_freed_memory
from medseg.losses import WeightedDiceCELoss
from medseg.plan import Plan, read_plan
from medseg.training import SeededDataLoader, SupervisedUpdate, resolve_precision
from medseg.transforms import LabelVoxelIndexd

sys.path.insert(0, str(Path(__file__).parent))
from own_process import OwnProcess, SideBySide
from timing import Row, interleaved_medians, print_table
from unfolded import unfolded

CONFIGS = Path(__file__).parents[1] / "bundles" / "hippocampus_unet3d_segmentation" / "configs"
KEYS = ["image", "label"]
Trainer = Callable[[], object]


def cases(number: int) -> list[dict[str, MetaTensor]]:
    generator = torch.Generator().manual_seed(0)
    generated = []
    for _ in range(number):
        label = torch.zeros(1, 36, 50, 35, dtype=torch.uint8)
        label[:, 10:26, 10:25, 10:25], label[:, 10:26, 25:40, 10:25] = 1, 2
        image = torch.randn(label.shape, generator=generator) + label
        generated.append({"image": MetaTensor(image), "label": MetaTensor(label)})
    return generated


def bundle_transforms(plan: Plan) -> tuple[list[Any], list[Any]]:
    """Return the bundle's crop and deformation, and its intensity transforms."""
    parser = ConfigParser(ConfigParser.load_config_file(str(CONFIGS / "train.json")))
    parser["bundle_root"] = str(CONFIGS.parent)
    crop = parser.get_parsed_content("train#crop_transforms#crop")
    deform, *intensity = parser.get_parsed_content("train#random_transforms").values()
    return [crop, deform], intensity


def monai_transforms(plan: Plan, spatial: list[Any]) -> list[Any]:
    """Return MONAI's transforms that are nearest to the bundle's crop and deformation in frequency and extent."""
    size = tuple(plan.patch)
    crop = RandCropByLabelClassesd(
        KEYS, "label", size, list(plan.crop_ratios or [1] * plan.out_channels), plan.out_channels, 1
    )
    deform = Rand3DElasticd(
        KEYS, sigma_range=(6, 8), magnitude_range=(50, 150), prob=0.7, rotate_range=(0.35,) * 3,
        scale_range=(0.25,) * 3, spatial_size=size, mode=("bilinear", "nearest"), padding_mode="border",
    )  # fmt: skip
    return [SpatialPadd(KEYS, size), crop, deform]


def trainer(
    plan: Plan, loader: DataLoader, is_folded: bool = True, is_member: bool = False, precision: str | None = None
) -> Trainer:
    """Train with `SupervisedUpdate` in a precision, or with MONAI's own step if there is none."""
    torch.manual_seed(0)
    network = plan.create_network() if is_folded else unfolded(plan.create_network())
    update = None
    if precision is not None:
        network = network.to(memory_format=torch.channels_last_3d)
        update = SupervisedUpdate(network, precision, average_decay=0.998)
    engine = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=loader,
        network=DistributedDataParallel(network) if is_member else network,
        optimizer=torch.optim.AdamW(network.parameters(), lr=1e-3),
        loss_function=WeightedDiceCELoss(),
        iteration_update=update.train if update else None,
        decollate=False,
    )
    return engine.run


def ours(arguments: argparse.Namespace) -> DataLoader:
    """Load the bundle's batches: seeded samples of its own transforms."""
    spatial, intensity = bundle_transforms(read_plan(CONFIGS / "plan.json"))
    transforms = Compose([LabelVoxelIndexd("label"), *spatial, *intensity])
    dataset = CacheDataset(cases(arguments.cases), transforms, copy_cache=False, num_workers=0, progress=False)
    return SeededDataLoader(dataset, batch_size=arguments.batch, num_workers=arguments.workers)


def stock(arguments: argparse.Namespace) -> DataLoader:
    """Load the same cases through MONAI's transforms and its loader."""
    plan = read_plan(CONFIGS / "plan.json")
    spatial, intensity = bundle_transforms(plan)
    transforms = Compose([*monai_transforms(plan, spatial), *intensity])
    dataset = CacheDataset(cases(arguments.cases), transforms, num_workers=0, progress=False)
    return DataLoader(dataset, batch_size=arguments.batch, shuffle=True, num_workers=arguments.workers)


def stock_trainer(arguments: argparse.Namespace, is_folded: bool, keeps_memory: bool) -> Trainer:
    warnings.filterwarnings("ignore")
    if keeps_memory:
        keep_freed_memory(True)
    return trainer(read_plan(CONFIGS / "plan.json"), stock(arguments), is_folded)


def member_trainer(arguments: argparse.Namespace, rank: int, processes: int, rendezvous: str) -> Trainer:
    """Train in one process of a group, with its share of the batch and of the threads."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=processes)
    share = argparse.Namespace(**{**vars(arguments), "batch": arguments.batch // processes})
    plan = read_plan(CONFIGS / "plan.json")
    return trainer(plan, ours(share), is_member=True, precision=arguments.precision)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", default="auto")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    plan = read_plan(CONFIGS / "plan.json")
    precision = arguments.precision
    whole = f"medseg ({arguments.precision})"
    reference = "MONAI stock (fp32)"
    processes = min(arguments.batch, torch.get_num_threads())
    rendezvous = str(Path(tempfile.mkdtemp()) / "group")
    members = [OwnProcess(member_trainer, arguments, rank, processes, rendezvous) for rank in range(processes)]
    work: dict[str, Trainer] = {
        whole: trainer(plan, ours(arguments), precision=precision),
        reference: OwnProcess(stock_trainer, arguments, False, False),
        "MONAI, freed memory kept": OwnProcess(stock_trainer, arguments, False, True),
        "MONAI, medseg's folded network": OwnProcess(stock_trainer, arguments, True, False),
        "medseg, fp32": trainer(plan, ours(arguments), precision="fp32"),
        "medseg, layers one by one": trainer(plan, ours(arguments), False, precision=precision),
        "medseg, MONAI's transforms": trainer(plan, stock(arguments), precision=precision),
        f"medseg ({arguments.precision}), {processes} processes": SideBySide(*members),
        "medseg, samples alone": partial(list, ours(arguments)),
        "MONAI, samples alone": partial(list, stock(arguments)),
    }
    for elsewhere in work.values():
        if isinstance(elsewhere, OwnProcess | SideBySide):
            elsewhere.ready()
    seconds = interleaved_medians(work, arguments.repeats)
    rows = [
        Row("training", name, time / arguments.cases, seconds[reference] / time, f"speed-up over {reference}, a sample")
        for name, time in seconds.items()
    ]
    print_table(rows)
    ours_a_second, stock_a_second = (arguments.cases / seconds[name] for name in (whole, reference))
    print(f"\nprecision: {resolve_precision(precision, 'cpu')}")
    print(f"{whole}: {ours_a_second:.2f} samples/s; {reference}: {stock_a_second:.2f} samples/s")
    print(f"ratio {seconds[reference] / seconds[whole]:.2f} with {arguments.workers} workers")


if __name__ == "__main__":
    main()
