"""Memory of an exported graph, by hand."""

from __future__ import annotations

import numpy as np
import openvino
from openvino import opset13

from detector.export.costs import Step, executed_steps, held_bytes


def test_a_result_lives_until_its_last_reader_has_run() -> None:
    steps = [
        Step("image", 10, ()),
        Step("a", 20, ("image",)),
        Step("b", 30, ("a", "a")),
        Step("sum", 30, ("a", "b")),
        Step("output", 0, ("sum",)),
    ]
    held, peak = held_bytes(steps)
    assert held == {"image": 10, "a": 20, "b": 50, "sum": 30, "output": 0}
    assert peak == 20 + 30 + 30


def test_what_is_read_at_the_end_is_held_to_the_end() -> None:
    held, peak = held_bytes([Step("image", 10, ()), Step("unread", 5, ("image",)), Step("last", 7, ("image",))])
    assert held == {"image": 10, "unread": 15, "last": 12}
    assert peak == 22


def test_the_executed_graph_is_free_of_weights_and_views() -> None:
    images = opset13.parameter([1, 3, 8, 8], np.float32, name="images")
    weights = np.zeros((4, 3, 1, 1), np.float32)
    convolved = opset13.convolution(images, weights, [1, 1], [0, 0], [0, 0], [1, 1])
    convolved.set_friendly_name("convolved")
    flat = opset13.reshape(opset13.relu(convolved), np.array([1, 256]), special_zero=False)
    summed = opset13.reduce_sum(flat, np.array([1]), keep_dims=True)
    model = openvino.Model([summed], [images])
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    steps = executed_steps(compiled)
    written = {step.name: step.written for step in steps}
    assert written["images"] == 4 * 3 * 8 * 8
    assert written["convolved"] == 4 * 4 * 8 * 8, "the activation is part of it"
    assert [step.reads for step in steps if step.name == "convolved"] != [()]
    assert not any("onstant" in step.name for step in steps)
