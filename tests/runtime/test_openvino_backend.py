"""OpenVINO: changes made to a graph for speed do not change its output."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino
import openvino.opset13 as opset
import pytest

from detector.inference.weights import load_detector
from detector.runtime import openvino_backend
from detector.runtime.onnx_graph import to_onnx
from detector.runtime.openvino_backend import BLOCKED_KERNELS, INT8_KERNELS, OpenVinoRuntime, prefer_kernels, read_model


@pytest.fixture(scope="module")
def graph(random_weights: Path) -> bytes:
    return to_onnx(load_detector(random_weights).network, (96, 96)).SerializeToString()


def test_every_convolution_asks_for_blocked_kernels(graph: bytes, tmp_path: Path) -> None:
    model = prefer_kernels(read_model(graph), BLOCKED_KERNELS)
    openvino.serialize(model, str(tmp_path / "model.xml"))
    text = (tmp_path / "model.xml").read_text()
    assert (
        text.count(f'"primitives_priority" version="0" value="{BLOCKED_KERNELS}"')
        == text.count('type="Convolution"')
        == 137
    )


def test_quantized_models_ask_for_their_own_kernels(graph: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    model = read_model(graph)
    quantized = model.clone()
    images = quantized.get_parameters()[0]
    ends = [opset.constant(value, openvino.Type.f32) for value in (0.0, 1.0, 0.0, 1.0)]
    reader = next(iter(images.output(0).get_target_inputs()))
    reader.replace_source_output(opset.fake_quantize(images, *ends, levels=256).output(0))
    requested = []

    def prefer(model: openvino.Model, kernels: str) -> openvino.Model:
        requested.append(kernels)
        return model

    monkeypatch.setattr(openvino_backend, "_has_tiles", lambda: False)
    monkeypatch.setattr(openvino_backend, "prefer_kernels", prefer)
    for each in (model, quantized):
        OpenVinoRuntime(each, batch=1, bf16=True)
    assert requested == [BLOCKED_KERNELS, INT8_KERNELS]


@pytest.mark.parametrize("bf16", [False, True])
def test_layouts_change_no_output(graph: bytes, bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (1, 96, 96, 3), np.uint8)
    outputs = []
    for tiles in (False, True):  # as on a processor without and with AMX: blocked kernels, or channels last
        monkeypatch.setattr(openvino_backend, "_has_tiles", lambda tiles=tiles: tiles)
        outputs.append(OpenVinoRuntime(graph, batch=1, bf16=bf16).run(images))
    for one, other, cells in zip(*outputs, (12, 6, 3), strict=True):
        assert one.shape == other.shape == (1, 24, cells, cells)
        tolerance = 0.05 if bf16 else 1e-5
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * float(np.abs(one).max()))


SIGNALLED = """
import gc, os, signal, sys
from pathlib import Path
import numpy as np
from detector.runtime.openvino_backend import OpenVinoRuntime
from detector.runtime.signal_stack import signal_stack
received = []
signal.signal(signal.SIGUSR1, lambda *_: received.append(1))
before = signal_stack().flags
for streams in (1, 2):
    runtime = OpenVinoRuntime(Path(sys.argv[1]).read_bytes(), batch=1, streams=streams)
    runtime.run(np.zeros((1, 96, 96, 3), np.uint8))
del runtime
gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
assert received == [1]
assert signal_stack().flags == before
print("alive")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="signal stacks are checked on Linux only")
def test_a_signal_does_not_end_the_process(graph: bytes, tmp_path: Path) -> None:
    """OpenVINO leaves a freed signal stack behind; the first handler that runs on it would crash the process."""
    (tmp_path / "graph.onnx").write_bytes(graph)
    command = [sys.executable, "-c", SIGNALLED, str(tmp_path / "graph.onnx")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "alive\n"), result.stderr


def test_a_file_that_is_not_a_model_is_a_one_line_error(tmp_path: Path) -> None:
    from detector.errors import InputError

    (tmp_path / "x.xml").write_text("<net>")
    with pytest.raises(InputError, match=r"x\.xml: OpenVINO cannot open it"):
        read_model(tmp_path / "x.xml")
