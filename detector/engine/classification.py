"""Learning to classify: the data, the loss and the metrics of a classifier's run.

Legend: B images, K classes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from detector.build import build_network
from detector.checkpoint import Checkpoint
from detector.config import ClassifierConfig, ClassifyConfig, parse_classify_text
from detector.data.image_folder import ClassBatch, ClassifiedImages, centre_view, class_batches, open_image_folder
from detector.data.images import read_image
from detector.engine.classification_report import write_classification_report
from detector.engine.distributed import Ranks
from detector.engine.log import RunLog, SilentLog
from detector.engine.replay import save_class_batch
from detector.engine.state import RunState
from detector.engine.step import to_network_input, use_bf16
from detector.engine.task import Loss
from detector.errors import InputError
from detector.metrics.top_k import ClassAnswers, ranks_of_all, top_k
from detector.structures import Image

EVALUATION_BATCH = 32


class ClassificationTask:
    """See `Task`.

    Args:
        config: of the experiment.
        ranks: of which this process is one.

    Raises:
        InputError: the folders of the splits differ.
    """

    terms: tuple[str, ...] = ("cross_entropy",)
    metric = "top1"

    def __init__(self, config: ClassifyConfig, ranks: Ranks) -> None:
        self.config = config
        self.ranks = ranks
        data, num_classes = config.data, config.model.num_classes
        self.train_set = open_image_folder(data.root, data.train, num_classes=num_classes)
        self.val_set = open_image_folder(data.root, data.val, num_classes=num_classes)
        require_classes(self.val_set, self.train_set.class_names, self.train_set.name)
        self.notes: dict[str, Any] = {"class_names": list(self.train_set.class_names)}

    def describe_data(self) -> Iterable[str]:
        for dataset in (self.train_set, self.val_set):
            yield f"{dataset.name}: {len(dataset)} images, {len(dataset.class_names)} classes"

    def batches(self, start_step: int, report: Path) -> Generator[ClassBatch]:
        return class_batches(
            self.train_set,
            self.config,
            start_step=start_step,
            rank=self.ranks.rank,
            num_ranks=self.ranks.size,
            report=report,
        )

    def build_loss(self, network: nn.Module) -> Loss:
        del network  # the loss is the same for all
        smoothing, batch_size = self.config.loss.label_smoothing, self.config.train.batch_size

        def compute(logits: Tensor, batch: ClassBatch) -> dict[str, Tensor]:
            targets = smooth(batch.targets.to(self.ranks.device, non_blocking=True), smoothing)
            return {"cross_entropy": cross_entropy(logits.float(), targets, reduction="sum") / batch_size}

        return compute

    def measure(
        self, state: RunState, log: RunLog | SilentLog, ranks: Ranks
    ) -> tuple[dict[str, Any], list[Image], str]:
        """See `Task`."""
        mine = range(ranks.rank, len(self.val_set), ranks.size)
        answers = self._answers(state, mine, progress=log.shows_progress)
        found = ranks.gather(ranks_of_all(self.val_set.labels, answers))
        metrics = ranks.agree(top_k(found) if ranks.first else {})
        return metrics, [], f"top-1 {metrics['top1']:.4f}, top-5 {metrics['top5']:.4f}"

    def save_batch(self, folder: Path, batch: ClassBatch) -> None:
        save_class_batch(folder, batch)

    def write_report(self, path: Path, state: RunState, *, progress: bool) -> None:
        """See `Task`; classifies the whole validation split once more."""
        answers = self._answers(state, range(len(self.val_set)), progress=progress)
        write_classification_report(path, self.config, self.train_set, self.val_set, answers)

    def _answers(self, state: RunState, indices: Sequence[int], *, progress: bool) -> Iterator[ClassAnswers]:
        """Of the network that would be released, to images of the validation split."""
        network = state.evaluated_network()
        training = network.training
        try:
            yield from classify_all(
                network.eval(), self.val_set, indices, self.config, self.ranks.device, progress=progress
            )
        finally:
            network.train(training)


def evaluate_checkpoint(
    checkpoint: Checkpoint, *, root: str | None, split: str | None, progress: bool
) -> dict[str, Any]:
    """Top-1 and top-5 of a trained classifier, and the number of images.

    Args:
        checkpoint: with a classifier.
        root: of the data set; None = the one that it was trained on.
        split: None = the one that it was evaluated on while training.
        progress: show a bar on stderr.

    Raises:
        InputError: the data are not there, or have other classes.
    """
    assert isinstance(checkpoint.model, ClassifierConfig)
    config = parse_classify_text(checkpoint.info["config"], "the weights file")
    data = open_image_folder(
        root or config.data.root, split or config.data.val, num_classes=checkpoint.model.num_classes
    )
    require_classes(data, checkpoint.info["class_names"], "the training data")
    network = build_network(checkpoint.model)
    network.load_state_dict(checkpoint.weights())
    answers = classify_all(network.eval(), data, range(len(data)), config, torch.device("cpu"), progress=progress)
    found = ranks_of_all(data.labels, answers)
    return {**top_k(found), "images": len(found)}


def require_classes(dataset: ClassifiedImages, class_names: Sequence[str], where: str) -> None:
    """Raises: InputError unless the class folders are those of `where`."""
    different = set(dataset.class_names) ^ set(class_names)
    if different:
        raise InputError(
            f"{dataset.name}: its class folders are not those of {where}: {', '.join(sorted(different)[:5])} stands in "
            "one of them only"
        )


def smooth(targets: Tensor, smoothing: float) -> Tensor:
    """Darknet's label smoothing: what was 1 becomes 1 - e, the other classes share e; (B, K) -> (B, K)."""
    if smoothing == 0:
        return targets
    others = max(targets.shape[1] - 1, 1)
    return targets * (1 - smoothing) + (1 - targets) * (smoothing / others)


def classify_all(
    network: nn.Module,
    dataset: ClassifiedImages,
    indices: Sequence[int],
    config: ClassifyConfig,
    device: torch.device,
    *,
    progress: bool,
) -> Iterator[ClassAnswers]:
    """Classifies images, batch by batch.

    Args:
        network: in eval mode.
        dataset: to read from.
        indices: of the images.
        config: input size and precision.
        device: of the network.
        progress: show a bar on stderr.
    """
    dtype = torch.bfloat16 if use_bf16(config.train.precision) else torch.float32
    size = config.input.size

    def view(index: int) -> Image:
        return centre_view(read_image(dataset.paths[index]), size)

    starts = range(0, len(indices), EVALUATION_BATCH)
    with ThreadPoolExecutor(2) as readers:
        for start in tqdm(starts, desc="evaluating", unit="batch", disable=not progress, leave=False):
            part = indices[start : start + EVALUATION_BATCH]
            images = torch.from_numpy(np.stack(list(readers.map(view, part)))).permute(0, 3, 1, 2)  # (B, 3, S, S)
            with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                logits = network(to_network_input(images, device)).float().cpu().numpy()
            yield part, logits
