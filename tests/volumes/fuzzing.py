"""Mutate valid image files and read them; run as a script, because memory, time and output belong to a process.

`python fuzzing.py FOLDER FORMAT COUNT SEED` prints one JSON object per file: what was mutated, the outcome, the peak
memory that reading added, the seconds, and what libraries printed. Outcomes:

- "equal": the voxels and the affine are those of an independent reader (nibabel, SimpleITK, Pillow or pydicom),
- "refused": a MedsegError of one line,
- "different", "alone" (the independent reader refuses the file), "defect" (any other exception): failures.
"""

from __future__ import annotations

import gzip
import json
import os
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813
from PIL import Image

from medseg.errors import MedsegError
from medseg.volumes import Volume, read_volume

HANG_SECONDS = 10
EXTREMES = [
    0,
    1,
    -1,
    2,
    127,
    255,
    32767,
    -32768,
    65535,
    2**31 - 1,
    -(2**31),
    2**32 - 1,
    2**40,
    float("nan"),
    float("inf"),
    1e38,
]
Rng = np.random.Generator


def nifti(path: Path, rng: Rng) -> str:
    version = nib.Nifti2Image if rng.random() < 0.3 else nib.Nifti1Image
    image = version(voxels(rng), affine(rng))
    image.header.set_xyzt_units("mm")
    if rng.random() < 0.3:
        image.header.set_slope_inter(float(rng.uniform(0.1, 3)), float(rng.uniform(-5, 5)))
    content = bytearray(image.to_bytes())
    dtype = image.header.template_dtype
    done = mutate_fields(content, dtype, rng) if rng.random() < 0.7 else mutate_bytes(content, rng)
    return done + write_maybe_packed(path, content, rng)


def mgz(path: Path, rng: Rng) -> str:
    array = voxels(rng, (np.uint8, np.int32, np.float32, np.int16))
    content = bytearray(nib.MGHImage(array.reshape(array.shape + (1,) * (3 - array.ndim)), affine(rng)).to_bytes())
    dtype = nib.freesurfer.mghformat.MGHHeader.template_dtype
    done = mutate_fields(content, dtype, rng) if rng.random() < 0.7 else mutate_bytes(content, rng)
    return done + write_maybe_packed(path, content, rng)


def text_header(path: Path, rng: Rng) -> str:
    image = sitk.GetImageFromArray(voxels(rng))
    image.SetSpacing([float(x) for x in rng.uniform(0.3, 3, image.GetDimension())])
    sitk.WriteImage(image, str(path), useCompression=bool(rng.random() < 0.5))
    content = bytearray(path.read_bytes())
    end = content.find(b"\n\n") if path.suffix == ".nrrd" else content.find(b"LOCAL")
    if rng.random() < 0.3 or end < 0:
        done = mutate_bytes(content, rng)
    else:
        lines = bytes(content[:end]).split(b"\n")
        number = int(rng.integers(1 if path.suffix == ".nrrd" else 0, len(lines)))
        lines[number], done = mutate_line(lines[number], rng)
        content = bytearray(b"\n".join(lines) + content[end:])
    path.write_bytes(content)
    return done


def picture(path: Path, rng: Rng) -> str:
    kinds: dict[str, list[tuple[str, type]]] = {
        ".png": [("L", np.uint8), ("I;16", np.uint16), ("1", np.bool_)],
        ".tif": [("L", np.uint8), ("I;16", np.uint16), ("F", np.float32), ("I", np.int32)],
    }
    mode, dtype = kinds[path.suffix][int(rng.integers(len(kinds[path.suffix])))]
    array = (rng.random((int(rng.integers(2, 30)), int(rng.integers(2, 30)))) * 250).astype(np.uint8)
    image = Image.fromarray(array > 100) if mode == "1" else Image.fromarray(array.astype(dtype))
    packing = {"compression": "tiff_deflate"} if path.suffix == ".tif" and rng.random() < 0.3 else {}
    image.save(path, **packing)
    content = bytearray(path.read_bytes())
    if rng.random() < 0.4:
        done = mutate_bytes(content, rng)
    elif path.suffix == ".png":
        done = mutate_png(content, rng)
    else:
        done = mutate_tiff(content, rng)
    path.write_bytes(content)
    return done


