"""Sources, sinks, and the pipeline between them."""

from __future__ import annotations

import errno
import os
import re
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from browser import CHROMIUM, Browser

from detector.data.synthetic import write_video
from detector.data.video_file import VideoFile
from detector.errors import InputError
from detector.inference.predictor import Predictor
from detector.structures import Detections, Image
from detector.tracking.tracker import Tracker
from detector.video.frame import Frame, Result
from detector.video.ledger import Ledger, Stopwatch
from detector.video.media import Media
from detector.video.pipeline import Camera, open_file_sink, run_video
from detector.video.sink import FileSink, FolderSink, ImageSink, VideoSink, WindowSink
from detector.video.source import open_source, without_password

av = pytest.importorskip("av")
BLACK = np.zeros((4, 4, 3), np.uint8)
NO_BOXES = np.zeros((0, 4), np.float32)


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
        ("rtsp://127.0.0.1:1/x", "cannot be opened as a video"),
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
    with pytest.raises(InputError, match="cannot be opened as a video"):
        open_source(str(tmp_path / "text.mp4"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images found"):
        open_source(str(tmp_path / "empty"))


def result_of(image: Image, name: str = "", seconds: float = 0.0) -> Result:
    """A frame without detections."""
    frame = Frame(image, name, 0, 0.0, seconds)
    return Result(0, frame, Detections(), [], [], [], NO_BOXES, Stopwatch(0.0))


def test_pipeline_saves_and_reports(clip: Path, trained_run: Path, tmp_path: Path) -> None:
    predictor = Predictor(trained_run / "best.safetensors", score_threshold=0.0, max_detections=3)
    names: list[str] = []
    sinks = [VideoSink(tmp_path / "out" / "o.mp4", 10), ImageSink(tmp_path / "grid.jpg")]
    camera = Camera(open_source(str(clip)), sinks)
    seconds = run_video([camera], predictor, on_result=lambda result: names.append(result.frame.name))
    assert (camera.ledger.frames, camera.ledger.detections, len(names)) == (7, 21, 7)
    assert "7 frames" in camera.ledger.summary(seconds)
    figures = camera.ledger.figures()
    assert {"fit", "network", "decode", "draw", "encode"} <= figures["stages_ms"].keys()
    saved = list(open_source(str(tmp_path / "out" / "o.mp4")))
    assert len(saved) == 7
    grid = cv2.imread(str(tmp_path / "grid.jpg"))
    assert grid is not None
    assert grid.shape[1] == 4 * 324 + 4
    assert Ledger().summary(1.0) == "no frames"


def test_the_stages_add_up_to_the_whole(clip: Path, trained_run: Path, tmp_path: Path) -> None:
    """Each stage is a lap from the end of the one before, so no time is lost between them."""
    predictor = Predictor(trained_run / "best.safetensors")
    watches: list[tuple[Stopwatch, float]] = []
    ends: dict[int, float] = {}

    class Probe(FileSink):
        def write(self, image: Image, result: Result) -> None:
            ends[result.frame.index] = time.perf_counter()

    camera = Camera(open_source(str(clip)), [Probe()])
    run_video([camera], predictor, on_result=lambda result: watches.append((result.watch, result.frame.captured)))
    for index, (watch, captured) in enumerate(watches):
        whole = (ends[index] - captured) * 1000
        assert sum(watch.laps.values()) == pytest.approx(whole, rel=0.02, abs=5)


def test_two_sources_share_the_detector(clip: Path, trained_run: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "other.mp4", (96, 128), seed=1, num_frames=4)
    predictor = Predictor(trained_run / "best.safetensors")
    order: list[int] = []
    cameras = [
        Camera(open_source(str(path)), [VideoSink(tmp_path / f"{n}.mp4", 15)])
        for n, path in enumerate((clip, tmp_path / "other.mp4"))
    ]
    run_video(cameras, predictor, on_result=lambda result: order.append(result.camera))
    assert [order.count(0), order.count(1)] == [7, 4]
    assert [len(list(open_source(str(tmp_path / f"{n}.mp4")))) for n in (0, 1)] == [7, 4]


def test_a_full_disk_ends_the_run(clip: Path, trained_run: Path, tmp_path: Path) -> None:
    class Full(FileSink):
        def write(self, image: Image, result: Result) -> None:
            raise InputError("out.mp4: cannot be written: No space left on device")

    before = threading.active_count()
    with pytest.raises(InputError, match="No space left"):
        run_video([Camera(open_source(str(clip)), [Full()])], Predictor(trained_run / "best.safetensors"))
    assert threading.active_count() == before


class Found:
    """Stands for a predictor: one object in every frame."""

    class_names = ("person", "dog")

    def predict_batch(self, images: list[Image], *, on_stage: Callable[[str], object]) -> list[Detections]:
        on_stage("network")
        boxes = np.array([[20, 20, 60, 80]], np.float32)
        return [Detections(boxes, np.ones(1, np.float32), np.zeros(1, np.int64)) for _ in images]


@pytest.mark.parametrize("tracked", [False, True])
def test_what_is_found_is_blurred_in_every_frame(clip: Path, tracked: bool) -> None:
    """Also before a tracker has given it an identity."""
    inside: list[tuple[Image, Image]] = []

    class Probe(FileSink):
        def write(self, image: Image, result: Result) -> None:
            inside.append((image[40:76, 24:56], result.frame.image[40:76, 24:56]))

    tracker = Tracker(score_threshold=0.5) if tracked else None
    camera = Camera(open_source(str(clip)), [Probe()], tracker, blur=frozenset({0}))
    run_video([camera], Found())  # type: ignore[arg-type]
    assert len(inside) == 7
    for shown, original in inside:
        kinds = [len(np.unique(each.reshape(-1, 3), axis=0)) for each in (shown, original)]
        assert kinds[0] < 60, "a mosaic"
        assert kinds[1] > 200


def test_folder_sink_keeps_names(tmp_path: Path) -> None:
    sink = FolderSink(tmp_path / "out")
    sink.write(np.full((5, 6, 3), (250, 0, 0), np.uint8), result_of(BLACK, "x.png"))
    sink.close()
    saved = cv2.imread(str(tmp_path / "out" / "x.png"))
    assert saved is not None
    assert saved[0, 0].tolist() == [0, 0, 250], "BGR on disk"
    with pytest.raises(InputError, match="cannot be written"):
        sink.write(np.zeros((5, 6, 3), np.uint8), result_of(BLACK, "x.strange"))


def test_bad_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"saved as .mkv, .mov, .mp4"):
        VideoSink(tmp_path / "x.jpg", 10)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(InputError, match="there is no display here for a window; use --save"):
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
    """Ten frames by another encoder, of which the fourth and fifth cannot be decoded."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 64))
    rng = np.random.default_rng(0)
    for _ in range(10):
        writer.write(rng.integers(0, 255, (64, 64, 3), np.uint8))
    writer.release()
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
    assert [problem.rpartition("/")[2] for problem in source.problems] == [
        "hole.avi: 2 of its 10 frames could not be read"
    ]


def test_images_that_cannot_be_read_are_left_out_and_listed(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "b.png").write_text("no image")
    source = open_source(str(tmp_path))
    assert [frame.name for frame in source] == ["a.png"]
    assert len(source.problems) == 1
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match=r"b.png: is not a readable image"):
        list(open_source(str(tmp_path)))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_odd_sides_are_padded(tmp_path: Path, suffix: str) -> None:
    file = VideoFile(tmp_path / f"odd{suffix}", 10)
    file.write(np.full((65, 97, 3), 200, np.uint8))
    file.close()
    (frame,) = open_source(str(tmp_path / f"odd{suffix}"))
    assert frame.image.shape == (66, 98, 3)
    assert frame.image.min() > 180


TIMES = [0.0, 0.04, 0.05, 0.5, 2.0, 2.013, 3.25]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_saved_frames_keep_their_own_times(tmp_path: Path, trained_run: Path, suffix: str) -> None:
    """A variable frame rate, through the whole pipeline; the last frame keeps its duration."""
    file = VideoFile(tmp_path / "in.mp4", 25)
    for number, seconds in enumerate(TIMES):
        file.write(np.full((96, 128, 3), 20 * number, np.uint8), seconds, 0.75)
    file.close()
    source = open_source(str(tmp_path / "in.mp4"))
    run_video(
        [Camera(source, [VideoSink(tmp_path / f"out{suffix}", source.fps or 0)])],
        Predictor(trained_run / "best.safetensors"),
    )
    saved = open_source(str(tmp_path / f"out{suffix}"))
    assert [frame.seconds for frame in saved] == pytest.approx(TIMES, abs=0.001)
    media = Media(str(tmp_path / f"out{suffix}"), "out")
    assert media.container.duration / 1e6 == pytest.approx(4.0, abs=0.001)
    media.close()


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_rotated_video_is_upright(tmp_path: Path, degrees: int) -> None:
    """A phone writes the sensor's rows and a matrix that turns them; OpenCV's reader is the reference."""
    image = np.zeros((64, 96, 3), np.uint8)
    image[:32, :48] = (255, 0, 0)  # red, top left of what the sensor saw
    file = VideoFile(tmp_path / "phone.mp4", 25)
    for _ in range(3):
        file.write(image)
    file.close()
    cosine, sine = round(np.cos(np.radians(degrees))), round(np.sin(np.radians(degrees)))
    matrix = struct.pack(">9i", cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30)
    content = bytearray((tmp_path / "phone.mp4").read_bytes())
    start = content.index(b"tkhd") + 44
    content[start : start + 36] = matrix
    (tmp_path / "phone.mp4").write_bytes(content)
    frame = next(iter(open_source(str(tmp_path / "phone.mp4"))))
    _, reference = cv2.VideoCapture(str(tmp_path / "phone.mp4")).read()
    assert frame.image.shape == reference.shape
    assert np.abs(frame.image.astype(int) - reference[..., ::-1]).max() < 30
    corner = np.argwhere(frame.image[..., 0] > 128).mean(0) / frame.image.shape[:2]
    expected = {0: (0.25, 0.25), 90: (0.25, 0.75), 180: (0.75, 0.75), 270: (0.75, 0.25)}[degrees]
    assert corner == pytest.approx(expected, abs=0.05)


def test_the_audio_of_a_file_is_kept(tmp_path: Path, trained_run: Path) -> None:
    """Packet by packet, with the same times; what does not fit into the file is said."""
    add_sound(tmp_path / "in.mkv", "aac")
    source = open_source(str(tmp_path / "in.mkv"))
    run_video(
        [Camera(source, [open_file_sink(source, tmp_path / "out.mp4")])], Predictor(trained_run / "best.safetensors")
    )
    assert audio_of(tmp_path / "out.mp4") == audio_of(tmp_path / "in.mkv")
    add_sound(tmp_path / "pcm.avi", "pcm_mulaw")
    source = open_source(str(tmp_path / "pcm.avi"))
    sink = open_file_sink(source, tmp_path / "pcm.mp4")
    run_video([Camera(source, [sink])], Predictor(trained_run / "best.safetensors"))
    assert "its audio (pcm_mulaw) does not fit into this kind of file; .mkv takes it" in sink.problems[0]
    assert len(list(open_source(str(tmp_path / "pcm.mp4")))) == 5


def add_sound(path: Path, codec: str) -> None:
    """A video of half a second with a tone."""
    container = av.open(str(path), "w")
    video, audio = container.add_stream("libx264", rate=10), container.add_stream(codec, rate=8000)
    video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
    audio.layout = "mono"
    for _ in range(5):
        container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((64, 96, 3), np.uint8), format="rgb24")))
    container.mux(video.encode(None))
    layout = "fltp" if codec == "aac" else "s16"
    samples = (np.sin(np.arange(4000) / 3) * (0.5 if codec == "aac" else 9000)).astype(
        np.float32 if codec == "aac" else np.int16
    )
    frame = av.AudioFrame.from_ndarray(samples[None], format=layout, layout="mono")
    frame.sample_rate = 8000
    container.mux(audio.encode(frame))
    container.mux(audio.encode(None))
    container.close()


def audio_of(path: Path) -> list[tuple[int, bytes]]:
    """Milliseconds and content of each packet."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(container.streams.audio[0]) if packet.size]
        return [(round(float(packet.pts * packet.time_base) * 1000), bytes(packet)) for packet in packets]


def test_a_video_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk."""
    (tmp_path / "out.mp4").write_bytes(b"an older one")
    code = (
        "import resource, signal, sys, numpy as np\n"
        "from pathlib import Path\n"
        "from detector.data.video_file import VideoFile\n"
        "from detector.errors import InputError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "file, rng = VideoFile(Path(sys.argv[1]), 10), np.random.default_rng(0)\n"
        "try:\n"
        "    for _ in range(60): file.write(rng.integers(0, 255, (256, 256, 3), np.uint8))\n"
        "    file.close()\n"
        "except InputError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out.mp4")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "out.mp4: cannot be written: File too large" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    assert (tmp_path / "out.mp4").read_bytes() == b"an older one"


def test_frames_of_another_size_are_scaled_to_the_first(tmp_path: Path) -> None:
    file = VideoFile(tmp_path / "out.mp4", 10)
    for size in (64, 96, 96):
        file.write(np.zeros((size, size, 3), np.uint8))
    file.close()
    assert len(file.problems) == 1
    assert [frame.image.shape for frame in open_source(str(tmp_path / "out.mp4"))] == [(64, 64, 3)] * 3


def test_a_stream_that_begins_late_begins_at_zero(tmp_path: Path, trained_run: Path) -> None:
    """Recorders write MPEG-TS whose clock was running before."""
    container = av.open(str(tmp_path / "late.ts"), "w")
    stream = container.add_stream("libx264", rate=10)
    stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
    for number in range(3):
        frame = av.VideoFrame.from_ndarray(np.zeros((96, 128, 3), np.uint8), format="rgb24")
        frame.pts, frame.time_base = 36_000 + number, Fraction(1, 10)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
    container.close()
    source = open_source(str(tmp_path / "late.ts"))
    run_video([Camera(source, [VideoSink(tmp_path / "out.mp4", 10)])], Predictor(trained_run / "best.safetensors"))
    assert [frame.seconds for frame in open_source(str(tmp_path / "out.mp4"))] == pytest.approx([0, 0.1, 0.2], abs=1e-3)


def test_an_image_that_cannot_be_written_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"x.png: cannot be written: No space left on device"):
        FolderSink(tmp_path).write(np.zeros((5, 6, 3), np.uint8), result_of(BLACK, "x.png"))
    assert list(tmp_path.iterdir()) == []


def test_passwords_are_not_shown() -> None:
    assert without_password("rtsp://user:secret@host:554/stream") == "rtsp://host:554/stream"
    assert without_password("rtsp://user:pa/ss@host/stream") == "rtsp://host/stream"
    assert without_password("rtsp://user:s@cr@t@host/stream?password=x") == "rtsp://host/stream"
    with pytest.raises(InputError) as refusal:
        open_source("rtsp://user:secret@127.0.0.1:1/x")
    assert "secret" not in str(refusal.value)


def test_names_that_are_not_utf8(tmp_path: Path, clip: Path) -> None:
    strange = clip.rename(tmp_path / os.fsdecode(b"caf\xe9.mp4"))
    assert len(list(open_source(str(strange)))) == 7
    sink = open_file_sink(open_source(str(strange)), tmp_path / os.fsdecode(b"out\xe9/caf\xe9.mp4"))
    sink.write(np.zeros((64, 64, 3), np.uint8), result_of(BLACK))
    sink.close()
    assert (tmp_path / os.fsdecode(b"out\xe9/caf\xe9.mp4")).is_file()


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
def test_a_browser_plays_a_saved_video_to_its_end(tmp_path: Path) -> None:
    file = VideoFile(tmp_path / "out.mp4", 25)
    for number, seconds in enumerate(TIMES):
        file.write(np.full((96, 128, 3), 30 * number, np.uint8), seconds, 0.25)
    file.close()
    (tmp_path / "page.html").write_text('<video src="out.mp4" autoplay muted></video>')
    with Browser(tmp_path / "profile", (tmp_path / "page.html").as_uri()) as browser:
        browser.wait_for("document.querySelector('video').ended", 30)
        assert browser.evaluate("document.querySelector('video').duration") == pytest.approx(3.5, abs=0.001)
        assert browser.evaluate("document.querySelector('video').videoWidth") == 128
