"""A detection data set in memory: where the images are, what is in them, and what was wrong with the labels.

The readers of the annotation formats feed a `DatasetBuilder`; it applies one set of rules to all of them.

Legend: I images, n objects of all images together, in image order.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import sub
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.data.images import decode_image, parse_header, read_bytes, read_header
from detector.data.paths import PathTable
from detector.errors import InputError
from detector.structures import Bools, Floats, Ints, Sample

SMALLEST_SIDE = 0.01
"""Pixels of a box inside the image; float32 cannot tell the sides of smaller ones apart in large images."""
BORDER_TOLERANCE = 1.0
"""Boxes that extend past the image by at most this many pixels are clipped without a report (rounding)."""


@dataclass(frozen=True)
class Problem:
    """Something wrong with a label or an image.

    Attributes:
        where: file, and line or object in it.
        rule: zero_size | outside | partly_outside | not_finite | unknown_class | duplicate | missing_image |
            unreadable_image | unreadable_annotation | duplicate_image | found_elsewhere | shared_labels | ...
        value: what was found there.
        action: clipped | object dropped | image dropped.
    """

    where: str
    rule: str
    value: str
    action: str

    def __str__(self) -> str:
        return f"{self.where}: {self.rule}: {self.value} ({self.action})"


@dataclass(frozen=True)
class DetectionDataset:
    """Images and their objects; the objects are stored in flat arrays, which worker processes share.

    Attributes:
        name: for messages.
        class_names: a label is an index into them.
        paths: I image files.
        image_ids: I ids from the annotation file, or the file stems.
        sizes_hw: (I, 2) int64 heights and widths.
        offsets: (I + 1,) int64; the objects of image i are offsets[i] to offsets[i + 1].
        boxes_xyxy: (n, 4) float32 pixels.
        labels: (n,) int64.
        crowd: (n,) bool; also VOC's "difficult".
        problems: what the rules found.
        truth_xyxy: (n, 4) float64; the same boxes with all their digits, for an evaluation.
        areas: (n,) float64 pixels; COCO's own area of an object where its file states one, else that of the box.
        category_ids: the id of each class in result files.
    """

    name: str
    class_names: tuple[str, ...]
    paths: Sequence[Path]
    image_ids: list[int | str]
    sizes_hw: Ints
    offsets: Ints
    boxes_xyxy: Floats
    labels: Ints
    crowd: Bools
    problems: list[Problem]
    truth_xyxy: NDArray[np.float64]
    areas: NDArray[np.float64]
    category_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def objects(self, index: int) -> slice:
        """The slice of the flat arrays that holds the objects of image `index`."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def targets(self, index: int) -> tuple[Floats, Ints]:
        """Boxes (n, 4) and labels (n,) of image `index` without its crowd regions."""
        objects = self.objects(index)
        real = ~self.crowd[objects]
        return self.boxes_xyxy[objects][real], self.labels[objects][real]

    def read(self, index: int) -> Sample:
        """Image `index` with its objects. Raises: InputError when the image cannot be read."""
        return self.decode(index, self.read_bytes(index))

    def read_bytes(self, index: int) -> bytes:
        """The content of the file of image `index`. Raises: InputError."""
        return read_bytes(self.paths[index])

    def decode(self, index: int, content: bytes, *, reduction: int = 1) -> Sample:
        """Image `index` with its objects, from its file's content.

        Args:
            index: the image's position in the data set.
            content: the bytes of its file.
            reduction: 1, 2, 4 or 8: decode at 1/reduction of the size, which is much faster; boxes are scaled to match.

        Raises:
            InputError: it is not an image, or its size differs from the size in its annotation.
        """
        objects = self.objects(index)
        height, width = self.sizes_hw[index].tolist()
        where = str(self.paths[index])
        header = parse_header(content, where) if content else None
        unclear = header is not None and header.orientation != 1 and header.follows_exif((height, width)) is None
        image = decode_image(
            content,
            where,
            expected_hw=(height, width),
            reduction=reduction,
            follow_exif=not unclear or self.follows_exif,
        )
        scale = np.array([image.shape[1] / width, image.shape[0] / height] * 2, np.float32)
        return Sample(
            image=image,
            boxes_xyxy=self.boxes_xyxy[objects] * scale,
            labels=self.labels[objects].copy(),
            crowd=self.crowd[objects].copy(),
            image_id=self.image_ids[index],
        )

    @cached_property
    def follows_exif(self) -> bool:
        """Whether the labels were made for the images as a viewer shows them, rather than as they are stored.

        The size of the first image with a quarter turn tells; without one, viewers are followed.
        """
        for path, size_hw in zip(self.paths, self.sizes_hw.tolist(), strict=True):
            try:
                told = read_header(path).follows_exif((size_hw[0], size_hw[1]))
            except InputError:
                continue
            if told is not None:
                return told
        return True

    def ground_truth(self) -> tuple[dict[str, Any], list[int], list[int]]:
        """The very objects that training and reports use, as COCO instances for pycocotools.

        Returns:
            the COCO dictionary; the category id of each class; the image id of each image (its own where all images
            have whole numbers, else 1, 2, ...).
        """
        numeric = all(isinstance(image_id, int) for image_id in self.image_ids)
        image_ids = [int(key) if numeric else number for number, key in enumerate(self.image_ids, 1)]
        annotations = [
            {
                "id": position + 1,  # pycocotools treats the id 0 as "unmatched"
                "image_id": image_ids[index],
                "category_id": self.category_ids[self.labels[position]],
                "bbox": _to_xywh(self.truth_xyxy[position].tolist()),
                "area": float(self.areas[position]),
                "iscrowd": int(self.crowd[position]),
            }
            for index in range(len(self))
            for position in range(*self.objects(index).indices(len(self.labels)))
        ]
        categories = [{"id": key, "name": name} for key, name in zip(self.category_ids, self.class_names, strict=True)]
        truth = {"images": [{"id": key} for key in image_ids], "annotations": annotations, "categories": categories}
        return truth, list(self.category_ids), image_ids


