"""The long versions: five minutes of a stream, fifty breaks of it, four cameras, twenty viewers (make live-soak)."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rtsp_server import RtspServer, number_of, write_numbered
from websockets.sync.client import connect

from detector.structures import Detections, Image
from detector.video.frame import Result
from detector.video.pipeline import Camera, run_video
from detector.video.source import open_source
from detector.video.web.hub import Hub, WebSink
from detector.video.web.server import WebServer

pytest.importorskip("av")
pytest.importorskip("aio_rtsp_toolkit")
pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]
FPS = 25


class SlowPredictor:
    """Finds nothing, and takes its time."""

    class_names = ("thing",)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def predict_batch(self, images: list[Image], *, on_stage: Callable[[str], None]) -> list[Detections]:
        time.sleep(self.seconds)
        on_stage("network")
        return [Detections() for _ in images]


def report(**figures: Any) -> None:
    """A line for the table."""
    sys.stderr.write(json.dumps(figures) + "\n")


def ages_of(captures: list[tuple[float, int, float]]) -> np.ndarray:
    """Age in ms of each frame when its boxes are there, from when the server sent it.

    Args:
        captures: arrival, the number in the image, and when its boxes were there.
    """
    began = min(arrival - number / FPS for arrival, number, _ in captures[5:])  # the least delayed one
    return np.array([(done - began - number / FPS) * 1000 for _, number, done in captures[5:]])


def measure_age(folder: Path, seconds: float, inference: float) -> dict[str, float]:
    """Watches a stream with a detector that is five times too slow."""
    write_numbered(folder / "n.mp4", round(seconds * FPS) + 50)
    captures: list[tuple[float, int, float]] = []

    def note(result: Result) -> None:
        captures.append((result.frame.captured, number_of(result.frame.image), time.perf_counter()))

    with RtspServer(folder) as server:
        camera = Camera(open_source(server.url("n.mp4"), retries=0))
        timer = threading.Timer(seconds, camera.source.close)
        timer.start()
        run_video([camera], SlowPredictor(inference), on_result=note)  # type: ignore[arg-type]
        timer.cancel()
    ages = ages_of(captures)
    slope = np.polyfit(np.arange(len(ages)) / len(ages), ages, 1)[0]  # ms from begin to end
    p95 = float(np.percentile(ages, 95))
    return {"frames": len(ages), "p50_ms": float(np.median(ages)), "p95_ms": p95, "trend_ms": float(slope)}


def test_the_age_of_what_is_seen_does_not_grow(tmp_path: Path) -> None:
    found = measure_age(tmp_path, 300, 0.2)
    report(soak="age of a 25 fps stream at 5 fps", **found)
    assert found["p95_ms"] <= 200 + 80
    assert abs(found["trend_ms"]) < 20


def resources() -> dict[str, float]:
    """Threads, open files and memory of this process."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    memory = int(status.split("VmRSS:")[1].split()[0]) / 1024
    return {"threads": threading.active_count(), "files": len([*Path("/proc/self/fd").iterdir()]), "rss_mb": memory}


