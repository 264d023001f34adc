"""Cameras and streams that lag, hang, break off and come back: with stand-ins, and with a real RTSP server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from rtsp_server import RtspServer, number_of, numbered_frame, write_numbered

from detector.errors import InputError
from detector.structures import Image
from detector.video import live
from detector.video.frame import Frame, Source
from detector.video.intake import Intake
from detector.video.live import CameraConnection, LiveSource

pytest.importorskip("av")


class Scripted:
    """A connection that gives some frames with their own times, and then ends or fails."""

    fps = 25.0

    def __init__(self, times: list[float | None], error: str = "") -> None:
        self._times, self._error = times, error
        self.closed = False

    def images(self) -> Iterator[tuple[Image, float | None]]:
        for seconds in self._times:
            yield np.zeros((4, 4, 3), np.uint8), seconds
        if self._error:
            raise InputError(self._error)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long a source waits before each attempt; no time passes."""
    found: list[float] = []
    monkeypatch.setattr(live.random, "uniform", lambda low, high: (low + high) / 2)
    monkeypatch.setattr(threading.Event, "wait", lambda self, timeout=None: found.append(timeout) or self.is_set())
    return found


def test_a_lost_stream_is_opened_again_ever_more_rarely(waits: list[float]) -> None:
    script: list[Scripted | None] = [Scripted([0.0, 0.1], "lost"), *[None] * 9, Scripted([5.0]), None, None]

    def connect() -> Scripted:
        connection = script.pop(0)
        if connection is None:
            raise InputError("refused")
        return connection

    source = LiveSource("cam0", connect, retries=9)
    frames = iter(source)
    assert [next(frames).index for _ in range(2)] == [0, 1]
    with pytest.raises(StopIteration):
        next(frames)
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert source.problems == ["cam0: was lost after 2 frames and did not come back"]
    assert source.state == "lost: refused"


def test_a_stream_that_comes_back_goes_on(waits: list[float]) -> None:
    parts = [Scripted([10.0, 10.04], "nothing came for 2 s"), Scripted([700.0, 700.04]), Scripted([None, None])]
    source = LiveSource("cam0", lambda: parts.pop(0) if parts else stop(), retries=1)

    def stop() -> Scripted:
        raise InputError("refused")

    frames = list(source)
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4, 5]
    assert source.reconnects == 2
    seconds = [frame.seconds for frame in frames]
    assert seconds == sorted(seconds)
    assert seconds[-1] < 1, "the source's own time goes on, wherever the stream's clock begins"


def test_a_stream_that_is_not_there_is_an_error_at_once(waits: list[float]) -> None:
    def refuse() -> Scripted:
        raise InputError("rtsp://host/stream: cannot be opened")

    with pytest.raises(InputError, match="cannot be opened"):
        LiveSource("stream", refuse)
    assert waits == []
    with pytest.raises(InputError, match="cannot be opened"):
        list(LiveSource("stream", refuse, retries=3, patient=True))
    assert len(waits) == 3
    with pytest.raises(InputError, match="no frame arrived"):
        list(LiveSource("stream", lambda: Scripted([]), retries=0))


def test_a_stream_that_connects_and_sends_nothing_is_asked_ever_more_rarely(waits: list[float]) -> None:
    source = LiveSource("cam0", lambda: Scripted([], "nothing came for 2 s"), retries=4)
    with pytest.raises(InputError, match="no frame arrived"):
        list(source)
    assert waits == [0.5, 1, 2, 4]


class HangingCamera:
    """Gives three frames; the fourth read never returns."""

    def __init__(self) -> None:
        self.count = 0
        self.release_it = threading.Event()
        self.released = threading.Event()

    def isOpened(self) -> bool:  # noqa: N802 (OpenCV's name)
        return True

    def get(self, _: int) -> float:
        return 0.0

    def read(self) -> tuple[bool, np.ndarray]:
        self.count += 1
        if self.count > 3:
            self.release_it.wait(60)
            return False, np.zeros((4, 4, 3), np.uint8)
        time.sleep(0.02)
        return True, np.full((4, 4, 3), self.count, np.uint8)

    def release(self) -> None:
        self.released.set()


