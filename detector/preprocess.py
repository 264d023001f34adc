"""Any image -> the network's input, with a record of how it was fitted, to map boxes back.

Legend: H, W the network's size; H0, W0 the size of the image that was read; n boxes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from detector.structures import Floats, Image

GREY = 128


@dataclass(frozen=True)
class ImageFit:
    """How an image was fitted to the network's size: network = original * scale + offset, per axis.

    A plain resize has zero offsets and two scales; a letterbox has one scale twice and the bars as offsets.

    Attributes:
        original_hw: height and width of the image that was read, in pixels.
        scale_xy: network pixels per original pixel, horizontally and vertically.
        offset_xy: network pixels left of and above the image.
    """

    original_hw: tuple[int, int]
    scale_xy: tuple[float, float]
    offset_xy: tuple[float, float]

    def to_network(self, boxes_xyxy: Floats) -> Floats:
        """Boxes (n, 4) in original pixels -> the same boxes in network pixels."""
        scale, offset = self._as_arrays()
        return (boxes_xyxy * scale + offset).astype(np.float32)

    def to_original(self, boxes_xyxy: Floats) -> Floats:
        """Boxes (n, 4) in network pixels -> original pixels, clipped to the original image."""
        scale, offset = self._as_arrays()
        height, width = self.original_hw
        boxes = (boxes_xyxy - offset) / scale
        return np.clip(boxes, 0, np.array([width, height, width, height])).astype(np.float32)

    def _as_arrays(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return np.array(self.scale_xy * 2), np.array(self.offset_xy * 2)


def fit_image(
    image: Image, size_hw: tuple[int, int], *, letterbox: bool, align_corners: bool = False, out: Image | None = None
) -> tuple[Image, ImageFit]:
    """Fits an image (H0, W0, 3) to the network's size (H, W, 3) and records how.

    Args:
        image: uint8 RGB.
        size_hw: of the network's input.
        letterbox: keep the aspect and fill the rest with grey; else stretch.
        align_corners: see `PreprocessConfig`.
        out: (H, W, 3) uint8 to write into and to return; None = a new image.
    """
    resize_into = _resize_corners if align_corners else resize
    height, width = image.shape[:2]
    canvas = np.empty((*size_hw, 3), np.uint8) if out is None else out
    if not letterbox:
        resize_into(image, canvas)
        return canvas, ImageFit((height, width), (size_hw[1] / width, size_hw[0] / height), (0.0, 0.0))
    scale = min(size_hw[0] / height, size_hw[1] / width)
    inner_hw = (max(round(height * scale), 1), max(round(width * scale), 1))
    top, left = (size_hw[0] - inner_hw[0]) // 2, (size_hw[1] - inner_hw[1]) // 2
    canvas[...] = GREY
    resize_into(image, canvas[top : top + inner_hw[0], left : left + inner_hw[1]])
    # The exact scales after rounding, so that mapping back is exact too.
    return canvas, ImageFit((height, width), (inner_hw[1] / width, inner_hw[0] / height), (float(left), float(top)))


def resize(image: Image, out: Image) -> None:
    """Bilinear, into `out`, which may be a part of an image."""
    if image.shape == out.shape:
        out[...] = image
        return
    resized = cv2.resize(image, out.shape[1::-1], dst=out, interpolation=cv2.INTER_LINEAR)
    if not np.shares_memory(resized, out):  # OpenCV did not use the buffer
        out[...] = resized


def _resize_corners(image: Image, out: Image) -> None:
    """Bilinear, with the corner pixels of both images aligned."""
    places, fractions = _corner_grid(image.shape[:2], out.shape[:2])
    out[...] = cv2.remap(image, places, fractions, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


@functools.lru_cache(maxsize=8)
def _corner_grid(source_hw: tuple[int, int], target_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """OpenCV's maps from target pixels to source pixels; a video needs the same ones for every frame."""
    columns = np.linspace(0, source_hw[1] - 1, target_hw[1], dtype=np.float32)
    rows = np.linspace(0, source_hw[0] - 1, target_hw[0], dtype=np.float32)
    grid_x, grid_y = np.meshgrid(columns, rows)
    places, fractions = cv2.convertMaps(grid_x, grid_y, cv2.CV_16SC2)
    return places, fractions
