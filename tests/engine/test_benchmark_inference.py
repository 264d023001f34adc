"""The table of inference is complete and consistent; how fast anything is, no test asks."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import cv2
import pytest

from detector.backends import computes_in_bf16
from detector.engine.benchmark_inference import inference_table, inference_text
from detector.errors import InputError
from detector.load import load_detector

ROOT = Path(__file__).resolve().parents[2]


def test_rows_add_up(lively_weights: Path) -> None:
    said: list[str] = []
    loaded = load_detector(lively_weights)
    table = inference_table(loaded, backends=["torch", "openvino", "openvino-bf16"], rounds=1, say=said.append)
    expected = ["torch", "openvino", "openvino-bf16"] if computes_in_bf16() else ["torch", "openvino"]
    assert [row["backend"] for row in table["rows"]] == expected
    for row in table["rows"]:
        assert 0 < row["p50_ms"] <= row["p95_ms"]
        assert row["p50_ms"] < row["end_to_end_ms"] == pytest.approx(1000 / row["fps"])
        assert row["gflops"] == pytest.approx(1000 * table["gflop"] / row["p50_ms"])
        assert row["ap50"] is None
    text = inference_text(table)
    assert text.count("openvino") == len(expected) - 1
    slowest = max(table["rows"], key=lambda row: row["p50_ms"])["backend"]
    (line,) = [line for line in text.splitlines() if line.endswith(" 1.00")]
    assert line.startswith(slowest)


def test_the_tool_measures_ap50_and_int8(
    trained_run: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(trained_run), "--backends", "openvino,openvino-bf16", "--precisions", "fp32,int8", "--rounds", "1"]
    arguments += ["--data", str(tiny_data), "--split", "val", "--out", str(tmp_path), "--json"]
    runpy.run_path(str(ROOT / "tools/benchmark.py"))["main"](arguments)
    table = json.loads(capsys.readouterr().out)
    kinds = {row["precision"]: row["ap50"] for row in table["rows"]}
    assert set(kinds) == {"fp32", "int8"}
    assert kinds["int8"] == pytest.approx(kinds["fp32"], abs=0.05)
    assert json.loads((tmp_path / "benchmark.json").read_text()) == table
    assert cv2.imread(str(tmp_path / "latency_ap50.png")) is not None


def test_what_cannot_be_measured_is_refused(lively_weights: Path) -> None:
    loaded = load_detector(lively_weights)
    with pytest.raises(InputError, match="nothing of what was asked for can run it"):
        inference_table(loaded, backends=["none"], rounds=1)
    with pytest.raises(InputError, match="--precisions: expected some of fp32, bf16, int8"):
        runpy.run_path(str(ROOT / "tools/benchmark.py"))["main"]([str(lively_weights), "--precisions", "fp4"])