def break_and_return(folder: Path, cycles: int) -> dict[str, Any]:
    """Kills and restarts a server; how long frames take to return, and what is left of each cycle."""
    write_numbered(folder / "n.mp4", 3000)
    count = [0]
    back: list[float] = []
    with RtspServer(folder) as server:
        source = open_source(server.url("n.mp4"))

        def read() -> None:
            for _ in source:
                count[0] += 1

        thread = threading.Thread(target=read)
        thread.start()
        wait_until(lambda: count[0] > 10, 10)
        server.freeze()
        begun = time.monotonic()
        wait_until(lambda: source.state != "open", 5)
        noticed = time.monotonic() - begun
        before: dict[str, float] = {}
        for cycle in range(cycles):
            server.kill()
            wait_until(lambda: source.state != "open", 5)
            seen = count[0]
            server.start()
            begun = time.monotonic()
            wait_until(lambda seen=seen: count[0] > seen, 20)
            back.append(time.monotonic() - begun)
            wait_until(lambda seen=seen: count[0] > seen + 10, 5)
            if cycle == 4:
                before = resources()
        after = resources()
        source.close()
        thread.join(5)
        assert not thread.is_alive()
    return {
        "freeze_noticed_s": noticed,
        "back_p50_s": float(np.median(back)),
        "back_max_s": max(back),
        "reconnects": source.reconnects,
        "before": before,
        "after": after,
    }


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def test_fifty_breaks(tmp_path: Path) -> None:
    found = break_and_return(tmp_path, 50)
    report(soak="a server killed and restarted 50 times", **found)
    assert found["freeze_noticed_s"] < 2.5
    assert found["back_max_s"] < 2
    assert found["after"]["threads"] == found["before"]["threads"]
    assert found["after"]["files"] <= found["before"]["files"]
    assert found["after"]["rss_mb"] - found["before"]["rss_mb"] < 5


def rates(urls: list[str], seconds: float) -> list[float]:
    """Frames per second of each source, when the detector is the bottleneck."""
    cameras = [Camera(open_source(url)) for url in urls]
    timer = threading.Timer(seconds, lambda: [camera.source.close() for camera in cameras])
    timer.start()
    run_video(cameras, SlowPredictor(0.02))  # type: ignore[arg-type]
    timer.cancel()
    return [camera.ledger.frames / seconds for camera in cameras]


def test_four_sources_get_the_same(tmp_path: Path) -> None:
    write_numbered(tmp_path / "n.mp4", 1500)
    with ExitStack() as stack:
        servers = [stack.enter_context(RtspServer(tmp_path)) for _ in range(4)]
        urls = [server.url("n.mp4") for server in servers]
        four = rates(urls, 20)
        three = rates(urls[:3], 20)
        timer = threading.Timer(5, servers[3].freeze)
        timer.start()
        with_dead = rates(urls, 20)
    report(soak="four sources, 50 frames/s in all", four=four, three=three, one_dead_after_5_s=with_dead)
    assert max(four) / min(four) < 1.1
    assert min(with_dead[:3]) > 0.95 * min(four), "the dead one costs the others nothing"


VIEWER = """
import struct, sys, time
from websockets.sync.client import connect
with connect(sys.argv[1], max_size=None) as viewer:
    end = time.time() + float(sys.argv[2])
    while time.time() < end:
        content = viewer.recv(timeout=10)
        print((time.time() - struct.unpack(">d", content[:8])[0]) * 1000)
"""


def test_twenty_viewers(tmp_path: Path) -> None:
    write_numbered(tmp_path / "n.mp4", 1500)
    with RtspServer(tmp_path) as rtsp:
        camera = Camera(open_source(rtsp.url("n.mp4")))
        hub = Hub([camera], ("thing",))
        camera.sinks = [WebSink(hub, 0)]
        server = WebServer(hub, "127.0.0.1", 0)
        url = server.url.replace("http", "ws") + "ws/0"
        thread = threading.Thread(target=run_video, args=([camera], SlowPredictor(0.01)))
        thread.start()
        with connect(url, max_size=None, max_queue=1):  # it never reads
            time.sleep(1)
            before = resources()
            command = [sys.executable, "-c", VIEWER, url, "15"]
            viewers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(19)]
            ages = [float(line) for viewer in viewers for line in viewer.communicate()[0].split()[20:]]
            after = resources()
        camera.source.close()
        thread.join(5)
        server.close()
    p95 = float(np.percentile(ages, 95))
    report(
        soak="20 viewers, one stalled",
        pictures=len(ages),
        p50_ms=float(np.median(ages)),
        p95_ms=p95,
        memory_mb=after["rss_mb"] - before["rss_mb"],
    )
    assert p95 < 150
    assert after["rss_mb"] - before["rss_mb"] < 20
