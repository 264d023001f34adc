"""The synthetic data set: circles, squares and triangles on textured backgrounds, and a video of them in motion.

Everything is drawn from a seed; the same seed gives the same images. Shapes differ in size, colour and angle, may
cover each other and may extend past the image. A shape that is mostly covered or outside has no label.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detector.config import SyntheticConfig
from detector.data.coco_file import coco_annotation, coco_categories
from detector.data.images import write_image
from detector.data.video_file import VideoFile
from detector.errors import InputError
from detector.structures import Floats, Image

CLASS_NAMES = ("circle", "square", "triangle")
MIN_VISIBLE = 0.35
_CORNERS = {"square": 4, "triangle": 3}


@dataclass(frozen=True)
class Shape:
    """One shape: class index, centre and radius in pixels, angle in radians, colour RGB."""

    label: int
    centre_xy: tuple[float, float]
    radius: float
    angle: float
    color: tuple[int, int, int]

    def outline(self) -> np.ndarray:
        """The polygon (k, 2) int32 that is filled; a circle has 40 corners."""
        corners = _CORNERS.get(CLASS_NAMES[self.label], 40)
        angles = self.angle + np.arange(corners) * 2 * np.pi / corners
        points = np.stack((np.cos(angles), np.sin(angles)), axis=1) * self.radius + self.centre_xy
        return np.rint(points).astype(np.int32)


def draw_background(size_hw: tuple[int, int], rng: np.random.Generator) -> Image:
    """A background (H, W, 3) of two colours blended by smooth noise, with grain."""
    height, width = size_hw
    coarse = rng.random((int(rng.integers(2, 9)), int(rng.integers(2, 9)))).astype(np.float32)
    blend = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)[..., None]
    first, second = rng.integers(30, 226, 3), rng.integers(30, 226, 3)
    grain = rng.normal(0, rng.uniform(2, 10), (height, width, 1))
    return np.clip(first * blend + second * (1 - blend) + grain, 0, 255).astype(np.uint8)


def draw_shapes(background: Image, shapes: list[Shape]) -> tuple[Image, Floats, np.ndarray]:
    """Draws shapes, later ones on top.

    Returns:
        the image (H, W, 3), and for the shapes of which at least 35 % is visible, the boxes (n, 4) of the visible part
        and the labels (n,).
    """
    image = background.copy()
    owner = np.full(image.shape[:2], -1, np.int32)
    for number, shape in enumerate(shapes):
        cv2.fillPoly(image, [shape.outline()], shape.color, lineType=cv2.LINE_AA)
        cv2.fillPoly(owner, [shape.outline()], number)
    boxes, labels = [], []
    for number, shape in enumerate(shapes):
        rows, columns = np.nonzero(owner == number)
        if len(rows) and len(rows) >= MIN_VISIBLE * cv2.contourArea(shape.outline()):
            boxes.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
            labels.append(shape.label)
    return image, np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64)


def random_shapes(size_hw: tuple[int, int], rng: np.random.Generator) -> list[Shape]:
    """One to seven shapes with radii from 7 % to 24 % of the shorter side."""
    height, width = size_hw
    shortest = min(size_hw)
    shapes = []
    for _ in range(int(rng.integers(1, 8))):
        shapes.append(
            Shape(
                label=int(rng.integers(len(CLASS_NAMES))),
                centre_xy=(float(rng.uniform(0, width)), float(rng.uniform(0, height))),
                radius=float(shortest * np.exp(rng.uniform(np.log(0.07), np.log(0.24)))),
                angle=float(rng.uniform(0, 2 * np.pi)),
                color=tuple(int(value) for value in rng.integers(0, 256, 3)),  # type: ignore[arg-type]
            )
        )
    return shapes


def ensure_synthetic_dataset(root: Path, config: SyntheticConfig, *, seed: int = 0) -> bool:
    """Draws the data set into `root`, unless the same one is already there.

    Writes images/*.jpg, train.json and val.json (COCO instances) and, where PyAV is installed, video.mp4.

    Returns:
        whether anything was drawn.

    Raises:
        InputError: the folder holds something else, which would be overwritten.
    """
    stamp, wanted = root / "synthetic.stamp", json.dumps({**asdict(config), "seed": seed})
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return False
    if not stamp.is_file() and root.is_dir() and any(root.iterdir()):
        raise InputError(
            f"{root}: is not empty and not the synthetic data set; set data.synthetic=null or another data.root"
        )
    root.mkdir(parents=True, exist_ok=True)
    stamp.write_text("being drawn", encoding="utf-8")
    (root / "images").mkdir(parents=True, exist_ok=True)
    for index, (split, count) in enumerate((("train", config.num_train), ("val", config.num_val))):
        _write_split(root, split, count, config.image_hw, (seed, index))
    if find_spec("av") is not None:
        write_video(root / "video.mp4", config.image_hw, seed=seed)
    stamp.write_text(wanted, encoding="utf-8")  # last: an interrupted run must not look complete
    return True


def _write_split(root: Path, split: str, count: int, size_hw: tuple[int, int], seed: tuple[int, int]) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        rng = np.random.default_rng((*seed, number))
        image, boxes, labels = draw_shapes(draw_background(size_hw, rng), random_shapes(size_hw, rng))
        name = f"{split}_{number:05d}.jpg"
        write_image(root / "images" / name, image, quality=92)
        images.append({"id": number + 1, "file_name": name, "height": size_hw[0], "width": size_hw[1]})
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            annotations.append(coco_annotation(len(annotations), image=number, label=label, box_xyxy=box))
    content = {"images": images, "annotations": annotations, "categories": coco_categories(CLASS_NAMES)}
    (root / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")


def write_video(path: Path, size_hw: tuple[int, int], *, seed: int, num_frames: int = 60, fps: float = 15.0) -> None:
    """A clip of shapes that drift, turn and bounce off the borders."""
    rng = np.random.default_rng((seed, 9))
    height, width = size_hw
    background, shapes = draw_background(size_hw, rng), random_shapes(size_hw, rng)
    while len(shapes) < 4:
        shapes += random_shapes(size_hw, rng)
    velocity = rng.uniform(-0.012, 0.012, (len(shapes), 2)) * min(size_hw)
    spin = rng.uniform(-0.06, 0.06, len(shapes))
    writer = VideoFile(path, fps)
    for frame in range(num_frames):
        moved = []
        for shape, speed, turn in zip(shapes, velocity, spin, strict=True):
            centre = np.array(shape.centre_xy) + speed * frame
            side = np.array([width, height])
            centre = np.abs((centre + side) % (2 * side) - side)  # bounces off the borders
            moved.append(
                Shape(
                    shape.label,
                    (float(centre[0]), float(centre[1])),
                    shape.radius,
                    shape.angle + turn * frame,
                    shape.color,
                )
            )
        writer.write(draw_shapes(background, moved)[0])
    writer.close()
