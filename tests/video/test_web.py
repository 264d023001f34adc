"""The page of the cameras: pictures, results, health, metrics, strangers, stalled viewers, a real browser."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from browser import CHROMIUM, Browser
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from detector.errors import InputError
from detector.structures import Detections
from detector.tracking.counting import CountLine
from detector.video.frame import Frame, Result, Source
from detector.video.ledger import Stopwatch
from detector.video.pipeline import Camera
from detector.video.web.hub import Hub, WebSink
from detector.video.web.server import WebServer
from detector.web import parse_address

FRAME = np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)


class Show:
    """A hub with two cameras that a thread feeds at 25 frames per second, and its server."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.cameras = [Camera(Source(f"cam{number}")) for number in range(2)]
        self.cameras[0].places = [CountLine("0,100,320,100", "line 1", ("person",))]
        self.hub = Hub(self.cameras, ("person",))
        self.sinks = [WebSink(self.hub, number) for number in range(2)]
        self.server = WebServer(self.hub, host, 0)
        self.url = self.server.url
        self.slowest_ms = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._feed)
        self._thread.start()

    def _feed(self) -> None:
        number = 0
        while not self._end.wait(0.04):
            y = 60.0 if number % 50 < 25 else 160.0
            boxes = np.array([[100, y - 50, 140, y]], np.float32)
            found = Detections(boxes, np.ones(1, np.float32), np.zeros(1, np.int64), track_ids=np.array([7]))
            for index, (camera, sink) in enumerate(zip(self.cameras, self.sinks, strict=True)):
                begun = time.perf_counter()
                watch = Stopwatch(begun)
                events = [event for place in camera.places for event in place.update(found, number / 25)]
                frame = Frame(FRAME, str(number), number, begun, number / 25)
                result = Result(index, frame, found, events, [], [], np.zeros((0, 4), np.float32), watch)
                self.hub.put_result(result)
                if sink.wants(result):
                    sink.write(FRAME, result)
                watch.lap("encode")
                camera.ledger.add_boxes(watch.total_ms, 1)
                camera.ledger.add_stages(0.1, watch.laps)
                self.slowest_ms = max(self.slowest_ms, watch.total_ms)
            number += 1

    def close(self) -> None:
        self._end.set()
        self._thread.join()
        self.server.close()


@pytest.fixture
def show() -> Iterator[Show]:
    show = Show()
    yield show
    show.close()


