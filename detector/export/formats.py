"""Writes a detector in one of the formats; the gate checks that the file agrees with the weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from detector.config import ModelConfig, PreprocessConfig
from detector.darknet import DarknetNetwork
from detector.darknet.export import export_detector
from detector.errors import InputError
from detector.export.gate_data import GateData, MeasureAP50
from detector.inference.weights import LoadedDetector
from detector.runtime.formats import format_of
from detector.runtime.onnx_graph import set_record, to_half, to_onnx
from detector.runtime.protocol import Pixels
from detector.runtime.record import METADATA_KEY, ExportRecord


def write_format(loaded: LoadedDetector, record: ExportRecord, data: GateData, out: Path) -> dict[str, Any]:
    """Writes the file, in the format of its suffix.

    Args:
        loaded: the weights.
        record: what the file says about itself.
        data: for int8: images to calibrate on, and the AP50 to keep.
        out: the file.

    Returns:
        notes on the quantization for int8, else nothing.

    Raises:
        InputError: the format does not support a part of the network, or int8 without labels.
    """
    name = format_of(out)
    if name == "darknet":
        return _write_darknet(loaded, record.preprocess, out)
    graph = to_onnx(
        loaded.network,
        record.preprocess.size_hw,
        batch=record.batch,
        dynamic=record.dynamic,
        ending=None if record.suppression is None else (record.decoder, record.suppression),
    )
    if name == "onnx":
        return _write_onnx(graph, record, data, out)
    return _write_openvino(graph, record, data, out)


def _write_darknet(loaded: LoadedDetector, preprocess: PreprocessConfig, out: Path) -> dict[str, Any]:
    assert isinstance(loaded.model, ModelConfig)
    exported = export_detector(loaded.network, loaded.model, preprocess)  # type: ignore[arg-type]
    write_darknet(exported, loaded.class_names, out)
    return {}


def write_darknet(network: DarknetNetwork, class_names: Sequence[str], out: Path) -> None:
    """Writes OUT (.cfg), and .weights and .names beside it. Raises: InputError: it cannot be written."""
    out.write_text(network.cfg_text, encoding="utf-8")
    network.save_weights(out.with_suffix(".weights"))
    out.with_suffix(".names").write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")


def _write_onnx(graph: onnx.ModelProto, record: ExportRecord, data: GateData, out: Path) -> dict[str, Any]:
    notes: dict[str, Any] = {}
    if record.precision == "fp16":
        graph = to_half(graph)
    elif record.precision == "int8":
        from detector.export.quantize import quantize

        graph, notes = quantize(graph, *_quantize_arguments(record, data))
    set_record(graph, record.to_json())
    onnx.save(graph, str(out))
    return notes


def _write_openvino(graph: onnx.ModelProto, record: ExportRecord, data: GateData, out: Path) -> dict[str, Any]:
    import openvino

    from detector.runtime.openvino_backend import read_model

    model = read_model(graph.SerializeToString())
    notes: dict[str, Any] = {}
    if record.precision == "int8":
        from detector.export.quantize import quantize

        model, notes = quantize(model, *_quantize_arguments(record, data))
    model.set_rt_info(record.to_json(), [METADATA_KEY, "record"])
    openvino.save_model(model, str(out), compress_to_fp16=record.precision == "fp16")
    return notes


def _quantize_arguments(record: ExportRecord, data: GateData) -> tuple[Pixels, int, MeasureAP50, float]:
    if data.measure is None:
        raise InputError(
            f"--precision int8: needs --data PATH with labelled objects to measure AP50 on; it was given {data.origin}"
        )
    return data.images, data.num_images, data.measure, record.gate["tolerances"]["ap50"]
