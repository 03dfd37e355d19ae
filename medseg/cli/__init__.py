"""The `medseg` command line. Each command is a thin function that imports what it needs when it runs."""

from __future__ import annotations

import atexit
import gc
from typing import Annotated, Any

import typer

from medseg import __version__
from medseg.cli.bundle import export, fingerprint, import_model, promote, quantize, verify
from medseg.cli.data import demo, describe, list_data, prepare
from medseg.cli.doctor import doctor
from medseg.cli.evaluate import evaluate
from medseg.cli.planning import plan
from medseg.cli.predict import predict
from medseg.cli.running import run
from medseg.cli.train import train

_SETTINGS: dict[str, Any] = {
    "no_args_is_help": True,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
_BUNDLE = "bundles/hippocampus_unet3d_segmentation"

app = typer.Typer(
    name="medseg",
    help="Segment medical volumes with deep learning. For research use only.",
    add_completion=False,
    pretty_exceptions_enable=False,
    **_SETTINGS,
)
data = typer.Typer(help="Describe a dataset, get it and verify it.", **_SETTINGS)
bundle = typer.Typer(help="Import a model, put weights into a bundle, verify it, export its network.", **_SETTINGS)

app.command(epilog=f"Example: medseg train {_BUNDLE} --data data/hippocampus --fold 1 --hours 2 --promote")(train)
app.command(epilog=f"Example: medseg predict {_BUNDLE} scans/ --out predictions")(predict)
app.command(epilog="Example: medseg evaluate predictions references --out evaluation --labels hippocampus")(evaluate)
app.command(epilog="Example: medseg doctor data/hippocampus --manifest hippocampus --page doctor.html")(doctor)
app.command(epilog="Example: medseg plan data/livers --out bundles/livers_segmentation --hours 2")(plan)
app.command(epilog="Example: medseg demo --out demo")(demo)
app.add_typer(data, name="data")
app.add_typer(bundle, name="bundle")
data.command("prepare", epilog="Example: medseg data prepare hippocampus --root data/hippocampus")(prepare)
data.command("describe", epilog="Example: medseg data describe my_scans --out manifest.yaml")(describe)
data.command("list", epilog="Example: medseg data list")(list_data)
bundle.command("promote", epilog=f"Example: medseg bundle promote {_BUNDLE} --from runs/a")(promote)
bundle.command(
    "import",
    epilog="Example: medseg bundle import Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_fullres --out bundle",
)(import_model)
bundle.command("verify", epilog=f"Example: medseg bundle verify {_BUNDLE}")(verify)
bundle.command("fingerprint", epilog=f"Example: medseg bundle fingerprint {_BUNDLE} --data data/hippocampus")(
    fingerprint
)
bundle.command("quantize", epilog=f"Example: medseg bundle quantize {_BUNDLE} --data data/hippocampus --fold 1")(
    quantize
)
bundle.command("export", epilog=f"Example: medseg bundle export {_BUNDLE} --format onnx --out net.onnx")(export)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: the words of the command line; None takes those of this process.

    Raises:
        SystemExit: always; see `medseg.cli.running.run`.
    """
    # When the process ends, Python would look once more through the objects of all packages for garbage, which takes a
    # fifth of the time of importing PyTorch.
    atexit.register(gc.freeze)
    run(app, arguments)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"medseg {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass  # `run` reads --debug itself, so that the option also works after the name of a command
