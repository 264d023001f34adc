"""What a network is trained on: images of one size with their targets, as tensors.

Legend: H, W height and width in pixels; n objects; B images, M objects at most in one of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Batch:
    """Images of one size with their targets.

    Attributes:
        images: (B, 3, H, W) uint8 RGB; scaled to [0, 1] on the device.
        boxes_xyxy: (B, M, 4) float32, pixels of the network input; M = objects in the image that has most.
        labels: (B, M) int64, -1 where an image has no further object.
        image_ids: B names for messages.
    """

    images: torch.Tensor
    boxes_xyxy: torch.Tensor
    labels: torch.Tensor
    image_ids: list[int | str]

    def __post_init__(self) -> None:
        if not (self.images.ndim == 4 and self.images.shape[1] == 3 and self.images.dtype == torch.uint8):
            raise ValueError(
                f"Batch.images: expected uint8 (B, 3, H, W), got {self.images.dtype} {tuple(self.images.shape)}"
            )
        count = len(self.images)
        if len(self.image_ids) != count:
            raise ValueError(f"Batch.image_ids: expected {count}, got {len(self.image_ids)}")
        if self.labels.ndim != 2 or len(self.labels) != count or self.labels.dtype != torch.int64:
            raise ValueError(
                f"Batch.labels: expected int64 ({count}, M), got {self.labels.dtype} {tuple(self.labels.shape)}"
            )
        if self.boxes_xyxy.shape != (*self.labels.shape, 4) or self.boxes_xyxy.dtype != torch.float32:
            raise ValueError(
                f"Batch.boxes_xyxy: expected float32 {(*self.labels.shape, 4)}, got {self.boxes_xyxy.dtype} "
                f"{tuple(self.boxes_xyxy.shape)}"
            )

    def objects(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The boxes (n, 4) and labels (n,) of one image."""
        here = self.labels[index] >= 0
        return self.boxes_xyxy[index][here], self.labels[index][here]

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, from which a GPU copies while it computes; called by PyTorch's loader."""
        return Batch(self.images.pin_memory(), self.boxes_xyxy.pin_memory(), self.labels.pin_memory(), self.image_ids)
