"""Reads image files of all common formats into (H, W, 3) uint8 RGB."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image as PillowImage
from PIL import ImageFile, ImageOps, UnidentifiedImageError

from detector.errors import InputError
from detector.files import is_file, replacing
from detector.structures import Image

MAX_PIXELS = int(os.environ.get("DETECTOR_MAX_PIXELS", str(2**28)))
"""Larger images are refused by their headers: a file of 559 kB can decode to 6 GB. The variable sets another limit."""
PillowImage.MAX_IMAGE_PIXELS = None  # so that there is one limit
_EXIF_ORIENTATION = 0x0112
_QUARTER_TURNS = {5, 6, 7, 8}
_MODES = {
    1: cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_REDUCED_COLOR_2,  # these three decode to BGR
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_PILLOW_ERRORS = (OSError, UnidentifiedImageError, ValueError, SyntaxError, OverflowError)
_JPEG, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_FILLERS = (b"\x55\x2a\x91\x33" * 256, b"\x1c\xe7\x08\xf2" * 256)
"""Stand-ins for data that a JPEG may lack."""


@dataclass(frozen=True)
class Header:
    """What an image file says about itself before it is decoded.

    Attributes:
        size_hw: as stored.
        orientation: EXIF's, which a viewer applies; 1 = as stored.
        deep: whether its values may have more than 8 bits.
    """

    size_hw: tuple[int, int]
    orientation: int
    deep: bool

    @property
    def shown_hw(self) -> tuple[int, int]:
        """The size as a viewer shows it."""
        return self.size_hw[::-1] if self.orientation in _QUARTER_TURNS else self.size_hw

    def follows_exif(self, labels_hw: tuple[int, int]) -> bool | None:
        """Whether labels made for this size count pixels as a viewer shows them; None = the size does not tell."""
        if self.orientation not in _QUARTER_TURNS or self.size_hw == self.shown_hw:
            return None
        return {self.shown_hw: True, self.size_hw: False}.get(labels_hw)


def read_image(path: str | Path, *, expected_hw: tuple[int, int] | None = None, follow_exif: bool = True) -> Image:
    """The image as a viewer shows it: EXIF orientation applied, grey and palette expanded, alpha dropped, 8 bits.

    Values of more than 8 bits are scaled by their range: integers by the smallest of 8, 10, 12, 14 and 16 bits that
    holds them, floats from 0 to 1 or 0 to 255, everything else from its lowest to its highest value.

    Args:
        path: an image file.
        expected_hw: the size that its labels were made for. If that is the size before the EXIF rotation, the
            rotation is left out.
        follow_exif: whether to apply an EXIF orientation of which `expected_hw` does not tell.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        InputError: the file is missing, is not an image, is cut off, has more than `MAX_PIXELS` or does not have the
            expected size.
    """
    return decode_image(read_bytes(path), str(path), expected_hw=expected_hw, follow_exif=follow_exif)


def read_bytes(path: str | Path) -> bytes:
    """The content of an image file. Raises: InputError."""
    try:
        if not Path(path).is_file() and Path(path).exists():
            raise InputError(f"{path}: cannot be read: is not a file")
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def decode_image(
    content: bytes,
    where: str,
    *,
    expected_hw: tuple[int, int] | None = None,
    reduction: int = 1,
    follow_exif: bool = True,
) -> Image:
    """The bytes of an image file -> (H, W, 3) uint8 RGB, as `read_image` returns it.

    Args:
        content: the bytes of the file.
        where: the name of the file in error messages.
        expected_hw: see `read_image`; before the reduction.
        reduction: 2, 4 or 8 divides both sides by this, rounded up or down; a JPEG then decodes much faster.
        follow_exif: see `read_image`.

    Raises:
        InputError: see `read_image`.
    """
    if not content:
        raise InputError(f"{where}: is empty")
    header = parse_header(content, where)
    if expected_hw is not None:
        told = header.follows_exif(expected_hw)
        follow_exif = follow_exif if told is None else told
        found = header.shown_hw if follow_exif else header.size_hw
        if found != expected_hw:
            raise InputError(
                f"{where}: is {found[1]}x{found[0]}, but its annotation says {expected_hw[1]}x{expected_hw[0]}; "
                "fix the annotation or the image"
            )
    if content.startswith(b"\x89PNG") and b"IEND" not in content[-4096:]:
        _decode_with_pillow(content, where, follow_exif)  # raises where it is cut off
    is_jpeg = content.startswith(_JPEG)
    if is_jpeg and _JPEG_END not in content[-4096:]:
        _require_all_rows(content, where, header)
        content += _JPEG_END  # without which it is not decoded
    image = _decode(content, where, header, reduction, follow_exif)
    # Where a JPEG ends too early, the rest has one colour; libjpeg says so on stderr only.
    bottom = image[-8:] if header.orientation == 1 else image
    if is_jpeg and (header.orientation != 1 or (bottom == bottom[0, 0]).all()):
        _require_all_rows(content, where, header)
    return image


def read_header(path: Path) -> Header:
    """The header of an image file. Raises: InputError."""
    if not is_file(path):
        raise InputError(f"{path}: is not a readable image: no such file")
    return _read_header(path, str(path))


def write_image(path: Path, image: Image, *, quality: int = 95) -> None:
    """Writes an image (H, W, 3) uint8 RGB in the format of the name's suffix.

    Raises:
        InputError: no such format, or the file cannot be written.
    """
    try:
        options = [cv2.IMWRITE_JPEG_QUALITY, quality] if path.suffix.lower() in {".jpg", ".jpeg"} else []
        encoded, content = cv2.imencode(path.suffix, np.ascontiguousarray(image[..., ::-1]), options)
    except cv2.error:
        encoded = False
    if not encoded:
        raise InputError(f"{path}: cannot be written; expected a name that ends in .jpg or .png")
    try:
        with replacing(path) as trial:
            trial.write_bytes(content.tobytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def parse_header(content: bytes, where: str) -> Header:
    """The header of an image file from its content. Raises: InputError."""
    return _read_header(io.BytesIO(content), where, content)


def read_image_size(path: Path) -> tuple[int, int]:
    """Height and width as `read_image` would return them, from the file's header alone. Raises: InputError."""
    return read_header(path).shown_hw


