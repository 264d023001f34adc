"""A real RTSP server on loopback, and a video whose frames carry their number in the image."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from detector.data.video_file import VideoFile
from detector.structures import Image

BITS = 16
CELL = 12
SERVE = (
    "import asyncio, sys; from aio_rtsp_toolkit.server import RtspServer; "
    "asyncio.run(RtspServer(sys.argv[1], '127.0.0.1', int(sys.argv[2])).serve_forever())"
)


def numbered_frame(number: int) -> Image:
    """(96, 192, 3) with `number` as a row of black and white cells."""
    image = np.full((96, 192, 3), 90, np.uint8)
    for bit in range(BITS):
        image[:CELL, bit * CELL : (bit + 1) * CELL] = 235 if number >> bit & 1 else 20
    return image


def number_of(image: Image) -> int:
    """The number that a frame carries."""
    cells = image[: CELL - 2, : BITS * CELL, 1].reshape(CELL - 2, BITS, CELL)[:, :, 2:-2].mean((0, 2))
    return sum(1 << bit for bit, value in enumerate(cells) if value > 128)


def write_numbered(path: Path, num_frames: int, fps: float = 25.0) -> None:
    """A video of numbered frames, with a keyframe each second."""
    file = VideoFile(path, fps, fragmented=False)
    for number in range(num_frames):
        file.write(numbered_frame(number))
    file.close()


class RtspServer:
    """Serves a folder's files at their own pace, in a process that can be stopped, killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> RtspServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def url(self, name: str) -> str:
        return f"rtsp://127.0.0.1:{self.port}/{name}"

    def start(self) -> None:
        """Starts it and waits until it listens."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(self._folder), str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise TimeoutError("the RTSP server did not start")

    def freeze(self) -> None:
        """It stops in the middle of everything, its sockets stay open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
