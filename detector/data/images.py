"""Reads picture files of every common kind into (H, W, 3) uint8 RGB."""

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
_PILLOW_ERRORS = (OSError, UnidentifiedImageError, ValueError, SyntaxError, PillowImage.DecompressionBombError)


def read_image(path: str | Path, *, expected_hw: tuple[int, int] | None = None) -> Image:
    """The picture as people see it: EXIF orientation applied, grey and palette expanded, alpha dropped, 16 bit to 8.

    Args:
        path: JPEG, PNG, BMP, WebP or TIFF.
        expected_hw: the size that its labels were made for. Where that is the size before the EXIF rotation, the
            rotation is left out.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        InputError: the file is missing, is no picture, is cut off, or has another size than expected.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    image = decode_image(content, str(path))
    if expected_hw is None or image.shape[:2] == expected_hw:
        return image
    if image.shape[:2] == expected_hw[::-1]:
        unrotated = _decode(content, str(path), cv2.IMREAD_IGNORE_ORIENTATION)
        if unrotated.shape[:2] == expected_hw:
            return unrotated
    raise InputError(
        f"{path}: is {image.shape[1]}x{image.shape[0]}, but its annotation says {expected_hw[1]}x{expected_hw[0]}; "
        "mend the annotation or the picture"
    )


def decode_image(content: bytes, where: str) -> Image:
    """The bytes of a picture file -> (H, W, 3) uint8 RGB; `where` names it in errors. Raises: InputError."""
    return _decode(content, where, 0)


def read_image_size(path: Path) -> tuple[int, int]:
    """Height and width as `read_image` would give them, from the file's header alone. Raises: InputError."""
    try:
        with PillowImage.open(path) as image:
            width, height = image.size
            # OpenCV leaves a TIFF as it is stored.
            rotated = image.format != "TIFF" and image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    except _PILLOW_ERRORS as error:
        raise InputError(f"{path}: is not a readable picture: {error}") from error
    return (width, height) if rotated else (height, width)


def list_images(folder: str | Path) -> list[Path]:
    """The picture files of a folder, by name, without its subfolders."""
    return sorted(Path(entry.path) for entry in os.scandir(folder) if Path(entry.name).suffix.lower() in IMAGE_SUFFIXES)


def _decode(content: bytes, where: str, flags: int) -> Image:
    if not content:
        raise InputError(f"{where}: is empty")
    if not _is_complete(content):
        _check_with_pillow(content, where)
    try:
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB | flags)
    except cv2.error as error:
        raise InputError(f"{where}: is not a readable picture: {error.err}") from error
    if decoded is None:
        return _decode_with_pillow(content, where)
    return np.asarray(decoded, np.uint8)


def _is_complete(content: bytes) -> bool:
    """Whether a JPEG or PNG has its end marker; OpenCV fills what is cut off with grey and says nothing."""
    tail = content[-4096:]
    if content.startswith(b"\xff\xd8"):
        return b"\xff\xd9" in tail
    if content.startswith(b"\x89PNG"):
        return b"IEND" in tail
    return True


def _check_with_pillow(content: bytes, where: str) -> None:
    _decode_with_pillow(content, where)


def _decode_with_pillow(content: bytes, where: str) -> Image:
    """The slower and stricter second opinion, for what OpenCV does not read."""
    import io

    try:
        with PillowImage.open(io.BytesIO(content)) as image:
            image.load()
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"), np.uint8)
    except UnidentifiedImageError as error:
        raise InputError(f"{where}: is not a readable picture: of no known kind") from error
    except _PILLOW_ERRORS as error:
        raise InputError(f"{where}: is not a readable picture (cut off?): {error}") from error


assert not ImageFile.LOAD_TRUNCATED_IMAGES
