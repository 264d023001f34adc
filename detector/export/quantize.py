"""INT8 by NNCF, within a declared budget of AP50."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import onnx
import openvino

os.environ.setdefault("NNCF_CI", "1")  # otherwise NNCF sends usage data to its developers
import nncf
from nncf import QuantizationPreset
from nncf.quantization.advanced_parameters import AdvancedAccuracyRestorerParameters

from detector.errors import InputError
from detector.runtime.onnx_graph import INPUT_NAME
from detector.runtime.onnxruntime_backend import OnnxRuntime
from detector.runtime.protocol import Pixels, Runtime, run_in_batches, to_planes
from detector.runtime.signal_stack import kept_signal_stack
from detector.structures import Floats

MAX_CALIBRATION_IMAGES = 300
MAX_RANKING_IMAGES = 64
"""Layers are ranked by their cost in AP50 on this many images; the budget itself is measured on all."""
NNCF_SHARE_OF_BUDGET = 0.5
"""NNCF measures in float32, the gate as users run the file (bf16 where possible); the other half covers that."""
Model = TypeVar("Model", openvino.Model, onnx.ModelProto)
Measure = Callable[[Runtime, Sequence[int]], float]


class _Compiled:
    """A runtime around an OpenVINO model that NNCF compiled."""

    name = "int8"

    def __init__(self, compiled: openvino.CompiledModel) -> None:
        self._compiled = compiled

    def run(self, images: Pixels) -> list[Floats]:
        return run_in_batches(self._run, images, 1)

    def _run(self, images: Pixels) -> list[Floats]:
        outputs = self._compiled([to_planes(images)])
        return [outputs[index].copy() for index in range(len(outputs))]


def quantize(
    model: Model, images: Pixels, num_images: int, measure: Measure, max_drop: float
) -> tuple[Model, dict[str, Any]]:
    """Quantizes to INT8; puts layers back into floating point until AP50 falls by at most half of `max_drop`.

    Args:
        model: takes one image; is not changed.
        images: (B, H, W, 3) uint8 of the network's size, to calibrate with; the first 300 are used.
        num_images: number of images that `measure` can use.
        measure: AP50 of a runtime on the images with these indices.
        max_drop: the AP50 budget.

    Returns:
        the model, and notes: the number of convolutions, the names of those kept in floating point, and the number of
        calibration images.

    Raises:
        InputError: NNCF cannot quantize this network. The gate checks whether the budget is met.
    """
    nncf.set_log_level(logging.ERROR)
    images = images[:MAX_CALIBRATION_IMAGES]

    def validate(prepared: Any, indices: Iterable[int]) -> tuple[float, None]:
        if isinstance(prepared, onnx.ModelProto):
            runtime: Runtime = OnnxRuntime(prepared.SerializeToString(), batch=1)
        else:
            runtime = _Compiled(prepared)
        return measure(runtime, [int(index) for index in indices]), None

    def to_input(image: Pixels) -> Any:
        planes = to_planes(image[None])
        return planes if isinstance(model, openvino.Model) else {INPUT_NAME: planes}

    try:
        with kept_signal_stack(), contextlib.redirect_stdout(sys.stderr):  # NNCF's progress bars
            quantized: Model = nncf.quantize_with_accuracy_control(
                model,
                nncf.Dataset(list(images), to_input),
                nncf.Dataset(list(range(num_images))),
                validate,
                max_drop=NNCF_SHARE_OF_BUDGET * max_drop,
                preset=QuantizationPreset.MIXED,
                subset_size=len(images),
                advanced_accuracy_restorer_parameters=AdvancedAccuracyRestorerParameters(
                    ranking_subset_size=min(num_images, MAX_RANKING_IMAGES)
                ),
            )
    except Exception as error:  # NNCF's exceptions have no narrower common class
        raise InputError(f"--precision int8: NNCF cannot quantize this network: {error}") from error
    names, kept = _convolutions(quantized)
    notes = {"convolutions": len(names), "kept_in_float": kept, "calibration_images": len(images)}
    return quantized, notes


def _convolutions(model: openvino.Model | onnx.ModelProto) -> tuple[list[str], list[str]]:
    """Names of all convolutions, and of those whose weights are not integers."""
    if isinstance(model, openvino.Model):
        nodes = [node for node in model.get_ops() if "Convolution" in node.get_type_name()]
        names = [node.get_friendly_name() for node in nodes]
        return names, [name for name, node in zip(names, nodes, strict=True) if not _reads_integers(node)]
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    made_by = {output: node.op_type for node in model.graph.node for output in node.output}
    names = [node.name for node in convolutions]
    return names, [node.name for node in convolutions if made_by.get(node.input[1]) != "DequantizeLinear"]


def _reads_integers(convolution: openvino.Node) -> bool:
    """Whether a convolution's weights are integers."""
    node = convolution.input_value(1).get_node()
    while node.get_type_name() != "Constant":
        if node.get_type_name() == "FakeQuantize":
            return True
        node = node.input_value(0).get_node()
    return node.get_element_type() in (openvino.Type.i8, openvino.Type.u8)
