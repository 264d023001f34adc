"""Checks a data set before a long training run, and reports what it finds."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

from detector.anchors import best_possible_recall, fit_anchors
from detector.data.dataset import DetectionDataset, Problem, nothing_to_learn
from detector.data.image_folder import open_image_folder
from detector.data.images import read_header, read_image
from detector.data.open import NO_DATASET, find_layout, open_dataset
from detector.errors import InputError

COCO_ANCHORS = ((10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (59, 119), (116, 90), (156, 198), (373, 326))
ERROR_RULES = {
    "missing_image",
    "unreadable_image",
    "unreadable_annotation",
    "unreadable_split",
    "missing_labels",
    "label_without_image",
    "left_out",
    "no_objects",
}


@dataclass
class SplitReport:
    """What one split contains.

    Attributes:
        name: of the split.
        images: number of images.
        objects: number of objects of each class, including classes with none.
        empty_images: images without an object.
        side_quantiles: 5, 25, 50, 75 and 95 % quantiles of the square roots of the box areas, in original pixels.
        recall: best possible recall of each anchor set at IoU 0.5 and 0.7, boxes scaled to the network's size.
        fitted_anchors: as many anchors as were given, fitted to this split; none where it has fewer boxes.
        problems: with labels and images.
    """

    name: str
    images: int
    objects: dict[str, int]
    empty_images: int
    side_quantiles: list[float]
    recall: dict[str, tuple[float, float]]
    fitted_anchors: list[tuple[int, int]]
    problems: list[Problem]


@dataclass
class DoctorReport:
    """The results for all splits.

    Attributes:
        size_hw: network size that the anchors are for.
        splits: one report for each.
        notes: things to know that are not problems.
        shared: images that are in two splits, unless one is part of the other by its name (train, trainval).
    """

    size_hw: tuple[int, int]
    splits: list[SplitReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)

    def exit_code(self) -> int:
        """0 nothing found, 1 warnings, 2 errors (missing or unreadable files)."""
        problems = [problem for split in self.splits for problem in split.problems]
        if any(problem.rule in ERROR_RULES for problem in problems):
            return 2
        return 1 if problems or self.shared else 0


def examine(
    path: str | Path,
    *,
    images_dir: str | Path | None = None,
    size_hw: tuple[int, int] = (416, 416),
    anchors: Sequence[tuple[float, float]] = COCO_ANCHORS,
    read_images: bool = True,
) -> DoctorReport:
    """Examines all splits of a data set.

    Args:
        path: anything that `open_dataset` takes.
        images_dir: folder with the images of a COCO file.
        size_hw: network size that the anchors are fitted for.
        anchors: (width, height) in pixels at that size.
        read_images: decode every image and compare contents across splits; this is the slow part.

    Raises:
        InputError: no split can be opened.
    """
    report, contents = DoctorReport(size_hw), {}
    failures = []
    layout = find_layout(Path(path), images_dir=Path(images_dir) if images_dir is not None else None)
    if layout.others:
        others = ", ".join(layout.others)
        report.notes.append(f"read as {layout.format}; there are also {others}: give the file or folder to choose")
    for split in layout.splits:
        name = split
        try:
            dataset = open_dataset(path, split, images_dir=images_dir)
            _note_turns(dataset, report)
        except InputError as error:
            failures.append(Problem(name, "unreadable_split", str(error), "split skipped"))
            continue
        found = _examine_split(name, dataset, size_hw, anchors)
        if dataset.crowd.all():
            found.problems.append(Problem(name, "no_objects", nothing_to_learn(dataset), "cannot be trained on"))
        if read_images:
            contents[name] = _read_all(dataset, found.problems)
        report.splits.append(found)
    if not report.splits:
        raise InputError("; ".join(problem.value for problem in failures) or f"{path}: {NO_DATASET}")
    report.splits[0].problems.extend(failures)
    _compare_splits(contents, report)
    return report


def _examine_split(
    name: str, dataset: DetectionDataset, size_hw: tuple[int, int], anchors: Sequence[tuple[float, float]]
) -> SplitReport:
    counts = Counter(dataset.labels.tolist())
    boxes = torch.from_numpy(dataset.boxes_xyxy)
    sides = boxes[:, 2:] - boxes[:, :2]  # (n, 2), original pixels
    images = torch.from_numpy(dataset.sizes_hw).repeat_interleave(torch.from_numpy(dataset.offsets).diff(), dim=0)
    scaled = sides * torch.tensor(size_hw[::-1]) / images.flip(1)  # (n, 2), network pixels
    candidates = {"given anchors": torch.tensor(anchors, dtype=torch.float32)}
    fitted = torch.zeros(0, 2)
    if len(scaled) >= len(anchors):
        fitted = fit_anchors(scaled, len(anchors))
        candidates["fitted anchors"] = fitted
    quantiles = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    return SplitReport(
        name=name,
        images=len(dataset),
        objects={name: counts[label] for label, name in enumerate(dataset.class_names)},
        empty_images=int((torch.from_numpy(dataset.offsets).diff() == 0).sum()),
        side_quantiles=sides.prod(1).sqrt().quantile(quantiles).tolist() if len(sides) else [],
        recall={
            key: (best_possible_recall(scaled, value), best_possible_recall(scaled, value, threshold=0.7))
            for key, value in candidates.items()
            if len(scaled)
        },
        fitted_anchors=[(round(w), round(h)) for w, h in fitted.tolist()],
        problems=list(dataset.problems),
    )


def _read_all(dataset: DetectionDataset, problems: list[Problem]) -> dict[str, str]:
    """Decodes every image; returns content hash -> file name."""
    hashes: dict[str, str] = {}
    for path, (height, width) in zip(dataset.paths, dataset.sizes_hw.tolist(), strict=True):
        try:
            read_image(path, expected_hw=(height, width))
            digest = hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()
        except InputError as error:
            problems.append(Problem(str(path), "unreadable_image", str(error), "image skipped"))
            continue
        if digest in hashes:
            problems.append(Problem(str(path), "duplicate_image", f"same content as {hashes[digest]}", "kept"))
        hashes[digest] = path.name
    return hashes


def _note_turns(dataset: DetectionDataset, report: DoctorReport) -> None:
    """Says how images with an EXIF orientation are read."""
    told: Counter[bool | None] = Counter()
    for path, (height, width) in zip(dataset.paths, dataset.sizes_hw.tolist(), strict=True):
        try:
            header = read_header(path)
        except InputError:
            continue
        if header.orientation != 1:
            told[header.follows_exif((height, width))] += 1
    if told:
        turned = "as a viewer shows them" if dataset.follows_exif else "as they are stored, as the stated sizes say"
        unclear = f"; of {told[None]} of them the sizes do not tell" if told[None] else ""
        report.notes.append(f"{dataset.name}: {told.total()} images have an EXIF orientation, read {turned}{unclear}")


def _compare_splits(contents: dict[str, dict[str, str]], report: DoctorReport) -> None:
    names = list(contents)
    for position, first in enumerate(names):
        for second in names[position + 1 :]:
            common = contents[first].keys() & contents[second].keys()
            smaller, larger = sorted((first, second), key=lambda name: len(contents[name]))
            # "train" as part of "trainval" is intended; "test" in "train" is not.
            if common and len(common) == len(contents[smaller]) and Path(smaller).stem in Path(larger).stem:
                report.notes.append(f"{smaller} is part of {larger} ({len(common)} images)")
            elif common:
                example = contents[first][min(common)]
                report.shared.append(f"{first} and {second} share {len(common)} images, such as {example}")


def report_text(report: DoctorReport, *, max_problems: int = 20) -> str:
    """The report as text; it lists at most `max_problems` problems of each split."""
    lines: list[str] = []
    for split in report.splits:
        total = sum(split.objects.values())
        lines.append(
            f"{split.name}: {split.images} images, {total} objects, {split.empty_images} images without objects"
        )
        lines.append("  classes: " + ", ".join(f"{name} {count}" for name, count in split.objects.items()))
        if split.side_quantiles:
            sides = " / ".join(f"{side:.0f}" for side in split.side_quantiles)
            lines.append(f"  box side (5/25/50/75/95 %): {sides} px")
        for key, (half, high) in split.recall.items():
            lines.append(f"  best possible recall, {key}: {half:.4f} at IoU 0.5, {high:.4f} at IoU 0.7")
        if split.fitted_anchors:
            size = f"{report.size_hw[1]}x{report.size_hw[0]}"
            fitted = [list(pair) for pair in split.fitted_anchors]
            lines.append(f"  {len(fitted)} anchors fitted to it for {size}: {fitted}")
        lines += [f"  {problem}" for problem in split.problems[:max_problems]]
        if len(split.problems) > max_problems:
            lines.append(f"  ... and {len(split.problems) - max_problems} more (--json lists all)")
    lines += [f"note: {note}" for note in report.notes] + [f"warning: {shared}" for shared in report.shared]
    verdict = ("nothing found", "warnings", "errors: missing or unreadable files")[report.exit_code()]
    return "\n".join([*lines, f"verdict: {verdict}"])


def examine_folders(root: str, splits: tuple[str, ...], *, num_classes: int) -> list[Problem]:
    """Reads every image of a classification data set.

    Args:
        root: folder of the data set.
        splits: folders in it.
        num_classes: number of classes that each split must have.

    Returns:
        a problem for each image that cannot be read.

    Raises:
        InputError: a split is missing or has a different number of classes.
    """
    problems: list[Problem] = []

    def read(path: Path) -> Problem | None:
        try:
            read_image(path)
        except InputError as error:
            return Problem(str(path), "unreadable_image", str(error).removeprefix(f"{path}: "), "stops training")
        return None

    with ThreadPoolExecutor() as pool:
        for split in splits:
            dataset = open_image_folder(root, split, num_classes=num_classes)
            problems += [problem for problem in pool.map(read, dataset.paths) if problem is not None]
    return problems
