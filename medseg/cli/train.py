"""The command `medseg train`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from medseg.cli.running import Bundle, Json, check_bundle, check_out_dir, print_json
from medseg.errors import OptionError


def train(
    bundle: Bundle,
    options: Annotated[
        list[str] | None,
        typer.Argument(
            help="Values of the configs, such as max_epochs=50 or loss#batch_dice=True.", metavar="KEY=VALUE"
        ),
    ] = None,
    data: Annotated[Path, typer.Option(help="Folder of the data set.")] = ...,  # type: ignore[assignment]
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run. Default: runs/BUNDLE/fold_FOLD.")
    ] = None,
    fold: Annotated[
        str | None,
        typer.Option(help="Fold to validate on; all trains on every fold, all-folds trains a network for each."),
    ] = None,
    hours: Annotated[
        float | None, typer.Option(help="Time for everything; the number of epochs is chosen to fit.")
    ] = None,
    recipe: Annotated[
        list[str] | None, typer.Option(help="Recipe of the bundle, such as nnunet; repeat the option for several.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="Number of GPUs, with one process for each.")] = None,
    processes: Annotated[int | None, typer.Option(help="Number of processes on the CPU.")] = None,
    promote: Annotated[
        bool, typer.Option("--promote", help="Copy the weights into the bundle when the training is finished.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a bundle. Repeat the command to continue a training that was interrupted."""
    report = partial(print, file=sys.stderr if as_json else sys.stdout, flush=True)
    check_bundle(bundle)
    if out is not None:
        check_out_dir(out)
    given = _named(options or [])
    if fold == "all-folds" and promote:
        raise OptionError("--promote: all-folds writes a bundle of its own; leave --promote out")
    from medseg.training import train as train_bundle
    from medseg.training import train_folds
    from medseg.training.budget_handler import seconds_since_start

    arguments: dict[str, Any] = {
        "hours": hours,
        "options": given,
        "recipes": recipe or [],
        "gpus": gpus,
        "processes": processes,
        "report": report,
        "elapsed_seconds": seconds_since_start(),
    }
    try:
        if fold == "all-folds":
            runs = train_folds(bundle, data, out, **arguments)
        else:
            runs = [train_bundle(bundle, data, out, fold=fold, **arguments)]
    except KeyboardInterrupt as interrupt:
        print(f"medseg: {interrupt}", file=sys.stderr)
        raise
    result = [run.to_dict() for run in runs]
    for run in runs:
        dice = ", ".join(f"{name} {value:.4f}" for name, value in run.validation.items() if value is not None)
        report(f"{run.weights}: {run.epochs} epochs{', ' + dice if dice else ''}")
    fingerprinted = data if _has_fingerprint(bundle) else None
    written = None
    if fold == "all-folds":
        from medseg.bundle import write_ensemble

        written = write_ensemble(bundle, [run.out_dir for run in runs], data=fingerprinted, manifest=runs[0].manifest)
        report(f"{written}: bundle with the {len(runs)} networks")
    elif promote:
        from medseg.bundle import promote as promote_run

        written = bundle
        promoted = promote_run(bundle, runs[0].out_dir, fingerprinted, runs[0].manifest)
        report(f"{promoted.weights}: promoted, sha256 {promoted.sha256}")
    if as_json:
        print_json({"runs": result, "bundle": None if written is None else str(written)})


def _named(words: Sequence[str]) -> dict[str, str]:
    """Return the values of words such as max_epochs=50, by key."""
    named = {}
    for word in words:
        key, sign, value = word.removeprefix("--").partition("=")
        if not sign or not key or not value:
            raise OptionError(f"{word}: must be KEY=VALUE, such as max_epochs=50; see the keys of train.json")
        named[key.replace("::", "#")] = value
    return named


def _has_fingerprint(bundle: Path) -> bool:
    """Return True if a fingerprint can be computed: it is for 3D images."""
    from medseg.plan import read_plan

    return read_plan(bundle / "configs" / "plan.json").spatial_dims == 3
