"""Predictor: pictures in, detections in those pictures' pixels out. The one path for evaluation, demo and users."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from detector.anchors import split_anchors
from detector.checkpoint import Checkpoint, find_weights, load_checkpoint
from detector.config import ModelConfig, PreprocessConfig, load_config
from detector.data.transforms import fit_image
from detector.errors import InputError
from detector.models import build_detector
from detector.models.layers import fold_batchnorm
from detector.postprocess import Decoder, postprocess
from detector.structures import Detections, Image

PROJECT_ROOT = Path(__file__).resolve().parents[1]


class Predictor:
    """A detector ready for use.

    Args:
        weights: a weights file; config, class names and preprocessing come from the file alone.
        score_threshold: detections at or below are left out.
        nms_threshold: of two boxes of one class with a larger IoU only the better one stays.
        max_detections: per image.
        device: such as "cpu" or "cuda:0".

    Raises:
        InputError: the file is missing, damaged or not a detector's.
    """

    def __init__(
        self,
        weights: str | Path,
        *,
        score_threshold: float = 0.25,
        nms_threshold: float = 0.45,
        max_detections: int = 100,
        device: str = "cpu",
    ) -> None:
        checkpoint = load_checkpoint(weights)
        network = build_detector(checkpoint.model)
        try:
            network.load_state_dict(checkpoint.weights())
        except RuntimeError as error:
            raise InputError(f"{weights}: its tensors do not fit its own config: {error}") from error
        self._prepare(
            network.to(device), checkpoint.model, checkpoint.preprocess, score_threshold, nms_threshold, max_detections
        )

    @classmethod
    def from_network(
        cls,
        network: nn.Module,
        model: ModelConfig,
        preprocess: PreprocessConfig,
        *,
        score_threshold: float = 0.25,
        nms_threshold: float = 0.45,
        max_detections: int = 100,
    ) -> Predictor:
        """A predictor for a network in memory, which is copied and left as it is."""
        self = cls.__new__(cls)
        self._prepare(network, model, preprocess, score_threshold, nms_threshold, max_detections)
        return self

    def _prepare(
        self,
        network: nn.Module,
        model: ModelConfig,
        preprocess: PreprocessConfig,
        score_threshold: float,
        nms_threshold: float,
        max_detections: int,
    ) -> None:
        self.class_names = model.class_names
        self.preprocess = preprocess
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        strides: tuple[int, ...] = network.strides  # type: ignore[assignment]
        self._decoder = Decoder(split_anchors(model.anchors, len(strides)), strides, model.scale_xy)
        self._network = fold_batchnorm(network).to(memory_format=torch.channels_last)
        self._device = next(self._network.parameters()).device

    def predict(self, image_rgb: Image) -> Detections:
        """Detections in one picture.

        Args:
            image_rgb: (H, W, 3) uint8 RGB of any size.

        Returns:
            boxes in pixels of this picture, clipped to it, best first.

        Raises:
            InputError: not such an array.
        """
        return self.predict_batch([image_rgb])[0]

    def predict_batch(self, images_rgb: Sequence[Image]) -> list[Detections]:
        """Detections in several pictures, which may differ in size; one forward pass."""
        if not images_rgb:
            return []
        fitted = []
        for image in images_rgb:
            _check_image(image)
            fitted.append(fit_image(image, self.preprocess.size_hw, letterbox=self.preprocess.letterbox))
        pixels = torch.from_numpy(np.stack([image for image, _ in fitted])).permute(0, 3, 1, 2)  # (B, 3, H, W), uint8
        with torch.inference_mode():
            raw_maps = self._network(to_network_input(pixels, self._device))
        results = postprocess(
            raw_maps,
            self._decoder,
            score_threshold=self.score_threshold,
            nms_threshold=self.nms_threshold,
            max_detections=self.max_detections,
        )
        return [
            Detections(record.to_original(found.boxes_xyxy), found.scores, found.labels)
            for found, (_, record) in zip(results, fitted, strict=True)
        ]


def find_model(model: str | None, weights: str | None) -> tuple[Path, Checkpoint]:
    """The weights that a user means.

    Args:
        model: a weights file, a run folder, a config (whose run is meant), or None.
        weights: a weights file that goes before `model`, or None. With neither, the newest run in weights/, else the
            released weights that come with the project.

    Returns:
        the file and what it holds.

    Raises:
        InputError: there is no such file.
    """
    if weights is not None:
        path = Path(weights)
    elif model is None:
        path = find_weights([Path("weights"), PROJECT_ROOT / "weights"])
    elif Path(model).is_dir():
        path = _of_run(Path(model))
    elif Path(model).suffix in {".yaml", ".yml"}:
        path = _of_run(Path(load_config(model).run_dir or "."))
    else:
        path = Path(model)
    return path, load_checkpoint(path)


def _of_run(run_dir: Path) -> Path:
    for name in ("best.safetensors", "last.safetensors"):
        if (run_dir / name).is_file():
            return run_dir / name
    raise InputError(f"{run_dir}: holds no weights yet; train first, or give --weights FILE")


def to_network_input(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 (B, 3, H, W) -> float32 in [0, 1] on the device, channels_last."""
    return images.to(device, non_blocking=True).to(memory_format=torch.channels_last).float().div_(255)


def _check_image(image: Image) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        given = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"predict: expected an RGB picture as uint8 array (H, W, 3), got {given}")
    if image.size == 0:
        raise InputError(f"predict: expected a picture with pixels, got the shape {image.shape}")
