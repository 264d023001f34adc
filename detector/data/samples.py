"""Training samples: the augmented image for any (step, slot), and a cache of decoded images.

Legend: H, W network size.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import numpy as np
from torch.utils.data import Dataset as TorchDataset

from detector.config import DetectConfig
from detector.data.dataset import DetectionDataset
from detector.data.mosaic import mosaic
from detector.data.notes import ReadingNotes
from detector.data.sampler import augmentation_rng, image_index, network_size, partner_indices
from detector.data.transforms import CommonAugmentations, fit_sample, random_crop, random_hsv
from detector.errors import InputError
from detector.structures import Sample

_LOG = logging.getLogger(__name__)


class ImageCache:
    """The samples used last, up to `max_bytes` of pixels; it affects only the speed."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._samples: OrderedDict[tuple[int, int], Sample] = OrderedDict()

    def get(self, key: tuple[int, int]) -> Sample | None:
        """The sample for (image, reduction), or None."""
        sample = self._samples.get(key)
        if sample is not None:
            self._samples.move_to_end(key)
        return sample

    def put(self, key: tuple[int, int], sample: Sample) -> None:
        """Keeps a sample, whose image must not be changed, and drops the least recently used ones above the limit."""
        self._samples[key] = sample
        self.num_bytes += sample.image.nbytes
        while self.num_bytes > self.max_bytes:
            self.num_bytes -= self._samples.popitem(last=False)[1].image.nbytes


class TrainingSamples(TorchDataset[Sample]):
    """The augmented sample for any (step, slot).

    Attributes:
        stage_seconds: the time spent in each stage so far, for `tools/benchmark.py --loader`.
        notes: record of the image that is being read.
    """

    def __init__(self, dataset: DetectionDataset, config: DetectConfig, notes: ReadingNotes | None = None) -> None:
        self.dataset = dataset
        self.config = config
        self.common = CommonAugmentations(config.augment)
        self.cache = ImageCache(config.data.cache_mb * 2**20)
        self.stage_seconds = dict.fromkeys(("read", "decode", "augment", "mosaic"), 0.0)
        self.notes = notes or ReadingNotes(dataset.paths, num_workers=0)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Raises: InputError when an image cannot be read and data.bad_labels is `fail`."""
        step, slot = key
        config = self.config
        seed = config.train.seed
        size_hw = network_size(
            seed=seed,
            step=step,
            max_steps=config.train.max_steps,
            base_hw=config.preprocess.size_hw,
            augment=config.augment,
        )
        rng = augmentation_rng(seed=seed, step=step, slot=slot)
        position = step * config.train.batch_size + slot
        first = image_index(seed=seed, position=position, num_images=len(self.dataset))
        if rng.random() < config.augment.mosaic:
            others = partner_indices(seed=seed, position=position, num_images=len(self.dataset), count=3, rng=rng)
            parts = [self._load(index, size_hw, rng) for index in (first, *others)]
            with self._timed("mosaic"):
                sample = mosaic(parts, rng, recolour=lambda image: random_hsv(image, config.augment, rng))
        else:
            sample = self._load(first, size_hw, rng)
            with self._timed("augment"):
                recoloured = random_hsv(sample.image, config.augment, rng)
                sample = Sample(recoloured, sample.boxes_xyxy, sample.labels, sample.crowd, sample.image_id)
        with self._timed("augment"):
            augmented = self.common(sample, rng)
            if augmented.image.shape[:2] != size_hw:  # a quarter turn of an image that is not square
                augmented = fit_sample(augmented, size_hw, letterbox=config.preprocess.letterbox)
            return augmented

    def _load(self, index: int, size_hw: tuple[int, int], rng: np.random.Generator) -> Sample:
        sample = self._read(index, size_hw)
        config = self.config
        with self._timed("augment"):
            if config.augment.jitter == 0:
                return fit_sample(sample, size_hw, letterbox=config.preprocess.letterbox)
            return random_crop(
                sample, size_hw, jitter=config.augment.jitter, letterbox=config.preprocess.letterbox, rng=rng
            )

    def _read(self, index: int, size_hw: tuple[int, int]) -> Sample:
        """Image `index`; if it cannot be read and the policy allows, the next one that can, with a warning."""
        for offset in range(len(self.dataset)):
            try:
                return self._read_one((index + offset) % len(self.dataset), size_hw)
            except InputError as error:
                if self.config.data.bad_labels == "fail":
                    raise
                _LOG.warning("%s; using the next image instead", error)
        raise InputError(f"{self.dataset.name}: none of its images can be read; tools/doctor.py lists the reasons")

    def _read_one(self, index: int, size_hw: tuple[int, int]) -> Sample:
        height, width = self.dataset.sizes_hw[index].tolist()
        # The narrowest crop keeps this share of a side; it must still have the network's size.
        share = 1 - 2 * self.config.augment.jitter
        reduction = decode_reduction((height, width), (size_hw[0] / share, size_hw[1] / share))
        sample = self.cache.get((index, reduction))
        if sample is None:
            with self.notes.reading(index):
                with self._timed("read"):
                    content = self.dataset.read_bytes(index)
                with self._timed("decode"):
                    sample = self.dataset.decode(index, content, reduction=reduction)
            self.cache.put((index, reduction), sample)
        return sample

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = perf_counter()
        yield
        self.stage_seconds[stage] += perf_counter() - started


def decode_reduction(image_hw: tuple[int, int], needed_hw: tuple[float, float]) -> int:
    """The largest reduction (1, 2, 4 or 8) at which a decoded image still has the pixels that are needed."""
    room = min(image_hw[0] / needed_hw[0], image_hw[1] / needed_hw[1])
    return int(2 ** min(max(math.floor(math.log2(room)), 0), 3))
