"""Classification: images in one folder for each class, and Darknet's augmentation for them.

Legend: B images, K classes, S side of the network's square input, H0, W0 size of the image that was read.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torchvision.datasets import ImageFolder

from detector.config import ClassifyConfig, CropConfig
from detector.data.images import read_image
from detector.data.loader import ordered_batches
from detector.data.notes import ReadingNotes
from detector.data.sampler import augmentation_rng, image_index, partner_indices
from detector.data.transforms import adjust_hsv, rand_scale
from detector.errors import InputError
from detector.files import IMAGE_SUFFIXES
from detector.structures import Floats, Image, Ints


@dataclass(frozen=True)
class ClassifiedImages:
    """One split of a classification data set.

    Attributes:
        name: for messages.
        class_names: names of the folders, in alphabetical order; a label is an index into them.
        paths: the image files.
        labels: (I,) int64.
    """

    name: str
    class_names: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: Ints

    def __len__(self) -> int:
        return len(self.paths)

    def __str__(self) -> str:
        return f"{self.name}: {len(self)} images, {len(self.class_names)} classes"


@dataclass(frozen=True)
class ClassBatch:
    """Attributes: images: (B, 3, S, S) uint8; targets: (B, K) float32, rows sum to 1; image_ids: B file paths."""

    images: Tensor
    targets: Tensor
    image_ids: list[int | str]


def open_image_folder(root: str, split: str, *, num_classes: int) -> ClassifiedImages:
    """The images in <root>/<split>/<class>/. Raises: InputError: no such folder, or a different number of classes."""
    folder = Path(root) / split
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected one folder of images for each class in it")
    try:
        found = ImageFolder(str(folder), is_valid_file=lambda path: Path(path).suffix.lower() in IMAGE_SUFFIXES)
    except FileNotFoundError as error:
        text = str(error).split(" Supported")[0].splitlines()[0]
        raise InputError(f"{folder}: expected a folder of images for each class; {text}") from error
    if len(found.classes) != num_classes:
        raise InputError(
            f"{folder}: has {len(found.classes)} class folders, model.num_classes is {num_classes}; make them equal"
        )
    paths, labels = zip(*found.samples, strict=True)
    return ClassifiedImages(
        name=str(folder),
        class_names=tuple(found.classes),
        paths=tuple(Path(path) for path in paths),
        labels=np.array(labels, np.int64),
    )


class ClassSamples(TorchDataset[tuple[Image, Floats, str]]):
    """The augmented image (S, S, 3), its target (K,) and its path, for any (step, slot)."""

    def __init__(self, dataset: ClassifiedImages, config: ClassifyConfig, notes: ReadingNotes | None = None) -> None:
        self.dataset = dataset
        self.config = config
        self.notes = notes or ReadingNotes(dataset.paths, num_workers=0)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Image, Floats, str]:
        """Raises: InputError when an image cannot be read."""
        step, slot = key
        seed, augment = self.config.train.seed, self.config.augment
        rng = augmentation_rng(seed=seed, step=step, slot=slot)
        position = step * self.config.train.batch_size + slot
        first = image_index(seed=seed, position=position, num_images=len(self.dataset))
        choice = rng.random()
        count = 1 if choice < augment.cutmix else 3 if choice < augment.cutmix + augment.mosaic else 0
        others = partner_indices(seed=seed, position=position, num_images=len(self.dataset), count=count, rng=rng)
        images, targets = zip(*(self._load(index, rng) for index in (first, *others)), strict=True)
        path = str(self.dataset.paths[first])
        if count == 0:
            return images[0], targets[0], path
        mix = cutmix if count == 1 else quarter
        return *mix(images, targets, rng), path

    def _load(self, index: int, rng: np.random.Generator) -> tuple[Image, Floats]:
        with self.notes.reading(index):
            image = read_image(self.dataset.paths[index])
        target = np.zeros(len(self.dataset.class_names), np.float32)
        target[self.dataset.labels[index]] = 1
        return random_view(image, self.config.input.size, self.config.augment, rng), target


def random_view(image: Image, size: int, config: CropConfig, rng: np.random.Generator) -> Image:
    """Darknet's random crop (`random_augment_args`, `rotate_crop_image`): (H0, W0, 3) -> (size, size, 3).

    The image is scaled so that its shorter side has min_crop to max_crop pixels, stretched by the aspect, and rotated.
    Then a square is cut at a random place; pixels outside the image repeat its border.
    """
    height, width = image.shape[:2]
    aspect = rand_scale(config.aspect, rng)
    scale = rng.integers(config.min_crop, config.max_crop + 1) / min(height, width * aspect)
    scale_x, scale_y = scale * aspect, scale
    angle = math.radians(rng.uniform(-config.angle, config.angle))
    room_x, room_y = (width * scale_x - size) / 2, (height * scale_y - size) / 2
    shift_x, shift_y = rng.uniform(-1, 1) * max(room_x, 0), rng.uniform(-1, 1) * max(room_y, 0)
    # From positions in the cut square to positions in the image.
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]])
    back = np.diag([1 / scale_x, 1 / scale_y]) @ turn
    centre = np.array([(width - 1) / 2, (height - 1) / 2]) + np.array([shift_x / scale_x, shift_y / scale_y])
    offset = centre - back @ np.array([(size - 1) / 2] * 2)
    matrix = np.column_stack((back, offset))
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    cut = np.asarray(
        cv2.warpAffine(image, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE), np.uint8
    )
    if rng.random() < config.horizontal_flip:
        cut = np.ascontiguousarray(cut[:, ::-1])
    return adjust_hsv(
        cut,
        hue=rng.uniform(-config.hue, config.hue),
        saturation=rand_scale(config.saturation, rng),
        exposure=rand_scale(config.exposure, rng),
    )


def centre_view(image: Image, size: int) -> Image:
    """For evaluation (`resize_min`, `crop_image`): shorter side to `size`, then a centre crop (size, size, 3)."""
    height, width = image.shape[:2]
    scale = size / min(height, width)
    resized_hw = max(round(height * scale), size), max(round(width * scale), size)
    resized = cv2.resize(image, resized_hw[::-1], interpolation=cv2.INTER_LINEAR)
    top, left = (resized_hw[0] - size) // 2, (resized_hw[1] - size) // 2
    return np.ascontiguousarray(resized[top : top + size, left : left + size], np.uint8)


def cutmix(images: Sequence[Image], targets: Sequence[Floats], rng: np.random.Generator) -> tuple[Image, Floats]:
    """Pastes a rectangle of the second image into the first (Yun et al., 2019); targets are mixed by area."""
    size = images[0].shape[0]
    height, width = (round(size * rng.uniform(0.3, 0.8)) for _ in range(2))  # as in Darknet: 9 to 64 % of the area
    top, left = rng.integers(0, size - height + 1), rng.integers(0, size - width + 1)
    mixed = images[0].copy()
    place = slice(top, top + height), slice(left, left + width)
    mixed[place] = images[1][place]
    share = np.float32(height * width / (size * size))
    return mixed, (1 - share) * targets[0] + share * targets[1]


def quarter(images: Sequence[Image], targets: Sequence[Floats], rng: np.random.Generator) -> tuple[Image, Floats]:
    """Mosaic for classifiers: four images around a random point; targets are mixed by area."""
    size = images[0].shape[0]
    x, y = (round(size * rng.uniform(0.2, 0.8)) for _ in range(2))
    mixed, target = images[0].copy(), np.zeros_like(targets[0])
    places = ((slice(0, y), slice(0, x)), (slice(0, y), slice(x, size)), (slice(y, size), slice(0, x)))
    for place, image, label in zip((*places, (slice(y, size), slice(x, size))), images, targets, strict=True):
        mixed[place] = image[place]
        rows, columns = ((part.stop - part.start) for part in place)
        target += np.float32(rows * columns / (size * size)) * label
    return mixed, target


def collate_classes(samples: Sequence[tuple[Image, Floats, str]]) -> ClassBatch:
    """Samples -> a batch, channels last in memory."""
    images, targets, paths = zip(*samples, strict=True)
    return ClassBatch(
        images=torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2),  # (B, 3, S, S)
        targets=torch.from_numpy(np.stack(targets)),
        image_ids=list(paths),
    )


def class_batches(
    dataset: ClassifiedImages, config: ClassifyConfig, *, start_step: int, rank: int = 0, num_ranks: int = 1
) -> Generator[ClassBatch]:
    """Batches of a classification data set for training; see `ordered_batches`."""
    return ordered_batches(
        ClassSamples(dataset, config, ReadingNotes(dataset.paths, config.train.num_workers)),
        collate_classes,
        config.train,
        timeout_seconds=config.data.timeout_seconds,
        start_step=start_step,
        rank=rank,
        num_ranks=num_ranks,
    )
