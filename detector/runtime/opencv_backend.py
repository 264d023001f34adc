"""OpenCV's DNN module: the engine of the paper's CPU figures."""

from __future__ import annotations

import threading
from pathlib import Path

import cv2
import numpy as np

from detector.errors import InputError
from detector.runtime.protocol import Pixels, run_in_batches, to_planes
from detector.runtime.threads import usable_cpus
from detector.structures import Floats


class OpenCvRuntime:
    """Runs an ONNX model, float32 only. An OpenCV network serves one thread at a time.

    Args:
        model: path or content of an .onnx.
        batch: images per run; None = any number.
        threads: None = all usable processors; OpenCV's own setting, shared with all its functions.

    Raises:
        InputError: it is not an ONNX model, or has operations that OpenCV does not support.
    """

    name = "opencv"

    def __init__(self, model: Path | bytes, *, batch: int | None, threads: int | None = None) -> None:
        content = model if isinstance(model, bytes) else model.read_bytes()
        try:
            self._network = cv2.dnn.readNetFromONNX(np.frombuffer(content, np.uint8))
        except cv2.error as error:
            where = model if isinstance(model, Path) else "the ONNX model"
            raise InputError(f"{where}: OpenCV cannot open it ({error.err})") from error
        cv2.setNumThreads(threads or usable_cpus())
        self._outputs = self._network.getUnconnectedOutLayersNames()
        self._lock = threading.Lock()
        self._batch = batch

    def run(self, images: Pixels) -> list[Floats]:
        """See `Runtime.run`."""
        return run_in_batches(self._run, images, self._batch)

    def _run(self, images: Pixels) -> list[Floats]:
        with self._lock:
            self._network.setInput(to_planes(images))
            return [np.array(output) for output in self._network.forward(self._outputs)]
