"""Predictor: pictures in, detections in those pictures' pixels out. The one path for evaluation, demo and users."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from detector.backends import open_runtime
from detector.build import AnyModel, build_decoder
from detector.config import PreprocessConfig
from detector.data.transforms import fit_image
from detector.errors import InputError
from detector.load import Loaded, load_any, load_detector
from detector.postprocess import Decoder, postprocess
from detector.runtime import Pixels, Runtime, ends_in_boxes
from detector.structures import Detections, Floats, Image, Letterbox


class Predictor:
    """A detector ready for use, from any number of threads at once.

    Args:
        model: our weights file (config, class names and preprocessing come from the file alone), an exported file, or
            a Darknet cfg.
        weights: the weights of a cfg; None = the .weights file of the same name beside it.
        backend: what computes the network, see `detector.runtime.BACKENDS`; "auto" = the quickest on this machine,
            measured once; None = PyTorch for weights, the library of its format for an exported file.
        score_threshold: detections at or below are left out.
        nms_threshold: of two boxes of one class with a larger IoU only the better one stays.
        max_detections: per image.
        device: for PyTorch, such as "cpu" or "cuda:0".

    An exported file that ends in boxes has suppressed by its own thresholds already; of what it leaves, those that
    score above `score_threshold` are given.

    Raises:
        InputError: the file is missing, damaged or not a detector's, the backend cannot run it, or a limit is not one.
    """

    runtime: Runtime
    decoder: Decoder
    preprocess: PreprocessConfig
    class_names: tuple[str, ...]
    score_threshold: float
    nms_threshold: float
    max_detections: int
    _local: threading.local
    """Each thread's own buffer for the network's input."""

    def __init__(
        self,
        model: str | Path,
        weights: str | Path | None = None,
        *,
        backend: str | None = None,
        score_threshold: float = 0.25,
        nms_threshold: float = 0.45,
        max_detections: int = 100,
        device: str = "cpu",
    ) -> None:
        loaded = load_any(model) if weights is None else load_detector(model, weights)
        made = Predictor.from_loaded(
            loaded,
            backend=backend,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            max_detections=max_detections,
            device=device,
        )
        self.__dict__.update(made.__dict__)

    @classmethod
    def from_loaded(
        cls,
        loaded: Loaded,
        *,
        backend: str | None = None,
        score_threshold: float = 0.25,
        nms_threshold: float = 0.45,
        max_detections: int = 100,
        device: str = "cpu",
        streams: int = 1,
    ) -> Predictor:
        """A predictor for what `detector.load.find_model` found.

        Arguments and errors as above; with OpenVINO `streams` pictures are computed side by side when as many threads
        call it, which takes longer for each and less for all.
        """
        return cls.from_runtime(
            open_runtime(loaded, backend, device=device, streams=streams),
            decoder=loaded.decoder,
            preprocess=loaded.preprocess,
            class_names=loaded.class_names,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            max_detections=max_detections,
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
        from detector.runtime.torch_backend import TorchRuntime

        return cls.from_runtime(
            TorchRuntime(network, device=next(network.parameters()).device),
            decoder=build_decoder(model, network),
            preprocess=preprocess,
            class_names=model.class_names,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            max_detections=max_detections,
        )

    @classmethod
    def from_runtime(
        cls,
        runtime: Runtime,
        *,
        decoder: Decoder,
        preprocess: PreprocessConfig,
        class_names: tuple[str, ...],
        score_threshold: float = 0.25,
        nms_threshold: float = 0.45,
        max_detections: int = 100,
    ) -> Predictor:
        """A predictor for a network that is ready to run."""
        self = cls.__new__(cls)
        self.runtime = runtime
        self.decoder = decoder
        self.preprocess = preprocess
        self.class_names = class_names
        for name, value in (("score_threshold", score_threshold), ("nms_threshold", nms_threshold)):
            if not 0 <= value <= 1:
                raise InputError(f"Predictor: {name} must be between 0 and 1, got {value}")
        if max_detections < 1:
            raise InputError(f"Predictor: max_detections must be at least 1, got {max_detections}")
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        self._local = threading.local()
        return self

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
        pixels, records = self.fit(images_rgb)
        found = self.decode(self.runtime.run(pixels), len(records), darknet_ranks=darknet_ranks)
        return [
            replace(each, boxes_xyxy=record.to_original(each.boxes_xyxy))
            for each, record in zip(found, records, strict=True)
        ]

    def fit(self, images_rgb: Sequence[Image]) -> tuple[Pixels, list[Letterbox]]:
        """The network's input for some pictures, (B, H, W, 3), and how each was fitted.

        The array is this thread's buffer: it holds until the thread's next call.
        """
        settings, count = self.preprocess, len(images_rgb)
        buffer: Pixels | None = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < count:
            buffer = self._local.buffer = np.empty((count, *settings.size_hw, 3), np.uint8)
        records = []
        for image, row in zip(images_rgb, buffer, strict=False):
            _check_image(image)
            fitted = fit_image(
                image, settings.size_hw, letterbox=settings.letterbox, align_corners=settings.align_corners, out=row
            )
            records.append(fitted[1])
        return buffer[:count], records

    def decode(self, outputs: Sequence[Floats], batch: int, *, darknet_ranks: bool = False) -> list[Detections]:
        """Detections of each image in pixels of the network's input, from the outputs of the runtime."""
        if ends_in_boxes(outputs):
            return self._split(outputs, batch)
        return postprocess(
            outputs,
            self.decoder,
            score_threshold=self.score_threshold,
            nms_threshold=self.nms_threshold,
            max_detections=self.max_detections,
            darknet_ranks=darknet_ranks,
        )

    def _split(self, outputs: Sequence[Floats], batch: int) -> list[Detections]:
        """Boxes of all images together -> those of each image."""
        boxes, scores, labels, image = outputs
        results = []
        for index in range(batch):
            rows = np.flatnonzero((image == index) & (scores > self.score_threshold))[: self.max_detections]
            results.append(Detections(boxes[rows], scores[rows], labels[rows].astype(np.int64)))
        return results


def _check_image(image: Image) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        given = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"predict: expected an RGB picture as uint8 array (H, W, 3), got {given}")
    if image.size == 0:
        raise InputError(f"predict: expected a picture with pixels, got the shape {image.shape}")
