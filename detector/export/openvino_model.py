"""ONNX graphs -> OpenVINO models, and back to files."""

from __future__ import annotations

from pathlib import Path

import onnx
import openvino

from detector.runtime.openvino_backend import read_model
from detector.runtime.record import METADATA_KEY


def to_openvino(graph: onnx.ModelProto) -> openvino.Model:
    """The same network; nodes keep their names."""
    return read_model(graph.SerializeToString())


def save_openvino(model: openvino.Model, path: Path, record: str, *, fp16: bool) -> None:
    """Writes path (.xml) and the weights (.bin) beside it.

    Args:
        model: to write.
        path: of the .xml.
        record: goes into the runtime information.
        fp16: store the weights in half precision; they are computed with in the runtime's precision.
    """
    model.set_rt_info(record, [METADATA_KEY, "record"])
    openvino.save_model(model, str(path), compress_to_fp16=fp16)
