"""Predictor: images in, detections in those images' pixels out. Evaluation, demo and users all take this path."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detector.config import PreprocessConfig
from detector.errors import InputError
from detector.inference.backends import open_runtime
from detector.inference.find import Loaded, load_any
from detector.postprocess import Decoder, Places, Thresholds, best_class_only, objectness_limit, postprocess
from detector.preprocess import ImageFit, fit_image
from detector.runtime.protocol import Pixels, Runtime, ends_in_boxes
from detector.runtime.record import ExportRecord
from detector.structures import Detections, Floats, Image

if TYPE_CHECKING:
    from torch import nn

    from detector.inference.build import DetectorModel


class Predictor:
    """A detector ready for use, from any number of threads at once.

    Args:
        model: our weights file (config, class names and preprocessing come from the file alone), an exported file, or
            a Darknet cfg.
        weights: the weights of a cfg; None = the .weights file of the same name beside it.
        backend: what computes the network, see `detector.runtime.protocol.BACKENDS`; "auto" = the fastest on this
            machine, measured once; None = PyTorch for weights, the library of its format for an exported file.
        score_threshold, nms_threshold, max_detections: see `Thresholds`.
        multi_label: False = one box for each object, of its best class, as demo.py and predict.py do; True, as in
            evaluation = several classes may have a box there.
        device: "cpu"; or for PyTorch "cuda" or "cuda:N".

    An exported file that ends in boxes has already suppressed by its own thresholds; of the remaining boxes, those
    that score above `score_threshold` are returned.

    Raises:
        InputError: the file is missing, damaged or does not hold a detector, the backend cannot run it, or a
            threshold is out of range.
    """

    def __init__(
        self,
        model: str | Path,
        weights: str | Path | None = None,
        *,
        backend: str | None = None,
        score_threshold: float = Thresholds.score_threshold,
        nms_threshold: float = Thresholds.nms_threshold,
        max_detections: int = Thresholds.max_detections,
        multi_label: bool = Thresholds.multi_label,
        device: str = "cpu",
    ) -> None:
        thresholds = Thresholds(score_threshold, nms_threshold, max_detections, multi_label)
        loaded = load_any(model, weights)
        self._set_up(
            open_runtime(loaded, backend, device=device),
            loaded.decoder,
            loaded.preprocess,
            loaded.class_names,
            thresholds,
            (model, weights, backend, thresholds, device),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy in another process opens the same files. Raises: InputError: it was made from a network in memory."""
        if self._arguments is None:
            raise InputError("Predictor: only one made as Predictor(PATH) can be sent to another process")
        return _open_again, self._arguments

    def _set_up(
        self,
        runtime: Runtime,
        decoder: Decoder,
        preprocess: PreprocessConfig,
        class_names: tuple[str, ...],
        thresholds: Thresholds,
        arguments: tuple[Any, ...] | None = None,
    ) -> None:
        self.runtime = runtime
        self.decoder = decoder
        self.preprocess = preprocess
        self.class_names = class_names
        self.thresholds = thresholds
        self._process = os.getpid()
        self._arguments = arguments  # of the constructor, to open it again in another process
        self._local = threading.local()  # each thread's own buffer for the network's input

    @classmethod
    def from_loaded(
        cls,
        loaded: Loaded,
        thresholds: Thresholds = Thresholds(),
        *,
        backend: str | None = None,
        device: str = "cpu",
        streams: int = 1,
    ) -> Predictor:
        """A predictor for what `detector.inference.find.find_model` found.

        Arguments and errors as above. With OpenVINO, `streams` images are computed in parallel when this many threads
        call it: each image takes longer, all together take less time.
        """
        return cls.from_runtime(open_runtime(loaded, backend, device=device, streams=streams), loaded, thresholds)

    @classmethod
    def from_runtime(
        cls, runtime: Runtime, loaded: Loaded | ExportRecord, thresholds: Thresholds = Thresholds()
    ) -> Predictor:
        """A predictor for a network that is ready to run, described by what was opened or by an export's record."""
        self = cls.__new__(cls)
        self._set_up(runtime, loaded.decoder, loaded.preprocess, loaded.class_names, thresholds)
        return self

    @classmethod
    def from_network(
        cls,
        network: nn.Module,
        model: DetectorModel,
        preprocess: PreprocessConfig,
        thresholds: Thresholds = Thresholds(),
    ) -> Predictor:
        """A predictor for a network in memory, which is copied and not changed."""
        from detector.inference.build import build_decoder
        from detector.runtime.torch_backend import TorchRuntime

        self = cls.__new__(cls)
        runtime = TorchRuntime(network, device=next(network.parameters()).device)
        self._set_up(runtime, build_decoder(model, network), preprocess, model.class_names, thresholds)
        return self

    def predict(self, image_rgb: Image) -> Detections:
        """Detections in one image.

        Args:
            image_rgb: (H, W, 3) uint8 RGB of any size.

        Returns:
            boxes in pixels of this image, clipped to it, best first.

        Raises:
            InputError: the image is not such an array.
        """
        return self.predict_batch([image_rgb])[0]

    def predict_batch(
        self,
        images_rgb: Iterable[Image],
        *,
        darknet_ranks: bool = False,
        on_stage: Callable[[str], object] = str,
    ) -> list[Detections]:
        """Detections in several images, which may differ in size; one forward pass.

        Args:
            images_rgb: a list or any other iterable of images as in `predict`, or an array (B, H, W, 3).
            darknet_ranks: fill `Detections.darknet_ranks`.
            on_stage: is called at the end of each stage: fit, network, decode.

        Raises:
            InputError: one is not an image, or the process is a fork of the one that opened the backend.
        """
        if not isinstance(images_rgb, Iterable):
            raise InputError(f"predict_batch: expected images, got {type(images_rgb).__name__}")
        images = list(images_rgb)
        if not images:
            return []
        if self._process != os.getpid():
            self._enter_fork()
        pixels, records = self.fit(images)
        on_stage("fit")
        outputs = self._run(pixels)
        on_stage("network")
        decoded = self.decode(outputs, len(records), darknet_ranks=darknet_ranks)
        found = [
            replace(each, boxes_xyxy=record.to_original(each.boxes_xyxy))
            for each, record in zip(decoded, records, strict=True)
        ]
        on_stage("decode")
        return found

    def _run(self, pixels: Pixels) -> Sequence[Floats] | Places:
        """What `decode` takes: raw maps, of which a GPU returns only the places that matter."""
        if self.runtime.name.startswith("torch"):
            from detector.runtime.torch_backend import TorchRuntime

            if isinstance(self.runtime, TorchRuntime) and self.runtime.device.type == "cuda":
                lowest = objectness_limit(self.decoder, self.thresholds.score_threshold)
                return self.runtime.run_above(pixels, [len(anchors) for anchors in self.decoder.anchors_wh], lowest)
        return self.runtime.run(pixels)

    def _enter_fork(self) -> None:
        """Makes a fork able to predict: the threads of the process that it was forked from are gone."""
        if not self.runtime.name.startswith("torch"):
            raise InputError(
                f"Predictor: this process was forked after {self.runtime.name} was opened, whose threads a fork lacks; "
                "make the Predictor in each worker, or start workers with multiprocessing's 'spawn'"
            )
        import torch

        torch.set_num_threads(1)
        self._process = os.getpid()

    def fit(self, images_rgb: Sequence[Image]) -> tuple[Pixels, list[ImageFit]]:
        """The network's input for some images, (B, H, W, 3), and how each was fitted.

        The array is this thread's buffer: it is valid until the thread's next call.
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

    def decode(
        self, outputs: Sequence[Floats] | Places, batch: int, *, darknet_ranks: bool = False
    ) -> list[Detections]:
        """Detections of each image in pixels of the network's input, from the outputs of the runtime."""
        if not isinstance(outputs, Places) and ends_in_boxes(outputs):
            return self._split(outputs, batch)
        return postprocess(outputs, self.decoder, self.thresholds, darknet_ranks=darknet_ranks)

    def _split(self, outputs: Sequence[Floats], batch: int) -> list[Detections]:
        """Boxes of all images together -> those of each image."""
        boxes, scores, labels, image = outputs
        results = []
        for index in range(batch):
            rows = np.flatnonzero((image == index) & (scores > self.thresholds.score_threshold))
            found = Detections(boxes[rows], scores[rows], labels[rows].astype(np.int64))
            if not self.thresholds.multi_label:
                found = best_class_only(found, self.thresholds.nms_threshold)
            results.append(found.best(self.thresholds.max_detections))
        return results


def _open_again(
    model: str | Path, weights: str | Path | None, backend: str | None, thresholds: Thresholds, device: str
) -> Predictor:
    """What `Predictor.__reduce__` calls in the other process."""
    return Predictor(
        model,
        weights,
        backend=backend,
        score_threshold=thresholds.score_threshold,
        nms_threshold=thresholds.nms_threshold,
        max_detections=thresholds.max_detections,
        multi_label=thresholds.multi_label,
        device=device,
    )


def _check_image(image: Image) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        given = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"predict: expected an RGB image as a uint8 array (H, W, 3), got {given}")
    if image.size == 0:
        raise InputError(f"predict: expected an image with pixels, got the shape {image.shape}")