def test_a_camera_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "READ_SECONDS", 0.3)
    cameras = [HangingCamera(), HangingCamera()]
    opened = list(cameras)
    source = LiveSource("cam0", lambda: CameraConnection(0, opened.pop(0)))  # type: ignore[arg-type]
    begun = time.monotonic()
    frames = iter(source)
    values = []
    while len(values) < 4:  # the fourth comes from the second opening
        values.append(int(next(frames).image[0, 0, 0]))
    assert time.monotonic() - begun < 20
    assert 1 in values[1:], "it was opened again"
    assert source.reconnects == 1
    source.close()
    for camera in cameras:
        camera.release_it.set()
        assert camera.released.wait(5), "released by the thread that hung in it"


class Steady(Source):
    """Frames at a rate, or as fast as they are taken."""

    def __init__(self, name: str, *, count: int, live: bool = False, interval: float = 0.0, error: str = "") -> None:
        super().__init__(name)
        self.live, self._count, self._interval, self._error = live, count, interval, error
        self.closed = False

    def __iter__(self) -> Iterator[Frame]:
        for number in range(self._count):
            time.sleep(self._interval)
            yield Frame(np.zeros((4, 4, 3), np.uint8), str(number), number, time.perf_counter(), number / 25)
        if self._error:
            raise InputError(self._error)

    def close(self) -> None:
        self.closed = True


def test_a_live_source_gives_the_newest_frame_and_counts_the_others() -> None:
    intake = Intake([Steady("cam0", count=40, live=True, interval=0.01)])
    got = []
    for _, frame in intake:
        got.append(frame.index)
        time.sleep(0.1)
    assert got == sorted(set(got))
    assert len(got) < 40
    assert got[-1] == 39
    assert len(got) + intake.dropped[0] == 40


def test_every_frame_of_a_file_is_given_in_order() -> None:
    intake = Intake([Steady("a.mp4", count=50)])
    assert [frame.index for _, frame in intake] == list(range(50))
    assert intake.dropped == [0]


def test_sources_take_turns() -> None:
    intake = Intake([Steady(name, count=30) for name in "abcd"])
    time.sleep(0.2)
    order = []
    for number, _ in intake:
        order.append(number)
        time.sleep(0.01)
    for start in range(0, 80, 4):
        assert len(set(order[start : start + 4])) == 4


def test_one_source_that_fails_is_not_the_others_end() -> None:
    sources = [Steady("bad", count=2, error="bad: broken"), Steady("good", count=20)]
    assert [number for number, _ in Intake(sources)].count(1) == 20
    assert sources[0].problems == ["bad: broken"]
    with pytest.raises(InputError, match="bad: broken"):
        list(Intake([Steady("bad", count=2, error="bad: broken")]))


def test_closing_frees_threads_that_wait() -> None:
    before = threading.active_count()
    sources = [Steady("a", count=1000), Steady("b", count=1000, live=True, interval=0.01)]
    intake = Intake(sources)
    assert intake.get(-1) is not None
    intake.close()
    assert threading.active_count() <= before
    assert all(source.closed for source in sources)


def test_numbers_survive_the_encoder(tmp_path: Path) -> None:
    assert number_of(numbered_frame(48_213)) == 48_213
    write_numbered(tmp_path / "n.mp4", 5)
    capture = cv2.VideoCapture(str(tmp_path / "n.mp4"))
    assert [number_of(capture.read()[1]) for _ in range(5)] == [0, 1, 2, 3, 4]


def test_a_server_that_freezes_is_noticed_and_one_that_returns_is_found(tmp_path: Path) -> None:
    pytest.importorskip("aio_rtsp_toolkit")
    write_numbered(tmp_path / "n.mp4", 500)
    with RtspServer(tmp_path) as server:
        source = LiveSourceProbe(server.url("n.mp4"))
        source.wait_for(5)
        server.freeze()
        assert source.wait_until(lambda: source.source.state != "open", 10)
        server.kill()
        before = source.count
        server.start()
        assert source.wait_until(lambda: source.count > before + 5, 30)
        assert source.source.reconnects == 1
        source.close()


class LiveSourceProbe:
    """Reads a source in a thread, as the pipeline does."""

    def __init__(self, address: str) -> None:
        from detector.video.source import open_source

        self.source = open_source(address)
        self.count = 0
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        for _ in self.source:
            self.count += 1

    def wait_for(self, count: int) -> None:
        assert self.wait_until(lambda: self.count >= count, 10)

    def wait_until(self, condition: object, seconds: float) -> bool:
        assert callable(condition)
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def close(self) -> None:
        self.source.close()
        self._thread.join(5)
        assert not self._thread.is_alive()
