"""The random choices of each step. They are pure functions of (seed, step, slot): any step can be reproduced.

`step` counts optimiser steps from 0; `slot` is the position in the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from torch.utils.data import Sampler

from detector.config import AugmentConfig
from detector.structures import Ints

PARTNER_WINDOW = 64
_ORDER, _SIZE, _AUGMENT = 0, 1, 2


def image_index(*, seed: int, position: int, num_images: int) -> int:
    """The image at a position (step * batch_size + slot); every epoch has its own permutation of all images."""
    return int(_permutation(seed, position // num_images, num_images)[position % num_images])


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_images: int) -> Ints:
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(num_images)


def partner_indices(*, seed: int, position: int, num_images: int, count: int, rng: np.random.Generator) -> list[int]:
    """The images that join the one at `position` in a mosaic: recent ones, which may still be cached."""
    distances = rng.integers(1, PARTNER_WINDOW + 1, size=count).tolist()
    places = [position - distance if position >= distance else position + distance for distance in distances]
    return [image_index(seed=seed, position=place, num_images=num_images) for place in places]


def augmentation_rng(*, seed: int, step: int, slot: int) -> np.random.Generator:
    """The generator for all other random choices of a slot."""
    return np.random.default_rng((seed, _AUGMENT, step, slot))


def network_size(
    *, seed: int, step: int, max_steps: int, base_hw: tuple[int, int], augment: AugmentConfig
) -> tuple[int, int]:
    """Height and width of the network's input at a step, multiples of 32.

    With `progressive` it grows from a share of `base_hw` to `base_hw`. With `multi_scale`, a new long side is drawn
    every `every` steps, uniformly; the short side keeps the aspect. The first steps then have the largest size, as
    in Darknet: if memory is too small, the run fails at once. Else it is `base_hw`.
    """
    multi_scale, progressive = augment.multi_scale, augment.progressive
    if progressive is not None:
        done = min(step / (max_steps * progressive.until), 1)
        share = progressive.start + (1 - progressive.start) * done
        return _with_long_side(base_hw, 32 * round(max(base_hw) * share / 32))
    if multi_scale is None:
        return base_hw
    group = step // multi_scale.every
    choices = np.arange(multi_scale.min_size // 32, multi_scale.max_size // 32 + 1)
    long_side = 32 * int(choices[-1] if group == 0 else np.random.default_rng((seed, _SIZE, group)).choice(choices))
    return _with_long_side(base_hw, long_side)


def _with_long_side(base_hw: tuple[int, int], long_side: int) -> tuple[int, int]:
    longest = max(base_hw)
    height, width = (max(32, 32 * round(side * long_side / longest / 32)) for side in base_hw)
    return height, width


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Lists of (step, slot), one list for each part of a batch, from `start_step` to `end_step`.

    With several ranks (processes that train together), each has its own consecutive slots of every part. Together they
    see the same parts as a single process.
    """

    def __init__(
        self,
        *,
        start_step: int,
        end_step: int,
        batch_size: int,
        subdivisions: int,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self.start_step = start_step
        self.end_step = end_step
        part_size = batch_size // subdivisions
        share = part_size // num_ranks
        starts = range(rank * share, batch_size, part_size)
        self.parts = [range(start, start + share) for start in starts]

    def __len__(self) -> int:
        return (self.end_step - self.start_step) * len(self.parts)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.start_step, self.end_step):
            for part in self.parts:
                yield [(step, slot) for slot in part]