def dicom(path: Path, rng: Rng) -> str:
    """Write a series of three slices and mutate one of them."""
    path.mkdir()
    tags = {"0008|0060": "CT", "0020|000d": "1.2.3", "0020|000e": "1.2.3.4", "0020|0037": "1\\0\\0\\0\\1\\0"}
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number in range(3):
        image = sitk.GetImageFromArray(rng.integers(0, 100, (1, 7, 6)).astype(np.int16))
        image.SetSpacing((0.5, 0.75, 2.0))
        image.SetOrigin((0.0, 0.0, 2.0 * number))
        for tag, text in {**tags, "0020|0032": f"0\\0\\{2 * number}", "0008|0018": f"1.2.3.4.{number + 1}"}.items():
            image.SetMetaData(tag, text)
        writer.SetFileName(str(path / f"{number}.dcm"))
        writer.Execute(image)
    file = path / f"{rng.integers(3)}.dcm"
    if rng.random() < 0.4:
        content = bytearray(file.read_bytes())
        done = mutate_bytes(content, rng)
        file.write_bytes(content)
        return done
    dataset = pydicom.dcmread(file)
    element = list(dataset)[int(rng.integers(len(list(dataset))))]
    values: list[Any] = [None, "", "nan", "-1", "1e30", "0", "9" * 60, b"\xff" * 8, 0, -1, 65535, 2**31 - 1]
    value = values[int(rng.integers(len(values)))]
    if rng.random() < 0.15:
        del dataset[element.tag]
        done = f"without {element.keyword}"
    else:
        try:
            element.value = value
        except Exception:  # pydicom refuses to hold it: nothing is changed
            return "nothing"
        done = f"{element.keyword} = {value!r}"
    try:
        dataset.save_as(file, enforce_file_format=False)
    except Exception:  # pydicom refuses to write it: keep what it wrote
        done += ", cut short"
    return done


MAKERS: dict[str, tuple[str, Callable[[Path, Rng], str]]] = {
    "nifti": (".nii", nifti), "mgz": (".mgz", mgz), "nrrd": (".nrrd", text_header), "mha": (".mha", text_header),
    "tiff": (".tif", picture), "png": (".png", picture), "dicom": ("", dicom),
}  # fmt: skip


def voxels(rng: Rng, kinds: tuple[Any, ...] = (np.uint8, np.int16, np.float32, np.uint16, np.float64)) -> np.ndarray:
    shape = tuple(int(n) for n in rng.integers(2, 9, size=3))
    return (rng.random(shape) * 200).astype(kinds[int(rng.integers(len(kinds)))])


def affine(rng: Rng) -> np.ndarray:
    made = np.eye(4)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    made[:3, :3] = rotation * rng.uniform(0.3, 3, 3)
    made[:3, 3] = rng.uniform(-100, 100, 3)
    return made