def get(url: str, **headers: str) -> tuple[int, str]:
    """Status and text."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_state_health_and_metrics(show: Show) -> None:
    time.sleep(1.5)
    status, text = get(f"{show.url}state")
    cameras = json.loads(text)
    assert status == 200
    assert [camera["source"] for camera in cameras] == ["cam0", "cam1"]
    assert cameras[0]["counts"] == {"line 1": {"right person": 1}}
    assert cameras[0]["frames"] > 10
    assert get(f"{show.url}healthz")[0] == 200
    status, text = get(f"{show.url}metrics")
    assert 'detector_source_up{camera="0",source="cam0"} 1.0' in text
    assert 'detector_count_total{camera="0",place="line 1",source="cam0",what="right person"} 1.0' in text
    assert 'quantile="0.95"' in text


def test_no_frames_are_no_health() -> None:
    server = WebServer(Hub([Camera(Source("cam0"))], ()), "127.0.0.1", 0)
    status, text = get(f"{server.url}healthz")
    server.close()
    assert (status, json.loads(text)["ok"]) == (503, False)


def test_pictures_by_websocket_and_mjpeg(show: Show) -> None:
    with connect(show.url.replace("http", "ws") + "ws/0") as viewer:
        content = viewer.recv(timeout=10)
    assert isinstance(content, bytes)
    assert abs(time.time() - struct.unpack(">d", content[:8])[0]) < 1
    picture = cv2.imdecode(np.frombuffer(content[8:], np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    assert picture.shape == FRAME.shape
    with urllib.request.urlopen(f"{show.url}stream/1.mjpg", timeout=10) as stream:
        assert stream.headers["Content-Type"] == "multipart/x-mixed-replace; boundary=frame"
        head = stream.read(200)
    assert head.startswith(b"--frame\r\nContent-Type: image/jpeg\r\n")
    assert b"\xff\xd8" in head
    assert get(f"{show.url}stream/9.mjpg")[0] == 404


def test_results_and_events_as_they_come(show: Show) -> None:
    seen: list[dict[str, object]] = []
    with urllib.request.urlopen(f"{show.url}events", timeout=10) as stream:
        while not any("event" in row for row in seen) and len(seen) < 300:
            line = stream.readline().decode()
            if line.startswith("data: "):
                seen.append(json.loads(line.removeprefix("data: ")))
    (event,) = [row["event"] for row in seen if "event" in row]
    assert isinstance(event, dict)
    assert (event["place"], event["class_name"], event["track_id"]) == ("line 1", "person", 7)
    frame = next(row for row in seen if "detections" in row)
    assert isinstance(frame["detections"], list)
    assert frame["detections"][0]["track_id"] == 7


def test_a_stalled_viewer_disturbs_nobody(show: Show) -> None:
    """It reads nothing; the others and the cameras go on, and nothing piles up for it."""
    host, port = show.url.removeprefix("http://").rstrip("/").split(":")
    stalled = socket.create_connection((host, int(port)))
    stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    lines = ["GET /ws/0 HTTP/1.1", f"Host: {host}:{port}", "Upgrade: websocket", "Connection: Upgrade"]
    lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "", ""]
    stalled.sendall("\r\n".join(lines).encode())
    ages = []
    with connect(show.url.replace("http", "ws") + "ws/0", max_size=None) as viewer:
        for _ in range(75):
            content = viewer.recv(timeout=10)
            assert isinstance(content, bytes)
            ages.append(time.time() - struct.unpack(">d", content[:8])[0])
    stalled.close()
    assert np.median(ages) < 1, "seconds"
    assert show.slowest_ms < 5000


def test_who_leaves_is_forgotten(show: Show) -> None:
    with connect(show.url.replace("http", "ws") + "ws/0") as viewer:
        viewer.recv(timeout=10)
        assert show.hub.watched(0)
    deadline = time.monotonic() + 5
    while show.hub.watched(0):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not show.hub.watched(1), "and what nobody watches is not drawn"


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"Host": "camera.example.org"}, "the host of the request is not this computer"),
        ({"Origin": "http://example.org"}, "the request comes from another site's page"),
        ({"Sec-Fetch-Site": "cross-site"}, "the request comes from another site's page"),
    ],
)
def test_other_sites_see_nothing(show: Show, headers: dict[str, str], reason: str) -> None:
    status, text = get(f"{show.url}state", **headers)
    assert (status, json.loads(text)) == (403, {"error": reason})
    assert get(f"{show.url}state", Host="[")[0] == 400
    if "Origin" in headers:
        with pytest.raises(InvalidStatus):
            connect(show.url.replace("http", "ws") + "ws/0", additional_headers=headers)


def test_beyond_this_computer_a_token_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTOR_TOKEN", "sesame")
    show = Show("0.0.0.0")
    try:
        assert show.url.endswith("/?token=sesame")
        base = show.url.removesuffix("?token=sesame").replace("0.0.0.0", "127.0.0.1")
        assert get(f"{base}state")[0] == 401
        assert get(f"{base}state?token=wrong")[0] == 401
        assert get(f"{base}state?token=sesame")[0] == 200
        assert get(f"{base}state", Authorization="Bearer sesame")[0] == 200
        with pytest.raises(InvalidStatus):
            connect(base.replace("http", "ws") + "ws/0")
        with connect(base.replace("http", "ws") + "ws/0?token=sesame") as viewer:
            viewer.recv(timeout=10)
    finally:
        show.close()
    monkeypatch.delenv("DETECTOR_TOKEN")
    server = WebServer(Hub([], ()), "0.0.0.0", 0)
    server.close()
    assert len(server.url.partition("token=")[2]) > 16


def test_addresses() -> None:
    assert parse_address("127.0.0.1:9000", "--web") == ("127.0.0.1", 9000)
    assert parse_address("9000", "--web") == ("127.0.0.1", 9000)
    assert parse_address("[::1]:9000", "--web") == ("::1", 9000)
    for text in ("localhost:http", "127.0.0.1:99999"):
        with pytest.raises(InputError, match=r"--web .*: expected HOST:PORT"):
            parse_address(text, "--web")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="in use"):
        WebServer(Hub([], ()), "127.0.0.1", taken.getsockname()[1])


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
def test_a_browser_shows_the_cameras(show: Show, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile", show.url) as browser:
        browser.wait_for("document.querySelectorAll('img').length == 2")
        browser.wait_for("[...document.images].every(image => image.dataset.frames > 25 && image.naturalWidth == 320)")
        text = browser.wait_for("document.body.innerText.includes('line 1: ') && document.body.innerText")
        assert "cam0" in text
        assert text.count("live") == 2
        assert "reconnects" in text
        assert browser.evaluate("Number(document.images[0].dataset.age)") < 5000
        browser.screenshot(tmp_path / "page.png")
    pixels = cv2.imread(str(tmp_path / "page.png"))
    assert pixels is not None
    assert pixels.std() > 20, "an empty page"
