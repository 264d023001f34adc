"""Samples -> batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from detector.data.batch import Batch
from detector.structures import Sample


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of one size -> Batch (B, 3, H, W). Crowd regions are not targets and are left out.

    The pixels keep their order in memory, which is PyTorch's channels_last.
    """
    images = torch.from_numpy(np.stack([sample.image for sample in samples])).permute(0, 3, 1, 2)
    return Batch(
        images=images,  # (B, 3, H, W)
        boxes_xyxy=pad_sequence([torch.from_numpy(sample.boxes_xyxy[~sample.crowd]) for sample in samples], True),
        labels=pad_sequence([torch.from_numpy(sample.labels[~sample.crowd]) for sample in samples], True, -1),
        image_ids=[sample.image_id for sample in samples],
    )
