"""Draws detections into images."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from detector.structures import Detections, Image


def class_color(label: int) -> tuple[int, int, int]:
    """An RGB colour for a class; neighbouring labels are far apart on the colour circle."""
    red, green, blue = colorsys.hsv_to_rgb((label * 0.618034 + 0.02) % 1.0, 0.85, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw(image: Image, detections: Detections, class_names: Sequence[str], *, scores: bool = True) -> Image:
    """A new image with a box and a caption for each detection, the best on top.

    Args:
        image: (H, W, 3) uint8 RGB; not changed.
        detections: in pixels of the image; those with an identity have its number and its colour.
        class_names: of the labels.
        scores: write the score after the name, unless there is an identity.
    """
    canvas = np.ascontiguousarray(image.copy())
    thickness = max(1, round(max(image.shape[:2]) / 400))
    font_scale = max(0.35, max(image.shape[:2]) / 1600)
    for row in reversed(range(len(detections))):
        x1, y1, x2, y2 = (round(value) for value in detections.boxes_xyxy[row].tolist())
        label = int(detections.labels[row])
        caption, color = class_names[label], class_color(label)
        if detections.track_ids is not None:
            track_id = int(detections.track_ids[row])
            caption, color = f"{caption} {track_id}", class_color(track_id)
        elif scores:
            caption = f"{caption} {detections.scores[row]:.2f}"
        cv2.rectangle(canvas, (x1, y1), (x2, y2), color, thickness, cv2.LINE_AA)
        _draw_caption(canvas, caption, (x1, y1), color, font_scale)
    return canvas


def _draw_caption(
    canvas: Image, text: str, corner: tuple[int, int], color: tuple[int, int, int], font_scale: float
) -> None:
    """A filled label above the corner, moved inside where it would leave the image."""
    (width, height), baseline = _text_size(text, font_scale)
    left = max(0, min(corner[0], canvas.shape[1] - width - 2))
    top = corner[1] - height - baseline - 2
    if top < 0:
        top = max(0, min(corner[1], canvas.shape[0] - height - baseline - 2))
    cv2.rectangle(canvas, (left, top), (left + width + 2, top + height + baseline + 2), color, cv2.FILLED)
    bright = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] > 140
    ink = (0, 0, 0) if bright else (255, 255, 255)
    if text.isascii():
        origin = (left + 1, top + height + 1)
        cv2.putText(canvas, text, origin, cv2.FONT_HERSHEY_SIMPLEX, font_scale, ink, 1, cv2.LINE_AA)
        return
    mask = _text_mask(text, font_scale)[: canvas.shape[0] - top, : canvas.shape[1] - left]  # (h, w)
    part = canvas[top : top + mask.shape[0], left : left + mask.shape[1]]
    part[:] = np.rint(part + (np.array(ink) - part) * mask[..., None]).astype(np.uint8)


def _text_size(text: str, font_scale: float) -> tuple[tuple[int, int], int]:
    """Width and height above the baseline, and what is below it."""
    if text.isascii():
        (width, height), baseline = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, font_scale, 1)
        return (width, height), baseline
    height, width = _text_mask(text, font_scale).shape
    return (width, height), 0


@lru_cache(maxsize=256)
def _text_mask(text: str, font_scale: float) -> NDArray[np.float32]:
    """A text in any script, (h, w) from 0 to 1. Letters that no font here has are written as their code: U+732B."""
    from PIL import Image as PillowImage
    from PIL import ImageDraw, ImageFont

    size = max(round(28 * font_scale), 8)
    fonts: list[Any] = [ImageFont.truetype(str(path), size) for path in _font_files()] or [ImageFont.load_default(size)]
    parts: list[tuple[str, Any]] = []
    for letter in text:
        able = [font for font in fonts if letter == " " or _has_glyph(font, letter)]
        written, font = (letter, able[0]) if able else (f"U+{ord(letter):04X}", fonts[0])
        if parts and parts[-1][1] is font:
            parts[-1] = (parts[-1][0] + written, font)
        else:
            parts.append((written, font))
    width = sum(int(font.getlength(written)) + 1 for written, font in parts)
    canvas = PillowImage.new("L", (width + 2, round(size * 1.3)))
    pen, x = ImageDraw.Draw(canvas), 1.0
    for written, font in parts:
        pen.text((x, size), written, fill=255, font=font, anchor="ls")
        x += font.getlength(written)
    return np.asarray(np.asarray(canvas) / 255, np.float32)


def _has_glyph(font: Any, letter: str) -> bool:
    """Whether a font has a letter, rather than the box that stands for a missing one."""
    mask, missing = font.getmask(letter), font.getmask("\U0010ffff")
    return bool(mask.size != missing.size or bytes(mask) != bytes(missing))


@cache
def _font_files() -> list[Path]:
    """Matplotlib's own font first, if it is here, then the system's fonts for the scripts of the world."""
    spec = find_spec("matplotlib")  # is missing where only exported files run
    own = [Path(spec.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"] if spec and spec.origin else []
    folders = [Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), Path.home() / ".fonts"]
    known = ("cjk", "wqy", "droidsansfallback", "notosans", "unifont", "simhei", "msyh", "arialuni")
    found = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in {".ttf", ".ttc", ".otf"})
    named = [path for path in found if any(word in path.name.lower() for word in known)]
    regular = [path for path in named if "bold" not in path.name.lower()]
    return [*own, *regular[:20]]


def tile(images: Sequence[Image], *, columns: int, cell_hw: tuple[int, int], gap: int = 4) -> Image:
    """A grid of images on white, each fitted into a cell with its aspect kept.

    Args:
        images: (H_i, W_i, 3) uint8 RGB.
        columns: of the grid.
        cell_hw: height and width of a cell in pixels.
        gap: white pixels between the cells.
    """
    rows = -(-len(images) // columns)
    height, width = cell_hw[0] + gap, cell_hw[1] + gap
    canvas = np.full((max(rows, 1) * height + gap, columns * width + gap, 3), 255, np.uint8)
    for number, image in enumerate(images):
        scale = min(cell_hw[0] / image.shape[0], cell_hw[1] / image.shape[1])
        size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))
        resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        top = gap + number // columns * height + (cell_hw[0] - size[1]) // 2
        left = gap + number % columns * width + (cell_hw[1] - size[0]) // 2
        canvas[top : top + size[1], left : left + size[0]] = resized
    return canvas
