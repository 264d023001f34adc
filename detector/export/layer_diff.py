"""Layer by layer: the first module of a network whose output an export does not reproduce.

Legend: B images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detector.darknet import load_darknet
from detector.darknet.export import convolution_paths
from detector.models.detector import Detector
from detector.models.layers import fold_batchnorm
from detector.runtime.formats import format_of
from detector.runtime.onnx_graph import last_nodes_of_modules
from detector.runtime.protocol import Pixels, relative_difference, to_planes
from detector.structures import Floats


@dataclass(frozen=True)
class Layer:
    """Inputs and output of one module of the network for the images of a comparison."""

    inputs: tuple[Tensor, ...]
    output: Floats


def run_layers(network: nn.Module, images: Pixels) -> dict[str, Layer]:
    """Inputs and output of every module that returns one tensor, by its path, in the order in which they finish.

    Modules that are used more than once are left out: their path does not tell which use is meant.

    Args:
        network: is copied; normalisation is folded as in the exports.
        images: (B, H, W, 3) uint8.
    """
    folded = fold_batchnorm(network).cpu()
    layers: dict[str, Layer] = {}
    calls: Counter[str] = Counter()

    taken: dict[str, tuple[Tensor, ...]] = {}

    def take(path: str, inputs: tuple[Any, ...]) -> None:
        if all(isinstance(value, Tensor) for value in inputs):
            taken[path] = tuple(value.clone() for value in inputs)  # activations work in place, so copies are kept

    def give(path: str, output: Any) -> None:
        calls[path] += 1
        if path in taken and isinstance(output, Tensor):
            layers[path] = Layer(taken[path], output.numpy().copy())

    for path, module in folded.named_modules():
        if path:
            module.register_forward_pre_hook(lambda _, inputs, path=path: take(path, inputs))
            module.register_forward_hook(lambda _, __, output, path=path: give(path, output))
    with torch.no_grad():
        folded(torch.from_numpy(to_planes(images)))
    return {path: layer for path, layer in layers.items() if calls[path] == 1}


def first_difference(
    expected: Mapping[str, Layer], given: Mapping[str, Floats], tolerance: float
) -> dict[str, Any] | None:
    """The first module whose output is out of tolerance; None = all modules that both have agree.

    Args:
        expected: from `run_layers`, in the order of computation.
        given: outputs of the export by the same paths.
        tolerance: see `Tolerances.maps`.
    """
    for path, layer in expected.items():
        if path in given:
            difference = relative_difference(layer.output, given[path])
            if not difference <= tolerance:
                return {"layer": path, "difference": difference, "shape": list(layer.output.shape)}
    return None


def run_export_layers(path: Path, network: nn.Module, images: Pixels) -> dict[str, Floats]:
    """Outputs of a network's modules in an exported file, by the modules' paths.

    Args:
        path: .onnx, .xml or .cfg.
        network: the one that was exported.
        images: (B, H, W, 3) uint8.
    """
    name = format_of(path)
    if name == "onnx":
        return _onnx_layers(path, images)
    if name == "openvino":
        return _openvino_layers(path, images)
    return _darknet_layers(path, network, images)


def _onnx_layers(path: Path, images: Pixels) -> dict[str, Floats]:
    import onnx

    from detector.runtime.onnxruntime_backend import OnnxRuntime

    model = onnx.load(path)
    values = last_nodes_of_modules((node.name, node.output[0]) for node in model.graph.node)
    known = {output.name for output in model.graph.output}
    for name in dict.fromkeys(values.values()):
        if name not in known:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    names = [output.name for output in model.graph.output]
    outputs = dict(zip(names, OnnxRuntime(model.SerializeToString(), batch=None).run(images), strict=True))
    return {path: outputs[name] for path, name in values.items()}


def _openvino_layers(path: Path, images: Pixels) -> dict[str, Floats]:
    import openvino

    from detector.runtime.openvino_backend import OpenVinoRuntime, read_model

    model = read_model(path)
    nodes = [(node.get_friendly_name(), node) for node in model.get_ordered_ops() if "/" in node.get_friendly_name()]
    ends = last_nodes_of_modules(nodes)
    last_of = {path: node.get_friendly_name() for path, node in ends.items()}
    unique = {node.get_friendly_name(): node for node in ends.values()}
    model = openvino.Model([node.output(0) for node in unique.values()], model.get_parameters(), "layers")
    outputs = dict(zip(unique, OpenVinoRuntime(model, batch=None).run(images), strict=True))
    return {path: outputs[name] for path, name in last_of.items()}


def _darknet_layers(path: Path, network: nn.Module, images: Pixels) -> dict[str, Floats]:
    assert isinstance(network, Detector)
    written = load_darknet(path, path.with_suffix(".weights"), cpu_parity=False)
    with torch.no_grad():
        every = written(torch.from_numpy(to_planes(images)), all_layers=True)
    sections = [output for output, kind in zip(every, written.kinds, strict=True) if kind == "convolutional"]
    paths = convolution_paths(network)
    # Darknet's section of SAM's convolution includes the sigmoid; our module does not.
    pairs = [pair for pair in zip(paths, sections, strict=True) if not pair[0].endswith(".gate")]
    return {name: output.numpy() for name, output in pairs}
