"""Predictor: pictures in, detections in those pictures' pixels out. The one path for evaluation, demo and users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from detector.build import AnyModel, build_decoder, build_network, require_detector
from detector.checkpoint import find_weights, load_checkpoint
from detector.config import DarknetModelConfig, PreprocessConfig, load_config
from detector.darknet import load_darknet
from detector.darknet.names import find_names, read_names
from detector.data.transforms import fit_image
from detector.errors import InputError
from detector.models.layers import fold_batchnorm
from detector.postprocess import postprocess
from detector.structures import Detections, Image

PROJECT_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class LoadedDetector:
    """A network with all that it takes to use it.

    Attributes:
        path: the file that the weights came from.
        network: in eval mode.
        model: its config section.
        preprocess: how images become its input.
        info: what else the file says: step, metrics, config text; empty for Darknet files.
    """

    path: Path
    network: nn.Module
    model: AnyModel
    preprocess: PreprocessConfig
    info: dict[str, Any]


def load_detector(
    model: str | Path, weights: str | Path | None = None, *, names: str | Path | None = None
) -> LoadedDetector:
    """Loads a detector from our weights file, or from a Darknet cfg and its weights.

    Args:
        model: .safetensors, or .cfg.
        weights: of a .cfg; None = the .weights file of the same name beside it.
        names: file of class names of a .cfg; None = a fitting *.names beside it.

    Raises:
        InputError: a file is missing, damaged, or no detector.
    """
    path = Path(model)
    if path.suffix == ".cfg":
        return _load_darknet_detector(path, Path(weights or path.with_suffix(".weights")), names)
    checkpoint = load_checkpoint(path)
    network = build_network(checkpoint.model)
    try:
        network.load_state_dict(checkpoint.weights())
    except RuntimeError as error:
        raise InputError(f"{path}: its tensors do not fit its own config: {error}") from error
    return LoadedDetector(path, network.eval(), checkpoint.model, checkpoint.preprocess, checkpoint.info)


def _load_darknet_detector(cfg: Path, weights: Path, names: str | Path | None) -> LoadedDetector:
    network = load_darknet(cfg, weights, cpu_parity=False)
    if not network.yolo_sections:
        raise InputError(f"{cfg}: has no [yolo] section; it is a classifier, not a detector")
    num_classes = network.yolo_sections[0].num_classes
    class_names = read_names(Path(names)) if names is not None else find_names(cfg, num_classes)
    require_detector(network, len(class_names), str(cfg))
    _, height, width = network.size_chw
    model = DarknetModelConfig(network.cfg_text, class_names)
    preprocess = PreprocessConfig((height, width), bool(network.net.integer("letter_box", 0)), align_corners=True)
    return LoadedDetector(weights, network, model, preprocess, {})


class Predictor:
    """A detector ready for use.

    Args:
        model: our weights file (config, class names and preprocessing come from the file alone), or a Darknet cfg.
        weights: the weights of a cfg; None = the .weights file of the same name beside it.
        score_threshold: detections at or below are left out.
        nms_threshold: of two boxes of one class with a larger IoU only the better one stays.
        max_detections: per image.
        device: such as "cpu" or "cuda:0".

    Raises:
        InputError: the file is missing, damaged or not a detector's.
    """

    def __init__(
        self,
        model: str | Path,
        weights: str | Path | None = None,
        *,
        score_threshold: float = 0.25,
        nms_threshold: float = 0.45,
        max_detections: int = 100,
        device: str = "cpu",
    ) -> None:
        loaded = load_detector(model, weights)
        self._prepare(
            loaded.network.to(device), loaded.model, loaded.preprocess, score_threshold, nms_threshold, max_detections
        )

    @classmethod
    def from_network(
        cls,
        network: nn.Module,
        model: AnyModel,
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
        model: AnyModel,
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
        self.decoder = build_decoder(model, network)
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

    def predict_batch(self, images_rgb: Sequence[Image], *, darknet_ranks: bool = False) -> list[Detections]:
        """Detections in several pictures, which may differ in size; one forward pass.

        Args:
            images_rgb: as in `predict`.
            darknet_ranks: fill `Detections.darknet_ranks`.
        """
        if not images_rgb:
            return []
        fitted = []
        for image in images_rgb:
            _check_image(image)
            settings = self.preprocess
            fitted.append(
                fit_image(image, settings.size_hw, letterbox=settings.letterbox, align_corners=settings.align_corners)
            )
        pixels = torch.from_numpy(np.stack([image for image, _ in fitted])).permute(0, 3, 1, 2)  # (B, 3, H, W), uint8
        with torch.inference_mode():
            raw_maps = self._network(to_network_input(pixels, self._device))
        results = postprocess(
            raw_maps,
            self.decoder,
            score_threshold=self.score_threshold,
            nms_threshold=self.nms_threshold,
            max_detections=self.max_detections,
            darknet_ranks=darknet_ranks,
        )
        return [
            replace(found, boxes_xyxy=record.to_original(found.boxes_xyxy))
            for found, (_, record) in zip(results, fitted, strict=True)
        ]


def find_model(model: str | None, weights: str | None, names: str | None = None) -> LoadedDetector:
    """The detector that a user means.

    Args:
        model: a weights file, a Darknet cfg, a run folder, a config (whose run is meant), or None.
        weights: a weights file; None = the model's own. With neither, the newest run in weights/, else the released
            weights that come with the project.
        names: file of class names, for a Darknet cfg.

    Raises:
        InputError: there is no such file.
    """
    if model is not None and Path(model).suffix == ".cfg":
        return load_detector(model, weights, names=names)
    if weights is not None:
        return load_detector(weights)
    if model is None:
        return load_detector(find_weights([Path("weights"), PROJECT_ROOT / "weights"]))
    if Path(model).is_dir():
        return load_detector(_of_run(Path(model)))
    if Path(model).suffix in {".yaml", ".yml"}:
        return load_detector(_of_run(Path(load_config(model).run_dir or ".")))
    return load_detector(model)


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
