"""What a trained network shows about its data: which anchors find objects, which labels look wrong.

Legend: n objects of an image, m detections.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from tqdm import tqdm

from detector.data.dataset import DetectionDataset
from detector.errors import InputError
from detector.evaluate.confusion import SHOWN_SCORE, match_detections
from detector.inference.predictor import Predictor
from detector.overlaps import pairwise_iou
from detector.render import draw
from detector.structures import Detections, Floats, Image, Sample

MAX_IMAGES = 2000
"""At most this many images of a data set are examined, evenly spread."""
LOWEST_SCORE = 0.01
MISSING_SCORE = 0.25
BESIDE_IOU = 0.05
SAME_PLACE_IOU = 0.5
"""A detection with a larger IoU is an answer for an object."""
FREE_PLACE_IOU = 0.3
"""A detection with a smaller IoU with every label lies where there is no label."""
CROP_SIDE = 160
COLUMNS = ("rank", "image", "kind", "label", "network", "x1", "y1", "x2", "y2", "surprise")


@dataclass(frozen=True)
class Suspect:
    """A place where label and network disagree.

    Attributes:
        kind: missing (a confident detection, no label) | class (the network sees another class) | place (the network
            sees nothing there).
        index: position of the image in the data set.
        image_id: id of the image.
        box_xyxy: (4,) pixels; of the label, or of the detection without one.
        label: class of the label; "" where there is none.
        network: class that the network sees there; "" = none.
        surprise: minus the logarithm of how often the network disagrees as much or more; see `audit_labels`.
    """

    kind: str
    index: int
    image_id: int | str
    box_xyxy: Floats
    label: str
    network: str
    surprise: float


@dataclass
class LabelAudit:
    """What `audit_labels` found.

    Attributes:
        num_images: images examined.
        num_unreadable: how many of them cannot be read (tools/doctor.py names them).
        suspects: the most surprising first.
        answers: for each anchor, fine to coarse, how many objects it found (score above 0.25, IoU above 0.5).
    """

    num_images: int
    num_unreadable: int = 0
    suspects: list[Suspect] = field(default_factory=list)
    answers: dict[int, int] = field(default_factory=dict)


def audit_labels(predictor: Predictor, dataset: DetectionDataset, *, progress: bool = False) -> LabelAudit:
    """Predicts a data set, usually the training data, and ranks the places where labels and network disagree.

    All kinds share one unit. For a label: how few labels of its class the network finds as badly (the score of its own
    class there), plus how few have as confident a box of another class there, or of any class beside it. For a
    detection without a label: how few such there are, per label of its class.

    Args:
        predictor: has a low score threshold.
        dataset: has labels.
        progress: show a bar on stderr.
    """
    stride = max(math.ceil(len(dataset) / MAX_IMAGES), 1)
    indices = range(0, len(dataset), stride)
    audit = LabelAudit(num_images=len(indices))
    labelled: list[_Labelled] = []
    for index in tqdm(indices, desc="audit labels", disable=not progress, leave=False):
        try:
            sample = dataset.read(index)
        except InputError:
            audit.num_unreadable += 1
            continue
        found = predictor.predict(sample.image)
        _count_answers(audit, sample, found)
        labelled.append(_look_at(index, sample, found))
    audit.suspects = _ranked(labelled, dataset.class_names)
    return audit


@dataclass(frozen=True)
class _Labelled:
    """An image's labels and what the network says of them.

    Attributes:
        index, image_id: of the image.
        boxes_xyxy, labels: (n, 4), (n,) without crowds.
        own: (n,) best score of the label's class there; LOWEST_SCORE if there is none.
        other: (n,) the same for the other classes.
        other_label: (n,) which class that is, -1 = none.
        beside: (n,) best score of a box that overlaps this label a little, and no label well.
        free: the detections where there is no label.
    """

    index: int
    image_id: int | str
    boxes_xyxy: Floats
    labels: np.ndarray
    own: np.ndarray
    other: np.ndarray
    other_label: np.ndarray
    beside: np.ndarray
    free: Detections


def _look_at(index: int, sample: Sample, found: Detections) -> _Labelled:
    boxes, labels = sample.boxes_xyxy[~sample.crowd], sample.labels[~sample.crowd]
    overlaps = _overlaps(sample.boxes_xyxy, found.boxes_xyxy)  # (all, m)
    best = overlaps.max(axis=0, initial=0)
    iou = overlaps[~sample.crowd]
    same, there = labels[:, None] == found.labels[None], iou > SAME_PLACE_IOU
    others = np.where(there & ~same, found.scores, 0).reshape(len(labels), -1)
    other_label = np.full(len(labels), -1)
    if len(found):
        other_label = np.where(others.max(axis=1) > 0, found.labels[others.argmax(axis=1)], -1)
    beside = (iou > BESIDE_IOU) & (best < SAME_PLACE_IOU)
    free = found.take(np.flatnonzero((best < FREE_PLACE_IOU) & (found.scores > MISSING_SCORE)))
    return _Labelled(
        index,
        sample.image_id,
        boxes,
        labels,
        own=_best_score(there & same, found),
        other=_best_score(there & ~same, found),
        other_label=other_label,
        beside=_best_score(beside, found),
        free=free,
    )


def _overlaps(labels_xyxy: Floats, found_xyxy: Floats) -> np.ndarray:
    """IoU of labels and detections (n, m)."""
    return pairwise_iou(labels_xyxy, found_xyxy)


def _best_score(which: np.ndarray, found: Detections) -> np.ndarray:
    """Best score of the marked detections (n, m) of each label; LOWEST_SCORE where there is none."""
    scores = np.where(which, found.scores[None], 0).max(axis=1, initial=0)
    return np.asarray(np.maximum(scores, LOWEST_SCORE))


def _ranked(images: Sequence[_Labelled], names: tuple[str, ...]) -> list[Suspect]:
    suspects: list[Suspect] = []
    for label, name in enumerate(names):
        mine = [(image, row) for image in images for row in np.flatnonzero(image.labels == label).tolist()]
        own, other, beside = (
            np.array([getattr(image, kind)[row] for image, row in mine]) for kind in ("own", "other", "beside")
        )
        surprise = _rarity(-own, -own) + np.maximum(
            np.where(other > LOWEST_SCORE, _rarity(other, other), 0),
            np.where(beside > LOWEST_SCORE, _rarity(beside, beside), 0),
        )
        for number in np.flatnonzero(own <= SHOWN_SCORE).tolist():
            image, row = mine[number]
            seen = other[number] > max(own[number], LOWEST_SCORE)
            network = names[image.other_label[row]] if seen else ""
            kind = "class" if seen else "place"
            box = image.boxes_xyxy[row]
            suspects.append(Suspect(kind, image.index, image.image_id, box, name, network, float(surprise[number])))
        free = [(image, row) for image in images for row in np.flatnonzero(image.free.labels == label).tolist()]
        scores = np.array([image.free.scores[row] for image, row in free])
        for (image, row), value in zip(free, _rarity(scores, scores, among=len(mine)), strict=True):
            box = image.free.boxes_xyxy[row]
            suspects.append(Suspect("missing", image.index, image.image_id, box, "", name, float(value)))
    return sorted(suspects, key=lambda suspect: suspect.surprise, reverse=True)


def _rarity(values: np.ndarray, population: np.ndarray, *, among: int | None = None) -> np.ndarray:
    """Minus the logarithm of the share of the population (or of `among`) that is at least as large as each value."""
    ordered = np.sort(population)
    as_large = len(ordered) - np.searchsorted(ordered, values, side="left")
    total = max(len(ordered) if among is None else among, int(as_large.max(initial=0)))
    return np.asarray(-np.log((as_large + 1) / (total + 2)))


def _count_answers(audit: LabelAudit, sample: Sample, found: Detections) -> None:
    shown = found.above(SHOWN_SCORE)
    for _, column in match_detections(sample.boxes_xyxy[~sample.crowd], shown).pairs:
        assert shown.anchors is not None, "postprocess fills it"
        anchor = int(shown.anchors[column])
        audit.answers[anchor] = audit.answers.get(anchor, 0) + 1


def pictures(dataset: DetectionDataset, suspects: Sequence[Suspect]) -> list[Image]:
    """The surroundings of each suspect: all labels thin and white, the suspect in its colour."""
    names = dataset.class_names
    return [
        _cut_out(dataset.read(each.index), each.box_xyxy, names.index(each.label or each.network), names)
        for each in suspects
    ]


def list_of(suspects: Sequence[Suspect], dataset: DetectionDataset) -> str:
    """Suspects as the text of a CSV file, with the columns of `COLUMNS`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for rank, each in enumerate(suspects, start=1):
        corners = [round(float(value), 1) for value in each.box_xyxy]
        place = str(dataset.paths[each.index])
        writer.writerow([rank, place, each.kind, each.label, each.network, *corners, round(each.surprise, 2)])
    return text.getvalue()


def _cut_out(sample: Sample, box: np.ndarray, label: int, names: tuple[str, ...]) -> Image:
    """The surroundings of a box, three times its size: all labels thin and white, the box itself in its colour."""
    canvas = sample.image.copy()
    for x1, y1, x2, y2 in np.rint(sample.boxes_xyxy).astype(int).tolist():
        cv2.rectangle(canvas, (x1, y1), (x2, y2), (255, 255, 255), 1)
    suspect = Detections(box[None].astype(np.float32), np.ones(1, np.float32), np.array([label], np.int64))
    canvas = draw(canvas, suspect, names, scores=False)
    centre, half = (box[:2] + box[2:]) / 2, max(1.5 * float((box[2:] - box[:2]).max()), 24.0)
    x1, y1 = np.maximum(np.rint(centre - half), 0).astype(int)
    x2, y2 = np.rint(centre + half).astype(int)
    window = canvas[y1:y2, x1:x2]
    scale = CROP_SIDE / max(window.shape[:2])
    size = (max(round(window.shape[1] * scale), 1), max(round(window.shape[0] * scale), 1))
    return np.asarray(cv2.resize(window, size, interpolation=cv2.INTER_AREA), np.uint8)
