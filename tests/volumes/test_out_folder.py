"""Whether a folder can take outputs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from medseg.errors import OptionError
from medseg.volumes import check_out_folder


def test_a_folder_that_is_there_or_could_be_made_is_taken_and_left_as_it_is(tmp_path: Path) -> None:
    check_out_folder(tmp_path)
    check_out_folder(tmp_path / "new" / "deep")
    check_out_folder(str(tmp_path))
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    check_out_folder(tmp_path / "link" / "new")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "link"]


def test_a_relative_folder_is_looked_for_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_out_folder("new")
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match=r"file: a file where the output folder should be"):
        check_out_folder("file/below")


@pytest.mark.parametrize("below", ["", "below", "below/deep"])
def test_what_can_be_no_folder_is_refused_by_name(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OptionError, match=rf"^{tmp_path / 'file'}: a file where"):
        check_out_folder(tmp_path / "file" / below)
    with pytest.raises(OptionError, match=rf"^{tmp_path / 'dangling'}: a link to nowhere, which does not exist"):
        check_out_folder(tmp_path / "dangling" / below)
    with pytest.raises(OptionError, match=rf"^{tmp_path / 'loop'}: a link to loop, which does not exist"):
        check_out_folder(tmp_path / "loop" / below)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder nobody can write to")
def test_a_folder_that_may_not_be_written_is_refused() -> None:
    with pytest.raises(OptionError, match=r"^/proc: may not be written to \(.+\); choose another output folder"):
        check_out_folder("/proc/outputs")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_permissions_are_kept(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(OptionError, match=r"may not be written to \(Permission denied\)"):
        check_out_folder(tmp_path / "out")
