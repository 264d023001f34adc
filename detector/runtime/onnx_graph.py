"""Our networks -> ONNX graphs whose nodes and values are named after the modules that they come from.

Legend: B images, A anchors of a scale, C classes, N places of all scales, K boxes that are kept.
"""

from __future__ import annotations

import ast
import logging
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from detector.anchors import cell_corners, decode_boxes, split_raw_map
from detector.errors import InputError
from detector.models.layers import fold_batchnorm
from detector.postprocess import Decoder, Thresholds
from detector.runtime.record import METADATA_KEY

T = TypeVar("T")
OPSET = 18
INPUT_NAME = "images"
BOX_OUTPUTS = ("boxes", "scores", "labels", "image")
SCOPES_KEY = "pkg.torch.onnx.name_scopes"


def to_onnx(
    network: nn.Module,
    size_hw: tuple[int, int],
    *,
    batch: int | None = 1,
    dynamic: bool = False,
    ending: tuple[Decoder, Thresholds] | None = None,
) -> onnx.ModelProto:
    """A network for inference as ONNX: "images" (B, 3, H, W) float32 in [0, 1] -> "raw_0", "raw_1", ...

    Normalisation is folded into the convolutions. Every node and its output are named PATH/OPERATION after the module
    that they come from, so that layers can be compared one by one.

    Args:
        network: images -> list of raw maps; is not changed.
        size_hw: size of the input, multiples of 32.
        batch: images per run; None = any number.
        dynamic: accept any height and width that are multiples of 32.
        ending: how to get from raw maps to boxes, best first, each class suppressed separately. The outputs are then
            "boxes" (K, 4) float32 xyxy in network-input pixels, "scores" (K,) float32, "labels" (K,) int64 and "image"
            (K,) int64, the index within the batch. None = the outputs are raw maps.

    Raises:
        InputError: an ending for a detector that suppresses by distance (Darknet's diounms), which ONNX lacks.
    """
    folded = fold_batchnorm(network).cpu()
    if ending is None:
        return _convert(folded, size_hw, batch=batch, dynamic=dynamic)
    decoder, suppression = ending
    if decoder.nms_beta is not None:
        raise InputError("--with-nms: this detector suppresses by DIoU, which ONNX does not support; leave it out")
    model = _convert(DecodedDetector(folded, decoder), size_hw, batch=batch, dynamic=dynamic)
    _append_suppression(model.graph, suppression)
    onnx.checker.check_model(model)
    return model


class DecodedDetector(nn.Module):
    """Images -> boxes (B, N, 4) in network-input pixels and scores (B, C, N), before any suppression."""

    def __init__(self, network: nn.Module, decoder: Decoder) -> None:
        super().__init__()
        self.network = network
        self.decoder = decoder
        for index, anchors in enumerate(decoder.anchors_wh):
            self.register_buffer(f"anchors_{index}", torch.from_numpy(anchors)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        decoder = self.decoder
        boxes, scores = [], []
        for index, raw_map in enumerate(self.network(images)):
            anchors = getattr(self, f"anchors_{index}")  # (A, 1, 1, 2)
            values = split_raw_map(raw_map, len(anchors))  # (B, A, h, w, 5 + C)
            decoded = decode_boxes(
                values[..., :4],
                cell_corners(raw_map.shape[2], raw_map.shape[3], images.device),
                anchors,
                stride=decoder.strides[index],
                scale_xy=decoder.scale_xy[index],
                new_coords=decoder.new_coords,
            )
            boxes.append(decoded.flatten(1, 3))  # (B, A * h * w, 4)
            active = values if decoder.new_coords else values.sigmoid()
            products = active[..., 5:] * active[..., 4:5]  # (B, A, h, w, C)
            scores.append(products.flatten(1, 3).transpose(1, 2))  # (B, C, A * h * w)
        return torch.cat(boxes, dim=1), torch.cat(scores, dim=2)


def _convert(network: nn.Module, size_hw: tuple[int, int], *, batch: int | None, dynamic: bool) -> onnx.ModelProto:
    # An example of one image would fix the batch size, so any number is traced with two images.
    example = torch.rand(2 if batch is None else batch, 3, *size_hw)
    shape: dict[int, object] = {} if batch is not None else {0: torch.export.Dim("batch", min=1)}
    if dynamic:
        shape |= {axis: 32 * torch.export.Dim(f"cells_{axis}", min=1) for axis in (2, 3)}
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            network.eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT_NAME],
            dynamic_shapes=(shape,) if shape else None,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _name_after_modules(model.graph)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides the exporter's notes on its own progress from our users."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _name_after_modules(graph: onnx.GraphProto) -> None:
    """Renames nodes and values; drops the exporter's notes, which include paths of source files."""
    final = {value.name: f"raw_{index}" for index, value in enumerate(graph.output)}
    counts: Counter[str] = Counter()
    renamed: dict[str, str] = {}
    for node in graph.node:
        scopes = {prop.key: prop.value for prop in node.metadata_props}.get(SCOPES_KEY, "['']")
        path = [scope for scope in ast.literal_eval(scopes)[:-1] if scope]
        name = f"{path[-1] if path else 'network'}/{node.op_type}"
        counts[name] += 1
        node.name = name if counts[name] == 1 else f"{name}_{counts[name]}"
        for index, output in enumerate(node.output):
            renamed[output] = final.get(output, node.name if index == 0 else f"{node.name}:{index}")
        del node.metadata_props[:]
        node.doc_string = ""
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed[name] for name in node.output]
    for value in graph.output:
        value.name = renamed[value.name]
    del graph.value_info[:]
    del graph.metadata_props[:]


