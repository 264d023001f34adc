"""Samples -> batches, and the training samples themselves."""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from detector.config import ExperimentConfig
from detector.data.dataset import DetectionDataset
from detector.data.mosaic import mosaic
from detector.data.sampler import StepSampler, augmentation_rng, image_index, network_size
from detector.data.transforms import CommonAugmentations, clip_objects, fit_sample, random_crop, random_hsv
from detector.errors import InputError
from detector.structures import Batch, Sample

_LOG = logging.getLogger(__name__)


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of one size -> Batch (B, 3, H, W). Crowd regions are no targets and stay behind."""
    images = torch.from_numpy(np.stack([sample.image for sample in samples])).permute(0, 3, 1, 2).contiguous()
    return Batch(
        images=images,  # (B, 3, H, W)
        boxes_xyxy=[torch.from_numpy(sample.boxes_xyxy[~sample.crowd]) for sample in samples],
        labels=[torch.from_numpy(sample.labels[~sample.crowd]) for sample in samples],
        image_ids=[sample.image_id for sample in samples],
    )


class TrainingSamples(TorchDataset[Sample]):
    """The augmented sample for any (step, slot)."""

    def __init__(self, dataset: DetectionDataset, config: ExperimentConfig) -> None:
        self.dataset = dataset
        self.config = config
        self.common = CommonAugmentations(config.augment)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Raises: InputError when a picture cannot be read and data.bad_labels is `fail`."""
        step, slot = key
        config = self.config
        seed = config.train.seed
        size_hw = network_size(
            seed=seed, step=step, base_hw=config.preprocess.size_hw, multi_scale=config.augment.multi_scale
        )
        rng = augmentation_rng(seed=seed, step=step, slot=slot)
        first = image_index(
            seed=seed, step=step, slot=slot, batch_size=config.train.batch_size, num_images=len(self.dataset)
        )
        if rng.random() < config.augment.mosaic:
            others = rng.integers(len(self.dataset), size=3).tolist()
            sample = mosaic([self._load(index, size_hw, rng) for index in (first, *others)], rng)
        else:
            sample = self._load(first, size_hw, rng)
        augmented = self.common(sample, rng)
        if augmented.image.shape[:2] != size_hw:  # a quarter turn of a picture that is not square
            augmented = fit_sample(augmented, size_hw, letterbox=config.preprocess.letterbox)
        return clip_objects(augmented)

    def _load(self, index: int, size_hw: tuple[int, int], rng: np.random.Generator) -> Sample:
        sample = self._read(index)
        config = self.config
        if config.augment.jitter > 0:
            sample = random_crop(
                sample, size_hw, jitter=config.augment.jitter, letterbox=config.preprocess.letterbox, rng=rng
            )
        else:
            sample = fit_sample(sample, size_hw, letterbox=config.preprocess.letterbox)
        image = random_hsv(sample.image, config.augment, rng)
        return Sample(image, sample.boxes_xyxy, sample.labels, sample.crowd, sample.image_id)

    def _read(self, index: int) -> Sample:
        """Image `index`; where it cannot be read and the policy allows, the next one that can, with a warning."""
        for offset in range(len(self.dataset)):
            try:
                return self.dataset.read((index + offset) % len(self.dataset))
            except InputError as error:
                if self.config.data.bad_labels == "fail":
                    raise
                _LOG.warning("%s; the next image takes its place", error)
        raise InputError(f"{self.dataset.name}: not one image can be read")


def build_loader(
    dataset: DetectionDataset, config: ExperimentConfig, *, start_step: int, end_step: int
) -> DataLoader[Batch]:
    """Batches (in `train.subdivisions` parts) from `start_step` to `end_step`; the same ones for any num_workers."""
    return DataLoader(
        TrainingSamples(dataset, config),  # type: ignore[arg-type]
        batch_sampler=StepSampler(
            start_step=start_step,
            end_step=end_step,
            batch_size=config.train.batch_size,
            subdivisions=config.train.subdivisions,
        ),
        num_workers=config.train.num_workers,
        collate_fn=collate,
        worker_init_fn=_init_worker,
        prefetch_factor=4 if config.train.num_workers else None,
    )


def _init_worker(_: int) -> None:
    """One thread for each worker: they already run side by side."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the main process decides when to stop
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
