"""The `medseg` command: one thin function a command; each imports what it needs when it runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from medseg import __version__
from medseg.cli.bundle import export, promote, verify
from medseg.cli.data import demo, list_data, prepare
from medseg.cli.evaluate import evaluate
from medseg.cli.predict import predict
from medseg.cli.running import run

PLAIN: dict[str, Any] = {
    "no_args_is_help": True,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
app = typer.Typer(
    name="medseg",
    help="Medical volumetric segmentation on MONAI. Research use only.",
    add_completion=False,
    pretty_exceptions_enable=False,
    **PLAIN,
)
data = typer.Typer(help="Get or adopt a dataset and verify it.", **PLAIN)
bundle = typer.Typer(help="Promote weights into a bundle, verify it, export its network.", **PLAIN)

BUNDLE = "bundles/hippocampus_unet3d_segmentation"
app.command(epilog=f"Example: medseg predict {BUNDLE} scans/ --out predictions")(predict)
app.command(epilog="Example: medseg evaluate predictions references --out evaluation --labels hippocampus")(evaluate)
app.command(epilog="Example: medseg demo --out demo")(demo)
app.add_typer(data, name="data")
app.add_typer(bundle, name="bundle")
data.command("prepare", epilog="Example: medseg data prepare hippocampus --root data/hippocampus")(prepare)
data.command("list", epilog="Example: medseg data list")(list_data)
bundle.command("promote", epilog=f"Example: medseg bundle promote {BUNDLE} --from runs/a")(promote)
bundle.command("verify", epilog=f"Example: medseg bundle verify {BUNDLE}")(verify)
bundle.command("export", epilog=f"Example: medseg bundle export {BUNDLE} --format onnx --out net.onnx")(export)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"medseg {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass  # `one_line.run` reads --debug itself, so that it works behind a command as well


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: errors of the user's input become one line, exit code 1, or 2 for a misspelt command."""
    run(app, arguments)
