"""Whether a folder can take outputs, asked before the work whose outputs they are."""

from __future__ import annotations

import tempfile
from pathlib import Path

from medseg.errors import OptionError


def check_out_folder(folder: Path | str) -> None:
    """Raise one line unless outputs can be written to a folder, which need not exist yet; nothing is left there.

    Raises:
        OptionError: it is, or would lie in, a file, a link to nowhere, or a folder that may not be written to.
    """
    folder = Path(folder)
    for path in (folder, *folder.absolute().parents):
        if path.is_symlink() and not path.exists():
            raise OptionError(
                f"{path}: a link to {path.readlink()}, which does not exist, where the output folder should be; "
                "restore what it names or choose another folder"
            )
        if not path.exists():
            continue
        if not path.is_dir():
            raise OptionError(f"{path}: a file where the output folder should be; choose another folder")
        try:
            with tempfile.TemporaryFile(dir=path):
                return
        except OSError as error:  # asked by trying: permissions tell nothing of read-only disks, nor anything to root
            raise OptionError(
                f"{path}: may not be written to ({error.strerror or error}); choose another output folder or change "
                "its permissions"
            ) from error
