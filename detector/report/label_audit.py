"""What a trained network shows about its data: which anchors find objects, which labels look wrong.

Legend: n objects of an image, m detections.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from tqdm import tqdm

from detector.boxes import pairwise_iou
from detector.data.dataset import DetectionDataset
from detector.errors import InputError
from detector.evaluate.confusion import SHOWN_SCORE, match_detections
from detector.inference.predictor import Predictor
from detector.render import draw
from detector.structures import Detections, Image, Sample

MAX_IMAGES = 2000
"""At most this many images of a data set are examined, evenly spread."""
NUM_SUSPECTS = 24
LOWEST_SCORE = 0.01
MISSING_SCORE = 0.5
MISSING_IOU = 0.3
CROP_SIDE = 160


@dataclass(frozen=True)
class Suspect:
    """A place where label and network disagree.

    Attributes:
        image: the place and its surroundings.
        image_id: id of the image it is in.
        class_name: class of the label, or of the detection without a label.
        value: the object's loss, or the detection's score.
    """

    image: Image
    image_id: int | str
    class_name: str
    value: float


@dataclass
class LabelAudit:
    """What `audit_labels` found.

    Attributes:
        num_images: images examined.
        num_unreadable: how many of them cannot be read (tools/doctor.py names them).
        hard: objects that the network still misses (no box of their class scores above 0.25), the highest loss first.
        missing: confident detections where there is no label, the highest score first.
        answers: for each anchor, fine to coarse, how many objects it found (score above 0.25, IoU above 0.5).
    """

    num_images: int
    num_unreadable: int = 0
    hard: list[Suspect] = field(default_factory=list)
    missing: list[Suspect] = field(default_factory=list)
    answers: dict[int, int] = field(default_factory=dict)


def audit_labels(predictor: Predictor, dataset: DetectionDataset, *, progress: bool = False) -> LabelAudit:
    """Predicts a data set, usually the training data, and collects where labels and network disagree.

    Args:
        predictor: has a low score threshold.
        dataset: has labels.
        progress: show a bar on stderr.
    """
    stride = max(math.ceil(len(dataset) / MAX_IMAGES), 1)
    indices = range(0, len(dataset), stride)
    audit = LabelAudit(num_images=len(indices))
    for index in tqdm(indices, desc="audit labels", disable=not progress, leave=False):
        try:
            sample = dataset.read(index)
        except InputError:
            audit.num_unreadable += 1
            continue
        found = predictor.predict(sample.image)
        _count_answers(audit, sample, found)
        losses = object_losses(sample, found)
        names = dataset.class_names
        for row in np.flatnonzero(~sample.crowd & (losses > -math.log(SHOWN_SCORE))).tolist():
            _keep(audit.hard, sample, names, sample.boxes_xyxy[row], int(sample.labels[row]), losses[row])
        for row in unlabelled(sample, found):
            _keep(audit.missing, sample, names, found.boxes_xyxy[row], int(found.labels[row]), found.scores[row])
    return audit


def object_losses(sample: Sample, found: Detections) -> np.ndarray:
    """(n,): minus the logarithm of the best score of an object's own class on it (IoU above 0.5).

    4.6 if no such detection scores above 0.01 (or the predictor's threshold).
    """
    scores = np.full(len(sample.labels), LOWEST_SCORE)
    if len(found):
        iou = pairwise_iou(torch.from_numpy(sample.boxes_xyxy), torch.from_numpy(found.boxes_xyxy)).numpy()  # (n, m)
        covers = (iou > 0.5) & (sample.labels[:, None] == found.labels[None])
        scores = np.maximum(scores, (covers * found.scores[None]).max(axis=1, initial=0))
    return np.asarray(-np.log(scores))


def unlabelled(sample: Sample, found: Detections) -> list[int]:
    """Confident detections that overlap no object of any class."""
    confident = [row for row in range(len(found)) if found.scores[row] > MISSING_SCORE]
    if not len(sample.labels):
        return confident
    iou = pairwise_iou(torch.from_numpy(found.boxes_xyxy), torch.from_numpy(sample.boxes_xyxy)).numpy()  # (m, n)
    return [row for row in confident if iou[row].max() < MISSING_IOU]


def _count_answers(audit: LabelAudit, sample: Sample, found: Detections) -> None:
    shown = found.above(SHOWN_SCORE)
    for _, column in match_detections(sample.boxes_xyxy[~sample.crowd], shown).pairs:
        assert shown.anchors is not None, "postprocess fills it"
        anchor = int(shown.anchors[column])
        audit.answers[anchor] = audit.answers.get(anchor, 0) + 1


def _keep(
    suspects: list[Suspect],
    sample: Sample,
    names: tuple[str, ...],
    box: np.ndarray,
    label: int,
    value: float,
) -> None:
    """Adds a suspect if it is among the worst so far; only those are cut out of their images."""
    if len(suspects) == NUM_SUSPECTS and value <= suspects[-1].value:
        return
    suspects.append(Suspect(_cut_out(sample, box, label, names), sample.image_id, names[label], float(value)))
    suspects.sort(key=lambda suspect: suspect.value, reverse=True)
    del suspects[NUM_SUSPECTS:]


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
