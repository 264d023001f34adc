"""Recordings that survive a sudden end and keep to a size; events that survive an absent receiver."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from detector.errors import InputError
from detector.structures import Detections
from detector.video import events
from detector.video.events import Courier
from detector.video.frame import Frame, Result
from detector.video.ledger import Stopwatch
from detector.video.record import Recorder
from detector.video.source import open_source

av = pytest.importorskip("av")
IMAGE = np.zeros((64, 96, 3), np.uint8)


def at(seconds: float, *labels: int) -> Result:
    """A frame with some objects."""
    count = len(labels)
    found = Detections(
        np.tile(np.array([[1, 1, 9, 9]], np.float32), (count, 1)),
        np.ones(count, np.float32),
        np.array(labels, np.int64),
    )
    frame = Frame(IMAGE, "", round(seconds * 10), 0.0, seconds)
    return Result(0, frame, found, [], [], [], np.zeros((0, 4), np.float32), Stopwatch(0.0))


def record(recorder: Recorder, until: float, seen: tuple[float, float] = (0, 0)) -> None:
    """Ten frames a second; class 3 is there for a while."""
    for number in range(round(until * 10)):
        seconds = number / 10
        recorder.write(IMAGE, at(seconds, *([3] if seen[0] <= seconds < seen[1] else [])))
    recorder.close()


def durations(folder: Path) -> list[float]:
    """Of the recordings, in their order."""
    found = []
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        with av.open(str(path)) as container:
            times = [float(frame.time) for frame in container.decode(video=0)]
        found.append(round(times[-1] + 0.1, 3))
    return found


def test_segments(tmp_path: Path) -> None:
    record(Recorder(tmp_path, "1_cam0", 10, segment_seconds=2), 5)
    assert durations(tmp_path) == [2.0, 2.0, 1.0]
    assert all(path.name.startswith("1_cam0_") for path in tmp_path.iterdir())


def test_only_around_what_is_seen(tmp_path: Path) -> None:
    record(Recorder(tmp_path, "1_cam0", 10, labels=frozenset({3})), 40, seen=(20, 22))
    (duration,) = durations(tmp_path)
    assert duration == pytest.approx(5 + 2 + 5, abs=0.25)


def test_a_folder_keeps_to_its_size(tmp_path: Path) -> None:
    (tmp_path / "holiday.mp4").write_bytes(bytes(100_000))
    record(Recorder(tmp_path, "1_cam0", 10, segment_seconds=1, max_bytes=20_000), 30)
    files = [path for path in tmp_path.iterdir() if path.name != "holiday.mp4"]
    assert 0 < sum(path.stat().st_size for path in files) <= 25_000
    assert len(files) < 30
    assert (tmp_path / "holiday.mp4").is_file(), "nothing else is touched"


def test_a_sudden_end_spoils_at_most_the_last_second(tmp_path: Path) -> None:
    code = (
        "import sys, time, numpy as np; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from test_record_and_events import IMAGE, at\n"
        "from detector.video.record import Recorder\n"
        "recorder = Recorder(Path(sys.argv[1]), '1_cam0', 10, segment_seconds=3)\n"
        "rng = np.random.default_rng(0)\n"
        "for number in range(85): recorder.write(rng.integers(0, 255, IMAGE.shape, np.uint8), at(number / 10))\n"
        "print('ready', flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    *whole, last = durations(tmp_path)
    assert whole == [3.0, 3.0]
    assert last >= 1.0, "of the 2.5 s that were written"


class Hook(BaseHTTPRequestHandler):
    """Refuses while `refuse` is set."""

    rows: list[dict[str, object]]
    refuse: threading.Event
    redirect = False

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.redirect:
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self.end_headers()
            return
        if self.refuse.is_set():
            self.send_error(503)
            return
        self.rows.append(json.loads(content))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def hook() -> Iterator[tuple[str, type[Hook]]]:
    handler = type("Handler", (Hook,), {"rows": [], "refuse": threading.Event()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/hook", handler
        server.shutdown()
        thread.join()


def wait_for(rows: Sequence[object], count: int) -> None:
    deadline = time.monotonic() + 10
    while len(rows) < count:
        assert time.monotonic() < deadline, f"{len(rows)} of {count}"
        time.sleep(0.01)


def test_a_webhook_that_is_away_loses_nothing(hook: tuple[str, type[Hook]]) -> None:
    url, handler = hook
    handler.refuse.set()
    courier = Courier(url)
    for number in range(50):
        courier.put({"number": number})
    time.sleep(0.5)
    assert handler.rows == []
    handler.refuse.clear()
    wait_for(handler.rows, 50)
    assert handler.rows == [{"number": number} for number in range(50)], "each once, in order"
    assert courier.close() == ""


def test_a_redirect_and_a_stranger_are_no_delivery(hook: tuple[str, type[Hook]]) -> None:
    """A redirected POST would arrive as a GET without the event; what is not HTTP must not end the thread."""
    url, handler = hook
    told: list[str] = []
    handler.redirect = True
    courier = Courier(url, told.append)
    courier.put({"number": 1})
    wait_for(told, 1)
    assert "not delivered (HTTP Error 302" in told[0]
    handler.redirect = False
    wait_for(handler.rows, 1)
    assert courier.close() == ""
    with socket.create_server(("127.0.0.1", 0)) as stranger:

        def greet() -> None:
            with stranger.accept()[0] as client:
                client.sendall(b"SSH-2.0\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        told.clear()
        courier = Courier(f"http://127.0.0.1:{stranger.getsockname()[1]}/hook", told.append)
        courier.put({"number": 1})
        wait_for(told, 1)
        assert courier._thread.is_alive()
        thread.join()
    assert "could not be delivered" in courier.close()


def test_two_cameras_keep_one_folder_to_its_size(tmp_path: Path) -> None:
    def run(name: str) -> None:
        record(Recorder(tmp_path, name, 10, segment_seconds=0.5, max_bytes=3000), 20)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(run, ("1_a", "2_b")))
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert 0 < sum(sizes) <= 3000 + 2 * max(sizes), "the limit, and what each camera has just closed"
    assert len(sizes) < 2 * 40, "the oldest of forty segments of each are gone"


def test_what_cannot_be_delivered_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "WAITING_EVENTS", 10)
    courier = Courier("http://user:secret@127.0.0.1:1/hook")
    for number in range(15):
        courier.put({"number": number})
    begun = time.monotonic()
    assert re.fullmatch(
        r"http://127\.0\.0\.1:1/hook: 15 events could not be delivered \(.*refused.*\)", courier.close()
    )
    assert time.monotonic() - begun < 3


def test_events_in_a_file(tmp_path: Path) -> None:
    courier = Courier(str(tmp_path / "events.jsonl"))
    courier.put({"number": 1})
    assert courier.close() == ""
    assert json.loads((tmp_path / "events.jsonl").read_text()) == {"number": 1}
    for target in (
        "events.txt",
        "ftp://host/x",
        "mqtt://host",
        "mqtt://h/a/#",
        "mqtt://h:99999/t",
        "http://[",
        "http://h/a b",
    ):
        with pytest.raises(InputError, match="--events"):
            Courier(target)


def test_a_broker_that_is_away_for_a_while(unused_port: int) -> None:
    """Events are put before it is there; it comes, goes, comes back; each arrives once, in order."""
    pytest.importorskip("amqtt")
    pytest.importorskip("paho")
    courier = Courier(f"mqtt://127.0.0.1:{unused_port}/cameras/gate")
    for number in range(10):
        courier.put({"number": number})
    time.sleep(0.3)
    with Broker(unused_port) as broker:
        wait_for(broker.rows, 10)
    for number in range(10, 20):
        courier.put({"number": number})
    time.sleep(0.3)
    with Broker(unused_port) as second:
        wait_for(second.rows, 10)
        assert courier.close() == ""
    assert [row["number"] for row in broker.rows + second.rows] == list(range(20))


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Broker:
    """A real MQTT broker, and what it was told."""

    def __init__(self, port: int) -> None:
        self.rows: list[dict[str, object]] = []
        self._port = port
        self._ready, self._end = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> Broker:
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    async def _serve(self) -> None:
        from amqtt.broker import Broker as AmqttBroker
        from amqtt.client import MQTTClient

        listener = {"type": "tcp", "bind": f"127.0.0.1:{self._port}"}
        broker = AmqttBroker(
            {
                "listeners": {"default": listener},
                "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
            }
        )
        await broker.start()
        client = MQTTClient()
        await client.connect(f"mqtt://127.0.0.1:{self._port}/")
        await client.subscribe([("cameras/#", 1)])
        self._ready.set()
        while not self._end.is_set():
            try:
                message = await client.deliver_message(timeout_duration=0.1)
            except TimeoutError:
                continue
            if message is not None:
                self.rows.append(json.loads(message.data))
        await client.disconnect()
        await broker.shutdown()


def test_recordings_can_be_read_by_the_project(tmp_path: Path) -> None:
    record(Recorder(tmp_path, "1_cam0", 10), 1)
    (path,) = tmp_path.iterdir()
    assert len(list(open_source(str(path)))) == 10
