"""Where the bundle lies whose config is being evaluated."""

from __future__ import annotations

import sys
from pathlib import Path

from monai.bundle import ConfigWorkflow


def bundle_root() -> str:
    """The folder of the bundle whose config MONAI is evaluating; what configs begin with as their `bundle_root`.

    With it a bundle runs, and `monai.bundle.load` loads it, from any working directory. MONAI tells the expressions of
    a config nothing of where its file lies, so the workflow that evaluates them is looked for among the callers.

    Returns:
        The folder as the path of the config names it; "." where no workflow asks (a ConfigParser alone) or the config
        does not lie beside a plan: then the working directory must be the bundle's folder.
    """
    frame = sys._getframe(1)
    while (caller := frame.f_back) is not None:
        workflow = caller.f_locals.get("self")
        if isinstance(workflow, ConfigWorkflow):
            configs = Path(workflow.config_root_path)
            return str(configs.parent) if _is_of_a_bundle(configs) else "."
        frame = caller
    return "."


def _is_of_a_bundle(configs: Path) -> bool:
    return configs.name == "configs" and (configs / "plan.json").is_file()
