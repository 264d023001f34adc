"""The tools as a user calls them: results, JSON, one-line errors, exit codes."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest

from detector.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
TOOLS = sorted((ROOT / "tools").glob("*.py"))


def main(tool: str) -> Callable[[list[str]], int]:
    """Returns the tool's main, to be called in this process."""
    function: Callable[[list[str]], int] = runpy.run_path(str(ROOT / "tools" / f"{tool}.py"))["main"]
    return function


def shell(tool: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / f"{tool}.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("path", TOOLS, ids=lambda path: path.stem)
def test_help_has_an_example_and_json(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(path.stem)(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "Example" in text
    assert f"python tools/{path.name}" in text
    assert "--json" in text


def test_eval_writes_table_plots_and_json(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "metrics.json"
    assert main("eval")([str(trained_run), "--out", str(tmp_path), "--json", str(target)]) == 0
    captured = capsys.readouterr()
    assert "AP50" in captured.out
    assert "triangle" in captured.out
    assert "step 6" in captured.err
    metrics = json.loads(target.read_text())
    assert {"ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100", "per_class"} <= set(metrics)
    for name in ("precision_recall.png", "confusion.png", "worst.jpg"):
        assert cv2.imread(str(tmp_path / name)) is not None, name


def test_eval_agrees_with_training(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main("eval")([str(trained_run), "--out", str(tmp_path), "--json"])
    metrics = json.loads(capsys.readouterr().out)
    last = json.loads((trained_run / "metrics.jsonl").read_text().splitlines()[-1])
    assert metrics["ap50"] == last["val/ap50"]
    assert metrics["ar100"] == last["val/ar100"]


def test_submission_has_the_name_and_format_of_coco(
    trained_run: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import zipfile

    info = json.loads((tiny_data / "val.json").read_text())
    del info["annotations"]
    path = tmp_path / "image_info_test-dev2017.json"
    path.write_text(json.dumps(info))
    main("eval")(
        [
            str(trained_run),
            "--data",
            str(path),
            "--images",
            str(tiny_data / "images"),
            "--submit",
            "mine",
            "--out",
            str(tmp_path),
        ]
    )
    with zipfile.ZipFile(tmp_path / "detections_test-dev2017_mine_results.zip") as archive:
        rows = json.loads(archive.read("detections_test-dev2017_mine_results.json"))
    assert rows
    assert set(rows[0]) == {"image_id", "category_id", "bbox", "score"}
    assert "wrote" in capsys.readouterr().out


def test_demo_prints_a_line_for_each_frame(
    trained_run: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(trained_run), "--image", str(tiny_data / "images/val_0000[0-2].jpg"), "--json"]
    main("demo")([*arguments, "--save", str(tmp_path / "out"), "--score-threshold", "0.0"])
    captured = capsys.readouterr()
    *lines, last = [json.loads(line) for line in captured.out.splitlines()]
    (figures,) = last["summary"]
    assert figures["frames"] == 3
    assert [line["name"] for line in lines] == ["val_00000.jpg", "val_00001.jpg", "val_00002.jpg"]
    assert set(lines[0]["detections"][0]) == {"box_xyxy", "score", "class"}
    assert len(list((tmp_path / "out").iterdir())) == 3
    assert "3 frames" in captured.err


def test_analyze(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "configs/csppelee_efm.yaml")
    main("analyze")([config, "--size", "416"])
    assert "total: 4.31 M parameters" in capsys.readouterr().out
    main("analyze")([config, "--size", "224", "--classifier", "1000", "--json"])
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert round(report["totals"]["bflops"], 3) == 0.888
    assert report["totals"]["params"] == sum(layer["params"] for layer in report["layers"])
    with pytest.raises(InputError, match="multiples of 32"):
        main("analyze")([config, "--size", "100"])


def test_doctor(tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("doctor")([str(tiny_data / "val.json")]) == 0
    assert "16 images" in capsys.readouterr().out
    assert main("doctor")([str(tiny_data / "val.json"), "--json", "--config", str(ROOT / "configs/tiny.yaml")]) == 0
    assert json.loads(capsys.readouterr().out)["exit_code"] == 0


def test_train_replays_a_step(tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(ROOT / "configs/tiny.yaml"), f"data.root={tiny_data}", f"run_dir={tmp_path}", "--replay", "3"]
    assert main("train")([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["step"] == 3
    assert cv2.imread(report["image"]) is not None
    main("train")(arguments)
    assert capsys.readouterr().out.startswith(f"step 3: images {report['image_ids'][0]}, ")


def test_convert_releases_a_run(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "released.safetensors"
    assert main("convert")(["release", str(trained_run), str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["written"], report["bytes"]) == (str(out), out.stat().st_size)


def test_benchmark_measures_the_loader(tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(ROOT / "configs/tiny.yaml"), f"data.root={tiny_data}", "--loader", "--images", "8"]
    assert main("benchmark")([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loader"]["warm"]["images_per_second"] > 0


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("train", ["none.yaml"], "error: none.yaml: no such config"),
        ("train", [str(ROOT / "configs/tiny.yaml"), "train.lr=1"], "train.lr: unknown key"),
        ("train", [str(ROOT / "configs/csppelee_efm.yaml")], "data/coco: no such data set"),
        ("eval", ["--weights", "none.safetensors"], "none.safetensors: no such weights file"),
        ("demo", ["--video", "cam0", "--weights", "none.safetensors"], "no such weights file"),
        ("doctor", ["none"], "none: no such data set"),
        ("analyze", ["none.yaml"], "no such config"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(tool: str, arguments: list[str], message: str, tmp_path: Path) -> None:
    result = shell(tool, *arguments, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1
    assert message in result.stderr


def test_an_absent_camera_is_one_line(trained_run: Path, tmp_path: Path) -> None:
    result = shell("demo", str(trained_run), "--video", "cam99", "--json", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: cam99: no such camera")
    assert "Traceback" not in result.stderr


def test_training_from_any_directory(tiny_data: Path, tmp_path: Path) -> None:
    result = shell(
        "train",
        str(ROOT / "configs/tiny.yaml"),
        f"data.root={tiny_data}",
        "train.max_steps=1",
        "train.num_workers=0",
        "--json",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert "ap50" in json.loads(result.stdout)
    assert (tmp_path / "weights/tiny/last.safetensors").exists()


def test_doctor_lists_label_suspects(
    trained_run: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    assert main("doctor")(["--audit", str(run), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    lines = (run / "audit.csv").read_text().splitlines()
    assert report["images"] == 64
    assert sum(report.get(kind, 0) for kind in ("missing", "class", "place")) == len(lines) - 1 > 0
    assert main("doctor")(["--audit", str(run), str(tiny_data / "val.json")]) == 0
    assert "16 images" in capsys.readouterr().out
    with pytest.raises(InputError, match="give a data set, or --audit RUN"):
        main("doctor")([])
