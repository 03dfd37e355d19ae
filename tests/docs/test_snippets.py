"""Every block of every page is run, parsed, or marked as not run with the reason.

The blocks of a page run in order in a folder of generated files (sample_files.py) and share one Python namespace. A
block that cannot be run has `<!-- not run: REASON -->` on the line before it. `<!-- file: NAME -->` saves a block as a
file.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from docs.markdown_blocks import REPOSITORY, SHELLS, Block, pages, read_blocks
from docs.page_process import PageProcess
from docs.sample_files import make_sample_files

BLOCKS = {page.relative_to(REPOSITORY).as_posix(): read_blocks(page) for page in pages()}
# Code that runs before the snippets of a page.
GIVEN = {
    "README.md": "import numpy as np; instances = np.kron([[0, 1, 2], [3, 3, 0]], np.ones((8, 8), int)); "
    "cells = instances > 0",
    "docs/evaluation.md": "import shutil; shutil.copytree('other_predictions', 'predictions')",
    "docs/manifests.md": "import shutil; shutil.copytree('other_predictions', 'predictions')",
    "docs/report.md": "import shutil; shutil.copytree('other_predictions', 'predictions')",
    "docs/training.md": "from monai.data import Dataset; dataset = Dataset(list(range(20)))",
    "docs/weights.md": "import torch, medseg; "
    "torch.save(medseg.networks.create('unet3d_prelu', in_channels=1, out_channels=3).state_dict(), 'mine.pth')",
}


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    make_sample_files(folder)
    return folder


@pytest.fixture(scope="session")
def process() -> Iterator[PageProcess]:
    process = PageProcess()
    yield process
    process.close()


@pytest.mark.parametrize("page", BLOCKS)
def test_the_snippets_of_a_page_run(page: str, samples: Path, process: PageProcess, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    shutil.copytree(samples, folder)
    wrong = []
    if page in GIVEN:
        assert process.ask(page=page, folder=str(folder), code=GIVEN[page], place="given") is None
    for block in BLOCKS[page]:
        if not block.is_run:
            continue
        if block.mark is not None:
            (folder / block.mark[1]).write_text(block.text + "\n", encoding="utf-8")
        if block.language == "python":
            problem = process.ask(page=page, folder=str(folder), code=padded(block), place=block.page)
        elif block.language in SHELLS:
            problem = run_shell(block, folder, process)
        else:
            problem = read_data(block)
        if problem is not None:
            wrong.append(f"{block.place}: {problem}")
    assert not wrong, "\n\n".join(wrong)


def padded(block: Block) -> str:
    """Return the text of the block with the line numbers of the page, for tracebacks."""
    return "\n" * (block.line - 1) + block.text


def run_shell(block: Block, folder: Path, process: PageProcess) -> str | None:
    """Run the commands of a block, beginning in `folder`; return None or the error."""
    here = folder
    for words in block.commands():
        if words[0] == "cd":
            here = (here / words[1]).resolve()
        elif words[0] == "medseg" or words[:3] == ["python", "-m", "monai.bundle"]:
            problem = process.ask(page=block.page, folder=str(here), words=words)
            if problem is not None:
                return f"{' '.join(words)}\n{problem}"
        else:
            return f"{words[0]!r} is not run by this test; put <!-- not run: REASON --> before the block"
    return None


def read_data(block: Block) -> str | None:
    """Parse a block of JSON or YAML; return None or the error."""
    try:
        if block.language == "json":
            json.loads(block.text if block.text.lstrip()[:1] in "{[" else "{" + block.text + "}")
        elif block.language in ("yaml", "yml"):
            yaml.safe_load(block.text)
    except ValueError as error:
        return str(error)
    except yaml.YAMLError as error:
        return str(error)
    return None


@pytest.mark.parametrize("page", BLOCKS)
def test_code_is_fenced_and_says_its_language(page: str) -> None:
    """Indented or unlabelled code would not be run by the test above."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    outside = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^ {4,}(?:\$ )?(?:medseg |python |pip |from \w+ import|import |cd |make ).*$", outside, re.M)
    assert indented == []
    bare = [block.place for block in BLOCKS[page] if not block.language]
    assert bare == []


def test_marks_belong_to_blocks() -> None:
    """A mark anywhere else would have no effect."""
    for page in pages():
        marks = len(re.findall(r"^<!-- (?:not run|file):", page.read_text(encoding="utf-8"), re.MULTILINE))
        assert marks == sum(block.mark is not None for block in read_blocks(page)), page
