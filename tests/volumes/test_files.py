"""Atomic writing, output folders, files of earlier runs and digests."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from medseg.errors import OptionError, VolumeError
from medseg.volumes import check_out_folder, remove_leftovers, replacing, staged
from medseg.volumes.files import file_sha256, is_writable, set_aside, sole_writer


def test_replacing_writes_the_complete_file_or_keeps_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with replacing(path, suffix=".txt") as temporary:
        assert temporary.suffix == ".txt"
        temporary.write_text("first")
        assert not path.exists()
    with pytest.raises(RuntimeError, match="stop"), replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError("stop")
    assert path.read_text() == "first"
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"]


def test_replacing_writes_a_folder_atomically(tmp_path: Path) -> None:
    with replacing(tmp_path / "model") as temporary:
        (temporary / "deep").mkdir(parents=True)
        (temporary / "deep" / "a.bin").write_bytes(b"1")
        assert not (tmp_path / "model").exists()
    assert (tmp_path / "model" / "deep" / "a.bin").read_bytes() == b"1"
    with pytest.raises(VolumeError, match="folder is in the way"), replacing(tmp_path / "model"):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_staged_files_appear_together(tmp_path: Path) -> None:
    with staged(tmp_path / "a.nii") as path:
        path.write_text("labels")
        path.with_name("a.json").write_text("record")
        assert not list(tmp_path.glob("a.*"))
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"a.nii": "labels", "a.json": "record"}
    (tmp_path / "b.json").mkdir()
    with pytest.raises(VolumeError, match=r"b\.json"), staged(tmp_path / "b.nii") as path:  # noqa: PT012
        path.write_text("labels")
        path.with_name("b.json").write_text("record")
    assert not (tmp_path / "b.nii").exists()


def run_and_kill(work: Callable[[], None], before_operation: int) -> bool:
    """Do some work in a forked process that kills itself before one of its operations on files."""
    if (pid := os.fork()) == 0:
        count = 0

        def kill(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            is_written = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_WRONLY
            if is_written or event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
                count += 1
                if count == before_operation:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill)
        work()
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def write_new_files(folder: Path) -> None:
    with staged(folder / "a.nii", outdated=[folder / "a_map.nii"]) as path:
        path.write_text("new")
        path.with_name("a.json").write_text("new")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("has_earlier", [True, False])
def test_kill_9_leaves_the_old_files_or_the_new_ones(tmp_path: Path, has_earlier: bool) -> None:
    """After every possible moment between two operations, and after the next start has cleared up."""
    old = {"a.nii": "old", "a.json": "old", "a_map.nii": "old"} if has_earlier else {}
    new = {"a.nii": "new", "a.json": "new"}
    folder = tmp_path / "out"

    found, operation = [], 0
    while True:
        folder.mkdir()
        for name, text in old.items():
            (folder / name).write_text(text)
        operation += 1
        if not run_and_kill(lambda: write_new_files(folder), operation):
            break
        at_once = {path.name: path.read_text() for path in folder.glob("[!.]*")}
        # the labels are never beside a record or maps of another run
        assert "a.nii" not in at_once or at_once in (old, new), at_once
        remove_leftovers(folder)
        found.append({path.name: path.read_text() for path in folder.glob("[!.]*")})
        assert found[-1] in (old, new)
        shutil.rmtree(folder)
    assert {path.name: path.read_text() for path in folder.iterdir()} == new
    assert found == sorted(found, key=lambda each: each == new)  # first the old ones, then the new ones
    assert found.count(new) > 2


def test_files_that_cannot_be_moved_leave_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.nii", "a.json", "a_map.nii"):
        (tmp_path / name).write_text("old")
    moves = []

    def replace(path: Path, target: Path) -> Path:
        if target == tmp_path / "a.nii":
            moves.append(target)
            if len(moves) == 1:
                raise PermissionError(1, "Operation not permitted", str(target))
        return Path(os.replace(path, target) or target)  # noqa: PTH105 - pathlib's is replaced

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(VolumeError, match=r"a\.nii: could not be written: Operation not permitted"):
        write_new_files(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        ("a.nii", "a.json", "a_map.nii"), "old"
    )


def test_a_new_file_may_replace_an_outdated_one(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("old")
    with staged(tmp_path / "a.nii", outdated=[tmp_path / "a.json"]) as path:
        path.write_text("new")
        path.with_name("a.json").write_text("new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.nii": "new", "a.json": "new"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_one_process_works_in_a_folder(tmp_path: Path) -> None:
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        with sole_writer(tmp_path, "a training"):
            os.write(write, b"locked")
            time.sleep(60)
        os._exit(0)
    try:
        assert os.read(read, 10) == b"locked"
        with pytest.raises(OptionError, match=rf"{tmp_path}: a training is running.*process {pid} on"):
            sole_writer(tmp_path, "a training").__enter__()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with sole_writer(tmp_path, "a training"), sole_writer(tmp_path / "new", "a training"):
        assert (tmp_path / ".lock").read_text().startswith(f"{os.getpid()} on ")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_leftovers_are_removed_after_a_day(tmp_path: Path) -> None:
    (tmp_path / ".mine.partial").write_text("of another program")
    with replacing(tmp_path / "a") as file, staged(tmp_path / "b") as inside:
        file.write_text("half")
        inside.write_text("half")
        remove_leftovers(tmp_path)
        assert file.exists()
        assert inside.exists()
        old = time.time() - 25 * 3600
        for path in (*tmp_path.iterdir(), inside):
            os.utime(path, (old, old))
        remove_leftovers(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [".mine.partial"]
        file.write_text("")  # so that the block can end
        inside.parent.mkdir()
        inside.write_text("")


def test_files_of_an_earlier_run_get_one_free_number(tmp_path: Path) -> None:
    for name in ("model.pt", "model_1.pt", "plan.json"):
        (tmp_path / name).write_text(name)
    paths = [tmp_path / name for name in ("model.pt", "plan.json", "absent.txt")]
    with pytest.warns(UserWarning, match="earlier run"):
        renamed = set_aside(paths)
    assert [path.name for path in renamed] == ["model_2.pt", "plan_2.json"]
    assert [path.read_text() for path in renamed] == ["model.pt", "plan.json"]
    with pytest.warns(UserWarning, match="events_1"):
        moved = set_aside(renamed, tmp_path / "events")
    assert moved == [tmp_path / "events_1" / "model_2.pt", tmp_path / "events_1" / "plan_2.json"]
    assert set_aside([tmp_path / "absent"], tmp_path / "events") == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_text("old")

    def write_to_a_full_disk() -> None:
        with replacing(tmp_path / "old.txt") as temporary:
            temporary.symlink_to("/dev/full")
            temporary.write_bytes(b"x" * 100000)

    with pytest.raises(VolumeError, match="No space left"):
        write_to_a_full_disk()
    assert (tmp_path / "old.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_existing_and_possible_folders_are_accepted_and_unchanged(tmp_path: Path) -> None:
    check_out_folder(tmp_path)
    check_out_folder(tmp_path / "new" / "deep")
    check_out_folder(str(tmp_path))
    assert is_writable(tmp_path / "new")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    check_out_folder(tmp_path / "link" / "new")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "link"]


def test_a_relative_folder_is_taken_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_out_folder("new")
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match=r"file: a file where the output folder should be"):
        check_out_folder("file/below")


@pytest.mark.parametrize("below", ["", "below", "below/deep"])
def test_a_path_that_cannot_be_a_folder_is_refused_by_name(tmp_path: Path, below: str) -> None:
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
    with pytest.raises(OptionError, match=r"^/proc: may not be written to"):
        check_out_folder("/proc/outputs")
    assert not is_writable("/proc/outputs")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_permissions_are_respected(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(OptionError, match=r"may not be written to \(Permission denied\)"):
        check_out_folder(tmp_path / "out")


def test_digests_equal_the_examples_of_the_standard(tmp_path: Path) -> None:
    file = tmp_path / "file"
    # FIPS 180-2, B.1 and the empty message
    for content, digest in (
        (b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    ):
        file.write_bytes(content)
        assert file_sha256(file) == file_sha256(str(file)) == digest


def test_the_digest_of_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        file_sha256(tmp_path / "absent")
