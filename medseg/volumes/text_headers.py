"""Check the text headers of NRRD and MetaImage files before ITK parses them.

ITK's parsers print lines of their own about a malformed header, and some malformed values end the process. They get
only headers that follow the definitions of the formats: https://teem.sourceforge.net/nrrd/format.html and
https://itk.org/Wiki/ITK/MetaIO/Documentation.
"""

from __future__ import annotations

import re
from pathlib import Path

from medseg.errors import VolumeError

MAX_LINE = 4096
MAX_AXES = 16
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?"
VECTOR = rf"\( *{NUMBER}(?: *, *{NUMBER})* *\)"
WORD, QUOTED = r"[\w?*-]+", r'"[^"]*"'

NRRD_TYPES = {
    *("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t", "short", "short int"),
    *("signed short", "signed short int", "int16", "int16_t", "ushort", "unsigned short", "unsigned short int"),
    *("uint16", "uint16_t", "int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t"),
    *("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    *("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t", "float", "double"),
}
NRRD_SPACES = {
    *("right-anterior-superior", "ras", "left-anterior-superior", "las", "left-posterior-superior", "lps"),
    *("right-anterior-superior-time", "rast", "left-anterior-superior-time", "last"),
    *("left-posterior-superior-time", "lpst", "scanner-xyz", "scanner-xyz-time", "3d-right-handed"),
    *("3d-left-handed", "3d-right-handed-time", "3d-left-handed-time"),
}
# Pattern of one entry of each field that has one entry per axis of the array.
NRRD_PER_AXIS = {
    "sizes": r"\d{1,12}", "spacings": rf"(?:{NUMBER}|nan)", "thicknesses": rf"(?:{NUMBER}|nan)",
    "axis mins": rf"(?:{NUMBER}|nan)", "axis maxs": rf"(?:{NUMBER}|nan)", "centers": WORD, "centerings": WORD,
    "kinds": WORD, "labels": QUOTED, "units": QUOTED, "space directions": rf"(?:{VECTOR}|none)",
}  # fmt: skip
# Pattern of the whole value of each other field.
NRRD_FIELDS = {
    "dimension": r"\d{1,2}", "encoding": "raw|txt|text|ascii|hex|gz|gzip|bz2|bzip2", "endian": "little|big",
    "space dimension": r"\d", "space units": rf"{QUOTED}(?: +{QUOTED})*", "space origin": VECTOR,
    "measurement frame": rf"(?:{VECTOR}|none)(?: +(?:{VECTOR}|none))*", "line skip": r"\d+", "byte skip": r"-1|\d+",
    "min": NUMBER, "max": NUMBER, "old min": NUMBER, "old max": NUMBER, "number": r"\d+", "content": ".*",
    "sample units": ".*", "data file": ".+", "type": ".+", "space": ".+",
}  # fmt: skip
NRRD_ALIASES = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip", "oldmin": "old min",
                "oldmax": "old max", "axismins": "axis mins", "axismaxs": "axis maxs"}  # fmt: skip

FLAG = "true|false|t|f|1|0"
# Number of values of each numeric field of a MetaImage, by its number of axes.
METAIMAGE_NUMBERS = {
    **dict.fromkeys(
        ("DimSize", "ElementSpacing", "ElementSize", "Offset", "Position", "Origin", "CenterOfRotation"), 1
    ),
    **dict.fromkeys(("TransformMatrix", "Rotation", "Orientation"), 2),
}
METAIMAGE_FIELDS = {
    "ObjectType": "Image", "NDims": r"\d{1,2}", "BinaryData": FLAG, "BinaryDataByteOrderMSB": FLAG,
    "ElementByteOrderMSB": FLAG, "CompressedData": FLAG, "CompressedDataSize": r"\d+", "HeaderSize": r"-1|\d+",
    "ElementNumberOfChannels": r"\d{1,9}", "ElementMin": NUMBER, "ElementMax": NUMBER,
}  # fmt: skip


