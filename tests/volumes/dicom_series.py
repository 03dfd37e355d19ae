"""Small DICOM series, written by ITK."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

NUM_SLICES = 6
TILTED = (0.8, 0.6, 0.0, -0.6, 0.8, 0.0)  # turned about the patient's axis; the normal stays (0, 0, 1)


def write_slice(
    path: Path,
    position: tuple[float, float, float],
    uid: str = "1.2.3.4",
    shape: tuple[int, int] = (9, 7),
    directions: tuple[float, ...] = TILTED,
    value: int = 0,
    is_packed: bool = False,
) -> None:
    rng = np.random.default_rng(abs(hash(position)) % 2**32)
    image = sitk.GetImageFromArray((rng.integers(0, 100, (1, *shape[::-1])) + value).astype(np.int16))
    image.SetSpacing((0.5, 0.75, 2.5))
    image.SetOrigin(position)
    normal = np.cross(directions[:3], directions[3:])
    image.SetDirection(np.stack([directions[:3], directions[3:], normal], axis=1).ravel().tolist())
    for tag, text in {
        "0008|0060": "CT",
        "0018|0050": "2.5",
        "0020|000d": "1.2.3",
        "0020|000e": uid,
        "0020|0052": "1.2.3.5",
        "0020|0032": "\\".join(f"{number:.6f}" for number in position),
        "0020|0037": "\\".join(f"{number:.6f}" for number in directions),
        "0028|1052": "-1024",
        "0028|1053": "1",
    }.items():
        if not (is_packed and tag.startswith("0028")):  # rescaled voxels take 32 bits, more than the codec can
            image.SetMetaData(tag, text)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetUseCompression(is_packed)
    writer.SetCompressor("JPEG2000")
    writer.SetFileName(str(path))
    writer.Execute(image)


def write_series(folder: Path) -> Path:
    """Six slices of one tilted series."""
    folder.mkdir()
    for number in range(NUM_SLICES):
        # names in the reverse order of the slices: only positions may decide
        write_slice(folder / f"{NUM_SLICES - number:02d}.dcm", (10.0, -20.0, 5 + 2.5 * number), value=100 * number)
    return folder
