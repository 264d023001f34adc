"""Networks of the timm library as backbones. Only this file imports timm, which is an extra (`pip install timm`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detector.errors import InputError
from detector.models.interface import Backbone

PREFIX = "timm/"
LEVELS = (4, 8, 16, 32)


class TimmBackbone(Backbone):
    """timm's network NAME with random weights: images (B, 3, S, S) in [0, 1] -> maps at strides 4, 8, 16, 32.

    Images are normalised by the mean and standard deviation that the network's published weights were trained with.
    This is part of the network, so exports have it too.

    Args:
        name: as timm calls it, such as "cs3darknet_focus_s".

    Raises:
        InputError: timm is not installed, has no such network, or the network has no maps at these strides.
    """

    strides: tuple[int, ...] = LEVELS
    mean: Tensor
    std: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        reductions = _create(name).feature_info.reduction()
        missing = [stride for stride in LEVELS if stride not in reductions]
        if missing:
            raise InputError(
                f"model.backbone.name: {PREFIX}{name} has maps at strides {', '.join(map(str, reductions))}, "
                f"not at {', '.join(map(str, missing))}"
            )
        self.indices = tuple(len(reductions) - 1 - reductions[::-1].index(stride) for stride in LEVELS)
        self.body = _create(name, out_indices=self.indices)
        self.out_channels: tuple[int, ...] = tuple(self.body.feature_info.channels())
        published: dict[str, Any] = self.body.pretrained_cfg
        self.register_buffer("mean", torch.tensor(published["mean"]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(published["std"]).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.body((images - self.mean) / self.std))

    @property
    def repository(self) -> str:
        """OWNER/REPOSITORY of the published weights on huggingface.co; "" where there are none."""
        published: dict[str, Any] = self.body.pretrained_cfg
        return str(published.get("hf_hub_id") or "")

    def load_published(self, file: Path) -> None:
        """Takes the weights of a classifier as timm publishes it (model.safetensors). Raises: InputError."""
        if not file.is_file():
            raise InputError(
                f"model.backbone.file: {file} is missing; get model.safetensors of huggingface.co/{self.repository}"
            )
        options: dict[str, Any] = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}
        _create(self.name, features_only=False, **options)  # refuses what does not fit; the next line would ignore it
        published = _create(self.name, out_indices=self.indices, **options)
        self.body.load_state_dict(published.state_dict())


def _create(name: str, *, features_only: bool = True, **options: Any) -> Any:
    """A network of timm that returns maps, or class scores. Raises: InputError."""
    try:
        import timm
    except ImportError as error:
        raise InputError(f"model.backbone.name: {PREFIX}{name} needs timm; run: pip install timm") from error
    try:
        return timm.create_model(name, features_only=features_only, **options)
    except Exception as error:  # an unknown name, a network without maps, a file that does not fit
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"model.backbone.name: {PREFIX}{name}: {reason}") from error
