"""The notebooks of docs/ run from top to bottom, and are committed with outputs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from docs.markdown_blocks import REPOSITORY
from nbclient import NotebookClient

NOTEBOOKS = sorted((REPOSITORY / "docs" / "notebooks").glob("*.ipynb"))


def names(notebook: Path) -> str:
    return notebook.stem


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "docs" / "notebooks"
    folder.mkdir(parents=True)
    (tmp_path / "bundles").symlink_to(REPOSITORY / "bundles")
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    outputs = [[output.output_type for output in cell.outputs] for cell in code_cells(notebook)]
    committed = code_cells(nbformat.read(path, as_version=4))
    assert outputs == [[output.output_type for output in cell.outputs] for cell in committed]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_a_notebook_is_committed_with_small_outputs_without_machine_paths(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert sum(bool(cell.outputs) for cell in code_cells(notebook)) >= 5
    assert path.stat().st_size < 300_000
    text = [str(output) for cell in code_cells(notebook) for output in cell.outputs]
    assert [line for line in text if re.search(r"/(home|root|tmp|work|Users)/|[A-Z]:\\\\", line)] == []
