"""The `medseg` command: one thin function a command; each imports what it needs when it runs."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from medseg.errors import EvaluationError, MedsegError, OptionError

app = typer.Typer(
    name="medseg",
    help="Medical volumetric segmentation on MONAI. Research use only.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="Get or adopt a dataset and verify it.", no_args_is_help=True, rich_markup_mode=None)
bundle = typer.Typer(
    help="Promote weights into a bundle, verify it, export its network.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(data, name="data")
app.add_typer(bundle, name="bundle")

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.callback()
def _options(debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False) -> None:
    pass  # `main` reads --debug itself, so that it works behind a command as well


@app.command(epilog="Example: medseg predict bundles/hippocampus_unet3d_segmentation scans/ --out predictions")
def predict(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    inputs: Annotated[list[str], typer.Argument(help="Scans: files, folders, globs.", metavar="INPUT...")],
    out: Annotated[Path, typer.Option(help="Folder the segmentations go to.")],
    weights: Annotated[
        list[Path] | None,
        typer.Option(help="Weights to use instead of the bundle's own; repeat the option for an ensemble."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    backend: Annotated[
        Literal["auto", "torch", "openvino"], typer.Option(help="What runs the network; openvino is an extra.")
    ] = "auto",
    precision: Annotated[Literal["auto", "fp32", "bf16"], typer.Option(help="Arithmetic of the network.")] = "fp32",
    max_ram: Annotated[str | None, typer.Option(help="Most memory to use, e.g. 4GB; refused if it cannot be.")] = None,
    tta: Annotated[
        Literal["none", "flip"], typer.Option(help="Average over flips the network was trained on.")
    ] = "none",
    overlap: Annotated[float | None, typer.Option(help="Overlap of tiles in [0, 1); the plan's by default.")] = None,
    format: Annotated[
        Literal["same", "nifti", "nrrd", "mha", "png", "tiff", "dicom-seg"],
        typer.Option(help="Format of the segmentations; dicom-seg is an extra and needs DICOM series."),
    ] = "same",
    save_probabilities: Annotated[bool, typer.Option(help="Save each class's probability map.")] = False,
    uncertainty: Annotated[bool, typer.Option(help="Save an entropy map and volume intervals.")] = False,
    overwrite: Annotated[
        bool, typer.Option(help="Predict again what is finished, and replace files of others.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Segment scans on their own grids."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    import medseg
    from medseg.inference import predict_files

    predictor = medseg.load(
        bundle,
        weights=weights or None,
        device=device,
        backend=backend,
        precision=precision,
        max_ram=max_ram,
        tta=tta,
        overlap=overlap,
        save_probabilities=save_probabilities,
        uncertainty=uncertainty,
    )
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as bar:
        scans, tiles = bar.add_task("scans", total=None), bar.add_task("tiles", total=None)
        predictor.on_tiles = lambda done, total: bar.update(tiles, completed=done, total=total)
        results = predict_files(
            predictor,
            inputs,
            out,
            format=format,
            overwrite=overwrite,
            on_case=lambda result, number, total: bar.update(scans, completed=number + 1, total=total),
        )
    if as_json:
        print(json.dumps([result.to_dict() for result in results], indent=2))
    else:
        has_volumes = predictor.plan.spatial_dims == 3 or predictor.plan.slice_axis is not None
        for result in results:
            # a picture has no thickness, hence no volume; a 2D network that takes volumes in slices has one
            volumes_ml = result.volumes_ml if has_volumes else {}
            volumes = " ".join(f"{name} {volume:.2f} ml" for name, volume in volumes_ml.items())
            note = f" ({result.message})" if volumes and result.message else result.message
            print(f"{result.status:8}{result.case}  {volumes}{note}")
            for warning in result.warnings:
                print(f"medseg: {result.case}: warning: {warning}", file=sys.stderr)
    failed = sum(result.status == "failed" for result in results)
    if failed:
        rest = f"; the others are in {out}" if failed < len(results) else ""
        raise MedsegError(f"{failed} of {len(results)} scans failed{rest}")


@app.command(epilog="Example: medseg evaluate predictions references --out evaluation --labels hippocampus")
def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of predicted label maps, or one file.")],
    references: Annotated[Path, typer.Argument(help="Folder of reference label maps, or one file.")],
    out: Annotated[Path, typer.Option(help="Folder for metrics.csv, summary.json and report.html.")],
    labels: Annotated[str | None, typer.Option(help="Manifest whose labels are compared.")] = None,
    against: Annotated[
        Path | None, typer.Option(help="Other predictions to compare with: a folder, or an earlier metrics.csv.")
    ] = None,
    instances: Annotated[
        Literal["components", "brats", "em"] | None, typer.Option(help="Add object metrics of this kind.")
    ] = None,
    tolerance_mm: Annotated[float, typer.Option(help="Tolerance of the NSD in mm.")] = 1.0,
    draws: Annotated[int, typer.Option(help="Bootstrap draws, at least 2000.", min=2000)] = 10000,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.", min=0)] = 0,
    allow_missing: Annotated[bool, typer.Option(help="Leave out cases with a problem instead of stopping.")] = False,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of the scans the report shows; by default as the manifest says."),
    ] = None,
    no_images: Annotated[
        bool, typer.Option("--no-images", help="Numbers only in the report: no patient images.")
    ] = False,
    anonymise_ids: Annotated[bool, typer.Option(help="Number cases in the report instead of naming them.")] = False,
    as_json: Json = False,
) -> None:
    """Compare predictions with references and write a report."""
    from medseg.evaluation import evaluate as run
    from medseg.reporting import write_report

    if images is not None and not images.exists():
        raise OptionError(f"{images}: no such folder of scans; correct --images")
    report = out / "report.html"
    try:
        result = run(
            predictions,
            references,
            out=out,
            labels=labels,
            against=against,
            allow_missing=allow_missing,
            tolerance_mm=tolerance_mm,
            instances=instances,
            num_draws=draws,
            seed=seed,
            progress=not as_json,
        )
    except EvaluationError as error:
        if allow_missing:  # a run over many cases leaves a page that says why there is nothing to see
            write_report(None, report, failure=str(error))
        raise
    written = write_report(
        result,
        report,
        images=images,
        labels=labels,
        with_images=not no_images,
        anonymise_ids=anonymise_ids,
        progress=not as_json,
    )
    if as_json:
        print(json.dumps(result.summary, indent=2))
    else:
        result.print()
        print(f"{written.path}  {written.megabytes:.1f} MB")
        for sentence in written.left_out:
            print(f"medseg: report: {sentence}", file=sys.stderr)


@data.command("prepare", epilog="Example: medseg data prepare hippocampus --root data/hippocampus")
def prepare(
    name: Annotated[str, typer.Argument(help="Name of a shipped manifest, or a manifest file.")],
    root: Annotated[Path, typer.Option(help="Folder the dataset goes to.")],
    source: Annotated[Path | None, typer.Option("--from", help="Adopt this folder instead of downloading.")] = None,
    as_json: Json = False,
) -> None:
    """Download, adopt or generate a dataset and verify every case."""
    from medseg.datasets import prepare as run

    report = run(name, root, source=source)
    print(json.dumps(report.to_dict(), indent=2) if as_json else "\n".join(report.lines()))
    if not report.is_usable:
        broken = f"{len(report.problems)} problems above" if report.problems else "no case is there"
        raise MedsegError(f"{name}: {broken}; {len(report.present)} cases are in place under {root}")


@bundle.command(
    "promote", epilog="Example: medseg bundle promote bundles/hippocampus_unet3d_segmentation --from runs/a"
)
def promote(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    run: Annotated[Path, typer.Option("--from", help="output_dir of a finished training.")],
) -> None:
    """Make a run's weights the bundle's own."""
    from medseg.bundle import promote as promote_run

    promoted = promote_run(bundle, run)
    print(f"{promoted.weights}  {promoted.megabytes:.1f} MB  sha256 {promoted.sha256}")


@bundle.command("verify", epilog="Example: medseg bundle verify bundles/hippocampus_unet3d_segmentation")
def verify(bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")], as_json: Json = False) -> None:
    """Check a bundle's files against each other and run its network once."""
    from medseg.bundle import verify as verify_bundle

    checks = verify_bundle(bundle)
    if as_json:
        print(json.dumps([vars(check) for check in checks], indent=2))
    else:
        for check in checks:
            print(f"{'ok' if check.passed else 'FAILED':8}{check.name}: {check.message}")
    if not all(check.passed for check in checks):
        raise MedsegError(f"{bundle}: {sum(not c.passed for c in checks)} of {len(checks)} checks failed")


@bundle.command(
    "export",
    epilog="Example: medseg bundle export bundles/hippocampus_unet3d_segmentation --format onnx --out net.onnx",
)
def export(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    format: Annotated[Literal["torchscript", "onnx", "safetensors"], typer.Option(help="What to write.")],
    out: Annotated[Path, typer.Option(help="The file; its ending must be the format's.")],
) -> None:
    """Write the network with its weights for other runtimes."""
    from medseg.bundle import export as export_bundle

    print(export_bundle(bundle, format, out))


@app.command(epilog="Example: medseg demo --out demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    epochs: Annotated[int | None, typer.Option(help="Epochs of training; fewer are faster and worse.")] = None,
) -> None:
    """Generate data, train, predict, evaluate: the whole pipeline on this machine."""
    from medseg.demo import run

    run(out, epochs=epochs)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: errors of the user's input become one line and exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an ASCII terminal shows "?" for "×" instead of stopping the command
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    try:
        app([a for a in given if a != "--debug"], standalone_mode=True)
    except MedsegError as error:
        if debug:
            raise
        print(f"medseg: {error}", file=sys.stderr)
        raise SystemExit(1) from None
