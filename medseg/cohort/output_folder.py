"""Access the output folder of a cohort: a shared folder, or a folder of any fsspec file system."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from medseg.cohort.inputs import file_system, is_url
from medseg.errors import OptionError, VolumeError, one_line
from medseg.volumes import check_out_folder
from medseg.volumes.files import locked, replacing

LOCK = ".cohort.lock"
MARK = ".cohort.json"
# A lock in a remote folder counts as long as it is renewed.
RENEW_SECONDS, EXPIRED_SECONDS = 30.0, 180.0
# File systems whose files appear before they are complete.
NOT_ATOMIC = ("file", "local", "sftp", "ssh", "hdfs", "smb", "ftp", "memory")


class OutputFolder:
    """The folder that receives the segmentations, as the driver and the workers see it.

    Args:
        place: local path, or URL.
    """

    def __init__(self, place: str | Path) -> None:
        self.place = str(place)
        self.is_remote = is_url(place)
        self.mark: dict[str, Any] = {}
        self.system: Any = None
        if self.is_remote:
            self.system, self.root = file_system(self.place)
            self.root = self.root.rstrip("/")

    def check(self) -> None:
        """Check that the folder can be written to.

        Raises:
            OptionError: it cannot.
        """
        if not self.is_remote:
            check_out_folder(self.place)
            return
        try:
            self.system.makedirs(self.root, exist_ok=True)
            self.system.pipe_file(f"{self.root}/.cohort.probe", b"")
            self.system.rm_file(f"{self.root}/.cohort.probe")
        except Exception as error:
            raise OptionError(f"{self.place}: may not be written to ({one_line(error)}); check the address") from error

    @contextmanager
    def reserved(self, run: str) -> Iterator[None]:
        """Keep other runs out of the folder, and leave a mark by which workers recognise it.

        Args:
            run: name of this run.

        Raises:
            OptionError: another run uses the folder.
        """
        mark: dict[str, Any] = {"run": run, "host": socket.gethostname(), "pid": os.getpid(), "renewed": time.time()}
        if not self.is_remote:
            folder = Path(self.place)
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder / LOCK, f"{self.place}: another run writes into this folder; wait until it ends"):
                with replacing(folder / MARK) as temporary:
                    temporary.write_text(json.dumps(mark), encoding="utf-8")
                yield
            return
        other = self._read_mark()
        if other is not None and time.time() - float(other.get("renewed", 0)) < EXPIRED_SECONDS:
            raise OptionError(
                f"{self.place}: run {other.get('run')} on {other.get('host')} writes into this folder; wait until it "
                f"ends, or {EXPIRED_SECONDS:.0f} s if it was killed"
            )
        self.mark = mark
        self.renew(force=True)
        try:
            yield
        finally:
            with suppress(Exception):
                self.system.rm_file(f"{self.root}/{MARK}")

    def renew(self, force: bool = False) -> None:
        """Show other runs that this one still uses a remote folder."""
        if self.is_remote and (force or time.time() - self.mark["renewed"] > RENEW_SECONDS):
            self.mark["renewed"] = time.time()
            self.system.pipe_file(f"{self.root}/{MARK}", json.dumps(self.mark).encode())

    def _read_mark(self) -> dict[str, Any] | None:
        try:
            if self.is_remote:
                return json.loads(self.system.cat_file(f"{self.root}/{MARK}"))
            return json.loads((Path(self.place) / MARK).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def is_seen(self, run: str) -> bool:
        """Return whether this process sees the folder that a run has reserved."""
        mark = self._read_mark()
        return mark is not None and mark.get("run") == run

    def exists(self, name: str) -> bool:
        """Return whether a file of that name is in the folder."""
        return self.system.exists(f"{self.root}/{name}") if self.is_remote else (Path(self.place) / name).exists()

    def upload(self, folder: Path, last: str) -> None:
        """Copy the files of a local folder into a remote one; each appears when it is complete.

        Args:
            folder: files and folders of one segmentation.
            last: name of the file that is copied last, because it says that the others are complete.

        Raises:
            VolumeError: a file cannot be written.
        """
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        for file in sorted(files, key=lambda file: file.name == last):
            name = f"{self.root}/{file.relative_to(folder).as_posix()}"
            protocols = self.system.protocol
            protocols = (protocols,) if isinstance(protocols, str) else protocols
            try:
                self.system.makedirs(name.rpartition("/")[0], exist_ok=True)
                if set(protocols) & set(NOT_ATOMIC):
                    self.system.put_file(str(file), f"{name}.partial")
                    self.system.mv(f"{name}.partial", name)
                else:
                    self.system.put_file(str(file), name)
            except Exception as error:
                raise VolumeError(f"{self.place}: {file.name} could not be written: {one_line(error)}") from error

    @contextmanager
    def ledger_file(self, name: str) -> Iterator[Path]:
        """Yield a local file with the content of a remote one; `save` copies it back."""
        if not self.is_remote:
            yield Path(self.place) / name
            return
        with tempfile.TemporaryDirectory(prefix="medseg-") as folder:
            file = Path(folder) / name
            if self.exists(name):
                file.write_bytes(self.system.cat_file(f"{self.root}/{name}"))
            try:
                yield file
            finally:
                self.save(file)

    def save(self, file: Path) -> None:
        """Copy a local file of `ledger_file` back."""
        if self.is_remote and file.is_file():
            self.system.pipe_file(f"{self.root}/{file.name}", file.read_bytes())
