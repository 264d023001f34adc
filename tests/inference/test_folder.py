"""Many images into one file: both formats, bad files, and runs that are killed."""

from __future__ import annotations

import json
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import pytest

from detector.errors import InputError
from detector.inference import folder as module
from detector.inference.folder import Report, compute_here, find_images, predict_many
from detector.structures import Detections, Image

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("dark", "bright")


def found_in(image: Image) -> Detections:
    """One box as large as the image; its class and score encode the mean grey."""
    height, width = image.shape[:2]
    grey = float(image.mean())
    box = np.array([[0, 0, width, height]], np.float32)
    return Detections(box, np.array([grey / 255], np.float32), np.array([int(grey > 127)]))


def predict(images: Sequence[Image]) -> list[Detections]:
    return [found_in(image) for image in images]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images of increasing grey in two folders, a truncated file and an empty file."""
    root = tmp_path / "images"
    (root / "inner").mkdir(parents=True)
    for index in range(12):
        path = root / ("inner" if index % 2 else "") / f"{index:02d}.png"
        cv2.imwrite(str(path), np.full((10 + index, 20, 3), 20 * index, np.uint8))
    (root / "cut.png").write_bytes((root / "00.png").read_bytes()[:40])
    (root / "empty.jpg").write_bytes(b"")
    (root / "notes.txt").write_text("not an image")
    return root


def run(folder: Path, out: Path, *, predictor=predict, **settings: object) -> Report:  # type: ignore[no-untyped-def]
    compute = compute_here(predictor, NAMES, batch_size=3)
    return predict_many(find_images(str(folder)), out, compute, NAMES, settings=settings)


def test_lines_hold_every_image_in_order(folder: Path, tmp_path: Path) -> None:
    report = run(folder, tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == [str(path) for path in find_images(str(folder))]
    assert (report.images, report.resumed, report.detections) == (12, 0, 12)
    assert {Path(name).name for name, _ in report.failed} == {"cut.png", "empty.jpg"}
    by_name = {Path(line["image"]).name: line for line in lines}
    row = by_name["11.png"]["detections"][0]
    assert row["box_xyxy"] == [0, 0, 20, 21]
    assert row["class"] == "bright"
    assert row["score"] == pytest.approx(220 / 255)
    assert "is empty" in by_name["empty.jpg"]["error"]
    assert not list(tmp_path.glob("*.partial"))


def test_coco_json_is_read_by_pycocotools(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pycocotools.coco import COCO

    run(folder, tmp_path / "out.json")
    coco = COCO(str(tmp_path / "out.json"))
    assert len(coco.getImgIds()) == 12
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(NAMES)
    (annotation,) = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert annotation["bbox"] == [0, 0, 20, 10]
    assert len(coco.dataset["errors"]) == 2


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_an_interrupted_run_resumes_without_repeating(folder: Path, tmp_path: Path, ending: str) -> None:
    run(folder, tmp_path / f"straight.{ending}")
    seen: list[int] = []

    def stops(images: Sequence[Image]) -> list[Detections]:
        if len(seen) >= 5:
            raise KeyboardInterrupt
        seen.extend(image.shape[0] for image in images)
        return predict(images)

    out = tmp_path / f"out.{ending}"
    with pytest.raises(KeyboardInterrupt):
        run(folder, out, predictor=stops)
    partial = tmp_path / f"out.{ending}.partial"
    partial.write_bytes(partial.read_bytes() + b'{"image": "half a li')  # what a kill leaves behind
    done = len(seen)

    def counts(images: Sequence[Image]) -> list[Detections]:
        seen.extend(image.shape[0] for image in images)
        return predict(images)

    report = run(folder, out, predictor=counts)
    assert report.resumed >= done > 0
    assert sorted(seen) == [10 + index for index in range(12)], "each image was predicted once"
    assert out.read_bytes() == (tmp_path / f"straight.{ending}").read_bytes()


def test_a_run_with_other_settings_is_not_continued(folder: Path, tmp_path: Path) -> None:
    def stops(images: Sequence[Image]) -> list[Detections]:
        raise KeyboardInterrupt

    out = tmp_path / "out.json"
    with pytest.raises(KeyboardInterrupt):
        run(folder, out, predictor=stops, weights="a")
    with pytest.raises(InputError, match="another model or other settings"):
        run(folder, out, weights="b")
    run(folder, out, weights="a")
    with pytest.raises(InputError, match="exists already"):
        run(folder, out, weights="a")


def test_an_image_that_fails_does_not_stop_the_others(folder: Path, tmp_path: Path) -> None:
    def fails(images: Sequence[Image]) -> list[Detections]:
        if any(image.shape[0] == 15 for image in images):
            raise RuntimeError("too dark")
        return predict(images)

    report = run(folder, tmp_path / "out.json", predictor=fails)
    assert report.images == 11
    assert "cannot be predicted: too dark" in dict(report.failed)[str(folder / "inner/05.png")]


def test_two_runs_do_not_write_the_same_file(folder: Path, tmp_path: Path) -> None:
    out, refusals = tmp_path / "out.jsonl", []

    def predict_while_another_starts(images: Sequence[Image]) -> list[Detections]:
        with pytest.raises(InputError, match="another run is writing it") as refusal:
            run(folder, out)
        refusals.append(refusal)
        return predict(images)

    assert run(folder, out, predictor=predict_while_another_starts).images == 12
    assert refusals
    assert len(out.read_text().splitlines()) == 14


def test_a_run_that_starts_while_another_ends_changes_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, finish, refusals = tmp_path / "out.jsonl", module._finish, []

    def finish_while_another_starts(*args: Any, **options: Any) -> Report:
        with pytest.raises(InputError, match="another run is writing it") as refusal:
            run(folder, out)
        refusals.append(refusal)
        return finish(*args, **options)

    monkeypatch.setattr(module, "_finish", finish_while_another_starts)
    assert run(folder, out).images == 12
    assert len(refusals) == 1
    assert len(out.read_text().splitlines()) == 14


def test_a_record_that_was_removed_before_it_was_locked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = module._lock

    def remove_and_lock(record: BinaryIO, partial: Path) -> None:
        partial.unlink()
        lock(record, partial)

    monkeypatch.setattr(module, "_lock", remove_and_lock)
    with pytest.raises(InputError, match="another run is writing it"):
        run(folder, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_an_empty_or_damaged_record(folder: Path, tmp_path: Path) -> None:
    partial = tmp_path / "out.json.partial"
    partial.write_bytes(b"no json\n")
    with pytest.raises(InputError, match="is damaged; remove it"):
        run(folder, tmp_path / "out.json")
    partial.write_bytes(b"")
    assert run(folder, tmp_path / "out.json").images == 12


def test_wrong_paths_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.json"):
        run(folder, tmp_path / "out.csv")
    with pytest.raises(InputError, match="no such image"):
        find_images(str(tmp_path / "none"))
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="no images found"):
        find_images(str(tmp_path / "bare"))
    listed = tmp_path / "list.txt"
    listed.write_text(f"{folder / '00.png'}\n\n{folder / '02.png'}\n{folder / '00.png'}\n")
    assert [path.name for path in find_images(str(listed))] == ["00.png", "02.png"]


def test_the_tool_survives_a_kill(trained_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools/predict.py"), str(tiny_data / "images")]
    command += ["--model", str(trained_run), "--score-threshold", "0.01", "--batch", "1", "--json"]
    straight = subprocess.run([*command, "--out", "a.jsonl"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert straight.returncode == 0, straight.stderr
    killed = subprocess.Popen([*command, "--out", "b.jsonl"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    partial = tmp_path / "b.jsonl.partial"
    while not (partial.exists() and partial.read_bytes().count(b"\n") > 3):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "b.jsonl").exists(), "killed too late to prove anything"
    again = subprocess.run([*command, "--out", "b.jsonl"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert 2 < json.loads(again.stdout)["resumed"] < json.loads(again.stdout)["images"]
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()


def test_a_list_is_relative_to_itself_and_a_file_that_exists_is_no_pattern(tmp_path: Path) -> None:
    for name in ("photo[1].jpg", "photo1.jpg"):
        cv2.imwrite(str(tmp_path / name), np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "list.txt").write_bytes("photo1.jpg\n".encode("utf-16"))
    assert find_images(str(tmp_path / "list.txt")) == [tmp_path / "photo1.jpg"]
    assert find_images(str(tmp_path / "photo[1].jpg")) == [tmp_path / "photo[1].jpg"]
    assert find_images(str(tmp_path / "photo?.jpg")) == [tmp_path / "photo1.jpg"]


def test_the_exit_code_tells_whether_images_failed(trained_run: Path, tmp_path: Path) -> None:
    main = runpy.run_path(str(ROOT / "tools/predict.py"))["main"]
    (tmp_path / "bad.jpg").write_bytes(b"not an image")
    weights = ["--weights", str(trained_run / "best.safetensors")]
    assert main([str(tmp_path / "bad.jpg"), "--out", str(tmp_path / "none.json"), *weights]) == 2
    cv2.imwrite(str(tmp_path / "good.jpg"), np.zeros((8, 8, 3), np.uint8))
    assert main([str(tmp_path), "--out", str(tmp_path / "some.json"), *weights]) == 1
    assert main([str(tmp_path / "good.jpg"), "--out", str(tmp_path / "all.json"), *weights]) == 0