def check_nrrd(path: Path, header: bytes) -> None:
    """Check the header of an NRRD file, from its first line to the empty line behind it.

    Raises:
        VolumeError: an unknown or repeated field, or a value that the format does not allow.
    """
    fields: dict[str, str] = {}
    for line in _lines(path, header)[1:]:
        if line.startswith("#") or ":=" in line:  # a comment, or a key of the user's
            continue
        name, separator, value = line.partition(":")
        name, value = NRRD_ALIASES.get(name.strip().lower(), name.strip().lower()), value.strip()
        if not separator or name not in {*NRRD_FIELDS, *NRRD_PER_AXIS}:
            raise VolumeError(f"{path}: damaged: unknown header line {_shown(line)}; export the image again")
        if name in fields:
            raise VolumeError(f"{path}: damaged: its header states {name} twice; export the image again")
        fields[name] = value
    for name in ("dimension", "type", "sizes", "encoding"):
        if name not in fields:
            raise VolumeError(f"{path}: damaged: its header states no {name}; export the image again")
    allowed = {"type": NRRD_TYPES, "space": NRRD_SPACES}
    for name, value in fields.items():
        if name in NRRD_FIELDS and not re.fullmatch(f"(?i:{NRRD_FIELDS[name]})", value):
            raise _wrong(path, name, value)
        if name in allowed and value.lower() not in allowed[name]:
            raise _wrong(path, name, value)
    axes = int(fields["dimension"])
    for name, pattern in NRRD_PER_AXIS.items():
        if name in fields and not re.fullmatch(rf"(?i:{pattern}(?: +{pattern}){{{axes - 1}}})", fields[name]):
            raise _wrong(path, name, fields[name])
    if not 1 <= axes <= MAX_AXES:
        raise _wrong(path, "dimension", fields["dimension"])
    lengths = {vector.count(",") + 1 for name in ("space directions", "space origin", "measurement frame")
               for vector in re.findall(VECTOR, fields.get(name, ""))}  # fmt: skip
    if len(lengths) > 1 or ("space dimension" in fields and lengths - {int(fields["space dimension"])}):
        raise _wrong(path, "space directions", fields.get("space directions", fields.get("space origin", "")))


def check_metaimage(path: Path, header: bytes) -> None:
    """Check the header of a MetaImage, from its first line to `ElementDataFile`.

    Raises:
        VolumeError: a field that is missing, repeated or in the wrong place, or a value that the format does not allow.
    """
    fields: dict[str, str] = {}
    for line in _lines(path, header):
        name, separator, value = line.partition("=")
        name, value = name.strip(), value.strip()
        # ITK also writes fields of its own, such as `dim[0]` of a NIfTI file or `0010|0010` of DICOM.
        if not separator or not re.fullmatch(r"[\w|.\[\] -]+", name):
            raise VolumeError(f"{path}: damaged: unknown header line {_shown(line)}; export the image again")
        if name in fields:
            raise VolumeError(f"{path}: damaged: its header states {name} twice; export the image again")
        if name in METAIMAGE_NUMBERS and "NDims" not in fields:
            raise VolumeError(f"{path}: damaged: its header states {name} before NDims; export the image again")
        fields[name] = value
        if name in METAIMAGE_FIELDS and not re.fullmatch(f"(?i:{METAIMAGE_FIELDS[name]})", value):
            raise _wrong(path, name, value)
        if name == "NDims" and not 1 <= int(value) <= MAX_AXES:
            raise _wrong(path, name, value)
        if name in METAIMAGE_NUMBERS:
            count = int(fields["NDims"]) ** METAIMAGE_NUMBERS[name]
            kind = r"\d{1,12}" if name == "DimSize" else NUMBER
            if not re.fullmatch(rf"{kind}(?:\s+{kind}){{{count - 1}}}", value):
                raise _wrong(path, name, value)
    for name in ("NDims", "DimSize", "ElementType", "ElementDataFile"):
        if not fields.get(name):
            raise VolumeError(
                f"{path}: truncated or damaged: its header states no {name}; copy or export the image again"
            )


def _lines(path: Path, header: bytes) -> list[str]:
    try:
        lines = header.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise VolumeError(f"{path}: damaged: byte {error.start} of its header is no text; export it again") from error
    long = next((line for line in lines if len(line) > MAX_LINE or "\0" in line), None)
    if long is not None:
        raise VolumeError(f"{path}: damaged: the header line {_shown(long)} cannot be read; export it again")
    return [line for line in lines if line.strip()]


def _wrong(path: Path, name: str, value: str) -> VolumeError:
    return VolumeError(
        f"{path}: damaged: its header states the {name} {_shown(value)}, which cannot be used; correct the header"
    )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
