"""The demo leaves files alone that it did not write; its steps are tested with their packages."""

import pytest

from medseg.demo import run
from medseg.errors import BundleError


@pytest.mark.parametrize("name", ["run", "predictions", "phantom_cells_segmentation"])
def test_other_files_are_not_replaced(tmp_path, name):
    file = tmp_path / name / "model.pt"
    file.parent.mkdir()
    file.write_bytes(b"months of work")
    with pytest.raises(BundleError, match=rf"{tmp_path}.*{name}"):
        run(tmp_path)
    assert file.read_bytes() == b"months of work"
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]