def _to_xywh(box_xyxy: list[float]) -> list[float]:
    x1, y1, x2, y2 = box_xyxy
    return [x1, y1, x2 - x1, y2 - y1]


@dataclass
class DatasetBuilder:
    """Collects images and objects and applies the rules for bad labels.

    Attributes:
        name: of the data set.
        class_names: the classes to keep, in the order of the labels; None = all that occur, sorted by name.
        policy: clip | drop | fail (see `DataConfig.bad_labels`).
        keep: whether an image belongs to the wanted part of the split; None = all do.
    """

    name: str
    class_names: tuple[str, ...] | None
    policy: str
    keep: Callable[[Path], bool] | None = None
    problems: list[Problem] = field(default_factory=list)
    _paths: list[Path] = field(default_factory=list)
    _image_ids: list[int | str | None] = field(default_factory=list)
    _sizes: list[tuple[int, int]] = field(default_factory=list)
    _counts: list[int] = field(default_factory=list)
    _boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    _labels: list[int] = field(default_factory=list)
    _crowd: list[bool] = field(default_factory=list)
    _areas: list[float] = field(default_factory=list)
    _seen: set[tuple[int, float, float, float, float]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._label_of = {name: index for index, name in enumerate(self.class_names or ())}
        self._skipping = False  # the objects of an image that is not kept

    def set_class_names(self, names: tuple[str, ...]) -> None:
        """Fixes the classes, before the first object."""
        self.class_names = names
        self._label_of = {name: index for index, name in enumerate(names)}

    def add_image(self, path: Path, *, size_hw: tuple[int, int], image_id: int | str | None = None) -> None:
        """Adds an image; the objects added next belong to it.

        Args:
            path: its file.
            size_hw: its size as its labels count pixels.
            image_id: its id in result files; None = the stem of its name.
        """
        self._skipping = self.keep is not None and not self.keep(path)
        if self._skipping:
            return
        self._paths.append(path)
        self._image_ids.append(image_id)
        self._sizes.append(size_hw)
        self._counts.append(0)
        self._seen.clear()

    def add_object(
        self,
        box_xyxy: tuple[float, float, float, float],
        class_name: str,
        *,
        crowd: bool,
        where: str,
        area: float | None = None,
    ) -> None:
        """Adds an object to the image added last, unless a rule drops it.

        Args:
            box_xyxy: in pixels of the image.
            class_name: one of the data set's classes.
            crowd: whether it is a crowd region.
            where: file, and line or object in it.
            area: in pixels; None = that of the box.
        """
        if self._skipping:
            return None
        if self.class_names is None and class_name:
            self._label_of.setdefault(class_name, len(self._label_of))
        label = self._label_of.get(class_name)
        if label is None:
            return self.report(
                where, "unknown_class", f"{class_name!r} is not one of the model's classes", "object dropped"
            )
        x1, y1, x2, y2 = box_xyxy
        if not math.isfinite(x1 + y1 + x2 + y2):
            return self.report(where, "not_finite", f"{list(box_xyxy)}", "object dropped")
        if x2 <= x1 or y2 <= y1:
            return self.report(where, "zero_size", f"{x2 - x1:g}x{y2 - y1:g} px", "object dropped")
        height, width = self._sizes[-1]
        clipped = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
        if min(clipped[2] - clipped[0], clipped[3] - clipped[1]) < SMALLEST_SIDE:
            return self.report(where, "outside", _box_in_image(box_xyxy, height, width), "object dropped")
        kept = box_xyxy
        if clipped != box_xyxy and max(map(abs, map(sub, box_xyxy, clipped))) > BORDER_TOLERANCE:
            kept = clipped
            action = "clipped" if self.policy == "clip" else "object dropped"
            self.report(where, "partly_outside", _box_in_image(box_xyxy, height, width), action)
            if self.policy != "clip":
                return None
        key = (label, *clipped)
        if key in self._seen:
            return self.report(
                where, "duplicate", f"{class_name} {[round(value, 2) for value in box_xyxy]}", "object dropped"
            )
        self._seen.add(key)
        self._boxes.append(kept)
        self._areas.append(area or (kept[2] - kept[0]) * (kept[3] - kept[1]))
        self._labels.append(label)
        self._crowd.append(crowd)
        self._counts[-1] += 1
        return None

    def report(self, where: str, rule: str, value: str, action: str) -> None:
        self.problems.append(Problem(where, rule, value, action))

    def build(self, category_ids: Sequence[int] | None = None) -> DetectionDataset:
        """The data set. Raises: InputError when it has no images, or has problems and the policy is `fail`.

        Args:
            category_ids: of the classes, in result files; None = 1, 2, ...
        """
        if self.policy == "fail" and self.problems:
            raise InputError(
                f"{self.name}: {summarize(self.problems)}; the first: {self.problems[0]} (data.bad_labels is fail; "
                "tools/doctor.py lists them all)"
            )
        if not self._paths:
            raise InputError(f"{self.name}: no image with a readable annotation ({summarize(self.problems)})")
        names = self.class_names or tuple(sorted(self._label_of))
        index_of = {name: index for index, name in enumerate(names)}
        order = np.array([index_of[name] for name in self._label_of], np.int64)
        return DetectionDataset(
            name=self.name,
            class_names=names,
            paths=PathTable(self._paths),
            image_ids=self._named_ids(),
            sizes_hw=np.array(self._sizes, np.int64).reshape(-1, 2),
            offsets=np.concatenate(([0], np.cumsum(self._counts))).astype(np.int64),
            boxes_xyxy=np.array(self._boxes, np.float32).reshape(-1, 4),
            labels=order[np.array(self._labels, np.int64)],
            crowd=np.array(self._crowd, np.bool_),
            problems=self.problems,
            truth_xyxy=np.array(self._boxes, np.float64).reshape(-1, 4),
            areas=np.array(self._areas, np.float64),
            category_ids=tuple(category_ids or range(1, len(names) + 1)),
        )

    def _named_ids(self) -> list[int | str]:
        """The ids; the stem of the name where none was given, or the path from a common folder where stems repeat."""
        stems = [path.stem for path, key in zip(self._paths, self._image_ids, strict=True) if key is None]
        if len(set(stems)) < len(stems):
            paths = [path.absolute() for path in self._paths]
            common = os.path.commonpath([path.parent for path in paths])
            stems = [os.path.relpath(path, common) for path in paths]
        else:
            stems = [path.stem for path in self._paths]
        return [stem if key is None else key for key, stem in zip(self._image_ids, stems, strict=True)]


def _box_in_image(box_xyxy: tuple[float, float, float, float], height: int, width: int) -> str:
    return f"{[round(value, 2) for value in box_xyxy]} in {width}x{height}"


def describe(dataset: DetectionDataset) -> str:
    """One line on what is in a data set, and what was wrong with it."""
    return f"{dataset.name}: {len(dataset)} images, {len(dataset.labels)} objects, {summarize(dataset.problems)}"


def nothing_to_learn(dataset: DetectionDataset) -> str:
    """Why a data set without a single usable object has none."""
    crowd = f", all {len(dataset.crowd)} of them crowd or difficult" if len(dataset.crowd) else ""
    return f"no object to learn from in {len(dataset)} images{crowd}; {summarize(dataset.problems)}"


def summarize(problems: list[Problem]) -> str:
    """The number of problems by rule, such as "2 zero_size, 1 duplicate"."""
    counts = Counter(problem.rule for problem in problems)
    return ", ".join(f"{count} {rule}" for rule, count in counts.most_common()) or "no problems"
