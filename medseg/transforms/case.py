"""Which case a volume belongs to, for messages."""

from typing import Any

from monai.data import MetaTensor
from monai.utils import ImageMetaKey


def case_name(image: Any) -> str:
    """The file an image came from, where its meta data say so; else empty."""
    return str(image.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "")) if isinstance(image, MetaTensor) else ""
