"""reproduce.py, analyze.py, and the classifier mode of train.py and eval.py, as a user calls them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detector.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
Call = Callable[..., tuple[str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs a tool's main in this process; returns stdout and stderr."""

    def run(tool: str, *arguments: str) -> tuple[str, str]:
        spec = importlib.util.spec_from_file_location(f"tool_{tool}", ROOT / f"tools/{tool}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert not module.main(list(arguments))
        return capsys.readouterr()

    return run


def test_a_row_is_printed_beside_the_published_figures(call: Call) -> None:
    text = call("reproduce", "--table", "2", "--row", "PRN")[0]
    assert "3.590 / 3.5896" in text
    assert text.splitlines()[-1] == "rows: 1, within tolerance: 1, reconstructions: 0, impossible: 0"
    (row,) = json.loads(call("reproduce", "--table", "2", "--row", "PRN", "--json")[0])["rows"]
    assert row["status"] == "exact"
    assert row["published"] == {"bflops": 3.59, "fps": 169, "ap": 23.1, "ap50": 44.5, "ap75": 22.0}
    assert set(row["ours"]) == {"params", "bflops", "cio"}


def test_speed_is_measured_and_the_machine_is_named(call: Call) -> None:
    row = "PRN CSPDenseNetb Ref. 320"
    text = call("reproduce", "--table", "4", "--row", row, "--measure", "fps")[0]
    assert "FPS here: frame to boxes" in text
    assert "threads" in text
    line = next(line for line in text.splitlines() if line.startswith(row))
    assert float(line.split("400 / ")[1].split()[0]) > 0


def test_ap_stays_empty_without_weights(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text, said = call("reproduce", "--table", "2", "--row", "EFM", "--measure", "ap")
    assert "0 of 1 rows have weights here" in said
    ap50 = text.splitlines()[2].split("48.6 /")[1].split()[0]
    assert ap50 == "26.3", "nothing stands after the published AP50 but the published AP75"
    assert "nan" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table", "9"], "table 9: expected one of 1, 2, 3, 4, 5"),
        (["--table", "1", "--row", "VGG"], "--row 'VGG': no such row in Table 1"),
        (["--table", "4", "--row", "EFM(SAM) CSPPeleeNet"], "did you mean 'EFM.SAM. CSPPeleeNet 512' or"),
        (["--table", "1", "--measure", "time"], "--measure: expected some of ap, fps"),
        (["--figure", "3"], "figure 3: expected 7 or 8"),
        (["--figure", "8", "--row", "x"], "--figure: --row, --measure, --data and --split are for tables"),
        (["--figure", "8", "--out", "x.abc"], r"--out x.abc: expected a name that ends in .png, .svg, .pdf"),
        ([], "one of the arguments --table --figure is required"),
    ],
)
def test_a_wrong_argument_is_a_one_line_error(call: Call, arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call("reproduce", *arguments)


@pytest.mark.parametrize("figure", ["7", "8"])
def test_figures_are_written_as_images(call: Call, tmp_path: Path, figure: str) -> None:
    out = tmp_path / "new" / "figure.png"
    call("reproduce", "--figure", figure, "--out", str(out))
    image = cv2.imread(str(out))
    assert image is not None
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 20, "an empty plot"


def test_what_to_optimise_first(call: Call) -> None:
    tiny = str(ROOT / "configs/tiny.yaml")
    report = json.loads(call("analyze", tiny, "--measure", "--size", "64", "--json")[0])
    lost = [layer["time"]["lost_ms"] for layer in report["layers"] if layer["time"]]
    assert len(lost) == len(report["layers"]) > 100
    assert lost == sorted(lost, reverse=True)
    assert 0 < report["totals"]["activation_peak_bytes"] < 2**26
    assert max(layer["held_bytes"] for layer in report["layers"]) <= report["totals"]["activation_peak_bytes"]
    assert "to optimise first" in call("analyze", tiny, "--measure", "--size", "64")[0]


def test_an_exported_file_costs_what_its_weights_cost(call: Call, trained_run: Path, tmp_path: Path) -> None:
    from detector.export.gate import export
    from detector.export.gate_data import gather_gate_data
    from detector.export.request import Request
    from detector.inference.weights import load_detector
    from detector.runtime.formats import FORMATS

    loaded = load_detector(trained_run / "best.safetensors")
    costs: dict[str, Any] = {}
    for to in ("openvino", "onnx"):
        out = tmp_path / f"model{FORMATS[to].suffix}"
        export(loaded, Request(to, out), gather_gate_data(loaded))
        costs[to] = json.loads(call("analyze", str(out), "--measure", "--json")[0])
    native = json.loads(call("analyze", str(trained_run / "best.safetensors"), "--json")[0])
    convolutions = [layer for layer in native["layers"] if layer["kind"] == "conv"]
    for report in costs.values():
        theirs = [layer for layer in report["layers"] if layer["kind"] == "conv"]
        assert sum(layer["bflops"] for layer in theirs) == pytest.approx(sum(one["bflops"] for one in convolutions))
        assert sum(layer["time"] is not None for layer in theirs) > 0.9 * len(theirs)
        assert {layer["name"].split("/")[0] for layer in theirs} == {layer["name"] for layer in convolutions}
        held = [layer["held_bytes"] for layer in report["layers"]]
        peak, in_pytorch = (each["totals"]["activation_peak_bytes"] for each in (report, native))
        assert all(0 < each <= peak for each in held)
        assert 0.5 < peak / in_pytorch < 1.2, "fused activations and changed layouts change the peak only a little"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.onnx"], "nothing.onnx: no such file"),
        (["x.onnx", "--size", "64"], "an exported file has a size of its own"),
        (["configs/imagenet/resnet10.yaml", "--classifier", "10"], "is a classifier already, with 1000 classes"),
        (["configs/tiny.yaml", "--threads", "0"], "--threads: expected at least 1"),
    ],
)
def test_wrong_arguments_of_analyze_are_refused(
    call: Call, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match=message):
        call("analyze", *arguments)


