"""Memory of an exported graph, by hand."""

from __future__ import annotations

import numpy as np
import openvino
from openvino import opset13

from detector.analysis.exported import Step, executed_steps, held_bytes


def test_a_result_lives_until_its_last_reader_has_run() -> None:
    steps = [
        Step("image", 10, ()),
        Step("a", 20, ("image",)),
        Step("b", 30, ("a", "a")),
        Step("sum", 30, ("a", "b")),
    ]
    held, peak = held_bytes(steps)
    assert held == {"image": 10, "a": 20, "b": 50, "sum": 30}
    assert peak == 20 + 30 + 30


def test_an_unread_result_is_held_to_the_end() -> None:
    held, peak = held_bytes([Step("image", 10, ()), Step("output", 5, ("image",)), Step("last", 7, ("image",))])
    assert held == {"image": 10, "output": 15, "last": 12}
    assert peak == 22


def test_the_executed_graph_has_no_weights_or_views() -> None:
    images = opset13.parameter([1, 3, 8, 8], np.float32, name="images")
    convolved = convolution(images, 4, "convolved")
    flat = opset13.reshape(opset13.relu(convolved), np.array([1, 256]), special_zero=False)
    summed = opset13.reduce_sum(flat, np.array([1]), keep_dims=True)
    summed.set_friendly_name("summed")
    steps = {step.name: step for step in executed_steps(compiled(images, summed))}
    moves = [name for name in steps if name.startswith(("images_", "convolved_"))]  # from one layout to another
    assert set(steps) == {"images", "convolved", "summed", *moves}, "the activation is part of the convolution"
    assert steps["convolved"].reads[0] in ("images", *moves)
    assert steps["summed"].reads[0] in ("convolved", *moves), "the view in between owns no memory"
    written = {name: step.written for name, step in steps.items() if name not in moves}
    assert written == {"images": 4 * 3 * 64, "convolved": 4 * 4 * 64, "summed": 4}


def test_two_heads_are_in_execution_order_and_stay_in_memory() -> None:
    images = opset13.parameter([1, 3, 8, 8], np.float32, name="images")
    trunk = convolution(images, 4, "trunk")
    first = convolution(trunk, 2, "first")
    second = convolution(convolution(trunk, 8, "neck"), 2, "second")
    model = compiled(images, first, second)
    steps = executed_steps(model)
    order = {node.get_friendly_name(): node.get_rt_info()["execOrder"] for node in model.get_runtime_model().get_ops()}
    numbers = [int(order[step.name].astype(str)) for step in steps]
    assert numbers == sorted(numbers)
    held, _ = held_bytes(steps)
    maps = [step for step in steps if not any(step.name in other.reads for other in steps)]
    assert held[steps[-1].name] == sum(step.written for step in maps) == 4 * 64 * (2 + 2), "the caller holds both"


def convolution(source: openvino.Node, channels: int, name: str) -> openvino.Node:
    weights = np.ones((channels, source.output(0).get_shape()[1], 1, 1), np.float32)
    made = opset13.convolution(source, weights, [1, 1], [0, 0], [0, 0], [1, 1])
    made.set_friendly_name(name)
    return made


def compiled(images: openvino.Node, *outputs: openvino.Node) -> openvino.CompiledModel:
    model = openvino.Model(list(outputs), [images])
    return openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