def _read_header(file: Path | io.BytesIO, where: str, content: bytes = b"") -> Header:
    try:
        with PillowImage.open(file) as image:
            width, height = image.size
            # OpenCV does not rotate a TIFF.
            turned = image.format != "TIFF" and bool(image.info.get("exif") or image.format == "AVIF")
            orientation = int(image.getexif().get(_EXIF_ORIENTATION, 1)) if turned else 1
            deep = image.format in {"TIFF", "JPEG2000"} or image.mode[:1] in {"I", "F"}
    except UnidentifiedImageError as error:
        content = content or _content(file)
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) if content else None
        if decoded is None:
            raise InputError(f"{where}: is not a readable image: unknown format") from error
        return Header((decoded.shape[0], decoded.shape[1]), 1, deep=True)
    except _PILLOW_ERRORS as error:
        raise InputError(f"{where}: is not a readable image: {error}") from error
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{where}: has {width}x{height} pixels, more than {MAX_PIXELS / 1e6:.0f} million; set DETECTOR_MAX_PIXELS "
            "to read it"
        )
    return Header((height, width), orientation if 1 <= orientation <= 8 else 1, deep or content[24:25] == b"\x10")


def _content(file: Path | io.BytesIO) -> bytes:
    return file.read_bytes() if isinstance(file, Path) else file.getvalue()


