"""Reads image files of all common formats into (H, W, 3) uint8 RGB."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image as PillowImage
from PIL import ImageFile, ImageOps, UnidentifiedImageError

from detector.errors import InputError
from detector.structures import Image

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
_EXIF_ORIENTATION = 0x0112
_MODES = {
    1: cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_REDUCED_COLOR_2,  # these three decode to BGR
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_PILLOW_ERRORS = (OSError, UnidentifiedImageError, ValueError, SyntaxError, PillowImage.DecompressionBombError)


def read_image(path: str | Path, *, expected_hw: tuple[int, int] | None = None) -> Image:
    """The image as a viewer shows it: EXIF orientation applied, grey and palette expanded, alpha dropped, 16 bit to 8.

    Args:
        path: JPEG, PNG, BMP, WebP or TIFF.
        expected_hw: the size that its labels were made for. If that is the size before the EXIF rotation, the
            rotation is left out.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        InputError: the file is missing, is not an image, is truncated, or does not have the expected size.
    """
    return decode_image(read_bytes(path), str(path), expected_hw=expected_hw)


def read_bytes(path: str | Path) -> bytes:
    """The content of an image file. Raises: InputError."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def decode_image(
    content: bytes, where: str, *, expected_hw: tuple[int, int] | None = None, reduction: int = 1
) -> Image:
    """The bytes of an image file -> (H, W, 3) uint8 RGB, as `read_image` returns it.

    Args:
        content: the bytes of the file.
        where: the name of the file in error messages.
        expected_hw: see `read_image`; before the reduction.
        reduction: 2, 4 or 8 divides both sides by this, rounded up or down; a JPEG then decodes much faster.

    Raises:
        InputError: see `read_image`.
    """
    image = _decode(content, where, reduction)
    if expected_hw is None or _has_size(image, expected_hw, reduction):
        return image
    if _has_size(image, expected_hw[::-1], reduction):
        unrotated = _decode(content, where, reduction, cv2.IMREAD_IGNORE_ORIENTATION)
        if _has_size(unrotated, expected_hw, reduction):
            return unrotated
    found = _decode(content, where).shape if reduction > 1 else image.shape
    raise InputError(
        f"{where}: is {found[1]}x{found[0]}, but its annotation says {expected_hw[1]}x{expected_hw[0]}; "
        "fix the annotation or the image"
    )


def _has_size(image: Image, size_hw: tuple[int, int], reduction: int) -> bool:
    """Whether an image had this size before its reduction; codecs round the reduced size up or down."""
    return all(abs(have * reduction - want) < reduction for have, want in zip(image.shape, size_hw, strict=False))


def read_image_size(path: Path) -> tuple[int, int]:
    """Height and width as `read_image` would return them, from the file's header alone. Raises: InputError."""
    try:
        with PillowImage.open(path) as image:
            width, height = image.size
            # OpenCV does not rotate a TIFF.
            rotated = image.format != "TIFF" and image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    except _PILLOW_ERRORS as error:
        raise InputError(f"{path}: is not a readable image: {error}") from error
    return (width, height) if rotated else (height, width)


def list_images(folder: str | Path) -> list[Path]:
    """The image files of a folder, sorted by name, without its subfolders."""
    return sorted(Path(entry.path) for entry in os.scandir(folder) if Path(entry.name).suffix.lower() in IMAGE_SUFFIXES)


def _decode(content: bytes, where: str, reduction: int = 1, flags: int = 0) -> Image:
    if not content:
        raise InputError(f"{where}: is empty")
    if not _is_complete(content):
        _decode_with_pillow(content, where)  # raises where it is cut off
    try:
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), _MODES[reduction] | flags)
    except cv2.error as error:
        raise InputError(f"{where}: is not a readable image: {error.err}") from error
    if decoded is None:
        return _decode_with_pillow(content, where)[::reduction, ::reduction]
    if reduction > 1:
        decoded = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB, dst=decoded)
    return np.asarray(decoded, np.uint8)


def _is_complete(content: bytes) -> bool:
    """Whether a JPEG or PNG has its end marker; OpenCV silently fills the missing part with grey."""
    tail = content[-4096:]
    if content.startswith(b"\xff\xd8"):
        return b"\xff\xd9" in tail
    if content.startswith(b"\x89PNG"):
        return b"IEND" in tail
    return True


def _decode_with_pillow(content: bytes, where: str) -> Image:
    """A slower and stricter decoder, for files that OpenCV does not read."""
    import io

    try:
        with PillowImage.open(io.BytesIO(content)) as image:
            image.load()
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"), np.uint8)
    except UnidentifiedImageError as error:
        raise InputError(f"{where}: is not a readable image: unknown format") from error
    except _PILLOW_ERRORS as error:
        raise InputError(f"{where}: is not a readable image (truncated?): {error}") from error


assert not ImageFile.LOAD_TRUNCATED_IMAGES
