"""The command `medseg doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.running import Json, ReportedError, check_out_file, print_json


def doctor(
    data: Annotated[
        str, typer.Argument(help="Folder of the data set in any usual layout, or a manifest.", metavar="DATA")
    ],
    manifest: Annotated[
        str | None, typer.Option(help="Read the folder DATA as this manifest says: a file or a shipped manifest.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="Write an HTML page with a picture of each offender to this file.")
    ] = None,
    fix: Annotated[Path | None, typer.Option(help="Write a corrected copy of the data set to this new folder.")] = None,
    relabel: Annotated[
        list[str] | None, typer.Option(help="With --fix: replace a value in the label maps, as in 255=1; repeatable.")
    ] = None,
    fill_non_finite: Annotated[
        float | None, typer.Option(help="With --fix: replace voxels that are NaN or infinite by this value.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="Number of processes. Default: one per core that the memory allows.", min=1)
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a data set and report every problem at once; nothing is changed in it."""
    if fix is None and (relabel or fill_non_finite is not None):
        from medseg.errors import OptionError

        raise OptionError("--relabel and --fill-non-finite change a copy; give its folder with --fix")
    if page is not None:
        check_out_file("--page", page)
    from rich.console import Console
    from rich.progress import Progress

    from medseg.doctor.corrected_copy import parse_relabel, write_corrected_copy
    from medseg.doctor.examine import examine

    table = parse_relabel(relabel or [])
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=as_json or not console.is_terminal) as progress:
        task = progress.add_task("reading")

        def on_case(case: str, number: int, total: int) -> None:
            progress.update(task, completed=number, total=total, description=case)

        source, root = (manifest, data) if manifest is not None else (data, None)
        result = examine(source, root, num_processes=processes, on_case=on_case)
        if page is not None:
            from medseg.doctor.examination_page import write_page

            write_page(result, page)
        copy = None
        if fix is not None:
            copy = write_corrected_copy(result, fix, relabel=table, fill_non_finite=fill_non_finite)
    if as_json:
        content = result.to_json()
        if copy is not None:
            content["copy"] = {"folder": str(copy.folder), "changes": list(copy.changes), "left": list(copy.left)}
        print_json(content)
    else:
        print("\n".join(result.lines()))
        if copy is not None:
            print("\n".join(["", *copy.lines()]))
        if page is not None:
            print(f"\n{page}  {page.stat().st_size / 1e6:.1f} MB")
    errors = result.counts["error"]
    if errors:
        raise ReportedError(
            f"{result.dataset.manifest.name}: {errors} error{'s' if errors > 1 else ''} in the data set; correct the "
            "files that are named above"
        )
