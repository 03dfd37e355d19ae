"""The command `medseg evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from medseg.cli.running import Json, check_out_dir, paused_collector, print_json
from medseg.errors import EvaluationError, OptionError


def evaluate(
    predictions: Annotated[
        Path, typer.Argument(help="Folder of predicted label maps, or one file.", metavar="PREDICTIONS")
    ],
    references: Annotated[
        Path, typer.Argument(help="Folder of reference label maps, or one file.", metavar="REFERENCES")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for metrics.csv, summary.json and report.html.")],
    labels: Annotated[
        str | None,
        typer.Option(help="Names of the labels: a manifest, a raw nnU-Net folder or a bundle. Default: the values."),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Other predictions to compare with: a folder, or an earlier metrics.csv.")
    ] = None,
    instances: Annotated[
        Literal["components", "brats", "em"] | None, typer.Option(help="Add the object metrics of this kind.")
    ] = None,
    tolerance_mm: Annotated[float, typer.Option(help="Tolerance of the NSD in mm.")] = 1.0,
    draws: Annotated[int, typer.Option(help="Number of bootstrap draws, at least 2000.", min=2000)] = 10000,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.", min=0)] = 0,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out cases with a problem instead of stopping.")
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of the scans that the report shows. Default: the images of the manifest."),
    ] = None,
    no_images: Annotated[
        bool, typer.Option("--no-images", help="Write a report with numbers only, without patient images.")
    ] = False,
    anonymise_ids: Annotated[
        bool, typer.Option("--anonymise-ids", help="Number the cases in the report instead of naming them.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare predictions with references and write a report."""
    check_out_dir(out)
    if images is not None and not images.exists():
        raise OptionError(f"{images}: no such folder of scans; correct --images")
    with paused_collector():
        from medseg.evaluation import evaluate as evaluate_files

    label_names = _label_names(labels)
    report = out / "report.html"
    try:
        result = evaluate_files(
            predictions,
            references,
            out_dir=out,
            labels=label_names,
            against=against,
            allow_missing=allow_missing,
            tolerance_mm=tolerance_mm,
            instances=instances,
            num_draws=draws,
            seed=seed,
            progress=not as_json,
        )
    except EvaluationError as error:
        if allow_missing:  # scripts expect a report, so write one that gives the reason
            from medseg.reporting import write_report

            write_report(None, report, failure=str(error))
        raise
    # Imported after the comparison, because it imports matplotlib.
    from medseg.reporting import write_report

    written = write_report(
        result,
        report,
        images=images,
        labels=label_names,
        with_images=not no_images,
        anonymise_ids=anonymise_ids,
        progress=not as_json,
    )
    if as_json:
        print_json(result.summary)
    else:
        result.print()
        print(f"{written.path}  {written.megabytes:.1f} MB")
        for sentence in written.left_out:
            print(f"medseg: report: {sentence}", file=sys.stderr)


def _label_names(labels: str | None) -> Mapping[str, Any] | str | None:
    """Return the labels of a bundle or of its plan.json; anything else is a manifest, which the evaluation reads."""
    if labels is None:
        return None
    plan_file = Path(labels) if Path(labels).name == "plan.json" else Path(labels, "configs", "plan.json")
    if not plan_file.is_file():
        return labels
    from medseg.plan import read_plan

    return read_plan(plan_file).structures
