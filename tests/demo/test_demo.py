"""The demo's steps are tested where they live; here, that it respects other people's files."""

import pytest

from medseg.demo import run
from medseg.errors import BundleError


@pytest.mark.parametrize("name", ["run", "predictions", "phantom_cells_segmentation"])
def test_folders_no_demo_made_are_left_alone(tmp_path, name):
    precious = tmp_path / name / "model.pt"
    precious.parent.mkdir()
    precious.write_bytes(b"months of work")
    with pytest.raises(BundleError, match=f"{name} is there and no demo made it"):
        run(tmp_path)
    assert precious.read_bytes() == b"months of work"
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]