def _decode(content: bytes, where: str, header: Header, reduction: int, follow_exif: bool) -> Image:
    flags = 0 if follow_exif else cv2.IMREAD_IGNORE_ORIENTATION
    try:
        if header.orientation != 1 and content[4:8] == b"ftyp":  # OpenCV does not turn an AVIF
            return _decode_with_pillow(content, where, follow_exif)[::reduction, ::reduction]
        if header.deep:
            values = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
            if values is not None and values.dtype != np.uint8:
                return _to_rgb(_to_uint8(values))[::reduction, ::reduction]
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), _MODES[reduction] | flags)
    except cv2.error as error:
        raise InputError(f"{where}: is not a readable image: {error.err}") from error
    if decoded is None:
        return _decode_with_pillow(content, where, follow_exif)[::reduction, ::reduction]
    if reduction > 1:
        decoded = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB, dst=decoded)
    return np.asarray(decoded, np.uint8)


def _to_uint8(values: np.ndarray) -> np.ndarray:
    """Values of any type scaled to 0 to 255; `read_image` states the rule."""
    finite = np.nan_to_num(values.astype(np.float32), posinf=0.0, neginf=0.0)
    low, high = float(finite.min()), float(finite.max())
    if np.issubdtype(values.dtype, np.integer) and low >= 0 and high < 2**16:
        low, high = 0.0, float(next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if high < 2**bits))
    elif low >= 0 and high <= 255:
        low, high = 0.0, 1.0 if high <= 1 else 255.0
    return np.asarray(np.rint((finite - low) * (255 / max(high - low, 1e-9))), np.uint8)


def _to_rgb(image: np.ndarray) -> Image:
    """Grey, BGR or BGRA to RGB."""
    if image.ndim == 2 or image.shape[2] == 1:
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(image[..., 2::-1] if image.shape[2] > 2 else image[..., [0, 0, 0]])


def _require_all_rows(content: bytes, where: str, header: Header) -> None:
    """Raises: InputError: a JPEG ends too early."""
    height = header.size_hw[0]
    try:
        missing_from = _first_missing_row(content)
    except _PILLOW_ERRORS:
        return  # of a kind that Pillow does not read
    if missing_from is not None and missing_from < height - 16:  # one row of blocks does not matter
        raise InputError(
            f"{where}: is not a readable image: its last {height - missing_from} of {height} rows are missing; fetch "
            "it again"
        )


def _first_missing_row(content: bytes) -> int | None:
    """The first row of a JPEG that depends on what is put in front of its end marker, if any; a multiple of 8."""
    end = content.rfind(_JPEG_END, len(content) - 4096)
    body = content[:end] if end > 0 else content
    plain, *others = (_decode_small(body + filler + _JPEG_END) for filler in (b"", *_FILLERS))
    rows = np.flatnonzero(np.any([(other != plain).any(axis=1) for other in others], axis=0))
    return int(rows[0]) * 8 if len(rows) else None


def _decode_small(content: bytes) -> np.ndarray:
    """A JPEG in grey, with an eighth of its sides."""
    with PillowImage.open(io.BytesIO(content)) as image:
        image.draft("L", (max(image.width // 8, 1), max(image.height // 8, 1)))
        return np.asarray(image)


def _decode_with_pillow(content: bytes, where: str, follow_exif: bool) -> Image:
    """A slower and stricter decoder, for files that OpenCV does not read."""
    try:
        with PillowImage.open(io.BytesIO(content)) as image:
            image.load()
            if image.mode[:1] in {"I", "F"}:
                return _to_rgb(_to_uint8(np.asarray(image)))
            upright = ImageOps.exif_transpose(image) if follow_exif else image
            return np.asarray(upright.convert("RGB"), np.uint8)
    except UnidentifiedImageError as error:
        raise InputError(f"{where}: is not a readable image: unknown format") from error
    except _PILLOW_ERRORS as error:
        raise InputError(f"{where}: is not a readable image (truncated?): {error}") from error


assert not ImageFile.LOAD_TRUNCATED_IMAGES
