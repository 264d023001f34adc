"""Cost, memory and time of the layers of an exported file, as OpenVINO reports them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import openvino
from openvino import properties

from detector.analysis.complexity import LayerCost
from detector.errors import InputError
from detector.runtime.openvino_backend import read_model
from detector.runtime.signal_stack import kept_signal_stack

WARM_UP = 3
CONVOLUTIONS = ("Convolution", "GroupConvolution")
POOLS = {"MaxPool": "maxpool", "AvgPool": "avgpool", "ReduceMean": "avgpool"}


@dataclass(frozen=True)
class ExportedCosts:
    """Costs of an exported file, for one image.

    Attributes:
        layers: layers that cost something, in the order of execution.
        ms: the median time of the layers that OpenVINO times, by name.
        total_ms: the median time of the whole network.
        held: bytes of feature maps in memory after each executed operation, by name.
        peak_bytes: the most held at any time.
    """

    layers: list[LayerCost]
    ms: dict[str, float]
    total_ms: float
    held: dict[str, int]
    peak_bytes: int


@dataclass(frozen=True)
class Step:
    """One operation of a graph: what it writes, in bytes, and the names of the operations that it reads."""

    name: str
    written: int
    reads: tuple[str, ...]


def exported_costs(path: Path, *, threads: int, runs: int = 10) -> ExportedCosts:
    """The convolutions and poolings of an exported file, run in float32 (except its INT8 layers).

    Biases are not counted: in an exported file they hold the folded normalisation.

    Args:
        path: .onnx or .xml.
        threads: number of threads to run with.
        runs: measured runs on one image, after some warm-up runs.

    Raises:
        InputError: another kind of file, or one that cannot be opened.
    """
    settings = {
        "PERF_COUNT": True,
        properties.hint.inference_precision(): openvino.Type.f32,
        properties.inference_num_threads(): threads,
    }
    try:
        model = _read_for_one_image(path)
        costs = [cost for operation in model.get_ordered_ops() if (cost := _cost(operation)) is not None]
        with kept_signal_stack():
            compiled = openvino.Core().compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise InputError(f"{path}: OpenVINO cannot run it ({' '.join(str(error).splitlines()[-1:])})") from error
    times, total_ms = _measure(compiled, runs)
    held, peak_bytes = held_bytes(executed_steps(compiled))
    known = {cost.name for cost in costs}
    ms = {name: value for name, value in times.items() if name in known and value > 0}
    return ExportedCosts(costs, ms, total_ms, held, peak_bytes)


def _read_for_one_image(path: Path) -> openvino.Model:
    """The model at batch 1. Raises: InputError: it does not have exactly one input for images of one size."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    model = read_model(path)
    shapes = [port.get_partial_shape() for port in model.inputs]
    if (
        len(shapes) != 1
        or shapes[0].rank.is_dynamic
        or len(shapes[0]) != 4
        or any(side.is_dynamic for side in shapes[0][1:])
    ):
        raise InputError(f"{path}: expected one input (batch, channels, height, width), all but the batch fixed")
    model.reshape([1, *(side.get_length() for side in shapes[0][1:])])
    return model


def _measure(compiled: openvino.CompiledModel, runs: int) -> tuple[dict[str, float], float]:
    """The median ms of each operation, by name, and of the whole network."""
    port = compiled.input()
    images = np.zeros(port.get_shape(), np.uint8 if port.element_type == openvino.Type.u8 else np.float32)
    spent: dict[str, list[float]] = defaultdict(list)
    totals = []
    with kept_signal_stack():
        request = compiled.create_infer_request()
        for number in range(WARM_UP + runs):
            request.infer([images])
            if number >= WARM_UP:
                for node in request.profiling_info:
                    spent[node.node_name].append(1000 * node.real_time.total_seconds())
                totals.append(request.latency)
    return {name: median(values) for name, values in spent.items()}, median(totals)


def executed_steps(compiled: openvino.CompiledModel) -> list[Step]:
    """The executed operations without weights, fused as in the runtime; a fused one has the name of its first.

    A reshape is a view and writes nothing. A concatenation is counted as a copy, though some layouts avoid it.
    """
    steps: list[Step] = []
    owner: dict[str, str] = {}  # name of an executed operation -> the step whose memory holds its output
    for node in sorted(compiled.get_runtime_model().get_ops(), key=lambda node: int(_fact(node, "execOrder"))):
        name, kind = node.get_friendly_name(), _fact(node, "layerType")
        sources = [port.get_source_output().get_node().get_friendly_name() for port in node.inputs()]
        reads = tuple(owner[source] for source in sources if source in owner)
        if kind == "Output" or (kind != "Input" and not reads):
            continue  # outputs, which the caller reads later; weights, and what is computed from weights alone
        if kind == "Reshape":
            owner[name] = reads[0]
            continue
        owner[name] = name
        steps.append(Step(name, sum(port.get_tensor().size for port in node.outputs()), reads))
    return steps


def _fact(node: Any, name: str) -> str:
    """What the runtime notes about an operation."""
    return str(node.get_rt_info()[name].astype(str))


def held_bytes(steps: Sequence[Step]) -> tuple[dict[str, int], int]:
    """Keeps every result until its last reader has run; results without a reader, such as outputs, stay to the end.

    Returns:
        bytes held after each step, by name; the most at any time.
    """
    last = {source: number for number, step in enumerate(steps) for source in step.reads}
    written = {step.name: step.written for step in steps}
    held, live, peak = {}, 0, 0
    for number, step in enumerate(steps):
        live += step.written
        peak = max(peak, live)
        live -= sum(written[source] for source in set(step.reads) if last[source] == number)
        held[step.name] = live
    return held, peak


def _cost(operation: Any) -> LayerCost | None:
    kind = operation.get_type_name()
    if kind not in {*CONVOLUTIONS, *POOLS}:
        return None
    source, target = (tuple(port.get_shape()) for port in (operation.input(0), operation.output(0)))
    if len(source) != 4 or len(target) != 4:
        return None
    chw_in, chw_out = ((shape[1], shape[2], shape[3]) for shape in (source, target))
    places = chw_out[1] * chw_out[2]
    params, operations = 0, 0
    strides = operation.get_attributes().get("strides", (1, 1))
    if kind in POOLS:
        kernel = operation.get_attributes().get("kernel", chw_in[1:])  # a mean covers all places
        operations = kernel[0] * kernel[1] * chw_out[0] * places if kind == "MaxPool" else 0
    else:
        weights = tuple(operation.input(1).get_shape())
        kernel = weights[-2:]
        params = int(np.prod(weights))
        operations = 2 * params * places
    elements = sum(int(np.prod(chw)) for chw in (chw_in, chw_out))
    return LayerCost(
        name=operation.get_friendly_name(),
        kind=POOLS.get(kind, "conv"),
        kernel=f"{kernel[0]}x{kernel[1]}/{strides[0]}",
        input_chw=chw_in,
        output_chw=chw_out,
        params=params,
        bflops=operations / 1e9,
        cio=elements,
    )
