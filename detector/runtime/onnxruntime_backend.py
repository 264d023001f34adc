"""ONNX Runtime, on the CPU."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from detector.errors import InputError
from detector.runtime.protocol import Pixels, run_in_batches, to_planes
from detector.runtime.record import METADATA_KEY
from detector.runtime.threads import usable_cpus
from detector.structures import Floats


class OnnxRuntime:
    """Runs an ONNX file.

    Args:
        model: its path or its content.
        batch: images per run; None = any number.
        threads: None = all usable processors.

    Raises:
        InputError: it is not an ONNX model, or has operations that ONNX Runtime does not support.
    """

    name = "onnxruntime"

    def __init__(self, model: Path | bytes, *, batch: int | None, threads: int | None = None) -> None:
        self._session = _open(model, threads or usable_cpus())
        self._input = self._session.get_inputs()[0].name
        self._batch = batch

    def run(self, images: Pixels) -> list[Floats]:
        """See `Runtime.run`."""
        return run_in_batches(self._run, images, self._batch)

    def _run(self, images: Pixels) -> list[Floats]:
        return list(self._session.run(None, {self._input: to_planes(images)}))


def record_text(path: Path) -> str:
    """The record in a file's metadata; empty = none. Raises: InputError: ONNX Runtime cannot open the file."""
    return str(_open(path, 1, optimize=False).get_modelmeta().custom_metadata_map.get(METADATA_KEY, ""))


def _open(model: Path | bytes, threads: int, *, optimize: bool = True) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; warnings are for the library's developers
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no narrower common class
        where = model if isinstance(model, Path) else "the ONNX model"
        raise InputError(f"{where}: ONNX Runtime cannot open it ({str(error).splitlines()[0]})") from error
