"""Sources, sinks, and the pipeline between them."""

from __future__ import annotations

import errno
import os
import re
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.data.synthetic import write_video
from detector.errors import InputError
from detector.inference.predictor import Predictor
from detector.video.pipeline import VideoReport, open_file_sink, run_video
from detector.video.sink import FolderSink, ImageSink, VideoSink, WindowSink
from detector.video.source import LiveSource, open_source, without_password


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    write_video(tmp_path / "clip.mp4", (96, 128), seed=0, num_frames=7)
    return tmp_path / "clip.mp4"


def test_a_file_gives_every_frame(clip: Path) -> None:
    source = open_source(str(clip))
    frames = list(source)
    assert (len(frames), source.total, source.live) == (7, 7, False)
    assert source.fps == pytest.approx(15)
    assert frames[0].image.shape == (96, 128, 3)
    assert [frame.index for frame in frames] == list(range(7))


def test_frames_are_rgb(tmp_path: Path) -> None:
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 2] = 220  # BGR
    writer = cv2.VideoWriter(str(tmp_path / "red.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 64))
    writer.write(red)
    writer.release()
    cv2.imwrite(str(tmp_path / "red.png"), red)
    for name in ("red.avi", "red.png"):
        pixel = next(iter(open_source(str(tmp_path / name)))).image[32, 32]
        assert pixel[0] > 200, name
        assert pixel[2] < 30, name


def test_folder_glob_and_image(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "note.txt"):
        cv2.imwrite(str(tmp_path / name), np.zeros((8, 8, 3), np.uint8)) if name != "note.txt" else (
            tmp_path / name
        ).touch()
    assert [frame.name for frame in open_source(str(tmp_path))] == ["a.jpg", "b.png"]
    assert [frame.name for frame in open_source(str(tmp_path / "*.png"))] == ["b.png"]
    assert [frame.name for frame in open_source(str(tmp_path / "a.jpg"))] == ["a.jpg"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("cam99", "cam99: no such camera"),
        ("none.mp4", "no such file; expected cam0"),
        ("rtsp://127.0.0.1:1/x", "the stream cannot be opened"),
        ("*.nothing", "no images found"),
    ],
)
def test_a_missing_source_is_a_one_line_error(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message.replace("*", r"\*")):
        open_source(source)


def test_a_file_that_is_not_a_video_and_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(InputError, match="is not a video"):
        open_source(str(tmp_path / "text.mp4"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images found"):
        open_source(str(tmp_path / "empty"))


class SteppedCamera:
    """Gives ten frames; the second waits until `go` is set, and what comes after the fifth waits for `end`."""

    def __init__(self) -> None:
        self.count = 0
        self.released = False
        self.go, self.five_read, self.end = threading.Event(), threading.Event(), threading.Event()

    def isOpened(self) -> bool:  # noqa: N802 (OpenCV's name)
        return True

    def get(self, _: int) -> float:
        return 0.0

    def read(self) -> tuple[bool, np.ndarray]:
        if self.count == 1:
            self.go.wait(60)
        if self.count == 5:
            self.five_read.set()
            self.end.wait(60)
        self.count += 1
        return self.count <= 6, np.full((4, 4, 3), self.count, np.uint8)

    def release(self) -> None:
        self.released = True


def test_a_live_source_gives_the_newest_frame_and_counts_the_others() -> None:
    camera = SteppedCamera()
    source = LiveSource(camera, "cam0")  # type: ignore[arg-type]
    frames = iter(source)
    assert next(frames).index == 0
    camera.go.set()
    assert camera.five_read.wait(60)  # meanwhile four more frames came
    newest = next(frames)
    assert (newest.index, newest.image[0, 0, 0], source.dropped) == (4, 5, 3)
    camera.end.set()
    assert [frame.index for frame in frames] == [5]
    source.close()
    assert camera.released


def test_pipeline_saves_and_reports(clip: Path, trained_run: Path, tmp_path: Path) -> None:
    predictor = Predictor(trained_run / "best.safetensors", score_threshold=0.0, max_detections=3)
    names: list[str] = []
    sinks = [VideoSink(tmp_path / "out" / "o.mp4", 10), ImageSink(tmp_path / "grid.jpg")]
    report = run_video(open_source(str(clip)), predictor, sinks, on_frame=lambda frame, found: names.append(frame.name))
    assert (report.frames, report.detections, len(names)) == (7, 21, 7)
    assert "7 frames" in report.summary()
    assert "p95" in report.summary()
    saved = list(open_source(str(tmp_path / "out" / "o.mp4")))
    assert len(saved) == 7
    grid = cv2.imread(str(tmp_path / "grid.jpg"))
    assert grid is not None
    assert grid.shape[1] == 4 * 324 + 4
    assert VideoReport().summary() == "no frames"


def test_folder_sink_keeps_names(tmp_path: Path) -> None:
    sink = FolderSink(tmp_path / "out")
    sink.write(np.full((5, 6, 3), (250, 0, 0), np.uint8), "x.png")
    sink.close()
    saved = cv2.imread(str(tmp_path / "out" / "x.png"))
    assert saved is not None
    assert saved[0, 0].tolist() == [0, 0, 250], "BGR on disk"
    with pytest.raises(InputError, match="cannot be written"):
        sink.write(np.zeros((5, 6, 3), np.uint8), "x.strange")


def test_bad_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"saved as .mp4"):
        VideoSink(tmp_path / "x.jpg", 10)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(InputError, match="there is no display here; use --save"):
        WindowSink()


def test_a_source_is_never_overwritten(clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.jpg"), np.zeros((8, 8, 3), np.uint8))
    for named, target in (
        (folder, folder),
        (folder / "*.jpg", folder),
        (folder / "a.jpg", folder),
        (folder / "a.jpg", folder / "a.jpg"),
        (clip, clip),
    ):
        with pytest.raises(InputError, match="which is being read"):
            open_file_sink(open_source(str(named)), target)
    with pytest.raises(InputError, match="images are saved to a folder"):
        open_file_sink(open_source(str(folder)), tmp_path / "out.mp4")
    assert isinstance(open_file_sink(open_source(str(folder)), tmp_path / "out"), FolderSink)
    assert isinstance(open_file_sink(open_source(str(folder)), tmp_path / "out.jpg"), ImageSink)
    assert isinstance(open_file_sink(open_source(str(clip)), tmp_path / "out.mp4"), VideoSink)


def test_a_file_that_exists_is_never_a_pattern(tmp_path: Path) -> None:
    for name, value in (("photo[1].png", 9), ("photo1.png", 200)):
        cv2.imwrite(str(tmp_path / name), np.full((8, 8, 3), value, np.uint8))
    (frame,) = open_source(str(tmp_path / "photo[1].png"))
    assert frame.image[0, 0, 0] == 9


def clip_with_a_hole(path: Path) -> Path:
    """Ten frames, of which the fourth and fifth cannot be decoded."""
    sink = VideoSink(path, 10)
    rng = np.random.default_rng(0)
    for _ in range(10):
        sink.write(rng.integers(0, 255, (64, 64, 3), np.uint8))
    sink.close()
    content = bytearray(path.read_bytes())
    starts = [
        match.start() + 8 for match in re.finditer(rb"00dc", bytes(content)) if content[match.start() + 8] == 0xFF
    ]
    for start in starts[3:5]:
        content[start : start + 600] = bytes(600)
    path.write_bytes(content)
    return path


def test_a_frame_that_cannot_be_decoded_is_not_the_end(tmp_path: Path) -> None:
    source = open_source(str(clip_with_a_hole(tmp_path / "hole.avi")))
    assert len(list(source)) == 8
    assert [problem.rpartition("/")[2] for problem in source.problems] == ["hole.avi: 8 of its 10 frames could be read"]


def test_images_that_cannot_be_read_are_left_out_and_listed(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "b.png").write_text("no image")
    source = open_source(str(tmp_path))
    assert [frame.name for frame in source] == ["a.png"]
    assert len(source.problems) == 1
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match=r"b.png: is not a readable image"):
        list(open_source(str(tmp_path)))


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_odd_sides_are_padded(tmp_path: Path, suffix: str) -> None:
    sink = VideoSink(tmp_path / f"odd{suffix}", 10)
    sink.write(np.full((65, 97, 3), 200, np.uint8))
    sink.close()
    (frame,) = open_source(str(tmp_path / f"odd{suffix}"))
    assert frame.image.shape == (66, 98, 3)
    assert frame.image.min() > 180


def test_a_video_that_lacks_frames_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out.mp4").write_bytes(b"an older one")
    sink = VideoSink(tmp_path / "out.mp4", 10)
    sink.write(np.zeros((64, 64, 3), np.uint8))
    sink._count = 60  # as if the disk had swallowed the others
    with pytest.raises(InputError, match=r"out.mp4: 1 of 60 frames were written; is the disk full\?"):
        sink.close()
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    assert (tmp_path / "out.mp4").read_bytes() == b"an older one"


def test_an_image_that_cannot_be_written_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"x.png: cannot be written: No space left on device"):
        FolderSink(tmp_path).write(np.zeros((5, 6, 3), np.uint8), "x.png")
    assert list(tmp_path.iterdir()) == []


def test_passwords_are_not_shown() -> None:
    assert without_password("rtsp://user:secret@host:554/stream") == "rtsp://host:554/stream"
    with pytest.raises(InputError) as refusal:
        open_source("rtsp://user:secret@127.0.0.1:1/x")
    assert "secret" not in str(refusal.value)


def test_names_that_are_not_utf8(tmp_path: Path, clip: Path) -> None:
    strange = clip.rename(tmp_path / os.fsdecode(b"caf\xe9.mp4"))
    assert len(list(open_source(str(strange)))) == 7
    sink = open_file_sink(open_source(str(strange)), tmp_path / os.fsdecode(b"out\xe9/caf\xe9.mp4"))
    sink.write(np.zeros((64, 64, 3), np.uint8), "")
    sink.close()
    assert (tmp_path / os.fsdecode(b"out\xe9/caf\xe9.mp4")).is_file()
