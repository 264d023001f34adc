"""Exports: every format agrees with the network, every tool can use the file alone, and a wrong export is refused."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from detector.data.open import open_dataset
from detector.errors import InputError
from detector.export.gate import export
from detector.export.gate_data import gather_gate_data
from detector.export.request import Request
from detector.inference.find import load_export
from detector.inference.predictor import Predictor
from detector.inference.weights import LoadedDetector, load_detector
from detector.postprocess import Thresholds
from detector.runtime.formats import FORMATS
from detector.runtime.torch_backend import TorchRuntime
from detector.structures import Detections, Image

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def loaded(random_weights: Path) -> LoadedDetector:
    return load_detector(random_weights)


@pytest.fixture(scope="module")
def images(tiny_data: Path) -> list[Image]:
    dataset = open_dataset(tiny_data / "val.json")
    return [dataset.read(index).image for index in range(4)]


def write(loaded: LoadedDetector, folder: Path, to: str, **options: object) -> Path:
    out = folder / f"model{FORMATS[to].suffix}"
    request = Request(to, out, **options)  # type: ignore[arg-type]
    export(loaded, request, gather_gate_data(loaded, request.size_hw))
    return out


def assert_same(first: list[Detections], second: list[Detections]) -> None:
    for one, other in zip(first, second, strict=True):
        assert len(one) == len(other) > 5
        assert one.labels.tolist() == other.labels.tolist()
        assert one.boxes_xyxy == pytest.approx(other.boxes_xyxy, abs=0.05)
        assert one.scores == pytest.approx(other.scores, abs=1e-3)


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_a_file_alone_gives_what_the_weights_give(
    loaded: LoadedDetector, images: list[Image], tmp_path: Path, to: str
) -> None:
    out = write(loaded, tmp_path, to)
    expected = Predictor.from_loaded(loaded).predict_batch(images)
    predictor = Predictor(out)
    assert_same(predictor.predict_batch(images), expected)
    assert predictor.class_names == loaded.class_names
    beside = json.loads((tmp_path / f"{out.name}.json").read_text())
    assert beside["measured"]["boxes"] > 50
    assert beside["measured"]["maps"] <= beside["gate"]["tolerances"]["maps"]
    assert beside["source"]["file"] == "lively.safetensors"
    assert out.name in beside["files"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "no temporary file is left behind"
    with pytest.raises(InputError, match="exists already"):
        write(loaded, tmp_path, to)


def test_darknet_files_are_read_back(loaded: LoadedDetector, images: list[Image], tmp_path: Path) -> None:
    out = write(loaded, tmp_path, "darknet")
    again = load_detector(out)
    with torch.no_grad():
        image = torch.rand(1, 3, 96, 96)
        for one, other in zip(loaded.network(image), again.network(image), strict=True):
            assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_a_graph_that_ends_in_boxes(loaded: LoadedDetector, images: list[Image], tmp_path: Path, to: str) -> None:
    suppression = Thresholds(0.3, 0.5, 100)
    out = write(loaded, tmp_path, to, suppression=suppression)
    expected = Predictor.from_loaded(loaded, Thresholds(0.3, 0.5)).predict_batch(images)
    assert_same([Predictor(out).predict(image) for image in images], expected)
    assert_same(Predictor(out).predict_batch(images), expected)
    fewer = Predictor(out, score_threshold=0.6, max_detections=7).predict(images[0])
    assert len(fewer) <= 7
    assert fewer.scores.min() > 0.6


@pytest.mark.parametrize("to", ["openvino", "onnx"])
def test_a_dynamic_file_takes_any_size_and_number(loaded: LoadedDetector, tmp_path: Path, to: str) -> None:
    from dataclasses import replace

    from detector.inference.backends import open_runtime

    out = write(loaded, tmp_path, to, dynamic=True, batch=None)
    runtime = open_runtime(load_export(out))
    for shape in ((1, 96, 96, 3), (3, 64, 128, 3)):
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        reference = open_runtime(replace(loaded)).run(images)
        for one, other in zip(runtime.run(images), reference, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * float(np.abs(other).max()))


def test_a_fixed_batch_serves_any_number_of_images(loaded: LoadedDetector, images: list[Image], tmp_path: Path) -> None:
    out = write(loaded, tmp_path, "onnx", batch=3, size_hw=(64, 128))
    predictor = Predictor(out)
    assert predictor.preprocess.size_hw == (64, 128)
    together = predictor.predict_batch(images)
    assert_same(together, [predictor.predict(image) for image in images])


def test_half_precision_is_half_the_size(loaded: LoadedDetector, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    sizes = []
    for precision, folder in (("fp32", tmp_path / "full"), ("fp16", tmp_path)):
        sizes.append(write(loaded, folder, "onnx", precision=precision).stat().st_size)
    assert sizes[1] < 0.55 * sizes[0]
    assert 0 < json.loads((tmp_path / "model.onnx.json").read_text())["measured"]["maps"] < 0.02


def test_int8_stays_within_its_budget(
    trained_run: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = load_detector(trained_run / "best.safetensors")
    for to in ("openvino", "onnx"):
        out = tmp_path / f"int8{FORMATS[to].suffix}"
        gate_data = gather_gate_data(loaded, data=str(tiny_data), split="val")
        report = export(loaded, Request(to, out, precision="int8", max_drop=0.05), gate_data)
        assert report["ap50"] >= report["ap50_reference"] - 0.05
        assert report["convolutions"] - len(report["kept_in_float"]) > 100
        assert report["bytes"] < 0.5 * (trained_run / "best.safetensors").stat().st_size
        assert Predictor(out).class_names == loaded.class_names


def test_int8_without_a_labelled_object_is_refused(trained_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    """An AP50 of nothing beside an AP50 of nothing is no agreement."""
    content = json.loads((tiny_data / "val.json").read_text())
    (tmp_path / "empty.json").write_text(json.dumps({**content, "annotations": []}))
    loaded = load_detector(trained_run / "best.safetensors")
    data = gather_gate_data(loaded, data=str(tmp_path / "empty.json"), images_dir=str(tiny_data / "images"))
    assert data.measure is None
    with pytest.raises(
        InputError, match=r"int8: needs --data .* it was given 16 images of .* without a labelled object"
    ):
        export(loaded, Request("openvino", tmp_path / "out.xml", precision="int8"), data)
    assert not (tmp_path / "out.xml").exists()


def test_ap50_of_a_graph_that_ends_in_boxes_is_compared(trained_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    loaded = load_detector(trained_run / "best.safetensors")
    gate_data = gather_gate_data(loaded, data=str(tiny_data), split="val")
    suppression = Thresholds(0.0001, 0.45, 100)
    report = export(loaded, Request("onnx", tmp_path / "boxes.onnx", suppression=suppression), gate_data)
    assert report["ap50"] == pytest.approx(report["ap50_reference"], abs=1e-3)
    assert gate_data.measure is not None
    stricter = gate_data.measure(
        TorchRuntime(loaded.network), range(len(loaded.class_names)), Thresholds(0.99, 0.45, 1)
    )
    assert stricter == 0, "AP50 was not measured with the thresholds of the graph"


def swap_red_and_blue(model: onnx.ModelProto) -> None:
    for weights in model.graph.initializer:
        if weights.name.endswith("stem.entry.conv.weight"):
            values = onnx.numpy_helper.to_array(weights)[:, ::-1].copy()
            weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))


def change_one_weight(model: onnx.ModelProto) -> None:
    for weights in model.graph.initializer:
        if weights.name == "neck.fuse4.1.conv.weight":
            values = onnx.numpy_helper.to_array(weights).copy()
            values[3, 5, 0, 0] += 1
            weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))


@pytest.mark.parametrize(
    ("to", "spoil", "layer"),
    [
        ("onnx", swap_red_and_blue, "backbone.stem.entry.conv"),
        ("openvino", change_one_weight, "neck.fuse4.1.conv"),
    ],
)
def test_a_spoiled_export_is_refused_and_names_the_layer(
    loaded: LoadedDetector,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    to: str,
    spoil: Callable[[onnx.ModelProto], None],
    layer: str,
) -> None:
    from detector.export import formats as module

    convert = module.to_onnx

    def spoiled(*arguments: object, **options: object) -> onnx.ModelProto:
        model = convert(*arguments, **options)  # type: ignore[arg-type]
        spoil(model)
        return model

    monkeypatch.setattr(module, "to_onnx", spoiled)
    with pytest.raises(InputError, match=f"refused: raw maps differ .* the first layer that differs is {layer}"):
        write(loaded, tmp_path, to)
    (left,) = tmp_path.iterdir()
    assert left.name == f"model{FORMATS[to].suffix}.refused.json"
    assert json.loads(left.read_text())["first_layer_that_differs"]["layer"] == layer
    if to == "onnx":
        monkeypatch.undo()
        write(loaded, tmp_path, to)
        assert not left.exists(), "the report of an earlier refusal is removed when the export succeeds"


def test_a_wrong_cfg_is_refused_too(loaded: LoadedDetector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from detector.darknet import export as cfg

    finish = cfg._finish

    def spoiled(writer: cfg.CfgWriter, net: dict[str, object]) -> object:
        network = finish(writer, net)
        with torch.no_grad():
            network.convolutions()[100][1].conv.weight[0, 0] += 1
        return network

    monkeypatch.setattr(cfg, "_finish", spoiled)
    with pytest.raises(InputError, match=r"refused: .* the first layer that differs is (neck|backbone)\."):
        write(loaded, tmp_path, "darknet")
    assert [path.name for path in tmp_path.iterdir()] == ["model.cfg.refused.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "darknet", "precision": "int8"}, "darknet files are written in fp32"),
        ({"to": "darknet", "dynamic": True}, "--dynamic: a Darknet cfg cannot hold that"),
        ({"to": "darknet", "suppression": Thresholds(0.2, 0.5, 10)}, "--with-nms: a Darknet cfg cannot hold that"),
        ({"to": "onnx", "precision": "int8"}, "needs --data"),
        ({"to": "onnx", "precision": "int8", "dynamic": True}, "works with one size"),
    ],
)
def test_an_impossible_request_is_refused(
    loaded: LoadedDetector, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        write(loaded, tmp_path, **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_boxes_cannot_be_compared_where_there_are_none(loaded: LoadedDetector, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no box to compare; give --data"):
        write(loaded, tmp_path, "onnx", suppression=Thresholds(1.0, 0.5, 10))


def test_existing_files_are_not_overwritten(loaded: LoadedDetector, tmp_path: Path) -> None:
    (tmp_path / "model.names").write_text("mine")
    with pytest.raises(InputError, match=r"model\.names: exists already"):
        write(loaded, tmp_path, "darknet")
    assert (tmp_path / "model.names").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_the_tools_take_an_exported_file(
    trained_run: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def tool(name: str, *arguments: str) -> str:
        runpy.run_path(str(ROOT / "tools" / f"{name}.py"))["main"](list(arguments))
        return capsys.readouterr().out

    out = tmp_path / "tiny.xml"
    report = json.loads(tool("export", str(trained_run), "--to", "openvino", "--out", str(out), "--json"))
    assert str(out) in report["written"]
    of_weights = json.loads(tool("eval", str(trained_run), "--out", str(tmp_path), "--json"))
    of_export = json.loads(tool("eval", str(out), "--out", str(tmp_path), "--json"))
    assert of_export["ap50"] == pytest.approx(of_weights["ap50"], abs=0.002)
    lines = tool("demo", str(out), "--image", str(tiny_data / "images/val_00000.jpg"), "--json").splitlines()
    assert [next(iter(json.loads(line))) for line in lines] == ["frame", "summary"]
    with pytest.raises(InputError, match="is an exported file; name the weights"):
        tool("export", str(out), "--to", "onnx")


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Identity", ["a"], ["b"])
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "ab"]
    graph = onnx.helper.make_graph([node], "x", values[:1], values[1:])
    for name, opset in (("a.onnx", 17), ("new.onnx", 99)):
        ids = [onnx.helper.make_opsetid("", opset)]
        onnx.save(onnx.helper.make_model(graph, opset_imports=ids, ir_version=8), tmp_path / name)
    with pytest.raises(InputError, match=r"a\.onnx: holds no record of tools/export\.py"):
        Predictor(tmp_path / "a.onnx")
    with pytest.raises(InputError, match=r"new\.onnx: ONNX Runtime cannot open it .*Opset 99"):
        Predictor(tmp_path / "new.onnx")
    for name in ("b.onnx", "b.xml"):
        (tmp_path / name).write_bytes(b"\x00 no model")
        with pytest.raises(InputError, match=rf"{name}"):
            Predictor(tmp_path / name)


@pytest.mark.parametrize("name", ["a.torchscript", "a.pt", "a.pth"])
def test_a_file_that_can_run_code_is_not_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(InputError, match=r"is not opened, since such a file can run any code"):
        Predictor(tmp_path / name)
