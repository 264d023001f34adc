"""OpenVINO, on the CPU: float32, bfloat16, and models of lower precision."""

from __future__ import annotations

import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

import openvino
from openvino import properties
from openvino.preprocess import PrePostProcessor

from detector.errors import InputError
from detector.runtime.protocol import Pixels, run_in_batches
from detector.runtime.record import METADATA_KEY
from detector.runtime.signal_stack import kept_signal_stack
from detector.runtime.threads import usable_cpus
from detector.structures import Floats

BLOCK = 16
BLOCKED_KERNELS = "cpu:jit_avx512,cpu:jit_avx512_1x1"
INT8_KERNELS = "cpu:jit_avx512_1x1"
"""For quantized models. Only 1x1 convolutions have kernels of this name; the others get OpenVINO's INT8 ones."""


class OpenVinoRuntime:
    """Runs an OpenVINO or ONNX model. The layout and the scale of the pixels become part of its first layer.

    Args:
        model: path of an .xml or .onnx, content of an .onnx, or a model in memory.
        batch: images per run; None = any number.
        bf16: compute in bfloat16 what is in float32 in the file, if the processor can.
        threads: None = all usable processors.
        streams: requests that run in parallel; more than one for throughput.

    Raises:
        InputError: OpenVINO cannot open the model.
    """

    def __init__(
        self,
        model: Path | bytes | openvino.Model,
        *,
        batch: int | None,
        bf16: bool = False,
        threads: int | None = None,
        streams: int = 1,
    ) -> None:
        self.name = "openvino-bf16" if bf16 else "openvino"
        self._batch = batch
        self._local = threading.local()  # one request per thread; requests share the weights
        graph = model.clone() if isinstance(model, openvino.Model) else read_model(model)
        self.record_text = record_text(graph)
        settings = {
            properties.hint.inference_precision(): openvino.Type.bf16 if bf16 else openvino.Type.f32,
            properties.inference_num_threads(): threads or usable_cpus(),
            properties.num_streams(): streams,
        }
        choose_kernels = bf16 and not _has_tiles()
        self._channels_last = not choose_kernels and all(len(output.partial_shape) == 4 for output in graph.outputs)
        graph = _fit_memory(graph, channels_last=self._channels_last)
        if choose_kernels and has_whole_blocks(graph):
            graph = prefer_kernels(graph, INT8_KERNELS if is_quantized(graph) else BLOCKED_KERNELS)
        with kept_signal_stack():
            self.compiled = openvino.Core().compile_model(graph, "CPU", settings)

    def run(self, images: Pixels) -> list[Floats]:
        """See `Runtime.run`."""
        return run_in_batches(self._run, images, self._batch)

    def _run(self, images: Pixels) -> list[Floats]:
        with kept_signal_stack():
            if not hasattr(self._local, "request"):
                self._local.request = self.compiled.create_infer_request()
            outputs = self._local.request.infer([images], share_inputs=True, share_outputs=False)
        arrays = [outputs[index] for index in range(len(outputs))]
        return [array.transpose(0, 3, 1, 2) for array in arrays] if self._channels_last else arrays


def read_model(model: Path | bytes) -> openvino.Model:
    """A model from an .xml or .onnx file or an .onnx's content. Raises: InputError."""
    try:
        return openvino.Core().read_model(model if isinstance(model, bytes) else str(model))
    except RuntimeError as error:
        where = model if isinstance(model, Path) else "the ONNX model"
        reason = " ".join(str(error).splitlines()[-2:])
        raise InputError(f"{where}: OpenVINO cannot open it ({reason})") from error


def record_text(model: openvino.Model) -> str:
    """The record in the runtime information; empty = none."""
    path = [METADATA_KEY, "record"]
    return str(model.get_rt_info(path).value) if model.has_rt_info(path) else ""


def _fit_memory(model: openvino.Model, *, channels_last: bool) -> openvino.Model:
    """Makes uint8 (B, H, W, 3) the input instead of float32 (B, 3, H, W).

    Args:
        model: is changed.
        channels_last: return raw maps as (B, h, w, channels), as the kernels write them, which saves a copy.
    """
    steps = PrePostProcessor(model)
    if channels_last:
        for index in range(len(model.outputs)):
            steps.output(index).model().set_layout(openvino.Layout("NCHW"))
            steps.output(index).tensor().set_layout(openvino.Layout("NHWC"))
    steps.input().tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    steps.input().preprocess().convert_element_type(openvino.Type.f32).scale(255.0)
    steps.input().model().set_layout(openvino.Layout("NCHW"))
    return steps.build()


def prefer_kernels(model: openvino.Model, kernels: str) -> openvino.Model:
    """Asks for these kernels in every convolution, by an attribute that only the XML text of a model can hold.

    By default OpenVINO uses kernels that keep all channels of a pixel together; then each concatenation of a dense
    block is a copy. BLOCKED_KERNELS keep channels in blocks of 16; with one image the parts are written directly into
    the whole. In bfloat16 without AMX that is 8 % quicker for CSPPeleeNet-EFM. With AMX the other kernels are far
    ahead, and in float32 it makes no difference. In INT8 every kernel keeps the channels together; INT8_KERNELS are 6 %
    quicker than OpenVINO's own choice and 2 to 4 % quicker than BLOCKED_KERNELS. Layers that an INT8 model keeps in
    floating point get no blocked kernels, which only help for several layers in a row.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        openvino.serialize(model, str(path))
        tree = ElementTree.parse(path)  # noqa: S314 (written one line above)
        for layer in tree.iterfind("layers/layer[@type='Convolution']"):
            notes = layer.find("rt_info")
            if notes is None:
                notes = ElementTree.Element("rt_info")
                layer.insert(1, notes)  # after <data>
            ElementTree.SubElement(notes, "attribute", name="primitives_priority", version="0", value=kernels)
        tree.write(path)
        return openvino.Core().read_model(str(path))


def has_whole_blocks(model: openvino.Model) -> bool:
    """Whether every convolution but the first takes a multiple of 16 channels.

    Where some do not, as in dense layers that add 8 channels, the blocked kernels do not fit, and OpenVINO falls back
    to reference code that is 20 to 40 times slower than its other kernels.
    """
    convolutions = [node for node in model.get_ordered_ops() if node.get_type_name() == "Convolution"]
    return all(node.input(1).get_shape()[1] % BLOCK == 0 for node in convolutions[1:])


def is_quantized(model: openvino.Model) -> bool:
    """Whether any layer computes in INT8."""
    return any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())


def _has_tiles() -> bool:
    """Whether the processor multiplies matrices in tiles (AMX)."""
    with suppress(OSError):
        return "amx_bf16" in Path("/proc/cpuinfo").read_text()
    return False
