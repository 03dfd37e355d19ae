"""Commands of `medseg bundle`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from medseg.cli.running import Bundle, Json, ReportedError, check_bundle, print_json


def promote(
    bundle: Bundle,
    run: Annotated[Path, typer.Option("--from", help="The output_dir of a finished training run.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the training data, for the bundle's fingerprint and the calibration."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Copy the weights of a training run into the bundle."""
    check_bundle(bundle)
    from medseg.bundle import promote as promote_run

    promoted = promote_run(bundle, run, data)
    if as_json:
        facts = {"weights": str(promoted.weights), "megabytes": promoted.megabytes, "sha256": promoted.sha256}
        print_json({**facts, "calibration": promoted.calibration})
    else:
        print(f"{promoted.weights}  {promoted.megabytes:.1f} MB  sha256 {promoted.sha256}")
        if data is not None:
            print(f"calibration: {promoted.calibration}")


def import_model(
    source: Annotated[
        Path, typer.Argument(help="Folder of a model of nnU-Net 2, or of a MONAI bundle.", metavar="FOLDER")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the new bundle.")],
    fold: Annotated[
        list[str] | None,
        typer.Option(help="Fold of nnU-Net, or all. Default: every numbered fold; several become an ensemble."),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="Name of the weights. Default: checkpoint_final.pth of nnU-Net, or what a MONAI bundle loads."
        ),
    ] = None,
    trainer: Annotated[
        str | None,
        typer.Option(help="Name of a trainer of your own, to confirm that it builds the network of plans.json."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn a model of another program into a bundle, without running anything in it."""
    from medseg.bundle import import_bundle

    bundle = import_bundle(source, out, folds=fold or (), checkpoint=checkpoint, trainer=trainer)
    digests = [sha256 for _, sha256 in bundle.members]
    if as_json:
        print_json({"bundle": str(bundle.path), "weights_sha256": digests})
    else:
        plan = bundle.plan
        print(f"{bundle.path}  {plan.network['name']}, {len(digests)} set(s) of weights, labels {plan.label_names}")


def fingerprint(
    bundle: Bundle,
    data: Annotated[Path, typer.Option(help="Folder of the data set that the network was trained on.")],
    manifest: Annotated[
        str | None, typer.Option(help="Name or file of its manifest. Default: that of the bundle's train.json.")
    ] = None,
    fold: Annotated[str, typer.Option(help="The fold that was not trained on, or all.")] = "all",
    whole_scans: Annotated[
        str, typer.Option(help="Name of a bundle for whole scans, if this one was trained on crops.")
    ] = "",
) -> None:
    """Describe the training cases in models/fingerprint.json, so that unlike results are called suspicious."""
    check_bundle(bundle)
    from medseg.bundle import write_fingerprint

    found = write_fingerprint(bundle, data, manifest, fold, whole_scans)
    for name, label in found.labels.items():
        sizes, unit = (label.volume_ml, "ml") if label.volume_ml else (label.share, "of the image")
        quantiles = ", ".join(f"{key} {value:.2f}" for key, value in sizes.items())
        print(f"{name}: {quantiles} {unit}; {label.absent} of {found.cases} without; up to {label.pieces} pieces")


def quantize(
    bundle: Bundle,
    data: Annotated[Path, typer.Option(help="Folder of the data set that the network was trained on.")],
    manifest: Annotated[
        str | None, typer.Option(help="Name or file of its manifest. Default: that of the bundle's train.json.")
    ] = None,
    fold: Annotated[
        str | None,
        typer.Option(help="Fold to measure the Dice on. Default: the one that the training left out."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Prepare the bundle for prediction in int8, which is faster on CPUs, if that costs no accuracy."""
    check_bundle(bundle)
    from medseg.bundle import quantize as quantize_bundle

    found = quantize_bundle(bundle, data, manifest, fold)
    if as_json:
        print_json(found.to_dict())
        return
    lost = found.lost
    interval = "" if lost.patients < 2 else f" (95 % interval {lost.low:+.5f} to {lost.high:+.5f})"
    seen = ", which the weights have seen" if found.is_seen else ""
    print(f"{bundle}: {found.num_layers} convolutions in int8, {found.speedup:.2f} times as fast as {found.other}")
    print(
        f"mean Dice of {lost.n} cases ({found.data}{seen}): fp32 {found.dice['fp32']:.4f}, int8 "
        f"{found.dice['int8']:.4f}; lost {lost.value:+.5f}{interval}"
    )


def verify(bundle: Bundle, as_json: Json = False) -> None:
    """Check that the files of a bundle agree and that its network runs."""
    check_bundle(bundle)
    from medseg.bundle import verify as verify_bundle

    checks = verify_bundle(bundle)
    if as_json:
        print_json([vars(check) for check in checks])
    else:
        for check in checks:
            print(f"{'ok' if check.passed else 'FAILED':8}{check.name}: {check.message}")
    num_failed = sum(not check.passed for check in checks)
    if num_failed:
        raise ReportedError(f"{bundle}: {num_failed} of {len(checks)} checks failed")


def export(
    bundle: Bundle,
    format: Annotated[Literal["torchscript", "onnx", "safetensors"], typer.Option(help="Format of the file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write, with the ending of the format.")],
) -> None:
    """Write the network with its weights for another runtime."""
    check_bundle(bundle)
    from medseg.bundle import export as export_bundle

    print(export_bundle(bundle, format, out))