def test_a_classifier_from_folders_to_top_1(call: Call, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for level, name in ((40, "dark"), (200, "light")):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(8):
                image = rng.integers(level - 30, level + 30, (50, 60, 3)).astype(np.uint8)
                cv2.imwrite(str(tmp_path / split / name / f"{number}.png"), image)
    run = tmp_path / "run"
    settings = ["model.backbone.name=darknet_reference", "model.num_classes=2"]
    schedule = ["train.max_steps=120", "train.batch_size=8", "train.learning_rate=0.02", "augment.exposure=1.0"]
    where = [f"data.root={tmp_path}", f"run_dir={run}"]
    config = str(ROOT / "configs/classify_tiny.yaml")
    trained = json.loads(call("train", config, *settings, *schedule, *where, "--json")[0])
    assert trained["top1"] == 1.0
    assert trained["run_dir"] == str(run)
    assert json.loads(call("eval", str(run), "--json")[0]) == {"top1": 1.0, "top5": 1.0, "images": 16}
    assert "top-1 1.0000, top-5 1.0000" in call("eval", str(run), "--split", "train", "--data", str(tmp_path))[0]
    with pytest.raises(InputError, match="holds a run with another model"):
        call("train", str(ROOT / "configs/tiny.yaml"), f"run_dir={run}", "--replay", "3")
    with pytest.raises(InputError, match="holds a classifier other than that of"):
        call("eval", str(ROOT / "configs/tiny.yaml"), "--weights", str(run / "best.safetensors"))
    with pytest.raises(InputError, match="--backend: is for detectors"):
        call("eval", str(run), "--backend", "torch")
    assert "0 images cannot be read" in call("doctor", str(tmp_path), "--config", str(run / "config.yaml"))[0]
    replayed = json.loads(call("train", config, *settings, *schedule, *where, "--replay", "3", "--json")[0])
    assert len(replayed["image_ids"]) == len(list((run / "replay_3").glob("*.png"))) == 8
