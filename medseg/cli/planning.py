"""The command `medseg plan`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from medseg.cli.running import Json, check_out_dir, print_json


def plan(
    data: Annotated[
        Path, typer.Argument(help="Folder of the data set in any usual layout, or a manifest in it.", metavar="DATA")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the new bundle.")],
    manifest: Annotated[
        str | None, typer.Option(help="Name or file of its manifest. Default: the layout of the folder.")
    ] = None,
    memory: Annotated[
        str, typer.Option(help="Memory for a training: of the process on a CPU, of the device on a GPU.")
    ] = "8GB",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Device to plan for.")] = "auto",
    hours: Annotated[float, typer.Option(help="Time for one training.")] = 2.0,
    network: Annotated[
        Literal["unet", "unet3d", "unetplusplus", "unetr", "residual_encoder"],
        typer.Option(help="Form of the network."),
    ] = "unet",
    configuration: Annotated[
        Literal["2d", "3d"] | None, typer.Option(help="2d segments volumes slice by slice. Default: as the images.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a data set and write a bundle for it, with a reason for each value."""
    check_out_dir(out)
    from rich.console import Console
    from rich.progress import Progress

    from medseg.planning import plan_bundle

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=as_json or not console.is_terminal) as progress:
        task = progress.add_task("measuring")

        def on_case(case: str, number: int, total: int) -> None:
            progress.update(task, completed=number, total=total, description=case)

        made = plan_bundle(
            data,
            out,
            manifest=manifest,
            memory=memory,
            device=device,
            hours=hours,
            network=network,
            configuration=configuration,
            on_case=on_case,
        )
    planned = made.planned
    if as_json:
        estimates = {name: asdict(work) for name, work in made.estimates.items()}
        facts = {
            "bundle": str(made.folder),
            "decisions": [vars(decision) for decision in planned.decisions],
            "warnings": list(planned.warnings),
            "estimates": estimates,
        }
        print_json(facts)
        return
    width = max(len(decision.name) for decision in planned.decisions)
    for decision in planned.decisions:
        print(f"{decision.name:{width}}  {decision.value}")
    for name, work in made.estimates.items():
        print(f"{name}: {work}")
    for warning in planned.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{made.folder}/docs/README.md gives the reason of each value and the commands to train")
