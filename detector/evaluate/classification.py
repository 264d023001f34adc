"""Runs a classifier on class folders of images, and measures how often it is right.

Legend: B images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from detector.checkpoint import Checkpoint
from detector.config import ClassifierConfig, ClassifyConfig, parse_config_text
from detector.data.image_folder import ClassifiedImages, centre_view, open_image_folder
from detector.data.images import read_image
from detector.errors import InputError
from detector.evaluate.top_k import ranks_of_truth, top_k
from detector.inference.build import build_network
from detector.models.precision import autocast, to_network_input
from detector.runtime.device import find_device
from detector.structures import Floats, Image, Ints

BATCH_SIZE = 32


@dataclass(frozen=True)
class Answer:
    """A classifier's answer for one image.

    Attributes:
        index: the image's index.
        label: the class with the largest logit.
        probability: the probability of that class.
        rank: number of classes ranked above the true one.
        loss: minus the logarithm of the true class's probability.
    """

    index: int
    label: int
    probability: float
    rank: int
    loss: float


def classify_all(
    network: nn.Module,
    dataset: ClassifiedImages,
    indices: Sequence[int],
    config: ClassifyConfig,
    device: torch.device,
    *,
    progress: bool,
) -> list[Answer]:
    """Classifies images, batch by batch.

    Args:
        network: in eval mode.
        dataset: the images.
        indices: which of them to classify.
        config: input size and precision.
        device: the network's device.
        progress: show a bar on stderr.

    Raises:
        InputError: an image cannot be read.
    """
    size = config.input.size

    def view(index: int) -> Image:
        return centre_view(read_image(dataset.paths[index]), size)

    answers: list[Answer] = []
    starts = range(0, len(indices), BATCH_SIZE)
    with ThreadPoolExecutor(2) as readers:
        for start in tqdm(starts, desc="evaluate", unit="batch", disable=not progress, leave=False):
            part = indices[start : start + BATCH_SIZE]
            images = torch.from_numpy(np.stack(list(readers.map(view, part)))).permute(0, 3, 1, 2)  # (B, 3, S, S)
            with torch.inference_mode(), autocast(device, config.train.precision):
                logits = network(to_network_input(images, device)).float().cpu().numpy()
            answers += _answers(part, logits, dataset.labels[list(part)])
    return answers


def _answers(indices: Sequence[int], logits: Floats, truth: Ints) -> list[Answer]:
    """Logits (B, K) and true labels (B,) -> one answer for each image."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    logarithms = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))  # log probabilities, (B, K)
    labels = logarithms.argmax(axis=1)
    rows = np.arange(len(truth))
    columns = (
        indices,
        labels.tolist(),
        np.exp(logarithms[rows, labels]).tolist(),
        ranks_of_truth(logits, truth).tolist(),
        (-logarithms[rows, truth]).tolist(),
    )
    return [Answer(*row) for row in zip(*columns, strict=True)]


def top_k_of(answers: Sequence[Answer]) -> dict[str, float | None]:
    """Top-1 and top-5 as fractions; None without images."""
    return top_k([answer.rank for answer in answers])


def evaluate_checkpoint(
    checkpoint: Checkpoint, *, root: str | None, split: str | None, device: str = "cpu", progress: bool
) -> dict[str, Any]:
    """Top-1 and top-5 of a trained classifier, and the number of images.

    Args:
        checkpoint: holds a classifier.
        root: the data set's folder; None = the one it was trained on.
        split: None = the one it was evaluated on during training.
        device: see `find_device`.
        progress: show a bar on stderr.

    Raises:
        InputError: the data are missing, or have different classes; or there is no such device.
    """
    assert isinstance(checkpoint.model, ClassifierConfig)
    config = parse_config_text(checkpoint.info["config"], "the weights file")
    assert isinstance(config, ClassifyConfig)
    data = open_image_folder(
        root or config.data.root, split or config.data.val, num_classes=checkpoint.model.num_classes
    )
    require_classes(data, checkpoint.info["class_names"], "the training data")
    network = build_network(checkpoint.model)
    network.load_state_dict(checkpoint.weights())
    where = find_device(device)
    network.eval().to(where)
    answers = classify_all(network, data, range(len(data)), config, where, progress=progress)
    return {**top_k_of(answers), "images": len(answers)}


def require_classes(dataset: ClassifiedImages, class_names: Sequence[str], where: str) -> None:
    """Raises: InputError: the class folders are not the `class_names` of `where`."""
    different = set(dataset.class_names) ^ set(class_names)
    if different:
        raise InputError(
            f"{dataset.name}: its class folders differ from those of {where}: only one of them has "
            f"{', '.join(sorted(different)[:5])}"
        )
