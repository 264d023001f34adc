"""Order, sizes and augmentation are pure functions of (seed, step, slot); workers change nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from detector.config import AugmentConfig, DetectConfig, MultiScaleConfig, ProgressiveConfig
from detector.data.batch import Batch
from detector.data.loader import training_batches
from detector.data.sampler import StepSampler, image_index, network_size
from detector.data.samples import TrainingSamples
from detector.data.synthetic import CLASS_NAMES
from detector.train.detection import open_split


def test_every_epoch_shows_every_image_once() -> None:
    indices = [image_index(seed=1, position=position, num_images=10) for position in range(20)]
    assert sorted(indices[:10]) == sorted(indices[10:]) == list(range(10))
    assert indices[:10] != indices[10:]


def size_at(step: int, augment: AugmentConfig, base_hw: tuple[int, int] = (416, 416)) -> tuple[int, int]:
    return network_size(seed=0, step=step, max_steps=2000, base_hw=base_hw, augment=augment)


def test_random_network_sizes() -> None:
    scale = AugmentConfig(multi_scale=MultiScaleConfig(min_size=320, max_size=608, every=10))
    sizes = [size_at(step, scale) for step in range(2000)]
    assert sizes[:10] == [(608, 608)] * 10, "the largest comes first"
    assert sizes[10:20] == [sizes[10]] * 10
    assert {height for height, _ in sizes} == set(range(320, 609, 32))
    assert size_at(5, AugmentConfig()) == (416, 416)
    assert size_at(0, scale, (320, 416)) == (480, 608), "the aspect is kept, in multiples of 32"


def test_network_sizes_that_grow() -> None:
    growing = AugmentConfig(progressive=ProgressiveConfig(start=0.5, until=0.75))
    sides = [size_at(step, growing)[0] for step in range(2000)]
    assert (sides[0], sides[-1]) == (192, 416), "half of 416 is 208, to a multiple of 32"
    assert sides == sorted(sides)
    assert sides[1499] == sides[1500] == 416 > sides[1300], "full size from three quarters of the steps on"
    assert [size_at(step, growing, (160, 224)) for step in (0, 700, 1999)] == [(96, 128), (128, 160), (160, 224)]
    assert size_at(0, growing, (32, 32)) == (32, 32)


def test_step_sampler_splits_a_batch_into_parts() -> None:
    sampler = StepSampler(start_step=3, end_step=5, batch_size=4, subdivisions=2)
    assert len(sampler) == 4
    assert list(sampler)[1] == [(3, 2), (3, 3)]
    assert list(sampler)[-1] == [(4, 2), (4, 3)]


def batches(config: DetectConfig, start: int, end: int) -> list[Batch]:
    config = replace(config, train=replace(config.train, max_steps=end))
    return list(training_batches(open_split(config, "train"), config, start_step=start))


def same(first: Batch, second: Batch) -> bool:
    return (
        torch.equal(first.images, second.images)
        and first.image_ids == second.image_ids
        and torch.equal(first.boxes_xyxy, second.boxes_xyxy)
        and torch.equal(first.labels, second.labels)
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_and_the_starting_point_change_nothing(tiny: Callable[..., DetectConfig], workers: int) -> None:
    options = ["augment.noise=0.5", "augment.rotate90=0.5", "augment.mosaic=0.5"]
    alone = batches(tiny([*options, "train.num_workers=0"]), 0, 4)
    others = batches(tiny([*options, f"train.num_workers={workers}"]), 2, 4)
    assert len(alone) == 8
    assert all(same(a, b) for a, b in zip(alone[4:], others, strict=True))
    assert not same(alone[0], alone[1])
    assert alone[0].images.dtype == torch.uint8


def test_another_seed_gives_other_samples(tiny: Callable[..., DetectConfig]) -> None:
    config, other = tiny(), tiny(["train.seed=1"])
    dataset = open_split(config, "train")
    assert dataset.class_names == CLASS_NAMES
    first, second = TrainingSamples(dataset, config)[(0, 0)], TrainingSamples(dataset, other)[(0, 0)]
    assert first.image.tobytes() != second.image.tobytes()


def test_an_unreadable_image_is_replaced_and_reported(
    tiny: Callable[..., DetectConfig], caplog: pytest.LogCaptureFixture
) -> None:
    from pathlib import Path

    from detector.errors import InputError

    config = tiny(["augment.mosaic=0.0"])
    dataset = open_split(config, "train")
    broken = replace(dataset, paths=[Path("/none.jpg"), *dataset.paths[1:]])
    samples = TrainingSamples(broken, config)
    assert samples._read(0, (64, 64)).image_id == dataset.image_ids[1]
    assert "/none.jpg: cannot be read" in caplog.text
    with pytest.raises(InputError, match="cannot be read"):
        TrainingSamples(broken, tiny(["data.bad_labels=fail"]))._read(0, (64, 64))
