"""The page about layouts: each tree is written as files, and the manifest beside it must be what medseg writes."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from docs.markdown_blocks import REPOSITORY
from PIL import Image

from medseg.datasets import describe_dataset
from medseg.datasets.manifest_content import to_yaml

PAGE = (REPOSITORY / "docs" / "your_own_data.md").read_text(encoding="utf-8")
SECTIONS = {
    section.partition("\n")[0]: dict(reversed(re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL)))
    for section in PAGE.partition("## Layouts")[2].partition("\n## ")[0].split("\n### ")[1:]
}
FILES = {"dataset.json": "json", "class_dict.csv": "csv"}
LABEL = np.repeat(np.arange(3, dtype=np.uint8), 40).reshape(4, 5, 6)
COLORS = np.array([[128, 128, 128], [128, 64, 128], [0, 0, 0]], np.uint8)


def paths_of(tree: str) -> list[Path]:
    """Return the files of a tree as `tree` prints it."""
    stack: list[str] = []
    found = []
    for line in tree.splitlines():
        name = line.lstrip("│├└─ ")
        depth = (len(line) - len(name)) // 4
        stack = [*stack[:depth], name.rstrip("/")]
        if not name.endswith("/"):
            found.append(Path(*stack))
    return found


@pytest.mark.parametrize("section", SECTIONS)
def test_the_manifest_of_a_layout(tmp_path: Path, section: str) -> None:
    blocks = SECTIONS[section]
    files = paths_of(blocks["text"])
    for file in files:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if file.name in FILES:
            path.write_text(blocks[FILES[file.name]], encoding="utf-8")
        elif file.suffix == ".png":
            Image.fromarray(COLORS[LABEL[..., 0]]).save(path)
        else:
            nib.save(nib.Nifti1Image(LABEL, np.eye(4)), path)
    assert to_yaml(describe_dataset(tmp_path / files[0].parts[0])) == blocks["yaml"]


def test_every_layout_is_on_the_page() -> None:
    assert len(SECTIONS) == 5