def mutate_fields(content: bytearray, dtype: np.dtype, rng: Rng) -> str:
    """Change one field of a binary header: an extreme value, random bytes, or reversed bytes."""
    names = list(dtype.names or ())
    name = names[int(rng.integers(len(names)))]
    kind, offset = dtype.fields[name][:2]  # type: ignore[index]
    item = kind.base
    number = int(rng.integers(kind.itemsize // item.itemsize))
    start = offset + number * item.itemsize
    old = bytes(content[start : start + item.itemsize])
    way = rng.random()
    if way < 0.2:
        new = old[::-1]
    elif way < 0.4 or item.kind not in "iuf":
        new = rng.bytes(len(old))
    else:
        value = EXTREMES[int(rng.integers(len(EXTREMES)))]
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            order = item.newbyteorder(">") if dtype == nib.freesurfer.mghformat.MGHHeader.template_dtype else item
            new = np.array([value], dtype=np.float64).astype(order).tobytes()
    content[start : start + item.itemsize] = new
    return f"{name}[{number}] {old.hex()} → {new.hex()}"


def mutate_bytes(content: bytearray, rng: Rng) -> str:
    """Flip, cut, extend or clear bytes anywhere."""
    way = int(rng.integers(4))
    if way == 0:
        positions = [int(p) for p in rng.integers(len(content), size=int(rng.integers(1, 9)))]
        for position in positions:
            content[position] = int(rng.integers(256))
        return f"random bytes at {positions}"
    if way == 1:
        length = int(rng.integers(len(content)))
        del content[length:]
        return f"cut after {length}"
    if way == 2:
        extra = rng.bytes(int(rng.integers(1, 100)))
        content += extra
        return f"{len(extra)} bytes appended"
    start = int(rng.integers(len(content)))
    stop = min(len(content), start + int(rng.integers(1, 64)))
    content[start:stop] = bytes(stop - start)
    return f"zeros at {start}:{stop}"


def mutate_line(line: bytes, rng: Rng) -> tuple[bytes, str]:
    """Change the value of one line of a text header."""
    separator = b": " if b": " in line else b" = "
    key, found, value = line.partition(separator)
    tokens = value.split(b" ")
    values = [b"", b"-1", b"0", b"nan", b"inf", b"1e30", b"99999999999999", b"(1,0", b"x" * 5000, b"\xff\xfe", b"1.5"]
    new = values[int(rng.integers(len(values)))]
    way = rng.random()
    if way < 0.6:
        tokens[int(rng.integers(len(tokens)))] = new
        changed = key + found + b" ".join(tokens)
    elif way < 0.7:
        changed = key + found + b" ".join(tokens[::-1])
    elif way < 0.8:
        changed = line[: int(rng.integers(len(line) + 1))]
    elif way < 0.9:
        changed = line + b"\n" + line
    else:
        changed = key + found + b" ".join([*tokens, new])
    return changed, f"{line[:60]!r} → {changed[:60]!r}"


def mutate_png(content: bytearray, rng: Rng) -> str:
    """Change bytes of one chunk and correct its checksum."""
    starts, at = [], 8
    while at + 8 <= len(content):
        starts.append(at)
        at += 12 + struct.unpack(">I", content[at : at + 4])[0]
    start = starts[int(rng.integers(len(starts)))]
    length = struct.unpack(">I", content[start : start + 4])[0]
    if length == 0 or rng.random() < 0.2:
        content[start : start + 4] = rng.bytes(4)
        return f"length of the chunk at {start}"
    position = start + 8 + int(rng.integers(length))
    content[position] = int(rng.integers(256))
    crc = zlib.crc32(content[start + 4 : start + 8 + length])
    content[start + 8 + length : start + 12 + length] = struct.pack(">I", crc)
    return f"byte {position} of the chunk at {start}, checksum corrected"


def mutate_tiff(content: bytearray, rng: Rng) -> str:
    """Change tag, type, count or value of one entry of the directory."""
    directory = struct.unpack("<I", content[4:8])[0]
    count = struct.unpack("<H", content[directory : directory + 2])[0]
    entry = directory + 2 + 12 * int(rng.integers(count))
    offset, size = [(0, 2), (2, 2), (4, 4), (8, 4)][int(rng.integers(4))]
    numbers = [0, 1, 2, 3, 16, 65535, 2**31 - 1, 2**32 - 1, int(rng.integers(2**32))]
    value = numbers[int(rng.integers(len(numbers)))] % 2 ** (8 * size)
    content[entry + offset : entry + offset + size] = value.to_bytes(size, "little")
    return f"entry at {entry}, byte {offset} = {value}"


def write_maybe_packed(path: Path, content: bytearray, rng: Rng) -> str:
    """Write the file, for .nii or .mgz sometimes compressed with the compressed bytes mutated again."""
    done = ""
    if path.suffix == ".mgz" or path.name.endswith(".gz"):
        packed = bytearray(gzip.compress(bytes(content), 1, mtime=0))
        if rng.random() < 0.2:
            done = "; packed: " + mutate_bytes(packed, rng)
        content = packed
    path.write_bytes(content)
    return done


def independent(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read voxels (axis order of the file) and affine (RAS+ mm) with another library."""
    if path.is_dir():
        return independent_dicom(path)
    if path.suffix in (".nii", ".gz", ".mgz"):
        image = nib.load(path if path.suffix == ".nii" else unpacked(path))
        return np.asanyarray(image.dataobj), image.affine
    if path.suffix in (".png", ".tif"):
        with Image.open(path) as opened:
            array = np.asarray(opened)
            if opened.mode == "I;16" and getattr(opened, "tag_v2", {}).get(262) == 0:
                array = 65535 - array  # white is zero, which Pillow heeds up to 8 bits
        return array.T, np.eye(4)
    image = sitk.ReadImage(str(path))
    directions = np.array(image.GetDirection()).reshape(image.GetDimension(), -1)
    made = np.eye(4)
    dims = image.GetDimension()
    made[:dims, :dims] = directions * image.GetSpacing()
    made[:dims, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).T, np.diag([-1, -1, 1, 1]) @ made


def unpacked(path: Path) -> Path:
    """Decompress a file as GNU gzip does, which leaves out what is behind the last member; return the plain file."""
    packed, plain = path.read_bytes(), b""
    while packed.startswith(b"\x1f\x8b"):
        member = zlib.decompressobj(31)
        plain += member.decompress(packed)
        if not member.eof:
            raise EOFError("the gzip stream ends early")
        packed = member.unused_data
    target = path.with_name(f"plain_{path.name.removesuffix('.gz').replace('.mgz', '.mgh')}")
    target.write_bytes(plain)
    return target


def scaled(item: pydicom.Dataset) -> np.ndarray:
    slope, intercept = float(item.get("RescaleSlope") or 1), float(item.get("RescaleIntercept") or 0)
    return item.pixel_array.T * slope + intercept


def independent_dicom(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    slices = [pydicom.dcmread(file, force=True) for file in sorted(folder.iterdir())]
    slices.sort(key=lambda item: float(item.ImagePositionPatient[2]))
    array = np.stack([scaled(item) for item in slices], axis=-1)
    first, step = slices[0], np.subtract(slices[1].ImagePositionPatient, slices[0].ImagePositionPatient)
    made = np.eye(4)
    rows, columns = np.array(first.ImageOrientationPatient[:3]), np.array(first.ImageOrientationPatient[3:])
    made[:3, 0], made[:3, 1] = rows * first.PixelSpacing[1], columns * first.PixelSpacing[0]
    made[:3, 2], made[:3, 3] = step, first.ImagePositionPatient
    return array, np.diag([-1, -1, 1, 1]) @ made


def read_with_medseg(path: Path) -> tuple[Volume | None, str, str]:
    """Return the volume, or None, the outcome and its line."""
    signal.alarm(HANG_SECONDS)
    try:
        return read_volume(path, allow_non_finite=True), "equal", ""
    except MedsegError as error:
        line = str(error)
        is_one_line = "\n" not in line and str(path) in line
        return None, "refused" if is_one_line else "defect", line
    except BaseException:
        return None, "defect", traceback.format_exc()[-1500:]
    finally:
        signal.alarm(0)


def compared(volume: Volume, path: Path) -> tuple[str, str]:
    """Compare with the independent reader."""
    try:
        array, affine = independent(path)
        array = array.reshape(volume.array.shape)
    except BaseException as error:
        return "alone", f"{type(error).__name__}: {error}"[:300]
    if not np.allclose(volume.array, array, rtol=1e-5, atol=1e-5, equal_nan=True):
        return "different", f"voxels: {volume.array.ravel()[:4]} {array.ravel()[:4]}"
    if not np.allclose(volume.grid.affine, affine, rtol=1e-4, atol=1e-4):
        return "different", f"affine: {volume.grid.affine.tolist()} {affine.tolist()}"
    return "equal", ""


class Captured:
    """Collect what the process and its C libraries print."""

    def __enter__(self) -> Captured:
        sys.stdout.flush()
        self.real = (os.dup(1), os.dup(2))
        self.file = tempfile.TemporaryFile()
        for target in (1, 2):
            os.dup2(self.file.fileno(), target)
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for target, copy in zip((1, 2), self.real, strict=True):
            os.dup2(copy, target)
            os.close(copy)
        self.file.seek(0)
        self.text = self.file.read().decode(errors="replace")
        self.file.close()


def peak_kb() -> int:
    """Return the peak of the resident memory since it was last reset."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def main(folder: Path, format: str, count: int, seed: int) -> None:
    def interrupt(*_: object) -> None:
        raise TimeoutError(f"more than {HANG_SECONDS} s")

    signal.signal(signal.SIGALRM, interrupt)
    warnings.simplefilter("ignore")
    suffix, make = MAKERS[format]
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        ending = ".nii.gz" if suffix == ".nii" and number % 3 == 0 else suffix
        path = folder / f"{format}_{seed}_{number}{ending}"
        mutation = make(path, rng)
        print(json.dumps({"file": path.name, "mutation": mutation}), flush=True)  # kept if the process crashes
        Path("/proc/self/clear_refs").write_text("5")  # begin a new peak
        peak = peak_kb()
        started = time.perf_counter()
        with Captured() as captured:
            volume, outcome, line = read_with_medseg(path)
        seconds = time.perf_counter() - started
        added = peak_kb() - peak
        if volume is not None:
            with Captured():
                outcome, line = compared(volume, path)
        result = {"outcome": outcome, "line": line, "printed": captured.text, "added_kb": added, "seconds": seconds}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
