"""The inference table is complete and consistent; no test checks speed.

The tool runs in its own process, as users run it. In the process of the tests, its libraries would meet the threads of
all other libraries.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import pytest

from detector.benchmark.inference import inference_text
from detector.runtime.threads import computes_in_bf16

ROOT = Path(__file__).resolve().parents[2]


def benchmark(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "tools/benchmark.py"), *arguments, "--rounds", "1", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    table: dict[str, Any] = json.loads(result.stdout)
    return table


def test_rows_add_up(random_weights: Path) -> None:
    backends = "torch,openvino,openvino-bf16"
    table = benchmark(str(random_weights), "--backends", backends, "--size", "64", "96", "--threads", "1")
    assert table["size_hw"] == [64, 96]
    expected = ["torch", "openvino", "openvino-bf16"] if computes_in_bf16() else ["torch", "openvino"]
    assert [row["backend"] for row in table["rows"]] == expected
    for row in table["rows"]:
        assert 0 < row["p50_ms"] <= row["p95_ms"]
        assert row["p50_ms"] < row["end_to_end_ms"] == pytest.approx(1000 / row["fps"])
        assert row["gflops"] == pytest.approx(1000 * table["gflop"] / row["p50_ms"])
        assert row["ap50"] is None
        assert row["throughput"] is None, "one thread runs nothing in parallel"
    text = inference_text(table)
    assert text.count("openvino") == len(expected) - 1
    slowest = max(table["rows"], key=lambda row: row["p50_ms"])["backend"]
    (line,) = [line for line in text.splitlines() if line.endswith(" 1.00")]
    assert line.startswith(slowest)


def test_ap50_and_int8(trained_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    arguments = [str(trained_run), "--backends", "openvino,openvino-bf16", "--precisions", "fp32,int8"]
    data = ["--data", str(tiny_data), "--split", "val", "--out", str(tmp_path)]
    table = benchmark(*arguments, *data, "--threads", "2")
    kinds = {row["precision"]: row["ap50"] for row in table["rows"]}
    assert set(kinds) == {"fp32", "int8"}
    assert all(row["throughput"] > 0 for row in table["rows"])
    assert kinds["int8"] == pytest.approx(kinds["fp32"], abs=0.05)
    assert json.loads((tmp_path / "benchmark.json").read_text()) == table
    assert cv2.imread(str(tmp_path / "latency_ap50.png")) is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backends", "openvino", "--precisions", "int8"], "none of the requested backends and precisions"),
        (["--backends", "openvion"], "--backends: expected some of torch, torch-bf16, onnxruntime, openvino, "),
        (["--threads", "0"], "--images, --rounds and --threads must be at least 1"),
        (["--precisions", "fp4"], "--precisions: expected some of fp32, bf16, int8"),
        (["--size", "50"], "--size: expected one or two multiples of 32"),
    ],
)
def test_a_wrong_request_is_a_one_line_error(random_weights: Path, arguments: list[str], message: str) -> None:
    command = [sys.executable, str(ROOT / "tools/benchmark.py"), str(random_weights), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert message in result.stderr.splitlines()[-1]