def _append_suppression(graph: onnx.GraphProto, suppression: Thresholds) -> None:
    """Appends to a graph of boxes (B, N, 4) and scores (B, C, N) the choice of the best boxes of each class."""
    boxes, scores = (value.name for value in graph.output)
    constants = {
        "most": helper.make_tensor("most", TensorProto.INT64, [1], [suppression.max_detections]),
        "overlap": helper.make_tensor("overlap", TensorProto.FLOAT, [1], [suppression.nms_threshold]),
        "lowest": helper.make_tensor("lowest", TensorProto.FLOAT, [1], [suppression.score_threshold]),
        "columns": helper.make_tensor("columns", TensorProto.INT64, [3], [1, 1, 1]),
        "image_and_place": helper.make_tensor("image_and_place", TensorProto.INT64, [2], [0, 2]),
        "flat": helper.make_tensor("flat", TensorProto.INT64, [1], [-1]),
    }
    graph.initializer.extend(constants.values())
    steps: list[tuple[str, Sequence[str], Sequence[str], dict[str, Any]]] = [
        ("NonMaxSuppression", [boxes, scores, "most", "overlap", "lowest"], ["chosen"], {}),  # (K, 3)
        ("GatherND", [scores, "chosen"], ["chosen_scores"], {}),
        ("Shape", ["chosen_scores"], ["count"], {}),
        ("TopK", ["chosen_scores", "count"], ["scores", "order"], {"axis": 0}),
        ("Gather", ["chosen", "order"], ["ordered"], {"axis": 0}),
        ("Gather", ["ordered", "image_and_place"], ["places"], {"axis": 1}),
        ("GatherND", [boxes, "places"], ["boxes"], {}),
        ("Split", ["ordered", "columns"], ["image_column", "label_column", "place_column"], {"axis": 1}),
        ("Reshape", ["image_column", "flat"], ["image"], {}),
        ("Reshape", ["label_column", "flat"], ["labels"], {}),
    ]
    for number, (operation, inputs, outputs, attributes) in enumerate(steps):
        node = helper.make_node(operation, inputs, outputs, name=f"suppression/{operation}_{number}", **attributes)
        graph.node.append(node)
    del graph.output[:]
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT64)
    for name, kind in zip(BOX_OUTPUTS, kinds, strict=True):
        graph.output.append(helper.make_tensor_value_info(name, kind, ["K", 4] if name == "boxes" else ["K"]))


def set_record(model: onnx.ModelProto, text: str) -> None:
    """Puts the record into the model's metadata."""
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, text


def last_nodes_of_modules(nodes: Iterable[tuple[str, T]]) -> dict[str, T]:
    """Path of each module that computes something -> the last of its nodes.

    Args:
        nodes: names from `to_onnx`, each with any object, in the order of computation.
    """
    last: dict[str, T] = {}
    for name, node in nodes:
        path = name.rsplit("/", 1)[0].removeprefix("network.")
        for end in range(path.count(".") + 1):
            last[path.rsplit(".", end)[0]] = node
    return last


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network with weights and features in half precision; inputs and outputs stay float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True)
    return half
